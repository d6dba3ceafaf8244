"""Run work on several threads that stop when their caller stops.

If a caller stops early (an error, Ctrl-C, a closed generator), it tells its threads, and requests to servers in them
end within a fraction of a second; see `core/http.py`, which checks `stopping`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import TypeVar

Item = TypeVar("Item")
Out = TypeVar("Out")

_HERE = threading.local()
_ALL: weakref.WeakSet[threading.Event] = weakref.WeakSet()


def stopping() -> threading.Event | None:
    """Return the event that tells this thread to stop; None on a thread that is not stopped in this way."""
    return getattr(_HERE, "stop", None)


def stop_all() -> None:
    """Stop all worker threads before the process ends."""
    for event in list(_ALL):
        event.set()


def _belongs_to(stop: threading.Event) -> None:
    _HERE.stop = stop


def as_finished(
    function: Callable[[Item], Out], items: Iterable[Item], concurrency: int
) -> Generator[tuple[Item, Future[Out]], None, None]:
    """Apply a function to items on threads, `concurrency` at a time, and yield each item with its finished future.

    Items that finish at the same moment come in their original order, and so do all items if `concurrency` is 1.
    Closing the iterator stops the threads and waits for them; close it (`contextlib.closing`) if the loop may end
    early.
    """
    stop = threading.Event()
    _ALL.add(stop)
    pending: dict[Future[Out], Item] = {}
    todo, more = iter(items), True
    pool = ThreadPoolExecutor(max_workers=concurrency, initializer=_belongs_to, initargs=(stop,))
    try:
        while True:
            while more and len(pending) < 2 * concurrency:
                try:
                    item = next(todo)
                except StopIteration:
                    more = False
                    break
                pending[pool.submit(function, item)] = item
            if not pending:
                return
            # a set, which has no order of its own
            finished = wait(pending, return_when=FIRST_COMPLETED).done
            for future in [f for f in pending if f in finished]:
                yield pending.pop(future), future
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(function: Callable[[Item], Out], items: Sequence[Item], concurrency: int) -> list[Out]:
    """Apply a function to items on threads and return the results in the order of the items.

    Raises:
        Exception: the first exception that the function raised; the other calls are stopped.
    """
    out: dict[int, Out] = {}
    with closing(as_finished(lambda i: function(items[i]), range(len(items)), concurrency)) as running:
        for i, future in running:
            out[i] = future.result()
    return [out[i] for i in range(len(items))]

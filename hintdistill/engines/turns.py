"""Whose turn it is, among threads that prepare work for a model and the one that has it done.

Two threads of Python that compute at the same time wait for one another at every operation of torch, and take longer than one after
the other. So one works at a time; those that prepare come first, until enough work waits, so that it is done together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType


class Turns(AbstractContextManager["Turns"]):
    """A lock that its owner may take again. `with turns:` prepares; `with turns.last(enough):` goes after all who prepare."""

    def __init__(self, inner: AbstractContextManager[object]) -> None:
        """`inner` is held while preparing: the lock of others that prepare the same kind of work."""
        self._inner, self._free = inner, threading.Condition()
        self._owner: int | None = None
        self._depth = self._preparing = 0

    def __enter__(self) -> Turns:
        me = threading.get_ident()
        with self._free:
            if self._owner == me:
                self._depth += 1
                return self
            self._preparing += 1
            try:
                while self._owner is not None:
                    self._free.wait()
            finally:
                self._preparing -= 1
            self._owner, self._depth = me, 1
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._depth == 1:
            self._inner.__exit__(kind, error, trace)
        self._leave()

    @contextmanager
    def last(self, enough: Callable[[], bool], expected: Callable[[], bool], linger_s: float) -> Iterator[None]:
        """The turn after everybody who waits to prepare, or at once when `enough` work is there.

        Where nobody waits, what is `expected` is waited for no longer than `linger_s` seconds.
        """
        until = time.monotonic() + linger_s
        with self._free:
            while True:
                if self._owner is None and enough():
                    break
                if self._owner is None and not self._preparing:
                    left = until - time.monotonic()
                    if left <= 0 or expected():
                        break
                    self._free.wait(left)
                    continue
                self._free.wait()
            self._owner, self._depth = threading.get_ident(), 1
        try:
            yield
        finally:
            self._leave()

    def nudge(self) -> None:
        """Say that more work waits."""
        with self._free:
            self._free.notify_all()

    def _leave(self) -> None:
        with self._free:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._free.notify_all()

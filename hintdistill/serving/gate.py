"""Limit the load of a server: a bounded number of requests processed and waiting, each for a bounded time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hintdistill.core.errors import ServiceError

T = TypeVar("T")


class BusyError(ServiceError):
    """Too many requests are already waiting."""


class TimedOutError(ServiceError):
    """A request took too long; its work is finished in the background and discarded."""


class Gate:
    """Run work in threads, and limit the number of waiting requests."""

    def __init__(self, workers: int, max_waiting: int, timeout_s: float) -> None:
        self.workers, self.max_waiting, self.timeout_s = workers, max_waiting, timeout_s
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="hintdistill")
        self._lock, self._inside = threading.Lock(), 0

    @property
    def inside(self) -> int:
        """Number of requests being processed or waiting. A request that timed out counts until its thread is free
        again."""
        return self._inside

    async def run(self, work: Callable[[], T]) -> T:
        """Do the work in a thread.

        Raises:
            BusyError: too many requests are waiting.
            TimedOutError: there was no answer within the time limit.
        """
        with self._lock:
            if self._inside >= self.workers + self.max_waiting:
                raise BusyError(
                    f"{self._inside} requests are already being processed or waiting", hint="try again in a moment"
                )
            self._inside += 1
        future = self._pool.submit(work)
        future.add_done_callback(lambda _: self._leave())
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self.timeout_s)
        except TimeoutError:
            # one that has not begun need not begin any more
            future.cancel()
            raise TimedOutError(f"there was no answer within {self.timeout_s:g} seconds") from None

    def close(self) -> None:
        """Wait for the current requests."""
        self._pool.shutdown(wait=True)

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1

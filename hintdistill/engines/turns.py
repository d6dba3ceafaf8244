"""Whose turn it is, among threads that prepare work for a model and the one that has it done.

Two threads of Python that compute at the same time wait for one another at every operation of torch, and take longer than one after
the other. So one works at a time, and everybody is served in the order in which they came: those whose answer is there first, then
those that prepare, and then the one that leads, who has all the work done that was prepared. He goes before those that still prepare
once enough work waits. Nobody is waited for who is not in the line.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

PASSED = 32
"""Turns to prepare that may be taken while work waits to be done, at most."""
Ticket = object
"""A place in a line."""


class Turns(AbstractContextManager["Turns"]):
    """A lock that its owner may take again, first come, first served.

    `with turns:` works; within it `with turns.released():` lets others work while an answer is waited for; `with turns.last(enough):`
    goes after all who are in line. What is done under `inner` alone is not seen here.
    """

    def __init__(self, inner: AbstractContextManager[object]) -> None:
        """`inner` is held while working: the lock of others that prepare the same kind of work."""
        self._inner, self._free = inner, threading.Condition()
        self._owner: int | None = None
        self._depth = 0
        self._returning, self._preparing = deque[Ticket](), deque[Ticket]()
        self._leader: Callable[[], bool] | None = None
        """Whether enough work waits, of whoever waits to have it done; None if nobody does."""
        self._passed = 0
        """Turns to prepare that were taken since he waits."""

    @property
    def preparing(self) -> int:
        """Threads that wait to prepare."""
        return len(self._preparing)

    def __enter__(self) -> Turns:
        if self.mine:
            self._depth += 1
            return self
        self._take(self._preparing, Ticket())
        self._depth = 1
        self._enter_inner()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.mine:
            # interrupted while it waited to go on
            return
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            self._inner.__exit__(kind, error, trace)
        finally:
            self._leave()

    @property
    def mine(self) -> bool:
        """Whether the turn is this thread's."""
        return self._owner == threading.get_ident()

    @contextmanager
    def released(self, ticket: Ticket) -> Iterator[None]:
        """Let others have the turn; afterwards its owner goes before all that prepare. Nothing happens without the turn.

        Args:
            ticket: what `call_back` may name, so that the order of those that come back is not that in which threads wake up.
        """
        if not self.mine:
            yield
            return
        depth = self._depth
        self._inner.__exit__(None, None, None)
        self._leave()
        try:
            yield
        finally:
            self._take(self._returning, ticket)
            self._depth = depth
            self._enter_inner()

    def call_back(self, tickets: Sequence[Ticket]) -> None:
        """Put those whose answer is there into the line, in this order. Each of them must be within `released`."""
        with self._free:
            self._returning.extend(tickets)

    def nudge(self) -> None:
        """Say that more work waits."""
        with self._free:
            self._free.notify_all()

    @contextmanager
    def last(self, enough: Callable[[], bool]) -> Iterator[None]:
        """The turn after everybody who is in line; before those that prepare when `enough` work is there, or `PASSED` went before.

        One thread at a time may wait here.
        """
        with self._free:
            self._leader, self._passed = enough, 0
            try:
                while self._owner is not None or self._returning or (self._preparing and not self._leads()):
                    self._free.wait()
            finally:
                self._leader = None
            self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._leave()

    def _take(self, line: deque[Ticket], ticket: Ticket) -> None:
        """Stand in line until the turn has come."""
        with self._free:
            if ticket not in line:
                line.append(ticket)
            try:
                while not self._is_next(ticket, line):
                    self._free.wait()
            finally:
                line.remove(ticket)
            self._passed += line is self._preparing
            self._owner = threading.get_ident()

    def _is_next(self, ticket: Ticket, line: deque[Ticket]) -> bool:
        if self._owner is not None or line[0] is not ticket:
            return False
        if line is self._returning:
            return True
        return not self._returning and not self._leads()

    def _leads(self) -> bool:
        """Return whether the one that leads goes before those that prepare."""
        return self._leader is not None and (self._passed >= PASSED or self._leader())

    def _enter_inner(self) -> None:
        try:
            self._inner.__enter__()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        with self._free:
            self._owner = None
            self._free.notify_all()

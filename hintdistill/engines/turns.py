"""Coordinate threads that prepare work for a model with the thread that runs the model.

Two Python threads that compute at the same time wait for each other at every torch operation, and take longer than one
after the other. So only one works at a time, in order of arrival: first the threads whose answer is ready, then those
that prepare work, then the leader, which runs the model on all prepared work. Once enough work is waiting, the leader
goes before the threads that still prepare. Threads outside the line are not waited for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

PASSED = 32
"""Maximum number of turns that threads may take to prepare while work is waiting."""
Ticket = object
"""A place in a line."""


class Turns(AbstractContextManager["Turns"]):
    """Provide a reentrant lock in order of arrival.

    `with turns:` takes the turn. Inside it, `with turns.released():` lets others work while the thread waits for an
    answer. `with turns.last(enough):` waits for all threads in line. Work under `inner` alone is not coordinated.
    """

    def __init__(self, inner: AbstractContextManager[object]) -> None:
        """Create the lock. `inner` is held during a turn; other threads that prepare the same kind of work use it as
        well."""
        self._inner, self._free = inner, threading.Condition()
        self._owner: int | None = None
        self._depth = 0
        self._returning, self._preparing = deque[Ticket](), deque[Ticket]()
        self._leader: Callable[[], bool] | None = None
        """The waiting leader's test for enough waiting work; None if no leader waits."""
        self._passed = 0
        """Number of turns to prepare since the leader began to wait."""

    @property
    def preparing(self) -> int:
        """Number of threads that wait to prepare."""
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
        """Whether this thread has the turn."""
        return self._owner == threading.get_ident()

    @contextmanager
    def released(self, ticket: Ticket) -> Iterator[None]:
        """Let others have the turn; afterwards the owner goes before all threads that prepare. Without the turn, this
        does nothing.

        Args:
            ticket: a ticket that `call_back` may name, so that threads return in its order and not in the order in
                which they wake up.
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
        """Put the threads whose answers are ready into the line, in this order. Each must be inside `released`."""
        with self._free:
            self._returning.extend(tickets)

    def nudge(self) -> None:
        """Announce that more work is waiting."""
        with self._free:
            self._free.notify_all()

    @contextmanager
    def last(self, enough: Callable[[], bool]) -> Iterator[None]:
        """Take the turn after all threads in line, but before those that prepare if `enough` work is waiting or
        `PASSED` turns were taken.

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
        """Wait in line until the turn comes."""
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
        """Return whether the leader goes before the threads that prepare."""
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

"""Use several servers of the same weights as one: each request goes to the available server with the fewest open
requests.

If a server fails, its requests go to the others, and a note names it. It is tried again after `REVIVE_S` seconds, or at
once if no other server is left. A request fails only if all servers fail.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hintdistill.core.errors import ServiceError
from hintdistill.core.http import (
    MOST_BYTES,
    Answer,
    CancelledError,
    CutError,
    HttpClient,
    RedirectError,
    Server,
    StatusError,
    UnreachableError,
)

REVIVE_S = 60.0
"""Seconds after which a failed server is tried again."""


@dataclass
class Member:
    """Describe one server of the pool."""

    client: HttpClient
    under_way: int = 0
    """Number of open requests."""
    asked: int = 0
    """Number of requests sent to it in total."""
    gone_since: float | None = None
    """Monotonic time at which it failed; None while it answers."""


class ServerPool:
    """Send requests to one of several servers; the methods are those of `HttpClient`."""

    def __init__(self, server: Server, more_urls: Sequence[str] = ()) -> None:
        """Check that requests to every server are allowed; send nothing.

        Args:
            server: the first server, with the settings for all of them.
            more_urls: addresses of the others.

        Raises:
            ConfigError: see `HttpClient`; raised for any of the servers.
        """
        urls = dict.fromkeys((server.base_url, *more_urls))
        self.members = [Member(HttpClient(replace(server, base_url=url))) for url in urls]
        self.url = self.members[0].client.url
        """Address of the first server, in a form that may be shown."""
        self._said: list[str] = [note for m in self.members for note in m.client.notes]
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about how the servers are reached, and which of them failed."""
        with self._lock:
            return tuple(self._said)

    def get(self, path: str, *, timeout_s: float | None = None, retries: int | None = None) -> Answer:
        """Send a GET request for `path` to one of them. Raises the errors of `HttpClient.get` if all fail."""
        return self._ask(lambda client: client.get(path, timeout_s=timeout_s, retries=retries))

    def post(self, path: str, body: Any, *, most_bytes: int = MOST_BYTES) -> Answer:
        """Send a JSON body to one of them. Raises the errors of `HttpClient.post` if all fail."""
        return self._ask(lambda client: client.post(path, body, most_bytes=most_bytes))

    def each(self, path: str) -> list[tuple[HttpClient, Answer]]:
        """Send a GET request for `path` to every server that can be reached. Raises UnreachableError if none can be."""
        out, failure = list[tuple[HttpClient, Answer]](), None
        for member in self.members:
            try:
                out.append((member.client, member.client.get(path)))
            except (UnreachableError, CutError) as error:
                self._lose(member, error)
                failure = error
        if not out and failure is not None:
            raise failure
        return out

    def _ask(self, ask: Callable[[HttpClient], Answer]) -> Answer:
        """Try the servers in turn until one answers. Raises the last server's error if none does."""
        tried: list[Member] = []
        while (member := self._take(tried)) is not None:
            tried.append(member)
            try:
                answer = ask(member.client)
            except (CancelledError, RedirectError):
                raise
            except ServiceError as error:
                # a refusal of the question is the same everywhere
                if isinstance(error, StatusError) and error.status < 500:
                    raise
                failure = error
                if isinstance(error, UnreachableError | CutError):
                    self._lose(member, error)
            else:
                self._back(member)
                return answer
            finally:
                with self._lock:
                    member.under_way -= 1
        raise failure

    def _take(self, tried: Sequence[Member]) -> Member | None:
        """Return the available server with the fewest open requests, else one that failed earlier; None if all were
        tried."""
        with self._lock:
            left = [m for m in self.members if m not in tried]
            if not left:
                return None
            now = time.monotonic()
            alive = [m for m in left if m.gone_since is None or now - m.gone_since > REVIVE_S]
            member = min(alive or left, key=lambda m: (m.under_way, m.gone_since or 0.0, m.asked))
            member.under_way += 1
            member.asked += 1
            return member

    def _lose(self, member: Member, error: ServiceError) -> None:
        with self._lock:
            if member.gone_since is None and len(self.members) > 1:
                what = member.client.server.what
                self._said.append(
                    f"{what} at {member.client.url} does not answer; its requests go to the other servers: "
                    f"{error.message}"
                )
            member.gone_since = time.monotonic()

    def _back(self, member: Member) -> None:
        with self._lock:
            if member.gone_since is not None:
                self._said.append(f"{member.client.server.what} at {member.client.url} answers again")
            member.gone_since = None

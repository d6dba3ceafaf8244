"""Read from and write to a socket within bounds: a deadline, a number of bytes, and cancellation.

A time-out per read does not bound an exchange, because a server that sends one byte a second never reaches it. Here one
deadline covers the whole exchange, from the look-up of the host's name to the last byte of the answer.
"""

from __future__ import annotations

import io
import os
import queue
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

POLL_S = 0.1
"""Interval in seconds at which a waiting thread checks whether it has been cancelled."""
T = TypeVar("T")


class TimeIsUpError(Exception):
    """The exchange exceeded its time limit. `connecting`: the server had not yet accepted the connection."""

    def __init__(self, connecting: bool) -> None:
        super().__init__("time is up")
        self.connecting = connecting


class TooManyBytesError(Exception):
    """The answer is longer than its limit."""


class NotWantedError(Exception):
    """The caller has cancelled the exchange."""


class Bound:
    """Hold the limits of one exchange."""

    def __init__(self, seconds: float, connect_s: float, most_bytes: int, stop: threading.Event | None = None) -> None:
        """Set the limits: `connect_s` until `connected` is called, `seconds` for the whole exchange."""
        now = time.monotonic()
        self.whole, self.ends, self.room, self.stop = now + seconds, now + min(seconds, connect_s), most_bytes, stop
        self.connecting = True

    def connected(self) -> None:
        """Note that the server accepted the connection; from now on only the limit of the whole exchange applies."""
        self.ends, self.connecting = self.whole, False

    def check(self) -> float:
        """Return the longest time in seconds to wait before the next check. Raises NotWantedError or TimeIsUpError."""
        if self.stop is not None and self.stop.is_set():
            raise NotWantedError
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeIsUpError(self.connecting)
        return min(left, POLL_S)

    def took(self, n: int) -> None:
        """Count bytes as read. Raises TooManyBytesError."""
        self.room -= n
        if self.room < 0:
            raise TooManyBytesError

    def until_ready(self, sock: socket.socket, *, write: bool) -> None:
        """Wait until the socket can be read from or written to. Raises what `check` raises."""
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_WRITE if write else selectors.EVENT_READ)
            while not selector.select(self.check()):
                pass

    def attempt(self, sock: socket.socket, operation: Callable[[], T], *, write: bool = False) -> T:
        """Do an operation on a non-blocking socket as soon as it is ready. Raises the operation's errors and those of
        `check`."""
        while True:
            self.check()
            try:
                return operation()
            except ssl.SSLWantReadError:
                self.until_ready(sock, write=False)
            except ssl.SSLWantWriteError:
                self.until_ready(sock, write=True)
            except BlockingIOError:
                self.until_ready(sock, write=write)


class BoundedReader(io.RawIOBase):
    """Give `http.client` a raw stream that reads an answer within its limits."""

    def __init__(self, sock: socket.socket, bound: Bound) -> None:
        self._sock, self._bound = sock, bound

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the bytes that have arrived; return 0 at the end. Raises the errors of `Bound`."""
        n = self._bound.attempt(self._sock, lambda: self._sock.recv_into(buffer))
        self._bound.took(n)
        return n

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the buffered reader that `http.client.HTTPResponse` asks a socket for."""
        return io.BufferedReader(self)


def send_all(sock: socket.socket, data: bytes, bound: Bound) -> None:
    """Send all of `data`. Raises OSError and the errors of `Bound`."""
    view = memoryview(data)
    while view:
        sent = bound.attempt(sock, lambda view=view: sock.send(view[: 1 << 16]), write=True)  # type: ignore[misc]
        view = view[sent:]


def connect(host: str, port: int, bound: Bound) -> socket.socket:
    """Return a connected, non-blocking socket. Raises OSError and the errors of `Bound`."""
    refused: OSError | None = None
    for family, kind, protocol, address in _addresses(host, port, bound):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                sock.connect(address)
            except BlockingIOError:
                bound.until_ready(sock, write=True)
                if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, os.strerror(code)) from None
            return sock
        except OSError as error:
            sock.close()
            refused = error
        except BaseException:
            sock.close()
            raise
    raise refused or OSError(f"{host} has no address")


def _addresses(host: str, port: int, bound: Bound) -> list[Any]:
    """Return the addresses of a host. The look-up blocks, so it runs on a thread that can be abandoned."""
    if host == "localhost":
        # it is this machine by promise, whatever a hosts file says
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 0, ("127.0.0.1", port)),
            (socket.AF_INET6, socket.SOCK_STREAM, 0, ("::1", port, 0, 0)),
        ]
    found: queue.Queue[list[Any] | OSError] = queue.Queue()

    def look_up() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put([(family, kind, protocol, address) for family, kind, protocol, _, address in answers])
        except (OSError, UnicodeError) as error:
            found.put(error if isinstance(error, OSError) else OSError(f"{host!r} is not a host name: {error}"))

    threading.Thread(target=look_up, daemon=True).start()
    while True:
        try:
            got = found.get(timeout=bound.check())
        except queue.Empty:
            continue
        if isinstance(got, OSError):
            raise got
        return got


def start_tls(sock: socket.socket, host: str, bound: Bound) -> ssl.SSLSocket:
    """Return the socket wrapped in TLS, with the host's certificate checked. Raises ssl.SSLError, OSError and the
    errors of `Bound`."""
    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        pass
    else:
        context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    secure = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    bound.attempt(secure, secure.do_handshake)
    return secure

"""Reading from and writing to a socket within bounds: until when, how many bytes, and only as long as somebody wants it.

A time-out per read bounds nothing: a server that sends a byte a second never reaches it. Here one bound holds for a whole
exchange, from the look-up of the host's name to the last byte of the answer.
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
"""Seconds after which a waiting thread looks whether it is still wanted."""
T = TypeVar("T")


class TimeIsUpError(Exception):
    """The exchange took longer than it may; `connecting`: the server had not taken the connection."""

    def __init__(self, connecting: bool) -> None:
        super().__init__("time is up")
        self.connecting = connecting


class TooManyBytesError(Exception):
    """The answer is longer than it may be."""


class NotWantedError(Exception):
    """Whoever asked has stopped."""


class Bound:
    """The bounds of one exchange."""

    def __init__(self, seconds: float, connect_s: float, most_bytes: int, stop: threading.Event | None = None) -> None:
        """`connect_s` holds until `connected`, `seconds` for the whole."""
        now = time.monotonic()
        self.whole, self.ends, self.room, self.stop = now + seconds, now + min(seconds, connect_s), most_bytes, stop
        self.connecting = True

    def connected(self) -> None:
        """The server took the connection: from here on the bound of the whole exchange holds."""
        self.ends, self.connecting = self.whole, False

    def check(self) -> float:
        """Seconds to wait at most before the next check. Raises NotWantedError or TimeIsUpError."""
        if self.stop is not None and self.stop.is_set():
            raise NotWantedError
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeIsUpError(self.connecting)
        return min(left, POLL_S)

    def took(self, n: int) -> None:
        """Count bytes that were read. Raises TooManyBytesError."""
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
        """Do an operation on a non-blocking socket as soon as it can be done. Raises what it or `check` raises."""
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
    """What `http.client` reads an answer from."""

    def __init__(self, sock: socket.socket, bound: Bound) -> None:
        self._sock, self._bound = sock, bound

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is; 0 at the end. Raises what `Bound` raises."""
        n = self._bound.attempt(self._sock, lambda: self._sock.recv_into(buffer))
        self._bound.took(n)
        return n

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the buffered reader that `http.client.HTTPResponse` asks a socket for."""
        return io.BufferedReader(self)


def send_all(sock: socket.socket, data: bytes, bound: Bound) -> None:
    """Send all of `data`. Raises what `Bound` raises, and OSError."""
    view = memoryview(data)
    while view:
        sent = bound.attempt(sock, lambda view=view: sock.send(view[: 1 << 16]), write=True)  # type: ignore[misc]
        view = view[sent:]


def connect(host: str, port: int, bound: Bound) -> socket.socket:
    """Return a connected, non-blocking socket. Raises OSError, and what `Bound` raises."""
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
    """Return the addresses of a host; the look-up blocks, so it is done on a thread that can be left behind."""
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
    """Return the socket under TLS, the host's certificate checked. Raises ssl.SSLError, OSError, and what `Bound`
    raises."""
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

"""Provide the only HTTP client, which critics, engines and rollouts share.

Requests contain trace text, so they go to the named server and nowhere else:

- a server outside this machine must be allowed by name, and so must a proxy on the way to it; servers on this machine
  are reached without a proxy;
- redirects are never followed; the error names the target;
- a time limit and a size limit apply to the whole answer, however slowly it arrives;
- the key is masked in everything that comes back (`core/masking.py`);
- a request ends within a fraction of a second after its caller was stopped (`core/threads.py`).

Rate limits, transient errors and cut connections are retried a limited number of times, with growing pauses.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import os
import random
import ssl
import time
import urllib.request
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from hintdistill.core.bounded_io import (
    Bound,
    BoundedReader,
    NotWantedError,
    TimeIsUpError,
    TooManyBytesError,
    connect,
    send_all,
    start_tls,
)
from hintdistill.core.errors import ConfigError, InputError, ServiceError
from hintdistill.core.hosts import is_outside, require_allowed, without_password
from hintdistill.core.masking import hide, mask
from hintdistill.core.threads import stopping

CONNECT_S = 20.0
"""Seconds after which a server that does not accept the connection counts as unreachable."""
MOST_BYTES = 16 * 2**20
"""Largest answer in bytes, unless the caller sets another limit."""
FIRST_PAUSE_S = 0.5
"""Pause in seconds before the second attempt; each later pause is twice as long, up to 8 seconds."""
LONGEST_PAUSE_S = 60.0
"""Longest `retry-after` in seconds that is obeyed; for a longer one, the client uses its own pauses."""
PASSING = frozenset({408, 409, 425, 429})
"""Statuses besides 5xx for which another attempt may succeed."""
SHOWN = 500
"""Number of characters of a server's answer that an error message repeats."""


class UnreachableError(ServiceError):
    """The server, or the proxy in front of it, does not accept the connection; further requests would fail too."""

    retryable = False


class RedirectError(ServiceError):
    """The server redirects the request to another address; further requests would fail too."""

    retryable = False


class TimedOutError(ServiceError):
    """No attempt received the whole answer in time."""


class CutError(ServiceError):
    """The connection broke off in the middle of an answer, or the answer is not HTTP."""


class CancelledError(ServiceError):
    """The run was stopped during the request; the answer is still missing."""


class OversizedError(InputError):
    """The answer is longer than its limit; asking again would not help."""


class StatusError(ServiceError):
    """The server answered every attempt with an error status."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


@dataclass(frozen=True)
class Answer:
    """Hold a server's answer."""

    status: int
    headers: http.client.HTTPMessage = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The body as text, with keys masked."""
        return mask(self.body.decode("utf-8", "replace"))

    @property
    def said(self) -> str:
        """The server's own description of a failure: the message of its error object, else the body."""
        try:
            data = json.loads(self.body)
        except (ValueError, RecursionError):
            return self.text[:SHOWN]
        told = data.get("error", data) if isinstance(data, dict) else data
        message = told.get("message") if isinstance(told, dict) else told
        return mask(message if isinstance(message, str) else self.text)[:SHOWN]


@dataclass(frozen=True)
class Server:
    """Describe a server: its address, the hosts that are allowed, time limits and numbers of attempts."""

    base_url: str
    """Address up to and including `/v1`."""
    what: str
    """Name of the server in messages, e.g. `the critic`."""
    section: str
    """Settings that describe it, e.g. `critic.llm`; error messages refer to them."""
    allow_hosts: tuple[str, ...] = ()
    allow_key: str = "allow_hosts"
    """Name of the setting that holds `allow_hosts`."""
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: float = 120.0
    """Time limit of one whole exchange, seconds."""
    retries: int = 2


class HttpClient:
    """Send requests to one server."""

    def __init__(self, server: Server) -> None:
        """Check that requests to the server are allowed; send nothing.

        Raises:
            ConfigError: the URL is invalid, the host or its proxy is not allowed, or the key cannot be sent.
        """
        self.server, self._url = server, _address(server)
        require_allowed(server.what, server.base_url, server.allow_hosts, server.allow_key)
        self.url = without_password(server.base_url.rstrip("/"))
        """Address that may be shown: without user and password."""
        self.proxy = self._proxy()
        self._headers = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": "hintdistill"}
        self._headers |= {"Accept": "application/json", "Authorization": self._authorization()}
        if self._url.hostname == "api.openai.com":
            named = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
            self._headers |= {n: _sendable(v, os.environ[v]) for n, v in named.items() if os.environ.get(v)}

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about how the server is reached, e.g. through a proxy."""
        return (
            (f"{self.server.what} at {self.url} is reached through the proxy {self.proxy.hostname}",)
            if self.proxy
            else ()
        )

    def get(
        self, path: str, *, timeout_s: float | None = None, retries: int | None = None, at_root: bool = False
    ) -> Answer:
        """Send a GET request for `path`, relative to the base URL, or to the root with `at_root`. Raises the errors of
        `post`."""
        return self._asked("GET", ("" if at_root else self._url.path) + path, b"", MOST_BYTES, timeout_s, retries)

    def post(self, path: str, body: Any, *, most_bytes: int = MOST_BYTES, at_root: bool = False) -> Answer:
        """Send a JSON body to `path`, relative to the base URL, or to the root with `at_root`.

        Raises:
            UnreachableError, RedirectError: neither this request nor a later one can be answered.
            TimedOutError, CutError, StatusError: no answer in any attempt.
            CancelledError: the caller was stopped.
            OversizedError: the answer has more than `most_bytes`.
        """
        return self._asked("POST", ("" if at_root else self._url.path) + path, _json(body), most_bytes, None, None)

    def _asked(
        self, method: str, path: str, data: bytes, most_bytes: int, timeout_s: float | None, retries: int | None
    ) -> Answer:
        server = self.server
        seconds, tries = timeout_s or server.timeout_s, (server.retries if retries is None else retries) + 1
        for attempt in range(tries):
            asked, bound = 0.0, Bound(seconds, CONNECT_S, most_bytes, stopping())
            try:
                answer = self._once(method, path, data, bound)
            except NotWantedError:
                raise CancelledError(f"the request to {self.url} was cancelled before it was answered") from None
            except TooManyBytesError:
                raise OversizedError(f"{self.url} answered with more than {most_bytes} bytes") from None
            except (OSError, TimeIsUpError, http.client.HTTPException, ValueError, zlib.error) as error:
                failure = self._failure(error, bound.connecting, seconds, attempt + 1)
            else:
                if 200 <= answer.status < 300:
                    return answer
                failure = self._refusal(answer)
                if answer.status < 500 and answer.status not in PASSING:
                    raise failure
                asked = _retry_after(answer.headers)
            if attempt + 1 == tries:
                raise failure
            _pause(asked or min(8.0, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.75, 1.0), self.url)
        raise AssertionError("the number of attempts must be at least 1")

    def _once(self, method: str, path: str, data: bytes, bound: Bound) -> Answer:
        """Return the result of one exchange. Raises an error if it is not an answer."""
        url, proxy = self._url, self.proxy
        host, port, secure = (
            url.hostname or "",
            url.port or (443 if url.scheme == "https" else 80),
            url.scheme == "https",
        )
        target, headers = path or "/", dict(self._headers)
        sock = connect(*((proxy.hostname or "", proxy.port or 80) if proxy else (host, port)), bound)
        try:
            if proxy and secure:
                self._tunnel(sock, f"{host}:{port}", proxy, bound)
            elif proxy:
                target, headers = (
                    f"http://{url.netloc.rpartition('@')[2]}{target}",
                    headers | _proxy_authorization(proxy),
                )
            if secure:
                sock = start_tls(sock, host, bound)
            bound.connected()
            if method == "POST":
                headers |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
            head = [f"{method} {target} HTTP/1.1", f"Host: {url.netloc.rpartition('@')[2]}"]
            head += [f"{name}: {value}" for name, value in headers.items()]
            send_all(sock, "\r\n".join([*head, "", ""]).encode("latin-1") + data, bound)
            with http.client.HTTPResponse(BoundedReader(sock, bound), method=method) as response:  # type: ignore[arg-type]
                response.begin()
                body = response.read() if response.status not in range(300, 400) else b""
                plain = _plain(body, response.getheader("content-encoding") or "identity", bound)
                return Answer(response.status, response.headers, plain)
        finally:
            sock.close()

    def _tunnel(self, sock: Any, target: str, proxy: SplitResult, bound: Bound) -> None:
        more = "".join(f"{n}: {v}\r\n" for n, v in _proxy_authorization(proxy).items())
        send_all(sock, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{more}\r\n".encode("latin-1"), bound)
        response = http.client.HTTPResponse(BoundedReader(sock, bound), method="CONNECT")  # type: ignore[arg-type]
        response.begin()
        if response.status != 200:
            raise http.client.HTTPException(
                f"the proxy {proxy.hostname} refuses the connection (status {response.status})"
            )

    def _failure(self, error: Exception, connecting: bool, seconds: float, tries: int) -> ServiceError:
        """Return the error that describes a failed exchange."""
        server, times = self.server, f"{tries} time{'s' * (tries > 1)}"
        late, what = isinstance(error, TimeIsUpError), str(error) or type(error).__name__
        if not connecting and late:
            return TimedOutError(
                f"{self.url} gave no answer within {seconds:g} s ({times})",
                hint=f"raise {server.section}.timeout_s, or lower {server.section}.concurrency",
            )
        if not connecting:
            # it took the question; whether it is gone the next question tells
            return CutError(f"{self.url} cut the connection in the middle of an answer ({times}): {what[:SHOWN]}")
        through = f" through the proxy {self.proxy.hostname}" if self.proxy else ""
        hint = f"start the server or correct {server.section}.base_url; --resume keeps what was done"
        if isinstance(error, ssl.SSLCertVerificationError):
            hint = "set SSL_CERT_FILE to the file of trusted certificates"
        return UnreachableError(
            f"cannot reach {server.what} at {self.url}{through} ({tries} attempt{'s' * (tries > 1)}): "
            + ("it does not accept the connection in time" if late else what[:SHOWN]),
            hint=hint,
        )

    def _refusal(self, answer: Answer) -> ServiceError:
        if 300 <= answer.status < 400:
            target = mask(answer.headers.get("location") or "nowhere")[:SHOWN]
            return RedirectError(
                f"{self.url} answered {answer.status} and sends the request on to {target}; redirects are not followed, "
                "because the request holds trace text",
                hint=f"if that server may read it, name it in {self.server.section}.base_url",
            )
        return StatusError(f"{self.url} refused: {answer.status}: {answer.said}", answer.status, answer.said)

    def _proxy(self) -> SplitResult | None:
        """Return the proxy that the environment sets for the server; None for a server on this machine.

        Raises:
            ConfigError: its protocol is not supported, or it is outside this machine and not allowed.
        """
        url, server = self._url, self.server
        host = url.hostname or ""
        if not is_outside(server.base_url) or urllib.request.proxy_bypass(host):
            return None
        found = urllib.request.getproxies()
        named = found.get(url.scheme) or found.get("all")
        if not named:
            return None
        proxy = urlsplit(named if "://" in named else f"http://{named}")
        variable = f"{url.scheme if found.get(url.scheme) else 'all'}_proxy".upper()
        if proxy.scheme != "http" or not proxy.hostname:
            raise ConfigError(
                f"${variable} names a proxy of the kind {proxy.scheme}, which is not supported",
                hint=f"use an http:// proxy, or NO_PROXY={host}",
            )
        require_allowed(
            f"{server.what} at {self.url} is reached through a proxy (${variable}), and the proxy",
            f"{proxy.scheme}://{proxy.hostname}",
            server.allow_hosts,
            server.allow_key,
        )
        if proxy.password:
            hide(unquote(proxy.password))
        return proxy

    def _authorization(self) -> str:
        """Return the value of the authorization header, and mask its secret part from now on."""
        if self._url.password:
            pair = f"{unquote(self._url.username or '')}:{unquote(self._url.password)}"
            hide(unquote(self._url.password))
            hide(pair)
            return "Basic " + base64.b64encode(pair.encode()).decode()
        name = self.server.api_key_env
        key = _sendable(name, os.environ.get(name) or "none")
        hide(key)
        return f"Bearer {key}"


def _address(server: Server) -> SplitResult:
    """Return the parts of the base URL. Raises ConfigError if it is not one."""
    where = f"{server.section}.base_url"
    try:
        url = urlsplit(server.base_url.rstrip("/"))
        _ = url.port
    except ValueError as error:
        raise ConfigError(f"{where} is not a URL: {error}", hint="e.g. http://localhost:8000/v1") from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            f"{where} is not an http URL: {without_password(server.base_url)!r}", hint="e.g. http://localhost:8000/v1"
        )
    if url.query or url.fragment or not server.base_url.isascii() or any(c <= " " for c in server.base_url):
        raise ConfigError(
            f"{where} has more than scheme, host, port and path: {without_password(server.base_url)!r}",
            hint="write it up to /v1; a key belongs in the environment variable that api_key_env names",
        )
    return url


def _sendable(variable: str, value: str) -> str:
    """Return an environment variable's value if a header can hold it. Raises ConfigError, which does not show the
    value."""
    value = value.strip()
    if not value.isascii() or not value.isprintable():
        raise ConfigError(
            f"${variable} has characters that are not allowed in an HTTP header",
            hint="set it to the key and nothing else",
        )
    return value


def _proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _json(body: Any) -> bytes:
    if body is None:
        return b""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # half of a surrogate pair can only be sent as an escape
        return json.dumps(body).encode()


def _plain(body: bytes, encoding: str, bound: Bound) -> bytes:
    """Return the body, unpacked within the size limit if the server compressed it without being asked."""
    if encoding.lower() == "identity":
        return body
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        raise http.client.HTTPException(f"the answer is encoded as {encoding[:40]}")
    unpacking = zlib.decompressobj(wbits=47)
    plain = unpacking.decompress(body, bound.room + 1)
    bound.took(len(plain))
    return plain


def _retry_after(headers: http.client.HTTPMessage) -> float:
    """Return the seconds that the server asks to wait; 0 if it does not ask, or asks for too long."""
    said = headers.get("retry-after") or ""
    try:
        seconds = float(headers.get("retry-after-ms") or "x") / 1000
    except ValueError:
        try:
            seconds = float(said)
        except ValueError:
            try:
                seconds = (email.utils.parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):
                return 0.0
    return seconds if 0 < seconds <= LONGEST_PAUSE_S else 0.0


def _pause(seconds: float, url: str) -> None:
    stop = stopping()
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise CancelledError(f"the request to {url} was cancelled before it was answered")

"""A server that misbehaves: real sockets, one way of misbehaving per path (`http://…/MODE/v1`). What arrives is kept."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NONE = '{"verdict":"none","findings":[]}'
FINDING = {
    "step": 0,
    "quote": None,
    "error_class": "other",
    "hint": "Look at the list of tools first.",
    "confidence": 0.9,
    "caused_by": None,
}
FOUND = json.dumps({"verdict": "findings", "findings": [FINDING]})


def chat(text: Any, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return json.dumps({"choices": [{"finish_reason": "stop", "message": message}], "usage": usage} | more).encode()


class BadServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def __init__(self, host: str, tls: ssl.SSLContext | None) -> None:
        super().__init__((host, 0), _Handler)
        self.tls = tls
        self.received: list[dict[str, Any]] = []
        self.elsewhere = ""
        self.closing = threading.Event()

    @property
    def host(self) -> str:
        return f"{self.server_address[0]}:{self.server_address[1]}"

    def url(self, mode: str) -> str:
        return f"http{'s' * (self.tls is not None)}://{self.host}/{mode}/v1"

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        if self.tls is not None:
            # shakes hands as soon as its handler reads, on the handler's thread
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address


class _Handler(socketserver.StreamRequestHandler):
    server: BadServer

    def handle(self) -> None:
        try:
            line = self.rfile.readline().decode()
        except ssl.SSLError:
            return  # the client does not trust this server
        headers: dict[str, str] = {}
        while (header := self.rfile.readline().decode().strip()) != "":
            name, _, value = header.partition(": ")
            headers[name.lower()] = value
        body = self.rfile.read(int(headers.get("content-length", 0))).decode()
        target = line.split()[1] if line.strip() else ""
        self.server.received.append({"target": target, "headers": headers, "body": body})
        path = target.partition("://")[2].partition("/")[2] if "://" in target else target[1:]
        # the client goes away, as it should
        with contextlib.suppress(OSError):
            getattr(self, "do_" + path.split("/")[0], self.do_none)(headers, body)

    def send(self, status: int, body: bytes, *more: str, length: int | None = None) -> None:
        head = [f"HTTP/1.1 {status} X", f"content-length: {len(body) if length is None else length}", *more, "", ""]
        self.wfile.write("\r\n".join(head).encode() + body)

    def do_none(self, headers: dict[str, str], body: str) -> None:
        self.send(200, chat(NONE))

    def do_found(self, headers: dict[str, str], body: str) -> None:
        self.send(200, chat(FOUND))

    def do_mixed(self, headers: dict[str, str], body: str) -> None:
        self.send(200, chat(FOUND)) if len(self.server.received) % 2 else self.send(503, b"busy")

    def do_thinks(self, headers: dict[str, str], body: str) -> None:
        self.send(200, chat('<think>{"verdict": "none"}</think>Here:\n```json\n' + FOUND + "\n```\n{done}"))

    def do_nonsense(self, headers: dict[str, str], body: str) -> None:
        self.send(200, chat("I would rather not say."))

    def do_busy(self, headers: dict[str, str], body: str) -> None:
        self.send(503, b"busy")

    def do_limited(self, headers: dict[str, str], body: str) -> None:
        self.send(429, b"{}")

    def do_page(self, headers: dict[str, str], body: str) -> None:
        self.send(200, b"<html>Bad gateway</html>")

    def do_too_long(self, headers: dict[str, str], body: str) -> None:
        self.send(400, b'{"error": {"message": "longer than the context"}}')

    def do_declines(self, headers: dict[str, str], body: str) -> None:
        choice = {"finish_reason": "content_filter", "message": {"content": None, "refusal": "no"}}
        self.send(200, chat("", choices=[choice]))

    def do_moved301(self, headers: dict[str, str], body: str) -> None:
        self.send(301, b"", f"location: {self.server.elsewhere}")

    def do_moved302(self, headers: dict[str, str], body: str) -> None:
        self.send(302, b"", f"location: {self.server.elsewhere}")

    def do_moved303(self, headers: dict[str, str], body: str) -> None:
        self.send(303, b"", f"location: {self.server.elsewhere}")

    def do_moved307(self, headers: dict[str, str], body: str) -> None:
        self.send(307, b"", f"location: {self.server.elsewhere}")

    def do_moved308(self, headers: dict[str, str], body: str) -> None:
        self.send(308, b"", f"location: {self.server.elsewhere}")

    def do_hangs(self, headers: dict[str, str], body: str) -> None:
        self.server.closing.wait(30)

    def do_drips(self, headers: dict[str, str], body: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        self._drip(b"x")

    def do_drips_head(self, headers: dict[str, str], body: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        self._drip(b"x")

    def do_drips_chunks(self, headers: dict[str, str], body: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        self._drip(b"1\r\nx\r\n")

    def do_drips_continue(self, headers: dict[str, str], body: str) -> None:
        self._drip(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _drip(self, what: bytes) -> None:
        while not self.server.closing.is_set():
            self.wfile.write(what)
            time.sleep(0.02)

    def do_floods(self, headers: dict[str, str], body: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            self.wfile.write(b" " * (1 << 20))

    def do_bomb(self, headers: dict[str, str], body: str) -> None:
        self.send(200, gzip.compress(b" " * 40_000_000), "content-encoding: gzip")

    def do_cut(self, headers: dict[str, str], body: str) -> None:
        self.send(200, chat(NONE)[:20], length=500)

    def do_no_http(self, headers: dict[str, str], body: str) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH\r\n")

    def do_echo401(self, headers: dict[str, str], body: str) -> None:
        said = {"error": {"message": f"wrong key {headers['authorization']}"}}
        self.send(401, json.dumps(said).encode())

    def do_echo500(self, headers: dict[str, str], body: str) -> None:
        self.send(500, headers["authorization"].encode())

    def do_echo_page(self, headers: dict[str, str], body: str) -> None:
        self.send(200, f"<html>{headers['authorization']}</html>".encode())

    def do_echo_moved(self, headers: dict[str, str], body: str) -> None:
        self.send(307, b"", "location: http://x.example/?" + headers["authorization"].replace(" ", "+"))

    def do_echo_answer(self, headers: dict[str, str], body: str) -> None:
        key = headers["authorization"].split()[-1]
        spelled = "".join(f"\\u{ord(c):04x}" for c in key)
        self.send(200, chat(FOUND.replace("Look at", f"{key} {key.upper()} {spelled} Look at")))

    def do_echo_scores(self, headers: dict[str, str], body: str) -> None:
        key = headers["authorization"].split()[-1]
        table = [None, *({str(i): {"logprob": key}} for i in json.loads(body)["prompt"][1:])]
        choice = {"prompt_logprobs": table, "token_ids": [key], "logprobs": {"token_logprobs": [key]}}
        self.send(200, json.dumps({"choices": [choice]}).encode())


@contextmanager
def bad_server(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[BadServer]:
    server = BadServer(host, tls)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

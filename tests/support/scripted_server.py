"""A small OpenAI-compatible chat server that plays a script: what a healthy server will not do on request.

Each request takes the next entry of the script: a string is an answer's text; an int is an HTTP status; a pair is a status
and its `retry-after`; bytes are the body of a response, whatever they hold; `stall` never answers in time, `stall body`
stops in the middle of the answer, `cut` closes the connection there; `empty` is an answer without choices; `{"length": text}` is an
answer that the limit of tokens ended. The last entry
repeats. Everything received is kept.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: list[Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.received, self.lock = list(script), [], threading.Lock()
        self.headers: list[dict[str, str]] = []
        self.max_model_len: int | None = None
        self.prompt_tokens = 7

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next(self, request: dict[str, Any]) -> Any:
        with self.lock:
            self.received.append(request)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """The list of models, as vLLM gives it, where the test said how long the context is; else nothing."""
        length = self.server.max_model_len  # type: ignore[attr-defined]
        card = {"id": "m", "object": "model", "created": 0, "owned_by": "x", "max_model_len": length}
        data = json.dumps({"object": "list", "data": [card]}).encode() if length else b"{}"
        self.send_response(200 if length else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        self.server.headers.append(dict(self.headers))  # type: ignore[attr-defined]
        act = self.server.next(body)  # type: ignore[attr-defined]
        if callable(act):
            act = act(body)
        if act == "stall":
            time.sleep(3)
            act = ""
        if act in ("cut", "stall body"):
            self._begin(200, 500)
            self.wfile.write(b'{"id": "x", "choices": [{"ind')
            self.wfile.flush()
            if act == "stall body":
                time.sleep(3)
            self.close_connection = True
            return
        if isinstance(act, bytes):
            self._begin(200, len(act))
            self.wfile.write(act)
            return
        act, pause = act if isinstance(act, tuple) else (act, "0")
        end, text = ("length", act["length"]) if isinstance(act, dict) else ("stop", act)
        status, choices = (
            (act, [])
            if isinstance(act, int)
            else (200, [{"index": 0, "finish_reason": end, "message": {"role": "assistant", "content": text}}])
        )
        if act == "empty":
            choices = []
        answer: dict[str, Any] = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": choices,
            "usage": {"prompt_tokens": self.server.prompt_tokens, "completion_tokens": 3},
        }
        if status != 200:
            answer = {"error": {"message": f"scripted {status}"}}
        data = json.dumps(answer).encode()
        self._begin(status, len(data), {"retry-after": pause} if status == 429 else {})
        self.wfile.write(data)

    def _begin(self, status: int, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(length), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def scripted_server(*script: Any) -> Iterator[ScriptedServer]:
    server = ScriptedServer(list(script))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

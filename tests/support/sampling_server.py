"""A server that samples token ids from real weights as vLLM's completions do, and is handed weights or adapters while it runs.

For what tests/vllm cannot show cheaply: the loop over rounds. What the real vLLM answers is tested there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.rollouts.generation import SamplingOptions, TransformersGenerator


class SamplingServer(ThreadingHTTPServer):
    """Serves a model folder under the name `model`, and adapters under theirs."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.weights = {"model": TransformersEngine.load(folder, dtype="float32", device="cpu")}
        self.lock, self.told = threading.Lock(), list[tuple[str, dict[str, Any]]]()
        self.sleeps: bool | None = None
        """None: it has no sleep mode."""
        self.sampled_by: list[str] = []
        """The key of the weights of each step, in the order in which they were sampled."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        engine, prompt = self.weights[body["model"]], body["prompt"]
        if "prompt_logprobs" in body:
            ids = np.array(prompt)
            (score,) = engine.score([ScoreRequest(ids, 1, len(ids))], 1)
            table = [{str(i): {"logprob": float(v)}} for i, v in zip(prompt[1:], score.sampled, strict=True)]
            return {"choices": [{"prompt_logprobs": [None, *table]}]}
        self.sampled_by.append(engine.key)
        options = SamplingOptions(temperature=body["temperature"], max_new_tokens=body["max_tokens"], logprobs=True)
        (step,) = TransformersGenerator(engine, reuse=False).generate(
            [prompt], body["stop_token_ids"], options, body["seed"]
        )
        return {"choices": [{"token_ids": list(step.ids), "logprobs": {"token_logprobs": list(step.logprobs)}}]}

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            if path == "/v1/completions":
                return 200, self.complete(body)
            self.told.append((path, body))
            if path == "/v1/load_lora_adapter":
                self.weights[body["lora_name"]] = TransformersEngine.load(Path(body["lora_path"]), "float32", "cpu")
            elif path == "/v1/unload_lora_adapter":
                del self.weights[body["lora_name"]]
            elif path == "/collective_rpc" and body["method"] == "reload_weights":
                folder = Path(body["kwargs"]["weights_path"])
                self.weights["model"] = TransformersEngine.load(folder, "float32", "cpu")
            elif path in ("/sleep?level=1", "/wake_up") and self.sleeps is not None:
                self.sleeps = path != "/wake_up"
            elif path != "/reset_prefix_cache":
                return 404, {}
            return 200, {}


class _Handler(BaseHTTPRequestHandler):
    server: SamplingServer

    def do_GET(self) -> None:
        if self.path == "/is_sleeping":
            known = self.server.sleeps is not None
            self._write(200 if known else 404, {"is_sleeping": self.server.sleeps})
            return
        self._write(200, {"data": [{"id": name} for name in self.server.weights]})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        self._write(*self.server.answer(self.path, json.loads(raw or b"null") or {}))

    def _write(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def sampling_server(folder: Path) -> Iterator[SamplingServer]:
    server = SamplingServer(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

"""What a server returns is held against what it was sent, token by token, in every dialect."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from hintdistill.core.errors import ServiceError
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.server import ServerEngine

IDS = [5, 6, 7, 8, 6, 7, 8, 9, 5, 6]
WORDS = {i: f" w{i}" for i in range(20)} | {1: "<s>"}
BOS = 1


def own(position: int) -> float:
    """Log-probability of the token at a position of the ids as sent."""
    return -0.01 * (position + 1)


class Peculiar(BaseHTTPRequestHandler):
    """A completions server that may do something to the prompt before it scores it; the model's name says what."""

    def log_message(self, *a):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        ids, kind = body["prompt"], body["model"].split("+")
        logprobs = [None, *(own(i) for i in range(1, len(ids)))]
        if "bos" in kind:
            ids, logprobs = [BOS, *ids], [None, *(own(i) for i in range(len(ids)))]
        if "replaced" in kind:
            ids = [*ids[:-1], 3]
        if "cut" in kind:
            ids, logprobs = [*ids[1:], 2], [None, *logprobs[2:], -1.0]
        names = [WORDS[i].strip() if "text" in kind else f"token_id:{i}" for i in ids]
        choice: dict = {"index": 0, "text": "", "finish_reason": "length"}
        if "prompt_logprobs" in body:
            rows = zip(ids, logprobs, strict=True)
            choice["prompt_logprobs"] = [None if p is None else {str(i): {"logprob": p}} for i, p in rows]
        else:
            top = [None if p is None else {n: p} for n, p in zip(names, logprobs, strict=True)]
            said = {"token_logprobs": [*logprobs, -0.5], "top_logprobs": [*top, None], "text_offset": []}
            choice["logprobs"] = said | ({} if "unnamed" in kind else {"tokens": [*names, "x"]})
        data = json.dumps({"id": "x", "object": "text_completion", "model": "m", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Peculiar)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def scored(address: str, kind: str, dialect: str) -> np.ndarray:
    engine = ServerEngine(
        address,
        kind,
        max_length=100,
        dialect=dialect,
        id_of={w.strip(): i for i, w in WORDS.items()}.get,
    )
    engine.text_of = WORDS.get
    return engine.score([ScoreRequest(ids=np.array(IDS), start=6, end=10)], 4)[0].sampled


@pytest.mark.parametrize(("kind", "dialect"), [("ids", "echo"), ("text", "echo"), ("ids", "prompt_logprobs")])
def test_a_server_that_scores_what_it_was_sent(kind, dialect, address):
    assert scored(address, kind, dialect).tolist() == pytest.approx([own(i) for i in range(6, 10)])


@pytest.mark.parametrize("what", ["bos", "replaced", "cut", "bos+replaced"])
@pytest.mark.parametrize(("kind", "dialect"), [("ids", "echo"), ("text", "echo"), ("ids", "prompt_logprobs")])
def test_a_server_that_scores_another_prompt_is_refused(kind, dialect, what, address):
    with pytest.raises(ServiceError, match="scored a different prompt from the one that was sent"):
        scored(address, f"{kind}+{what}", dialect)


def test_a_server_that_names_no_tokens_is_refused(address):
    with pytest.raises(ServiceError, match="does not say which tokens"):
        scored(address, "ids+unnamed", "echo")

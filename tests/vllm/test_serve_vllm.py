"""`hintdistill serve` that scores on a vLLM server: what it answers is what this process says with the same weights."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import ROOT, STUDENT
from support.agent_server import Serve

vllm = pytest.importorskip("vllm", reason="vllm is not installed in this environment; `make test-vllm` has its own")
pytest.importorskip("fastapi")
pytestmark = pytest.mark.vllm

NEAR = 2e-4
"""Nats: two implementations of one model in float32."""


@pytest.fixture
def serving(server, tmp_path):
    """The agents' server in front of the vLLM server."""
    running = Serve(tmp_path, "--base-url", server.url, "--served-as", "critic").wait()
    try:
        yield running
    finally:
        assert running.stop() == 0


def post(running: Serve, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and answer."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{running.url}{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_agents_server_answers_with_what_vllm_scores(serving):
    import hintdistill as hd

    local = hd.load_engine(str(STUDENT), dtype="float32")
    traces = hd.read_traces([ROOT / "examples" / "toolworld" / "traces.jsonl"])
    trace = next(t for t in traces if any('"error":"unknown tool' in (m.content or "") for m in t.messages))
    messages: list[dict[str, Any]] = []
    for m in trace.messages:
        messages.append({"role": m.role, "content": m.content})
        if m.tool_call_id:
            messages[-1]["tool_call_id"] = m.tool_call_id
        if m.tool_calls:
            messages[-1]["tool_calls"] = [
                {"id": c.id or "c", "type": "function", "function": {"name": c.name, "arguments": c.arguments_raw}}
                for c in m.tool_calls
            ]
    asked: dict[str, Any] = {"messages": messages, "tools": list(trace.tools)}
    status, found = post(serving, "/v1/diagnose", asked)
    here = hd.diagnose(messages, tools=trace.tools, engine=local).to_dict()
    assert status == 200 and found["verdict"] == here["verdict"] == "findings"
    for ours, theirs in zip(found["findings"], here["findings"], strict=True):
        assert (ours["step"], ours["quote"], ours["error_class"]) == (
            theirs["step"],
            theirs["quote"],
            theirs["error_class"],
        )
        hints = {h["hint"]: h for h in theirs["hints"]}
        assert ours["hints"] and {h["hint"] for h in ours["hints"]} == set(hints)
        for hint in ours["hints"]:
            alone = hints[hint["hint"]]["target"]["hint_effect"]
            assert hint["target"]["hint_effect"] == pytest.approx(alone, abs=NEAR)
    # several callers at once, each with an answer of its own
    step = here["findings"][0]["step"]
    words = [f"The tools are {', '.join(trace.tool_schemas)}.", "Look at the list of tools.", "Be careful."]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda w: post(serving, "/v1/rescore", {**asked, "hint": w, "step": step}), words))
    for (status, target), hint in zip(answers, words, strict=True):
        alone = hd.rescore(messages, hint=hint, step=step, tools=trace.tools, engine=local)
        assert status == 200 and target["hint"] == hint
        assert target["hint_effect"] == pytest.approx(alone.hint_effect.tolist(), abs=NEAR)
    # what the server cannot do is said by name, not answered
    status, refused = post(serving, "/v1/rescore", {**asked, "hint": words[0], "quote": "not there", "step": step})
    assert 400 <= status < 500 and "not there" in json.dumps(refused)

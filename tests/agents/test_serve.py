"""The HTTP server as a process of its own: the same answers as the Python call, limits that hold, nothing accepted lost."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, STUDENT
from support.agent_server import Serve

import hintdistill as hd
from hintdistill.core.types import Trace
from hintdistill.traces.reading import read_traces

pytestmark = pytest.mark.agents


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Serve(tmp_path_factory.mktemp("serve"), "--max-waiting", "24").wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def loaded():
    return hd.load_engine(str(STUDENT), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def failed(failed_call):
    asked = {"messages": failed_call.messages, "tools": failed_call.tools}
    return asked, failed_call.name, failed_call.hint


def close(a, b):
    return json.loads(json.dumps(a)) == b or a == pytest.approx(b, abs=1e-4)


def test_the_answers_are_those_of_the_python_call(server, loaded, failed):
    asked, wrong, hint = failed
    with httpx.Client(base_url=server.url, timeout=60) as client:
        found = client.post("/v1/diagnose", json={**asked, "twins": True}).raise_for_status().json()
        here = hd.diagnose(asked["messages"], tools=asked["tools"], engine=loaded).to_dict()
        assert found["findings"][0]["quote"] == wrong and found["verdict"] == here["verdict"] == "findings"
        for key in ("step", "hint", "level", "instead", "accepted", "reasons", "twin_reason"):
            assert found["findings"][0][key] == here["findings"][0][key], key
        assert found["findings"][0]["odds"] == pytest.approx(here["findings"][0]["odds"], abs=1e-4)
        target = client.post("/v1/rescore", json={**asked, "hint": hint, "quote": wrong}).raise_for_status().json()
        alone = hd.rescore(asked["messages"], hint=hint, quote=wrong, tools=asked["tools"], engine=loaded)
        assert target["hint_effect"] == pytest.approx(alone.hint_effect.tolist(), abs=5e-5)
        assert "support_ids" not in target and target["accepted"] == alone.accepted
        whole = client.post("/v1/rescore", json={**asked, "hint": None, "distributions": True}).raise_for_status()
        assert len(whole.json()["support_ids"]) == len(alone.step_ids)
        ranked = client.post("/v1/rank", json={**asked, "hints": ["Be careful.", hint], "quote": wrong}).json()
        assert ranked["hints"][0]["hint"] == hint and len(ranked["hints"]) == 2


def test_what_is_wrong_is_said_with_a_status(server, failed):
    asked, _, hint = failed
    with httpx.Client(base_url=server.url, timeout=60) as client:
        cases = [
            ({"messages": []}, 422, "empty"),
            ({"messages": asked["messages"][:2]}, 422, "no step of the student"),
            ({**asked, "step": 9}, 422, r"steps 0\.\.0, not 9"),
            ({"messages": "Hello"}, 422, "messages"),
            ({**asked, "stepp": 1}, 422, "stepp"),
        ]
        for body, status, said in cases:
            answer = client.post("/v1/diagnose", json=body)
            assert answer.status_code == status and re.search(said, answer.text), answer.text
        answer = client.post("/v1/rescore", json={**asked, "hint": hint, "quote": "not there"})
        assert answer.status_code == 422 and answer.json()["error"]["reason"] == "quote_not_found"
        assert client.post("/v1/rescore", json={**asked, "hint": hint, "placement": "nowhere"}).status_code == 422
        assert client.post("/v1/diagnose", content=b"x" * (17 << 20)).status_code == 413

        def endless():
            for _ in range(20):
                yield b" " * (1 << 20)

        assert client.post("/v1/diagnose", content=endless()).status_code == 413
        assert client.get("/health").json()["status"] == "ok"


def test_openapi_has_examples_that_are_answered_and_metrics_count(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        page = client.get("/openapi.json").json()
        asked = {"diagnose": "DiagnoseAsked", "rescore": "RescoreAsked", "rank": "RankAsked"}
        for path, name in asked.items():
            example = page["components"]["schemas"][name]["examples"][0]
            assert client.post(f"/v1/{path}", json=example).status_code == 200, path
        text = client.get("/metrics").text
        assert re.search(r'hintdistill_requests_total\{path="/v1/rank",status="200"\} [1-9]', text)
        assert re.search(r"hintdistill_session_computed [1-9]", text) and "hintdistill_request_seconds_bucket" in text


def test_traces_are_kept_and_read_back(server, failed):
    asked, _, _ = failed
    call = {"request": asked, "response": {"choices": [{"message": {"role": "assistant", "content": "Done."}}]}}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        made = client.post("/v1/traces", json=[{**asked, "id": "one"}, {"no": "trace"}, call]).json()
        assert made["accepted"] == 2 and made["refused"][0]["record"] == 2 and made["refused"][0]["message"]
        assert client.post("/v1/traces", json={"no": "trace"}).status_code == 422
        assert client.post("/v1/traces", json=asked["messages"]).json()["accepted"] == 1
        assert client.post("/v1/traces", content=b"{").status_code == 422
    read = [t for t in read_traces([server.traces]) if isinstance(t, Trace)]
    assert any(t.id == "one" and t.step(0).tool_calls for t in read)
    assert any(t.messages[-1].content == "Done." for t in read)


def test_otlp_in_both_encodings(server):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "agent"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{server.url}/v1/traces")))
    said = [{"role": "assistant", "content": "It is 21 degrees."}]
    with provider.get_tracer("agent").start_as_current_span("chat student") as span:
        span.set_attribute("gen_ai.operation.name", "chat")
        span.set_attribute("gen_ai.request.model", "student")
        span.set_attribute("gen_ai.input.messages", json.dumps([{"role": "user", "content": "How warm is it?"}]))
        span.set_attribute("gen_ai.output.messages", json.dumps(said))
    provider.shutdown()
    (path,) = server.traces.glob("spans-*.jsonl")
    line = json.loads(path.read_text().splitlines()[0])
    kept = line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert re.fullmatch("[0-9a-f]{32}", kept["traceId"])
    (trace,) = [t for t in read_traces([path]) if isinstance(t, Trace)]
    assert [m.content for m in trace.messages] == ["How warm is it?", "It is 21 degrees."]
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/traces", json=line).json() == {}
        broken = client.post("/v1/traces", content=b"\xff\xff", headers={"content-type": "application/x-protobuf"})
        assert broken.status_code == 422
    assert len(path.read_text().splitlines()) == 2


def test_a_full_queue_says_429_and_everything_accepted_is_answered(server, failed):
    asked, _, _ = failed

    async def many():
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            asks = [client.post("/v1/diagnose", json={**asked, "step": 0}) for _ in range(60)]
            return [a.status_code for a in await asyncio.gather(*asks)]

    found = asyncio.run(many())
    assert set(found) <= {200, 429} and found.count(200) >= 32
    answer = httpx.post(f"{server.url}/v1/diagnose", json=asked, timeout=60)
    assert answer.status_code == 200


def test_a_stop_answers_what_was_accepted(tmp_path, failed):
    asked, _, _ = failed
    running = Serve(tmp_path).wait()
    found, inside = [], threading.Barrier(7)

    def ask(n):
        with httpx.Client(base_url=running.url, timeout=60) as client:
            client.get("/health")
            inside.wait()
            trace = {**asked, "id": f"t{n}"} if n % 2 else None
            answer = client.post("/v1/traces", json=trace) if trace else client.post("/v1/diagnose", json=asked)
            found.append((n, answer.status_code))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    inside.wait()
    # until at least one is inside, so that the stop comes in the middle
    while not httpx.get(f"{running.url}/health").json()["inside"] and any(t.is_alive() for t in threads):
        pass
    assert running.stop() == 0
    for thread in threads:
        thread.join()
    answered = {n for n, status in found if status == 200}
    kept = (
        {t.id for t in read_traces([running.traces]) if isinstance(t, Trace)} if any(n % 2 for n in answered) else set()
    )
    assert answered and {f"t{n}" for n in answered if n % 2} <= kept
    assert all(status == 200 for _, status in found)


def test_a_timeout_is_said(tmp_path, failed):
    running = Serve(tmp_path, "--timeout-s", "0.005").wait()
    try:
        answer = httpx.post(f"{running.url}/v1/diagnose", json=failed[0], timeout=60)
        assert answer.status_code == 504 and answer.json()["error"]["reason"] == "timed_out"
    finally:
        running.stop()


def test_beyond_this_machine_a_token_is_needed(tmp_path, failed, monkeypatch):
    monkeypatch.delenv("HINTDISTILL_TOKEN", raising=False)
    command = [str(Path(sys.executable).with_name("hintdistill")), "serve", str(STUDENT), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "needs a token" in done.stderr
    running = Serve(tmp_path, env={"HINTDISTILL_TOKEN": "secret"}).wait()
    try:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer no"}, 401),
            ({"Authorization": "Bearer secret"}, 200),
        ):
            assert (
                httpx.post(f"{running.url}/v1/diagnose", json=failed[0], headers=headers, timeout=60).status_code
                == status
            )
        assert httpx.get(f"{running.url}/metrics").status_code == 401
    finally:
        running.stop()


def test_the_tools_answer_a_real_client_over_stdio(tmp_path, failed):
    from mcp import ClientSession, StdioServerParameters, stdio_client

    asked, wrong, hint = failed
    command = str(Path(sys.executable).with_name("hintdistill"))
    server = StdioServerParameters(
        command=command, args=["mcp", str(STUDENT), "--traces", str(tmp_path)], cwd=str(ROOT)
    )

    async def talk():
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            names = {t.name for t in (await session.list_tools()).tools}
            found = await session.call_tool("diagnose", asked)
            ranked = await session.call_tool("rank_hints", {**asked, "hints": ["Be careful.", hint], "quote": wrong})
            bad = await session.call_tool("rescore", {**asked, "hint": hint, "step": 7})
            kept = await session.call_tool("record_traces", {"records": [asked]})
            return names, found, ranked, bad, kept

    names, found, ranked, bad, kept = asyncio.run(talk())
    assert names == {"diagnose", "rescore", "rank_hints", "record_traces"}
    said = [json.loads(x.content[0].text) for x in (found, ranked, kept)]
    assert said[0]["findings"][0]["quote"] == wrong and said[1]["hints"][0]["hint"] == hint
    assert said[2]["accepted"] == 1 and list(tmp_path.glob("calls-*.jsonl"))
    assert bad.is_error and "steps 0..0, not 7" in bad.content[0].text

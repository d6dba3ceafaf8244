"""The LLM critic against the real vLLM: one server for all tests, serving the toolworld student.

What such a small model says makes no sense; that its answers come back as valid JSON with legal step numbers, that many
requests are in flight, and that a server which dies costs nothing that was done, does not depend on sense.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, STUDENT

vllm = pytest.importorskip("vllm", reason="vllm is not installed in this environment; `make test-vllm` has its own")
pytestmark = pytest.mark.vllm

COMMAND = [str(Path(sys.executable).with_name("hintdistill"))]


def run(server, folder, *args: str, expect: int = 0) -> subprocess.CompletedProcess:
    settings = [
        f"run.dir={folder}",
        f"critic.llm.base_url={server.url}",
        "critic.llm.fields=[]",
        "critic.llm.max_findings=2",
        "critic.llm.max_tokens=3000",
    ]
    done = subprocess.run(
        [*COMMAND, "run", "configs/llm-critic.yaml", *settings, *args], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def critiques(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "critiques.jsonl").read_text().splitlines()]


def test_structured_answers_from_the_shipped_config(server, tmp_path):
    """configs/llm-critic.yaml as it is, pointed at the server: every answer is valid and names legal steps only."""
    folder = tmp_path / "run"
    document = json.loads(run(server, folder, "--until", "inject", "--limit", "12", "--json").stdout)
    rows = critiques(folder)
    assert len(rows) == 12 and not any("failure" in r for r in rows)
    steps = {r["trace_id"]: 0 for r in rows}
    for line in (folder / "traces.jsonl").read_text().splitlines():
        trace = json.loads(line)["trace"]
        steps[trace["id"]] = sum(m["role"] == "assistant" for m in trace["messages"])
    for row in rows:
        critique = row["critique"]
        assert critique["usage"]["requests"] == 1, "constrained decoding needs no repair"
        assert critique["usage"]["prompt_tokens"] > 500
        assert all(0 <= f["step"] < steps[row["trace_id"]] for f in critique.get("findings", []))
    f = document["funnel"]
    assert f["critique"]["usage"]["requests"] == 12
    assert f["critique"]["findings"] == f["inject"]["injections"] + sum(f["inject"]["failed"].values()) + sum(
        f["inject"]["skipped"].values()
    )
    # a quote that is nowhere in the step is dropped with that reason, not trained on
    assert set(f["inject"]["failed"]) <= {"quote_not_found", "no_hint", "splice"}


def test_an_unchanged_run_asks_nothing_again_and_a_changed_prompt_does(server, tmp_path):
    folder, prompts = tmp_path / "run", tmp_path / "prompts"
    run(server, folder, "--until", "critique", "--limit", "3")
    first = critiques(folder)
    run(server, folder, "--until", "critique", "--limit", "3", "--resume")
    assert critiques(folder) == first
    (prompts / "critic").mkdir(parents=True)
    shipped = (ROOT / "prompts" / "critic" / "all_at_once.jinja").read_text()
    (prompts / "critic" / "all_at_once.jinja").write_text(shipped + "\nBe brief.")
    run(server, folder, "--until", "critique", "--limit", "3", "--resume", f"critic.prompts={prompts}")
    assert len(critiques(folder)) == 6


def test_a_model_that_is_not_served(server, tmp_path):
    done = run(server, tmp_path / "run", "--until", "critique", "--limit", "2", "critic.llm.model=nope", expect=5)
    assert "critic.llm.model (nope)" in done.stderr


def test_transformers_and_vllm_agree_on_the_plain_view(server):
    """float32 log-probabilities of the same recorded ids, over HTTP and by our engine."""
    import numpy as np

    from hintdistill.core.scores import ScoreRequest
    from hintdistill.engines.transformers import TransformersEngine
    from hintdistill.traces.reading import read_traces

    engine = TransformersEngine.load(STUDENT, dtype="float32")
    trace = next(iter(read_traces([ROOT / "examples" / "toolworld" / "traces.jsonl"])))
    message = trace.step(0)
    ids = list(message.prompt_token_ids + message.token_ids)
    body = {"model": "critic", "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    request = urllib.request.Request(
        f"{server.url}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.load(response)
    theirs = [
        answer["choices"][0]["prompt_logprobs"][i][str(ids[i])]["logprob"]
        for i in range(len(message.prompt_token_ids), len(ids))
    ]
    ours = engine.score([ScoreRequest(np.array(ids), len(message.prompt_token_ids), len(ids))], 1)[0].sampled
    assert np.abs(ours - np.array(theirs)).max() <= 1e-4


def test_the_server_engine_agrees_with_transformers_in_both_dialects(server):
    """prompt_logprobs and echo, over HTTP: the same numbers, whatever the order, and bad input named."""
    import numpy as np

    from hintdistill.core.errors import ConfigError, ContextLengthError, ServiceError
    from hintdistill.core.scores import ScoreRequest
    from hintdistill.engines.server import ServerEngine
    from hintdistill.engines.transformers import TransformersEngine
    from hintdistill.traces.reading import read_traces

    trace = next(iter(read_traces([ROOT / "examples" / "toolworld" / "traces.jsonl"])))
    message = trace.step(0)
    context, step = list(message.prompt_token_ids), list(message.token_ids)
    asked = []
    for block in ((), context[:9], context[3:20]):
        ids = np.array([*context[:-4], *block, *context[-4:], *step])
        asked.append(ScoreRequest(ids, len(ids) - len(step), len(ids)))
    truth = TransformersEngine.load(STUDENT, dtype="float32").score(asked, 8)
    for dialect in ("prompt_logprobs", "echo"):
        engine = ServerEngine(server.url, "critic", dialect=dialect)
        assert engine.max_length == 16_383
        scores = engine.score(asked, 8)
        backwards = engine.score(asked[::-1], 8)[::-1]
        for ours, again, theirs in zip(scores, backwards, truth, strict=True):
            assert np.abs(ours.sampled - theirs.sampled).max() <= 1e-4
            assert np.abs(ours.sampled - again.sampled).max() <= 1e-4
            assert (ours.top1 == theirs.top1).mean() >= 0.9
            mass = np.exp(ours.topk_logprobs.astype(np.float64)).sum(1) + np.exp(ours.tail_logprob.astype(np.float64))
            assert np.abs(mass - 1).max() <= 1e-5
        with pytest.raises(ContextLengthError, match="longer than the 16383 tokens that the server accepts"):
            engine.score([ScoreRequest(np.full(17_000, 5), 3, 17_000)], 8)
    with pytest.raises(ConfigError, match="--max-logprobs 65"):
        ServerEngine(server.url, "critic").score(asked[:1], 65)
    with pytest.raises(ServiceError, match="does not serve nope"):
        ServerEngine(server.url, "nope")
    with pytest.raises(ServiceError, match="cannot reach the engine"):
        ServerEngine("http://127.0.0.1:9/v1", "critic", retries=0)


def test_the_rescore_stage_through_a_server(server, tmp_path):
    """The same hints, scored by vLLM over HTTP and by transformers: the same effects, and the union is said to be missing."""
    import numpy as np

    from hintdistill.rescoring.store import TargetStore

    command = [
        *COMMAND,
        "rescore",
        "configs/quickstart.yaml",
        "-q",
        "critic.use=[rules,recorded]",
        "traces.limit=24",
        "run.dtype=float32",
    ]
    through = ["rescore.engine.backend=server", f"rescore.engine.base_url={server.url}", "rescore.engine.model=critic"]
    stored = {}
    for name, more in (("server", through), ("here", [])):
        done = subprocess.run([*command, f"run.dir={tmp_path / name}", *more], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        targets = TargetStore(tmp_path / name / "targets").read()
        stored[name] = {(t.trace_id, t.step, t.error_class, t.kind): t for t in targets}
    assert stored["server"].keys() == stored["here"].keys() and len(stored["here"]) > 20
    for key, ours in stored["server"].items():
        theirs = stored["here"][key]
        assert np.abs(ours.teacher_sampled - theirs.teacher_sampled).max() <= 2e-4
        assert ours.versions["engine"] == "ServerEngine" and ours.versions["weights"] == theirs.versions["weights"]
    done = subprocess.run(
        [*COMMAND, "run", "configs/quickstart.yaml", f"run.dir={tmp_path / 'train'}", *through],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and "union_support" in done.stderr and not (tmp_path / "train").exists()


def test_the_agents_call_against_a_server(server):
    """connect_engine: only tokenizer and template are read here; the target is of the same kind."""
    import hintdistill as hd

    remote = hd.connect_engine(str(STUDENT), server.url, "critic")
    local = hd.load_engine(str(STUDENT), dtype="float32")
    trace = next(iter(hd.read_traces([ROOT / "examples" / "toolworld" / "traces.jsonl"])))
    call = {"step": 0, "hint": f"The tools are {', '.join(trace.tool_schemas)}.", "tools": trace.tools}
    ours, theirs = hd.rescore(trace.messages, engine=remote, **call), hd.rescore(trace.messages, engine=local, **call)
    assert abs(ours.hint_effect - theirs.hint_effect).max() <= 2e-4
    assert ours.legal_mass_gain is None, "a server cannot be asked about chosen ids"
    assert (ours.decision is None) == (theirs.decision is None)


def test_a_server_killed_in_the_middle(server, tmp_path):
    """Last, because it kills the server: what was answered is kept, the error names the URL, the exit code is 5."""
    folder = tmp_path / "run"
    settings = [
        f"run.dir={folder}",
        f"critic.llm.base_url={server.url}",
        "critic.llm.fields=[]",
        "critic.llm.max_findings=2",
        "critic.llm.max_tokens=3000",
        "critic.llm.concurrency=2",
        "critic.llm.retries=0",
    ]
    process = subprocess.Popen(
        [*COMMAND, "run", "configs/llm-critic.yaml", *settings, "--until", "critique", "--limit", "200"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "critiques.jsonl").exists() or len((folder / "critiques.jsonl").read_bytes().splitlines()) < 4:
        assert process.poll() is None
        time.sleep(0.1)
    server.kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 5 and f"cannot reach the critic at {server.url}" in err, err
    assert len([r for r in critiques(folder) if "critique" in r]) >= 3

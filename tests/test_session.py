"""A growing conversation is read once, callers at the same time are read together, and every number stays what it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import STUDENT, TOOLWORLD

import hintdistill as hd
from hintdistill.config import CriticSection
from hintdistill.core.errors import ArgumentError, ContextLengthError, ScoreError
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.kept import KeptEngine
from hintdistill.engines.prefix_tree import grow
from hintdistill.engines.sharing import SharingWarning
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.traces.reading import read_traces

pytestmark = pytest.mark.usefixtures("one_thread")
EXACT = 1e-5


def same(a, b):
    """Log-probabilities within 1e-5 nats, or 1e-5 of themselves where they are beyond 1 nat: float32 has no more."""
    return np.allclose(a, b, rtol=EXACT, atol=EXACT)


@pytest.fixture(scope="module")
def loaded():
    return hd.load_engine(str(STUDENT), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def talk(unknown_tool_case):
    """Twenty turns, each with a call of a tool that is not listed and its error; and the tools."""
    trace, _, _ = unknown_tool_case
    wrong = trace.step(0).tool_calls[0]
    messages = [{"role": m.role, "content": m.content} for m in trace.before(0)]
    for n in range(20):
        function = {"name": wrong.name, "arguments": wrong.arguments_raw}
        call = {"id": str(n), "type": "function", "function": function}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": str(n), "content": f'{{"error":"unknown tool {n}"}}'},
        ]
    return messages, list(trace.tools)


def turns(messages):
    """The conversation as it was after each of the agent's calls."""
    ends = [i + 2 for i, m in enumerate(messages) if m["role"] == "assistant"]
    return [messages[:end] for end in ends]


class Listens:
    """An engine that notes every sequence it is asked for."""

    def __init__(self, engine):
        self.engine, self.heard = engine, []
        self.capabilities, self.key, self.max_length = engine.capabilities, engine.key, engine.max_length

    def score(self, requests, top_k):
        self.heard += [r.ids[: r.end - 1] for r in requests]
        return self.engine.score(requests, top_k)


def test_twenty_turns_with_a_diagnosis_each_read_every_token_about_once(loaded, talk):
    messages, tools = talk
    listens = Listens(loaded.engine)
    plain = hd.LoadedModel(listens, loaded.renderer)
    session = hd.Session(loaded)
    critic = hd.load_critic(CriticSection(prompts=str(TOOLWORLD / "prompts")))
    before = loaded.engine.saved.computed
    for turn in turns(messages):
        asked = {"tools": tools, "step": -1, "critic": critic}
        found, wanted = hd.diagnose(turn, engine=session, **asked), hd.diagnose(turn, engine=plain, **asked)
        (found,), (wanted,) = found.findings, wanted.findings
        assert found.hints and found.step == wanted.step and found.accepted == wanted.accepted
        for a, b in zip(found.hints, wanted.hints, strict=True):
            assert a.hint == b.hint
            assert same(a.target.teacher_sampled, b.target.teacher_sampled)
    distinct = grow(listens.heard).computed
    without = loaded.engine.saved.computed - before
    read = session.stats()["computed"]
    assert read <= 1.15 * distinct and without > 1.5 * read
    # every turn's finding again: nothing is read at all
    again = session.stats()
    for turn in turns(messages)[-3:]:
        hd.diagnose(turn, engine=session, tools=tools, step=-1, critic=critic)
    assert session.stats()["computed"] == read and again["conversations"] == 1


def test_steps_that_were_read_long_ago_are_scored_from_what_is_kept(loaded, talk):
    messages, tools = talk
    session = hd.Session(loaded)
    last = hd.rescore(messages, hint=None, tools=tools, engine=session)
    read = session.stats()["computed"]
    for step in (0, 7, -2):
        kept = hd.rescore(messages, hint=None, step=step, tools=tools, engine=session)
        alone = hd.rescore(messages, hint=None, step=step, tools=tools, engine=loaded)
        assert same(kept.plain_sampled, alone.plain_sampled)
        assert (kept.hint_effect == 0).all()
    assert session.stats()["computed"] == read and last.step == 19


def test_callers_at_the_same_time_are_read_together(loaded, talk):
    messages, tools = talk
    hints = [f"There is no such tool; look at the list, item {n}." for n in range(8)]
    cases = [(turns(messages)[n], hint) for n, hint in zip((0, 3, 3, 5, 8, 8, 11, 14), hints, strict=True)]
    alone = hd.Session(loaded)
    wanted = [hd.rescore(turn, hint=hint, tools=tools, engine=alone) for turn, hint in cases]
    session = hd.Session(loaded)
    # all of them wait for their turn to prepare by the time that the first one may
    with ThreadPoolExecutor(len(cases)) as pool:
        with session.lock:
            futures = [pool.submit(hd.rescore, c[0], hint=c[1], tools=tools, engine=session) for c in cases]
            while session.lock.preparing < len(cases):
                assert not any(f.done() for f in futures)
        found = [f.result() for f in futures]
    # the last one may still be on its way when the others are read
    assert session.stats()["batches"] <= 2
    for a, b in zip(found, wanted, strict=True):
        assert a.hint == b.hint and (a.step_ids == b.step_ids).all()
        assert same(a.teacher_sampled, b.teacher_sampled) and a.accepted == b.accepted
        assert same(a.plain_sampled, b.plain_sampled)


def test_one_callers_error_is_not_the_others(loaded):
    engine = KeptEngine(loaded.engine, 1 << 30)
    rng = np.random.default_rng(0)
    fine = ScoreRequest(rng.integers(3, 900, 30), 20, 30, "a")
    long = ScoreRequest(np.zeros(loaded.engine.max_length + 9, np.int64), 5, loaded.engine.max_length + 9, "b")
    with ThreadPoolExecutor(2) as pool:
        with engine.turns:
            good, bad = pool.submit(engine.score, [fine], 4), pool.submit(engine.score, [long], 4)
            while len(engine._queue) < 2:
                assert not good.done() and not bad.done()
        assert np.isfinite(good.result()[0].sampled).all()
        with pytest.raises(ContextLengthError):
            bad.result()
    assert engine.batches == 3


def test_memory_is_bounded_and_the_least_recently_used_goes_first(loaded):
    rng = np.random.default_rng(1)
    talks = [rng.integers(3, 900, 300) for _ in range(4)]
    engine = KeptEngine(loaded.engine, 1 << 30)
    engine.score([ScoreRequest(talks[0], 290, 300, "a")], 4)
    one = engine.bytes
    engine = KeptEngine(loaded.engine, int(2.5 * one))
    for talk in (*talks[:2], talks[0], talks[2]):
        engine.score([ScoreRequest(talk, 290, 300, "a")], 4)
        assert engine.bytes <= engine.max_bytes
    assert engine.conversations == 2
    read = engine.computed
    engine.score([ScoreRequest(talks[0], 290, 300, "a")], 4)
    assert engine.computed == read
    engine.score([ScoreRequest(talks[1], 290, 300, "a")], 4)
    assert engine.computed == read + 299
    # one that is larger than the bound is read and not kept
    small = KeptEngine(loaded.engine, one // 2)
    scores = small.score([ScoreRequest(talks[0], 290, 300, "a")], 4)
    assert small.conversations == 0 and np.isfinite(scores[0].sampled).all()


def test_conversations_that_part_keep_what_they_share(loaded):
    rng = np.random.default_rng(2)
    head = rng.integers(3, 900, 200)
    engine = KeptEngine(loaded.engine, 1 << 30)
    for n in range(3):
        ids = np.concatenate([head, rng.integers(3, 900, 20)])
        found = engine.score([ScoreRequest(ids, 210, 220, "a")], 4)[0]
        alone = loaded.engine.score([ScoreRequest(ids, 210, 220, "a")], 4)[0]
        assert same(found.sampled, alone.sampled)
        assert engine.computed == 200 + 19 * (n + 1) and engine.conversations == n + 1


@pytest.mark.parametrize("arch", ["gemma2_softcap", "mistral_sliding"])
def test_windows_and_soft_caps_are_exact(arch, tiny_model):
    engine = TransformersEngine(tiny_model(arch), "key")
    kept = KeptEngine(engine, 1 << 30)
    rng = np.random.default_rng(3)
    ids = rng.integers(3, 900, 90)
    for end in (30, 60, 90):
        hinted = np.concatenate([ids[: end - 12], rng.integers(3, 900, 7), ids[end - 12 : end]])
        requests = [ScoreRequest(ids[:end], end - 8, end, "a"), ScoreRequest(hinted, len(hinted) - 8, len(hinted), "a")]
        for a, b in zip(kept.score(requests, 4), engine.score(requests, 4), strict=True):
            assert np.abs(a.sampled - b.sampled).max() <= 5e-5


def test_a_nan_is_not_kept(loaded):
    import torch

    engine = KeptEngine(loaded.engine, 1 << 30)
    request = ScoreRequest(np.arange(10, 60), 40, 50, "a")
    weight = loaded.engine.model.model.norm.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] = float("nan")
        with pytest.raises(ScoreError):
            engine.score([request], 4)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert engine.conversations == 0 and np.isfinite(engine.score([request], 4)[0].sampled).all()
    engine.clear()
    assert engine.conversations == 0


def test_models_without_keys_and_values_are_served_and_say_so(tiny_model):
    engine = KeptEngine(TransformersEngine(tiny_model("qwen3"), "key", sharing="separate"), 1 << 30)
    request = ScoreRequest(np.arange(10, 60), 40, 50, "a")
    with pytest.warns(SharingWarning, match="nothing is kept between calls"):
        engine.score([request], 4)
    assert engine.conversations == 0


def test_wrong_arguments_are_named(loaded):
    for wrong in (lambda: hd.Session(loaded.engine), lambda: hd.Session(hd.Session(loaded))):
        with pytest.raises(ArgumentError, match="`engine`"):
            wrong()
    with pytest.raises(ArgumentError, match="memory_mb"):
        hd.Session(loaded, memory_mb=0)
    with pytest.raises(ArgumentError, match="readers"):
        hd.Session(loaded, readers=0)


def test_recorded_conversations_of_the_example_are_exact(loaded):
    session = hd.Session(loaded, memory_mb=64)
    for _, trace in zip(range(6), read_traces([STUDENT.parent / "traces.jsonl"]), strict=False):
        a, b = (hd.diagnose(trace, engine=engine) for engine in (session, loaded))
        assert [f.to_dict()["hint"] for f in a.findings] == [f.to_dict()["hint"] for f in b.findings]
        for x, y in zip(a.findings, b.findings, strict=True):
            assert x.odds == pytest.approx(y.odds, abs=1e-4) and x.accepted == y.accepted
            assert (x.twin is None) == (y.twin is None)

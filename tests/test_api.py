"""The agent's calls, on the shipped student: one hint, several, none, from threads and from an event loop."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT, STUDENT
from support.command import script

import hintdistill as hd
from hintdistill.config import RescoreSection
from hintdistill.core.errors import (
    ConfigError,
    ContextLengthError,
    QuoteNotFoundError,
    ScoreError,
    SpliceError,
    TraceError,
)
from hintdistill.core.scores import ScoreRequest, Scores
from hintdistill.engines import union_rows
from hintdistill.rescoring.scorer import on_common_ids


@pytest.fixture(scope="module")
def loaded():
    return hd.load_engine(str(STUDENT), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def failed(failed_call):
    """A conversation with a call of a tool that is not listed, as an agent holds it."""
    call = {"step": 0, "quote": failed_call.name, "tools": failed_call.tools}
    return failed_call.messages, call, failed_call.hint


def test_hints_are_ranked_best_first_and_read_once(loaded, failed):
    messages, call, good = failed
    hints = ["Be careful.", good, "Answer in one sentence."]
    ranked = hd.rank_hints(messages, hints=hints, engine=loaded, **call)
    assert ranked[0].hint == good and {r.hint for r in ranked} == set(hints)
    assert ranked[0].effect < -1 and all(ranked[0].effect <= r.effect for r in ranked)
    assert ranked[0].target.accepted and ranked[0].target.legal_mass_gain > 0
    plan = loaded.engine.plans[-1]
    # three hints with three placebos each, and the plain view: one trunk
    assert len(plan.leaves) == 3 * 5 and plan.asked > 2.5 * plan.computed
    alone = hd.rescore(messages, hint=good, engine=loaded, **call)
    assert np.abs(alone.hint_effect - ranked[0].target.hint_effect).max() <= 1e-5


def test_no_hint_is_bit_identical(loaded, failed):
    messages, call, _ = failed
    target = hd.rescore(messages, hint=None, step=0, tools=call["tools"], engine=loaded)
    assert (target.hint_effect == 0).all() and len(target.block_ids) == 0
    assert (target.teacher_logprobs == target.plain_logprobs).all() and (target.teacher_tail == target.plain_tail).all()
    assert target.decision is None and target.specificity is None and len(target.shifts(3)) == 3


def test_a_hint_inside_the_turn_begins_the_target_at_the_quote(loaded, failed):
    messages, call, good = failed
    whole = hd.rescore(messages, hint=good, engine=loaded, **call)
    inside = hd.rescore(messages, hint=good, engine=loaded, placement="assistant_turn", **call)
    assert inside.span[0] == 0 and len(inside.step_ids) == len(whole.step_ids) - whole.span[0]
    assert (inside.step_ids == whole.step_ids[whole.span[0] :]).all()
    assert np.abs(inside.plain_sampled - whole.plain_sampled[whole.span[0] :]).max() <= 1e-5


def test_threads_and_event_loops(loaded, failed):
    messages, call, good = failed
    wanted = hd.rescore(messages, hint=good, engine=loaded, **call)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: hd.rescore(messages, hint=good, engine=loaded, **call), range(6)):
            assert (got.hint_effect == wanted.hint_effect).all()

    async def both():
        return await asyncio.gather(
            hd.rescore_async(messages, hint=good, engine=loaded, **call),
            hd.rank_hints_async(messages, hints=["Be careful.", good], engine=loaded, **call),
        )

    one, ranked = asyncio.run(both())
    assert (one.hint_effect == wanted.hint_effect).all() and ranked[0].hint == good


def test_bad_input_is_named(loaded, failed, monkeypatch):
    messages, call, good = failed
    for nothing in ("", "  \n"):
        with pytest.raises(SpliceError, match="tokenises to nothing"):
            hd.rescore(messages, hint=nothing, engine=loaded, **call)
    with pytest.raises(QuoteNotFoundError, match="does not occur in the step"):
        hd.rescore(messages, hint=good, engine=loaded, **{**call, "quote": "not_in_the_step"})
    for hint in (good, None):
        with pytest.raises(TraceError, match=r"steps 0\.\.0, not 4"):
            hd.rescore(messages, hint=hint, engine=loaded, step=4)
    monkeypatch.setattr(loaded.engine, "max_length", 100)
    with pytest.raises(ContextLengthError, match=r"a sequence of \d+ tokens is longer than the model's 100 positions"):
        hd.rescore(messages, hint=good, engine=loaded, step=0)
    with pytest.raises(ConfigError, match="unknown engine `onnx`"):
        hd.load_engine(str(STUDENT), backend="onnx")
    with pytest.raises(ValueError, match=r"cannot score ids\[3:9\] of 5"):
        ScoreRequest(np.arange(5), 3, 9)


def test_a_nan_stops_the_record(loaded, failed):
    """The weights are broken for a moment: no number comes back, least of all 0.0."""
    import torch

    messages, call, good = failed
    weight = loaded.engine.model.model.norm.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] = float("nan")
        with pytest.raises(ScoreError, match="log-probability nan at position 0"):
            hd.rescore(messages, hint=good, engine=loaded, **call)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_engines_that_cannot_gather_meet_on_common_ids():
    """Two top-k lists that differ: the support is what both know, the rest is tail, and the mass stays one."""
    rng = np.random.default_rng(0)
    logp = [np.log(rng.dirichlet(np.full(20, 0.3), 6)) for _ in range(2)]
    sampled = rng.integers(0, 20, 6)
    views = []
    for lp in logp:
        top = np.argsort(-lp, axis=1)[:, :5]
        ids = union_rows([top, sampled[:, None]])
        values = np.where(ids < 0, -np.inf, np.take_along_axis(lp, ids.clip(0), 1)).astype(np.float32)
        tail = np.log1p(-np.exp(values.astype(np.float64)).sum(1)).astype(np.float32)
        views.append(Scores(lp[np.arange(6), sampled].astype(np.float32), ids, values, tail, None, top[:, 0]))
    a, b = on_common_ids(*views)
    assert (a.topk_ids == b.topk_ids).all()
    for score, lp, before in zip((a, b), logp, views, strict=True):
        for t, row in enumerate(score.topk_ids):
            ids = row[row >= 0]
            assert sampled[t] in ids and set(ids) == set(a.topk_ids[t][a.topk_ids[t] >= 0])
            assert np.abs(score.topk_logprobs[t][row >= 0] - lp[t, ids]).max() <= 1e-6
            mass = np.exp(score.topk_logprobs[t].astype(np.float64)).sum() + np.exp(np.float64(score.tail_logprob[t]))
            assert abs(mass - 1) <= 1e-5
        assert (score.top1 == before.top1).all()


def test_the_agent_example_finds_the_hint_that_helps():
    done = script("examples/agent_rescore.py", "--json")
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["failed_call"] and "unknown tool" in said["error"]
    best, *others = said["hints"]
    assert best["hint"].startswith("There is no tool") and best["accepted"] and best["legal_mass_gain"] > 0
    assert all(best["effect_nats"] < o["effect_nats"] for o in others)
    assert said["failed_call_with_hint"] is None and said["reward_with_hint"] == 1.0


def test_the_foreign_trainer_learns_from_stored_targets(tmp_path, loaded, failed):
    from hintdistill.rescoring.store import TargetStore

    messages, call, good = failed
    target = hd.rescore(messages, hint=good, engine=loaded, config=RescoreSection(top_k=16), **call)
    assert target.accepted
    TargetStore(tmp_path / "targets").append([target])
    done = script("examples/foreign_trainer.py", str(tmp_path / "targets"), str(STUDENT), "--steps", "3")
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["rows"] == 1 and said["loss_after"] < 0.9 * said["loss_before"]
    source = (ROOT / "examples" / "foreign_trainer.py").read_text()
    assert "import hintdistill" not in source and "from hintdistill" not in source

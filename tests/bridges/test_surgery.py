"""Token surgery beside the injector: a hint spliced at any turn, and the teacher's word on the step sliced back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TOOLWORLD
from support.peers import the_run

from hintdistill.bridges.surgery import (
    NOTHING,
    Scored,
    Splice,
    StoredScores,
    hinted_ids,
    laid_out,
    loss_mask,
    slice_back,
)
from hintdistill.config import CHECKS, InjectSection, RescoreSection
from hintdistill.core.errors import InputError
from hintdistill.critics.rules import RulesCritic
from hintdistill.injection.splice import Injector
from hintdistill.prompts import PromptLibrary
from hintdistill.rescoring.scorer import HintItem, Scorer
from hintdistill.traces.reading import read_traces

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def injected(student_renderer):
    """Injections at first, middle and late turns, with the whole trace that goes on after the step."""
    injector = Injector(student_renderer, PromptLibrary(TOOLWORLD / "prompts"), InjectSection())
    out = {}
    for trace in read_traces([TOOLWORLD / "traces.jsonl"]):
        for finding in RulesCritic(CHECKS).check(trace).findings:
            last = student_renderer.step(trace, trace.own_steps[-1])
            whole = [*last.context_ids, *last.step_ids]
            out.setdefault(finding.step, (injector.inject(trace, finding), whole))
        if len(out) >= 3:
            break
    assert len(out) >= 3, "findings at three turns"
    return [out[step] for step in sorted(out)]


def splice_of(injection):
    start = len(injection.context_ids)
    return Splice(injection.insert_at, tuple(injection.block_ids), start, start + len(injection.step_ids))


def answer(model, ids, k):
    """A teacher in the alignment of a padding server: row t says what it makes of token t + 1."""
    with torch.no_grad():
        top = model(torch.tensor(ids)[None]).logits[0].double().log_softmax(-1).topk(k)
    return top.indices.numpy(), top.values.numpy()


def test_the_hinted_sequence_is_the_injectors(injected):
    for injection, whole in injected:
        splice = splice_of(injection)
        assert len(whole) >= splice.end
        assert hinted_ids(list(injection.plain_ids), splice) == list(injection.hinted_ids)
        longer = [*injection.plain_ids, 5, 6, 7]
        assert hinted_ids(longer, splice) == list(injection.hinted_ids), "later turns are not read"


def test_what_is_sliced_back_is_what_the_engine_scores(injected, student_engine, student_renderer):
    items = [HintItem(f"h{i}", injection, "train") for i, (injection, _) in enumerate(injected)]
    targets = Scorer(student_engine, student_renderer, RescoreSection(top_k=8)).score(items)
    for (injection, _), target in zip(injected, targets, strict=True):
        splice = splice_of(injection)
        scored = slice_back(*answer(student_engine.model, hinted_ids(list(injection.plain_ids), splice), 8), splice)
        assert scored.ids.shape == (len(injection.step_ids), 8)
        for t, (ids, logprobs) in enumerate(zip(scored.ids, scored.logprobs, strict=True)):
            held = dict(zip(target.support_ids[t].tolist(), target.teacher_logprobs[t].tolist(), strict=True))
            assert [held[i] for i in ids.tolist()] == pytest.approx(logprobs.tolist(), abs=2e-4)


def test_rows_lie_where_the_step_is_predicted_and_nowhere_else(injected, student_engine):
    injection, _ = injected[-1]
    splice = splice_of(injection)
    scored = slice_back(*answer(student_engine.model, hinted_ids(list(injection.plain_ids), splice), 4), splice)
    length = splice.end + 6
    ids, logprobs = laid_out([scored], length, 6)
    assert ids.shape == logprobs.shape == (length, 6)
    rows = slice(splice.start - 1, splice.end - 1)
    assert np.array_equal(ids[rows, :4], scored.ids) and np.allclose(logprobs[rows, :4], scored.logprobs)
    assert (logprobs[rows, 4:] == NOTHING).all()
    outside = np.delete(logprobs, np.r_[rows], axis=0)
    assert (outside == NOTHING).all() and np.exp(outside.astype(np.float64)).sum() == 0
    mask = loss_mask([scored], splice.start - 3, length - splice.start + 3)
    assert mask == [0] * 3 + [1] * len(injection.step_ids) + [0] * 6


def test_what_cannot_be_is_said(injected):
    injection, _ = injected[0]
    splice = splice_of(injection)
    with pytest.raises(InputError, match="not above a step"):
        Splice(9, (1,), 5, 7)
    with pytest.raises(InputError, match="ends at token"):
        hinted_ids(list(injection.plain_ids)[:-1], splice)
    short = np.zeros((splice.end, 2))
    with pytest.raises(InputError, match="the teacher returned"):
        slice_back(short, short, splice)
    one = Scored(4, 6, np.zeros((2, 1), int), np.zeros((2, 1)), np.ones(2))
    with pytest.raises(InputError, match="two hints apply to the step at token 5"):
        laid_out([one, Scored(5, 7, one.ids, one.logprobs, one.weights)], 9, 1)


def test_a_stored_step_is_found_wherever_its_tokens_are_met():
    store = StoredScores(the_run(), 4)
    (end, _), held = next(iter(store._held.items()))
    from hintdistill.bridges.runs import open_rows

    targets = list(open_rows(the_run()).targets.where(lambda t: t.kind == "hint"))
    assert len(store) == len({(len(t.context_ids), *t.context_ids, *t.step_ids) for t in targets})
    for target in targets:
        ids = [*target.context_ids, *target.step_ids]
        (found,) = [s for s in store.find([*ids, 3, 3, 3]) if s.end == len(ids)]
        assert all(s in row for s, row in zip(target.step_ids, found.ids, strict=True)), "the sampled id is kept"
        assert not store.find(ids[:-1]) or all(s.end < len(ids) for s in store.find(ids[:-1]))
    assert held.end == end and store.find([1, 2, 3]) == []

"""Twins: scored as a separate forward would, checked by the policy's own probability, and rows of their own in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CHECKS, TOOLWORLD

from hintdistill.config import GateSection, InjectSection, RescoreSection, TrainSection
from hintdistill.core.types import Finding, Replacement, Twin, TwinEdit
from hintdistill.critics.rules import RulesCritic
from hintdistill.injection.splice import Injector
from hintdistill.injection.twin_makers import twin_edits
from hintdistill.injection.twins import TwinBuilder
from hintdistill.prompts import PromptLibrary
from hintdistill.recipes import Term
from hintdistill.rescoring.scorer import HintItem, Scorer, decide
from hintdistill.rescoring.store import TargetStore
from hintdistill.rescoring.twins import NOT_DONE_HERE, Original, TwinItem, judge_twin, measure_twin
from hintdistill.traces.reading import read_traces
from hintdistill.training.rows import build_rows
from hintdistill.training.slots import loss_weights

STEP = (10, 11, 12, 13)


def twin(span=(1, 3), **change) -> Twin:
    edit = TwinEdit(
        kind="rename", replacements=(Replacement(where="tools", index=0, old="a", new="b"),), maker="unknown_tool"
    )
    base = {"trace_id": "t", "finding": Finding(step=0, error_class="x", quote="q"), "edit": edit}
    return Twin(**{**base, "context_ids": (1, 2), "step_ids": STEP, "span": span, "fidelity": "ids", **change})


def logs(*probabilities) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


ORIGINAL = Original(2, logs(0.9, 0.5, 0.4, 0.9))


@pytest.mark.parametrize(
    ("here", "top1", "kept"),
    [
        ((0.9, 0.5, 0.4, 0.9), STEP, True),
        ((0.9, 0.1, 0.1, 0.9), STEP, True),  # greedy decoding says the quote
        ((0.9, 0.5, 0.33, 0.9), (10, 11, 99, 13), True),  # at least .8 of .4
        ((0.9, 0.5, 0.31, 0.9), (10, 11, 99, 13), False),
        ((0.9, 0.2, 0.4, 0.9), (10, 99, 12, 13), False),  # the decision token stands, the quote does not
        ((0.9, 0.45, 0.38, 0.9), (10, 99, 99, 13), True),
        ((0.01, 0.5, 0.4, 0.01), (99, 11, 12, 99), True),  # what is not quoted does not count
    ],
)
def test_the_policy_must_still_do_the_step_there(here, top1, kept):
    reasons = judge_twin(twin(), ORIGINAL, logs(*here), np.array(top1))
    assert reasons == (() if kept else (NOT_DONE_HERE,))


def test_without_a_decision_token_the_first_quoted_one_is_read():
    m = measure_twin(twin(), replace(ORIGINAL, position=None), logs(0.9, 0.25, 0.4, 0.9), np.array(STEP))
    assert m.position == 1 and np.exp(m.plain_logprob) == pytest.approx(0.5) and m.effect == pytest.approx(np.log(0.5))
    assert measure_twin(twin(), ORIGINAL, logs(0.9, 0.25, 0.4, 0.9), np.array(STEP)).position == 2


@pytest.fixture(scope="module")
def scored(student_engine, student_renderer):
    """A shipped finding of an unknown tool: its hint, its twin by renaming, and one whose edit leaves the error there."""
    trace = next(read_traces([TOOLWORLD / "traces.jsonl"]))
    finding = RulesCritic(CHECKS).check(trace).findings[0]
    injection = Injector(student_renderer, PromptLibrary(TOOLWORLD / "prompts"), InjectSection()).inject(trace, finding)
    renamed = next(e for e in twin_edits(trace, finding) if e.kind == "rename")
    name, taken = trace.tools[0]["function"]["name"], {r.index for r in renamed.replacements}
    assert 0 not in taken
    elsewhere = Replacement(where="tools", index=0, old=f'"{name}"', new=f'"{name}x"')
    edits = [renamed, TwinEdit(kind="rename", replacements=(elsewhere,), maker="unknown_tool")]
    twins = [TwinBuilder(student_renderer).build(trace, finding, edit, injection.span) for edit in edits]
    items = [TwinItem(f"twin {i}", t, "train", "hint") for i, t in enumerate(twins)]
    hint = HintItem("hint", injection, "train")
    return hint, items, Scorer(student_engine, student_renderer, RescoreSection(top_k=20))


def test_a_twins_scores_are_those_of_a_separate_forward(scored, student_engine):
    hint, items, scorer = scored
    targets = scorer.score([hint], items)
    assert [t.kind for t in targets] == ["hint", "twin", "twin"]
    for item, target in zip(items, targets[1:], strict=True):
        ids = torch.tensor([item.twin.plain_ids])
        with torch.no_grad():
            logp = student_engine.model(ids).logits[0].log_softmax(-1)
        n = len(item.twin.step_ids)
        alone = logp[-n - 1 : -1].gather(1, ids[0, -n:, None])[:, 0].numpy()
        np.testing.assert_allclose(target.plain_sampled, alone, atol=1e-5)
        assert target.context_ids.tolist() == list(item.twin.context_ids)
        np.testing.assert_array_equal(target.teacher_logprobs, target.plain_logprobs)
        # as measured against the plain view of its finding's hint
        m, at = target.measurement, targets[0].measurement.position
        assert m.position == at and m.plain_logprob == targets[0].plain_sampled[at]
        assert m.effect == pytest.approx(float(alone[at] - targets[0].plain_sampled[at]), abs=1e-4)
    # with the original known from elsewhere, the same
    apart = scorer.score([], items, scorer.originals({"hint": (hint.injection, targets[0].measurement.position)}))
    for a, b in zip(apart, targets[1:], strict=True):
        np.testing.assert_allclose(a.plain_sampled, b.plain_sampled, atol=1e-5)
        assert (a.accepted, a.reasons) == (b.accepted, b.reasons)
    # an edit that undoes the error is kept; the gate has no say, whatever it is set to
    assert targets[1].accepted and decide(targets[1], GateSection(min_drop_nats=99.0)) == targets[1]


def test_rejected_twins_stay_in_the_store(scored, tmp_path):
    hint, items, scorer = scored
    targets = scorer.score([hint], items[:1])
    refused = replace(targets[1], key="refused", accepted=False, reasons=(NOT_DONE_HERE,))
    TargetStore(tmp_path).append([*targets, refused])
    stored = TargetStore(tmp_path).open(gate=GateSection())
    assert {h.key: (h.kind, h.accepted, h.reasons) for h in stored.heads if h.kind == "twin"} == {
        "twin 0": ("twin", True, ()),
        "refused": ("twin", False, (NOT_DONE_HERE,)),
    }
    assert stored.heads[1].versions["edit"] == "unknown_tool/rename"


def test_a_twin_is_a_row_of_its_own_and_weighs_as_a_slot(scored):
    hint, items, scorer = scored
    targets = [replace(t, accepted=True) for t in scorer.score([hint], items)]
    config = TrainSection.model_validate({"twins": {"per_finding": 1, "weight": 2.0}})
    assert config.effective_recipe.terms["twin"].coef == 2.0
    rows = build_rows(targets, config)
    name = targets[0].trace_id
    assert {r.key for r in rows} == {name, f"{name}~twin", f"{name}~twin#2"}
    assert rows.number_of("twin") == 2
    for row in rows:
        slot = row.slots[0]
        assert float(sum(w.sum() for w in slot.weights.values())) == pytest.approx(1.0)
        np.testing.assert_array_equal(row.ids[slot.start :].numpy(), targets[0].step_ids)
    # a shared context is one row: a later step of the same edited trace begins with the earlier one's sequence
    first = targets[1]
    grown = np.concatenate([first.context_ids, first.step_ids, [5, 6]])
    later = replace(targets[1], key="later", context_ids=grown, step=3)
    assert [len(r.slots) for r in build_rows([first, later], config)] == [2]
    # without a term no twin makes a slot
    assert build_rows(targets, TrainSection()).number_of("twin") == 0


def test_what_is_held_of_a_twin(scored):
    target = scored[2].score([scored[0]], scored[1][:1])[1]
    wavered = replace(target, plain_sampled=np.full(len(target.step_ids), np.log(0.3), np.float32))
    start, end = target.span
    quoted = np.arange(len(target.step_ids))
    quoted = ((quoted >= start) & (quoted < end)).astype(np.float32)
    term = Term.model_validate({"rows": "twin", "divergence": {"kind": "fkl"}, "min_probability": 0.5})
    # the quote was checked, and is held however sure the policy was; the rest only where it was
    np.testing.assert_array_equal(loss_weights(wavered, term), quoted)
    np.testing.assert_array_equal(
        loss_weights(target, term.model_copy(update={"min_probability": 0.0})), np.ones(len(quoted))
    )
    span = term.model_copy(update={"span": "quote"})
    np.testing.assert_array_equal(loss_weights(target, span), quoted)
    # of an anchor the whole step is the quote
    anchor = replace(target, kind="anchor", span=(0, len(quoted)))
    held = term.model_copy(update={"rows": "anchor", "span": "quote"})
    np.testing.assert_array_equal(loss_weights(anchor, held), (np.exp(target.plain_sampled) >= 0.5).astype(np.float32))

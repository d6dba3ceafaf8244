"""What the gate sees, and why it says no."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import TOOLWORLD

from hintdistill.config import GateSection, InjectSection, RescoreSection
from hintdistill.core.scores import Measurement, Scores
from hintdistill.core.types import Finding, Injection
from hintdistill.injection.splice import Injector
from hintdistill.prompts import PromptLibrary
from hintdistill.rescoring.gate import View, decide, harmful, judge, measure, passing_placebos
from hintdistill.rescoring.scorer import Scorer

GATE = GateSection()
GOOD = Measurement(
    position=2,
    instead_id=7,
    effect=-3.0,
    plain_logprob=math.log(0.8),
    max_raise=0.0,
    specificity=-1.0,
    legal_mass_gain=0.5,
    best_placebo=-0.2,
    odds=6.0,
    rise=3.0,
    placebo_odds=0.8,
    placebo_odds_median=0.3,
)


def test_a_good_hint_is_accepted():
    assert judge(GOOD, (), GATE) == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"odds": 1.5, "placebo_odds": 0.0, "placebo_odds_median": -1.0}, "no_effect"),
        ({"effect": 0.1}, "no_effect"),
        ({"position": None}, "no_effect"),
        ({"placebo_odds": 6.0, "placebo_odds_median": 5.9}, "not_above_placebo"),
        ({"legal_mass_gain": 0.1}, "mass_to_illegal"),
        ({"max_raise": 0.6}, "primed"),
        ({"plain_logprob": math.log(0.009)}, "not_this_students_error"),
    ],
)
def test_each_reason(change, reason):
    assert judge(replace(GOOD, **change), (), GATE) == (reason,)


def test_specificity_is_a_check_that_has_to_be_asked_for():
    unspecific = replace(GOOD, specificity=0.0)
    assert judge(unspecific, (), GATE) == ()
    assert judge(unspecific, (), GateSection(checks=("specific",))) == ("not_specific",)


def test_no_schema_no_opinion():
    assert judge(replace(GOOD, legal_mass_gain=None), (), GATE) == ()


def test_guards_are_reasons():
    assert judge(GOOD, ("leak: '42' is not in the step's context", "dialect: …"), GATE) == ("leak", "dialect")
    assert judge(GOOD, ("leak: x",), GateSection(checks=("dialect",))) == ()


def injection(**change) -> Injection:
    base = {
        "trace_id": "t",
        "finding": Finding(step=0, error_class="x", quote="q"),
        "hint": "h",
        "context_ids": (1, 2, 3),
        "insert_at": 1,
        "block_ids": (9,),
        "step_ids": (10, 11, 12, 13),
        "span": (1, 3),
        "quote_found": "exact",
        "fidelity": "ids",
        "placement": "message",
    }
    return Injection(**{**base, **change})


STEP = (10, 11, 12, 13)
PLAIN = np.log(np.array([0.9, 0.8, 0.7, 0.9], np.float32))


def scores(sampled, other, at, gathered=None, top1=None) -> Scores:
    """Scores of the step with one other id at each position, and its log-probability."""
    ids = np.array([STEP, other]).T
    logprobs = np.stack([np.asarray(sampled, np.float32), np.asarray(at, np.float32)], 1)
    return Scores(np.asarray(sampled, np.float32), ids, logprobs, np.full(4, -9.0, np.float32), gathered, top1)


def view(effect, top1=(10, 11, 99, 13), gathered=None, plain_gathered=None, plain=PLAIN, at=-0.5) -> View:
    """A view that lowers the sampled tokens by `effect` and gives each other token `at`; without a hint it has log .02."""
    top1 = np.array(top1)
    other = np.where(top1 == STEP, 77, top1)
    effect = np.array(effect, np.float32)
    alternative = np.where(top1 == STEP, -6.0, at)
    before = scores(plain, other, np.full(4, math.log(0.02)), plain_gathered)
    return View(scores(plain + effect, other, alternative, gathered, top1), before)


def test_the_decision_token_is_the_first_of_the_quote_that_the_teacher_leaves():
    m = measure(injection(), view([-5, -0.1, -3, -4], top1=(98, 11, 99, 97)), [])
    assert (m.position, m.instead_id) == (2, 99)
    assert m.effect == pytest.approx(-3)
    assert measure(injection(), view([-1, -1, -1, -1], top1=(98, 11, 12, 97)), []).position is None
    assert m.flips and m.odds == pytest.approx(3 - 0.5 - math.log(0.02)) and m.rise == pytest.approx(m.odds - 3)


def test_specificity_compares_quote_rest_and_placebo():
    m = measure(injection(), view([-1, -2, -4, -1]), [view([0, -1, -1, 0]), view([0, 0, 0, 0])])
    # quote mean -3, rest mean -1, contrast -2; placebo contrasts -1 and 0, mean -0.5
    assert m.specificity == pytest.approx(-1.5)
    assert m.best_placebo == pytest.approx(-1)


def test_raised_quoted_tokens_count_only_where_they_are_not_negligible():
    plain = np.log(np.array([0.9, 0.3, 1e-6, 0.9], np.float32))
    assert measure(injection(), view([0, 0.9, 5, 0], plain=plain), []).max_raise == pytest.approx(0.9)
    after = view([0, -3, 0.9, 0], top1=(10, 99, 12, 13), plain=plain)
    assert measure(injection(), after, []).max_raise == 0.0, "the hinted view has left the quote before"
    whole = injection(span=(0, 4), quote_found="whole_step")
    assert measure(whole, view([0, 0.9, 5, 0], plain=plain), []).max_raise == 0.0


def test_legal_mass_gain_is_read_at_the_decision_token():
    legal = injection(legal={2: (5, 7), 1: (6,)})
    plain = np.log(np.array([[0.1, 0.1, 0.1]] * 4))
    hinted = np.log(np.array([[0.1, 0.1, 0.1], [0.1, 0.9, 0.1], [0.4, 0.1, 0.3], [0.1, 0.1, 0.1]]))
    m = measure(legal, view([0, 0, -3, 0], gathered=hinted, plain_gathered=plain), [])
    assert m.legal_mass_gain == pytest.approx(0.5)
    assert measure(injection(), view([0, 0, -3, 0]), []).legal_mass_gain is None


def test_where_no_first_choice_changes_the_odds_decide():
    """The student still says its error, less surely: the alternative went from .02 to .35."""
    quiet = view([0, 0, -1.2, 0], top1=STEP)
    quiet.scores.topk_logprobs[2, 1] = math.log(0.35)
    m = measure(injection(), quiet, [])
    assert (m.position, m.instead_id, m.flips) == (2, 77, False)
    assert m.odds == pytest.approx(math.log(0.35 / 0.02) + 1.2, abs=1e-5)
    assert judge(replace(m, specificity=-1.0), (), GATE) == ()


def test_priming_is_judged_where_no_first_choice_changes():
    plain = np.log(np.array([0.9, 0.2, 0.2, 0.9], np.float32))
    primed = measure(injection(), view([0, 1.5, 0, 0], top1=STEP, plain=plain), [])
    assert primed.position is None and judge(primed, (), GATE) == ("no_effect", "primed")


def test_a_placebo_is_weighed_on_the_token_of_the_hint_and_an_unkept_one_counts_as_the_most_it_can_be():
    hint = view([0, 0, -3, 0])
    m = measure(injection(), hint, [View(view([0, 0, -0.1, 0], top1=STEP).scores, hint.plain)])
    # the placebo's own rows do not have id 99: it can be no likelier than what they kept least of
    assert m.placebo_odds == pytest.approx(-9.0 - math.log(0.7) + 0.1 - (math.log(0.02) - math.log(0.7)), abs=0.01)


def test_targets_of_schema_2_are_judged_by_the_fall():
    old = replace(GOOD, odds=None, rise=None, placebo_odds=None, placebo_odds_median=None)
    assert judge(old, (), GATE) == ()
    assert judge(replace(old, best_placebo=-3.0), (), GATE) == ("not_below_placebo",)
    assert judge(replace(old, effect=-0.9), (), GateSection(min_drop_nats=1)) == ("no_effect",)


def test_a_level_that_is_refused_and_a_hint_that_lost_are_reasons_whatever_the_checks():
    gate = GateSection(checks=())
    assert judge(GOOD, ("level: 3 is above 2", "primes: it lists 3 tools"), gate) == ("level",)


@pytest.fixture(scope="module")
def scored(student_engine, student_renderer, unknown_tool_case):
    """A real error of the student, with a real hint."""
    trace, finding, hint = unknown_tool_case
    finding = finding.model_copy(update={"hint": hint})
    made = Injector(student_renderer, PromptLibrary(TOOLWORLD / "prompts"), InjectSection()).inject(trace, finding)
    return made, Scorer(student_engine, student_renderer, RescoreSection()).score([("key", made, "train")])[0]


def test_a_real_hint_moves_the_error_and_the_mass_goes_to_a_listed_tool(scored, unknown_tool_case):
    trace, finding, _ = unknown_tool_case
    _, target = scored
    assert target.accepted, target.reasons
    assert finding.quote.endswith(target.decision.token)
    said = finding.quote.removesuffix(target.decision.token)
    assert any(name.startswith(said + target.decision.instead) for name in trace.tool_schemas)
    assert target.decision.effect < -1 and target.specificity < 0 and target.legal_mass_gain > 0.3
    assert target.shifts(1)[0].token == target.decision.token
    assert len(target.hint_effect) == len(target.tokens) == len(target.step_ids)
    assert target.recorded_gap < 1e-3, "the trace is this student's own"


def test_step_ids_and_support_are_shared_by_both_views(scored):
    made, target = scored
    assert tuple(target.step_ids) == made.step_ids
    assert target.support_ids.shape == target.teacher_logprobs.shape == target.plain_logprobs.shape
    for t, row in enumerate(target.support_ids):
        assert target.step_ids[t] in row
    for logprobs, tail in ((target.teacher_logprobs, target.teacher_tail), (target.plain_logprobs, target.plain_tail)):
        assert np.abs(np.exp(logprobs.astype(np.float64)).sum(1) + np.exp(tail.astype(np.float64)) - 1).max() < 1e-5


def test_the_gate_can_be_switched_off_and_keeps_the_reasons(scored):
    _, target = scored
    rejected = decide(target, GateSection(min_odds_nats=50))
    assert not rejected.accepted and rejected.reasons == ("no_effect",)
    forced = decide(target, GateSection(min_odds_nats=50, enabled=False))
    assert forced.accepted and forced.reasons == ("no_effect",)


def test_placebos_are_measured_by_the_same_gate(scored):
    _, target = scored
    strict = passing_placebos([target], GATE)
    assert {kind: n for kind, (_, n) in strict.items()} == Counter(p.kind for p in target.placebos)
    assert sum(passed for passed, _ in strict.values()) <= 1 and passing_placebos([], GATE) == {}
    off = {"min_drop_nats": 0, "min_odds_nats": 0, "min_odds_margin_nats": 0, "max_raise_nats": 99}
    lax = GateSection(**off, checks=("leak", "dialect", "words"), min_student_probability=0)
    assert all(passed >= strict[kind][0] for kind, (passed, _) in passing_placebos([target], lax).items())


def test_the_same_context_twice_is_no_effect(scored, student_engine, student_renderer):
    """Where nothing is inserted, teacher equals plain to the bit: a hint cannot seem to work by numerics."""
    from hintdistill.core.scores import ScoreRequest

    made, _ = scored
    ids = np.array(made.plain_ids)
    request = ScoreRequest(ids, len(made.context_ids), len(ids), "g")
    a, b = student_engine.score([request, request], 16)
    assert (a.sampled - b.sampled == 0).all() and (a.topk_logprobs == b.topk_logprobs).all()


def test_a_hint_that_makes_the_error_likelier_is_harmful(scored):
    _, target = scored
    assert not harmful(target)
    assert harmful(replace(target, measurement=replace(target.measurement, odds=-0.5)))
    assert harmful(decide(replace(target, measurement=replace(target.measurement, max_raise=2.0)), GATE))

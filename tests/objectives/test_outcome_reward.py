"""The outcome-reward term: advantages of groups, rows of sampled steps, and the gradient of the loss."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import STUDENT, TOOLWORLD
from torch.testing import assert_close
from world import Toolworld

from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError, EmptyFunnelError, InputError
from hintdistill.core.types import Message, Trace
from hintdistill.injection.rendering import Renderer
from hintdistill.objectives.outcome import outcome_loss
from hintdistill.pipeline.playing import draw_tasks
from hintdistill.recipes import load_recipe
from hintdistill.rollouts.evaluate import tasks_of
from hintdistill.rollouts.sampling import Sampler, SamplingOptions
from hintdistill.training.reward import outcome_rows, trace_outcomes

pytestmark = pytest.mark.usefixtures("one_thread")


def trace(name: str, reward: float | None, task: str = "t") -> Trace:
    messages = (Message(role="user", content="x"), Message(role="assistant", content="y"))
    return Trace(id=name, task_id=task, reward=reward, messages=messages)


# -- advantages --------------------------------------------------------------------------------------------------------------


def test_an_advantage_is_the_reward_minus_the_mean_of_its_task():
    got = trace_outcomes([trace("a", 1.0), trace("b", 0.0), trace("c", 0.0), trace("d", 0.0), trace("e", 1.0, "u")])
    assert [got[i].advantage for i in "abcde"] == pytest.approx([0.75, -0.25, -0.25, -0.25, 0.0])
    assert [(got[i].group_accuracy, got[i].group_size) for i in "ae"] == [(0.25, 4), (1.0, 1)]
    scaled = trace_outcomes([trace("a", 1.0), trace("b", 0.0)], normalise=True)
    assert [scaled[i].advantage for i in "ab"] == pytest.approx([1.0, -1.0], abs=1e-4)
    by_round = trace_outcomes([trace("a", 1.0, "u"), trace("b", 0.0, "v")], baseline="round")
    assert [by_round[i].advantage for i in "ab"] == [0.5, -0.5]


@pytest.mark.parametrize(
    ("traces", "error", "message"),
    [
        ([trace("a", None)], InputError, "trace a has the reward None"),
        ([trace("a", math.nan)], InputError, "has the reward nan"),
        ([trace("a", 1.0), trace("a", 0.0)], InputError, "two traces have the id a"),
        ([trace("a", 1.0, "u"), trace("b", 0.0, "v")], EmptyFunnelError, "each task was played only once"),
        ([trace("a", 1.0), trace("b", 1.0)], EmptyFunnelError, "all rewards are equal"),
    ],
)
def test_rewards_that_say_nothing_are_refused(traces, error, message):
    with pytest.raises(error, match=message):
        trace_outcomes(traces)


# -- the loss ------------------------------------------------------------------------------------------------------------------


def test_its_gradient_is_the_policy_gradient_where_the_student_is_the_sampler():
    student = torch.randn(5, requires_grad=True)
    value, metrics = outcome_loss(student, student.detach().clone(), torch.tensor([1.0, -0.5]), [2, 3])
    value.backward()
    assert_close(student.grad, -torch.tensor([1.0, 1.0, -0.5, -0.5, -0.5]) / 5)
    assert metrics["reward/ratio_mean"] == 1.0 and metrics["reward/behaviour_gap"] == 0.0
    assert metrics["reward/advantage_abs"] == 0.75


def test_ratios_are_clipped_on_the_side_that_gains():
    then = torch.zeros(2)
    now = torch.tensor([0.5, 0.5], requires_grad=True)
    value, metrics = outcome_loss(now, then, torch.tensor([1.0, -1.0]), [1, 1])
    value.backward()
    assert_close(now.grad, torch.tensor([0.0, math.exp(0.5) / 2]))
    assert metrics["reward/ratio_clipped"] == 1.0
    row = torch.tensor([0.1, 0.3, 0.0], requires_grad=True)
    outcome_loss(row, torch.zeros(3), torch.tensor([1.0, 1.0]), [2, 1], clip_high=None, row_ratio=True)[0].backward()
    assert_close(row.grad, -torch.tensor([math.exp(0.2), math.exp(0.2), 1.0]) / 3)
    capped = torch.tensor([3.0], requires_grad=True)
    outcome_loss(capped, torch.zeros(1), torch.ones(1), [1], cap=2.0)[0].backward()
    assert_close(capped.grad, torch.tensor([-2.0]))


def test_two_halves_accumulated_are_the_whole():
    student, then = torch.randn(6), torch.randn(6)
    lengths, advantages, weights = [1, 2, 2, 1], torch.tensor([1.0, -1.0, 0.5, 2.0]), torch.full((4,), 0.7)
    whole, _ = outcome_loss(student, then, advantages, lengths, weights=weights)
    parts = [
        outcome_loss(student[a:b], then[a:b], advantages[i:j], lengths[i:j], weights=weights[i:j])[0]
        for a, b, i, j in ((0, 3, 0, 2), (3, 6, 2, 4))
    ]
    assert_close(whole, sum(parts) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2), torch.zeros(3), torch.ones(1), [2]), "behaviour has shape"),
        ((torch.zeros(2), torch.zeros(2), torch.ones(1), [3]), "rows of 3 tokens"),
        ((torch.zeros(2), torch.zeros(2), torch.ones(2), [2]), "advantages: one per row"),
        ((torch.zeros(2), torch.zeros(2), torch.ones(2), [2, 0]), "at least one token"),
        ((torch.zeros(2), torch.tensor([0.0, -torch.inf]), torch.ones(1), [2]), "must be finite"),
    ],
)
def test_what_does_not_fit_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        outcome_loss(*arguments)


def test_it_enters_an_additive_objective():
    from hintdistill.objectives import Batch, objective

    recipe = load_recipe({"preset": "targeted", "coupling": {"kind": "additive", "weight": 0.25}})
    views = {n: torch.randn(3, 4).log_softmax(-1) for n in ("student", "teacher", "plain", "initial")}
    batch = Batch(views, torch.zeros(3, dtype=torch.long), [3], facts={"in_quote": torch.ones(3)})
    alone, _ = objective(recipe, batch)
    reward, _ = outcome_loss(torch.zeros(2), torch.zeros(2), torch.tensor([1.0]), [2])
    both, metrics = objective(recipe, batch, reward_loss=reward)
    assert_close(both, 0.75 * reward + 0.25 * alone)
    assert metrics["reward_loss"] == pytest.approx(-1.0)


# -- rollouts → rows -----------------------------------------------------------------------------------------------------------


def test_rollouts_give_rows_whose_recorded_numbers_are_the_samplers(student_engine):
    tasks = draw_tasks(tasks_of(Toolworld(), "train", None, ["weather.*"]), 12, 1, 0, per_task=4)
    assert len(set(tasks)) == 3 and tasks == sorted(tasks, key=tasks.index)
    renderer = Renderer.from_pretrained(STUDENT)
    options = SamplingOptions(max_new_tokens=64, max_steps=8, logprobs=True, seed=3)
    episodes = list(Sampler(student_engine, renderer, options).episodes(Toolworld(), tasks))
    traces = [e.trace for e in episodes if e.failure is None]
    outcomes = trace_outcomes(traces)
    rows, left_out = outcome_rows(traces, outcomes, renderer)
    assert rows and {r.advantage for r in rows} == {o.advantage for o in outcomes.values() if o.advantage}
    steps = sum(len(t.step_indices) for t in traces)
    assert len(rows) + left_out.get("no_advantage", 0) == steps
    tokens = sum(len(t.step(k).token_ids) for t in traces for k in range(len(t.step_indices)))
    assert rows[0].weight == pytest.approx(len(rows) / tokens)
    from hintdistill.core.scores import ScoreRequest

    row = rows[0]
    (score,) = student_engine.score([ScoreRequest(row.ids.numpy(), len(row.ids) - row.length, len(row.ids))], top_k=1)
    assert_close(torch.from_numpy(score.sampled), row.behaviour, atol=2e-4, rtol=0)


def test_steps_that_were_not_sampled_make_no_row():
    renderer = Renderer.from_pretrained(STUDENT)
    outcomes = trace_outcomes([trace("a", 1.0), trace("b", 0.0)])
    with pytest.raises(EmptyFunnelError, match="2 unrecorded"):
        outcome_rows([trace("a", 1.0), trace("b", 0.0)], outcomes, renderer)


def test_groups_must_be_whole():
    with pytest.raises(ConfigError, match="cannot be divided into groups of 5"):
        load_config(TOOLWORLD.parent.parent / "configs" / "rounds.yaml", ["rollout.sample.per_task=5"])

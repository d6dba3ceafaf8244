"""Weights over an optimiser step: however it is cut into micro-batches, they are those of the whole."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hintdistill.objectives import Batch, objective
from hintdistill.objectives.over_step import read, settle
from hintdistill.objectives.weighing import Fixed
from hintdistill.recipes import load_recipe, recipe_names
from hintdistill.recipes.describe import over_step, over_step_costs, text

F64 = torch.float64
LENGTHS, V = [6, 3, 5, 4], 13
SEEDS = [11, 12, 13, 14]
STATISTICAL = [n for n in recipe_names() if over_step(load_recipe(n))]

pytestmark = pytest.mark.usefixtures("one_thread")


def batch_of(recipe) -> tuple[torch.Tensor, Batch]:
    n = sum(LENGTHS)
    g = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    z = (1.5 * draw(n, V)).requires_grad_()
    views = {"student": z.log_softmax(-1), "teacher": draw(n, V).log_softmax(-1)}
    for name in recipe.used_views("hint"):
        views.setdefault(name, (z.detach() + 0.5 * draw(n, V)).log_softmax(-1))
    hidden = {"student": z[None], "teacher": draw(1, n, V)}
    sets = torch.tensor([[2.0, 3.0], [3.0, 2.0], [4.0, math.nan], [5.0, math.nan]], dtype=F64)
    facts = {
        "recorded": views["student"].detach().max(-1).values - 0.1,
        "reward": torch.tensor([1.0, 1.0, 0.0, 1.0]),
        "advantage": torch.tensor([0.5, 0.25, -0.75, 0.1], dtype=F64),
        "group_acc": torch.full((4,), 0.4),
        "rollout_ppl_S": sets,
        "rollout_ppl_T": sets,
        **{k: torch.ones(n) for k in ("in_quote", "error_span", "key_span")},
        "since_error": torch.arange(n).float(),
    }
    return z, Batch(views, torch.randint(0, V, (n,), generator=g), LENGTHS, facts, hidden)


def cut(batch: Batch, rows: list[int]) -> Batch:
    starts = [sum(LENGTHS[:r]) for r in range(len(LENGTHS))]
    at = torch.cat([torch.arange(starts[r], starts[r] + LENGTHS[r]) for r in rows])
    facts = {k: v[torch.tensor(rows)] if len(v) == len(LENGTHS) else v[at] for k, v in batch.facts.items()}
    views = {k: v[at] for k, v in batch.views.items()}
    hidden = {k: v[:, at] for k, v in batch.hidden.items()}
    return Batch(views, batch.sampled[at], [LENGTHS[r] for r in rows], facts, hidden)


def generators(rows: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(SEEDS[r]) for r in rows]


@pytest.mark.parametrize("name", STATISTICAL)
def test_parts_of_a_step_add_up_to_the_whole(name):
    recipe = load_recipe(name)
    z, batch = batch_of(recipe)
    base = {t: torch.full((sum(LENGTHS),), 0.25) for t in recipe.terms}
    every = list(range(len(LENGTHS)))
    whole, _ = objective(recipe, batch, base=base, generator=generators(every))
    wanted = torch.autograd.grad(whole, z, retain_graph=True)[0]
    pieces = [[0, 1], [2], [3]]
    readings = [read(recipe, cut(batch, rows), base=_cut_base(base, rows)) for rows in pieces]
    assert all(not t.own.requires_grad for r in readings for t in r.terms.values())
    made = settle(recipe, readings, generator=generators(every))
    total = torch.zeros((), dtype=F64)
    alone = torch.zeros((), dtype=F64)
    for rows in pieces:
        own = cut(batch, rows)
        fixed = {t: Fixed.joined([each[r] for r in rows]) for t, each in made.items()}
        arguments = {"base": _cut_base(base, rows), "generator": generators(rows)}
        total = total + objective(recipe, replace(own, fixed=fixed), **arguments)[0] * len(rows) / len(LENGTHS)
        alone = alone + objective(recipe, own, **arguments)[0] * len(rows) / len(LENGTHS)
    assert float(total.detach()) == pytest.approx(float(whole.detach()), rel=1e-9, abs=1e-12)
    assert float((torch.autograd.grad(total, z, retain_graph=True)[0] - wanted).abs().max()) < 1e-9
    DIFFERS[name] = float((torch.autograd.grad(alone, z)[0] - wanted).abs().max()) > 1e-6


DIFFERS: dict[str, bool] = {}
"""Whether weights of each micro-batch alone would have trained something else."""


def test_micro_batches_alone_would_train_something_else():
    """Of most such recipes, on these rows; so the test above is not about nothing."""
    assert len(DIFFERS) < len(STATISTICAL) or sum(DIFFERS.values()) > len(STATISTICAL) / 2


def _cut_base(base: dict[str, torch.Tensor], rows: list[int]) -> dict[str, torch.Tensor]:
    n = sum(LENGTHS[r] for r in rows)
    return {t: w[:n] for t, w in base.items()}


def test_a_recipe_says_what_the_step_costs():
    assert "kat" in STATISTICAL and "rlcsd" in STATISTICAL
    cost = over_step_costs(load_recipe("kat"))
    assert cost is not None and "one more forward pass without gradient of the student, teacher" in cost
    assert f"cost: {cost}" in text(load_recipe("kat"))
    assert "wrong_1, wrong_2" in str(over_step_costs(load_recipe("rlcsd")))
    assert over_step_costs(load_recipe("hint_sd")) is None and "cost:" not in text(load_recipe("hint_sd"))

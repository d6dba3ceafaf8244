"""What the goldens hold, computed: losses and gradients in the trainer, and the terms alone; all float64.

A change of the trainer's or the objectives' interface changes this file and never `goldens/objectives.json`. Written with
`python tests/training/test_goldens.py --write`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.exact_rows import Doubled, loss_and_gradient, target_of, trainer_of
from support.recipe_models import RUNNABLE, V, outcome_of, tiny, with_contexts

from hintdistill.config import TrainSection
from hintdistill.core.scores import Target
from hintdistill.objectives import Batch, term
from hintdistill.objectives.chunked import HeadSpec
from hintdistill.objectives.chunked_support import linear_term
from hintdistill.objectives.divergences import DIVERGENCES
from hintdistill.recipes import Recipe, load_recipe, missing, recipe_names
from hintdistill.training.capabilities import available

Golden = dict[str, Any]
STEP = 5
"""The optimiser step at which everything is computed: schedules have left their start and have not reached their end."""
DIRECTIONS = 4
PLAN = {
    # trace: its length and its steps (start, end, place of the hint, length of the hint; 0 for an anchor)
    "alone": (24, [(16, 24, 9, 5)]),
    "long": (46, [(12, 20, 8, 4), (12, 20, 3, 6), (22, 26, 22, 0), (30, 39, 24, 3), (41, 46, 41, 0)]),
    "short": (21, [(15, 21, 15, 5)]),
    "clean": (18, [(10, 18, 10, 0)]),
}
"""Two hints on one step, steps of several lengths, anchors beside hints and in a trace of their own."""
BATCHES = {
    "alone": lambda t: t.trace_id == "alone",
    "hints": lambda t: t.trace_id != "alone" and t.kind == "hint",
    "mixed": lambda t: t.trace_id != "alone",
}
"""One hint slot and nothing else; several hints of two traces; the same with anchors, and with outcome slots where a
recipe's coupling adds an outcome reward."""
ANCHOR = {"weight": 1.5, "min_probability": 0.004}
"""What the mixed batch sets, so that every recipe has anchors and they lose some of their tokens."""
N, WIDTH, HIDDEN = 6, 32, 7
LENGTHS = [4, 2]


def directions(size: int) -> torch.Tensor:
    """Fixed random vectors, float64 [4, size]."""
    return torch.from_numpy(np.random.default_rng(15).standard_normal((DIRECTIONS, size)))


def described(gradient: torch.Tensor) -> Golden:
    """A gradient's norm, and its products with the fixed vectors."""
    gradient = gradient.flatten().double()
    return {"norm": float(gradient.norm()), "products": [float(x) for x in directions(len(gradient)) @ gradient]}


# -- in the trainer ------------------------------------------------------------------------------------------------------


def in_double() -> Any:
    """The tiny model, float64."""
    return tiny().double()


def stored_targets(model: Any) -> list[Target]:
    """What the rescore stage would store for the plan; the quote is the third and fourth token of each step."""
    rng, out = np.random.default_rng(4), []
    for name, (length, steps) in PLAN.items():
        trace = rng.integers(3, V, length)
        for n, (start, end, at, block_length) in enumerate(steps):
            block = rng.integers(3, V, block_length)
            made = target_of(model, f"{name}{n}", name, trace, start, end, at, block)
            out.append(replace(made, span=(2, 4), action_start=1))
    return with_contexts(out)


def trained() -> list[tuple[str, str]]:
    """Every recipe that trains, with each source of targets that it can have."""
    pairs = []
    for name in RUNNABLE:
        usual = TrainSection(recipe=name).target_source
        pairs.append((name, usual))
        if usual == "stored":
            section = TrainSection(recipe=name, targets="in_step")
            if not missing(section.effective_recipe, available(section)):
                pairs.append((name, "in_step"))
    return pairs


def in_trainer(
    name: str, source: str, batch: str, model: Any, targets: list[Target], folder: Path, **changed: Any
) -> Golden:
    """Loss and gradient of one batch of a recipe; the student has moved a little away from initial and following weights.

    `changed` are settings in which the recipe is not as it ships; see `flat_recipe`.
    """
    recipe = load_recipe(name)
    chosen = [t for t in targets if BATCHES[batch](t)]
    ended = outcome_of(chosen, recipe)
    if batch != "mixed":
        ended = replace(ended, rows=[])
    settings = changed | ({"anchor": ANCHOR} if batch == "mixed" else {})
    trainer = trainer_of(model, chosen, folder, ended, recipe=name, targets=source, **settings)
    kinds = {slot.kind for row in trainer.train_dataset.rows for slot in row.slots}
    assert ("anchor" in kinds) == (batch == "mixed"), f"{name}: slots of kind {sorted(kinds)}"
    nudge = np.random.default_rng(6)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.from_numpy(nudge.standard_normal(tuple(parameter.shape))) * parameter.std()
    trainer.state.global_step = STEP
    loss, gradient = loss_and_gradient(trainer)
    said = trainer.meter.drain()
    terms = {n: said[n] for n in recipe.terms if n in said}
    return {"loss": loss, "gradient": described(gradient), "terms": terms}


def of_actions(model: Any, targets: list[Target], folder: Path) -> Golden:
    """The default recipe with the loss span `action`: three tokens of each step are reasoning."""
    known = [replace(t, action_start=3) for t in targets]
    return in_trainer("targeted", "stored", "mixed", model, known, folder, loss_span="action")


def trainer_goldens(folder: Path) -> Iterator[tuple[str, Golden]]:
    """Of every recipe, source of targets and batch."""
    with Doubled():
        model = in_double()
        targets = stored_targets(model)
        for name, source in trained():
            for batch in BATCHES:
                yield f"{name}/{source}/{batch}", in_trainer(name, source, batch, model, targets, folder)


def span_goldens(folder: Path) -> Iterator[tuple[str, Golden]]:
    """Of loss spans that no recipe ships with."""
    with Doubled():
        model = in_double()
        yield "action", of_actions(model, stored_targets(model), folder)


# -- the terms alone -----------------------------------------------------------------------------------------------------


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def facts() -> dict[str, torch.Tensor]:
    """Everything that no view can say of six tokens in two rows, float64 [N]."""
    rows = torch.tensor(LENGTHS)
    spread = {"reward": [1.0, 0.0], "advantage": [0.5, -0.25], "group_acc": [0.75, 0.25]}
    each = {n: torch.tensor(v, dtype=torch.float64).repeat_interleave(rows) for n, v in spread.items()}
    quoted = torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64)
    since = torch.tensor([-1.0, 0, 1, 2, 0, 1], dtype=torch.float64)
    sets = torch.tensor([[2.0, 3.0, 6.0], [4.0, 1.5, float("nan")]], dtype=torch.float64).repeat_interleave(rows, 0)
    each |= {"rollout_ppl_S": sets, "rollout_ppl_T": 1.0 + sets}
    return each | {
        "in_quote": quoted,
        "error_span": quoted,
        "since_error": since,
    }


def dense(recipe: Recipe) -> Golden:
    """Each term's value and gradient with respect to every view, from whole distributions [6, 32]."""
    names = sorted({"student", "teacher", "plain", "initial", *recipe.views})
    views = {n: (1.5 * _draw(20 + i, N, WIDTH)).log_softmax(-1).requires_grad_() for i, n in enumerate(names)}
    hidden = {n: _draw(60 + i, 2, N, HIDDEN).requires_grad_() for i, n in enumerate(names)}
    batch = Batch(views, torch.arange(N) * 5 % WIDTH, LENGTHS, facts=facts(), hidden=hidden, special_ids=(0, 3, 11))
    masks: dict[str, torch.Tensor] = {}
    out: Golden = {}
    for name, spec in recipe.terms.items():
        generator = torch.Generator().manual_seed(8)
        try:
            found = term(spec, batch, coupling=recipe.coupling, step=STEP, masks=masks, generator=generator)
        except KeyError as error:
            out[name] = {"refused": error.args[0]}
            continue
        leaves = [*views.values(), *hidden.values()]
        # a recipe's term may weigh nothing here, and then it has no gradient
        value = found.value + 0.0 * views["student"].sum()
        given = torch.autograd.grad(value, leaves, allow_unused=True)
        whole = torch.cat(
            [(torch.zeros_like(x) if g is None else g).flatten() for g, x in zip(given, leaves, strict=True)]
        )
        out[name] = {"value": float(found.value.detach()), "gradient": described(whole)}
    return out


def supported(spec: Any) -> bool:
    """Whether a term can be had from hidden states, a few positions at a time."""
    return spec.divergence.kind in DIVERGENCES and spec.target.tilt_sign == "none"


def from_hidden(recipe: Recipe) -> Golden:
    """Each term's value and gradient (hidden states, head, bias) without whole distributions, where the path knows the term."""
    names = sorted({"teacher", "plain", "initial", *recipe.views} - {"student"})
    weights = torch.tensor([0.2, 0.0, 0.4, 0.4, 0.7, 0.3], dtype=torch.float64)
    out: Golden = {}
    for name, spec in recipe.terms.items():
        if not supported(spec):
            continue
        leaves = [x.requires_grad_() for x in (_draw(1, N, HIDDEN), _draw(2, WIDTH, HIDDEN), _draw(3, WIDTH))]
        head = HeadSpec(leaves[1], leaves[2], 0.7, 3.0)
        views = {
            n: (_draw(20 + i, N, HIDDEN + 2), HeadSpec(_draw(40 + i, WIDTH, HIDDEN + 2), None, 0.7, 3.0))
            for i, n in enumerate(names)
        }
        views["student"] = (leaves[0].detach(), HeadSpec(leaves[1].detach(), leaves[2].detach(), 0.7, 3.0))
        value, _ = linear_term(
            spec,
            leaves[0],
            head,
            views,
            torch.arange(N) * 5 % WIDTH,
            weights,
            step=STEP,
            special_ids=(0, 3, 11),
            positions=4,
            tile=9,
        )
        whole = torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves)])
        out[name] = {"value": float(value.detach()), "gradient": described(whole)}
    return out


def objectives() -> list[str]:
    """Every recipe, whether or not a run can meet its needs."""
    return recipe_names()


def computed(folder: Path) -> Golden:
    """Everything, as the file holds it."""
    return {
        "trainer": dict(trainer_goldens(folder)),
        "spans": dict(span_goldens(folder)),
        "dense": {n: dense(load_recipe(n)) for n in objectives()},
        "hidden": {n: found for n in objectives() if (found := from_hidden(load_recipe(n)))},
    }

"""Compute weights and signals over a whole optimiser step, independent of its micro-batches.

A quantile, maximum, median or normaliser of weights is a statistic of rows. Over a micro-batch it would depend on
`train.micro_batch_size`. So every micro-batch is first read without gradient, which gives scores [N]. The weights are
computed from all of them together, and each micro-batch then gets its part as `compose.Batch.fixed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hintdistill.objectives.compose import Batch, made_ready
from hintdistill.objectives.terms import BoundTerm
from hintdistill.objectives.weighing import Drawn, Draws, Fixed, KnownScores, scores_of, weigh

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hintdistill.recipes.schema import Recipe


@dataclass(frozen=True)
class TermReading:
    """Hold one term's scores of a micro-batch of N tokens, without gradient, as plain tensors that may be sent between
    processes."""

    scores: dict[str, Tensor]
    own: Tensor
    theirs: Tensor
    then: Tensor | None
    base: Tensor
    """Static weights [N]."""


@dataclass(frozen=True)
class Reading:
    """Hold the scores of all terms of one kind of row for one micro-batch."""

    lengths: tuple[int, ...]
    terms: dict[str, TermReading]


@torch.no_grad()
def read(
    recipe: Recipe, batch: Batch, *, rows: str = "hint", step: int = 0, base: Mapping[str, Tensor] | None = None
) -> Reading:
    """Return the scores by which the terms on these rows weight a micro-batch; the arguments are those of
    `compose.objective`."""
    out = {}
    for name, spec in recipe.terms.items():
        if spec.rows != rows:
            continue
        ready = made_ready(spec, batch, step, None if base is None else base.get(name))
        bank = ready.bank
        then = bank.recorded().detach() if spec.divergence.parameters.get("gap_at") == "sampling" else None
        scores = {s: bank[s] for s in sorted(scores_of(ready.now, recipe.coupling))}
        out[name] = TermReading(scores, bank.own, bank.theirs, then, ready.base.detach())
    return Reading(tuple(batch.lengths), out)


def settle(
    recipe: Recipe, readings: Sequence[Reading], *, step: int = 0, generator: Draws = None
) -> dict[str, list[Fixed]]:
    """Return, by term, the weights and signals of every row over all readings, in their order.

    Args:
        readings: the scores of all micro-batches of the optimiser step.
        generator: for shapes that draw random numbers; one generator, or one for each row of all readings.
    """
    lengths = [n for r in readings for n in r.lengths]
    masks: dict[str, Tensor] = {}
    out: dict[str, list[Fixed]] = {}
    for name in readings[0].terms if readings else ():
        each = [r.terms[name] for r in readings]
        then = [t.then for t in each if t.then is not None]
        bank = KnownScores(
            {s: torch.cat([t.scores[s] for t in each]) for s in each[0].scores},
            torch.cat([t.own for t in each]),
            torch.cat([t.theirs for t in each]),
            torch.cat(then) if then else None,
            lengths,
        )
        now = BoundTerm.at(recipe.terms[name], step)
        base = torch.cat([t.base for t in each])
        out[name] = weigh(now, bank, base, recipe.coupling, Drawn(masks, generator)).split(lengths)
    return out

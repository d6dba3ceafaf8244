"""An extra pass over an optimiser step before its gradient, for recipes whose weights are statistics of the step.

Every process reads each micro-batch once without gradient; the resulting scores, [N] each, are joined, and each slot's
weights are computed from them. Eight rows at once and one row eight times thus train in the same way. It costs one
forward pass of the student and of each view made in the step; if one process reads the whole step at once, no extra
pass is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from hintdistill.objectives.over_step import Reading, TermReading, settle
from hintdistill.recipes.describe import over_step
from hintdistill.training.passes import places
from hintdistill.training.processes import from_each, is_sharded
from hintdistill.training.rows import TraceRow


def draws(seed: int, step: int, keys: Sequence[str]) -> list[torch.Generator]:
    """Return a generator for each slot at an optimiser step; the draws for a slot do not depend on the other slots."""
    out = []
    for key in keys:
        digest = hashlib.blake2b(f"{seed}:{step}:{key}".encode(), digest_size=8).digest()
        out.append(torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1))
    return out


class StepPass:
    """Compute the weights of an optimiser step before its first micro-batch is trained on."""

    def __init__(self, trainer: Any) -> None:
        """Store the arguments; `trainer` is the `HintTrainer` whose steps they are."""
        self.trainer = trainer
        self.reads = any(term.rows == "hint" for term in trainer.recipe.terms.values()) and bool(
            over_step(trainer.recipe)
        )
        """Whether the recipe uses a statistic of the step."""
        self._waiting: list[Sequence[TraceRow]] = []
        self._settled = False

    def begin(self, micro: Sequence[Sequence[TraceRow]]) -> None:
        """Receive the micro-batches of the next optimiser step."""
        cut = len(micro) > 1 or self.trainer.args.world_size > 1
        self._waiting, self._settled = list(micro) if self.reads and cut else [], False

    def before(self, model: Any, rows: Sequence[TraceRow]) -> None:
        """Settle the step before its first micro-batch; rows outside such a step are weighed alone."""
        own = [r.key for r in rows]
        if not any([r.key for r in each] == own for each in self._waiting):
            self.trainer.terms.fixed = {}
        elif not self._settled:
            self.trainer.terms.fixed = {}
            self._settle(model)
            self._settled = True

    @torch.no_grad()
    def _settle(self, model: Any) -> None:
        trainer, step = self.trainer, self.trainer.state.global_step
        readings: list[Reading] = []
        keys: list[str] = []
        for rows in self._waiting:
            done = trainer.passes.student(model, rows, ride=trainer.rides)
            placed = places(rows, "hint")
            if placed:
                hidden = torch.cat([done.hidden[s.key] for _, s in placed])
                slots = [s for _, s in placed]
                views = trainer.views_in_step(placed, done, hidden)
                readings.append(_on_cpu(trainer.terms.reading(slots, hidden, trainer.head, views, step)))
                keys += [s.key for s in slots]
            elif is_sharded(trainer.owner):
                trainer.accompany()
        everyone = from_each((readings, keys))
        joined, every = [r for found, _ in everyone for r in found], [k for _, found in everyone for k in found]
        made = settle(trainer.recipe, joined, step=step, generator=draws(trainer.args.seed, step, every))
        mine, fixed = set(keys), trainer.terms.fixed
        for term, each in made.items():
            for key, value in zip(every, each, strict=True):
                if key in mine:
                    fixed.setdefault(key, {})[term] = value


def _on_cpu(reading: Reading) -> Reading:
    """Return a reading with its tensors on the CPU, so that it can be sent to other processes."""

    def moved(of: TermReading) -> TermReading:
        then = None if of.then is None else of.then.cpu()
        scores = {name: score.cpu() for name, score in of.scores.items()}
        return TermReading(scores, of.own.cpu(), of.theirs.cpu(), then, of.base.cpu())

    return replace(reading, terms={name: moved(term) for name, term in reading.terms.items()})

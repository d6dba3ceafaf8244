"""Make training rows with one slot each, the basis of every format except `hf`.

The formats of other trainers support only one divergence, the forward KL from the stored teacher to the student, and
one number per token. So the weights of a slot's terms are combined: Σ over terms of coefficient · weight, with their
values before the first optimiser step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hintdistill.objectives.schedules import scheduled
from hintdistill.recipes import Recipe
from hintdistill.training.rows import Rows, TraceRow
from hintdistill.training.slots import Slot


@dataclass(frozen=True)
class FlatRow:
    """Hold one step with its context: T step tokens, K kept ids."""

    key: str
    kind: str
    ids: np.ndarray
    """int64 [L]: context and step."""
    start: int
    """Position of the step's first token."""
    weights: np.ndarray
    """float64 [T]: weights summed over the terms, including the coefficients."""
    support_ids: np.ndarray
    """int64 [T, K], -1 pads."""
    teacher: np.ndarray
    """float64 [T, K]: log-probabilities, -inf at pads."""
    tail: np.ndarray
    """float64 [T]: log-probability of the rest; -inf if there is no rest."""

    @property
    def sampled(self) -> np.ndarray:
        """int64 [T]: the step's tokens."""
        return self.ids[self.start :]

    @property
    def carried(self) -> np.ndarray:
        """Return the numbers of the tokens that carry loss."""
        return np.flatnonzero(self.weights)


def flat_row(row: TraceRow, slot: Slot, recipe: Recipe) -> FlatRow:
    """Return one slot of a row as a separate row."""
    weights = np.zeros(slot.length)
    for name, each in slot.weights.items():
        weights += scheduled(recipe.terms[name].coef, 0) * each.numpy().astype(np.float64)
    wide = slot.target.numpy().astype(np.float64)
    return FlatRow(
        key=slot.key,
        kind=slot.kind,
        ids=row.plain(slot).numpy(),
        start=slot.start,
        weights=weights,
        support_ids=slot.support_ids.numpy(),
        teacher=wide[:, :-1],
        tail=wide[:, -1],
    )


def flat_rows(rows: Sequence[TraceRow] | Rows, recipe: Recipe) -> Iterator[FlatRow]:
    """Yield every slot as a separate row, in the rows' order; slots without weight are left out."""
    for row in rows:
        for slot in row.slots:
            flat = flat_row(row, slot, recipe)
            if flat.weights.any():
                yield flat

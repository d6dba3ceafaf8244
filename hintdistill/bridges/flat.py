"""Training rows with one slot each: what every format but `hf` is made of.

A format of another trainer knows one divergence, the forward KL of the stored teacher and the student, and one number per
token. So the weights of a slot's terms are taken together: Σ over terms of coefficient · weight, as they are before the first
optimiser step.
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
    """One step with its context. T step tokens, K kept ids."""

    key: str
    kind: str
    ids: np.ndarray
    """int64 [L]: context and step."""
    start: int
    """Position of the step's first token."""
    weights: np.ndarray
    """float64 [T], summed over the terms, coefficients included."""
    support_ids: np.ndarray
    """int64 [T, K], -1 pads."""
    teacher: np.ndarray
    """float64 [T, K]: log-probabilities, -inf at pads."""
    tail: np.ndarray
    """float64 [T]: log-probability of the rest, -inf if there is none."""

    @property
    def sampled(self) -> np.ndarray:
        """int64 [T]: the step's tokens."""
        return self.ids[self.start :]

    @property
    def carried(self) -> np.ndarray:
        """The numbers of the tokens that carry loss."""
        return np.flatnonzero(self.weights)


def flat_row(row: TraceRow, slot: Slot, recipe: Recipe) -> FlatRow:
    """Return one slot of a row by itself."""
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
    """Yield every slot by itself, in the rows' order; what no term weighs is left out."""
    for row in rows:
        for slot in row.slots:
            flat = flat_row(row, slot, recipe)
            if flat.weights.any():
                yield flat

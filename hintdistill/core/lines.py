"""Fit seconds as a linear function of counted work to measured points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TimeLine:
    """seconds = fixed + per_operation · operations + per_position · scored positions."""

    fixed: float
    per_operation: float
    per_position: float = 0.0

    def seconds(self, calls: float, counted: float, positions: float = 0.0) -> float:
        """Return the seconds for the given numbers of calls, operations and scored positions."""
        return self.fixed * calls + self.per_operation * counted + self.per_position * positions


def fit(points: Sequence[tuple[float, float, float]]) -> TimeLine:
    """Return the line fitted to (operations, positions, seconds) without negative coefficients.

    Relative errors are minimised, because sizes differ by orders of magnitude.
    """
    rows = np.array([[1.0, counted, positions] for counted, positions, _ in points])
    seconds = np.array([s for *_, s in points])
    best, least = np.zeros(3), np.inf
    for use in ([1], [0, 1], [1, 2], [0, 1, 2]):
        if len(use) > len(points):
            continue
        found = np.linalg.lstsq(rows[:, use] / seconds[:, None], np.ones(len(seconds)), rcond=None)[0]
        error = float(np.abs(rows[:, use] @ found / seconds - 1).max())
        if (found >= 0).all() and error < least - 1e-6:
            best, least = np.zeros(3), error
            best[use] = found
    return TimeLine(float(best[0]), float(best[1]), float(best[2]))


@dataclass(frozen=True)
class Histogram:
    """Summarise the lengths of items of one kind, in tokens."""

    count: int
    total: int
    shortest: int
    median: int
    p90: int
    p99: int
    longest: int

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Histogram:
        """Return the statistics of these lengths; all are zero if there are no lengths."""
        values = np.array(list(lengths), np.int64)
        if not len(values):
            return cls(0, 0, 0, 0, 0, 0, 0)
        marks = np.quantile(values, (0.0, 0.5, 0.9, 0.99, 1.0), method="higher").astype(int).tolist()
        return cls(len(values), int(values.sum()), *marks)

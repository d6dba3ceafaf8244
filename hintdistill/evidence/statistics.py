"""Intervals over seeds and tasks, paired differences, and a straight line.

S seeds, N tasks. Two things vary: which seed trained the student, and which tasks it was asked. Both are resampled, each
with replacement (crossed bootstrap: Owen 2007, "The pigeonhole bootstrap"), because intervals over tasks alone are far
too narrow where seeds differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f}–{self.high:.3f})"


def crossed_bootstrap(statistic: Callable[..., float], *tables: np.ndarray, n: int = 4000, seed: int = 0) -> Interval:
    """The statistic of tables [S, N] (all of one shape) with its interval; seeds and tasks are resampled together.

    Because every table is resampled alike, a difference or a ratio of tables is a paired one.

    Raises:
        ValueError: the tables differ in shape or are empty.
    """
    shapes = {t.shape for t in tables}
    if len(shapes) != 1 or not tables[0].size:
        raise ValueError(f"tables of one shape [seeds, tasks] are needed, not {sorted(shapes)}")
    rng = np.random.default_rng(seed)
    seeds, tasks = tables[0].shape
    draws = np.empty(n)
    for i in range(n):
        at = np.ix_(rng.integers(seeds, size=seeds), rng.integers(tasks, size=tasks))
        draws[i] = statistic(*(t[at] for t in tables))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(float(statistic(*tables)), float(low), float(high))


def mean_of(table: np.ndarray) -> float:
    """Mean over seeds and tasks."""
    return float(table.mean())


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of a minus mean of b."""
    return float(a.mean() - b.mean())


def gap_closed(student: np.ndarray, initial: np.ndarray, hinted: np.ndarray) -> float:
    """(student − initial) / (hinted − initial); not a number where the hint gains nothing."""
    gap = hinted.mean() - initial.mean()
    return float((student.mean() - initial.mean()) / gap) if gap > 0 else float("nan")


def bootstrap_ratio(numerator: Sequence[float], denominator: Sequence[float], n: int = 4000, seed: int = 0) -> Interval:
    """1 − Σ numerator / Σ denominator over items, with the interval over items. Raises ValueError for no items."""
    top, bottom = np.asarray(numerator, float), np.asarray(denominator, float)
    if not len(top) or len(top) != len(bottom):
        raise ValueError(f"{len(top)} numerators for {len(bottom)} denominators")
    rng = np.random.default_rng(seed)
    at = rng.integers(len(top), size=(n, len(top)))
    draws = 1 - top[at].sum(1) / bottom[at].sum(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(1 - top.sum() / bottom.sum()), float(low), float(high))


@dataclass(frozen=True)
class Line:
    """A least-squares line."""

    slope: float
    intercept: float
    r2: float
    """Share of the variance of y that the line explains; not a number for fewer than three points or a constant y."""
    points: int


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Least squares of y on x; None for fewer than three points or a constant x."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    if len(a) < 3 or np.ptp(a) == 0:
        return None
    slope, intercept = np.polyfit(a, b, 1)
    spread = float(((b - b.mean()) ** 2).sum())
    rest = float(((b - slope * a - intercept) ** 2).sum())
    return Line(float(slope), float(intercept), 1 - rest / spread if spread else float("nan"), len(a))

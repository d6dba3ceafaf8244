"""Compute intervals over seeds and tasks, paired differences, and a fitted line.

There are S seeds and N tasks. Results vary with the seed that trained the student and with the tasks it was given. Both
are resampled with replacement (crossed bootstrap: Owen 2007, "The pigeonhole bootstrap"), because intervals over tasks
alone are far too narrow if seeds differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Interval:
    """Hold an estimate with its 95 % percentile interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f}–{self.high:.3f})"


def crossed_bootstrap(statistic: Callable[..., Any], *tables: np.ndarray, n: int = 4000, seed: int = 0) -> Interval:
    """Return a statistic of the means of tables [S, N], all of the same shape, with its interval; seeds and tasks are
    resampled jointly.

    All tables use the same resamples, so a difference or ratio of tables is paired.

    Args:
        statistic: function of one array per table, each with the table's mean in every resample.

    Raises:
        ValueError: the tables differ in shape or are empty.
    """
    means = resampled_means(*tables, n=n, seed=seed)
    draws = np.asarray(statistic(*means), float)
    estimate = float(statistic(*(np.asarray(t, float).mean() for t in tables)))
    if np.isnan(draws).all():
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(estimate, float(low), float(high))


def resampled_means(*tables: np.ndarray, n: int, seed: int = 0) -> list[np.ndarray]:
    """Return the mean [n] of each table over the same resampled seeds and tasks. Raises ValueError as
    `crossed_bootstrap` does."""
    shapes = {t.shape for t in tables}
    if len(shapes) != 1 or not tables[0].size:
        raise ValueError(f"tables of one shape [seeds, tasks] are needed, not {sorted(shapes)}")
    rng = np.random.default_rng(seed)
    seeds, tasks = tables[0].shape
    # how often each is drawn says all: the mean of a resampled table is bilinear in these counts
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), n) / seeds
    by_task = rng.multinomial(tasks, np.full(tasks, 1 / tasks), n) / tasks
    return [((by_seed @ np.asarray(t, float)) * by_task).sum(1) for t in tables]


def mean_of(mean: Any) -> Any:
    """Return the mean unchanged."""
    return mean


def difference(a: Any, b: Any) -> Any:
    """Return the mean of a minus the mean of b."""
    return a - b


def ratio(a: Any, b: Any) -> Any:
    """Return the mean of a divided by the mean of b; NaN where b is zero."""
    b = np.asarray(b, float)
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)[()]


def gap_closed(student: Any, initial: Any, hinted: Any) -> Any:
    """Return (student − initial) / (hinted − initial) of means; NaN where the hint gains nothing."""
    return ratio(np.asarray(student, float) - initial, np.asarray(hinted, float) - initial)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple tests (Holm 1979), which bounds the chance of any false rejection.

    The k-th smallest of m is multiplied by m - k + 1; adjusted values never decrease and never exceed 1. The order is
    kept.

    Raises:
        ValueError: a value is not between 0 and 1.
    """
    if any(not 0.0 <= p <= 1.0 for p in p_values):
        raise ValueError(f"p-values must be between 0 and 1, not {list(p_values)}")
    out = [0.0] * len(p_values)
    least = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        out[at] = least
    return out


def over_groups(values: Sequence[Sequence[float]], of: str = "median", n: int = 2000, seed: int = 0) -> Interval:
    """Return the median (or mean) of all values, with the interval over groups and over the values in each group.

    A group is a seed. Groups and values are resampled with replacement; empty groups are ignored. Raises ValueError if
    there are no values.
    """
    groups = [np.asarray(v, float) for v in values if len(v)]
    if not groups:
        raise ValueError("no values")
    statistic: Callable[[np.ndarray], Any] = np.median if of == "median" else np.mean
    rng = np.random.default_rng(seed)
    draws = np.empty(n)
    for i in range(n):
        drawn = [groups[g] for g in rng.integers(len(groups), size=len(groups))]
        draws[i] = statistic(np.concatenate([g[rng.integers(len(g), size=len(g))] for g in drawn]))
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(statistic(np.concatenate(groups))), float(low), float(high))


def mean_over_groups(values: Sequence[float], groups: Sequence[str], n: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of all values with its interval over groups: whole groups are resampled, each with all its
    values.

    Args:
        groups: the group of each value; values of one group are not independent.

    Raises:
        ValueError: there are no values, or the numbers of values and groups differ.
    """
    return means_over_groups([(values, groups)], n, seed)[0]


AT_ONCE = 1 << 18
"""Number of group draws held in memory at once; 2,000 resamples of 30,000 groups would take half a gigabyte."""


def means_over_groups(
    measures: Sequence[tuple[Sequence[float], Sequence[str]]], n: int = 2000, seed: int = 0
) -> list[Interval]:
    """Return the means of several measures, each with its values and their groups; see `mean_over_groups`.

    Every measure is resampled with the same seed, so measures with the same number of groups share their draws.

    Raises:
        ValueError: see `mean_over_groups`.
    """
    found, widths = list[Interval](), dict[int, list[int]]()
    columns = list[tuple[np.ndarray, np.ndarray]]()
    for i, (values, groups) in enumerate(measures):
        if not len(values) or len(values) != len(groups):
            raise ValueError(f"{len(values)} values for {len(groups)} groups")
        names, at = np.unique(np.asarray(groups), return_inverse=True)
        data = np.asarray(values, float)
        columns.append((np.bincount(at, data, len(names)), np.bincount(at, minlength=len(names)).astype(float)))
        widths.setdefault(len(names), []).append(i)
        found.append(Interval(float(data.mean()), 0.0, 0.0))
    for width, members in widths.items():
        table = np.stack([column for i in members for column in columns[i]], 1)
        drawn = _resampled_sums(table, width, n, seed)
        for k, i in enumerate(members):
            low, high = np.quantile(drawn[:, 2 * k] / drawn[:, 2 * k + 1], (0.025, 0.975))
            found[i] = replace(found[i], low=float(low), high=float(high))
    return found


def _resampled_sums(table: np.ndarray, width: int, n: int, seed: int) -> np.ndarray:
    """Return the sums [n, C] of the columns of a table [width, C] over `width` rows, drawn `n` times with
    replacement."""
    rng, out = np.random.default_rng(seed), np.empty((n, table.shape[1]))
    some = max(1, AT_ONCE // width)
    for begin in range(0, n, some):
        rows = min(some, n - begin)
        drawn = rng.integers(width, size=(rows, width)) + width * np.arange(rows)[:, None]
        # how often each row is drawn says all
        out[begin : begin + rows] = np.bincount(drawn.ravel(), minlength=rows * width).reshape(rows, width) @ table
    return out


def bootstrap_ratio(numerator: Sequence[float], denominator: Sequence[float], n: int = 4000, seed: int = 0) -> Interval:
    """Return 1 − Σ numerator / Σ denominator over items, with the interval over items. Raises ValueError if there are
    no items."""
    top, bottom = np.asarray(numerator, float), np.asarray(denominator, float)
    if not len(top) or len(top) != len(bottom):
        raise ValueError(f"{len(top)} numerators for {len(bottom)} denominators")
    rng = np.random.default_rng(seed)
    at = rng.integers(len(top), size=(n, len(top)))
    draws = 1 - top[at].sum(1) / bottom[at].sum(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(1 - top.sum() / bottom.sum()), float(low), float(high))


@dataclass(frozen=True)
class FittedLine:
    """Hold a least-squares line."""

    slope: float
    intercept: float
    r2: float
    """Share of the variance of y that the line explains; NaN for a constant y."""
    r2_identity: float
    """The same share for the fixed line y = x; below zero if the mean would do better."""
    points: int


def fit_line(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> FittedLine | None:
    """Fit y on x by least squares; return None for fewer than three points or a constant x."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    if len(a) < 3 or np.ptp(a) == 0:
        return None
    slope, intercept = np.polyfit(a, b, 1)
    spread = float(((b - b.mean()) ** 2).sum())
    rest = float(((b - slope * a - intercept) ** 2).sum())
    off = float(((b - a) ** 2).sum())
    known = spread > 1e-12
    return FittedLine(
        float(slope),
        float(intercept),
        1 - rest / spread if known else float("nan"),
        1 - off / spread if known else float("nan"),
        len(a),
    )

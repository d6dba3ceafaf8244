"""Compare the repair predicted before training with the repair measured after it, over arms and error classes.

A point is one error class in one arm of one regime. R² is given for the fitted line and for y = x; their intervals come from
resampling seeds and tasks in the measurements and seeds in the predictions, all points together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hintdistill.core.statistics import Interval, fit_line

Result = Mapping[str, Any]
RARE = 0.02
"""Errors in a smaller share of episodes are left out: a repair rate of an error that hardly occurs is noise."""


@dataclass(frozen=True)
class Point:
    """One error class in one arm; S seeds, N tasks."""

    regime: str
    arm: str
    error_class: str
    before: np.ndarray
    """[S, N]: whether the initial policy's episode had the error."""
    after: np.ndarray
    """[S, N]: whether the trained student's had."""
    predicted: np.ndarray
    """[S]"""
    low: float
    """Mean over seeds of the lower end of the prediction's interval."""
    high: float


def points_of(
    regime: str, arm: str, shared: Mapping[int, Result], seeds: Mapping[int, Result], setting: str
) -> list[Point]:
    """The points of one arm, from the seeds whose prediction knows the class."""
    out = []
    classes = sorted({p["error_class"] for r in seeds.values() for p in r["predicted"]})
    for name in classes:
        known = {k: p for k, r in sorted(seeds.items()) for p in r["predicted"] if p["error_class"] == name}
        before = _errors([shared[k]["initial"][setting] for k in known], name)
        after = _errors([seeds[k]["outcomes"][setting] for k in known], name)
        if before.mean() < RARE:
            continue
        repairs = [p["repair"] for p in known.values()]
        out.append(
            Point(
                regime,
                arm,
                name,
                before,
                after,
                np.array([r["mean"] for r in repairs]),
                float(np.mean([r["low"] for r in repairs])),
                float(np.mean([r["high"] for r in repairs])),
            )
        )
    return out


def against(points: Sequence[Point], n: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Points with intervals, the line through them, and the intervals of both R²."""
    rng = np.random.default_rng(seed)
    measured = np.empty((n, len(points)))
    predicted = np.empty((n, len(points)))
    for i in range(n):
        # arms that were measured on the same seeds and tasks are resampled alike
        drawn = {size: rng.integers(size, size=size) for size in sorted({x for p in points for x in p.before.shape})}
        for j, p in enumerate(points):
            at, tasks = (drawn[size] for size in p.before.shape)
            base = p.before[np.ix_(at, tasks)].mean()
            measured[i, j] = 1 - p.after[np.ix_(at, tasks)].mean() / base if base else np.nan
            predicted[i, j] = p.predicted[at].mean()
    rows: list[dict[str, Any]] = [
        {
            "regime": p.regime,
            "arm": p.arm,
            "error_class": p.error_class,
            "predicted": float(p.predicted.mean()),
            "low": p.low,
            "high": p.high,
            "measured": _interval(1 - p.after.mean() / p.before.mean(), measured[:, j]),
        }
        for j, p in enumerate(points)
    ]
    line = fit_line([r["predicted"] for r in rows], [r["measured"].mean for r in rows])
    if line is None:
        return {"points": rows, "line": None}
    fits = [f for x, y in zip(predicted, measured, strict=True) if not np.isnan(y).any() and (f := fit_line(x, y))]
    return {
        "points": rows,
        "line": asdict(line)
        | {
            "r2": _interval(line.r2, [f.r2 for f in fits]),
            "r2_identity": _interval(line.r2_identity, [f.r2_identity for f in fits]),
        },
    }


def _errors(outcomes: Sequence[Sequence[Mapping[str, Any]]], name: str) -> np.ndarray:
    return np.array([[float(name in o["errors"]) for o in rows] for rows in outcomes])


def _interval(mean: float, draws: Sequence[float] | np.ndarray) -> Interval:
    known = np.asarray(draws, float)
    known = known[~np.isnan(known)]
    if not len(known):
        return Interval(float(mean), float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(float(mean), float(low), float(high))

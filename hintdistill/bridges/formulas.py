"""Compute a row's loss, the toolkit's forward KL with its tail, and the largest error of a format that keeps less of
the teacher.

Everything is float64. `student` is always log-probabilities of the whole vocabulary at the step's positions, [T, V].
"""

from __future__ import annotations

import numpy as np

from hintdistill.bridges.flat import FlatRow
from hintdistill.bridges.narrow import Tail, log_sum


def at(student: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the student's log-probabilities of ids [T, K]; -inf at -1."""
    found = np.take_along_axis(student, np.maximum(ids, 0), 1)
    return np.where(ids >= 0, found, -np.inf)


def outside(student: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the student's log-probability of everything except the ids, [T]."""
    rest = student.copy()
    rows, columns = np.nonzero(ids >= 0)
    rest[rows, ids[rows, columns]] = -np.inf
    return log_sum(rest)


def products(teacher: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return T·(log T - other) entry by entry; 0 where the teacher's probability is zero."""
    there = np.isfinite(teacher)
    gap = np.where(there, teacher, 0.0) - np.where(there, other, 0.0)
    return np.where(there, np.exp(np.where(there, teacher, 0.0)) * gap, 0.0)


def forward_kl(row: FlatRow, student: np.ndarray) -> float:
    """Return Σ_t weight_t · KL(teacher ‖ student) over the kept ids and the rest, nats."""
    kept = products(row.teacher, at(student, row.support_ids)).sum(1)
    rest = products(row.tail, outside(student, row.support_ids))
    return float((row.weights * (kept + rest))[row.carried].sum())


def bound(whole: FlatRow, narrowed: FlatRow, student: np.ndarray, tail: Tail) -> float:
    """Return the largest difference of Σ_t weight_t · ℓ_t between the narrowed row and the whole row, nats.

    Let m be the teacher's mass that is not kept, and B the largest |log T - log S| of an entry (in the rest for `keep`
    and `drop`, also in the kept ids for `renormalise`). Then, per token:

    - `keep`: the rest becomes one entry: m·KL(T given the rest ‖ S given the rest) <= 2·m·B.
    - `drop`: the rest is left out: |Σ over the rest of T·(log T - log S)| <= m·B.
    - `renormalise`: the kept part is divided by 1 - m: <= m·B of the rest + m·B of the kept - log(1 - m).
    """
    gap = np.abs(_gap(whole.teacher, at(student, whole.support_ids)))
    gap_tail = np.abs(_gap(whole.tail, outside(student, whole.support_ids)))
    kept = (whole.support_ids[:, :, None] == narrowed.support_ids[:, None, :]).any(2) & (whole.support_ids >= 0)
    mass = np.exp(np.logaddexp(log_sum(np.where(kept, -np.inf, whole.teacher)), whole.tail))
    if tail == "keep":
        # the tail of before was one entry already
        mass = np.where(kept.sum(1) == (whole.support_ids >= 0).sum(1), 0.0, mass)
    of_rest = np.maximum(np.where(kept, 0.0, gap).max(1), gap_tail)
    if tail == "keep":
        each = 2 * mass * of_rest
    elif tail == "drop":
        each = mass * of_rest
    else:
        each = mass * (of_rest + np.where(kept, gap, 0.0).max(1)) - np.log1p(-np.minimum(mass, 1 - 1e-12))
    return float((np.abs(whole.weights) * each)[whole.carried].sum())


def rounding(row: FlatRow, student: np.ndarray, mass: float) -> float:
    """Return the largest error of Σ_t weight_t · ℓ_t if the rests of teacher and student are wrong by a probability
    `mass`, nats.

    The rest's term is T·(log T - log S): a change of T by `mass` contributes mass·(1 + |log T - log S|), and a change
    of S contributes T·mass/S. Both use probabilities of at least `mass`.
    """
    if not mass:
        return 0.0
    teacher = np.maximum(np.exp(row.tail), mass)
    ours = np.maximum(np.exp(outside(student, row.support_ids)), mass)
    each = mass * (1 + np.abs(np.log(teacher / ours)) + teacher / ours)
    return float((np.abs(row.weights) * each)[row.carried].sum())


def _gap(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Return log T - log S; 0 where the teacher's probability is zero."""
    there = np.isfinite(teacher)
    return np.where(there, np.where(there, teacher, 0.0) - np.where(there, student, 0.0), 0.0)

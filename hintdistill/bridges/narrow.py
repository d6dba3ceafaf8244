"""Reduce the ids per token to the sampled one and the teacher's most likely ones, and handle the probability of the
rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, overload

import numpy as np

from hintdistill.core.scores import Target
from hintdistill.rescoring.stored import StoredTargets

Tail = Literal["keep", "drop", "renormalise"]
"""Treatment of the rest: one entry for it, nothing, or the kept ids are scaled up to sum to one."""


def kept_columns(target: Target, k: int | None) -> np.ndarray:
    """Return which columns of the support are kept, bool [T, K]: the sampled id and the teacher's k - 1 most likely others."""
    ids = target.support_ids
    there: np.ndarray = ids >= 0
    if k is None or k >= ids.shape[1]:
        return there
    rank = np.where(there, target.teacher_logprobs.astype(np.float64), -np.inf)
    rank[ids == target.step_ids[:, None]] = np.inf
    order = np.argsort(-rank, axis=1, kind="stable")[:, :k]
    chosen = np.zeros_like(there)
    np.put_along_axis(chosen, order, True, axis=1)
    kept: np.ndarray = chosen & there
    return kept


def narrow(target: Target, k: int | None, tail: Tail) -> Target:
    """Return the target with at most `k` ids per token.

    Args:
        k: number of ids per token, including the sampled one; None keeps all stored ids.
        tail: see `Tail`. Teacher and plain view are treated in the same way. The computation uses float64, the result
            float32.
    """
    kept = kept_columns(target, k)
    width = max(1, int(kept.sum(1).max()))
    # kept columns first, in the order in which they are stored
    order = np.argsort(~kept, axis=1, kind="stable")[:, :width]
    here = np.take_along_axis(kept, order, 1)
    ids = np.where(here, np.take_along_axis(target.support_ids, order, 1), -1)
    teacher = _view(target.teacher_logprobs, target.teacher_tail, kept, (order, here), tail)
    plain = _view(target.plain_logprobs, target.plain_tail, kept, (order, here), tail)
    return replace(
        target,
        support_ids=ids,
        teacher_logprobs=teacher[0],
        teacher_tail=teacher[1],
        plain_logprobs=plain[0],
        plain_tail=plain[1],
    )


def _view(
    logprobs: np.ndarray, rest: np.ndarray, kept: np.ndarray, chosen: tuple[np.ndarray, np.ndarray], tail: Tail
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-probabilities of the kept ids [T, k] and of the rest [T]."""
    order, here = chosen
    wide = logprobs.astype(np.float64)
    few = np.where(here, np.take_along_axis(wide, order, 1), -np.inf)
    if tail == "keep":
        outside = np.logaddexp(log_sum(np.where(kept, -np.inf, wide)), rest.astype(np.float64))
        return few.astype(np.float32), outside.astype(np.float32)
    if tail == "renormalise":
        few = few - log_sum(few)[:, None]
    return few.astype(np.float32), np.full(len(few), -np.inf, np.float32)


def log_sum(logprobs: np.ndarray) -> np.ndarray:
    """Return the logarithm of the sum of probabilities [T] over the last axis; -inf if it is empty."""
    top = logprobs.max(-1, initial=-np.inf)
    base = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total: np.ndarray = base + np.log(np.exp(logprobs - base[..., None]).sum(-1))
    return total


class Narrowed(StoredTargets):
    """Represent stored targets that are narrowed on access."""

    def __init__(self, targets: StoredTargets, k: int | None, tail: Tail) -> None:
        super().__init__(targets.source, targets.heads)
        self._k, self._tail = k, tail

    @overload
    def __getitem__(self, at: int) -> Target: ...

    @overload
    def __getitem__(self, at: slice) -> StoredTargets: ...

    def __getitem__(self, at: int | slice) -> Target | StoredTargets:
        """Return one target, read and narrowed, or a selection, of which nothing is read yet."""
        if isinstance(at, slice):
            return Narrowed(super().__getitem__(at), self._k, self._tail)
        return narrow(super().__getitem__(at), self._k, self._tail)

"""Targets → training rows with static weights.

A batch's loss is the mean over its rows of `coef · Σ_t weight_t · W_t · ℓ_t`, summed over the recipe's terms. The static
weights (loss span and normaliser) are fixed over the whole data set before training starts, so that eight rows at once and
eight rows accumulated give the same gradient; what a recipe weighs by the views themselves (W) comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from hintdistill.config import TrainSection
from hintdistill.recipes import Term
from hintdistill.scores import Target


@dataclass(frozen=True)
class TrainRow:
    """One step to train on: T scored tokens, K kept entries."""

    key: str
    kind: Literal["hint", "anchor"]
    ids: torch.Tensor
    """int64 [C + T]: context and step, no hint."""
    hinted_ids: torch.Tensor
    """int64 [C + H + T]: what an in-step teacher reads."""
    length: int
    """T"""
    weights: dict[str, torch.Tensor]
    """float32 [T] by term: its loss span, normalised over all rows of its kind."""
    span: tuple[int, int]
    """Quoted tokens, half-open."""
    support_ids: torch.Tensor
    """int64 [T, K], -1 pads"""
    target: torch.Tensor
    """float32 [T, K+1]: stored teacher log-probabilities and tail."""
    plain: torch.Tensor
    """float32 [T, K+1]: stored plain log-probabilities and tail."""
    decision: int
    """Index of the decision token, -1 where there is none."""

    @property
    def token_weights(self) -> torch.Tensor:
        """float32 [T]: the weights of the first term on this row."""
        return next(iter(self.weights.values()))

    def facts(self) -> dict[str, torch.Tensor]:
        """What the recipe's weights may ask of a row, [T] each."""
        start, end = self.span
        index = torch.arange(self.length)
        quoted = ((index >= start) & (index < end)).float()
        return {"in_quote": quoted, "error_span": quoted, "since_error": (index - start).float(),
                "turn_is_target": torch.ones(self.length)}  # fmt: skip


class RowDataset(Dataset[TrainRow]):
    """Rows in a fixed order."""

    def __init__(self, rows: Sequence[TrainRow]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TrainRow:
        return self.rows[index]


def loss_weights(target: Target, term: Term) -> np.ndarray:
    """Weight of each step token before normalisation, float32 [T]: the term's loss span, and what it takes out of an anchor."""
    if target.kind == "anchor":
        return (np.exp(target.plain_sampled) >= term.min_probability).astype(np.float32)
    weights = np.ones(len(target.step_ids), np.float32)
    if term.span == "step":
        return weights
    start, end = target.span
    if term.span == "quote_weighted":
        weights[start:end] = term.quote_weight
        return weights
    weights[:] = 0.0
    weights[start : end if term.span == "quote" else None] = 1.0
    return weights


def build_rows(targets: Sequence[Target], config: TrainSection) -> list[TrainRow]:
    """Rows of accepted targets; the weights of each term average to one over the whole data set.

    Targets that no term of the recipe reads make no row: those of a kind it has no term for, and anchors on which the
    initial policy wavered at every token.
    """
    terms = config.objective.terms
    raw = [{n: loss_weights(t, term) for n, term in terms.items() if term.rows == t.kind} for t in targets]
    pairs = [(t, w) for t, w in zip(targets, raw, strict=True) if any(x.any() for x in w.values())]
    pairs.sort(key=lambda pair: pair[0].kind == "anchor")
    for name, term in terms.items():
        members = [w for _, w in pairs if name in w and w[name].any()]
        total = sum(float(w[name].sum()) for w in members)
        for weights in members:
            share = 1.0 / weights[name].sum() if term.normalize == "per_row" else len(members) / total
            weights[name] = weights[name] * np.float32(share * len(pairs) / len(members))
    return [_row(t, w) for t, w in pairs]


def _row(target: Target, weights: dict[str, np.ndarray]) -> TrainRow:
    context, step = target.context_ids, target.step_ids
    hinted = np.concatenate([context[: target.insert_at], target.block_ids, context[target.insert_at :]])
    return TrainRow(
        key=target.key,
        kind=target.kind,
        ids=torch.from_numpy(np.concatenate([context, step])),
        hinted_ids=torch.from_numpy(np.concatenate([hinted, step])),
        length=len(step),
        weights={n: torch.from_numpy(w) for n, w in weights.items()},
        span=target.span,
        support_ids=torch.from_numpy(target.support_ids),
        target=_with_tail(target.teacher_logprobs, target.teacher_tail),
        plain=_with_tail(target.plain_logprobs, target.plain_tail),
        decision=-1
        if target.measurement is None or target.measurement.position is None
        else target.measurement.position,
    )


def _with_tail(kept: np.ndarray, tail: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([kept, tail[:, None]], 1).astype(np.float32))

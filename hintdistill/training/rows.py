"""Targets → training rows with static weights.

A batch's loss is the mean over its rows of `weight · Σ_t token_weight_t · ℓ_t`. All weights are fixed before training
starts, so that eight rows at once and eight rows accumulated give the same gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from hintdistill.config import TrainSection
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
    token_weights: torch.Tensor
    """float32 [T]"""
    support_ids: torch.Tensor
    """int64 [T, K], -1 pads"""
    target: torch.Tensor
    """float32 [T, K+1]: stored teacher log-probabilities and tail."""
    plain: torch.Tensor
    """float32 [T, K+1]: stored plain log-probabilities and tail."""
    decision: int
    """Index of the decision token, -1 where there is none."""


class RowDataset(Dataset[TrainRow]):
    """Rows in a fixed order."""

    def __init__(self, rows: Sequence[TrainRow]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TrainRow:
        return self.rows[index]


def loss_weights(target: Target, config: TrainSection) -> np.ndarray:
    """Weight of each step token before normalisation, float32 [T]: the loss span."""
    weights = np.ones(len(target.step_ids), np.float32)
    if target.kind == "anchor":
        return (np.exp(target.plain_sampled) >= config.anchor.min_probability).astype(np.float32)
    if config.loss_span == "step":
        return weights
    start, end = target.span
    if config.loss_span == "quote":
        weights[:] = 0.0
        weights[start:end] = 1.0
    else:
        weights[start:end] = config.quote_weight
    return weights


def build_rows(targets: Sequence[Target], config: TrainSection) -> list[TrainRow]:
    """Rows of accepted targets; hints and anchors each average to their coefficient over the whole data set."""
    # an anchor on which the initial policy wavered at every token holds nothing
    targets = [t for t in targets if loss_weights(t, config).any()]
    kinds = {kind: [t for t in targets if t.kind == kind] for kind in ("hint", "anchor")}
    coefficient = {"hint": 1.0, "anchor": config.anchor.weight}
    rows = []
    for kind, members in kinds.items():
        raw = [loss_weights(t, config) for t in members]
        total = sum(float(w.sum()) for w in raw)
        for target, weights in zip(members, raw, strict=True):
            share = 1.0 / weights.sum() if config.normalize == "row" else len(members) / total
            scale = coefficient[kind] * len(targets) / len(members)
            rows.append(_row(target, weights * np.float32(share * scale)))
    return rows


def _row(target: Target, weights: np.ndarray) -> TrainRow:
    context, step = target.context_ids, target.step_ids
    hinted = np.concatenate([context[: target.insert_at], target.block_ids, context[target.insert_at :]])
    return TrainRow(
        key=target.key,
        kind=target.kind,
        ids=torch.from_numpy(np.concatenate([context, step])),
        hinted_ids=torch.from_numpy(np.concatenate([hinted, step])),
        length=len(step),
        token_weights=torch.from_numpy(weights),
        support_ids=torch.from_numpy(target.support_ids),
        target=_with_tail(target.teacher_logprobs, target.teacher_tail),
        plain=_with_tail(target.plain_logprobs, target.plain_tail),
        decision=-1
        if target.measurement is None or target.measurement.position is None
        else target.measurement.position,
    )


def _with_tail(kept: np.ndarray, tail: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([kept, tail[:, None]], 1).astype(np.float32))

"""Measure drift: KL(initial ‖ student) on steps where nothing should have changed.

Both models read the same plain contexts; the KL is computed over the whole vocabulary at every token of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.transformers import TransformersEngine


@dataclass(frozen=True)
class Movement:
    """Hold the distance of the student from the initial policy on a set of steps."""

    steps: int
    tokens: int
    kl_per_token: float
    """Mean KL(initial ‖ student), nats per token."""
    kl_per_step: float
    """Mean over steps of the KL summed over the step, nats."""
    kl_p99: float
    """99th percentile over tokens, nats."""
    top1_flip_rate: float
    """Share of tokens whose most likely entry changed."""


def movement(
    initial: TransformersEngine, student: TransformersEngine, requests: Sequence[ScoreRequest], batch: int = 32
) -> Movement | None:
    """Compare two engines on the scored ranges; return None if there are no requests."""
    kls, flips = token_movement(initial, student, requests, batch)
    if not kls:
        return None
    flat = np.concatenate(kls)
    return Movement(
        steps=len(kls),
        tokens=len(flat),
        kl_per_token=float(flat.mean()),
        kl_per_step=float(np.mean([k.sum() for k in kls])),
        kl_p99=float(np.percentile(flat, 99)),
        top1_flip_rate=flips / len(flat),
    )


def token_movement(
    initial: TransformersEngine, student: TransformersEngine, requests: Sequence[ScoreRequest], batch: int = 32
) -> tuple[list[np.ndarray], int]:
    """Return KL(initial ‖ student) of each token of each scored range, float32 [T] nats, and the number of changed
    first choices."""
    kls: list[np.ndarray] = []
    flips = 0
    for at in range(0, len(requests), batch):
        part = requests[at : at + batch]
        for before, after in zip(initial.logprobs(part), student.logprobs(part), strict=True):
            kl = (before.exp() * (before - after)).sum(-1).clamp(min=0)
            kls.append(kl.float().cpu().numpy())
            flips += int((before.argmax(-1) != after.argmax(-1)).sum())
    return kls, flips

"""Compute the outcome-reward term: a clipped policy gradient over the sampled tokens, from each rollout's advantage.

It is added to the targeted terms on the same rollouts: `objective(…, reward_loss=outcome_loss(…)[0])`, for a recipe
with additive coupling. There are N tokens in R rows; a row is one step of a rollout and has its rollout's advantage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hintdistill.objectives.checks import rows_fill, same_shape
from hintdistill.objectives.signals import policy_gradient


def outcome_loss(
    student: Tensor,
    behaviour: Tensor,
    advantages: Tensor,
    lengths: Sequence[int],
    *,
    weights: Tensor | None = None,
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.2,
    cap: float | None = None,
    row_ratio: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Return the mean over rows of weight_r · Σ_t ℓ_t, with ℓ_t from `signals.policy_gradient`: a scalar and its
    metrics.

    PPO's clipped surrogate with GRPO's advantage (arXiv 2402.03300); with 1/weight equal to the mean length of a row,
    it becomes a mean over tokens, as in DAPO (arXiv 2503.14476).

    Args:
        student: log-probability of each sampled token now [N], with gradient, at temperature 1.
        behaviour: the same at the time of sampling [N], as recorded in the trace.
        advantages: one per row [R].
        lengths: tokens of each row; all positive.
        weights: one per row [R]; default: 1 / mean length of these rows.
        clip_low, clip_high: the ratio counts within [1 - low, 1 + high]; None disables the limit on that side.
        cap: truncated importance sampling instead of clipping (SDPO: 2).
        row_ratio: one ratio per row, its geometric mean over tokens (GSPO).

    Returns:
        The scalar, and the metrics `reward/ratio_mean`, `reward/ratio_clipped`, `reward/dead_fraction` (tokens without an
        advantage), `reward/advantage_abs` (mean |A| over rows) and `reward/behaviour_gap` (mean |now - then|, nats).

    Raises:
        ValueError: shapes do not match, there are no rows, a row is empty, or a number is not finite.
    """
    same_shape(student=student, behaviour=behaviour)
    rows_fill(len(student), lengths)
    rows = len(lengths)
    if not rows or min(lengths) < 1:
        raise ValueError(
            f"every row must have at least one token, and at least one row is needed; the lengths are {list(lengths)}"
        )
    if len(advantages) != rows or (weights is not None and len(weights) != rows):
        given = "advantages" if len(advantages) != rows else "weights"
        raise ValueError(f"{given}: one per row is needed, for {rows} rows")
    if not bool(torch.isfinite(behaviour).all() and torch.isfinite(advantages).all()):
        raise ValueError("behaviour log-probabilities and advantages must be finite")
    if cap is not None:
        clip_low = clip_high = None
    counts = torch.tensor(list(lengths), device=student.device)
    spread = advantages.to(student).repeat_interleave(counts)
    per_token, found = policy_gradient(
        student,
        spread,
        behaviour,
        clip_low=clip_low,
        clip_high=clip_high,
        cap=cap,
        lengths=lengths if row_ratio else None,
    )
    weight = student.new_full((rows,), rows / len(student)) if weights is None else weights.to(student)
    value = (per_token * weight.repeat_interleave(counts)).sum() / rows
    metrics = {f"reward/{k}": v for k, v in found.items()}
    metrics["reward/advantage_abs"] = float(advantages.detach().abs().mean())
    metrics["reward/behaviour_gap"] = float((student.detach() - behaviour).abs().mean())
    return value, metrics

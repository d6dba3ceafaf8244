"""Couple the distillation to an outcome reward. Advantages are [N], per token or spread from rows. Functions for a loss
return a value and metrics (shares between 0 and 1, or nats), which a trainer logs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hintdistill.objectives.checks import between, same_shape


def group_advantage(rewards: Tensor, groups: Sequence[object], eps: float = 1e-6, normalise: bool = True) -> Tensor:
    """Return (R - mean of the group)/(std + ε) per rollout [R]. GRPO (arXiv 2402.03300); zero if all rewards of a group
    are equal."""
    if len(groups) != len(rewards):
        raise ValueError(f"{len(groups)} groups for {len(rewards)} rewards")
    out = torch.zeros_like(rewards)
    for group in dict.fromkeys(groups):
        at = torch.tensor([g == group for g in groups], device=rewards.device)
        centred = rewards[at] - rewards[at].mean()
        out[at] = centred / (rewards[at].std(unbiased=False) + eps) if normalise else centred
    return out


def additive(reward_loss: Tensor, distill_loss: Tensor, weight: float) -> tuple[Tensor, dict[str, float]]:
    """Return (1-w)·L_RL + w·L_D. SDPO (arXiv 2601.20802): .1 of distillation, which helped weak models only.

    Metrics: both losses before mixing.
    """
    between(0, 1, weight=weight)
    metrics = {"reward_loss": float(reward_loss.detach()), "distill_loss": float(distill_loss.detach())}
    return (1 - weight) * reward_loss + weight * distill_loss, metrics


def advantage_multiply(advantage: Tensor, weight: Tensor, lam: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Return A·((1-λ) + λ·w): the verifier gives the direction, the teacher the size. RLSD (arXiv 2604.03128),
    StepOPSD.

    Metrics: `advantage_factor`, the mean of the factor on A.
    """
    same_shape(advantage=advantage, weight=weight)
    factor = (1 - lam) + lam * weight
    return advantage * factor, {"advantage_factor": _mean(factor)}


def advantage_add(
    advantage: Tensor, signal: Tensor, beta: float = 1.0, keep_sign: bool = True
) -> tuple[Tensor, dict[str, float]]:
    """Return A + β·r. With `keep_sign` it never changes the sign of A, and it is zero where A is zero. DASD (arXiv
    2605.22263) without it; RLCSD (2606.11709) with it.

    Metrics: `sign_held`, the share of tokens that `keep_sign` limited to zero.
    """
    same_shape(advantage=advantage, signal=signal)
    total = advantage + beta * signal
    if not keep_sign:
        return total, {"sign_held": 0.0}
    held = torch.where(advantage > 0, total.clamp(min=0), torch.where(advantage < 0, total.clamp(max=0), 0.0))
    return held, {"sign_held": _mean((held != total).float())}


def _mean(x: Tensor) -> float:
    return float(x.detach().mean()) if x.numel() else 0.0

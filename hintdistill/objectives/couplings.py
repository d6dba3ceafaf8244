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


def row_gate(
    advantage: Tensor, teacher: Tensor, student: Tensor, delta: float = 0.0
) -> tuple[Tensor, dict[str, float]]:
    """Return 1 where A > 0 and L_T > L_S + δ, or A ≤ 0 and L_T < L_S - δ; L are summed log-probabilities per row [R].
    RG-OPD.

    Metrics: `rows_open`, the share of rows that pass.
    """
    same_shape(advantage=advantage, teacher=teacher, student=student)
    gate = torch.where(advantage > 0, teacher > student + delta, teacher < student - delta).to(advantage)
    return gate, {"rows_open": _mean(gate)}


def _mean(x: Tensor) -> float:
    return float(x.detach().mean()) if x.numel() else 0.0


def decayed_rewards(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return r̃_n = r_n · mean of the scaled rewards of all earlier attempts: aided attempts count by present unaided
    success.

    `rewards[n]` are the rewards of attempt n over the batch. SocraticPO (arXiv 2606.09887).
    """
    scaled: list[list[float]] = []
    for attempt in rewards:
        earlier = [r for row in scaled for r in row]
        factor = 1.0 if not scaled else (sum(earlier) / len(earlier) if earlier else 0.0)
        scaled.append([r * factor for r in attempt])
    return scaled


def confidence_shares(confidences: Sequence[float], tau: float = 1.0) -> list[float]:
    """Return softmax(confidence/100/τ) over teachers, with confidences in percent. MAD-OPD (arXiv 2605.01347)."""
    return (torch.tensor(list(confidences), dtype=torch.float64) / 100 / tau).softmax(0).tolist()

"""Couplings of the distillation to an outcome reward. Advantages are [N] per token or spread from rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hintdistill.objectives.checks import between, same_shape


def group_advantage(rewards: Tensor, groups: Sequence[object], eps: float = 1e-6, normalise: bool = True) -> Tensor:
    """(R - mean of the group)/(std + ε) per rollout [R]. GRPO (arXiv 2402.03300); zero where all of a group are alike."""
    if len(groups) != len(rewards):
        raise ValueError(f"{len(groups)} groups for {len(rewards)} rewards")
    out = torch.zeros_like(rewards)
    for group in dict.fromkeys(groups):
        at = torch.tensor([g == group for g in groups], device=rewards.device)
        centred = rewards[at] - rewards[at].mean()
        out[at] = centred / (rewards[at].std(unbiased=False) + eps) if normalise else centred
    return out


def additive(reward_loss: Tensor, distill_loss: Tensor, weight: float) -> Tensor:
    """(1-w)·L_RL + w·L_D. SDPO (arXiv 2601.20802): .1 of distillation, which helped weak models only."""
    between(0, 1, weight=weight)
    return (1 - weight) * reward_loss + weight * distill_loss


def advantage_multiply(advantage: Tensor, weight: Tensor, lam: float = 1.0) -> Tensor:
    """A·((1-λ) + λ·w): the verifier gives the direction, the teacher the size. RLSD (arXiv 2604.03128), StepOPSD."""
    same_shape(advantage=advantage, weight=weight)
    return advantage * ((1 - lam) + lam * weight)


def advantage_add(advantage: Tensor, signal: Tensor, beta: float = 1.0, keep_sign: bool = True) -> Tensor:
    """A + β·r; with `keep_sign` never beyond zero on the other side of A. DASD (arXiv 2605.22263); RLCSD (2606.11709)."""
    same_shape(advantage=advantage, signal=signal)
    total = advantage + beta * signal
    if not keep_sign:
        return total
    return torch.where(advantage > 0, total.clamp(min=0), torch.where(advantage < 0, total.clamp(max=0), total))


def row_gate(advantage: Tensor, teacher: Tensor, student: Tensor, delta: float = 0.0) -> Tensor:
    """1 where A > 0 and L_T > L_S + δ, or A ≤ 0 and L_T < L_S - δ; summed log-probabilities per row [R]. RG-OPD."""
    same_shape(advantage=advantage, teacher=teacher, student=student)
    return torch.where(advantage > 0, teacher > student + delta, teacher < student - delta).to(advantage)


def decayed_rewards(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """r̃_n = r_n · mean of all already scaled rewards of earlier attempts: aid counts by present unaided success.

    `rewards[n]` are the rewards of attempt n over the batch. SocraticPO (arXiv 2606.09887).
    """
    scaled: list[list[float]] = []
    for attempt in rewards:
        earlier = [r for row in scaled for r in row]
        factor = 1.0 if not scaled else (sum(earlier) / len(earlier) if earlier else 0.0)
        scaled.append([r * factor for r in attempt])
    return scaled


def confidence_shares(confidences: Sequence[float], tau: float = 1.0) -> list[float]:
    """softmax(confidence/100/τ) over teachers, confidences in percent. MAD-OPD (arXiv 2605.01347)."""
    return (torch.tensor(list(confidences), dtype=torch.float64) / 100 / tau).softmax(0).tolist()

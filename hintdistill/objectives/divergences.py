"""Divergences between a student and a target on a common support, per position, in nats.

Both arguments are log-probabilities [..., K] whose last axis sums to one (a full vocabulary, or kept entries plus a
tail). Entries of -inf on both sides (padding) contribute nothing. Gradients flow through the student only where the
caller detached the target.

Direction names are a trap across the field's code bases; here `fkl` is KL(target ‖ student) and `rkl` is
KL(student ‖ target).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last axis, from log-probabilities; 0·log 0 = 0."""
    present = p > -torch.inf
    # masked before the product, not after: -inf times zero would poison the gradient
    difference = torch.where(present, p, 0.0) - torch.where(present, q, 0.0)
    return (torch.where(present, p.exp(), 0.0) * difference).sum(-1)


def fkl(student: Tensor, target: Tensor) -> Tensor:
    """Forward KL, KL(target ‖ student) [...]; mode-covering. Hinton et al. 2015; OPSD (arXiv 2601.18734) §3."""
    return _kl(target, student)


def rkl(student: Tensor, target: Tensor) -> Tensor:
    """Reverse KL, KL(student ‖ target) [...]; mode-seeking. MiniLLM (arXiv 2306.08543) eq. 2; HINT-SD (2605.17873)."""
    return _kl(student, target)


def jsd(student: Tensor, target: Tensor, alpha: float = 0.5) -> Tensor:
    """Jensen-Shannon divergence (1-α)·KL(S ‖ M) + α·KL(T ‖ M) with M = (1-α)S + αT [...]; at most log 2 at α = ½.

    `alpha` is the target's share. As α→0, jsd/α → fkl; as α→1, jsd/(1-α) → rkl. GKD (arXiv 2306.13649) eq. 3.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie strictly between 0 and 1, not {alpha}")
    # padding is -inf on both sides; logaddexp of two -inf has no gradient, so a finite stand-in takes its place
    present = (student > -torch.inf) | (target > -torch.inf)
    s, t = (torch.where(present, x, 0.0) for x in (student, target))
    mixture = torch.where(present, torch.logaddexp(s + math.log1p(-alpha), t + math.log(alpha)), -torch.inf)
    return (1 - alpha) * _kl(student, mixture) + alpha * _kl(target, mixture)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {"fkl": fkl, "rkl": rkl, "jsd": jsd}


def divergence(name: str, student: Tensor, target: Tensor, *, jsd_alpha: float = 0.5) -> Tensor:
    """The divergence of that name, per position [...], nats. Raises KeyError for an unknown name."""
    if name == "jsd":
        return jsd(student, target, jsd_alpha)
    return DIVERGENCES[name](student, target)

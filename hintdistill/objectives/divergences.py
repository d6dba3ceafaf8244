"""Compute divergences between a student and a target on a common support, per position, in nats.

Both arguments are log-probabilities [..., K] whose last axis sums to one (a full vocabulary, kept entries plus a tail,
or kept entries renormalised) or, for truncated supports, to less. Entries of -inf on both sides (padding) contribute
nothing. The caller must detach the target if gradients should flow only through the student. Code bases of the field
name the directions differently; here `fkl` is KL(target ‖ student) and `rkl` is KL(student ‖ target).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hintdistill.core import parts
from hintdistill.core.registry import Implementations
from hintdistill.objectives.checks import between, same_shape


def _entries(p: Tensor, q: Tensor) -> Tensor:
    """Return p·log(p/q) of each entry, from log-probabilities; 0·log 0 = 0."""
    present = p > -torch.inf
    # masked before the product, not after: -inf times zero would poison the gradient
    difference = torch.where(present, p, 0.0) - torch.where(present, q, 0.0)
    return torch.where(present, p.exp(), 0.0) * difference


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return _entries(p, q).sum(-1)


def _over_mixture(student: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return log(S/M) and log(T/M) with M = (1-α)S + αT, where S or T is positive; elsewhere the values are undefined.

    They are computed from d = log T/S as log(1 + share·(e^-|d| - 1)). So equal distributions give exactly zero, and
    nearly equal ones keep their precision, which log M - log S, a difference of large numbers, would lose.
    """
    # padding is -inf on both sides, which has no difference
    present = (student > -torch.inf) | (target > -torch.inf)
    d = torch.where(present, target, 0.0) - torch.where(present, student, 0.0)
    up = d > 0
    # not |d| and max(d, 0): their slopes at zero are neither side's
    share, fall = alpha + (1 - 2 * alpha) * up.to(d), torch.where(up, -d, d)
    common = torch.log1p(share * torch.expm1(fall))
    return torch.where(up, fall, 0.0) - common, torch.where(up, 0.0, fall) - common


def _expected(p: Tensor, ratio: Tensor) -> Tensor:
    """Return Σ p·ratio for log-probabilities p; entries with probability zero contribute nothing."""
    present = p > -torch.inf
    return (torch.where(present, p.exp(), 0.0) * torch.where(present, ratio, 0.0)).sum(-1)


def _open_unit(alpha: float) -> None:
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie strictly between 0 and 1, not {alpha}")


def fkl(student: Tensor, target: Tensor) -> Tensor:
    """Return the forward KL, KL(target ‖ student) [...]; mode-covering. Hinton et al. 2015; OPSD (arXiv 2601.18734)
    §3."""
    return _kl(target, student)


def rkl(student: Tensor, target: Tensor) -> Tensor:
    """Return the reverse KL, KL(student ‖ target) [...]; mode-seeking. MiniLLM (arXiv 2306.08543) eq. 2; HINT-SD
    (2605.17873)."""
    return _kl(student, target)


def jsd(student: Tensor, target: Tensor, alpha: float = 0.5) -> Tensor:
    """Return the Jensen-Shannon divergence (1-α)·KL(S ‖ M) + α·KL(T ‖ M) with M = (1-α)S + αT [...]; at most log 2 at α
    = ½.

    `alpha` is the target's share. As α→0, jsd/α → fkl; as α→1, jsd/(1-α) → rkl. GKD (arXiv 2306.13649) eq. 3.
    """
    _open_unit(alpha)
    ours, theirs = _over_mixture(student, target, alpha)
    return (1 - alpha) * _expected(student, ours) + alpha * _expected(target, theirs)


def skew(student: Tensor, target: Tensor, alpha: float = 0.1) -> Tensor:
    """Return the skew KL, KL(T ‖ αT + (1-α)S) [...]; bounded by log 1/α, and → fkl as α→0. DistiLLM (arXiv 2402.03898)
    eq. 4."""
    _open_unit(alpha)
    return _expected(target, _over_mixture(student, target, alpha)[1])


def skew_rkl(student: Tensor, target: Tensor, alpha: float = 0.1) -> Tensor:
    """Return the skew reverse KL, KL(S ‖ (1-α)T + αS) [...]; bounded by log 1/α. DistiLLM (arXiv 2402.03898) eq. 5."""
    _open_unit(alpha)
    return _expected(student, _over_mixture(target, student, alpha)[1])


def mix(student: Tensor, target: Tensor, lam: float = 0.5) -> Tensor:
    """Return λ·RKL + (1-λ)·FKL [...]. Decoupling prefix source and direction (arXiv 2605.16826)."""
    between(0, 1, lam=lam)
    return lam * rkl(student, target) + (1 - lam) * fkl(student, target)


def rkl_sg(student: Tensor, target: Tensor) -> Tensor:
    """Return Σ S·(sg[log S] - log T) [...], whose gradient is that of the full reverse KL, truncated to the kept
    entries.

    Plain reverse KL on kept entries has the additional gradient ∇Σ S(kept), so the optimiser would lower their mass.
    Many Faces of OPD (arXiv 2605.11182), stop-gradient top-k.
    """
    present = student > -torch.inf
    s, t = torch.where(present, student, 0.0), torch.where(present, target, 0.0)
    return torch.where(present, s.exp() * (s.detach() - t.detach()), 0.0).sum(-1)


def ce_topk(student: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy -Σ T log S on the kept entries [...]: the gradient of fkl there, without its entropy
    term."""
    present = target > -torch.inf
    return -(torch.where(present, target.exp(), 0.0) * torch.where(present, student, 0.0)).sum(-1)


DIVERGENCES: Mapping[str, Callable[..., Tensor]] = Implementations(
    parts.DIVERGENCES, lambda entry: entry.reads == "distributions"
)
"""Functions of the registered divergences that compare distributions."""


def divergence(
    name: str,
    student: Tensor,
    target: Tensor,
    *,
    pointwise_clip: float | None = None,
    token_clip: float | None = None,
    **parameters: float,
) -> Tensor:
    """Return the divergence with this name, per position [...], nats. Raises KeyError for an unknown name.

    Args:
        pointwise_clip: bound τ on each entry's share, Σ_v min(ℓ_v, τ). OPSD (arXiv 2601.18734): τ = .05 with fkl.
        token_clip: bound κ on each position, min(ℓ_t, κ). UniSD (arXiv 2605.06597).
        parameters: parameters of the divergence, e.g. `alpha` of jsd.
    """
    if pointwise_clip is None:
        same_shape(student=student, target=target)
        value = DIVERGENCES[name](student, target, **parameters)
    else:
        value = entries_of(name, student, target, **parameters).clamp(max=pointwise_clip).sum(-1)
    return value if token_clip is None else value.clamp(max=token_clip)


def entries_of(name: str, student: Tensor, target: Tensor, **parameters: float) -> Tensor:
    """Return each entry's share of the divergence with this name [..., K], nats; they sum to it. Padding has no
    share."""
    same_shape(student=student, target=target)
    # an axis of one entry turns the sum over entries into the entry itself
    return DIVERGENCES[name](student[..., None], target[..., None], **parameters)


def compared(
    name: str,
    student: Tensor,
    target: Tensor,
    *,
    rest: str | None = None,
    pointwise_clip: float | None = None,
    token_clip: float | None = None,
    **parameters: float,
) -> tuple[Tensor, dict[str, float]]:
    """Return `divergence` with its metrics: value [N] and a mapping.

    `clipped_entries`, `clipped_tokens`: shares that a clip limited, so that they have no gradient. With `rest` tail,
    the last entry of both is the tail: `tail_student` and `tail_target` are the mean mass outside the support; with
    `drop`, the dropped mass.
    """
    value = divergence(name, student, target, pointwise_clip=pointwise_clip, token_clip=token_clip, **parameters)
    metrics: dict[str, float] = {}
    with torch.no_grad():
        if pointwise_clip is not None:
            there = student > -torch.inf
            over = (entries_of(name, student, target, **parameters) > pointwise_clip) & there
            metrics["clipped_entries"] = float(over.sum() / there.sum().clamp(min=1))
        if token_clip is not None and len(value):
            metrics["clipped_tokens"] = float((value >= token_clip).float().mean())
        if rest in ("tail", "drop") and len(value):
            for side, logprobs in (("student", student), ("target", target)):
                mass = logprobs[..., -1].exp() if rest == "tail" else (1 - logprobs.exp().sum(-1)).clamp(min=0)
                metrics[f"tail_{side}"] = float(mass.mean())
    return value, metrics


def nll(student_sampled: Tensor) -> Tensor:
    """Return the negative log-likelihood of the sampled tokens, -log S(y) [N]; the teacher acts only through the
    weights."""
    return -student_sampled


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over layers of (1/D)·‖h_S - sg h_T‖² per token: [L, N, D] → [N]. OPRD (arXiv 2606.06021)."""
    same_shape(student=student, teacher=teacher)
    return (student - teacher.detach()).square().mean(-1).mean(0)


def token_preference(
    student: Tensor, reference: Tensor, target: Tensor, sampled: Tensor, beta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return -log σ(β[(log S(v⁺) - log R(v⁺)) - (log S(y) - log R(y))]) with v⁺ = argmax T, where v⁺ ≠ y: [N, V] → [N],
    bool [N].

    The prefill-only, token-level form of PBSD (arXiv 2605.05040); this form is ours, the paper's compares sequences.
    The second value marks positions where the teacher prefers another token; elsewhere the first value is zero.
    """
    same_shape(student=student, reference=reference, target=target)
    better = target.argmax(-1, keepdim=True)
    ratio = student - reference.detach()
    margin = ratio.gather(-1, better) - ratio.gather(-1, sampled[:, None])
    active = better[:, 0] != sampled
    return torch.where(active, -torch.nn.functional.logsigmoid(beta * margin[:, 0]), 0.0), active

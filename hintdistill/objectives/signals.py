"""Compute policy-gradient terms: an advantage from the gap Δ = log T(y) - log S(y) of the sampled token, and a loss
from it.

Back-propagating the sampled log S(y) - log T(y) would have the teacher-independent gradient ∇log S(y); so the advantage
is always detached and multiplies log S(y), or an importance ratio. All sampled log-probabilities are [N], nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hintdistill.objectives.checks import between, rows_fill, same_shape


def log_signal(s: Tensor, t: Tensor) -> Tensor:
    """Return Δ itself; its expected gradient is -∇RKL. Thinking Machines, On-Policy Distillation; OpenClaw-RL (arXiv
    2603.10165)."""
    return t - s


def fdiv(s: Tensor, t: Tensor, of: str = "fkl", clip: float = math.inf) -> Tensor:
    """Return -f(u) + u·f'(u) with u = T(y)/S(y): the unbiased advantage of E_S[f(u)]. OPD+ (arXiv 2606.01039).

    fkl → u (expected gradient -∇FKL), rkl → Δ - 1, jsd → ½·ln((1+u)/2). `clip` limits u (ours: 5 in practice).
    """
    u = (t - s).exp().clamp(max=clip)
    if of == "fkl":
        return u
    if of == "rkl":
        return u.log() - 1
    if of == "jsd":
        return 0.5 * ((1 + u) / 2).log()
    raise ValueError(f"unknown f-divergence {of!r}; known are fkl, rkl, jsd")


def power(s: Tensor, t: Tensor, alpha: float = 1.0) -> Tensor:
    """Return T(y)^α - S(y)^α, which is in [-1, 1] and has the sign of Δ; /α → Δ as α→0. PowerOPD (arXiv 2606.17199)."""
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, not {alpha}")
    return (alpha * t).exp() - (alpha * s).exp()


def clip(s: Tensor, t: Tensor, low: float = -10.0, high: float = 10.0) -> Tensor:
    """Return Δ limited to [low, high] nats."""
    return (t - s).clamp(low, high)


def floor(s: Tensor, t: Tensor, lam: float = 0.5) -> Tensor:
    """Return max(Δ, log(λ/(1-λ))). REOPOLD (arXiv 2603.11137)."""
    return (t - s).clamp(min=math.log(lam / (1 - lam)))


def softlog(s: Tensor, t: Tensor) -> Tensor:
    """Return sign(Δ)·log(1+|Δ|), so that large gaps grow slowly."""
    gap = t - s
    return gap.sign() * gap.abs().log1p()


def znorm(s: Tensor, t: Tensor, eps: float = 1e-6) -> Tensor:
    """Return (Δ - mean)/(std + ε) over the batch. It can change signs, which PowerOPD found harmful. GNDPO (arXiv
    2606.09091)."""
    gap = t - s
    return (gap - gap.mean()) / (gap.std(unbiased=False) + eps)


def scale_only(s: Tensor, t: Tensor, eps: float = 1e-6) -> Tensor:
    """Return Δ/(std + ε) over the batch: GNDPO's scale without its change of sign. Ours."""
    gap = t - s
    return gap / (gap.std(unbiased=False) + eps)


SIGNALS: dict[str, Callable[..., Tensor]] = {
    "log": log_signal,
    "fdiv": fdiv,
    "power": power,
    "clip": clip,
    "floor": floor,
    "softlog": softlog,
    "znorm": znorm,
    "scale_only": scale_only,
}
"""Signals computed only from the sampled log-probabilities of student and target."""


def value_baseline(gap: Tensor, student: Tensor, target: Tensor, ids: Tensor | None = None) -> Tensor:
    """Return Δ + KL(S ‖ T), with the KL on kept ids [N, K] or the full vocabulary: less variance, the same expectation.
    vOPD."""
    same_shape(student=student, target=target)
    s, t = student.detach(), target.detach()
    if ids is not None:
        keep = ids >= 0
        s, t = (x.gather(-1, ids.clamp(min=0)).masked_fill(~keep, -torch.inf) for x in (s, t))
    present = s > -torch.inf
    return gap + torch.where(present, s.exp() * (torch.where(present, s, 0.0) - torch.where(present, t, 0.0)), 0.0).sum(
        -1
    )


def tanh_contrast(contrast: Tensor, tau: float = 0.02, scale: float = 0.5) -> Tensor:
    """Return scale·tanh(e/τ) of the contrast of right and wrong hints, without a verifier. After RLCSD (arXiv
    2606.11709; the paper's τ)."""
    return scale * (contrast / tau).tanh()


def returns(gap: Tensor, lengths: Sequence[int], gamma: float) -> Tensor:
    """Return Σ_{t'≥t} γ^(t'-t)·Δ_t' within each row [N]. MiniLLM (arXiv 2306.08543); other methods use γ = 0."""
    between(0, 1, gamma=gamma)
    rows_fill(len(gap), lengths)
    out = gap.clone()
    start = 0
    for length in lengths:
        for i in range(start + length - 2, start - 1, -1):
            out[i] = gap[i] + gamma * out[i + 1]
        start += length
    return out


def importance_ratio(
    student: Tensor, behaviour: Tensor, *, clamp: float = 20.0, lengths: Sequence[int] | None = None
) -> Tensor:
    """Return S(y)/S_old(y) per token [N], or its geometric mean per row (GSPO) if `lengths` are given.

    The log-ratio is clamped to ±clamp nats before the exponential (SDPO, arXiv 2601.20802: 20).
    """
    same_shape(student=student, behaviour=behaviour)
    ratio = (student - behaviour.detach()).clamp(-clamp, clamp)
    if lengths is not None:
        rows_fill(len(ratio), lengths)
        ratio = torch.cat([r.mean().expand(len(r)) for r in ratio.split(list(lengths))])
    return ratio.exp()


def policy_gradient(
    student: Tensor,
    advantage: Tensor,
    behaviour: Tensor | None = None,
    *,
    clip_low: float | None = None,
    clip_high: float | None = None,
    cap: float | None = None,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the per-token loss [N] whose gradient is -A·∇log S(y), importance-weighted if the behaviour policy is
    given.

    Args:
        student: log S(y) [N], with gradient.
        advantage: A [N]; detached here.
        behaviour: log-probability under the sampling policy [N]; None means the student itself.
        clip_low, clip_high: PPO clipping of the ratio to [1-low, 1+high]; the smaller of the two products counts.
        cap: truncated importance sampling instead, sg[min(ratio, cap)]·A·log S(y) (SDPO 2, FiRe 5).
        lengths: row lengths, for a ratio per row (GSPO; GNDPO, arXiv 2606.09091).
    """
    same_shape(student=student, advantage=advantage)
    a = advantage.detach()
    metrics = {"dead_fraction": float((a.abs() < 1e-6).float().mean()) if len(a) else 0.0}
    if behaviour is None:
        return -a * student, metrics
    ratio = importance_ratio(student, behaviour, lengths=lengths)
    metrics["ratio_mean"] = float(ratio.detach().mean()) if len(a) else 1.0
    if cap is not None:
        return -ratio.detach().clamp(max=cap) * a * student, metrics
    if clip_low is None and clip_high is None:
        return -ratio * a, metrics
    low, high = clip_low if clip_low is not None else math.inf, clip_high if clip_high is not None else math.inf
    clipped = ratio.clamp(1 - low, 1 + high)
    metrics["ratio_clipped"] = float((ratio.detach() != clipped.detach()).float().mean()) if len(a) else 0.0
    return -torch.minimum(ratio * a, clipped * a), metrics

"""Compute targets: the distribution to match, a log-linear combination of views.

    log q(v) = Σ_j a_j·log π_j(v) + b·1[v = y] - log Z,   then temperature, then an arithmetic share of another view

This one form covers residual anchoring, extrapolation, bridges, outcome steering, contrast with wrong hints, and the
evidence target. A target never carries a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hintdistill.objectives.checks import same_shape


def log_linear(
    views: Mapping[str, Tensor],
    coefficients: Mapping[str, float],
    *,
    anchor: str | None = None,
    residual_clip: float | None = None,
    temperature: float = 1.0,
    tilt: Tensor | float = 0.0,
    sampled: Tensor | None = None,
    mixture: Mapping[str, float] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the target's log-probabilities [N, V], detached, and metrics. Raises KeyError, naming the view, if one is
    missing.

    Args:
        views: log-probabilities [N, V] by name.
        coefficients: a_j by view. AR-OPD (arXiv 2606.10385): partial 1-λ, full λ. ExOPD (2605.08737): teacher λ,
            initial 1-λ. Veto (2601.07155): teacher 1, student β. OGLS-SD (2605.12400, derived): teacher 1, succ α, fail
            -α. Evidence: student 1, teacher 1, plain -1, in which an engine's common error of teacher and plain
            cancels.
        anchor, residual_clip: bound each log π_j - log π_anchor to ±clip nats before it is weighted (AR-OPD: 5).
        temperature: q ∝ q^(1/τ).
        tilt, sampled: b, a number or [N], added to the sampled token's log-probability before Z.
        mixture: arithmetic shares of views, (1-Σw)·q + Σw·π (AR-OPD: .01 of the reference).
    """
    for name in [*coefficients, *(mixture or {}), *([anchor] if anchor else [])]:
        if name not in views:
            raise KeyError(f"the target needs the view {name!r}; the given views are {', '.join(views)}")
    fixed = {n: views[n].detach() for n in [*coefficients, *(mixture or {}), *([anchor] if anchor else [])]}
    same_shape(**fixed)
    metrics: dict[str, float] = {}
    # where the coefficients are one view with weight one nothing is computed, and nothing rounds
    single = [n for n, a in coefficients.items() if a]
    if anchor is None and len(single) == 1 and coefficients[single[0]] == 1:
        logq = fixed[single[0]]
        exact = True
    else:
        logq, exact = _combined(fixed, coefficients, anchor, residual_clip, metrics), False
    if isinstance(tilt, Tensor) or tilt:
        if sampled is None:
            raise ValueError("a tilt requires the sampled ids")
        amount = tilt if isinstance(tilt, Tensor) else torch.full_like(logq[:, 0], tilt)
        logq, exact = logq.scatter_add(-1, sampled[:, None], amount.to(logq)[:, None]), False
    if temperature != 1.0:
        logq, exact = logq / temperature, False
    if not exact:
        logq = logq.log_softmax(-1)
    if mixture:
        share = sum(mixture.values())
        parts = [logq + math.log1p(-share), *(fixed[n] + math.log(w) for n, w in mixture.items())]
        logq = torch.stack(parts).logsumexp(0)
    return logq, metrics


def _combined(
    views: Mapping[str, Tensor],
    coefficients: Mapping[str, float],
    anchor: str | None,
    clip: float | None,
    metrics: dict[str, float],
) -> Tensor:
    """Return Σ a_j log π_j; entries that no view contains stay -inf, even if their coefficients cancel."""
    gone = torch.stack([views[n] == -torch.inf for n, a in coefficients.items() if a > 0]).any(0)
    finite = {n: v.clamp(min=torch.finfo(v.dtype).min / 1e6) for n, v in views.items()}
    if anchor is None:
        total = torch.stack([a * finite[n] for n, a in coefficients.items()]).sum(0)
    else:
        total, clipped = sum(coefficients.values()) * finite[anchor], []
        for name, a in coefficients.items():
            residual = finite[name] - finite[anchor]
            if clip is not None:
                clipped.append((residual.abs() > clip).float().mean())
                residual = residual.clamp(-clip, clip)
            total = total + a * residual
        if clipped:
            metrics["residual_clipped"] = float(torch.stack(clipped).max())
    return total.masked_fill(gone, -torch.inf)

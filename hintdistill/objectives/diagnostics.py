"""Compute diagnostics without a gradient, to monitor next to the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hintdistill.objectives.checks import rows_fill, same_shape
from hintdistill.objectives.divergences import rkl
from hintdistill.objectives.scorebank import at, compat


def preflight_gap(plain: Tensor, hinted: Tensor, sampled: Tensor, right: Tensor | None = None) -> dict[str, float]:
    """Return an upper bound on what hints can teach, from recorded error tokens [N, V], without decoding. Predictive
    law (arXiv 2605.30070).

    The values are the rates at which a right continuation (top-1 in the bool mask `right` [N, V]; without it, top-1 ≠
    the error) is chosen with and without the hint, and their gap. If the gap is near zero, the hints cannot teach
    anything.
    """
    same_shape(plain=plain, hinted=hinted)
    rates = []
    for view in (plain, hinted):
        top = view.argmax(-1)
        good = right.gather(-1, top[:, None])[:, 0] if right is not None else top != sampled
        rates.append(float(good.float().mean()))
    return {"repair_plain": rates[0], "repair_hinted": rates[1], "repair_gap": rates[1] - rates[0]}


def harm_rate(right_without: Sequence[bool], right_with: Sequence[bool]) -> float:
    """Return P(wrong with the context | right without it). NCA (arXiv 2606.11627). NaN if nothing was right without
    it."""
    pairs = [b for a, b in zip(right_without, right_with, strict=True) if a]
    return sum(not b for b in pairs) / len(pairs) if pairs else float("nan")


def fidelity_by_position(teacher: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the mean of the teacher's largest probability at each position of a row [max length]. LGR (arXiv
    2605.30833)."""
    rows_fill(len(teacher), lengths)
    best = teacher.max(-1).values.exp()
    total, count = (torch.zeros(max(lengths), dtype=best.dtype, device=best.device) for _ in range(2))
    for row in best.split(list(lengths)):
        total[: len(row)] += row
        count[: len(row)] += 1
    return total / count


def rock_tokens(sampled: Tensor, divergence: Tensor, n: int = 100, skip: int = 5) -> list[int]:
    """Return the ids with the largest frequency × mean divergence, without the `skip` most frequent ones. Rock tokens
    (arXiv 2605.09253)."""
    ids, inverse, counts = sampled.unique(return_inverse=True, return_counts=True)
    total = torch.zeros(len(ids), dtype=divergence.dtype, device=divergence.device).index_add_(0, inverse, divergence)
    total[counts.argsort(descending=True)[:skip]] = -torch.inf
    order = total.argsort(descending=True)[: min(n, max(0, len(ids) - skip))]
    return [int(i) for i in ids[order]]


def update_geometry(before: Tensor, after: Tensor) -> dict[str, float]:
    """Return the share of entries that change in bfloat16, and the stable rank ‖Δ‖_F²/‖Δ‖₂² of the update. arXiv
    2606.07082."""
    same_shape(before=before, after=after)
    change = (after - before).double()
    changed = (after.bfloat16() != before.bfloat16()).float().mean()
    top = torch.linalg.matrix_norm(change, ord=2) if change.ndim == 2 else change.norm()
    rank = float(change.square().sum() / top.square()) if float(top) > 0 else 0.0
    return {"changed_fraction": float(changed), "stable_rank": rank}


def error_probability(logprobs: Tensor, sampled: Tensor) -> float:
    """Return the mean probability of the sampled error tokens, the number that must fall."""
    return float(at(logprobs, sampled).exp().mean())


def locality(initial: Tensor, student: Tensor) -> dict[str, float]:
    """Return off-target KL(initial ‖ student) at tokens that no loss touched [N, V]: mean and p99 in nats per token,
    and top-1 flip rate.

    No method may pay for its correction with drift here; Composer 2.5's targeted feedback leaves the rest of the trace
    unchanged.
    """
    same_shape(initial=initial, student=student)
    kl = rkl(initial, student).double()
    flips = (initial.argmax(-1) != student.argmax(-1)).double().mean()
    return {"kl_mean": float(kl.mean()), "kl_p99": float(kl.quantile(0.99)), "top1_flips": float(flips)}


def top_k_mass(student: Tensor, teacher: Tensor, k: int = 16) -> float:
    """Return the mean mass that the teacher gives to the student's top-k [N, V], i.e. how teachable the tokens are.
    TA-OPD (arXiv 2605.26844)."""
    same_shape(student=student, teacher=teacher)
    return float(compat(student, teacher, k).mean())


def cliff_lambda(p: float, b: float, c: float) -> float:
    """Return λ*, the bound below which extrapolation (teacher λ, initial 1-λ) keeps structural tokens in the clip-safe
    region.

    p, b: modal probability of teacher and initial policy at structural tokens (tool-call syntax); c: clip of the
    importance ratio. λ* = [log((1-p)/(c-1+p)) - log((1-b)/b)]/[log((1-p)/p) - log((1-b)/b)]. arXiv 2605.08737. λ*(.9993, .81,
    5) = 1.2769. Raises ValueError unless 0 < b < p < 1 and c > 1.
    """
    if not (0 < b < p < 1 and c > 1):
        raise ValueError(f"need 0 < b < p < 1 and c > 1, not p={p}, b={b}, c={c}")
    odds_b = math.log((1 - b) / b)
    return (math.log((1 - p) / (c - 1 + p)) - odds_b) / (math.log((1 - p) / p) - odds_b)


def length_tail(lengths: Sequence[int]) -> float:
    """Return the longest length over the mean length; CGTR (arXiv 2606.03532) keeps it below 3.2."""
    return max(lengths) / (sum(lengths) / len(lengths))


def kept_fraction(weights: Tensor) -> float:
    """Return the share of tokens that a gate keeps, from weights [N]. EDGE-OPD (arXiv 2605.23493) logs it next to the
    loss."""
    return float((weights != 0).float().mean())


DIAGNOSTICS: dict[str, Callable[..., object]] = {
    "preflight_gap": preflight_gap,
    "locality": locality,
    "error_token_prob": error_probability,
    "harm_rate": harm_rate,
    "length_tail": length_tail,
    "kept_fraction": kept_fraction,
    "geometry": update_geometry,
    "fidelity_by_position": fidelity_by_position,
    "lambda_cliff": cliff_lambda,
    "top_k_mass": top_k_mass,
}
"""Diagnostics by the names that texts of recipes use."""

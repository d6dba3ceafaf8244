"""Compute losses without a dense `[N, V]`, in chunks of positions and vocabulary, with the gradient in the forward
pass.

Dense losses keep several `[N, V]` tensors alive from the forward to the backward pass (512 positions × 152k entries are
311 MB each). Here each chunk of positions is projected onto the vocabulary. Its share of the loss and the gradient with
respect to its hidden states are computed at once, and the chunk is discarded. The backward pass needs only `[N, H]`.
The head's weight gets a gradient only if it is trained. Logits are scaled and soft-capped in the same way as in the
model.

`linear_divergence` is for one divergence of two full distributions, in closed form and in place over tiles of the vocabulary;
`supported.linear_support` is for any loss on a support, and `supported.linear_term` for a recipe's term; `chunked` is for
anything that is a sum over positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hintdistill.objectives.checks import dimensions, same_shape

POSITIONS = 96
"""Positions per chunk: fewer make the matrix product slow on two CPU cores, more make the chunk large."""
ANY_LOSS_POSITIONS = 32
"""Positions per chunk where autograd keeps several `[n, V]` of a chunk."""
TILE = 1 << 13
"""Vocabulary entries per tile after the matrix product, so that a tile's data fits into the cache."""
CLOSED = ("fkl", "rkl", "jsd", "mix")


@dataclass(frozen=True)
class HeadSpec:
    """Describe the head that turns hidden states into logits: cap·tanh(scale·(h W^T + b)/cap)/temperature."""

    weight: Tensor
    """[V, H]"""
    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    """Temperature of the distribution, applied after the soft cap."""

    def __post_init__(self) -> None:
        dimensions(2, weight=self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [N, V] from hidden states [N, H], in float32, or float64 if the head uses it."""
        raw = torch.nn.functional.linear(hidden, self.weight, self.bias)
        return self.shaped(raw if raw.dtype == torch.float64 else raw.float())

    def shaped(self, raw: Tensor) -> Tensor:
        """Apply scale, soft cap and temperature in place."""
        if self.scale != 1.0:
            raw = raw.mul_(self.scale)
        if self.softcap is not None:
            raw = raw.div_(self.softcap).tanh_().mul_(self.softcap)
        return raw.div_(self.temperature) if self.temperature != 1.0 else raw

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return d(shaped logit)/d(h W^T + b) at the shaped logits, in their shape, or as a number if it is
        constant."""
        factor = self.scale / self.temperature
        if self.softcap is None:
            return factor
        return (logits * (self.temperature / self.softcap)).square_().neg_().add_(1.0).mul_(factor)

    def unshaped_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient of the shaped logits into the gradient of h W^T + b, in place."""
        slope = self.slope(logits)
        return gradient if isinstance(slope, float) and slope == 1.0 else gradient.mul_(slope)


def linear_divergence(
    hidden: Tensor,
    head: HeadSpec,
    target_hidden: Tensor,
    target_head: HeadSpec,
    weights: Tensor,
    kind: str = "rkl",
    *,
    alpha: float = 0.5,
    lam: float = 0.5,
    positions: int = POSITIONS,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """Return Σ_t w_t·D(S_t, T_t) over full distributions, a scalar with gradient, and the per-position divergence [N],
    nats.

    Args:
        hidden: the student's hidden states [N, H], with gradient.
        target_hidden, target_head: the same for the target, without gradient; the width may differ, but not the
            vocabulary.
        weights: [N], static.
        kind: fkl, rkl, jsd (alpha: the target's share) or mix (lam: the share of rkl).

    Raises ValueError for an unknown kind, or for shapes that do not match.
    """
    dimensions(2, hidden=hidden, target_hidden=target_hidden)
    dimensions(1, weights=weights)
    if kind not in CLOSED:
        raise ValueError(
            f"there is no closed form for {kind!r}, only for {', '.join(CLOSED)}; `chunked` takes any function"
        )
    if len(weights) != len(hidden) or len(target_hidden) != len(hidden) or len(head.weight) != len(target_head.weight):
        raise ValueError("student, target and weights must have the same positions and the same vocabulary")
    how = _How(target_hidden, target_head, kind, alpha, lam, positions, tile)
    return _LinearDivergence.apply(hidden, head.weight, head.bias, head, weights, how)


@dataclass(frozen=True)
class _How:
    """Hold the target's hidden states [N, H'] and head, the divergence, and the chunk size."""

    target_hidden: Tensor
    target_head: HeadSpec
    kind: str
    alpha: float
    lam: float
    positions: int
    tile: int


def begin(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: HeadSpec
) -> tuple[HeadSpec, bool, list[Tensor | None]]:
    """Return the head without its graph, whether any gradient is wanted, and buffers for the gradients of hidden
    states, weight and bias."""
    wants = [bool(x) for x in ctx.needs_input_grad[:3]]
    own = replace(head, weight=weight.detach(), bias=None if bias is None else bias.detach())
    room = [
        torch.zeros_like(x) if x is not None and w else None for x, w in zip((hidden, weight, bias), wants, strict=True)
    ]
    return own, any(wants), room


def scaled(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
    """Return the values of a backward pass: the kept gradients, scaled, and None for every further input of the forward
    pass.

    They are scaled in place and handed over without a copy, because a second tensor of the head's size would be the
    largest of a step. Raises RuntimeError on a second call.
    """
    if ctx.kept is None:
        raise RuntimeError(
            "a loss in chunks computes its gradient in the forward pass and returns it only once; compute the loss "
            "again for a second backward pass"
        )
    kept, ctx.kept = [None if g is None else g.mul_(scale) for g in ctx.kept], None
    return (*kept, *[None] * (len(ctx.needs_input_grad) - len(kept)))


class _LinearDivergence(torch.autograd.Function):
    """Compute the gradient in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: HeadSpec,
        weights: Tensor,
        how: _How,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and per-position values; the gradients are computed here and kept."""
        own, wants, gradients = begin(ctx, hidden, weight, bias, head)
        per_position = torch.empty(len(hidden), dtype=precision(hidden), device=hidden.device)
        for start in range(0, len(hidden), how.positions):
            at = slice(start, start + how.positions)
            chunk = hidden[at].detach()
            s, t = own.logits(chunk), how.target_head.logits(how.target_hidden[at].detach())
            capped = s.clone() if head.softcap is not None and wants else s
            value = _value_and_gradient_(s, t, how)
            per_position[at] = value
            if not wants:
                continue
            g = own.unshaped_(s.mul_(weights[at].to(s)[:, None]), capped).to(weight.dtype)
            spread(gradients, at, chunk, g, own.weight)
            # gone before the next chunk's are made
            del s, t, capped, g
        ctx.kept = gradients
        ctx.mark_non_differentiable(per_position)
        return (per_position * weights.to(per_position)).sum(), per_position

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients, scaled by the gradient of the loss."""
        return scaled(ctx, gradients[0])


def precision(hidden: Tensor) -> torch.dtype:
    """Return the precision in which losses of these hidden states are summed."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def logsumexp(logits: Tensor, tile: int = TILE) -> Tensor:
    """Return log-sum-exp [n, 1] of [n, V], one vocabulary tile at a time, without a tensor of the logits' size."""
    tiles = [part.logsumexp(-1, keepdim=True) for part in logits.split(tile, dim=-1)]
    return torch.cat(tiles, -1).logsumexp(-1, keepdim=True)


def spread(gradients: Sequence[Tensor | None], at: slice, hidden: Tensor, g: Tensor, weight: Tensor) -> None:
    """Propagate a chunk's gradient of the raw logits [n, V] to hidden states, weight and bias."""
    to_hidden, to_weight, to_bias = gradients
    if to_hidden is not None:
        to_hidden[at] = g @ weight
    if to_weight is not None:
        to_weight.addmm_(g.T, hidden.to(g.dtype))
    if to_bias is not None:
        to_bias.add_(g.sum(0))


def _value_and_gradient_(s: Tensor, t: Tensor, how: _How) -> Tensor:
    """Return the divergence [n] of logits [n, V]. `s` becomes the gradient with respect to the student's logits; `t` is
    overwritten."""
    lse_s, lse_t = logsumexp(s, how.tile), logsumexp(t, how.tile)
    tiles = [(a.sub_(lse_s), b.sub_(lse_t)) for a, b in zip(s.split(how.tile, -1), t.split(how.tile, -1), strict=True)]
    forward, reverse = s.new_zeros(len(s)), s.new_zeros(len(s))
    if how.kind == "fkl":
        for a, b in tiles:
            # its gradient S - T waits for no sum over the vocabulary
            p, q = a.exp(), b.exp()
            forward += (b.sub_(a).mul_(q)).sum(-1)
            a.copy_(p.sub_(q))
        return forward
    for a, b in tiles:
        toward, back = _shares(a, b, how)
        reverse += toward
        forward += back
    for a, b in tiles:
        _gradient_(a, b, reverse[:, None], how)
    if how.kind == "rkl":
        return reverse
    share = how.lam if how.kind == "mix" else 1 - how.alpha
    return share * reverse + (1 - share) * forward


def _over_mixture(s: Tensor, t: Tensor, how: _How) -> tuple[Tensor, Tensor]:
    """Return log(S/M) and log(T/M) of a tile, with M = (1-α)S + αT; zero if S = T. See `divergences.jsd`."""
    d = t - s
    share: Tensor | float = how.alpha
    if how.alpha != 0.5:
        share = how.alpha + (1 - 2 * how.alpha) * (d > 0).to(d)
    common = d.abs().neg_().expm1_().mul_(share).log1p_()
    ours = d.clamp(min=0.0).neg_().sub_(common)
    return ours, d.clamp_(max=0.0).sub_(common)


def _shares(s: Tensor, t: Tensor, how: _How) -> tuple[Tensor, Tensor | float]:
    """Return Σ S·log(S/Q) and Σ T·log(T/Q) of a tile, where Q is the other distribution, or the mixture for jsd; [n]
    each.

    Inputs that are no longer needed are overwritten with parts of the gradient. rkl: `s` becomes S·log(S/T) and `t`
    becomes S; jsd: `s` becomes S·log(S/M) and `t` becomes S.
    """
    if how.kind == "jsd":
        ours, theirs = _over_mixture(s, t, how)
        back = theirs.mul_(t.exp_()).sum(-1)
        t.copy_(s).exp_()
        torch.mul(t, ours, out=s)
        return s.sum(-1), back
    if how.kind == "rkl":
        p = s.exp()
        s.sub_(t).mul_(p)
        t.copy_(p)
        return s.sum(-1), 0.0
    gap = s - t
    return (s.exp() * gap).sum(-1), -(t.exp() * gap).sum(-1)


def _gradient_(s: Tensor, t: Tensor, reverse: Tensor, how: _How) -> None:
    """Write a tile's gradient with respect to the student's logits into `s`.

    rkl: S·(log S/T - KL(S ‖ T));  fkl: S - T;  jsd: (1-α)·S·(log S/M - KL(S ‖ M)), because M's own terms cancel.
    """
    if how.kind in ("rkl", "jsd"):
        s.addcmul_(t, reverse, value=-1.0)
        if how.kind == "jsd":
            s.mul_(1 - how.alpha)
        return
    p = s.exp()
    other = p - t.exp()
    s.sub_(t).sub_(reverse).mul_(p).mul_(how.lam).add_(other, alpha=1 - how.lam)


def chunked(
    hidden: Tensor, head: HeadSpec, loss: Callable[[Tensor, slice], Tensor], *, positions: int = ANY_LOSS_POSITIONS
) -> tuple[Tensor, Tensor]:
    """Return Σ_t loss_t, a scalar with gradient, and the per-position values [N], for any loss that is a sum over
    positions.

    Args:
        hidden: [N, H], with gradient.
        loss: log-probabilities [n, V] of a slice of positions → weighted loss [n]; it may gather, renormalise, clip, or
            read stored targets by the slice. Statistics of the whole batch (quantiles, normalisers) must be computed
            beforehand. The head's weight and bias get a gradient if they require one.
    """
    dimensions(2, hidden=hidden)
    return _Chunked.apply(hidden, head.weight, head.bias, head, loss, positions)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: HeadSpec,
        loss: Callable[[Tensor, slice], Tensor],
        positions: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and per-position values; the gradients are computed here and kept."""
        own, wants, gradients = begin(ctx, hidden, weight, bias, head)
        out = []
        for start in range(0, len(hidden), positions):
            at = slice(start, min(start + positions, len(hidden)))
            chunk = hidden[at].detach()
            logprobs = own.logits(chunk)
            lse = logsumexp(logprobs)
            logprobs.sub_(lse)
            with torch.enable_grad():
                leaf = logprobs.requires_grad_()
                value = loss(leaf, at)
                same_shape(loss=value, positions=chunk[:, 0])
                g = torch.autograd.grad(value.sum(), leaf)[0] if wants and value.requires_grad else None
            out.append(value.detach())
            if g is not None:
                # through the softmax by hand: autograd would keep logits beside log-probabilities
                s, total = logprobs.detach(), g.sum(-1, keepdim=True)
                g = g.sub(s.exp().mul_(total))
                spread(gradients, at, chunk, own.unshaped_(g, s.add_(lse)).to(weight.dtype), own.weight)
                del s
            del g, leaf, logprobs
        ctx.kept = gradients
        per_position = torch.cat(out) if out else hidden.new_zeros(0)
        ctx.mark_non_differentiable(per_position)
        return per_position.sum(), per_position

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients, scaled by the gradient of the loss."""
        return scaled(ctx, gradients[0])

"""Compute a recipe's term from hidden states: the loss on a support, without a dense `[N, V]` graph.

A loss on a support reads a few log-probabilities of a position: those of the kept entries, and that of all other
entries together (the rest). Autograd differentiates these few; their derivatives by the logits z have a closed form.
With r_j = z_j - log Σ exp z of a kept entry, r_tail = log Σ_rest exp z - log Σ exp z, and g = ∂ℓ/∂r,

    ∂ℓ/∂z_v = g_v - S(v)·Σg of a kept entry,   S(v)·(g_tail/S(rest) - Σg) of the rest,

written over the logits in place. So a chunk holds one `[n, V]` for the student and one for each view of the target,
whatever the divergence, its clips and its remainder; nothing of that size is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hintdistill.objectives.checks import dimensions, same_shape
from hintdistill.objectives.chunked import (
    ANY_LOSS_POSITIONS,
    CLOSED,
    POSITIONS,
    TILE,
    HeadSpec,
    begin,
    chunked,
    linear_divergence,
    logsumexp,
    precision,
    scaled,
    spread,
)
from hintdistill.objectives.divergences import DIVERGENCES
from hintdistill.objectives.supports import RESTS
from hintdistill.objectives.terms import BoundTerm

if TYPE_CHECKING:
    from hintdistill.recipes.schema import Term

Loss = Callable[[Tensor], Tensor]
"""Function from log-probabilities on the support, [n, K+1] with the tail or [n, K] without, to the loss [n]."""
Choose = Callable[[Tensor, slice], tuple[Tensor, Loss]]
"""Function from the student's logits [n, V] of a slice of positions (read-only) to kept ids [n, K], -1 for padding, and
the loss."""
View = tuple[Tensor, HeadSpec]
"""Hidden states [N, H], and the head that turns them into logits."""


def linear_support(
    hidden: Tensor,
    head: HeadSpec,
    weights: Tensor,
    choose: Choose,
    *,
    rest: str = "tail",
    positions: int = POSITIONS,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """Return Σ_t w_t·ℓ_t on supports, a scalar with gradient, and ℓ_t per position [N], nats.

    Args:
        hidden: the student's hidden states [N, H], with gradient.
        weights: [N], static; a position with weight zero contributes nothing, whatever its loss.
        choose: selects each position's entries and gives the loss of their log-probabilities.
        rest: the remainder as in `supports.restrict`.

    The head's weight and bias get a gradient if they require one. Raises ValueError for an unknown remainder and for
    shapes that do not match.
    """
    dimensions(2, hidden=hidden)
    dimensions(1, weights=weights)
    if rest not in RESTS:
        raise ValueError(f"unknown remainder {rest!r}; the kinds are {', '.join(RESTS)}")
    if len(weights) != len(hidden):
        raise ValueError(f"{len(weights)} weights for {len(hidden)} positions")
    return _LinearSupport.apply(hidden, head.weight, head.bias, head, weights, _How(choose, rest, positions, tile))


@dataclass(frozen=True)
class _How:
    """Describe how a loss on supports is computed: its kept entries, its cost function, its remainder, and the chunk
    size."""

    choose: Choose
    rest: str
    positions: int
    tile: int


class _Restricted:
    """Compute log-probabilities on a support from logits [n, V], and the gradient of those logits.

    `logits` is overwritten: with a tail, its kept entries become -inf.
    """

    def __init__(self, logits: Tensor, ids: Tensor, rest: str, tile: int) -> None:
        dimensions(2, ids=ids)
        self.logits, self.rest, self.tile = logits, rest, tile
        self.pads = ids < 0
        self.nothing = self.pads.all(-1, keepdim=True)
        # a pad points at its row's first id, which is kept anyway
        self.at = torch.where(self.pads, ids[:, :1], ids).clamp(min=0)
        self.kept = logits.gather(-1, self.at)
        self.whole = logsumexp(logits, tile)
        values = (self.kept - self.whole).masked_fill(self.pads, -torch.inf)
        if rest == "tail":
            self._write(torch.full_like(self.kept, -torch.inf))
            self.outside = logsumexp(logits, tile)
            values = torch.cat([values, self.outside - self.whole], -1)
        self.values = values

    def _write(self, entries: Tensor) -> None:
        """Write entries [n, K] over the kept logits; rows that keep nothing do not change."""
        if self.nothing.any():
            entries = torch.where(self.nothing, self.logits.gather(-1, self.at), entries)
        self.logits.scatter_(-1, self.at, torch.where(self.pads, entries[:, :1], entries))

    def gradient_(self, g: Tensor, head: HeadSpec) -> Tensor:
        """Return ∂ℓ/∂(h W^T + b) [n, V] from g = ∂ℓ/∂values, written over the logits."""
        g = torch.where(self.values > -torch.inf, g, 0.0)
        total = g.sum(-1, keepdim=True)
        if self.rest == "tail":
            # kept entries and tail sum to one, so a multiple of them moves nothing; taken out here, where a loss of equal
            # distributions has nothing else, its rounding is not left over below
            g = g - self.values.exp() * total
            total = g.sum(-1, keepdim=True)
        others = -total
        if self.rest == "tail":
            # a tail of nothing has no gradient to share out
            there = self.outside > -torch.inf
            g, tail = g[:, :-1], g[:, -1:]
            others = others + torch.where(there, tail * (self.whole - self.outside).exp(), 0.0)
        entries = (g - (self.kept - self.whole).exp() * total) * head.slope(self.kept)
        for part in self.logits.split(self.tile, dim=-1):
            slope = head.slope(part)
            part.sub_(self.whole).exp_().mul_(others)
            if not isinstance(slope, float) or slope != 1.0:
                part.mul_(slope)
        self._write(entries)
        return self.logits


KEEP_ELEMENTS = 1 << 24
"""Maximum number of logits that `linear_kept` stores until the backward pass (64 MB in float32); above it, they are
computed again there."""


def linear_kept(hidden: Tensor, head: HeadSpec, ids: Tensor, *, positions: int = POSITIONS, tile: int = TILE) -> Tensor:
    """Return log-probabilities of kept entries and of the tail, with gradient, from hidden states: [N, K+1], nats.

    This equals `gather_with_tail` of the whole log-probabilities, without keeping `[N, V]`: if the logits are too many
    to store, each chunk's are computed again in the backward pass. Use it for losses that need every position before
    any gradient, e.g. with weights that are quantiles of scores; for a sum over positions, `linear_support` is cheaper.

    Args:
        hidden: [N, H], with gradient.
        ids: int64 [N, K], each once per row, -1 for padding; at least one per row.
    """
    dimensions(2, hidden=hidden, ids=ids)
    return _LinearKept.apply(hidden, head.weight, head.bias, head, ids, positions, tile)


class _LinearKept(torch.autograd.Function):
    """Compute values in the forward pass; in the backward pass, write ∂/∂logits over the logits, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: HeadSpec,
        ids: Tensor,
        positions: int,
        tile: int,
    ) -> Tensor:
        """Return the values; chunks are kept if they are small enough."""
        ctx.save_for_backward(hidden, weight, bias, ids)
        ctx.head, ctx.positions, ctx.tile = head, positions, tile
        own = replace(head, weight=weight.detach(), bias=None if bias is None else bias.detach())
        hold = any(ctx.needs_input_grad[:3]) and len(hidden) * len(weight) <= KEEP_ELEMENTS
        out, ctx.kept = [], {}
        for start in range(0, len(hidden), positions):
            at = slice(start, min(start + positions, len(hidden)))
            on = _Restricted(own.logits(hidden[at].detach()), ids[at], "tail", tile)
            out.append(on.values)
            if hold:
                ctx.kept[start] = on
        return torch.cat(out) if out else hidden.new_zeros(0, ids.shape[1] + 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden states, weight and bias."""
        hidden, weight, bias, ids = ctx.saved_tensors
        own, _, found = begin(ctx, hidden, weight, bias, ctx.head)
        for start in range(0, len(hidden), ctx.positions):
            at = slice(start, min(start + ctx.positions, len(hidden)))
            chunk = hidden[at].detach()
            on = ctx.kept.pop(start, None)
            if on is None:
                on = _Restricted(own.logits(chunk), ids[at], "tail", ctx.tile)
            g = on.gradient_(gradients[0][at], own)
            spread(found, at, chunk, g.to(weight.dtype), own.weight)
            del on, g
        return (*found, None, None, None, None)


def _conditional(values: Tensor) -> Tensor:
    """Renormalise kept log-probabilities so that they sum to one; rows that keep nothing stay -inf."""
    empty = (values == -torch.inf).all(-1, keepdim=True)
    total = torch.where(empty, 0.0, values).logsumexp(-1, keepdim=True)
    return torch.where(values == -torch.inf, values, values - total)


class _LinearSupport(torch.autograd.Function):
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
        each = torch.empty(len(hidden), dtype=precision(hidden), device=hidden.device)
        weighted = torch.empty_like(each)
        for start in range(0, len(hidden), how.positions):
            at = slice(start, min(start + how.positions, len(hidden)))
            chunk = hidden[at].detach()
            # in a function of its own, so that a chunk's logits are gone before the next one's are made
            each[at], weighted[at], g = _chunk(chunk, own, weights[at], at, how, wants)
            if g is not None:
                spread(gradients, at, chunk, g.to(weight.dtype), own.weight)
                del g
        ctx.kept = gradients
        ctx.mark_non_differentiable(each)
        return weighted.sum(), each

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients, scaled by the gradient of the loss."""
        return scaled(ctx, gradients[0])


def _chunk(
    hidden: Tensor, head: HeadSpec, weights: Tensor, at: slice, how: _How, wants: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ℓ [n], w·ℓ [n] and the gradient of their sum with respect to h W^T + b [n, V]."""
    logits = head.logits(hidden)
    ids, loss = how.choose(logits, at)
    on = _Restricted(logits, ids, how.rest, how.tile)
    w = weights.to(logits)
    with torch.enable_grad():
        leaf = on.values.detach().requires_grad_()
        value = loss(_conditional(leaf) if how.rest == "renorm" else leaf)
        same_shape(loss=value, positions=hidden[:, 0])
        share = torch.where(w != 0, value * w, 0.0)
        g = torch.autograd.grad(share.sum(), leaf)[0] if wants and value.requires_grad else None
    if g is not None:
        # an infinite loss without weight has no gradient either
        g = on.gradient_(torch.where(w[:, None] != 0, g, 0.0), head)
    return value.detach(), share.detach(), g


def linear_term(
    spec: Term,
    hidden: Tensor,
    head: HeadSpec,
    views: Mapping[str, View],
    sampled: Tensor,
    weights: Tensor,
    *,
    step: int = 0,
    special_ids: Sequence[int] = (),
    positions: int = POSITIONS,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """Return a term that compares distributions, from hidden states: coef·Σ_t w_t·ℓ_t and ℓ_t [N], nats.

    It equals `compose.term` without `[N, V]`, with the same target, support, remainder, clips, temperatures, tilt and
    schedules.

    Args:
        hidden, head: hidden states [N, H] of the term's student view, with gradient, and its head.
        views: hidden states and head of each view that the target reads, without gradient; widths may differ.
        sampled: int64 [N].
        weights: static weights [N], the product of W_t and the normaliser. Weights from shapes of scores must be
            computed beforehand, because quantiles and maxima need the whole batch.
        special_ids: the ids that `drop_special` removes.

    Raises:
        KeyError: a view of the target is missing; the message names it.
        ValueError: the divergence reads the sampled token or hidden states, or the tilt needs a reward.
    """
    if spec.divergence.kind not in DIVERGENCES:
        raise ValueError(
            f"{spec.divergence.kind} does not compare distributions; `linear_support` on the sampled ids gives log S(y)"
        )
    if spec.target.tilt_sign != "none":
        raise ValueError("a tilt by the advantage's sign reads a reward; use `compose.term`")
    now = BoundTerm.at(spec, step)
    for name in now.of.views:
        if name not in views:
            raise KeyError(f"the target needs the view {name!r}; the given views are {', '.join(views)}")
    warm = {n: (views[n][0].detach(), _warmer(views[n][1], now.temperature)) for n in now.of.views}
    from_hidden = _FromHidden(now, warm, sampled, tuple(special_ids), tile)
    value, each = from_hidden.over(hidden, _warmer(head, now.temperature), weights, positions)
    return now.coefficient * value, each


def stored_term(
    now: BoundTerm, hidden: Tensor, head: HeadSpec, target: Tensor, ids: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a term on stored supports with a tail: coef·Σ_t w_t·ℓ_t, a scalar with gradient, and ℓ_t [N], nats.

    Args:
        hidden, head: the student's hidden states [N, H], with gradient, and its head.
        target: the term's target on the stored entries and their tail, [N, K+1].
        ids: int64 [N, K], -1 pads.
        weights: static weights [N].
    """

    def choose(logits: Tensor, at: slice) -> tuple[Tensor, Loss]:
        theirs = target[at]
        return ids[at], lambda ours: now.loss(ours, theirs)

    value, each = linear_support(hidden, head, weights, choose, rest="tail")
    return now.coefficient * value, each


def _warmer(head: HeadSpec, temperature: float) -> HeadSpec:
    return replace(head, temperature=head.temperature * temperature)


@dataclass(frozen=True)
class _FromHidden:
    """Hold a term at a step, with the hidden states of its target's views."""

    now: BoundTerm
    views: Mapping[str, View]
    sampled: Tensor
    special_ids: tuple[int, ...]
    tile: int

    def over(self, hidden: Tensor, head: HeadSpec, weights: Tensor, positions: int) -> tuple[Tensor, Tensor]:
        """Return Σ_t w_t·ℓ_t and ℓ_t [N]: in closed form, on a support, or as a general loss on the whole
        vocabulary."""
        how, support = self.now.spec.divergence, self.now.spec.support
        if support.kind != "full" or (support.drop_special and self.special_ids):
            return linear_support(
                hidden, head, weights, self.choose, rest=support.rest, positions=positions, tile=self.tile
            )
        single = self.now.of.single
        if single and how.kind in CLOSED and self.now.pointwise_clip is None and self.now.token_clip is None:
            numbers = {k: float(v) for k, v in self.now.parameters.items()}
            target, of = self.views[single]
            return linear_divergence(
                hidden, head, target, of, weights, how.kind, positions=positions, tile=self.tile, **numbers
            )
        each: list[Tensor] = []

        def loss(logprobs: Tensor, at: slice) -> Tensor:
            value = self.now.loss(logprobs, self.target(at).log_softmax(-1))
            each.append(value.detach())
            return torch.where(weights[at] != 0, value * weights[at].to(value), 0.0)

        total, _ = chunked(hidden, head, loss, positions=min(positions, ANY_LOSS_POSITIONS))
        return total, torch.cat(each) if each else hidden.new_zeros(0)

    def target(self, at: slice) -> Tensor:
        """Return the target at a slice of positions [n, V]: a view's logits if the target is that view, else
        log-probabilities."""
        logits = {n: head.logits(hidden[at]) for n, (hidden, head) in self.views.items()}
        if single := self.now.of.single:
            # not normalised yet: a support does that with the few entries it keeps
            return logits[single]
        return self.now.target({n: z.log_softmax(-1) for n, z in logits.items()}, self.sampled[at])[0]

    def choose(self, logits: Tensor, at: slice) -> tuple[Tensor, Loss]:
        """Return the support at a slice of positions, and the divergence from the target on it."""
        target, rest = self.target(at), self.now.spec.support.rest
        ids = self.now.support(logits, target, self.sampled[at], self.special_ids)
        assert ids is not None
        values = _Restricted(target, ids, rest, self.tile).values
        theirs = _conditional(values) if rest == "renorm" else values
        return ids, lambda ours: self.now.loss(ours, theirs)

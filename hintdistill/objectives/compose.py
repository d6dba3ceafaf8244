"""Combine the parts of an objective: L = Σ_terms coef · N⁻¹ Σ_t W_t · ℓ(S_t, q_t; support).

A recipe's terms are read only by their attributes, so this file does not depend on where recipes come from. A training
loop must supply a `Batch`: log-probabilities of each view at the scored positions, and the sampled ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hintdistill.core.parts import SAMPLER
from hintdistill.objectives import couplings, signals
from hintdistill.objectives.checks import dimensions, same_shape
from hintdistill.objectives.divergences import hidden_mse, nll, token_preference
from hintdistill.objectives.schedules import scheduled
from hintdistill.objectives.scorebank import ScoreBank, at
from hintdistill.objectives.spans import plain_span, slot_scale
from hintdistill.objectives.supports import restrict
from hintdistill.objectives.terms import BoundTerm
from hintdistill.objectives.weighing import Drawn, Draws, Fixed, weigh

if TYPE_CHECKING:
    from hintdistill.recipes.schema import Coupling, Recipe, Term


@dataclass(frozen=True)
class Batch:
    """Hold scored spans, one after another: N tokens in R rows. Raises ValueError if shapes do not match."""

    views: Mapping[str, Tensor]
    """Log-probabilities [N, V] by view name; `student` carries the gradient."""
    sampled: Tensor
    """int64 [N]: the sampled tokens, or their columns if the views contain only kept entries."""
    lengths: Sequence[int]
    """Number of tokens of each row."""
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    """Scores that no view provides, [N] or [R]; see `scorebank.FACTS`, and `scorebank.RECORDED` for importance
    ratios."""
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """Hidden states [L, N, D] by view name, for the divergence hidden_mse."""
    special_ids: Sequence[int] = ()
    """Tokens that `drop_special` removes from the support."""
    restricted: bool = False
    """Whether the columns are already each position's kept entries and their tail (stored targets)."""
    fixed: Mapping[str, Fixed] = field(default_factory=dict)
    """Weights and signals by term that were computed over a whole optimiser step; see `over_step`. Others are computed
    over this batch."""

    def __post_init__(self) -> None:
        dimensions(2, **self.views)
        same_shape(**self.views)
        if sum(self.lengths) != len(self.sampled) or any(len(v) != len(self.sampled) for v in self.views.values()):
            raise ValueError(
                f"the batch does not fit together: {len(self.sampled)} sampled ids, rows of {sum(self.lengths)} "
                f"tokens in all, views of {sorted({len(v) for v in self.views.values()})} positions"
            )


@dataclass(frozen=True)
class TermValue:
    """Hold one term's value on one batch."""

    value: Tensor
    """Scalar, including the coefficient."""
    per_token: Tensor
    """ℓ_t [N], before weights."""
    weights: Tensor
    """W_t [N], detached, without the base weights."""
    metrics: dict[str, float]


def objective(
    recipe: Recipe,
    batch: Batch,
    *,
    rows: str = "hint",
    step: int = 0,
    base: Mapping[str, Tensor] | None = None,
    generator: Draws = None,
    reward_loss: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the recipe's terms on rows of one kind: a scalar and metrics named `term/metric`.

    Args:
        rows: `hint` or `anchor`.
        step: optimiser step, for schedules.
        base: static weights [N] by term; the value is the weighted sum over tokens divided by R. Default: from the
            term's loss span and normaliser, over this batch.
        generator: for shapes that draw random numbers; one generator, or one for each row.
        reward_loss: the caller's loss for the outcome reward, a scalar, for a recipe with additive coupling:
            (1-w)·reward_loss + w·terms. Without it the value consists of the terms only.

    Raises:
        KeyError: a view or fact that the recipe reads is not in the batch; the message names it.
        ValueError: a reward loss is given and the recipe's coupling is not additive.
    """
    if reward_loss is not None and recipe.coupling.kind != "additive":
        raise ValueError(f"the coupling {recipe.coupling.kind} adds no reward loss; set coupling.kind to additive")
    total = batch.views["student"].new_zeros(())
    metrics: dict[str, float] = {}
    masks: dict[str, Tensor] = {}
    for name, spec in recipe.terms.items():
        if spec.rows != rows:
            continue
        ready = made_ready(spec, batch, step, None if base is None else base.get(name))
        fixed = batch.fixed.get(name)
        if fixed is None:
            fixed = weigh(ready.now, ready.bank, ready.base, recipe.coupling, Drawn(masks, generator))
        out = _valued(ready, fixed)
        total = total + out.value
        metrics |= {f"{name}/{k}": v for k, v in out.metrics.items()}
        metrics[name] = float(out.value.detach())
    if reward_loss is not None:
        total, mixed = couplings.additive(reward_loss, total, scheduled(recipe.coupling.weight, step))
        metrics |= mixed
    return total, metrics


def term(
    spec: Term,
    batch: Batch,
    *,
    coupling: Coupling | None = None,
    step: int = 0,
    base: Tensor | None = None,
    masks: dict[str, Tensor] | None = None,
    generator: Draws = None,
) -> TermValue:
    """Return one term on one batch. The arguments are those of `objective`; terms share `masks` through `id` and
    `ref`."""
    ready = made_ready(spec, batch, step, base)
    drawn = Drawn({} if masks is None else masks, generator)
    return _valued(ready, weigh(ready.now, ready.bank, ready.base, coupling, drawn))


@dataclass(frozen=True)
class Ready:
    """Hold a term at a step with its inputs: whole distributions, target, scores and static weights."""

    now: BoundTerm
    batch: Batch
    views: Mapping[str, Tensor]
    """Views at the term's temperature."""
    target: Tensor
    bank: ScoreBank
    base: Tensor
    """Static weights [N]."""
    metrics: Mapping[str, float]
    """Metrics measured while the target was computed."""

    @property
    def student(self) -> Tensor:
        """Log-probabilities of the view that carries the gradient [N, V]."""
        return self.views[self.now.spec.student_view]

    @property
    def own(self) -> Tensor:
        """The student's log-probability of each sampled token [N]."""
        return at(self.student, self.batch.sampled)


def made_ready(spec: Term, batch: Batch, step: int = 0, base: Tensor | None = None) -> Ready:
    """Resolve a term at a step, and compute its target and score bank; `base` [N] is as in `objective`, for this
    term."""
    now, views = BoundTerm.at(spec, step), batch.views
    if now.temperature != 1.0:
        views = {n: (v / now.temperature).log_softmax(-1) for n, v in views.items()}
    target, metrics = now.target(views, batch.sampled, _advantage_signs(spec, batch))
    bank = ScoreBank(views, target, batch.sampled, batch.lengths, batch.facts, student=spec.student_view)
    return Ready(now, batch, views, target, bank, span_weights(spec, batch) if base is None else base, metrics)


def _valued(of: Ready, fixed: Fixed) -> TermValue:
    per_token, metrics = _per_token(of, fixed.signal)
    carried = of.base * fixed.weights
    # positions without weight may hold an infinite divergence, which zero times would not remove
    weighted = torch.where(carried != 0, per_token, 0.0) * (carried * fixed.factor)
    rows = torch.stack([w.sum() for w in weighted.split(list(of.batch.lengths))])
    value = of.now.coefficient * rows.sum() / len(of.batch.lengths)
    scored = per_token.detach()[of.base != 0]
    metrics = {**of.metrics, **metrics, **fixed.metrics, "mean": float(scored.mean()) if len(scored) else 0.0}
    return TermValue(value, per_token, fixed.weights, metrics)


def _advantage_signs(spec: Term, batch: Batch) -> Tensor | None:
    """Return the sign of the advantage at each token [N], for a target whose tilt depends on it."""
    if spec.target.tilt_sign != "advantage":
        return None
    sign = batch.facts["advantage"].sign()
    if len(sign) == len(batch.sampled):
        return sign
    return sign.repeat_interleave(torch.tensor(batch.lengths, device=sign.device))


def span_weights(spec: Term, batch: Batch) -> Tensor:
    """Return base weights [N] of the term's loss span, normalised over this batch so that Σ base · ℓ / R is the desired
    mean.

    `quote` spans read the fact `in_quote`, `suffix` the fact `since_error`, `action` the fact `in_action`; see `spans`.
    """
    student = batch.views["student"].detach()
    ones = student.new_ones(len(batch.sampled))
    if spec.rows in ("hint", "twin") or spec.span == "action":
        # facts are float32, whatever the views are
        ones = plain_span(spec, batch.facts, ones if spec.span == "step" else ones.float())
    rows = ones.split(list(batch.lengths))
    sums = [float(r.sum()) for r in rows]
    each = [slot_scale(spec.normalize, own, len(rows), sum(sums)) for own in sums]
    return torch.cat([r * scale for r, scale in zip(rows, each, strict=True)])


def _per_token(of: Ready, signal: Tensor | None) -> tuple[Tensor, dict[str, float]]:
    """Return ℓ_t [N] and metrics; `signal` is the one of a policy gradient."""
    kind, now, batch = of.now.spec.divergence.kind, of.now, of.batch
    if kind == "hidden_mse":
        return _hidden_mse(of), {}
    if kind == "token_preference":
        reference = of.views[str(now.parameters.get("reference", "initial"))]
        beta = float(now.parameters.get("beta", 1.0))
        value, active = token_preference(of.student, reference, of.target, batch.sampled, beta)
        return value, {"active": float(active.float().mean())}
    if kind == "nll":
        return nll(of.own), {}
    if kind == "pg":
        assert signal is not None
        value, metrics = _policy_gradient(of, signal)
        return (value if now.token_clip is None else value.clamp(max=now.token_clip)), metrics
    ids = _support(of)
    rest = now.spec.support.rest
    ours, theirs = restrict(of.student, ids, rest), restrict(of.target, ids, rest)
    value, metrics = now.watched_loss(ours, theirs, rest if ids is not None or batch.restricted else None)
    if ids is not None:
        metrics["empty_support"] = float((ids < 0).all(-1).float().mean())
    return value, metrics


def _hidden_mse(of: Ready) -> Tensor:
    view, hidden, layers = of.now.spec.student_view, of.batch.hidden, of.now.parameters.get("layers")
    if missing := {view, "teacher"} - set(hidden):
        raise KeyError(
            f"hidden_mse needs hidden states of {', '.join(sorted(missing))}; given: {', '.join(hidden) or '-'}"
        )
    ours, theirs = hidden[view], hidden["teacher"]
    if layers is not None:
        ours, theirs = ours[list(layers)], theirs[list(layers)]
    return hidden_mse(ours, theirs)


def _support(of: Ready) -> Tensor | None:
    if of.batch.restricted:
        # the columns are the union that was stored, with its tail
        wanted = of.now.spec.support
        if of.now.spec.rows == "hint" and (wanted.kind != "union" or wanted.drop_special):
            raise ValueError(f"stored targets contain the union support, not {wanted.kind}")
        return None
    return of.now.support(of.student, of.target, of.batch.sampled, of.batch.special_ids)


def _policy_gradient(of: Ready, advantage: Tensor) -> tuple[Tensor, dict[str, float]]:
    p, sampled, own = of.now.parameters, of.batch.sampled, of.own
    if p.get("baseline") == "value":
        k = p.get("baseline_k")
        ids = of.student.detach().topk(min(int(k), of.student.shape[-1])).indices if k else None
        advantage = signals.value_baseline(advantage, of.student, of.target, ids)
    name = p.get("behaviour")
    behaviour = None if name is None else of.bank.recorded() if name == SAMPLER else at(of.views[name], sampled)
    loss, metrics = signals.policy_gradient(
        own,
        advantage,
        behaviour,
        clip_low=p.get("clip_low"),
        clip_high=p.get("clip_high"),
        cap=p.get("cap"),
        lengths=of.batch.lengths if p.get("ratio") == "row" else None,
    )
    return loss, metrics

"""Parts → one number: L = Σ_terms coef · N⁻¹ Σ_t W_t · ℓ(S_t, q_t; support).

A recipe's terms are read by their attributes alone, so this file knows nothing of where recipes come from. What a training
loop must supply is a `Batch`: log-probabilities of each view at the scored positions, and the sampled ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hintdistill.objectives import couplings, shapes, signals
from hintdistill.objectives.checks import dimensions, same_shape
from hintdistill.objectives.divergences import compared, hidden_mse, nll, token_preference
from hintdistill.objectives.schedules import at_step, bound, scheduled
from hintdistill.objectives.scorebank import ScoreBank, at
from hintdistill.objectives.supports import restrict, select
from hintdistill.objectives.targets import log_linear

if TYPE_CHECKING:
    from hintdistill.recipes.schema import Coupling, Recipe, Term, WeightSpec


@dataclass(frozen=True)
class Batch:
    """Scored spans, one after another: N tokens in R rows.

    Raises ValueError where shapes do not fit.
    """

    views: Mapping[str, Tensor]
    """Log-probabilities [N, V] by view name; `student` carries the gradient."""
    sampled: Tensor
    """int64 [N]: the tokens that were sampled (their column, where the views hold kept entries only)."""
    lengths: Sequence[int]
    """Tokens of each row."""
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    """Scores that no view can give, [N] or [R]; see `scorebank.FACTS`."""
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """Hidden states [L, N, D] by view name, for hidden_mse."""
    special_ids: Sequence[int] = ()
    """Tokens that `drop_special` takes out of the support."""
    restricted: bool = False
    """Whether the columns are already the kept entries of each position and their tail (stored targets)."""

    def __post_init__(self) -> None:
        dimensions(2, **self.views)
        same_shape(**self.views)
        if sum(self.lengths) != len(self.sampled) or any(len(v) != len(self.sampled) for v in self.views.values()):
            raise ValueError(
                f"{len(self.sampled)} sampled ids, rows of {sum(self.lengths)} tokens in all, views of "
                f"{sorted({len(v) for v in self.views.values()})} positions"
            )


@dataclass(frozen=True)
class TermValue:
    """One term of one batch."""

    value: Tensor
    """Scalar, the coefficient included."""
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
    generator: torch.Generator | None = None,
    reward_loss: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The recipe's terms on rows of one kind: a scalar and metrics named `term/metric`.

    Args:
        rows: `hint` or `anchor`.
        step: optimiser step, for schedules.
        base: static weights [N] by term, such that the value is their sum over tokens divided by R; by default the term's
            loss span and normaliser, over this batch.
        generator: for shapes that draw.
        reward_loss: the caller's own loss of the outcome reward, a scalar, for a recipe whose coupling is additive:
            (1-w)·reward_loss + w·terms. Without it the value is the terms alone.

    Raises:
        KeyError: a view or fact that the recipe reads is not in the batch; it is named.
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
        own = None if base is None else base.get(name)
        out = term(spec, batch, coupling=recipe.coupling, step=step, base=own, masks=masks, generator=generator)
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
    generator: torch.Generator | None = None,
) -> TermValue:
    """One term of one batch; arguments as in `objective`, `masks` are shared between terms by `id` and `ref`."""
    masks = {} if masks is None else masks
    views = batch.views
    temperature = scheduled(spec.temperature, step)
    if temperature != 1.0:
        views = {n: (v / temperature).log_softmax(-1) for n, v in views.items()}
    student = views[spec.student_view]
    target, metrics = target_of(spec, views, batch, step)
    bank = ScoreBank(views, target, batch.sampled, batch.lengths, batch.facts, student=spec.student_view)
    base = span_weights(spec, batch) if base is None else base
    weighing = _Weighing(bank, base != 0, masks, generator, step, metrics)
    weights = _weights(spec.weights, weighing)
    per_token, more = _per_token(spec, batch, views, student, target, bank, coupling, step)
    metrics |= more
    factor, kept = _renormalised(spec.normalize, base, weights, batch.lengths)
    coefficient = scheduled(spec.coef, step)
    # positions without weight may hold an infinite divergence, which zero times would not remove
    weighted = torch.where(base * weights != 0, per_token, 0.0) * (base * weights * factor)
    value = coefficient * torch.stack([w.sum() for w in weighted.split(list(batch.lengths))]).sum() / len(batch.lengths)
    metrics |= {
        "mean": float(per_token.detach()[base != 0].mean()) if (base != 0).any() else 0.0,
        "kept_fraction": kept,
    }
    return TermValue(value, per_token, weights, metrics)


def target_of(spec: Term, views: Mapping[str, Tensor], batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
    """A term's target [N, V] at an optimiser step, from its views, and metrics."""
    of = spec.target
    tilt: Tensor | float = scheduled(of.tilt, step)
    if of.tilt_sign == "advantage":
        sign = batch.facts["advantage"].sign()
        spread = (
            sign
            if len(sign) == len(batch.sampled)
            else sign.repeat_interleave(torch.tensor(batch.lengths, device=sign.device))
        )
        tilt = spread * tilt
    coefficients = {n: scheduled(a, step) for n, a in of.loglin.items()}
    return log_linear(
        views,
        coefficients,
        anchor=of.anchor,
        residual_clip=bound(of.residual_clip, step),
        temperature=scheduled(of.temperature, step),
        tilt=tilt,
        sampled=batch.sampled,
        mixture=at_step(of.mixture, step),
    )


def span_weights(spec: Term, batch: Batch) -> Tensor:
    """Base weights [N] of the term's loss span, normalised over this batch: Σ base · ℓ / R is the mean that is wanted.

    `quote` spans read the fact `in_quote`, `suffix` the fact `since_error`.
    """
    weights = batch.views["student"].detach().new_ones(len(batch.sampled))
    if spec.rows == "hint" and spec.span != "step":
        weights = span_mask(spec, batch.facts)
    rows = weights.split(list(batch.lengths))
    if spec.normalize == "per_row":
        return torch.cat([r / r.sum().clamp(min=1e-12) for r in rows])
    return weights * (len(rows) / weights.sum().clamp(min=1e-12))


def span_mask(spec: Term, facts: Mapping[str, Tensor]) -> Tensor:
    """Weight of each token by the loss span alone [N], before any normalisation."""
    if spec.span == "suffix":
        return (facts["since_error"] >= 0).float()
    quoted = facts["in_quote"].float()
    return quoted if spec.span == "quote" else 1.0 + (spec.quote_weight - 1.0) * quoted


@dataclass(frozen=True)
class _Weighing:
    """What weights are made of, and where the metrics of their shapes go."""

    bank: ScoreBank
    valid: Tensor
    masks: dict[str, Tensor]
    generator: torch.Generator | None
    step: int
    metrics: dict[str, float]

    def shaped(self, shape: str, score: Tensor, parameters: Mapping[str, Any]) -> Tensor:
        """A score [N] under a shape at this step."""
        context = {"valid": self.valid, "lengths": self.bank.lengths, "generator": self.generator}
        weight, metrics = shapes.apply(shape, score, at_step(parameters, self.step), **context)
        self.metrics.update({f"{shape}/{k}": v for k, v in metrics.items()})
        return weight


def _weights(specs: Sequence[WeightSpec], of: _Weighing) -> Tensor:
    """Product of the weights [N], detached."""
    out = torch.ones_like(of.bank.s[:, 0])
    for spec in specs:
        out = out * _weight(spec, of)
    return out


def _weight(spec: WeightSpec, of: _Weighing) -> Tensor:
    if spec.ref:
        weight = of.masks[spec.ref]
    elif spec.soft_or:
        weight = shapes.soft_or(*(_weight(w, of) for w in spec.soft_or))
    elif spec.product:
        weight = _weights(spec.product, of)
    else:
        score = of.bank[spec.score] * (of.bank["adv_sign"] if spec.times_sign else 1.0)
        weight = of.shaped(spec.shape, score, spec.parameters)
    for after in spec.then:
        weight = of.shaped(after.shape, weight, after.parameters)
    if spec.invert:
        weight = 1 - weight
    if spec.id:
        of.masks[spec.id] = weight
    return weight


def _renormalised(
    normalize: str, base: Tensor, weights: Tensor, lengths: Sequence[int]
) -> tuple[Tensor | float, float]:
    """Factor that makes a gate no change of the learning rate, and the share of base weight that is kept."""
    kept = base * (weights != 0)
    share = float(kept.sum() / base.sum().clamp(min=1e-12))
    if normalize == "all" or bool((weights == 1).all()):
        return 1.0, share
    if normalize == "per_row":
        pairs = zip(base.split(list(lengths)), kept.split(list(lengths)), strict=True)
        return torch.cat([(b.sum() / k.sum().clamp(min=1e-12) * (k.sum() > 0)).expand(len(b)) for b, k in pairs]), share
    counted = base * weights if normalize == "mean1" else kept
    total = float(counted.sum())
    return (float(base.sum()) / total if total > 0 else 0.0), share


def _per_token(
    spec: Term,
    batch: Batch,
    views: Mapping[str, Tensor],
    student: Tensor,
    target: Tensor,
    bank: ScoreBank,
    coupling: Coupling | None,
    step: int,
) -> tuple[Tensor, dict[str, float]]:
    """ℓ_t [N] and metrics."""
    how, parameters = spec.divergence, at_step(spec.divergence.parameters, step)
    token_clip = bound(how.token_clip, step)
    if how.kind == "hidden_mse":
        layers = parameters.get("layers")
        if missing := {spec.student_view, "teacher"} - set(batch.hidden):
            raise KeyError(
                f"hidden_mse needs hidden states of {', '.join(sorted(missing))}; given: {', '.join(batch.hidden) or '-'}"
            )
        ours, theirs = batch.hidden[spec.student_view], batch.hidden["teacher"]
        if layers is not None:
            ours, theirs = ours[list(layers)], theirs[list(layers)]
        return hidden_mse(ours, theirs), {}
    if how.kind == "token_preference":
        reference = views[str(parameters.get("reference", "initial"))]
        value, active = token_preference(student, reference, target, batch.sampled, float(parameters.get("beta", 1.0)))
        return value, {"active": float(active.float().mean())}
    if how.kind in ("pg", "nll"):
        own = at(student, batch.sampled)
        if how.kind == "nll":
            return nll(own), {}
        value, metrics = _policy_gradient(spec, batch, views, own, student, target, bank, coupling, step)
        return (value if token_clip is None else value.clamp(max=token_clip)), metrics
    ids = _support(spec, batch, student, target)
    rest = spec.support.rest
    ours, theirs = restrict(student, ids, rest), restrict(target, ids, rest)
    value, metrics = compared(
        how.kind,
        ours,
        theirs,
        rest=rest if ids is not None or batch.restricted else None,
        pointwise_clip=bound(how.pointwise_clip, step),
        token_clip=token_clip,
        **parameters,
    )
    if ids is not None:
        metrics["empty_support"] = float((ids < 0).all(-1).float().mean())
    return value, metrics


def _support(spec: Term, batch: Batch, student: Tensor, target: Tensor) -> Tensor | None:
    of = spec.support
    if batch.restricted:
        # the columns are the union that was stored, with its tail
        if spec.rows == "hint" and (of.kind != "union" or of.drop_special):
            raise ValueError(f"stored targets hold the union support, not {of.kind}")
        return None
    return select(
        of.kind,
        student,
        target,
        batch.sampled,
        k=of.k,
        token_ids=of.token_ids,
        removed=batch.special_ids if of.drop_special else (),
        include_sampled=of.include_sampled,
    )


def _policy_gradient(
    spec: Term,
    batch: Batch,
    views: Mapping[str, Tensor],
    own: Tensor,
    student: Tensor,
    target: Tensor,
    bank: ScoreBank,
    coupling: Coupling | None,
    step: int,
) -> tuple[Tensor, dict[str, float]]:
    p = at_step(spec.divergence.parameters, step)
    theirs = at(target, batch.sampled)
    advantage, coupled = _advantage(spec, own.detach(), theirs, bank, batch, coupling, step)
    if p.get("baseline") == "value":
        k = p.get("baseline_k")
        ids = student.detach().topk(min(int(k), student.shape[-1])).indices if k else None
        advantage = signals.value_baseline(advantage, student, target, ids)
    behaviour = p.get("behaviour")
    loss, metrics = signals.policy_gradient(
        own,
        advantage,
        None if behaviour is None else at(views[behaviour], batch.sampled),
        clip_low=p.get("clip_low"),
        clip_high=p.get("clip_high"),
        cap=p.get("cap"),
        lengths=batch.lengths if p.get("ratio") == "row" else None,
    )
    return loss, metrics | coupled


def _advantage(
    spec: Term, s: Tensor, t: Tensor, bank: ScoreBank, batch: Batch, coupling: Coupling | None, step: int
) -> tuple[Tensor, dict[str, float]]:
    """The signal of each token [N], detached, and what a coupling did to it."""
    name, p = spec.divergence.signal, at_step(spec.divergence.parameters, step)
    if name in signals.SIGNALS:
        own = {k: p[k] for k in signals.SIGNALS[name].__code__.co_varnames[2:] if k in p}
        return signals.SIGNALS[name](s, t, **own), {}
    if name == "tanh_contrast":
        return signals.tanh_contrast(bank["contrast"], **{k: p[k] for k in ("tau", "scale") if k in p}), {}
    if name == "returns":
        return signals.returns(t - s, batch.lengths, float(p.get("gamma", 0.0))), {}
    advantage = bank["advantage"]
    if coupling is None or coupling.kind not in ("adv_mul", "adv_add"):
        return advantage, {}
    everywhere = torch.ones_like(advantage, dtype=torch.bool)
    metrics: dict[str, float] = {}
    credit = _weights(coupling.credit, _Weighing(bank, everywhere, {}, None, step, metrics))
    if coupling.kind == "adv_mul":
        value, more = couplings.advantage_multiply(advantage, credit, scheduled(coupling.lam, step))
    else:
        value, more = couplings.advantage_add(advantage, credit, scheduled(coupling.beta, step), coupling.keep_sign)
    return value, metrics | more

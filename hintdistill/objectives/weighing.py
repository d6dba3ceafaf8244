"""Compute the weight of each token and its policy-gradient signal: all parts of a term without a gradient.

They are computed from scores, [N] each, of one micro-batch (`scorebank.ScoreBank`) or of all micro-batches of an
optimiser step together (`KnownScores`). In the second case quantiles, maxima and normalisers do not depend on the
micro-batches; see `over_step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from hintdistill.objectives import couplings, shapes, signals
from hintdistill.objectives.schedules import at_step, scheduled
from hintdistill.objectives.terms import BoundTerm

if TYPE_CHECKING:
    from hintdistill.recipes.schema import Coupling, WeightSpec

Draws = torch.Generator | Sequence[torch.Generator] | None
"""Random generators for shapes that draw: one, or one for each row."""


class Bank(Protocol):
    """Provide scores of N tokens in rows."""

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each row."""

    @property
    def own(self) -> Tensor:
        """The student's log-probability of each sampled token [N]."""

    @property
    def theirs(self) -> Tensor:
        """The target's log-probability of each sampled token [N]."""

    def recorded(self) -> Tensor:
        """Return the sampling policy's log-probability of each token [N]."""

    def __getitem__(self, name: str) -> Tensor:
        """Return a score by name."""


class KnownScores:
    """Hold scores that were read earlier, for the rows of several micro-batches one after another."""

    def __init__(
        self, scores: Mapping[str, Tensor], own: Tensor, theirs: Tensor, then: Tensor | None, lengths: Sequence[int]
    ) -> None:
        self.scores, self.own, self.theirs, self.then, self.lengths = scores, own, theirs, then, list(lengths)

    def recorded(self) -> Tensor:
        """Return the sampling policy's log-probability of each token [N]. Raises KeyError if it was not read."""
        if self.then is None:
            raise KeyError("the log-probabilities of the sampling policy were not read")
        return self.then

    def __getitem__(self, name: str) -> Tensor:
        """Return a score [N]. Raises KeyError if it was not read."""
        return self.scores[name]


@dataclass(frozen=True)
class Fixed:
    """Hold a term's weights and signal for N tokens."""

    weights: Tensor
    """W_t [N], without the base weights."""
    factor: Tensor
    """Factor [N] that keeps a gate from changing the learning rate."""
    signal: Tensor | None
    """A_t [N] of a policy gradient, without a baseline; None for other divergences."""
    metrics: Mapping[str, float]

    def split(self, lengths: Sequence[int]) -> list[Fixed]:
        """Return the same values, split by rows."""
        of = list(lengths)
        signals_of = [None] * len(of) if self.signal is None else self.signal.split(of)
        parts = zip(self.weights.split(of), self.factor.split(of), signals_of, strict=True)
        return [Fixed(w, f, s, self.metrics) for w, f, s in parts]

    def to(self, device: torch.device) -> Fixed:
        """Return the same values on a device."""
        signal = None if self.signal is None else self.signal.to(device)
        return Fixed(self.weights.to(device), self.factor.to(device), signal, self.metrics)

    @classmethod
    def joined(cls, parts: Sequence[Fixed]) -> Fixed:
        """Join rows one after another; the metrics are those of the first."""
        signal = [p.signal for p in parts if p.signal is not None]
        return cls(
            torch.cat([p.weights for p in parts]),
            torch.cat([p.factor for p in parts]),
            torch.cat(signal) if signal else None,
            parts[0].metrics,
        )


@dataclass(frozen=True)
class Drawn:
    """Hold the inputs of weights besides scores, which the terms of a batch share."""

    masks: dict[str, Tensor]
    """Masks by `id`, for the `ref` of another term."""
    generator: Draws = None


def weigh(now: BoundTerm, bank: Bank, base: Tensor, coupling: Coupling | None, drawn: Drawn) -> Fixed:
    """Return a term's weights, their renormalisation, and its policy-gradient signal, from scores; `base` [N] are
    static weights."""
    metrics: dict[str, float] = {}
    spec = now.spec
    weights = product(spec.weights, _Weighing(bank, base != 0, drawn, now.step, metrics))
    factor, kept = _renormalised(spec.normalize, base, weights, bank.lengths)
    signal = None
    if spec.divergence.entry.has_signal:
        signal, more = _signal(now, bank, coupling)
        metrics |= more
    return Fixed(weights, factor, signal, metrics | {"kept_fraction": kept})


def scores_of(now: BoundTerm, coupling: Coupling | None) -> set[str]:
    """Return the scores that `weigh` reads for a term."""
    spec = now.spec
    names = {s for w in spec.weights for s in w.scores()}
    if spec.divergence.entry.has_signal and spec.divergence.signal == "tanh_contrast":
        names |= {"contrast"}
    if spec.divergence.entry.has_signal and spec.divergence.signal == "advantage":
        names |= {"advantage"}
        if coupling is not None and coupling.kind in ("adv_mul", "adv_add"):
            names |= {s for w in coupling.credit for s in w.scores()}
    return names


@dataclass(frozen=True)
class _Weighing:
    """Hold the inputs of weights, and collect the metrics of their shapes."""

    bank: Bank
    valid: Tensor
    drawn: Drawn
    step: int
    metrics: dict[str, float]

    def shaped(self, shape: str, score: Tensor, parameters: Mapping[str, Any]) -> Tensor:
        """Return a score [N] after a shape, at this step."""
        context = {"valid": self.valid, "lengths": self.bank.lengths, "generator": self.drawn.generator}
        weight, metrics = shapes.apply(shape, score, at_step(parameters, self.step), **context)
        self.metrics.update({f"{shape}/{k}": v for k, v in metrics.items()})
        return weight


def product(specs: Sequence[WeightSpec], of: _Weighing) -> Tensor:
    """Return the product of the weights [N], detached."""
    out = torch.ones_like(of.bank.own)
    for spec in specs:
        out = out * _weight(spec, of)
    return out


def _weight(spec: WeightSpec, of: _Weighing) -> Tensor:
    if spec.ref:
        weight = of.drawn.masks[spec.ref]
    elif spec.soft_or:
        weight = shapes.soft_or(*(_weight(w, of) for w in spec.soft_or))
    elif spec.product:
        weight = product(spec.product, of)
    else:
        score = of.bank[spec.score] * (of.bank["adv_sign"] if spec.times_sign else 1.0)
        weight = of.shaped(spec.shape, score, spec.parameters)
    for after in spec.then:
        weight = of.shaped(after.shape, weight, after.parameters)
    if spec.invert:
        weight = 1 - weight
    if spec.id:
        of.drawn.masks[spec.id] = weight
    return weight


def _renormalised(normalize: str, base: Tensor, weights: Tensor, lengths: Sequence[int]) -> tuple[Tensor, float]:
    """Return the factor [N] that keeps a gate from changing the learning rate, and the kept share of the base
    weight."""
    kept = base * (weights != 0)
    share = float(kept.sum() / base.sum().clamp(min=1e-12))
    ones = torch.ones_like(weights)
    if normalize == "all" or bool((weights == 1).all()):
        return ones, share
    if normalize == "per_row":
        pairs = zip(base.split(list(lengths)), kept.split(list(lengths)), strict=True)
        return torch.cat([(b.sum() / k.sum().clamp(min=1e-12) * (k.sum() > 0)).expand(len(b)) for b, k in pairs]), share
    counted = base * weights if normalize == "mean1" else kept
    total = float(counted.sum())
    return ones * (float(base.sum()) / total if total > 0 else 0.0), share


def _signal(now: BoundTerm, bank: Bank, coupling: Coupling | None) -> tuple[Tensor, dict[str, float]]:
    """Return the signal of each token [N], detached, with the metrics of its coupling.

    With `gap_at: sampling`, log S(y) is the value at the time of sampling, so that the signal does not change after the
    token was drawn.
    """
    name, p, t = now.spec.divergence.signal, now.parameters, bank.theirs
    s = bank.recorded() if p.get("gap_at") == "sampling" else bank.own
    if name in signals.SIGNALS:
        own = {k: p[k] for k in signals.SIGNALS[name].__code__.co_varnames[2:] if k in p}
        return signals.SIGNALS[name](s, t, **own), {}
    if name == "tanh_contrast":
        return signals.tanh_contrast(bank["contrast"], **{k: p[k] for k in ("tau", "scale") if k in p}), {}
    if name == "returns":
        return signals.returns(t - s, bank.lengths, float(p.get("gamma", 0.0))), {}
    advantage = bank["advantage"]
    if coupling is None or coupling.kind not in ("adv_mul", "adv_add"):
        return advantage, {}
    everywhere = torch.ones_like(advantage, dtype=torch.bool)
    metrics: dict[str, float] = {}
    credit = product(coupling.credit, _Weighing(bank, everywhere, Drawn({}), now.step, metrics))
    if coupling.kind == "adv_mul":
        value, more = couplings.advantage_multiply(advantage, credit, scheduled(coupling.lam, now.step))
    else:
        beta = scheduled(coupling.beta, now.step)
        value, more = couplings.advantage_add(advantage, credit, beta, coupling.keep_sign)
    return value, metrics | more

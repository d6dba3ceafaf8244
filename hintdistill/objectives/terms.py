"""Resolve a recipe's term at an optimiser step: its target, support and loss. Every computation of a term uses this
module.

`BoundTerm.at(term, step)` turns every schedule into a number. Its three callers differ only in their data:
`compose.term` has whole distributions (and is the reference in tests), `chunked_support.linear_term` has hidden states,
and `chunked_support.stored_term` has a stored support with its target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hintdistill.objectives.divergences import compared, divergence
from hintdistill.objectives.schedules import at_step, bound, scheduled
from hintdistill.objectives.supports import select
from hintdistill.objectives.targets import log_linear

if TYPE_CHECKING:
    from hintdistill.recipes.schema import Term


@dataclass(frozen=True)
class BoundTarget:
    """Hold the numbers of a target at a step; see `targets.log_linear`."""

    loglin: Mapping[str, float]
    anchor: str | None
    residual_clip: float | None
    temperature: float
    tilt: float
    mixture: Mapping[str, float]

    @property
    def views(self) -> list[str]:
        """The views from which the target is made."""
        return [*self.loglin, *self.mixture, *([self.anchor] if self.anchor else [])]

    @property
    def single(self) -> str | None:
        """The single view that equals the target, if no computation is needed."""
        named = [n for n, a in self.loglin.items() if a]
        if len(named) != 1 or self.loglin[named[0]] != 1 or self.anchor or self.mixture:
            return None
        return named[0] if self.temperature == 1 and not self.tilt else None


@dataclass(frozen=True)
class BoundTerm:
    """Hold a term whose schedules are resolved at an optimiser step. Legend: N positions, V vocabulary, K kept
    entries."""

    spec: Term
    step: int
    coefficient: float
    temperature: float
    """Temperature of student and target."""
    of: BoundTarget
    parameters: Mapping[str, Any]
    """Parameters of the divergence and its signal."""
    pointwise_clip: float | None
    token_clip: float | None

    @classmethod
    def at(cls, spec: Term, step: int = 0) -> BoundTerm:
        """Resolve a term at an optimiser step, counted from 0."""
        target, how = spec.target, spec.divergence
        return cls(
            spec,
            step,
            coefficient=scheduled(spec.coef, step),
            temperature=scheduled(spec.temperature, step),
            of=BoundTarget(
                {n: scheduled(a, step) for n, a in target.loglin.items()},
                target.anchor,
                bound(target.residual_clip, step),
                scheduled(target.temperature, step),
                scheduled(target.tilt, step),
                at_step(target.mixture, step),
            ),
            parameters=at_step(how.parameters, step),
            pointwise_clip=bound(how.pointwise_clip, step),
            token_clip=bound(how.token_clip, step),
        )

    def target(
        self, views: Mapping[str, Tensor], sampled: Tensor, signs: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the distribution to match [N, V], from the log-probabilities of its views, with metrics.

        Args:
            sampled: int64 [N], the tokens that a tilt raises.
            signs: [N], the signs of the advantage, for a tilt that depends on them.
        """
        of = self.of
        return log_linear(
            views,
            of.loglin,
            anchor=of.anchor,
            residual_clip=of.residual_clip,
            temperature=of.temperature,
            tilt=of.tilt if signs is None else signs * of.tilt,
            sampled=sampled,
            mixture=of.mixture,
        )

    def support(
        self, student: Tensor, target: Tensor, sampled: Tensor, special_ids: Sequence[int] = ()
    ) -> Tensor | None:
        """Return the entries that are compared, int64 [N, K] padded with -1; None for the full vocabulary.

        Only the order of `student` and `target` [N, V] matters, so logits suffice. `special_ids` are the ids that
        `drop_special` removes.
        """
        of = self.spec.support
        return select(
            of.kind,
            student,
            target,
            sampled,
            k=of.k,
            token_ids=of.token_ids,
            removed=tuple(special_ids) if of.drop_special else (),
            include_sampled=of.include_sampled,
        )

    def loss(self, student: Tensor, target: Tensor) -> Tensor:
        """Return ℓ [N] of log-probabilities on the same entries, for a divergence that compares distributions; nats."""
        return divergence(
            self.spec.divergence.kind,
            student,
            target,
            pointwise_clip=self.pointwise_clip,
            token_clip=self.token_clip,
            **self.parameters,
        )

    def watched_loss(self, student: Tensor, target: Tensor, rest: str | None) -> tuple[Tensor, dict[str, float]]:
        """Return `loss` and its metrics; `rest` gives the meaning of the last entry, see `divergences.compared`."""
        return compared(
            self.spec.divergence.kind,
            student,
            target,
            rest=rest,
            pointwise_clip=self.pointwise_clip,
            token_clip=self.token_clip,
            **self.parameters,
        )

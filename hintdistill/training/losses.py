"""Compute a recipe's terms on slots from hidden states: in chunks if a term is a sum over positions, otherwise through
views.

Whole distributions over a large vocabulary are the largest tensors in a training step. `[N, V]` is therefore created
only for terms whose weights depend on all positions before any of them has a gradient (quantiles, row means) and whose
targets are not stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hintdistill.config import OutcomeSection
from hintdistill.core.errors import ConfigError
from hintdistill.engines.forward import make_head, squash_numbers
from hintdistill.objectives import Batch, BoundTerm, gather_with_tail, objective
from hintdistill.objectives.chunked import HeadSpec
from hintdistill.objectives.chunked_support import linear_kept, linear_term, stored_term
from hintdistill.objectives.divergences import DIVERGENCES
from hintdistill.objectives.outcome import outcome_loss
from hintdistill.objectives.over_step import Reading, read
from hintdistill.objectives.weighing import Fixed
from hintdistill.recipes import Recipe, Term
from hintdistill.training.processes import is_sharded
from hintdistill.training.slots import REWARD, Slot
from hintdistill.training.step_pass import draws
from hintdistill.training.views import base, columns, restricted, sampled, stored, supports, whole


class OutputHead:
    """Convert a model's hidden states into log-probabilities."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def spec(self) -> HeadSpec | None:
        """Return the head as a matrix that shares the model's present weights; None if it is more than a matrix (e.g.
        has an adapter)."""
        module = self.model.get_output_embeddings()
        if type(module).__name__ not in ("Linear", "FSDPLinear"):
            return None
        factor, cap = squash_numbers(self.model)
        return HeadSpec(module.weight, module.bias, factor, None if cap is None else float(cap))

    def logprobs(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities over the whole vocabulary, float32 [N, V]."""
        if is_sharded(self.model):
            # a call of the head alone would run FSDP's hooks outside of the root's forward pass
            spec = self.spec
            if spec is None:
                raise ConfigError(
                    "FSDP2 shards an output head with an adapter on it", hint="use train.lora without lm_head"
                )
            return spec.logits(hidden).log_softmax(-1)
        out: Tensor = make_head(self.model)(hidden).log_softmax(-1)
        return out

    def kept(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return log-probabilities of ids [N, K] and of all other ids together, [N, K+1], with gradient."""
        spec = self.spec
        return gather_with_tail(self.logprobs(hidden), ids) if spec is None else linear_kept(hidden, spec, ids)


@dataclass(frozen=True)
class InStepView:
    """Hold a view made during the step: its hidden states and head, or its log-probabilities [N, V] if the head no
    longer exists."""

    hidden: Tensor
    """[N, H]"""
    spec: HeadSpec | None = None
    logprobs: Tensor | None = None
    is_students: bool = False
    """Whether it is the student's own view."""

    def at(self, positions: Tensor) -> Tensor:
        """Return log-probabilities at some positions, float32 [n, V]; not available for the student's own view, whose
        head may not be a matrix."""
        if self.logprobs is not None:
            return self.logprobs[positions]
        assert self.spec is not None
        return self.spec.logits(self.hidden[positions]).log_softmax(-1)


class Terms:
    """Compute the terms of a recipe."""

    def __init__(self, recipe: Recipe, special_ids: Sequence[int], seed: int) -> None:
        self.recipe, self.special_ids, self.seed = recipe, tuple(special_ids), seed
        self.kinds: tuple[str, ...] = tuple(dict.fromkeys(t.rows for t in recipe.terms.values()))
        """The kinds of slot that some term names as its rows."""
        self.chunked: dict[str, bool] = {kind: self._chunked(kind) for kind in self.kinds}
        """By kind, whether every term on it is a sum over positions."""
        self.fixed: dict[str, dict[str, Fixed]] = {}
        """Weights by slot key and term that were computed over the whole optimiser step; see `step_pass`."""

    def _chunked(self, kind: str) -> bool:
        terms = [t for t in self.recipe.terms.values() if t.rows == kind]
        return self.recipe.coupling.leaves_terms and all(_sum_over_positions(t) for t in terms)

    def stored(
        self, kind: str, slots: Sequence[Slot], hidden: Tensor, head: OutputHead, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the sum over slots of the terms on stored targets, and metrics; `hidden` [N, H] are the student's."""
        ids, spec = supports(slots, hidden.device), head.spec
        if self.chunked[kind] and spec is not None and all(_plain_union(t) for t in self._of(kind).values()):
            return self._on_supports(kind, slots, hidden, spec, ids, step)
        return self._through_views(kind, restricted(slots, head.kept(hidden, ids)), slots, step)

    def in_step(
        self, slots: Sequence[Slot], hidden: Tensor, head: OutputHead, views: Mapping[str, InStepView], step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the sum over hint slots of the terms on views made in this step; `hidden` [N, H] are the student's."""
        spec = head.spec
        if self.chunked["hint"] and spec is not None and all(v.spec is not None for v in views.values()):
            pairs = {n: (v.hidden, v.spec) for n, v in views.items() if v.spec is not None}
            return self._in_chunks(slots, hidden, spec, pairs, step)
        return self._through_views("hint", self._whole(slots, hidden, head, views), slots, step)

    def reading(
        self,
        slots: Sequence[Slot],
        hidden: Tensor,
        head: OutputHead,
        views: Mapping[str, InStepView] | None,
        step: int,
    ) -> Reading:
        """Return the scores on which the terms' weights of hint slots depend; `views` is None if targets are stored."""
        if views is None:
            batch = restricted(slots, head.kept(hidden, supports(slots, hidden.device)))
        else:
            batch = self._whole(slots, hidden, head, views)
        return read(self.recipe, batch, step=step, base=base(slots, hidden.device))

    def _whole(self, slots: Sequence[Slot], hidden: Tensor, head: OutputHead, views: Mapping[str, InStepView]) -> Batch:
        """Return the batch of views made in this step, over the vocabulary."""
        student = head.logprobs(hidden)
        made = {"student": student}
        for name, view in views.items():
            if view.hidden is hidden:
                made[name] = student
            elif view.logprobs is not None:
                made[name] = view.logprobs
            else:
                assert view.spec is not None
                made[name] = view.spec.logits(view.hidden).log_softmax(-1)
        return whole(slots, made, self.special_ids)

    def _of(self, kind: str) -> dict[str, Term]:
        return {n: t for n, t in self.recipe.terms.items() if t.rows == kind}

    def _through_views(
        self, kind: str, batch: Batch, slots: Sequence[Slot], step: int
    ) -> tuple[Tensor, dict[str, float]]:
        device = batch.sampled.device
        keys = [s.key for s in slots]
        generator = draws(self.seed, step, keys)
        if kind == "hint" and all(key in self.fixed for key in keys):
            each = [self.fixed[key] for key in keys]
            batch = replace(batch, fixed={n: Fixed.joined([e[n] for e in each]).to(device) for n in each[0]})
        value, metrics = objective(
            self.recipe, batch, rows=kind, step=step, base=base(slots, device), generator=generator
        )
        return value * len(slots), metrics

    def _on_supports(
        self, kind: str, slots: Sequence[Slot], hidden: Tensor, spec: HeadSpec, ids: Tensor, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute terms on stored targets, whose support is given: the divergence compares with the stored numbers."""
        weights = base(slots, hidden.device)
        total, metrics = hidden.new_zeros((), dtype=torch.float32), dict[str, float]()
        views, kept = stored(slots, hidden.device), columns(slots, hidden.device)
        for name, term in self._of(kind).items():
            now = BoundTerm.at(term, step)
            target, _ = now.target(views, kept)
            value, each = stored_term(now, hidden, spec, target, ids, weights[name])
            total = total + value
            metrics |= _metrics(name, value, each, weights[name], len(slots))
        return total, metrics

    def _in_chunks(
        self,
        slots: Sequence[Slot],
        hidden: Tensor,
        spec: HeadSpec,
        views: Mapping[str, tuple[Tensor, HeadSpec]],
        step: int,
    ) -> tuple[Tensor, dict[str, float]]:
        weights, ids = base(slots, hidden.device), sampled(slots, hidden.device)
        total, metrics = hidden.new_zeros((), dtype=torch.float32), dict[str, float]()
        for name, term in self._of("hint").items():
            value, each = linear_term(
                term, hidden, spec, views, ids, weights[name], step=step, special_ids=self.special_ids
            )
            total = total + value
            metrics |= _metrics(name, value, each, weights[name], len(slots))
        return total, metrics


def outcome_term(
    slots: Sequence[Slot], hidden: Tensor, head: OutputHead, section: OutcomeSection
) -> tuple[Tensor, dict[str, float]]:
    """Return the sum over outcome slots of the clipped policy gradient, and metrics; `hidden` [N, H] are the student's.

    Only the sampled token's log-probability is computed at each position; see `objectives.outcome.outcome_loss`.
    """
    device = hidden.device
    student = head.kept(hidden, sampled(slots, device)[:, None])[:, 0]
    then = [s.behaviour for s in slots if s.behaviour is not None]
    advantages = torch.tensor([s.outcome.advantage for s in slots if s.outcome is not None], device=device)
    weights = torch.stack([s.weights[REWARD][0] for s in slots]).to(device)
    value, metrics = outcome_loss(
        student,
        torch.cat(then).to(student),
        advantages,
        [s.length for s in slots],
        weights=weights,
        clip_low=section.clip[0],
        clip_high=section.clip[1],
    )
    return value * len(slots), metrics


def _metrics(name: str, value: Tensor, each: Tensor, weights: Tensor, slots: int) -> dict[str, float]:
    carried = weights != 0
    mean = float(each[carried].mean()) if bool(carried.any()) else 0.0
    return {f"{name}/mean": mean, f"{name}/kept_fraction": 1.0, name: float(value.detach()) / slots}


def _sum_over_positions(term: Term) -> bool:
    """Return whether each position's loss is independent of the others; it is then computed in chunks, without tensors
    of size [N, V]."""
    return (
        term.divergence.kind in DIVERGENCES
        and not term.weights
        and term.target.tilt_sign == "none"
        and term.student_view == "student"
    )


def _plain_union(term: Term) -> bool:
    """Return whether a term uses a stored support unchanged, and a target that does not involve the student's own
    view."""
    of = term.target
    return term.support.rest == "tail" and "student" not in (*of.loglin, *of.mixture, of.anchor)

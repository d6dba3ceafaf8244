"""Describe where a recipe's tokens, hints and views come from, and whose weights the teacher has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hintdistill.core.registry import NameIn, require
from hintdistill.recipes import parts
from hintdistill.recipes.teachers import TEACHERS
from hintdistill.recipes.values import Part


def one_of(known: Iterable[str], what: str) -> Any:
    """Return a validator that refuses a word that is not in `known`, and suggests the nearest one."""
    words = tuple(known)
    return AfterValidator(lambda value: require(value, words, what))


class Rollout(Part):
    """State whose rollouts the method was published with. A run trains on recorded steps; log, card and `recipes show` report
    this."""

    source: Annotated[str, one_of(parts.ROLLOUTS, "rollout source")] = "traces"
    """Source of the rollouts. `traces`: recorded ones; `student`: sampled by the student during training."""


class HintKind(Part):
    """State what the teacher has read and the student has not."""

    kind: Annotated[str, NameIn(parts.HINTS)] = "feedback"


class Data(Part):
    """State where tokens and contexts come from; `inject.steps`, `inject.hint` and `rescore.gate.enabled` override
    it."""

    rollout: Rollout = Rollout()
    hint: HintKind = HintKind()
    steps: Literal["findings", "every", "final"] = "findings"
    """Steps that get a context: those with a finding, all steps of every trace, or the last step of every trace."""
    gate: bool = True
    """Whether only contexts that the gate accepts are trained on."""


class View(Part):
    """Describe a view, i.e. weights × context: who predicts, having read what."""

    weights: Literal["live", "teacher", "initial", "external"] = "teacher"
    context: Annotated[str, AfterValidator(parts.require_context)] = "hint"
    """`plain`, `hint` (the teacher's own context, `data.hint`), or the name of a context maker."""
    n: int = Field(default=1, ge=1)
    """Number of contexts of this kind; several become `name_1`, `name_2`, …"""
    rho: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of the hint that a `partial` context shows."""
    grad: bool = False
    """Whether a term trains through this view."""

    @property
    def labels(self) -> list[str]:
        """Names of its `n` contexts in an injection; equal texts have equal names in every recipe."""
        if self.context in parts.OWN_CONTEXTS:
            return [self.context] * self.n
        stem = self.context + (f":{self.rho:g}" if self.context == "partial" else "")
        return [stem if i == 0 else f"{stem}#{i}" for i in range(self.n)]


IMPLICIT_VIEWS = {
    "student": View(weights="live", context="plain", grad=True),
    "teacher": View(weights="teacher", context="hint"),
    "plain": View(weights="teacher", context="plain"),
    "initial": View(weights="initial", context="plain"),
}
"""Views that every recipe may name without declaring them."""


class TeacherRule(Part):
    """Describe the weights of the teacher."""

    update: Annotated[str, NameIn(TEACHERS)] = "initial"
    """The rule. `initial`: the policy from which the run starts; `round_start`: the policy from which this round of the
    loop starts."""
    rate: float = Field(default=0.001, gt=0.0, lt=1.0)
    """For `ema`: θ_T ← (1 - rate)·θ_T + rate·θ after each optimiser step."""
    every: int = Field(default=10, ge=1)
    """Interval in optimiser steps. For `periodic`: between copies of the student; for `cgtr`: between decisions whether
    to copy."""
    isolation: int = Field(default=30, ge=1)
    """For `cgtr`: minimum number of optimiser steps between two copies."""
    margin: float = Field(default=0.05, ge=0.0)
    """For `cgtr`: required rise of the repair rate on held-out findings since the last copy."""
    tail: float = Field(default=3.2, gt=1.0)
    """For `cgtr`: largest expected continuation of a step, as a multiple of that at the start."""
    model: str | None = None
    """For `external`: folder or hub name of the other model; its tokenizer must be the student's."""

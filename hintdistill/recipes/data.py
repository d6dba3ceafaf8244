"""Where a recipe's tokens, hints and views come from, and whose weights the teacher has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hintdistill.core.registry import NameIn, require
from hintdistill.recipes import parts
from hintdistill.recipes.teachers import TEACHERS
from hintdistill.recipes.values import Part


def one_of(known: Iterable[str], what: str) -> Any:
    """Return a validator that refuses a word that is not among `known`, with the nearest one."""
    words = tuple(known)
    return AfterValidator(lambda value: require(value, words, what))


class Rollout(Part):
    """Whose rollouts the method is published on; a run trains on recorded steps, and log, card and `recipes show` say so."""

    source: Annotated[str, one_of(parts.ROLLOUTS, "rollout source")] = "traces"
    """traces: recorded ones; student: those that the student samples while it trains."""


class HintKind(Part):
    """What the teacher has read that the student has not."""

    kind: Annotated[str, NameIn(parts.HINTS)] = "feedback"


class Data(Part):
    """Where tokens and contexts come from; `inject.steps`, `inject.hint` and `rescore.gate.enabled` say it in place of a recipe."""

    rollout: Rollout = Rollout()
    hint: HintKind = HintKind()
    steps: Literal["findings", "every", "final"] = "findings"
    """Which steps get a context: those with a finding, all of every trace, or the last of every trace."""
    gate: bool = True
    """Whether the gate decides which contexts are trained on."""


class View(Part):
    """Weights × context: who predicts, having read what."""

    weights: Literal["live", "teacher", "initial", "external"] = "teacher"
    context: Annotated[str, AfterValidator(parts.require_context)] = "hint"
    """`plain`, `hint` (the teacher's own context, `data.hint`), or the name of a context maker."""
    n: int = Field(default=1, ge=1)
    """How many contexts of this kind; several become `name_1`, `name_2`, …"""
    rho: float = Field(default=0.5, gt=0.0, lt=1.0)
    """The share of the hint that a `partial` context shows."""
    grad: bool = False
    """Whether a term trains through this view."""

    @property
    def labels(self) -> list[str]:
        """The names of its contexts in an injection, one for each of `n`: the same words have the same name in every recipe."""
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
"""The views that every recipe may name without declaring them."""


class TeacherRule(Part):
    """The weights of the teacher."""

    update: Annotated[str, NameIn(TEACHERS)] = "initial"
    """initial: the policy the run starts from; round_start: the one this round of the loop starts from."""
    rate: float = Field(default=0.001, gt=0.0, lt=1.0)
    """ema: θ_T ← (1 - rate)·θ_T + rate·θ after each optimiser step."""
    every: int = Field(default=10, ge=1)
    """periodic: copy the student every so many optimiser steps; cgtr: ask so often whether to."""
    isolation: int = Field(default=30, ge=1)
    """cgtr: optimiser steps between two copies, at least."""
    margin: float = Field(default=0.05, ge=0.0)
    """cgtr: how far the repair rate on held-out findings must have risen since the last copy."""
    tail: float = Field(default=3.2, gt=1.0)
    """cgtr: how many times as long a step may be expected to go on as at the start."""
    model: str | None = None
    """external: folder (or hub name) of the other model; its tokenizer must be the student's."""

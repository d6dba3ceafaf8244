"""Where a recipe's tokens, places, hints and views come from, and whose weights the teacher has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hintdistill.core.registry import NameIn, require
from hintdistill.recipes import parts
from hintdistill.recipes.teachers import TEACHERS
from hintdistill.recipes.values import Part


def one_of(known: Iterable[str], what: str) -> Any:
    """A validator that refuses a word that is not among `known`, with the nearest one."""
    words = tuple(known)
    return AfterValidator(lambda value: require(value, words, what))


class Rollout(Part):
    """Who produced the tokens, as published; a run trains on recorded steps, whatever stands here."""

    source: Annotated[str, one_of(parts.ROLLOUTS, "rollout source")] = "traces"
    n: int | None = Field(default=None, ge=1)
    """Rollouts of a task, tokens of a truncated one, or attempts of a retried one."""
    group: bool = False
    """Whether the rollouts of a task are compared with each other."""
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    share: float | None = Field(default=None, ge=0.0, le=1.0)
    """Of guided rollouts."""
    coin: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of the student's own rollouts, beside a fixed data set (GKD)."""
    length: int | None = Field(default=None, ge=1)
    """Tokens of a resampled suffix."""
    schedule: Literal["linear", "cosine"] | None = None
    """How the length of a teacher's prefix falls to 0."""
    live_traffic: bool = False


class Locator(Part):
    """Which steps or spans are scored, as published; a run scores what its critic located."""

    kind: Annotated[str, one_of(parts.LOCATORS, "locator")] = "top_k_turns"
    k: int | None = Field(default=None, ge=1)
    """Steps of a trace at most."""
    only_failed: bool = False
    max: int | None = Field(default=None, ge=1)
    """Spans of a trace at most."""
    coverage: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of the tokens that spans may cover."""


class HintKind(Part):
    """What the teacher has read that the student has not."""

    kind: Annotated[str, NameIn(parts.HINTS)] = "feedback"
    max_sentences: int | None = Field(default=None, ge=1)
    no_answer: bool = False
    """Whether a hint that gives the answer away is refused."""


class Data(Part):
    """Where tokens, places and hints come from."""

    rollout: Rollout = Rollout()
    locator: Locator = Locator()
    hint: HintKind = HintKind()


class View(Part):
    """Weights × context: who predicts, having read what."""

    weights: Literal["live", "teacher", "initial", "external"] = "teacher"
    context: Annotated[str, one_of(parts.CONTEXTS, "context")] = "hint"
    n: int = Field(default=1, ge=1)
    """How many contexts of this kind; several become `name_1`, `name_2`, …"""
    rho: float = Field(default=0.5, gt=0.0, lt=1.0)
    """The share of the hint that a `partial` context shows."""
    grad: bool = False
    """Whether a term trains through this view."""


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

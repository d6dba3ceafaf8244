"""Where a recipe's tokens, places, hints and views come from, and whose weights the teacher has."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hintdistill.recipes import parts
from hintdistill.recipes.parts import require


class Part(BaseModel):
    """A frozen part of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Rollout(Part):
    """Who produced the tokens, as published. Further keys are the method's own figures."""

    model_config = ConfigDict(frozen=True, extra="allow")
    source: str = "traces"

    @field_validator("source")
    @classmethod
    def _known(cls, value: str) -> str:
        return require(value, parts.ROLLOUTS, "rollout source")


class Locator(Part):
    """Which steps or spans are scored, as published."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str = "top_k_turns"

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        return require(value, parts.LOCATORS, "locator")


class HintKind(Part):
    """What the teacher has read that the student has not."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str = "feedback"

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        return require(value, parts.HINTS, "hint kind")


class Data(Part):
    """Where tokens, places and hints come from."""

    rollout: Rollout = Rollout()
    locator: Locator = Locator()
    hint: HintKind = HintKind()


class View(Part):
    """Weights × context: who predicts, having read what."""

    weights: Literal["live", "teacher", "initial", "external"] = "teacher"
    context: str = "hint"
    n: int = Field(default=1, ge=1)
    """How many contexts of this kind; several become `name_1`, `name_2`, …"""
    rho: float = Field(default=0.5, gt=0.0, lt=1.0)
    """The share of the hint that a `partial` context shows."""
    grad: bool = False
    """Whether a term trains through this view."""

    @field_validator("context")
    @classmethod
    def _known(cls, value: str) -> str:
        return require(value, parts.CONTEXTS, "context")


IMPLICIT_VIEWS = {
    "student": View(weights="live", context="plain", grad=True),
    "teacher": View(weights="teacher", context="hint"),
    "plain": View(weights="teacher", context="plain"),
    "initial": View(weights="initial", context="plain"),
}
"""The views that every recipe may name without declaring them."""


class TeacherRule(Part):
    """The weights of the teacher."""

    update: Literal["initial", "live", "ema", "periodic", "cgtr", "external"] = "initial"
    rate: float = Field(default=0.001, gt=0.0, lt=1.0)
    """ema: θ_T ← (1 - rate)·θ_T + rate·θ after each optimiser step."""
    every: int = Field(default=10, ge=1)
    """periodic: copy the student every so many optimiser steps."""

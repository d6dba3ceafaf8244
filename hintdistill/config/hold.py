"""The section about hold traces."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from hintdistill.config.base import Section
from hintdistill.core.paths import ConfigPath


class HoldSection(Section):
    """Set the hold traces, whose steps are held at the initial policy. They are read and scored, but never critiqued or
    hinted."""

    path: tuple[ConfigPath, ...] = ()
    """A file, a folder, a glob or a zip of traces, or several of them, read like `traces.path`."""
    split: str | None = None
    """Used instead of `path`: a split of `rollout.environment`, whose tasks the initial policy plays once at
    `rollout.sample.temperature`. Every finished episode is held, whatever its reward, so name a split on which the
    present behaviour is right."""
    per_trace: int = Field(default=1, ge=1)
    """Number of steps held per trace, drawn with the run's seed; given steps are never drawn."""
    limit: int | None = Field(default=None, ge=1)
    """Maximum number of traces, drawn with the run's seed; for a split, its first tasks."""
    weight: float | None = Field(default=None, ge=0.0)
    """Coefficient of the hold term (`train.recipe.terms.hold.coef`). A recipe without that term gets the default
    recipe's anchor on these rows, with this coefficient. 0 removes the term; `null` uses the recipe's own coefficient,
    or else the anchor's."""

    @model_validator(mode="after")
    def _one_source(self) -> HoldSection:
        if self.path and self.split is not None:
            raise ValueError(
                "hold traces come from files or from a split of the environment, not both: set either path or split"
            )
        return self

    @property
    def given(self) -> bool:
        """Return whether there are hold traces."""
        return bool(self.path) or self.split is not None

    def terms(self, has_own: bool, default: dict[str, Any]) -> dict[str, Any]:
        """Return this section as overrides of a recipe's terms.

        Args:
            has_own: whether the recipe has a term named `hold`.
            default: the term that a recipe without one gets.
        """
        if self.weight == 0:
            return {"hold": None} if has_own else {}
        if not self.given:
            return {}
        coef = {} if self.weight is None else {"coef": self.weight}
        return {"hold": coef if has_own else {**default, "rows": "hold", **coef}} if coef or not has_own else {}

"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the configuration."""

    documented: ClassVar[str] = "docs/config.md"
    """Where the keys are listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

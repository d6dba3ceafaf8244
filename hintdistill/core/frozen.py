"""Define the base of the boundary types: a frozen pydantic model that refuses unknown keys."""

from __future__ import annotations

from functools import cached_property

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """Base class of frozen pydantic models that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

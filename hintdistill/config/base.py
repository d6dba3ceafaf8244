"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Section(BaseModel):
    """A frozen part of the configuration."""

    documented: ClassVar[str] = "docs/config.md"
    """Where the keys are listed."""

    newer: ClassVar[tuple[str, ...]] = ()
    """Keys that saved runs and results do not know: left out of what is saved while they are at their defaults, so that those stay
    theirs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _without_newer(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = plain(self)
        fields = type(self).model_fields
        for name in self.newer:
            if getattr(self, name) == fields[name].get_default(call_default_factory=True):
                data.pop(name, None)
        return data

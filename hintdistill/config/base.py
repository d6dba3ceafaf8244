"""The base class of all sections of the configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Section(BaseModel):
    """A frozen part of the configuration."""

    documented: ClassVar[str] = "docs/config.md"
    """The page that documents the keys."""

    newer: ClassVar[tuple[str, ...]] = ()
    """Keys that older runs and results do not know. They are not saved while they have their default value, so that
    older results stay valid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _without_newer(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = plain(self)
        fields = type(self).model_fields
        for name in self.newer:
            if getattr(self, name) == fields[name].get_default(call_default_factory=True):
                data.pop(name, None)
        return data

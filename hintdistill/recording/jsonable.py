"""Convert a framework's values to JSON: objects with `model_dump`, and values of any other kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def jsonable(value: Any) -> Any:
    """Return a copy that JSON can represent. A value without a JSON form becomes its text. Raises whatever an object's
    `model_dump` raises."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items() if not _left_out(v)}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    if hasattr(value, "model_dump") and not isinstance(value, type):
        return jsonable(value.model_dump(mode="json", exclude_none=True))
    return str(value)


def _left_out(value: Any) -> bool:
    """Return whether a value is a package's marker for an argument that was not given."""
    return type(value).__name__ in ("NotGiven", "Omit")

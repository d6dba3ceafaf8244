"""Check the numbers and words of a recipe when it is loaded, so that none fails at a later step.

Every scalar of a term may be a schedule instead of a number; both its ends must satisfy the same bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hintdistill.core.parts import Parameter
from hintdistill.core.registry import require


class Part(BaseModel):
    """Base class of frozen parts of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Schedule(Part):
    """Describe a scalar that changes with the optimiser step."""

    start_value: float = Field(alias="from")
    to: float
    steps: int = Field(ge=1)
    start: int = Field(default=0, ge=0)
    kind: Literal["linear", "cosine"] = "linear"


def ends(value: float | Schedule) -> tuple[float, float]:
    """Return the first and the last value of a scalar."""
    return (value.start_value, value.to) if isinstance(value, Schedule) else (value, value)


def _positive(value: float | Schedule) -> float | Schedule:
    if min(ends(value)) <= 0:
        raise ValueError("must be greater than 0, at both ends of a schedule too")
    return value


Number = float | Schedule
Positive = Annotated[Number, AfterValidator(_positive)]


def check(parameter: Parameter, kind: str, value: Any) -> None:
    """Raise ValueError if a part of this kind does not accept the value: a wrong word, count or number."""
    if parameter.takes == "word":
        require(str(value), parameter.words, f"`{parameter.name}` of {kind}")
    elif parameter.takes == "flag" and not isinstance(value, bool):
        raise ValueError(f"{parameter.name} of {kind} must be true or false, not {value!r}")
    elif parameter.takes == "ids":
        if not isinstance(value, list | tuple) or not all(isinstance(i, int) for i in value):
            raise ValueError(f"{parameter.name} of {kind} must be a list of whole numbers, not {value!r}")
    elif parameter.takes == "count":
        if isinstance(value, bool) or not isinstance(value, int) or value < parameter.low:
            raise ValueError(
                f"{parameter.name} of {kind} must be a whole number from {parameter.low:g} up, not {value!r}"
            )
    elif parameter.takes == "number":
        _number(parameter, kind, value)


def _number(parameter: Parameter, kind: str, value: Any) -> None:
    if isinstance(value, Mapping):
        numbers = ends(Schedule.model_validate(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        numbers = (float(value), float(value))
    else:
        raise ValueError(f"{parameter.name} of {kind} must be a number or a schedule, not {value!r}")
    for number in numbers:
        inside = (
            parameter.low < number < parameter.high if parameter.strictly else parameter.low <= number <= parameter.high
        )
        if math.isfinite(number) and inside:
            continue
        where = (
            f"between {parameter.low:g} and {parameter.high:g}"
            if parameter.high < math.inf
            else f"above {parameter.low:g}"
        )
        must = "must be finite"
        if parameter.low > -math.inf or parameter.high < math.inf:
            must = f"must lie {'strictly ' * (parameter.strictly and parameter.high < math.inf)}{where}"
        raise ValueError(f"{parameter.name} of {kind} {must}, not {number:g}{parameter.why}")


def json_schema(parameter: Parameter) -> dict[str, Any]:
    """Return the JSON schema of the values that a parameter accepts."""
    if parameter.takes == "word":
        return {"enum": list(parameter.words)}
    if parameter.takes in ("flag", "view"):
        return {"type": "boolean" if parameter.takes == "flag" else "string"}
    if parameter.takes == "ids":
        return {"type": "array", "items": {"type": "integer"}}
    bounds: dict[str, Any] = {}
    for bound, at in (("inimum", parameter.low), ("aximum", parameter.high)):
        if math.isfinite(at):
            side = "m" + bound
            bounds[f"exclusiveM{bound}" if parameter.strictly else side] = at
    if parameter.takes == "count":
        return {"type": "integer", **bounds}
    return {"anyOf": [{"type": "number", **bounds}, Schedule.model_json_schema()]}

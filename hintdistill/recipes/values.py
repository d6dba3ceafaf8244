"""What the numbers and words of a recipe may be: checked when it is loaded, so that none fails at some later step.

Every scalar of a term may be a schedule instead of a number; both its ends are held to the same bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hintdistill.core.registry import require


class Part(BaseModel):
    """A frozen part of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Schedule(Part):
    """A scalar that moves with the optimiser step."""

    start_value: float = Field(alias="from")
    to: float
    steps: int = Field(ge=1)
    start: int = Field(default=0, ge=0)
    kind: Literal["linear", "cosine"] = "linear"


def ends(value: float | Schedule) -> tuple[float, float]:
    """The first and the last value of a scalar."""
    return (value.start_value, value.to) if isinstance(value, Schedule) else (value, value)


def _positive(value: float | Schedule) -> float | Schedule:
    if min(ends(value)) <= 0:
        raise ValueError("must be greater than 0, at both ends of a schedule too")
    return value


Number = float | Schedule
Positive = Annotated[Number, AfterValidator(_positive)]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a part: its name, and which values it takes."""

    name: str
    takes: Literal["number", "count", "flag", "ids", "view", "word"] = "number"
    """`number`: or a schedule; `count`: a whole number; `ids`: a list of whole numbers; `view`: the name of a view of the recipe."""
    low: float = -math.inf
    high: float = math.inf
    strictly: bool = False
    """Whether a number must lie strictly between `low` and `high`."""
    words: tuple[str, ...] = ()
    default: str | None = None
    """The view that is read where none is named."""
    why: str = ""
    """Why a number must lie where it must."""

    def check(self, kind: str, value: Any) -> None:
        """Raises ValueError where a part of that kind cannot take the value: a word, a count, a number out of its bounds."""
        if self.takes == "word":
            require(str(value), self.words, f"`{self.name}` of {kind}")
        elif self.takes == "flag" and not isinstance(value, bool):
            raise ValueError(f"{self.name} of {kind} is true or false, not {value!r}")
        elif self.takes == "ids":
            if not isinstance(value, list | tuple) or not all(isinstance(i, int) for i in value):
                raise ValueError(f"{self.name} of {kind} is a list of whole numbers, not {value!r}")
        elif self.takes == "count":
            if isinstance(value, bool) or not isinstance(value, int) or value < self.low:
                raise ValueError(f"{self.name} of {kind} is a whole number from {self.low:g} up, not {value!r}")
        elif self.takes == "number":
            self._number(kind, value)

    def _number(self, kind: str, value: Any) -> None:
        if isinstance(value, Mapping):
            numbers = ends(Schedule.model_validate(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers = (float(value), float(value))
        else:
            raise ValueError(f"{self.name} of {kind} is a number or a schedule, not {value!r}")
        for number in numbers:
            inside = self.low < number < self.high if self.strictly else self.low <= number <= self.high
            if math.isfinite(number) and inside:
                continue
            where = f"between {self.low:g} and {self.high:g}" if self.high < math.inf else f"above {self.low:g}"
            must = "must be finite"
            if self.low > -math.inf or self.high < math.inf:
                must = f"must lie {'strictly ' * (self.strictly and self.high < math.inf)}{where}"
            raise ValueError(f"{self.name} of {kind} {must}, not {number:g}{self.why}")

    def json_schema(self) -> dict[str, Any]:
        """The values as JSON schema."""
        if self.takes == "word":
            return {"enum": list(self.words)}
        if self.takes in ("flag", "view"):
            return {"type": "boolean" if self.takes == "flag" else "string"}
        if self.takes == "ids":
            return {"type": "array", "items": {"type": "integer"}}
        bounds: dict[str, Any] = {}
        for bound, at in (("inimum", self.low), ("aximum", self.high)):
            if math.isfinite(at):
                side = "m" + bound
                bounds[f"exclusiveM{bound}" if self.strictly else side] = at
        if self.takes == "count":
            return {"type": "integer", **bounds}
        return {"anyOf": [{"type": "number", **bounds}, Schedule.model_json_schema()]}


def inside(name: str, low: float = 0, high: float = math.inf, why: str = "") -> Parameter:
    """A number strictly between two bounds."""
    return Parameter(name, low=low, high=high, strictly=True, why=why)


def share(name: str) -> Parameter:
    """A number from 0 to 1."""
    return Parameter(name, low=0, high=1)


def at_least(name: str, low: float = 0) -> Parameter:
    """A number from a bound up."""
    return Parameter(name, low=low)


def count(name: str, low: int) -> Parameter:
    """A whole number from a bound up."""
    return Parameter(name, "count", low=low)


def free(*names: str) -> tuple[Parameter, ...]:
    """Numbers without bounds."""
    return tuple(Parameter(n) for n in names)

"""What the numbers and words of a recipe may be: checked when it is loaded, so that none fails at some later step.

Every scalar of a term may be a schedule instead of a number; both its ends are held to the same bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hintdistill.recipes.data import Part
from hintdistill.recipes.parts import require


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

BOUNDS: dict[tuple[str, str], tuple[float, float, bool]] = {
    ("jsd", "alpha"): (0, 1, True),
    ("skew", "alpha"): (0, 1, True),
    ("skew_rkl", "alpha"): (0, 1, True),
    ("mix", "lam"): (0, 1, False),
    ("floor", "lam"): (0, 1, True),
    ("power", "alpha"): (0, math.inf, True),
    ("token_preference", "beta"): (0, math.inf, True),
    ("returns", "gamma"): (0, 1, False),
    ("geom", "gamma"): (0, 1, False),
    ("pg", "clip_low"): (0, 1, False),
    ("pg", "clip_high"): (0, math.inf, False),
    ("pg", "cap"): (0, math.inf, True),
    ("fdiv", "clip"): (0, math.inf, True),
    ("tanh_contrast", "tau"): (0, math.inf, True),
    ("tanh", "tau"): (0, math.inf, True),
    ("top_frac", "rho"): (0, 1, False),
    ("quantile_below", "q"): (0, 1, False),
    ("low_entropy_sign", "q"): (0, 1, False),
    ("robust01", "low"): (0, 1, False),
    ("robust01", "high"): (0, 1, False),
    ("saturate", "c"): (0, math.inf, True),
    ("rolling_stop", "eta"): (0, 1, False),
    ("sigmoid_clip", "alpha"): (0, 1, False),
    ("logistic_pos", "scale"): (0, math.inf, True),
    ("first_n", "n"): (0, math.inf, False),
    ("last_n", "n"): (0, math.inf, False),
    ("skip_n", "n"): (0, math.inf, False),
}
"""Lowest and highest value of a parameter, and whether it must lie strictly between; the rest takes any finite number."""
COUNTS = {"window": 1, "patience": 1, "skip": 0, "baseline_k": 1}
"""Whole numbers, with the least."""
FLAGS = frozenset({("threshold", "below"), ("affine", "flip")})
IDS = frozenset({"ids", "layers"})
VIEWS = frozenset({"behaviour", "reference"})
"""Parameters that name a view; the recipe checks that it has it."""
WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("fdiv", "of"): ("fkl", "rkl", "jsd"),
    ("pg", "ratio"): ("token", "row"),
    ("pg", "baseline"): ("value",),
}


def check(kind: str, name: str, value: Any) -> None:
    """Raises ValueError where a part of that kind cannot take the value: a word, a count, a number out of its bounds."""
    if (kind, name) in WORDS:
        require(str(value), WORDS[kind, name], f"`{name}` of {kind}")
    elif (kind, name) in FLAGS:
        if not isinstance(value, bool):
            raise ValueError(f"{name} of {kind} is true or false, not {value!r}")
    elif name in IDS:
        if not isinstance(value, list | tuple) or not all(isinstance(i, int) for i in value):
            raise ValueError(f"{name} of {kind} is a list of whole numbers, not {value!r}")
    elif name in COUNTS:
        if isinstance(value, bool) or not isinstance(value, int) or value < COUNTS[name]:
            raise ValueError(f"{name} of {kind} is a whole number from {COUNTS[name]} up, not {value!r}")
    elif name not in VIEWS:
        _number(kind, name, value)


def _number(kind: str, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        numbers = ends(Schedule.model_validate(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        numbers = (float(value), float(value))
    else:
        raise ValueError(f"{name} of {kind} is a number or a schedule, not {value!r}")
    low, high, strictly = BOUNDS.get((kind, name), (-math.inf, math.inf, False))
    for number in numbers:
        inside = low < number < high if strictly else low <= number <= high
        if math.isfinite(number) and inside:
            continue
        where = f"between {low:g} and {high:g}" if high < math.inf else f"above {low:g}"
        why = "; its ends are fkl and rkl" if kind == "jsd" else ""
        must = (
            f"must lie {'strictly ' * (strictly and high < math.inf)}{where}"
            if (kind, name) in BOUNDS
            else "must be finite"
        )
        raise ValueError(f"{name} of {kind} {must}, not {number:g}{why}")

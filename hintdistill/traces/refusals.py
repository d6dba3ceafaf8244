"""Recognise files that often accompany traces but contain none, and say how to use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def not_a_trace(value: Any) -> str | None:
    """Return why a record that fits no format is not a trace, if its form shows that; else None. Never raises."""
    if not isinstance(value, Mapping):
        return None
    if "mistake_step" in value and isinstance(value.get("history"), list):
        return (
            "a labelled Who&When record, in which several agents speak and none is the student; `hintdistill "
            "critique --labels` evaluates a critic on it"
        )
    if "trajectory_id" in value and "failures" in value:
        return (
            "AgentRx labels without their trajectories; `hintdistill critique --labels` reads them together with "
            "the trajectories' files"
        )
    function = value.get("function", value)
    if isinstance(function, Mapping) and isinstance(function.get("name"), str) and "parameters" in function:
        return f"the schema of the tool {function['name']!r}; name a file of schemas in `traces.tools`"
    return None

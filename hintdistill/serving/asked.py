"""Define the requests that the server accepts, as shown on its OpenAPI page. Torch-free."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from hintdistill.core.types import Placement

_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_CALL: dict[str, Any] = {
    "id": "1",
    "type": "function",
    "function": {"name": "weather_lookup", "arguments": '{"city":"Paris"}'},
}
_MESSAGES: list[Any] = [
    {"role": "user", "content": "How warm is it in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "1", "content": '{"error":"unknown tool weather_lookup"}'},
]
_HINT = "The tool list has get_weather, not weather_lookup."


class Asked(BaseModel):
    """Base of all requests. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    messages: list[dict[str, Any]] | dict[str, Any]
    """The conversation: chat messages, Responses items or Anthropic messages; or a whole request."""
    tools: list[dict[str, Any]] | None = None
    """Schemas of the tools that the agent had."""
    step: int | None = None
    """Number of the assistant message, from 0; negative numbers count from the end."""
    distributions: bool = False
    """Whether the answer includes the distributions, the largest part of a target."""


class DiagnoseAsked(Asked):
    """Ask which step went wrong, and which hint would have prevented it. Without `step`, every step is examined."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": _MESSAGES, "tools": [_TOOL]}]})

    twins: bool = False
    """Whether to look for the smallest change of the context that would make the step right."""
    candidates: int = Field(default=4, ge=1, le=4)
    """Number of hints to try for each finding."""


class RescoreAsked(Asked):
    """Ask what effect a hint would have had on a step. Without `step`, the student's last step is used."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": _MESSAGES, "tools": [_TOOL], "hint": _HINT, "quote": "weather_lookup"}]
        }
    )

    hint: str | None
    """Text of the hint; null scores the step without a hint."""
    quote: str | None = None
    """The wrong words of the step."""
    placement: Placement = "message"


class RankAsked(Asked):
    """Ask which of several hints would have had the largest effect. Without `step`, the student's last step is used."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": _MESSAGES, "tools": [_TOOL], "hints": [_HINT, "Be careful."], "quote": "weather_lookup"}
            ]
        }
    )

    hints: list[str] = Field(min_length=1, max_length=32)
    quote: str | None = None
    """The wrong words of the step."""
    placement: Placement = "message"

"""The requests that the server accepts, as its OpenAPI page shows them. Torch-free."""

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
    """Fields that every request has. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    messages: list[dict[str, Any]] | dict[str, Any]
    """The conversation: chat messages, Responses items or Anthropic messages; or a whole request."""
    tools: list[dict[str, Any]] | None = None
    """Schemas of the tools the agent had."""
    step: int | None = None
    """Which assistant message, from 0; negative numbers count from the end."""
    distributions: bool = False
    """Whether the answer has the distributions themselves, which are most of a target."""


class DiagnoseAsked(Asked):
    """Which step went wrong, and which hint would have prevented it? Without `step`, every step is looked at."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": _MESSAGES, "tools": [_TOOL]}]})

    twins: bool = False
    """Whether the smallest change of the context is looked for in which the step would be right."""
    candidates: int = Field(default=4, ge=1, le=4)
    """Hints tried per finding."""


class RescoreAsked(Asked):
    """What would this hint have done to a step? Without `step`, the last one of the student."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": _MESSAGES, "tools": [_TOOL], "hint": _HINT, "quote": "weather_lookup"}]
        }
    )

    hint: str | None
    """The hint's words; null scores the step without one."""
    quote: str | None = None
    """The wrong words of the step."""
    placement: Placement = "message"


class RankAsked(Asked):
    """Which of these hints would have done most? Without `step`, about the last step of the student."""

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

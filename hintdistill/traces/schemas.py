"""Convert tool schemas from the forms of many sources into OpenAI function schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hintdistill.core.errors import TraceError
from hintdistill.traces.values import check_plain, kind


def parse_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the tool schemas of a list (wrapped, bare or names only), a dict by name, or a JSON string of one of
    those.

    Raises:
        TraceError: a string is not JSON, or a schema has no name.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise TraceError("`tools` is a string that is not JSON") from None
    if isinstance(value, Mapping):
        value = [{"name": k, **v} if isinstance(v, Mapping) and "name" not in v else v for k, v in value.items()]
    if not isinstance(value, list):
        raise TraceError(f"`tools` must be a list, not {kind(value)}")
    return tuple(_tool(t) for item in value for t in _declared(item))


def _declared(item: Any) -> list[Any]:
    """Return the declared schemas; Gemini wraps its schemas once more than other APIs."""
    for key in ("function_declarations", "functionDeclarations"):
        if isinstance(item, Mapping) and isinstance(item.get(key), list):
            return list(item[key])
    return [item]


def _tool(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"type": "function", "function": {"name": value}}
    if isinstance(value, Mapping):
        function = value.get("function", value)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            rest = {k: v for k, v in value.items() if k not in ("type", "function")} if "function" in value else {}
            return {"type": "function", "function": _schema(function), **rest}
        if "function" not in value and isinstance(value.get("type"), str) and value["type"] != "function":
            # a tool the server itself runs, e.g. `web_search`: its type is all the name it has
            return {
                "type": "function",
                "function": {"name": value["type"]},
                **{k: v for k, v in value.items() if k != "type"},
            }
    raise TraceError(f"a tool schema without a name: {json.dumps(value, default=str)[:80]}")


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return one function's schema. The `input_schema` of other APIs, or a list of single arguments, becomes
    `parameters`."""
    made = {k: v for k, v in function.items() if k != "type"}
    for other in ("input_schema", "inputSchema", "parameters_json_schema"):
        if "parameters" not in made and isinstance(made.get(other), Mapping):
            made["parameters"] = made.pop(other)
    listed = made.get("parameters")
    if isinstance(listed, list):
        named = [p for p in listed if isinstance(p, Mapping) and isinstance(p.get("name"), str)]
        if len(named) < len(listed):
            raise TraceError(f"tool {made['name']!r} lists a parameter without a name")
        made["parameters"] = {
            "type": "object",
            "properties": {p["name"]: {k: v for k, v in p.items() if k not in ("name", "required")} for p in named},
            "required": [p["name"] for p in named if p.get("required") is True],
        }
    return made


class LastTools:
    """Cache the latest parsed schemas, because most traces of a file have the same ones."""

    def __init__(self) -> None:
        self._given: Any = None
        self._parsed: tuple[dict[str, Any], ...] = ()

    def parse(self, value: Any) -> tuple[dict[str, Any], ...]:
        """Parse like `parse_tools`. Raises TraceError."""
        if type(value) is not type(self._given) or value != self._given:
            parsed = parse_tools(value)
            check_plain(list(parsed), "tools")
            self._given, self._parsed = value, parsed
        return self._parsed


TOOLS = LastTools()
"""The cache shared by all readers of a process."""

"""Help makers of twins with tool schemas: find the intended tool, make a schema for a call, change one place of a
schema.

A schema is edited as text, `json.dumps(schema, ensure_ascii=False)`. A change consists of an old text that occurs once,
and a new text.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hintdistill.core.schemas import CannotJudge, violations
from hintdistill.core.types import Finding, Replacement, ToolCall, Trace


def json_of(value: Any) -> str:
    """Return a value as JSON, in the form that edits use."""
    return json.dumps(value, ensure_ascii=False)


def json_type(value: Any) -> str:
    """Return the JSON schema type of a value."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (dict, "object"),
        (list, "array"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def _takes(schema: Mapping[str, Any], args: Mapping[str, Any]) -> bool:
    """Return whether a parameter schema accepts these arguments and requires no others."""
    if not set(args) <= set(schema.get("properties") or {}):
        return False
    try:
        return not violations(schema, args)
    except CannotJudge:
        # vendors' schemas use types that JSON schema does not know; the names agree
        return set(schema.get("required") or ()) <= set(args)


def right_tool(trace: Trace, finding: Finding, call: ToolCall) -> str | None:
    """Return the listed tool that a call to an unlisted one intended; None if it cannot be determined.

    The search uses, in this order: the finding's fact `right`; the only listed tool that its hint names; the tool that
    the next step calls with the same arguments; the only listed tool that accepts the call's arguments; of several such
    tools, the one with the clearly nearest name.
    """
    listed, args = trace.tool_schemas, call.arguments or {}
    if finding.facts.get("right") in listed:
        return str(finding.facts["right"])
    fits = [name for name, schema in listed.items() if _takes(schema, args)]
    words = set((finding.hint or "").replace(",", " ").replace(".", " ").replace("`", " ").split())
    if len(hinted := [name for name in listed if name in words]) == 1 and hinted[0] in fits:
        return hinted[0]
    if finding.step + 1 < len(trace.step_indices):
        later = [c for c in trace.step(finding.step + 1).tool_calls if c.name in fits and c.arguments == call.arguments]
        if len(later) == 1:
            return later[0].name
    if len(fits) < 2:
        return next(iter(fits), None)
    near = sorted(((difflib.SequenceMatcher(None, call.name, n).ratio(), n) for n in fits), reverse=True)
    return near[0][1] if near[0][0] >= near[1][0] + 0.15 else None


def schema_for(call: ToolCall, like: dict[str, Any] | None) -> dict[str, Any]:
    """Return a schema that makes a call right: another tool's schema under the called name, or one made from the
    call's arguments."""
    if like is not None:
        schema = copy.deepcopy(like)
        (schema.get("function") or schema)["name"] = call.name
        if _takes((schema.get("function") or schema).get("parameters") or {}, call.arguments or {}):
            return schema
    args = call.arguments or {}
    parameters = {
        "type": "object",
        "properties": {name: {"type": json_type(value)} for name, value in args.items()},
        "required": list(args),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": call.name, "parameters": parameters}}


def _once(tool: dict[str, Any], number: int, old: str, new: str) -> tuple[Replacement, ...]:
    if json_of(tool).count(old) != 1:
        return ()
    return (Replacement(where="tools", index=number, old=old, new=new),)


def with_note(tool: dict[str, Any], number: int, note: str) -> tuple[Replacement, ...]:
    """Return a change that adds a sentence to a tool's description; empty if its place is not unique."""
    function = tool.get("function") or tool
    name, about = function["name"], function.get("description")
    if isinstance(about, str):
        more = " ".join(filter(None, (about, note)))
        return _once(
            tool,
            number,
            f'"description": {json_of(about)}, "parameters"',
            f'"description": {json_of(more)}, "parameters"',
        ) or _once(tool, number, f'"description": {json_of(about)}', f'"description": {json_of(more)}')
    old = f'"name": {json_of(name)}'
    return _once(tool, number, old, f'{old}, "description": {json_of(note)}')


def without_requirement(parameters: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Return the old and new text of a schema's list of required arguments, without one of them."""
    names = list(parameters.get("required") or ())
    return f'"required": {json_of(names)}', f'"required": {json_of([n for n in names if n != name])}'


def with_argument(
    tool: dict[str, Any], number: int, name: str, value: Any, beside: str | None
) -> tuple[Replacement, ...]:
    """Return a change that adds an argument directly after another one, with the same schema.

    Args:
        value: the passed value; it determines the type of the new argument if no other argument is named.
    """
    parameters = (tool.get("function") or tool).get("parameters") or {}
    properties = parameters.get("properties") or {}
    own = {"type": json_type(value)}
    if beside is not None and isinstance(properties.get(beside), dict):
        own = dict(properties[beside])
    if not properties:
        return _once(tool, number, '"properties": {}', f'"properties": {{{json_of(name)}: {json_of(own)}}}')
    last = beside if beside in properties else list(properties)[-1]
    old = f"{json_of(last)}: {json_of(properties[last])}"
    return _once(tool, number, old, f"{old}, {json_of(name)}: {json_of(own)}")


def with_argument_note(tool: dict[str, Any], number: int, name: str, note: str) -> tuple[Replacement, ...]:
    """Return a change that adds a sentence to an argument's description; empty if its place is not unique."""
    spec = ((tool.get("function") or tool).get("parameters") or {}).get("properties", {}).get(name)
    if not isinstance(spec, dict):
        return ()
    said = {**spec, "description": " ".join(filter(None, (spec.get("description"), note)))}
    return _once(tool, number, f"{json_of(name)}: {json_of(spec)}", f"{json_of(name)}: {json_of(said)}")


@dataclass(frozen=True)
class ArgumentError:
    """Describe a value that its schema does not allow."""

    key: str
    """The argument, or the innermost named part of it."""
    spec: dict[str, Any]
    """The schema of that part."""
    value: Any
    rule: str
    """The violated keyword: `type`, `enum`, `minimum`, ..."""


def argument_errors(function: Mapping[str, Any], call: ToolCall) -> list[ArgumentError]:
    """Return the values of a call that violate their argument's schema, in the order of their places."""
    schema = function.get("parameters") or {}
    try:
        found = violations(schema, call.arguments or {})
    except CannotJudge:
        # see `_takes`: such a schema cannot judge a call
        return []
    out = []
    for error in found:
        names = [p for p in error.path if isinstance(p, str)]
        if names and isinstance(error.schema, dict) and error.schema.get(error.rule) is not None:
            out.append(ArgumentError(names[-1], dict(error.schema), error.value, error.rule))
    return out


_BOUNDS = {
    "minimum": lambda v: v,
    "maximum": lambda v: v,
    "minLength": len,
    "maxLength": len,
    "minItems": len,
    "maxItems": len,
}


def relaxations(error: ArgumentError) -> Iterator[tuple[str, str, str]]:
    """Return the ways to allow a value: kind of edit, old text and new text of its schema."""
    spec, value = error.spec, error.value
    old = json_of(spec)
    if error.rule == "type":
        named = spec["type"] if isinstance(spec["type"], list) else [spec["type"]]
        yield "type", old, json_of({**spec, "type": json_type(value)})
        yield "union", old, json_of({**spec, "type": [*named, json_type(value)]})
    elif error.rule == "enum":
        choices = list(spec["enum"])
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], 1, 0.0)
        at = [str(c) for c in choices].index(near[0]) if near else 0
        yield "enum_replaced", old, json_of({**spec, "enum": [*choices[:at], value, *choices[at + 1 :]]})
        yield "enum_added", old, json_of({**spec, "enum": [*choices, value]})
    elif error.rule in _BOUNDS:
        yield "relaxed", old, json_of({**spec, error.rule: _BOUNDS[error.rule](value)})
    yield "open", old, json_of({k: v for k, v in spec.items() if k != error.rule})

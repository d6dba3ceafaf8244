"""One tool call of any API: its name, its id, and its arguments, which differ in their key.

A missing key is never replaced by a default. A call that has content, but none under a known key for arguments, is
refused; the error names the keys it has. Only a call that consists of a name and nothing else is a call without
arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hintdistill.core.errors import TraceError
from hintdistill.traces.values import kind

ARGUMENTS = (
    "arguments",
    "args",
    "input",
    "parameters",
    "params",
    "kwargs",
    "toolinput",
    "toolarguments",
    "toolargs",
    "functionarguments",
    "functionargs",
    "inputs",
    "argumentsjson",
    "inputjson",
)
"""The keys that may hold arguments, in the spelling of `plain_key` and in the order in which they are tried."""
NAMES = ("name", "functionname", "toolname", "tool")
IDS = ("id", "callid", "toolcallid", "tooluseid")
ENVELOPE = frozenset(
    {
        *NAMES,
        *IDS,
        "function",
        "custom",
        "type",
        "index",
        "status",
        "requestor",
        "caller",
        "parseerror",
        "view",
        "internal",
        "thoughtsignature",
        "signature",
        "providerspecificfields",
        "providermetadata",
        "provideroptions",
        "providerexecuted",
        "providername",
        "providerdetails",
        "extracontent",
        "cachecontrol",
        "namespace",
        "serverlabel",
        "metadata",
        "createdat",
        "createdby",
        "timestamp",
        "invalid",
        "dynamic",
        "title",
        "object",
        "partkind",
    }
)
"""Keys of a call that do not hold arguments."""
_CHAT = {"name", "arguments"}


def plain_key(key: Any) -> str:
    """Spell a key without case, underscores and hyphens, so that `toolInput` and `tool_input` are the same."""
    return str(key).lower().replace("_", "").replace("-", "")


def call_fields(value: Any, index: int) -> dict[str, Any]:
    """Return the fields of one ToolCall.

    Args:
        value: the call as its source gives it, wrapped in `function` or flat.
        index: index of the call's message, for errors.

    Raises:
        TraceError: the call has no name, or has content under unknown keys only.
    """
    function = value.get("function") if type(value) is dict else None
    if type(function) is dict and function.keys() == _CHAT and type(function["arguments"]) is str:
        fields = {"name": function["name"], "arguments_raw": function["arguments"]}
        if type(found := value.get("id")) is str:
            fields["id"] = found
        if type(function["name"]) is str and value.keys() <= {"id", "type", "function", "index"}:
            return fields
    if not isinstance(value, Mapping):
        raise TraceError(f"message {index}: a tool call is {kind(value)}, not an object")
    holders = _holders(value)
    keys = [{plain_key(k): v for k, v in holder.items()} for holder in holders]
    name = next((k[n] for k in keys for n in NAMES if isinstance(k.get(n), str) and k[n]), None)
    if name is None:
        raise TraceError(f"message {index}: a tool call without a function name")
    fields = {"name": name, **_arguments(name, holders, keys, index)}
    call_id = next((k[n] for k in reversed(keys) for n in IDS if isinstance(k.get(n), str)), None)
    return fields if call_id is None else {**fields, "id": call_id}


def name_and_arguments(call: Any) -> tuple[Any, Any]:
    """Return a call's name and its unchanged arguments, from whichever known keys hold them; None if there are none."""
    if not isinstance(call, Mapping):
        return None, call
    keys = [{plain_key(k): v for k, v in holder.items()} for holder in _holders(call)]
    name = next((k[n] for k in keys for n in NAMES if isinstance(k.get(n), str)), None)
    return name, next((k[a] for a in ARGUMENTS for k in keys if k.get(a) is not None), None)


def _holders(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the objects that may hold the name and the arguments, the inner one first."""
    for key in ("function", "custom"):
        inner = value.get(key)
        if isinstance(inner, Mapping):
            return [inner, value]
        if isinstance(inner, str):
            return [{"name": inner}, value]
    return [value]


def _arguments(name: str, holders: list[Mapping[str, Any]], keys: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """Return the unchanged arguments; a string is kept byte for byte. Raises TraceError if unknown keys have
    content."""
    for known in ARGUMENTS:
        for held in keys:
            if (found := held.get(known)) is not None:
                if isinstance(found, str):
                    return {"arguments_raw": found}
                return {"arguments_raw": json.dumps(found or {}, ensure_ascii=False), "arguments_form": "object"}
    other = [
        str(k)
        for holder in holders
        for k, v in holder.items()
        if plain_key(k) not in ENVELOPE and plain_key(k) not in ARGUMENTS and v not in (None, "", [], {})
    ]
    if other:
        shown = ", ".join(repr(k) for k in other[:6])
        raise TraceError(
            f"message {index}: the call of {name!r} has no arguments under a known key "
            f"({', '.join(ARGUMENTS[:6])}, …), but has {shown}"
        )
    return {"arguments_raw": "{}", "arguments_form": "object"}

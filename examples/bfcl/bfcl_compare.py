"""Compare calls with the right ones of a single-turn task. A test checks this comparison against the package's.

It agrees with bfcl-eval's on what is allowed: strings are compared without case, white space and `,./-_*^`; integers pass for
floats; a value of the possible answers' own type passes for a variable; an empty list counts as left out. Where the package's raises
(an object where a list of objects has something else), the call is wrong here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bfcl_data import Entry

KINDS: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
"""The Python type for each described type; `any` contains text."""


@dataclass(frozen=True)
class Said:
    """A call as the student wrote it."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Mismatch:
    """Why calls are not the right ones."""

    error_class: str
    """`unneeded_call`, `missing_call`, `call_count`, `wrong_tool`, `missing_argument`, `extra_argument`, `wrong_type`, `wrong_value`."""
    call: int | None = None
    """Which of the calls, counted from 0; None: none of them."""
    argument: str | None = None
    right: dict[str, Any] | None = None
    """The possible answer that was looked for: name → argument → allowed values."""


def mismatch(entry: Entry, calls: Sequence[Said]) -> Mismatch | None:
    """What is wrong with the calls of a task; None where they are right.

    Several calls may come in any order: each possible answer takes the first call that fits and is not taken yet.
    """
    if entry.answer is None:
        return None if calls else Mismatch("missing_call")
    if not entry.answer:
        return Mismatch("unneeded_call", 0) if calls else None
    if not calls:
        return Mismatch("missing_call", right=entry.answer[0])
    if len(calls) != len(entry.answer):
        return Mismatch("call_count", right=entry.answer[min(len(calls), len(entry.answer) - 1)])
    described = {f["name"]: f["parameters"] for f in reversed(entry.functions)}
    taken: set[int] = set()
    for right in entry.answer:
        first: Mismatch | None = None
        for i, call in enumerate(calls):
            if i in taken:
                continue
            found = _one(described[next(iter(right))], right, call)
            if found is None:
                taken.add(i)
                break
            nearer = first is None or (first.error_class == "wrong_tool" and found[0] != "wrong_tool")
            first = Mismatch(found[0], i, found[1], right) if nearer else first
        else:
            return first
    return None


def _one(parameters: dict[str, Any], right: dict[str, Any], call: Said) -> tuple[str, str | None] | None:
    """Error class and argument of one call against one possible answer."""
    ((name, allowed),) = right.items()
    if call.name != name:
        return "wrong_tool", None
    for needed in parameters.get("required", ()):
        if needed not in call.arguments:
            return "missing_argument", needed
    for argument, value in call.arguments.items():
        if argument not in parameters["properties"] or argument not in allowed:
            return "extra_argument", argument
        wrong = value_error(parameters["properties"][argument], value, allowed[argument])
        if wrong:
            return wrong, argument
    for argument, values in allowed.items():
        if argument not in call.arguments and "" not in values:
            return "missing_argument", argument
    return None


def value_error(described: dict[str, Any], value: Any, allowed: Sequence[Any]) -> str | None:
    """`wrong_type` or `wrong_value` of an argument; None where it is allowed."""
    kind = KINDS[described["type"]]
    inner = KINDS[described["items"]["type"]] if described["type"] in ("array", "tuple") else None
    if described["type"] == "float" and type(value) is int:
        value = float(value)
    own = _kind_of(allowed)
    of_kind = type(value) is kind
    if of_kind and inner is not None:
        of_kind = any(not isinstance(a, list) or all(_is(v, inner, a) for v in value) for a in allowed)
        if not of_kind:
            return "wrong_type"
    if not of_kind and type(value) is not own:
        return "wrong_type"
    # the answers are of another type than the argument: they name a variable, and are compared as they are
    special = of_kind and (own is None or own is kind)
    if not special:
        return None if value in allowed else "wrong_value"
    return None if _equal(kind, inner, value, allowed) else "wrong_value"


def _equal(kind: type, inner: type | None, value: Any, allowed: Sequence[Any]) -> bool:
    if kind is dict:
        return any(_same_object(value, a) for a in allowed if a != "")
    if kind is list and inner is dict:
        return any(
            len(a) == len(value) and all(_same_object(v, b) for v, b in zip(value, a, strict=True)) for a in allowed
        )
    if kind is str:
        return plain(value) in [plain(a) for a in allowed if isinstance(a, str)]
    if kind is list:
        return [_plain(v) for v in value] in [[_plain(v) for v in a] for a in allowed]
    return value in allowed


def _same_object(value: Any, right: Any) -> bool:
    """Whether an object has allowed values in all its keys, and every key that it must have."""
    if not isinstance(value, dict) or not isinstance(right, dict):
        return False
    fits = all(k in right and _plain(v) in [_plain(a) for a in right[k]] for k, v in value.items())
    return fits and all(k in value or "" in allowed for k, allowed in right.items())


def _kind_of(values: Sequence[Any]) -> type | None:
    """Return the type of the first value that has one; None if no value has a type."""
    return next((type(v) for v in values if v != ""), None)


def _is(value: Any, kind: type, allowed: Sequence[Any]) -> bool:
    """Whether an item of a list has its type, or that of the answers' items."""
    return type(value) is kind or type(value) is _kind_of(allowed)


def plain(text: str) -> str:
    """A string without what the comparison ignores."""
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def right_calls(entry: Entry) -> list[Said]:
    """Calls that are right: of every argument the first allowed value, of those that may be left out only what the request names."""
    described = {f["name"]: f["parameters"] for f in reversed(entry.functions)}
    out = []
    for right in entry.answer or ():
        ((name, allowed),) = right.items()
        needed = described[name].get("required", ())
        arguments = {}
        for argument, values in allowed.items():
            given = [v for v in values if v != ""]
            if given and ("" not in values or argument in needed or _asked_for(given[0], entry.request)):
                arguments[argument] = _first(given[0])
            elif not given and argument in needed:
                # it must be given, and no text is the only right one
                arguments[argument] = ""
        out.append(Said(name, arguments))
    return out


def _asked_for(value: Any, request: str) -> bool:
    plain_value = isinstance(value, str | int | float) and not isinstance(value, bool)
    return plain_value and str(value).lower() in request.lower()


def _first(value: Any) -> Any:
    """An allowed value as an argument holds it: in an object, or in the objects of a list, every key has a list of allowed values."""
    if isinstance(value, dict):
        return {k: next(v for v in allowed if v != "") for k, allowed in value.items() if "" not in allowed}
    if isinstance(value, list):
        return [_first(v) if isinstance(v, dict) else v for v in value]
    return value

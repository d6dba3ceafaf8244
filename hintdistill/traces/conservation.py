"""Find what a record contains and its traces lack: every string of the source is searched for in the traces made from
it.

A string is kept if the traces contain it as often as the record does: as a message, in a call, in `extra`, in a schema,
or as part of one of those. JSON within strings is parsed on both sides. Missing strings are listed by their key path
(`messages[].usage.id`), with the reason that `left_out.json` gives for exactly that path; a path without a reason is an
unexplained loss.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.core.types import Trace
from hintdistill.traces.calls import name_and_arguments
from hintdistill.traces.left_out import REPEATING, left_out
from hintdistill.traces.options import Failure

SHAPE = frozenset({"type", "role", "object", "kind", "from", "part_kind", "arguments_form", "event", "event_type"})
"""Keys whose values describe a shape: they decide how a value is read and are not content."""
REFERENCE = "attachment://"
"""A string that refers to another string, which is read in its place."""
LONG = 12
"""A string of at least this many characters is also searched for inside longer strings, as often as it occurs."""


@dataclass(frozen=True)
class Lost:
    """Describe the strings of one key path that no trace of the record contains."""

    path: str
    strings: int
    characters: int
    example: str
    """The first lost string, cut to 60 characters."""
    reason: str | None
    """Why the strings are left out; None if no reason is recorded."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Return the key path and text of every string of a decoded value, including strings inside JSON strings, without
    recursion."""
    stack: list[tuple[Any, str, str]] = [(value, path, "")]
    while stack:
        at, where, key = stack.pop()
        if isinstance(at, str):
            inner = _unpacked(at)
            if inner is not None:
                stack.append((inner, where, key))
            elif at and not (key in SHAPE and len(at) < 40) and not at.startswith(REFERENCE):
                yield where, at
        elif isinstance(at, dict):
            stack += [(v, f"{where}.{k}" if where else str(k), str(k)) for k, v in reversed(at.items())]
        elif isinstance(at, list | tuple):
            # a tree repeats a key on every level: its paths are written once
            inner = where if where.endswith(f".{key}[].{key}") else f"{where}[]"
            inner = inner.removesuffix(f".{key}") if inner == where else inner
            stack += [(v, inner, key) for v in reversed(at)]


def _unpacked(text: str) -> Any:
    """Return the object or list that a string encodes as JSON; None if it is plain text."""
    if text[:1] not in ("{", "[", '"') or text[-1:] not in ("}", "]", '"'):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list | str) else None


Call = tuple[str, str]
"""The name of a call, and its arguments as JSON in a fixed order, or as text if they are not JSON."""


def calls_in(value: Any) -> Iterator[tuple[str, Call]]:
    """Return key path, name and arguments of every object that has the form of a call in any API, without recursion."""
    stack: list[tuple[Any, str]] = [(value, "")]
    while stack:
        at, where = stack.pop()
        if isinstance(at, str):
            inner = _unpacked(at)
            if isinstance(inner, dict | list):
                stack.append((inner, where))
        elif isinstance(at, dict):
            if _is_call(at):
                name, arguments = name_and_arguments(at)
                if isinstance(name, str):
                    yield where, (name, _canonical(arguments))
                    continue
            stack += [(v, f"{where}.{k}" if where else str(k)) for k, v in reversed(at.items())]
        elif isinstance(at, list | tuple):
            stack += [(v, f"{where}[]") for v in reversed(at)]


def _is_call(value: dict[str, Any]) -> bool:
    """Return whether an object has a name and arguments and is not a schema."""
    what = str(value.get("type", ""))
    if what.endswith(("tool_use", "custom_tool_call")) or "toolUseId" in value:
        return isinstance(value.get("name"), str) and "input" in value
    named = any(isinstance(value.get(k), str) for k in ("name", "function", "function_name", "toolName", "tool_name"))
    return named and any(isinstance(value.get(k), str | dict) for k in ("arguments", "args"))


def _canonical(arguments: Any) -> str:
    """Return arguments as JSON in a fixed order, however they were wrapped in strings; broken JSON is returned as
    text."""
    for _ in range(3):
        if not isinstance(arguments, str):
            break
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return json.dumps(arguments or {}, sort_keys=True, default=str)


class _Kept:
    """Hold the strings of some traces."""

    def __init__(self, traces: Iterable[Trace]) -> None:
        found = [s for t in traces for _, s in leaves(t.model_dump(mode="json", exclude={"source"}))]
        found += [s for t in traces for s in _raw(t)]
        self._exact = Counter(found)
        self._all = "\0".join(found)

    def times(self, text: str, wanted: int) -> int:
        """Return how often a string occurs, counting only up to the wanted number."""
        have = self._exact[text]
        if have >= wanted or not text.strip():
            return wanted if not text.strip() else have
        if len(text) >= LONG:
            return self._all.count(text)
        if have == 0:
            # short words are kept inside others or not at all; how often cannot be told
            return wanted if len(text) > 2 and text in self._all else 0
        return have


def _raw(trace: Trace) -> Iterator[str]:
    """Return texts of a trace that may contain JSON as a whole, because a source may have stored their parts
    separately."""
    for m in trace.messages:
        for text in (m.content, m.raw_text, *(c.arguments_raw for c in m.tool_calls)):
            if text and _unpacked(text) is not None:
                yield text


def lost_of(value: Any, outcomes: Sequence[Trace | Failure], format_name: str) -> list[Lost]:
    """Return the strings of a record that its traces lack, by key path, unexplained ones first.

    Args:
        value: the decoded record; for formats of file scope, the list of the file's values.
        outcomes: the traces and failures that a reader made from it.
        format_name: the reader's format, whose recorded reasons apply.
    """
    traces = [o for o in outcomes if isinstance(o, Trace)]
    reasons = left_out(format_name)
    repeats = format_name in REPEATING
    kept = _Kept(traces)
    wanted: Counter[str] = Counter()
    places: dict[str, dict[str, int]] = {}
    for path, text in leaves(value):
        places.setdefault(text, {}).setdefault(path, 0)
        places[text][path] += 1
        if path not in reasons:
            wanted[text] = 1 if repeats else wanted[text] + 1
    missing: dict[str, list[str]] = {}
    made = Counter((c.name, _canonical(c.arguments_raw)) for t in traces for m in t.messages for c in m.tool_calls)
    counted: Counter[Call] = Counter()
    for path, call in calls_in(value):
        if path not in reasons:
            counted[call] = 1 if repeats else counted[call] + 1
        if made[call] < max(1, counted[call]):
            missing.setdefault(path, []).append(f"{call[0]}({call[1]})")
    for text, paths in places.items():
        need = wanted[text] or 1
        if kept.times(text, need) < need:
            unexplained = [p for p in paths if p not in reasons]
            for path in unexplained or paths:
                missing.setdefault(path, []).append(text)
    found = [
        Lost(path, len(texts), sum(map(len, texts)), texts[0][:60], reasons.get(path))
        for path, texts in missing.items()
    ]
    return sorted(found, key=lambda item: (item.reason is not None, item.path))


def lost_record(value: Any, outcomes: Sequence[Trace | Failure], held: Iterable[str]) -> list[Lost]:
    """Return the losses of a record of any format. If the record gave no trace, everything is lost, for the failure's
    reason.

    Args:
        value: the decoded record.
        outcomes: the outcomes of the record, all of them failures.
        held: reasons of failures that lose nothing, because another trace contains the same content.
    """
    failures = [o for o in outcomes if isinstance(o, Failure) and o.reason not in held]
    texts = [text for _, text in leaves(value)]
    if not failures or not texts:
        return []
    return [Lost("", len(texts), sum(map(len, texts)), texts[0][:60], failures[0].reason)]


def summed(found: Iterable[Lost]) -> list[Lost]:
    """Return one entry for each key path and reason, entries without a reason first."""
    by: dict[tuple[bool, str, str | None], Lost] = {}
    for item in found:
        key = (item.reason is not None, item.path, item.reason)
        held = by.get(key)
        by[key] = (
            item
            if held is None
            else Lost(
                held.path, held.strings + item.strings, held.characters + item.characters, held.example, held.reason
            )
        )
    return [by[key] for key in sorted(by, key=lambda k: (k[0], k[1], k[2] or ""))]

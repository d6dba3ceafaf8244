"""Decide whether a tool only reads or changes something outside the conversation.

The environment or the file of `traces.tools` may declare the effect by the tool's name. A schema may declare it, either
as `effect` (`reads`, `read`, `none`, or anything else for a change) or as MCP's `annotations.readOnlyHint`, in the
schema or in its `function`. Without a declaration, the words of the name can decide (`effect_of`), on the safe side: a
verb of change makes the tool a changing one, a verb of reading makes it a reading one, and any other name is `unknown`.
An unknown effect counts as a change wherever a guarantee depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hintdistill.core.types import ToolEffect, Trace

Effect = Literal["reads", "changes", "unknown"]
"""The effect of a tool call on the world outside the conversation."""

_READS = """analyse analyze browse calculate check compare compute convert count describe detect estimate explain fetch find
forecast get head inspect list look lookup measure peek preview query read retrieve search show summarise summarize track
translate validate verify view"""
_CHANGES = """accept activate add adjust apply append approve archive assign authorize block book buy call cancel charge checkout
clear clone close commit confirm copy create deactivate decline delete deploy destroy disable dispatch drop edit enable erase
exchange execute exec file fill grant insert install invite invoice issue kill launch lock mail make merge modify move open
order overwrite patch pay place post provision publish purchase push put refund register reject release remove rename renew
replace reply reserve reset restart return revoke rollback run save schedule sell send set share sign start stop submit
subscribe suspend transfer trigger uninstall unlock unsubscribe update upgrade upload withdraw write"""
READS, CHANGES = frozenset(_READS.split()), frozenset(_CHANGES.split())
"""Verbs in tool names that indicate the effect, used if the tool's schema does not declare it."""


def declared_effect(schema: Mapping[str, Any]) -> ToolEffect | None:
    """Return the effect that a tool's schema declares, in the schema or in its `function`; None without a
    declaration."""
    for part in (schema, schema.get("function") or {}):
        said = part.get("effect") if isinstance(part, Mapping) else None
        if isinstance(said, str):
            return "reads" if said.casefold() in ("read", "reads", "none", "read_only") else "changes"
        notes = part.get("annotations") if isinstance(part, Mapping) else None
        if isinstance(notes, Mapping) and isinstance(notes.get("readOnlyHint"), bool):
            return "reads" if notes["readOnlyHint"] else "changes"
    return None


def tool_effect(trace: Trace, name: str) -> ToolEffect | None:
    """Return whether a tool reads or changes state; None if nothing declares it, or if no schema has this name.

    A declaration by the environment or the file of `traces.tools` comes first, then the trace's own schema. The words
    of the name are not used.
    """
    if name in trace.tool_effects:
        return trace.tool_effects[name]
    schema = next((s for s in trace.tools if (s.get("function") or s).get("name") == name), None)
    return None if schema is None else declared_effect(schema)


def named_effect(name: str) -> Effect:
    """Return the effect that the words of a tool's name suggest: that of the first word if it is a known verb, else a
    change if any word is a verb of change."""
    words = [w.casefold() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if words and words[0] in READS:
        # find_order, track_order: the noun may be spelled like a verb of change
        return "reads" if not _both(words) else "changes"
    if any(w in CHANGES for w in words):
        return "changes"
    return "reads" if any(w in READS for w in words) else "unknown"


def _both(words: Sequence[str]) -> bool:
    """Return whether a name joins a verb of reading and then a verb of change: `get_and_delete`, `find_or_create`."""
    return any(w in ("and", "or", "then") and words[i + 1 : i + 2] for i, w in enumerate(words)) and any(
        w in CHANGES for w in words[1:]
    )


def effect_of(
    name: str, schemas: Sequence[Mapping[str, Any]] = (), known: Mapping[str, ToolEffect] | None = None
) -> Effect:
    """Return the declared effect of a tool, or else the effect that its names suggest.

    Args:
        name: the name under which it is called.
        schemas: the tool's schema; for a renamed tool, also the schema of the tool whose name it took.
        known: effects by tool name, declared by the environment or `traces.tools`; see `Trace.tool_effects`.

    Returns:
        `changes` if any declaration says so; `reads` if every declaration says so; without a declaration, the effect
        that the names suggest.
    """
    names = {name, *(str((s.get("function") or s).get("name", name)) for s in schemas)}
    declared = {d for s in schemas if (d := declared_effect(s))} | {e for n, e in (known or {}).items() if n in names}
    if declared:
        return "changes" if "changes" in declared else "reads"
    found = {named_effect(n) for n in names}
    if "changes" in found:
        return "changes"
    return "reads" if found == {"reads"} else "unknown"

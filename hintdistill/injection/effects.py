"""Whether a tool only reads, or changes something outside the conversation.

A schema may say it: `effect` (`read`, `none`, or anything else for a change) or MCP's `annotations.readOnlyHint`, in the schema
or in its `function`. Where it says nothing the words of the name decide, on the safe side: a word of a change makes it one, a
word of reading makes it a reader, and any other name is `unknown`, which counts as a change wherever a promise depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Effect = Literal["reads", "changes", "unknown"]
"""What a call of a tool does to the world outside the conversation."""

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
"""Words of tool names that say what a tool does, where its schema does not."""


def declared_effect(schema: Mapping[str, Any]) -> Effect:
    """What a tool's schema says of itself; `unknown` where it says nothing."""
    for part in (schema, schema.get("function") or {}):
        said = part.get("effect") if isinstance(part, Mapping) else None
        if isinstance(said, str):
            return "reads" if said.casefold() in ("read", "reads", "none", "read_only") else "changes"
        notes = part.get("annotations") if isinstance(part, Mapping) else None
        if isinstance(notes, Mapping) and isinstance(notes.get("readOnlyHint"), bool):
            return "reads" if notes["readOnlyHint"] else "changes"
    return "unknown"


def named_effect(name: str) -> Effect:
    """What the words of a tool's name say: the first one decides where it is a verb, else any word of a change."""
    words = [w.casefold() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if words and words[0] in READS:
        # find_order, track_order: the noun may be spelled like a verb of change
        return "reads" if not _both(words) else "changes"
    if any(w in CHANGES for w in words):
        return "changes"
    return "reads" if any(w in READS for w in words) else "unknown"


def _both(words: Sequence[str]) -> bool:
    """Whether a name joins a second verb of change to a first verb of reading: `get_and_delete`, `find_or_create`."""
    return any(w in ("and", "or", "then") and words[i + 1 : i + 2] for i, w in enumerate(words)) and any(
        w in CHANGES for w in words[1:]
    )


def effect_of(name: str, schemas: Sequence[Mapping[str, Any]] = ()) -> Effect:
    """The effect of a tool by its schemas (one, or that of the tool whose name it took), else by its names.

    Returns:
        `changes` as soon as one schema says so; `reads` where all that declare it say so; by the names where none declares it.
    """
    declared = {d for s in schemas if (d := declared_effect(s)) != "unknown"}
    if declared:
        return "changes" if "changes" in declared else "reads"
    names = {name, *(str((s.get("function") or s).get("name", name)) for s in schemas)}
    found = {named_effect(n) for n in names}
    if "changes" in found:
        return "changes"
    return "reads" if found == {"reads"} else "unknown"

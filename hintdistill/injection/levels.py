"""Compute the level of a hint, i.e. how much of the answer it reveals, from its text and the student's context.

| level | the hint | |---|---| | 0 | states a principle, without the answer or facts of this instance; its words fit any
trace | | 1 | narrows the choice with facts of the instance (the called tool, the requested item, every listed tool),
without a correction | | 2 | contains a correction, i.e. a word of the right step that the context does not offer as the
answer | | 3 | names something that is neither in the context nor in a schema, so the student could not have found it |

A *fact* is a word of the hint that occurs in a user message, an observation or a tool schema, or is a literal (number,
name, identifier, quoted string). Plain words of instructions (`PLAIN`) are not facts. A *correction* is a fact that the
erring step does not contain: a listed tool or a declared argument that it did not use, a literal, or a word of the
finding's fact `right`. The context *offers* a correction if it is the only one of its kind that the step did not use,
or if the hint names all of that kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Literal

from hintdistill.core.types import Finding, Trace

Level = Literal[0, 1, 2, 3]
LEVELS: tuple[Level, ...] = (0, 1, 2, 3)

_WORD = re.compile(r"[^\W_][\w'-]*|\w+")
_PLAIN = """a about above action actions according after again against agree agrees all already also always an and another
answer answered answers any argument arguments as ask asked asking asks at attempt available be because been before beginning
being below between both but by call called calling calls can cannot careful carefully change changes check clear come comes
complaint complains compare complete confirm confirms consequences consult contain contains conversation correct correctly could
declares description did different do does doing done each else end error errors even every everything exact exactly executed
fail failed failing fails failure false far few field fields final find finish finished first follow for form format from full
further get give given gives go goes good guess guessing had has have having here hold how however if in instead instruction
instructions into invent invented is it its itself json just keep keyword know known last later least left led let like list
listed lists look looked looking looks made make makes matter may meant message messages missing mistake more most must name
named names need needed needs never next no not nothing now object objects observation of on once one only or order other out
own part pass past pick plain please possible prose provide put question quote reach read reading reads reason refused remember
repeat repeated reply request require required requires respond response result results retry return returned returns right rule
rules said same say says schema schemas see seen set should show shown shows sign signature since situation so some something
spell spelled spelling start state stated step steps still stop string such sure take takes task tasks tell than that the their
them then there these they thing things this those though time to together told too tool tools tried true try turn type types
undone unless until up us use used user uses using valid value values verify very wait was way well went were what when where
whether which while who will with without word words would write written wrong yes yet you your"""
PLAIN: frozenset[str] = frozenset(_PLAIN.split())
"""Words of instructions about tools, calls and answers; they are not facts, wherever they occur."""


def hint_level(hint: str, trace: Trace, finding: Finding, unknown: Collection[str]) -> Level:
    """Return the level of a hint above a step.

    Args:
        unknown: literals of the hint that are neither in the context nor in a schema (`hints.leaks`).
    """
    if unknown:
        return 3
    corrections = _corrections(hint, trace, finding)
    if corrections and not _offered(corrections, trace, finding):
        return 2
    return 1 if corrections or _facts(hint, trace, finding) else 0


def answer_words(hint: str, trace: Trace, finding: Finding) -> frozenset[str]:
    """Return the words, in lower case, that an answer-free version of the hint must not contain: its facts and its
    corrections."""
    return frozenset(_facts(hint, trace, finding) | _corrections(hint, trace, finding))


def right_words(finding: Finding) -> frozenset[str]:
    """Return the words of the finding's fact `right` in lower case, without plain words of instructions."""
    right = finding.facts.get("right")
    text = right if isinstance(right, str) else json.dumps(right, ensure_ascii=False)
    return frozenset(words_of(text)) - PLAIN if right else frozenset()


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case; identifiers stay whole."""
    return [w.casefold().removesuffix("'s") for w in _WORD.findall(text)]


def _facts(hint: str, trace: Trace, finding: Finding) -> set[str]:
    seen = _instance_words(trace, finding.step)
    literal = {w for w in words_of(hint) if "_" in w or any(c.isdigit() for c in w)}
    return literal | {w for w in words_of(hint) if w in seen and w not in PLAIN and len(w) > 1}


def _step_words(trace: Trace, step: int) -> set[str]:
    """Return the words of the step: its text, and its calls."""
    message = trace.step(step)
    calls = [f"{c.name} {c.arguments_raw}" for c in message.tool_calls]
    return set(words_of(" ".join([message.content or "", *calls])))


def _instance_words(trace: Trace, step: int) -> set[str]:
    """Return the words of this instance: those of users, tools and the student up to the step, and of the tool
    schemas."""
    said = [m.content or "" for m in trace.before(step) if m.role not in ("system", "developer")]
    calls = [f"{c.name} {c.arguments_raw}" for k in range(step) for c in trace.step(k).tool_calls]
    return set(words_of(" ".join([*said, *calls, *_names(trace)]))) | _step_words(trace, step)


def _names(trace: Trace) -> list[str]:
    return [*trace.tool_schemas, *(a for s in trace.tool_schemas.values() for a in s.get("properties") or {})]


def _corrections(hint: str, trace: Trace, finding: Finding) -> set[str]:
    """Return the facts of the hint that the erring step does not contain and that could be part of a step."""
    step, found = _step_words(trace, finding.step), set(words_of(hint))
    names = {n.casefold() for n in _names(trace)}
    literal = {w for w in found if "_" in w or any(c.isdigit() for c in w)}
    values = {w for w in found & _observed(trace, finding.step) if w not in PLAIN and not w.isalpha()}
    candidates = right_words(finding) | names | literal | values
    return {w for w in found & candidates if w not in step}


def _observed(trace: Trace, step: int) -> set[str]:
    return set(words_of(" ".join(m.content or "" for m in trace.before(step) if m.role in ("tool", "user"))))


def _offered(corrections: set[str], trace: Trace, finding: Finding) -> bool:
    """Return whether the context itself offers these as the answer: each is of a kind of which the hint names all
    remaining ones."""
    step = _step_words(trace, finding.step)
    called = [c.name for c in trace.step(finding.step).tool_calls]
    tools = {n.casefold() for n in trace.tool_schemas}
    kinds = [tools - step]
    for name in called:
        kinds.append({a.casefold() for a in trace.tool_schemas.get(name, {}).get("properties") or {}} - step)
    for word in corrections:
        of = [kind for kind in kinds if word in kind]
        if not of or not any(kind <= corrections for kind in of):
            return False
    return True

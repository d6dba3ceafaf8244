"""The words of a hint: from the critic or from the template of its error class, the placebos beside it, the guards.

The two guards look at text alone. A hint leaks when it names a literal (number, id, date, quoted string, name) that the
student could not have read above the step; it speaks another dialect when it shows JSON spaced unlike the student's
own, because the gradient would then teach white space.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from typing import Any, Literal

from hintdistill.errors import NoHintError, PromptError
from hintdistill.prompts import PromptLibrary, hint_classes, hint_name
from hintdistill.types import Finding, Trace

PlaceboKind = Literal["generic", "shuffled", "other_class"]
PLACEBO_KINDS: tuple[PlaceboKind, ...] = ("generic", "shuffled", "other_class")
GENERIC = "placebo/generic.jinja"

_LITERALS = re.compile(
    r"\"(?P<double>[^\"\n]{1,80})\"|`(?P<tick>[^`\n]{1,80})`|(?<!\w)'(?P<single>[^'\n]{1,80})'(?!\w)"
    r"|(?P<word>[\w.+-]+@[\w-]+\.[\w.]+|https?://\S+|\w*\d[\w./:-]*|\w+_\w+)"
)
_NAME = re.compile(r"(?<=[a-z,;)] )[A-Z][a-z]+\b")
_SPACED = re.compile(r"\"\s*:\s")
_COMPACT = re.compile(r"\"\s*:[^\s]")


def seed_of(*parts: object) -> int:
    """A number that depends on the parts alone, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def hint_facts(trace: Trace, finding: Finding) -> dict[str, Any]:
    """What a hint template may use: the finding's facts over what every step has."""
    calls = trace.step(finding.step).tool_calls
    call = calls[finding.call or 0] if calls and (finding.call or 0) < len(calls) else None
    tools = list(trace.tool_schemas)
    facts: dict[str, Any] = {
        "quote": finding.quote or "",
        "step": finding.step,
        "tools": tools,
        "variant": seed_of(trace.id, finding.step, finding.error_class),
    }
    if call is not None:
        facts["tool"] = call.name
        facts["arguments"] = list(trace.tool_schemas.get(call.name, {}).get("properties", {}))
    return facts | finding.facts


def hint_text(trace: Trace, finding: Finding, library: PromptLibrary) -> str:
    """The critic's own words, or the template of the error class.

    Raises:
        NoHintError: the finding has no hint and its class no template.
        PromptError: the template lacks a fact.
    """
    if finding.hint:
        return finding.hint
    name = hint_name(finding.error_class)
    if not library.has(name):
        raise NoHintError(
            f"the finding has no hint and the error class {finding.error_class!r} no template",
            hint=f"add {name} to the folder critic.prompts names, or let the critic write the hint",
        )
    return library.render(name, hint_facts(trace, finding))


def placebo_texts(
    trace: Trace, finding: Finding, hint: str, library: PromptLibrary, n: int
) -> list[tuple[PlaceboKind, str]]:
    """`n` hints that should do nothing, the kinds in turn, no text twice and never the hint itself."""
    rng = random.Random(seed_of("placebo", trace.id, finding.step, hint))
    out: list[tuple[PlaceboKind, str]] = []
    taken = {hint}
    for i in range(n):
        kind = PLACEBO_KINDS[i % len(PLACEBO_KINDS)]
        text = _placebo(kind, trace, finding, hint, library, rng, taken)
        if text is None:
            kind, text = "generic", _placebo("generic", trace, finding, hint, library, rng, taken)
        if text is None:
            raise PromptError(f"{GENERIC} offers too few different placebos", hint="add variants to it")
        taken.add(text)
        out.append((kind, text))
    return out


def _placebo(
    kind: str, trace: Trace, finding: Finding, hint: str, library: PromptLibrary, rng: random.Random, taken: set[str]
) -> str | None:
    if kind == "shuffled":
        words = hint.split()
        for _ in range(16):
            rng.shuffle(words)
            if (text := " ".join(words)) not in taken:
                return text
        return None
    if kind == "generic":
        first = rng.randrange(1 << 16)
        texts = (library.render(GENERIC, {"variant": first + i}) for i in range(32))
        return next((t for t in texts if t not in taken), None)
    classes = [c for c in hint_classes(library) if c != finding.error_class]
    rng.shuffle(classes)
    facts = {"right": "value", "wrong": "value", "argument": "value", "error": "timeout", "expected": "of type string",
             "tool": "the tool", "arguments": ["value"]} | hint_facts(trace, finding)  # fmt: skip
    for error_class in classes:
        try:
            text = library.render(hint_name(error_class), facts)
        except PromptError:
            continue
        if text not in taken:
            return text
    return None


def guards(hint: str, trace: Trace, step: int, context: str, step_text: str) -> tuple[str, ...]:
    """Text-level reasons against a hint; empty when there are none."""
    reasons = [f"leak: {word!r} is not in the step's context" for word in leaks(hint, trace, context + step_text)[:3]]
    if differs_in_dialect(hint, trace, step):
        reasons.append("dialect: the hint spaces JSON unlike the student does")
    return tuple(reasons)


def leaks(hint: str, trace: Trace, known: str) -> list[str]:
    """Literals of the hint that neither the known text nor a tool schema contains."""
    text = (known + json.dumps(trace.tools, ensure_ascii=False)).casefold()
    found = [next(g for g in m.groups() if g is not None) for m in _LITERALS.finditer(hint)]
    found += [m.group(0) for m in _NAME.finditer(hint)]
    words = (w.strip(".,:;!?()") for w in found)
    return [w for w in dict.fromkeys(words) if w and w.casefold() not in text]


def differs_in_dialect(hint: str, trace: Trace, step: int) -> bool:
    """Whether the hint shows JSON and spaces it unlike the student's own calls up to and including the step."""
    style = _style([hint])
    if style is None:
        return False
    own = _style(
        [c.arguments_raw for k in range(step + 1) for c in trace.step(k).tool_calls if c.arguments_form == "string"]
    )
    return own is not None and own != style


def _style(texts: Sequence[str]) -> str | None:
    spaced = sum(len(_SPACED.findall(t)) for t in texts)
    compact = sum(len(_COMPACT.findall(t)) for t in texts)
    if spaced == compact:
        return None
    return "spaced" if spaced > compact else "compact"

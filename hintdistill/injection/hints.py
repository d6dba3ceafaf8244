"""Write the text of a hint, from the critic or the template of its error class, with its placebos and guards.

The guards check only the text. A hint leaks when it names a literal (number, id, date, quoted string, name) that the
student could not have read above the step. It is illegal when it tells the student to call an unlisted tool, or a
listed tool with an argument that it does not have. It is vacuous when it contains nothing specific to the step. It has
another dialect when its JSON is spaced differently from the student's, because the gradient would then teach white
space.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Collection, Sequence
from typing import Any, get_args

from hintdistill.core.errors import NoHintError, PromptError
from hintdistill.core.types import Finding, PlaceboKind, Trace
from hintdistill.injection.levels import answer_words, right_words, words_of
from hintdistill.prompts import PromptLibrary, hint_classes, hint_name

PlaceboText = tuple[PlaceboKind, str]
"""Kind and text of a placebo."""
PLACEBO_KINDS: tuple[PlaceboKind, ...] = get_args(PlaceboKind)
GENERIC = "placebo/generic.jinja"

_LITERALS = re.compile(
    r"\"(?P<double>[^\"\n]{1,80})\"|`(?P<tick>[^`\n]{1,80})`|(?<!\w)'(?P<single>[^'\n]{1,80})'(?!\w)"
    r"|(?P<word>[\w.+-]+@[\w-]+\.[\w.]+|https?://\S+|\w*\d[\w./:-]*|\w+_\w+)"
)
_NUMBER_WORDS = re.compile(
    r"\b(?:eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty(?:-\w+)?|hundred"
    r"|thousand|million)\b",
    re.IGNORECASE,
)
_PROPOSES = re.compile(
    r"(?<!not )(?<!never )(?<!n't )(?<!of )(?<!cannot )\b(?:call|use|run|invoke|try|retry|choose|take|pick|start with|begin with)\s+"
    r"(?:the\s+)?(?:tool\s+|function\s+)?[`\"']?(?P<name>[A-Za-z_][\w-]*)[`\"']?(?P<call>\s*\()?",
    re.IGNORECASE,
)
_SHOWN_CALL = re.compile(
    r"\{\s*\"name\"\s*:\s*\"(?P<name>[\w.-]+)\"\s*,\s*\"(?:arguments|parameters)\"\s*:\s*(?P<arguments>\{[^{}]*\})"
)
_EMPTY_WORDS = """a again all always and answer attention avoid be before being best better by careful carefully check
correct correctly do double-check error errors every everything fine friendly good hard harder in is it just kind make
mistake mistakes more no not now of ok okay pay please polite possible precise proceed properly really remember reply
response right step steps sure take task that the there think this thoroughly time to try user very well with work you
your"""
_EMPTY = frozenset(_EMPTY_WORDS.split())
"""Words without content: a hint that has no other words is vacuous."""
_NAME = re.compile(
    r"(?<=[a-z,;)] )[A-Z][a-z]+\b|\b[A-Z][a-z]+(?= [A-Z][a-z])|(?<=[A-Z][a-z] )[A-Z][a-z]+|\b[A-Z][a-z]+(?='s\b)|\b[A-Z]{2,}\b"
)
_ABBREVIATIONS = frozenset(
    {"API", "CSV", "DD", "ID", "ISO", "JSON", "MM", "NOT", "OK", "SQL", "URL", "UTC", "XML", "YYYY"}
)
_SPACED = re.compile(r"\"\s*:\s")
_COMPACT = re.compile(r"\"\s*:[^\s]")


def seed_of(*parts: object) -> int:
    """Return a number that depends only on the parts and is the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def hint_facts(trace: Trace, finding: Finding) -> dict[str, Any]:
    """Return the facts that a hint template may use: those of the step, overridden by those of the finding."""
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
    """Return the critic's own words, or the template of the error class.

    Raises:
        NoHintError: the finding has no hint and its class has no template.
        PromptError: a fact that the template uses is missing.
    """
    if finding.hint:
        return finding.hint
    name = hint_name(finding.error_class)
    if not library.has(name):
        raise NoHintError(
            f"the finding has no hint, and the error class {finding.error_class!r} has no template",
            hint=f"add {name} to the folder that critic.prompts names, or let the critic write the hint",
        )
    return library.render(name, hint_facts(trace, finding))


def from_critic(
    trace: Trace, finding: Finding, library: PromptLibrary, kinds: Sequence[PlaceboKind]
) -> tuple[str, list[PlaceboText]]:
    """Return the hint source `critic`: the critic's words or its class's template, and a placebo of each kind. Raises
    the errors of `hint_text`."""
    hint = hint_text(trace, finding, library)
    return hint, placebo_texts(trace, finding, hint, library, kinds)


def from_placebo(
    trace: Trace, finding: Finding, library: PromptLibrary, kinds: Sequence[PlaceboKind]
) -> tuple[str, list[PlaceboText]]:
    """Return the hint source `placebo`: a generic hint in place of the critic's, with further placebos. Raises the
    errors of `hint_text`."""
    first, *others = placebo_texts(trace, finding, hint_text(trace, finding, library), library, ("generic", *kinds))
    return first[1], others


def placebo_texts(
    trace: Trace, finding: Finding, hint: str, library: PromptLibrary, kinds: Sequence[PlaceboKind]
) -> list[PlaceboText]:
    """Return a placebo of each kind, all with different texts and none equal to the hint.

    If a kind has no further text, a generic placebo replaces it, under the name `generic`. Raises: PromptError: there
    are too few different generic placebos.
    """
    rng = random.Random(seed_of("placebo", trace.id, finding.step, hint))
    answer = answer_words(hint, trace, finding)
    out: list[PlaceboText] = []
    taken = {hint}
    for wanted in kinds:
        kind, text = wanted, None
        if wanted == "other_class":
            # a hint that names the missing thing does not name its tool; another class's would
            text = other_class_hint(trace, finding, library, rng, taken, answer | right_words(finding))
        elif wanted == "shuffled_answer_free":
            text = _shuffled(_without(hint, answer, _generic(library, rng, taken) or ""), rng, taken)
        elif wanted == "shuffled":
            text = _shuffled(hint.split(), rng, taken)
        if text is None:
            kind, text = "generic", _generic(library, rng, taken)
        if text is None:
            raise PromptError(f"{GENERIC} has too few different placebos", hint="add variants to that file")
        taken.add(text)
        out.append((kind, text))
    return out


def _shuffled(words: list[str], rng: random.Random, taken: Collection[str]) -> str | None:
    """Return the words in another order; None if every order is already used."""
    for _ in range(16):
        rng.shuffle(words)
        if (text := " ".join(words)) not in taken:
            return text
    return None


def _without(hint: str, answer: Collection[str], fill: str) -> list[str]:
    """Return the hint's words without those of the answer, filled up with words of a generic hint to the same
    number."""
    words = hint.split()
    free = [w for w in words if not set(answer) & set(words_of(w))]
    return free + fill.split()[: len(words) - len(free)]


def _generic(library: PromptLibrary, rng: random.Random, taken: Collection[str]) -> str | None:
    first = rng.randrange(1 << 16)
    texts = (library.render(GENERIC, {"variant": first + i}) for i in range(32))
    return next((t for t in texts if t not in taken), None)


def other_class_hint(
    trace: Trace,
    finding: Finding,
    library: PromptLibrary,
    rng: random.Random,
    taken: Collection[str] = (),
    answer: Collection[str] = frozenset(),
) -> str | None:
    """Return another error class's hint about the same step; None if no other template can be filled.

    Args:
        taken: texts that are already used.
        answer: words in lower case that it must not contain: a hint that names the right tool is not a placebo.
    """
    classes = [c for c in hint_classes(library) if c != finding.error_class]
    rng.shuffle(classes)
    facts = {
        "right": "value",
        "wrong": "value",
        "argument": "value",
        "error": "timeout",
        "expected": "of type string",
        "tool": "the tool",
        "arguments": ["value"],
    } | hint_facts(trace, finding)
    for error_class in classes:
        try:
            text = library.render(hint_name(error_class), facts)
        except PromptError:
            continue
        if text not in taken and not set(answer) & set(words_of(text)):
            return text
    return None


def guards(hint: str, trace: Trace, step: int, context: str, step_text: str) -> tuple[str, ...]:
    """Return the text-level reasons against a hint; empty if there are none."""
    reasons = [
        f"leak: {word!r} does not occur in the step's context" for word in leaks(hint, trace, context + step_text)[:3]
    ]
    reasons += [f"illegal: {what}" for what in illegal_actions(hint, trace)[:3]]
    if is_vacuous(hint):
        reasons.append("vacuous: the hint says nothing about this step")
    if differs_in_dialect(hint, trace, step):
        reasons.append("dialect: the hint's JSON is spaced differently from the student's")
    return tuple(reasons)


def leaks(hint: str, trace: Trace, known: str) -> list[str]:
    """Return the literals of the hint that occur neither in the known text nor in a tool schema.

    Digits count as known only as whole numbers: order 1420 does not make the literal 42 known.
    """
    text = (known + json.dumps(trace.tools, ensure_ascii=False)).casefold()
    found = [next(g for g in m.groups() if g is not None) for m in _LITERALS.finditer(hint)]
    found += [m.group(0) for m in _NAME.finditer(hint) if m.group(0) not in _ABBREVIATIONS]
    found += [m.group(0) for m in _NUMBER_WORDS.finditer(hint)]
    words = (w.strip(".,:;!?()") for w in found)
    return [w for w in dict.fromkeys(words) if w and not _known(w.casefold(), text)]


def _known(word: str, text: str) -> bool:
    if not word[0].isdigit() and not word[-1].isdigit():
        return word in text
    before, after = r"(?<![\w.])" if word[0].isdigit() else "", r"(?!\w)" if word[-1].isdigit() else ""
    return re.search(before + re.escape(word) + after, text) is not None


def illegal_actions(hint: str, trace: Trace) -> list[str]:
    """Return the calls that the hint proposes and the tool schemas do not allow; empty without schemas."""
    schemas = trace.tool_schemas
    if not schemas:
        return []
    called = {c.name for k in range(len(trace.step_indices)) for c in trace.step(k).tool_calls}
    out = []
    for match in _PROPOSES.finditer(hint):
        name, is_call = match["name"], match["call"] is not None
        if name in schemas or not ("_" in name or is_call or name in called):
            continue
        arguments = {a for schema in schemas.values() for a in schema.get("properties", {})}
        if name not in arguments:
            out.append(f"the hint proposes {name}, which is not a listed tool")
    for match in _SHOWN_CALL.finditer(hint):
        name = match["name"]
        shown = re.findall(r"\"(\w+)\"\s*:", match["arguments"])
        if name not in schemas:
            out.append(f"the hint shows a call of {name}, which is not a listed tool")
        elif (declared := schemas[name].get("properties")) is not None:
            out += [
                f"the hint shows {name} with {a}, an argument that it does not have" for a in shown if a not in declared
            ]
    return list(dict.fromkeys(out))


def primes(hint: str, trace: Trace, finding: Finding) -> list[str]:
    """Return the parts of a hint that may make the error more likely: the wrong name before any other name, or a list
    of tools."""
    said = words_of(hint)
    listed = {n.casefold() for n in trace.tool_schemas}
    wrong = {c.name.casefold() for c in trace.step(finding.step).tool_calls} - listed
    if isinstance(finding.facts.get("wrong"), str):
        wrong.add(finding.facts["wrong"].casefold())
    names = listed | {a.casefold() for s in trace.tool_schemas.values() for a in s.get("properties") or {}} | wrong
    first = next((w for w in said if w in names), None)
    out = [f"the wrong name {first!r} comes first"] if first in wrong else []
    if len(listed & set(said)) > 2:
        out.append(f"the hint lists {len(listed & set(said))} tools")
    return out


def is_vacuous(hint: str) -> bool:
    """Return whether a hint is too short to have content, or contains only encouragement and caution."""
    words = re.findall(r"[^\W_][\w'-]*", hint.casefold())
    return len(hint.strip()) <= 10 or all(w in _EMPTY for w in words)


def differs_in_dialect(hint: str, trace: Trace, step: int) -> bool:
    """Return whether the hint shows JSON with different spacing from the student's calls up to and including the
    step."""
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

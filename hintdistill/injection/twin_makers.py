"""Define the shipped makers of twins, one per family of error classes: they write edits that make the step right.

A maker reads a `TwinCase` and yields edits, each of a different kind. It invents no facts: an edit only states what the
step did (the tool that it called, the argument that it wrote, the value that it stated). Other code decides which edits
become twins: first the text checks, then the policy. docs/twins.md has the table.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hintdistill.core.errors import TwinError
from hintdistill.core.extensions import TWIN_MAKERS
from hintdistill.core.registry import loaded
from hintdistill.core.types import Finding, Message, Replacement, ToolCall, Trace, TwinEdit
from hintdistill.injection.hints import seed_of
from hintdistill.injection.twin_schemas import (
    argument_errors,
    json_of,
    relaxations,
    right_tool,
    schema_for,
    with_argument,
    with_argument_note,
    with_note,
    without_requirement,
)


@dataclass(frozen=True)
class TwinCase:
    """Hold a finding and its trace, as makers read them."""

    trace: Trace
    finding: Finding

    @cached_property
    def message(self) -> Message:
        """The erring step."""
        return self.trace.step(self.finding.step)

    @cached_property
    def before(self) -> tuple[Message, ...]:
        """The messages above the erring step."""
        return self.trace.before(self.finding.step)

    @cached_property
    def call(self) -> ToolCall:
        """The call that the finding concerns. Raises TwinError if the step has no call."""
        calls = self.message.tool_calls
        if not calls:
            raise TwinError("no_call", "the step calls no tool")
        named = [c for c in calls if self.finding.quote in (c.name, *(c.arguments or ()))]
        at = self.finding.call
        return calls[at] if at is not None and at < len(calls) else (named or list(calls))[0]

    def last(self, *roles: str) -> int | None:
        """Index of the last message with one of these roles above the step."""
        return next((i for i in range(len(self.before) - 1, -1, -1) if self.before[i].role in roles), None)

    def tool_number(self, name: str) -> int | None:
        """Index of the listed tool with a given name."""
        names = [(t.get("function") or t).get("name") for t in self.trace.tools]
        return names.index(name) if name in names else None

    def function(self, number: int) -> dict[str, Any]:
        """Return the `function` part of a listed tool's schema."""
        tool = self.trace.tools[number]
        return tool.get("function") or tool

    def text(self, number: int) -> str:
        """Return a tool's schema as text, in the form that edits use."""
        return json_of(self.trace.tools[number])

    def swap(self, number: int, old: str, new: str) -> tuple[Replacement, ...]:
        """Return a change of one place in a tool's schema; empty unless the old text occurs exactly once."""
        if self.text(number).count(old) != 1 or old == new:
            return ()
        return (Replacement(where="tools", index=number, old=old, new=new),)

    def say(self, role: str, words: str) -> tuple[Replacement, ...]:
        """Return a replacement that appends words to the last message of a role; empty if there is no such message."""
        at = self.last(*(("system", "developer") if role == "system" else (role,)))
        if at is None:
            return ()
        blank = "" if (self.before[at].content or "")[-1:].isspace() or not self.before[at].content else " "
        return (Replacement(where="message", index=at, old="", new=blank + words),)

    def called_before(self, name: str, argument: str | None = None) -> bool:
        """Return whether an earlier step calls a tool, with a given argument if one is named."""
        calls = [c for m in self.before for c in m.tool_calls if c.name == name]
        return any(argument is None or argument in (c.arguments or {}) for c in calls)


def twin_edits(trace: Trace, finding: Finding, seed: int = 0) -> list[TwinEdit]:
    """Return all edits for a finding: its critic's own first, then those of the makers of its class, in an order drawn
    from the seed.

    Raises:
        TwinError: no maker serves the class (`no_maker`), or no maker has an edit for this step (the maker's reason, or
            `no_edit`).
    """
    own = [finding.twin] if finding.twin is not None else []
    makers = [m for m in TWIN_MAKERS.entries() if finding.error_class in m.classes]
    edits: list[TwinEdit] = []
    refused: list[TwinError] = []
    for maker in makers:
        try:
            edits += loaded(maker.implementation)(TwinCase(trace, finding))
        except TwinError as error:
            refused.append(error)
    if not own and not edits:
        if not makers:
            raise TwinError("no_maker", f"no maker of twins serves the error class {finding.error_class!r}")
        raise next(iter(refused), TwinError("no_edit", "no maker of twins has an edit for this step"))
    drawn = sorted(edits, key=lambda e: seed_of("twin", seed, trace.id, finding.step, e.maker, e.kind))
    return own + drawn


class Edits:
    """Collect the edits of one maker; a kind without replacements is dropped."""

    def __init__(self, maker: str) -> None:
        self.maker = maker
        self.made: list[TwinEdit] = []

    def add(self, kind: str, *parts: tuple[Replacement, ...], removed: tuple[int, ...] = ()) -> None:
        """Add an edit, unless one of its parts has no place."""
        if all(parts) and (parts or removed):
            replacements = tuple(r for part in parts for r in part)
            self.made.append(TwinEdit(kind=kind, replacements=replacements, removed=removed, maker=self.maker))


def unknown_tool(case: TwinCase) -> list[TwinEdit]:
    """Yield edits that list the called tool: in place of the right one, next to it, as its new name, or as the user
    requests it."""
    wrong, edits = case.call.name, Edits("unknown_tool")
    if case.tool_number(wrong) is not None:
        raise TwinError("no_edit", f"the tool {wrong} is already listed")
    right = right_tool(case.trace, case.finding, case.call)
    at = None if right is None else case.tool_number(right)
    if at is not None and right is not None and not case.called_before(right):
        edits.add("rename", case.swap(at, f'"name": {json_of(right)}', f'"name": {json_of(wrong)}'))
    beside = schema_for(case.call, None if at is None else case.trace.tools[at])
    place = len(case.trace.tools) if at is None else at + 1
    listed = (Replacement(where="tools", index=place, old="", new=json_of(beside)),)
    edits.add("add", listed)
    if at is not None:
        edits.add("describe", listed, with_note(case.trace.tools[at], at, f"Old name of {wrong}; call {wrong}."))
    edits.add("request", listed, case.say("user", f"Use {wrong} for it."))
    return edits.made


def wrong_argument(case: TwinCase) -> list[TwinEdit]:
    """Yield edits after which the tool has the written argument, or does not require the missing one."""
    number = case.tool_number(case.call.name)
    if number is None:
        raise TwinError("no_edit", f"the tool {case.call.name} is not listed")
    function = case.function(number)
    parameters = function.get("parameters") or {}
    properties, args = parameters.get("properties") or {}, case.call.arguments or {}
    unknown = [a for a in args if a not in properties]
    missing = [a for a in parameters.get("required") or () if a not in args]
    if not unknown:
        return _missing_argument(case, number, missing, properties)
    wrong = next((w for w in (case.finding.facts.get("wrong"), case.finding.quote) if w in unknown), unknown[0])
    free = missing or [p for p in properties if p not in args]
    right = case.finding.facts.get("right")
    right = right if right in free else free[0] if len(free) == 1 else None
    edits = Edits("wrong_argument")
    required = without_requirement(parameters, right) if right is not None and right in missing else None
    loose = () if required is None else case.swap(number, *required)
    needs = [loose] if required is not None else []
    if right is not None and not case.called_before(case.call.name, right):
        renamed = case.swap(
            number,
            f"{json_of(right)}: {json_of(properties[right])}",
            f"{json_of(wrong)}: {json_of(properties[right])}",
        )
        names = parameters.get("required") or []
        again = [wrong if n == right else n for n in names]
        listed = case.swap(number, f'"required": {json_of(names)}', f'"required": {json_of(again)}')
        edits.add("rename", renamed, *([listed] if right in names else []))
    added = with_argument(case.trace.tools[number], number, wrong, args[wrong], right)
    edits.add("add", added, *needs)
    edits.add("request", added, *needs, case.say("user", f"Pass it as {wrong}."))
    if right is not None:
        note = with_argument_note(case.trace.tools[number], number, right, f"Old name of {wrong}; give {wrong}.")
        edits.add("describe", added, *needs, note)
    return edits.made


def _missing_argument(case: TwinCase, number: int, missing: list[str], properties: dict[str, Any]) -> list[TwinEdit]:
    """Yield edits for a call that omits a required argument."""
    if len(missing) != 1 or missing[0] not in properties:
        raise TwinError("no_edit", f"{len(missing)} required arguments are missing")
    edits, (name,) = Edits("wrong_argument"), missing
    parameters = case.function(number)["parameters"]
    loose = case.swap(number, *without_requirement(parameters, name))
    spec = properties[name]
    edits.add("optional", loose)
    others = {k: v for k, v in properties.items() if k != name}
    gone = case.swap(number, f'"properties": {json_of(properties)}', f'"properties": {json_of(others)}')
    edits.add("removed", gone, loose)
    if isinstance(spec, dict) and "default" not in spec:
        first = (spec.get("enum") or [None])[0]
        preset = case.swap(
            number, f"{json_of(name)}: {json_of(spec)}", f"{json_of(name)}: {json_of({**spec, 'default': first})}"
        )
        edits.add("default", preset, loose)
    return edits.made


def wrong_argument_type(case: TwinCase) -> list[TwinEdit]:
    """Yield edits after which the schema allows the written value: by its type, its enumeration, or the violated
    limit."""
    number = case.tool_number(case.call.name)
    found = [] if number is None else argument_errors(case.function(number), case.call)
    if number is None or not found:
        raise TwinError("no_edit", "no argument violates its schema")
    edits = Edits("wrong_argument_type")
    for kind, old, new in relaxations(found[0]):
        edits.add(kind, case.swap(number, old, new))
    return edits.made


def skipped_lookup(case: TwinCase) -> list[TwinEdit]:
    """Yield edits in which the request, the system prompt or an observation states the value that was made up or not
    looked up."""
    argument, value = _made_up(case)
    said = str(value) if not isinstance(value, bool | dict | list) else json_of(value)
    words = f"The {argument} is {said}."
    edits = Edits("skipped_lookup")
    user = case.last("user")
    if user is not None:
        text = case.before[user].content or ""
        found = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(said)}(?!\w)", text)]
        if len(found) == 1 and text.count(said) == 1:
            edits.add("named", (Replacement(where="message", index=user, old=said, new=f"{argument} {said}"),))
    edits.add("request", case.say("user", words))
    edits.add("system", case.say("system", words))
    seen = case.last("tool")
    if seen is not None:
        edits.add("observation", _with_field(case.before[seen].content or "", seen, argument, value))
    number = case.tool_number(case.call.name)
    if number is not None:
        edits.add("schema", with_argument_note(case.trace.tools[number], number, argument, words))
    return edits.made


def _made_up(case: TwinCase) -> tuple[str, Any]:
    """Return the argument whose value is not known, with the value. Raises TwinError if it cannot be determined."""
    args = case.call.arguments or {}
    plain = {n: v for n, v in args.items() if isinstance(v, str | int | float) and not isinstance(v, bool) and str(v)}
    facts = case.finding.facts
    for name in (facts.get("argument"), case.finding.quote):
        if name in plain:
            return name, plain[name]
    for said in (facts.get("wrong"), case.finding.quote):
        for name, value in plain.items():
            if said is not None and str(value) == str(said):
                return name, value
    known = "\n".join(m.content or "" for m in case.before)
    unseen = [n for n, v in plain.items() if str(v) not in known]
    named = [n for n in plain if re.search(r"(?:^|_)(?:id|number|code|key|token)$", n)]
    for names in (unseen, named, list(plain) if len(plain) == 1 else []):
        if len(names) == 1:
            return names[0], plain[names[0]]
    raise TwinError("no_value", "it cannot be determined which argument's value was made up")


def _with_field(text: str, index: int, name: str, value: Any) -> tuple[Replacement, ...]:
    """Return a replacement that adds a value to an observation; empty if the observation already has a value of that
    name."""
    try:
        seen = json.loads(text)
    except ValueError:
        return (Replacement(where="message", index=index, old="", new=f"\n{name}: {value}"),)
    if not isinstance(seen, dict) or name in seen or not text.rstrip().endswith("}"):
        return ()
    comma = "" if not seen else ", " if '": ' in text else ","
    colon = ": " if '": ' in text else ":"
    body, end = text.rstrip()[:-1], text[len(text.rstrip()) - 1 :]
    new = f"{body}{comma}{json_of(name)}{colon}{json_of(value)}{end}"
    return (Replacement(where="message", index=index, old=text, new=new),)


FAILS = re.compile(r"error|exception|fail|timed? ?out|traceback", re.IGNORECASE)
"""Words that mark an observation as a failure."""
_STATED = re.compile(r"\"[^\"\n]{1,80}\"|(?<![\w.])[-+]?\d[\d.,:/-]*\d(?!\w)|(?<![\w.])\d(?!\w)|\b\w*\d\w*\b")


def ignored_error(case: TwinCase) -> list[TwinEdit]:
    """Yield edits after which the call did not fail: its observation contains the value that the step states."""
    results = []
    for i in reversed(range(len(case.before))):
        if case.before[i].role != "tool":
            break
        results.append(i)
    failed = [i for i in results if FAILS.search(case.before[i].content or "")]
    if not failed:
        raise TwinError("no_edit", "there is no failing observation directly above the step")
    at = failed[0]
    text = case.before[at].content or ""
    known = "\n".join(m.content or "" for m in case.before)
    content = case.message.content or ""
    values = [m.group(0).strip('"') for m in _STATED.finditer(content)]
    stated = [v for v in dict.fromkeys(values) if not re.search(rf"(?<!\w){re.escape(v)}(?!\w)", known)]
    if not stated:
        raise TwinError("no_value", "the step states no value that a result could have contained")
    spaced = (", ", ": ") if '": ' in text else (",", ":")

    def told(value: Any) -> tuple[Replacement, ...]:
        new = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=spaced)
        return (Replacement(where="message", index=at, old=text, new=new),)

    names = _fields(case, at, content, stated)
    result = dict(zip(names, stated, strict=True))
    edits = Edits("ignored_error")
    edits.add("field", told(result))
    edits.add("plain", told(", ".join(stated)))
    edits.add("nested", told({"status": "ok", "result": result}))
    edits.add("warning", told({**result, "warning": _error_of(text)}))
    if shaped := _shape_of_success(case, at, stated):
        edits.add("shaped", told(shaped))
    return edits.made


def _fields(case: TwinCase, at: int, content: str, stated: list[str]) -> list[str]:
    """Return a name for each stated value: a field that the tool is said to return, else the word next to the value."""
    number = case.tool_number(case.before[at].name or _caller(case, at))
    about = "" if number is None else str(case.function(number).get("description") or "")
    gives = re.search(r"\b(?:gives?|returns?)\s+(?:(?:the|a|an|its)\s+)?([A-Za-z_]\w*)", about, re.IGNORECASE)
    names: list[str] = []
    for value in stated:
        beside = re.search(rf"([A-Za-z_]{{3,}})\W+{re.escape(value)}|{re.escape(value)}\W+([A-Za-z_]{{3,}})", content)
        word = next(filter(None, beside.groups()), "result") if beside else "result"
        name = gives.group(1) if gives and not names else word.casefold()
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return names


def _caller(case: TwinCase, at: int) -> str:
    """Return the tool that produced an unnamed observation, if its step calls only one tool."""
    calls = next((m.tool_calls for m in reversed(case.before[:at]) if m.role == "assistant"), ())
    return calls[0].name if len(calls) == 1 else ""


def _error_of(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text[:200]
    said = (
        next((value[k] for k in ("error", "Error", "exception", "message") if value.get(k)), None)
        if isinstance(value, dict)
        else None
    )
    return str(said or "late")[:200]


def _shape_of_success(case: TwinCase, at: int, stated: list[str]) -> dict[str, Any] | None:
    """Return a result of the same tool from elsewhere in the trace, with the stated values in place of its own."""
    tool = case.before[at].name or _caller(case, at)
    for message in case.trace.messages:
        if message.role != "tool" or message.name != tool or not tool or FAILS.search(message.content or ""):
            continue
        try:
            value = json.loads(message.content or "")
        except ValueError:
            continue
        if isinstance(value, dict) and len(value) == len(stated):
            return dict(zip(value, stated, strict=True))
    return None


def repeated_failing_call(case: TwinCase) -> list[TwinEdit]:
    """Yield edits after which the call had not failed before, or its failure was temporary."""
    call, earlier = case.call, None
    for i in range(len(case.before) - 1, -1, -1):
        if any((c.name, c.arguments_raw) == (call.name, call.arguments_raw) for c in case.before[i].tool_calls):
            earlier = i
            break
    if earlier is None:
        raise TwinError("no_edit", "no earlier step makes the same call")
    end = earlier + 1
    while end < len(case.before) and case.before[end].role == "tool":
        end += 1
    edits = Edits("repeated_failing_call")
    if len(case.before[earlier].tool_calls) == 1:
        edits.add("removed", removed=tuple(range(earlier, end)))
    if end == earlier + 1:
        return edits.made
    text = case.before[end - 1].content or ""
    passing = "temporarily unavailable, try again"
    error = _error_of(text)
    if error and text.count(error) == 1:
        edits.add("transient", (Replacement(where="message", index=end - 1, old=error, new=passing),))
        more = f"{error} (temporary: try again)"
        edits.add("retry", (Replacement(where="message", index=end - 1, old=error, new=more),))
    return edits.made


def wrong_tool(case: TwinCase) -> list[TwinEdit]:
    """Yield edits in which the request asks for the called tool's function; its other words are kept."""
    name = case.call.name
    number = case.tool_number(name)
    if number is None:
        raise TwinError("no_edit", f"the tool {name} is not listed")
    edits = Edits("wrong_tool")
    edits.add("request", case.say("user", f"Use {name} for it."))
    edits.add("system", case.say("system", f"For such requests call {name}."))
    edits.add("describe", with_note(case.trace.tools[number], number, "Call it for requests such as this one."))
    return edits.made

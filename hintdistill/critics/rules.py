"""Run the deterministic checks, without a model and at no cost.

They detect what a schema, a parser or an error message shows. On real traces of capable models they fire rarely and
catch a tenth to a quarter of the labelled first errors. So they are a baseline and evidence for an LLM critic, not a
replacement. A failing call is flagged only if the answer blames the call. A busy, slow or unavailable environment is
not the student's error, but answering as if it had replied is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.core.schemas import CannotJudge, Violation, violations
from hintdistill.core.types import Critique, Finding, Message, ToolCall, Trace
from hintdistill.critics import Outcome, one_by_one

VERSION = 1
"""Version of the checks; it increases when a check's findings change, so that stored critiques are made again."""

MARKUP = re.compile(
    r"<tool_call>.{0,200}?(?:</tool_call>|$)|<function=[\w.-]+>|\[TOOL_CALLS\]"
    r"|```(?:json|tool_call)?\s*\{\s*\"name\"\s*:\s*\"[\w.-]+\"\s*,\s*\"(?:arguments|parameters)\"",
    re.DOTALL,
)
ENVIRONMENT_FAULT = re.compile(
    r"time[d\s-]*out|rate.?limit|too many requests|busy|unavailable|try again|temporar|connection|network"
    r"|internal server|overload|\b50[0-4]\b|\b429\b",
    re.IGNORECASE,
)
ERROR_TEXT = re.compile(
    r"^\s*(?:error\b|\w*(?:error|exception)\s*:|traceback \(most recent call last\))", re.IGNORECASE
)
ADMITS = re.compile(
    r"\b(?:error|fail\w*|sorry|apolog\w*|unable|cannot|can't|could ?n[o']t|couldn't|not able|unavailable|problem|issue"
    r"|unfortunately|try again|timed? ?out|not found|did ?n[o']t|didn't|no result)\b",
    re.IGNORECASE,
)


NOT_JUDGED = "not judged:"
"""Prefix of the note about a call that its schema cannot judge."""


@dataclass(frozen=True)
class CallResult:
    """Hold a call of a step with its result, if there is one."""

    step: int
    index: int
    call: ToolCall
    result: str | None


def call_results(trace: Trace) -> list[CallResult]:
    """Return every call with its result, matched within its step by valid ids, else by order."""
    paired = []
    for step, at in enumerate(trace.step_indices):
        calls = trace.messages[at].tool_calls
        results = []
        for message in trace.messages[at + 1 :]:
            if message.role != "tool":
                break
            results.append(message)
        by_id = {m.tool_call_id: m for m in results if m.tool_call_id}
        sound = len(by_id) == len(results) == len(calls) and {c.id for c in calls} == set(by_id)
        for i, call in enumerate(calls):
            result = by_id[call.id] if sound and call.id else results[i] if i < len(results) else None
            paired.append(CallResult(step, i, call, None if result is None else result.content or ""))
    return paired


def error_text(result: str | None) -> str | None:
    """Return the error that a tool result reports; None if it is not an error."""
    if result is None:
        return None
    try:
        value = json.loads(result)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        for key in ("error", "Error", "exception"):
            if value.get(key):
                return value[key] if isinstance(value[key], str) else json.dumps(value[key], ensure_ascii=False)
        if str(value.get("status", "")).lower() in ("error", "failed", "failure") or value.get("is_error") is True:
            return str(value.get("message") or value.get("status"))
        return None
    return result.strip()[:300] if ERROR_TEXT.search(result) else None


def is_environment_fault(error: str) -> bool:
    """Return whether the environment caused the error (slow, busy, down), so that it says nothing about the call."""
    return ENVIRONMENT_FAULT.search(error) is not None


class RulesCritic:
    """Run the chosen checks over a trace."""

    name = "rules"

    def __init__(self, checks: Sequence[str]) -> None:
        self.checks = tuple(checks)

    def key(self, trace: Trace) -> str:
        """See `Critic.key`."""
        return hashlib.sha256(f"rules:{VERSION}:{','.join(self.checks)}".encode()).hexdigest()

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """See `Critic.critique`. Never fails."""
        return one_by_one(self.check, traces)

    def check(self, trace: Trace) -> Critique:
        """Return all findings of one trace in step order. If a step breaks several rules, only the most basic finding
        is kept."""
        findings: list[Finding] = []
        notes: list[str] = []
        calls = call_results(trace)
        for step in (k for k in range(len(trace.step_indices)) if k not in trace.given_steps):
            mine = [c for c in calls if c.step == step]
            found = next(self._at(trace, step, mine, calls, notes), None)
            if found is not None:
                findings.append(found.model_copy(update={"critic": self.name}))
        return Critique(
            trace_id=trace.id,
            verdict="findings" if findings else "none",
            findings=tuple(findings),
            critics=(self.name,),
            notes=tuple(dict.fromkeys(notes)),
        )

    def _at(
        self, trace: Trace, step: int, mine: list[CallResult], calls: list[CallResult], notes: list[str]
    ) -> Iterator[Finding]:
        for call in mine:
            for check in (_unknown_tool, _unparsable_call, _wrong_argument):
                try:
                    finding = check(trace, call)
                except CannotJudge as error:
                    notes.append(
                        f"{NOT_JUDGED} step {step}: the schema of {call.call.name} cannot judge its call: {error}"
                    )
                    continue
                if finding is not None and self._on(finding.error_class):
                    yield finding
        if self._on("call_in_prose") and (finding := _call_in_prose(step, trace.step(step))):
            yield finding
        for call in mine:
            for other in (_repeated_failing_call(call, calls), _call_error(call)):
                if other is not None and self._on(other.error_class):
                    yield other
        if self._on("ignored_error") and not mine and (finding := _ignored_error(trace, step, calls)):
            yield finding

    def _on(self, error_class: str) -> bool:
        return error_class in self.checks or (error_class == "wrong_argument_type" and "wrong_argument" in self.checks)


def _unknown_tool(trace: Trace, c: CallResult) -> Finding | None:
    if not trace.tool_schemas or c.call.name in trace.tool_schemas:
        return None
    return Finding(
        step=c.step,
        error_class="unknown_tool",
        quote=c.call.name,
        quote_in="tool_name",
        call=c.index,
        facts={"wrong": c.call.name, "tools": list(trace.tool_schemas)},
        evidence=f"{c.call.name} is not among the {len(trace.tool_schemas)} listed tools",
    )


def _unparsable_call(trace: Trace, c: CallResult) -> Finding | None:
    if c.call.arguments is not None or not c.call.arguments_raw.strip():
        return None
    return Finding(
        step=c.step,
        error_class="unparsable_call",
        quote=c.call.arguments_raw,
        quote_in="arguments",
        call=c.index,
        facts={"tool": c.call.name},
        evidence="the arguments are not a JSON object",
    )


def _wrong_argument(trace: Trace, c: CallResult) -> Finding | None:
    schema = trace.tool_schemas.get(c.call.name)
    args = c.call.arguments if c.call.arguments_raw.strip() else {}
    if not schema or args is None:
        return None
    # vendors' schemas use types JSON schema does not know (`dict`, `float`); such a schema cannot judge a call
    errors = violations(schema, args)
    if not errors:
        return None
    properties = list(schema.get("properties", {}))
    missing = [n for n in schema.get("required", []) if n not in args]
    unknown = [n for n in args if n not in properties]
    name_error = next((e for e in errors if e.rule in ("required", "additionalProperties") and not e.path), None)
    if name_error is not None and (unknown or missing):
        facts: dict[str, Any] = {"tool": c.call.name, "arguments": properties}
        if unknown:
            facts["wrong"] = unknown[0]
        if missing and (len(unknown) <= 1 or not unknown):
            facts["right"] = missing[0]
        return Finding(
            step=c.step,
            error_class="wrong_argument",
            quote=unknown[0] if unknown else None,
            call=c.index,
            quote_in="arguments" if unknown else None,
            facts=facts,
            evidence=name_error.message[:300],
        )
    error = errors[0]
    value = json.dumps(error.value, ensure_ascii=False)
    return Finding(
        step=c.step,
        error_class="wrong_argument_type",
        call=c.index,
        quote_in="arguments",
        quote=error.value if isinstance(error.value, str) and error.value else value,
        facts={
            "tool": c.call.name,
            "argument": ".".join(map(str, error.path)) or "value",
            "expected": _expected(error),
        },
        evidence=error.message[:300],
    )


def _expected(error: Violation) -> str:
    wanted: Any = error.expected
    if error.rule == "type":
        return "of type " + (wanted if isinstance(wanted, str) else " or ".join(wanted))
    if error.rule == "enum":
        return "one of " + ", ".join(json.dumps(v, ensure_ascii=False) for v in wanted)
    return f"valid under {error.rule} {json.dumps(wanted, ensure_ascii=False)[:80]}"


def _call_in_prose(step: int, message: Message) -> Finding | None:
    match = MARKUP.search(message.content or "")
    if match is None:
        return None
    return Finding(
        step=step,
        error_class="call_in_prose",
        quote=match.group(0),
        quote_in="content",
        evidence="tool-call markup is in the text, where it is not executed",
    )


def _call_error(c: CallResult) -> Finding | None:
    error = error_text(c.result)
    if error is None or is_environment_fault(error):
        return None
    return Finding(
        step=c.step,
        error_class="call_error",
        quote=c.call.arguments_raw or c.call.name,
        call=c.index,
        quote_in="arguments" if c.call.arguments_raw else "tool_name",
        confidence=0.5,
        facts={"tool": c.call.name, "error": error},
        evidence=f"the tool answered: {error[:200]}",
    )


def _repeated_failing_call(c: CallResult, calls: list[CallResult]) -> Finding | None:
    at = calls.index(c)
    if at == 0:
        return None
    last = calls[at - 1]
    error = error_text(last.result)
    same = (last.call.name, last.call.arguments_raw) == (c.call.name, c.call.arguments_raw)
    if not same or error is None or is_environment_fault(error):
        return None
    return Finding(
        step=c.step,
        error_class="repeated_failing_call",
        quote=c.call.name,
        quote_in="tool_name",
        call=c.index,
        caused_by=last.step if last.step < c.step else None,
        facts={"tool": c.call.name, "error": error},
        evidence="the same call had just failed",
    )


def _ignored_error(trace: Trace, step: int, calls: list[CallResult]) -> Finding | None:
    previous = [c for c in calls if c.step == step - 1]
    error = error_text(previous[-1].result) if previous else None
    content = trace.step(step).content or ""
    between = trace.messages[trace.step_indices[step - 1] + 1 : trace.step_indices[step]] if step else ()
    if error is None or not content.strip() or any(m.role == "user" for m in between) or ADMITS.search(content):
        return None
    return Finding(
        step=step,
        error_class="ignored_error",
        confidence=0.7,
        facts={"tool": previous[-1].call.name, "error": error},
        evidence=f"answers although the call failed: {error[:200]}",
    )

"""Make contexts: texts that a teacher view reads and the student does not.

A maker is a function from a case (a step of a trace, its finding, the task's other rollouts, texts by task) to a text;
`core.extensions.HINT_SOURCES` is their registry. The text is placed according to `inject.placements`, like a hint. If a
case lacks the maker's material, the maker raises NoContextError, whose reason is counted.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hintdistill.core.errors import NoContextError, PromptError
from hintdistill.core.extensions import HINT_SOURCES
from hintdistill.core.registry import loaded
from hintdistill.core.types import Finding, Message, Trace
from hintdistill.injection.candidates import PRINCIPLE
from hintdistill.injection.hints import hint_facts, hint_text, other_class_hint, seed_of
from hintdistill.prompts import PromptLibrary, attempts_context, hint_classes

SUCCEEDED = 0.5
"""Reward above which a trace counts as a success; `training.reward` uses the same number to count groups."""


@dataclass(frozen=True)
class ContextCase:
    """Describe one step for which a context is made."""

    trace: Trace
    finding: Finding
    library: PromptLibrary
    peers: Sequence[Trace] = ()
    """Other rollouts of the task."""
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Texts by task for `solution`, `demonstration` and `file`."""
    shown: int = 1
    """Maximum number of rollouts of each outcome in the context."""
    number: int = 0
    """Number of this context among several of its kind, from 0."""
    findings: Sequence[Finding] = ()
    """All findings of the critics in the trace."""
    rho: float = 0.5
    """Share of the text that a `partial` context contains."""
    hint: str = ""
    """Text of the teacher's own context, for contexts that are derived from it."""

    def lacks(self, reason: str, what: str) -> NoContextError:
        """Return the error for a case without such a context."""
        return NoContextError(reason, f"trace {self.trace.id}, step {self.finding.step}: {what}")


def made(name: str, case: ContextCase) -> str:
    """Return the text of a context maker. Raises NoContextError, or the errors of a hint source (NoHintError,
    PromptError)."""
    source = HINT_SOURCES.get(name)
    if source.context is not None:
        text: str = loaded(source.context)(case)
        return text.strip()
    words, _ = loaded(source.implementation)(case.trace, case.finding, case.library, ())
    return str(words)


# -- made of the finding ---------------------------------------------------------------------------------------------------


def wrong(case: ContextCase) -> str:
    """Return another error class's hint about the step: the n-th comes from the n-th class with such a hint,
    cyclically.

    Raises NoContextError `no_other_hint`: no other class's template can be filled.
    """
    rng = random.Random(seed_of("wrong", case.trace.id, case.finding.step, case.finding.error_class))
    taken: list[str] = [case.hint] if case.hint else []
    found: list[str] = []
    while len(found) <= case.number:
        text = other_class_hint(case.trace, case.finding, case.library, random.Random(rng.random()), taken)
        if text is None:
            break
        found.append(text)
        taken.append(text)
    if not found:
        raise case.lacks("no_other_hint", "no other error class has a hint that fits this step")
    return found[case.number % len(found)]


def partial(case: ContextCase) -> str:
    """Return the first words of the teacher's own context, a share of ρ. Source: AR-OPD (arXiv 2606.10385)."""
    words = case.hint.split()
    if len(words) < 2:
        raise case.lacks("no_part", "a context of less than two words has no part")
    return " ".join(words[: max(1, min(len(words) - 1, round(case.rho * len(words))))])


def rule(case: ContextCase) -> str:
    """Return the rule that the error class breaks. Raises NoContextError `no_rule` if no rule is written for the
    class."""
    facts = {"error_class": case.finding.error_class, **hint_facts(case.trace, case.finding)}
    try:
        return case.library.render(PRINCIPLE, facts)
    except PromptError:
        raise case.lacks("no_rule", f"{PRINCIPLE} has no rule for {case.finding.error_class!r}") from None


def rules(case: ContextCase) -> str:
    """Return all known rules, a shared context that is the same above every step. Source: OPCD (arXiv 2602.12275)."""
    found = []
    for name in hint_classes(case.library):
        with contextlib.suppress(PromptError):
            found.append(case.library.render(PRINCIPLE, {"error_class": name}).strip())
    if not any(found):
        raise case.lacks("no_rule", f"{PRINCIPLE} has no rule for any class")
    return "\n".join(dict.fromkeys(filter(None, found)))


def hints(case: ContextCase) -> str:
    """Return the hints of all findings of the trace, each once. Source: PTD-PO (arXiv 2606.07000). Raises
    NoContextError `no_finding`."""
    if not case.findings:
        raise case.lacks("no_finding", "the critics found nothing in the trace")
    return "\n".join(dict.fromkeys(hint_text(case.trace, f, case.library) for f in case.findings))


def reminder(case: ContextCase) -> str:
    """Return the tools of the trace, by name and arguments. Raises NoContextError `no_tools`."""
    if not case.trace.tool_schemas:
        raise case.lacks("no_tools", "the trace has no tool schemas")
    tools = [f"{n}({', '.join(s.get('properties') or {})})" for n, s in case.trace.tool_schemas.items()]
    return case.library.render("contexts/reminder.jinja", {"tools": tools})


def type_label(case: ContextCase) -> str:
    """Return the kind of the finding, without its words or its place. Source: TRACE (arXiv 2605.10194)."""
    kind = str(case.finding.facts.get("type") or case.finding.error_class)
    return case.library.render("contexts/type_label.jinja", {"error_class": kind})


def empty(case: ContextCase) -> str:
    """Return an empty text: the teacher reads the same text as the student."""
    return ""


# -- made of what came after -----------------------------------------------------------------------------------------------


def observation(case: ContextCase) -> str:
    """Return the observation after the step, and the outcome of the trace. Raises NoContextError `no_observation`."""
    return case.library.render("contexts/observation.jinja", _after(case))


def hindsight(case: ContextCase) -> str:
    """Return the observation, the outcome and the critic's hint. Source: HERO (arXiv 2606.11559). Raises the errors of
    `observation`, and of a missing hint."""
    facts = _after(case) | {"hint": hint_text(case.trace, case.finding, case.library)}
    return case.library.render("contexts/hindsight.jinja", facts)


def _after(case: ContextCase) -> dict[str, str]:
    trace, k = case.trace, case.finding.step
    at = trace.step_indices[k]
    stop = trace.step_indices[k + 1] if k + 1 < len(trace.step_indices) else len(trace.messages)
    said = "\n".join(m.content for m in trace.messages[at + 1 : stop] if m.content)
    told = str(trace.extra.get("feedback") or "")
    ended = "" if trace.reward is None else "succeeded" if trace.reward > SUCCEEDED else "failed"
    if not (said or told or ended):
        raise case.lacks(
            "no_observation", "nothing follows the step, and the trace has no reward and no field `feedback`"
        )
    return {"observation": "\n".join(filter(None, (said, told))), "outcome": ended}


# -- texts by task ---------------------------------------------------------------------------------------------------------


def solution(case: ContextCase) -> str:
    """Return the task's reference solution. Source: OPSD (arXiv 2601.18734). Raises NoContextError `no_solution`."""
    return case.library.render("contexts/solution.jinja", {"text": _told(case, "solution")})


def demonstration(case: ContextCase) -> str:
    """Return a demonstration of the task. Source: SDFT (arXiv 2601.19897). Raises NoContextError `no_demonstration`."""
    return case.library.render("contexts/demonstration.jinja", {"text": _told(case, "demonstration")})


def file(case: ContextCase) -> str:
    """Return the unchanged text of `inject.contexts.file` for the task. Raises NoContextError `no_file`."""
    return _told(case, "file")


def _told(case: ContextCase, kind: str) -> str:
    own = case.trace.extra.get(kind)
    text = own if isinstance(own, str) else case.texts.get(kind, {}).get(case.trace.task_id or case.trace.id)
    if not text:
        raise case.lacks(f"no_{kind}", f"no {kind} of the task {case.trace.task_id or case.trace.id!r} is known")
    return text


# -- made of the task's rollouts -------------------------------------------------------------------------------------------


def peer_success(case: ContextCase) -> str:
    """Return other rollouts of the task that succeeded. Source: SDPO (arXiv 2601.20802). Raises NoContextError
    `no_peer_success`."""
    return _peers(case, _numbered(case, _some(case, True)), [])


def peer_failure(case: ContextCase) -> str:
    """Return other rollouts of the task that failed. Raises NoContextError `no_peer_failure`."""
    return _peers(case, [], _numbered(case, _some(case, False)))


def peers(case: ContextCase) -> str:
    """Return successful and failed rollouts, as far as there are any. Source: MOPD (arXiv 2605.12652). Raises
    NoContextError `no_peer`."""
    right, wrong = _ended(case, True), _ended(case, False)
    if not (right or wrong):
        raise case.lacks("no_peer", "no other rollout of the task has a reward")
    return _peers(case, right[: case.shown], wrong[: case.shown])


def attempt_success(case: ContextCase) -> str:
    """Return a successful peer without its outcome. Source: RLCSD (arXiv 2606.11709). Raises NoContextError
    `no_peer_success`."""
    return case.library.render("contexts/attempt.jinja", {"text": "\n\n".join(_numbered(case, _some(case, True)))})


def attempt_failure(case: ContextCase) -> str:
    """Return a failed peer in the same wording. Source: RLCSD (arXiv 2606.11709). Raises NoContextError
    `no_peer_failure`."""
    return case.library.render("contexts/attempt.jinja", {"text": "\n\n".join(_numbered(case, _some(case, False)))})


def own_success(case: ContextCase) -> str:
    """Return the trace itself. Raises NoContextError `no_own_success` if it did not succeed."""
    if not succeeded(case.trace):
        raise case.lacks("no_own_success", "the trace did not succeed")
    return _peers(case, [attempt(case.trace)], [])


def verified(case: ContextCase) -> str:
    """Return the trace itself if it succeeded, else a peer that did. Source: SC-GRPO (arXiv 2606.18810). Raises
    NoContextError `no_peer_success`."""
    return own_success(case) if succeeded(case.trace) else peer_success(replace(case, shown=1))


def bcq(case: ContextCase) -> str:
    """Return a successful and a failed rollout, not labelled as such. Source: ZPPO (arXiv 2606.18216). Raises the
    errors of the two makers."""
    return attempts_context(case.library, _some(case, True), _some(case, False), seed_of(case.trace.id))


def ncq(case: ContextCase) -> str:
    """Return failed rollouts. Raises NoContextError `no_peer_failure`."""
    return attempts_context(case.library, [], _some(case, False)[: case.shown])


def succeeded(trace: Trace) -> bool:
    """Return whether a trace succeeded."""
    return trace.reward is not None and trace.reward > SUCCEEDED


def attempt(trace: Trace) -> str:
    """Return the events of a trace from its first step on, one message per line."""
    return "\n".join(_said(m) for m in trace.messages[trace.step_indices[0] :])


def _said(message: Message) -> str:
    calls = [f"{c.name} {c.arguments_raw}" for c in message.tool_calls]
    return f"{message.role}: " + "\n".join(p for p in (message.content, *calls) if p)


def _ended(case: ContextCase, well: bool) -> list[str]:
    """Return the task's other rollouts with this outcome, each text once, in an order that depends on the trace."""
    found = [t for t in case.peers if t.reward is not None and succeeded(t) == well and t.id != case.trace.id]
    found.sort(key=lambda t: (seed_of("peer", case.trace.id, t.id), t.id))
    return list(dict.fromkeys(attempt(t) for t in found))


def _some(case: ContextCase, well: bool) -> list[str]:
    found = _ended(case, well)
    if not found:
        name, did = ("success", "succeeded") if well else ("failure", "failed")
        raise case.lacks(f"no_peer_{name}", f"no other rollout of the task {did}")
    return found


def _numbered(case: ContextCase, texts: list[str]) -> list[str]:
    """Return the rollouts of the n-th context: `shown` of them from the n-th on, cyclically."""
    return [texts[(case.number + i) % len(texts)] for i in range(min(case.shown, len(texts)))]


def _peers(case: ContextCase, right: Sequence[str], wrong: Sequence[str]) -> str:
    return case.library.render("contexts/peers.jinja", {"successes": list(right), "failures": list(wrong)})


# -- what the inject stage is handed ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MadeContexts:
    """Hold the texts of a step's contexts."""

    text: str | None
    """Text of the teacher's own context; None if a hint source without a context writes it together with its
    placebos."""
    views: Mapping[str, str]
    """Texts of the recipe's further contexts, by name."""
    document: bool = False
    """Whether the teacher's own context, or one of the others, is a document."""


def contexts_of(name: str, views: Mapping[str, tuple[str, int, float]], case: ContextCase) -> MadeContexts:
    """Make a step's contexts.

    Args:
        name: the maker of the teacher's own context.
        views: maker, number and ρ of each further context, by name.

    Raises:
        NoContextError: the case lacks the material for one of them.
        NoHintError, PromptError: see `hints.hint_text`.
    """
    own = HINT_SOURCES.get(name)
    text = made(name, case) if own.context is not None or views else None
    beside = replace(case, hint=text or "")
    others = {label: made(maker, replace(beside, number=n, rho=rho)) for label, (maker, n, rho) in views.items()}
    document = own.document or any(HINT_SOURCES.get(maker).document for maker, _, _ in views.values())
    return MadeContexts(None if own.context is None else text, others, document)

"""Lead an LLM critic to a verdict with strategies.

A strategy is a generator that yields questions (`Request`) and receives the replies. It does not depend on a server or
a model, so the same code runs one trace per thread against a server, or hundreds of traces in step in one process.

| strategy | questions per record of n steps | reads | |---|---|---| | all_at_once | 1 | the whole record | |
step_by_step | 1 to n | a growing prefix of the record, step by step until the first mistake | | binary_search | ⌈log2
n⌉ + 1 | the whole record, then the record up to the found step |

Every question begins with the record and ends with the instructions and the schema (`Asker.question`), so that
strategies, votes and edited prompts all share a server's prefix cache.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hintdistill.config import LLMSection
from hintdistill.core.errors import HintdistillError
from hintdistill.core.types import Finding, Trace, Usage, Verdict
from hintdistill.critics.answers import (
    Answer,
    AnswerError,
    CutOffError,
    Form,
    HalfAnswer,
    HintAnswer,
    LLMAnswer,
    LLMFinding,
    StepAnswer,
    answer_schema,
    half_schema,
    hint_schema,
    parse,
    step_schema,
)
from hintdistill.critics.backends import Reply, Request
from hintdistill.critics.record import Excerpt, encode, harmless
from hintdistill.prompts import REVISE, TWIN, PromptLibrary, hint_classes

T = TypeVar("T")
A = TypeVar("A", bound=Answer)
Asking = Generator[Request, Reply | HintdistillError, T]
"""Generator that yields questions, receives replies, and returns T."""
RECORD = "critic/record.jinja"
REPAIR = "critic/repair.jinja"


@dataclass(frozen=True)
class Judgement:
    """Hold the result of one reading of one record."""

    verdict: Verdict
    findings: tuple[LLMFinding, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Asker:
    """Ask questions about one trace and count their cost."""

    trace: Trace
    config: LLMSection
    library: PromptLibrary
    checks: tuple[Finding, ...]
    twins: bool = False
    """Whether the run makes twins, so that the critic also writes their edits; see `asks_edit`."""
    section: str = "llm"
    """Section of `critic` that holds these settings."""
    usage: Usage = field(default_factory=Usage)
    notes: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)

    def question(self, name: str, record: Excerpt, schema: Mapping[str, Any], more: Mapping[str, Any]) -> str:
        """Return the text of a question: the record, then instructions, allowed steps and schema."""
        steps = record.steps
        values = {
            "tools": tool_lines(self.trace),
            "signatures": signatures(self.trace),
            "trace": record.text,
            "legal_steps": list(steps),
            "checks": self._checks(more.get("step"), steps),
            "error_classes": hint_classes(self.library),
            "schema": shown(schema),
            "fields": list(self.config.fields),
            "has_tools": bool(self.trace.tools),
            "window": record.window + 1,
            "windows": record.windows,
            **more,
        }
        values["twin"] = self.library.render(TWIN, values) if self.asks_edit(name) else ""
        body = self.library.render(name, values)
        if self.library.mentions(name, "trace"):
            return body
        # the instructions end in the schema; what more is asked for comes before them, unless they place it themselves
        between = "" if not values["twin"] or self.library.mentions(name, "twin") else f"{values['twin']}\n\n"
        return f"{self.library.render(RECORD, values)}\n\n{between}{body}"

    def asks_edit(self, name: str) -> bool:
        """Return whether the answer to a prompt may contain the edit of a twin; see `asks_for_edit`."""
        return self.twins and asks_for_edit(self.library, self.config, name)

    def answer_schema(self, steps: tuple[int, ...]) -> dict[str, Any]:
        """Return the schema of the answer about a whole record with the given steps."""
        return answer_schema(steps, self._form)

    def step_schema(self) -> dict[str, Any]:
        """Return the schema of the answer about one step."""
        return step_schema(self._form)

    @property
    def _form(self) -> Form:
        edits = self.asks_edit(self.config.asked_prompt)
        return Form(self.bounds, self.ranged, edits, self.config.fields)

    def _checks(self, step: int | None, steps: tuple[int, ...]) -> str:
        wanted = set(steps) if step is None else {step}
        rows = [
            encode({"step": f.step, "check": f.error_class, "quote": f.quote, "evidence": f.evidence})
            for f in self.checks
            if f.step in wanted
        ]
        return "\n".join(rows) or "nothing"

    def ask(
        self, kind: type[A], name: str, record: Excerpt, schema: dict[str, Any], vote: int, **more: Any
    ) -> Asking[A]:
        """Ask a question; if the answer is invalid, say why and ask again.

        Raises:
            AnswerError: no valid answer after the repair rounds.
            CutOffError: the token limit cut the answer and made it unusable; the question is not repeated.
            HintdistillError: the question could not be answered.
        """
        messages = [{"role": "user", "content": self.question(name, record, schema, more)}]
        problem, text = "", ""
        seed = None if self.config.seed is None else self.config.seed + vote
        for round_ in range(self.config.repair_rounds + 1):
            reply = yield Request(tuple(messages), schema, self.config.temperature, seed, vote)
            if isinstance(reply, HintdistillError):
                raise reply
            text, self.usage = reply.text, add(self.usage, reply.usage)
            self.raw.append(text)
            try:
                answer = parse(kind, text, record.steps)
            except ValueError as error:
                problem = str(error)
                if reply.cut:
                    raise self._cut_off(reply) from None
                # an answer may repeat the trace, and with it a turn marker that the record spells out
                said = harmless(text)
                repair = {"answer": said, "problem": harmless(problem), "schema": shown(schema)}
                ask_again = self.library.render(REPAIR, repair)
                messages = [
                    messages[0],
                    {"role": "assistant", "content": said},
                    {"role": "user", "content": ask_again},
                ]
                continue
            if round_:
                self.notes.append(f"repaired after {round_} round(s): {problem}")
            return answer
        failure = AnswerError(
            f"trace {self.trace.id}: no usable answer after {self.config.repair_rounds + 1} rounds: {problem}", text
        )
        failure.usage = self.usage
        raise failure

    def _cut_off(self, reply: Reply) -> CutOffError:
        tokens = reply.usage.completion_tokens or self.config.max_tokens
        failure = CutOffError(self.trace.id, tokens, reply.text, self.section)
        failure.usage = self.usage
        return failure

    @property
    def bounds(self) -> int | None:
        """Limit on the findings of an answer, if the backend accepts such keywords."""
        constrained = self.config.backend != "server" or self.config.structured == "json_schema"
        return self.config.max_findings if constrained else None

    @property
    def ranged(self) -> bool:
        """Whether to state numbers as a range, because the backend writes listed numbers in its own way; see
        `answer_schema`."""
        return self.bounds is not None and self.config.backend != "local"


def asks_for_edit(library: PromptLibrary, config: LLMSection, name: str) -> bool:
    """Return whether a prompt has a place for the request of a twin's edit.

    Only the prompt that asks for the hint has one; a prompt that prints the record itself must mark it with `{{ twin
    }}`.
    """
    if name != config.asked_prompt:
        return False
    return library.mentions(name, "twin") or not library.mentions(name, "trace")


def add(a: Usage, b: Usage) -> Usage:
    """Return the sum of two costs."""
    return Usage(
        requests=a.requests + b.requests,
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        completion_tokens=a.completion_tokens + b.completion_tokens,
    )


def shown(schema: Any) -> str:
    """Return a schema in the form that a prompt prints: one line, without titles and descriptions, with number lists as
    ranges.

    The instructions already list the allowed steps. Two more lists would be most of the uncached tokens of a long
    trace.
    """

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            said = {k: v for k, v in value.items() if not (k in ("title", "description") and isinstance(v, str))}
            steps = said.get("enum")
            if said.get("type") == "integer" and steps and steps == list(range(steps[0], steps[-1] + 1)):
                return {"type": "integer", "minimum": steps[0], "maximum": steps[-1]}
            return {k: bare(v) for k, v in said.items()}
        return [bare(v) for v in value] if isinstance(value, list) else value

    return json.dumps(bare(schema), separators=(",", ":"))


def tool_lines(trace: Trace) -> str:
    """Return the tool schemas, one JSON object per line."""
    return "\n".join(encode(t.get("function", t)) for t in trace.tools) or "no tools were recorded"


def signatures(trace: Trace) -> str:
    """Return short signatures of the tools, one per line: `name(argument:type,...)`, escaped as in a JSON line."""
    lines = []
    for name, schema in trace.tool_schemas.items():
        arguments = ",".join(
            f"{n}:{spec.get('type', 'any') if isinstance(spec, dict) else 'any'}"
            for n, spec in (schema.get("properties") or {}).items()
        )
        lines.append(encode(f"{name}({arguments})")[1:-1])
    return "\n".join(lines)


def all_at_once(asker: Asker, record: Excerpt, vote: int) -> Asking[Judgement]:
    """Judge the whole record with one answer."""
    schema = asker.answer_schema(record.steps)
    answer = yield from asker.ask(LLMAnswer, asker.config.prompts["prompt"], record, schema, vote)
    notes = (f"the failure was caused by: {answer.failed_by}",) if answer.failed_by in ("other", "unclear") else ()
    return Judgement(answer.outcome, tuple(answer.marked()), notes)


def step_by_step(asker: Asker, record: Excerpt, vote: int) -> Asking[Judgement]:
    """Judge one step after another, each with the record up to it, until the first mistake."""
    for step in record.steps:
        finding = yield from one_step(asker, record, step, vote)
        if finding is not None:
            unread = len(record.steps) - record.steps.index(step) - 1
            notes = (f"stopped at the first mistake, {unread} steps unread",) if unread else ()
            return Judgement("findings", (finding,), notes)
    return Judgement("none")


def binary_search(asker: Asker, record: Excerpt, vote: int) -> Asking[Judgement]:
    """Halve the range of steps until one is left, then judge that one."""
    steps = record.steps
    while len(steps) > 1:
        first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]
        answer = yield from asker.ask(
            HalfAnswer,
            asker.config.prompts["half_prompt"],
            record,
            half_schema(),
            vote,
            first=list(first),
            second=list(second),
        )
        if answer.half in ("none", "not_student", "abstain"):
            return Judgement(answer.half)
        steps = first if answer.half == "first" else second
    if not steps:
        return Judgement("none")
    finding = yield from one_step(asker, record, steps[0], vote)
    return Judgement("none") if finding is None else Judgement("findings", (finding,))


def one_step(asker: Asker, record: Excerpt, step: int, vote: int) -> Asking[LLMFinding | None]:
    """Judge one step; return None if it is not a mistake."""
    schema = asker.step_schema()
    answer = yield from asker.ask(
        StepAnswer, asker.config.prompts["step_prompt"], record.until(step), schema, vote, step=step
    )
    if not answer.mistake:
        return None
    return LLMFinding(step=step, caused_by=None, **answer.model_dump(exclude={"mistake", "analysis"}))


def another_hint(asker: Asker, record: Excerpt, finding: Finding, reasons: str) -> Asking[str]:
    """Return a second hint for a finding, given the reason for rejecting the first; `record` ends with the finding's
    step."""
    answer = yield from asker.ask(
        HintAnswer,
        REVISE,
        record,
        hint_schema(asker.bounds is not None),
        0,
        step=finding.step,
        hint=encode(finding.hint),
        reason=reasons,
        error_class=encode(finding.error_class),
        quote=encode(finding.quote) if finding.quote else "",
    )
    return answer.hint.strip()


def asked_all_at_once(asker: Asker, record: Excerpt) -> list[str]:
    """Return all questions of `all_at_once`."""
    return [asker.question(asker.config.prompts["prompt"], record, asker.answer_schema(record.steps), {})]


def asked_step_by_step(asker: Asker, record: Excerpt) -> list[str]:
    """Return all questions of `step_by_step`, assuming that no step is a mistake."""
    return [asked_of_step(asker, record, step) for step in record.steps]


def asked_binary_search(asker: Asker, record: Excerpt) -> list[str]:
    """Return as many questions as `binary_search` may ask, each as long as its longest."""
    halves = {"first": list(record.steps), "second": []}
    schema = asker.answer_schema(record.steps)
    half = asker.question(asker.config.prompts["half_prompt"], record, schema, halves)
    last = [asked_of_step(asker, record, step) for step in record.steps[-1:]]
    return [half] * (max(1, len(record.steps)) - 1).bit_length() + last


def asked_of_step(asker: Asker, record: Excerpt, step: int) -> str:
    """Return the text of the question about one step."""
    schema = asker.answer_schema(record.steps)
    return asker.question(asker.config.prompts["step_prompt"], record.until(step), schema, {"step": step})


def merge_windows(judgements: list[Judgement]) -> Judgement:
    """Merge the findings of all windows; if two windows name one error class at one step, keep the more confident
    finding."""
    found: dict[tuple[int, str], LLMFinding] = {}
    for judgement in judgements:
        for f in judgement.findings:
            slot = (f.step, f.error_class)
            if slot not in found or found[slot].confidence < f.confidence:
                found[slot] = f
    notes = tuple(n for j in judgements for n in j.notes)
    if found:
        return Judgement("findings", one_decisive([found[s] for s in sorted(found)]), notes)
    order: tuple[Verdict, ...] = ("abstain", "not_student", "none")
    verdicts = [j.verdict for j in judgements]
    return Judgement(next((v for v in order if v in verdicts), "none"), (), notes)


def one_decisive(found: list[LLMFinding]) -> tuple[LLMFinding, ...]:
    """Return the findings of several readings with at most one marked as decisive: the most confident, or the first of
    equals."""
    marked = [f for f in found if f.decisive]
    best = max(marked, key=lambda f: f.confidence, default=None)
    return tuple(f.model_copy(update={"decisive": False}) if f.decisive and f is not best else f for f in found)


def agree(votes: list[Judgement], least: float) -> Judgement:
    """Combine votes into one judgement; a step's confidence is the share of votes that name it.

    For each step, the first finding of its most frequent error class is kept. Steps below `least` are dropped with a
    note. If nothing is left, the result is the most frequent other verdict, or `abstain` if most votes have findings
    but disagree.
    """
    if len(votes) == 1:
        return votes[0]
    notes = [n for v in votes for n in v.notes]
    by_step: dict[int, list[LLMFinding]] = {}
    for vote in votes:
        for f in {f.step: f for f in reversed(vote.findings)}.values():
            by_step.setdefault(f.step, []).append(f)
    kept = []
    for step, found in sorted(by_step.items()):
        share = len(found) / len(votes)
        if share < least:
            notes.append(f"dropped: step {step} was named by {len(found)} of {len(votes)} votes")
            continue
        classes = [f.error_class for f in found]
        common = max(dict.fromkeys(classes), key=classes.count)
        marks = [f.decisive for f in found if f.decisive is not None]
        # a step is decisive where most of the votes that name it say so
        decisive = sum(marks) * 2 > len(marks) if marks else None
        first = next(f for f in found if f.error_class == common)
        kept.append(first.model_copy(update={"confidence": share, "decisive": decisive}))
    if kept:
        return Judgement("findings", one_decisive(kept), tuple(notes))
    quiet: list[Verdict] = [v.verdict for v in votes if v.verdict != "findings"]
    if 2 * len(quiet) <= len(votes):
        return Judgement("abstain", (), (*notes, "the votes disagree"))
    return Judgement(max(dict.fromkeys(quiet), key=quiet.count), (), tuple(notes))

"""Ask an LLM critic: a backend answers, a strategy asks, and the prompts can be edited.

The prompt is a Jinja file. The answer is JSON that a pydantic model defines. The backend constrains it if possible; it
is always validated here, with a repair round that tells the model what was wrong. Answers are stored by content as they
arrive, so an interruption loses only the open questions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from hintdistill.config import LLMSection
from hintdistill.core.errors import ConfigError, HintdistillError, ServiceError, TwinError
from hintdistill.core.extensions import STRATEGIES
from hintdistill.core.registry import loaded
from hintdistill.core.types import Critique, Finding, Trace
from hintdistill.critics import Outcome, one_by_one
from hintdistill.critics import secrets as secret_scan
from hintdistill.critics.answers import AnswerError, LLMEdit, half_schema
from hintdistill.critics.backends import AnswerCache, Backend, Budget, Metered, Reply, Request
from hintdistill.critics.record import Excerpt, note, whole, windows
from hintdistill.critics.rules import RulesCritic
from hintdistill.critics.strategies import (
    RECORD,
    REPAIR,
    Asker,
    Asking,
    Judgement,
    agree,
    another_hint,
    asks_for_edit,
    merge_windows,
    tool_lines,
)
from hintdistill.critics.twins import edit_of
from hintdistill.injection.quotes import is_in_step, placed
from hintdistill.prompts import REVISE, TWIN, PromptLibrary, hint_classes

Answered = TypeVar("Answered")

VERSION = 2
"""Version of the critic; it increases when the same prompts and settings would give other critiques."""
NOT_IN_KEY = {"timeout_s", "retries", "concurrency", "api_key_env", "price", "tokenizer"}
PLACES = ("prompt", "step_prompt", "half_prompt")
"""Places of the prompts that `critic.llm.prompt` names."""
EVIDENCE = (
    "unknown_tool",
    "unparsable_call",
    "wrong_argument",
    "call_in_prose",
    "ignored_error",
    "call_error",
    "repeated_failing_call",
)


@dataclass(frozen=True)
class Estimate:
    """Hold an upper bound of the cost of critiquing: questions without repair rounds, and prompt tokens as counted by
    the backend."""

    requests: int = 0
    prompt_tokens: int = 0


class LLMCritic:
    """Critique traces with an LLM."""

    def __init__(
        self,
        config: LLMSection,
        prompts: PromptLibrary,
        backend: Backend,
        *,
        name: str = "llm",
        cache: AnswerCache | None = None,
        budget: Budget | None = None,
        scan: bool = False,
        twins: bool = False,
    ) -> None:
        """Build a critic. `twins`: also ask for the edits of twins, if its prompt has a place for that.

        Raises:
            ConfigError: a prompt fails the lint, or the secret scan is required but not installed.
        """
        self.name, self.config, self.library, self.backend, self.scan = name, config, prompts, backend, scan
        self.twins = twins
        self._strategy = STRATEGIES.get(config.strategy)
        if problems := [p for n, role in self._roles().items() for p in prompts.lint(n, role)]:
            raise ConfigError("; ".join(problems))
        if scan:
            secret_scan.require()
        self._rules = RulesCritic(EVIDENCE)
        self._metered = Metered(backend, cache or AnswerCache(None), budget or Budget(None), config.max_tokens)

    def prompts_used(self) -> list[str]:
        """Return the prompts on which this critic's answers depend."""
        names = self._instructions()
        record = [] if all(self.library.mentions(n, "trace") for n in names) else [RECORD]
        edits = [TWIN] if self.asks_edits else []
        return [*record, *names, *edits, *([REPAIR] if self.config.repair_rounds else [])]

    @property
    def asks_edits(self) -> bool:
        """Whether the critic also writes the edits of twins."""
        return self.twins and asks_for_edit(self.library, self.config, self.config.asked_prompt)

    def _instructions(self) -> list[str]:
        return list(self.config.prompts.values())

    def _roles(self) -> dict[str, str]:
        """Return the prompts that may be used, and the place of each."""
        named = {name: place for place, name in self.config.prompts.items()}
        return named | {RECORD: "record", REPAIR: "repair", REVISE: "revise", TWIN: "twin"}

    def key(self, trace: Trace) -> str:
        """See `Critic.key`. It covers settings, prompts and backend, but not the server's access key."""
        settings = self.config.model_dump(mode="json", exclude=NOT_IN_KEY)
        if self.config.backend != "server":
            settings["model"] = None  # the backend's key has its weights
        hashes = [self.library.hash(n) for n in self.prompts_used()]
        parts = [VERSION, settings, hashes, self.backend.key, self._rules.key(trace)]
        if any(self.library.mentions(n, "error_classes") for n in self._instructions()):
            parts.append(list(hint_classes(self.library)))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """See `Critic.critique`."""
        if not self.backend.together:
            return one_by_one(self.ask, traces, self.config.concurrency)
        return self._in_step(traces)

    def ask(self, trace: Trace) -> Critique:
        """Critique one trace.

        Raises:
            AnswerError: no valid answer after the repair rounds.
            SecretError: the trace holds a secret and may not be sent.
            ServiceError: the request failed; if `retryable` is False, later requests will fail too.
        """
        return self._converse(self._judge(trace))

    def revise(self, trace: Trace, finding: Finding, reasons: str) -> str:
        """Return another hint for a finding of this critic, given the gate's reason for rejecting the first.

        Raises:
            HintdistillError: the errors of `ask`.
        """
        self._refuse_secrets(trace)
        asker = self._asker(trace)
        record = next(r for r in self.records(asker) if finding.step in r.steps).until(finding.step)
        return self._converse(another_hint(asker, record, finding, reasons))

    def _converse(self, asking: Asking[Answered]) -> Answered:
        """Ask the questions one after another. Raises the errors of the strategy and of the backend."""
        reply: Reply | HintdistillError | None = None
        while True:
            try:
                request = asking.send(reply)  # type: ignore[arg-type]
            except StopIteration as done:
                return done.value
            (reply,) = self._metered.complete([request])

    def _in_step(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """Critique many traces at once: every batch holds one question of each trace."""
        todo = iter(traces)
        waiting: list[tuple[Trace, Asking[Critique], Request]] = []
        while True:
            while len(waiting) < self.config.concurrency and (trace := next(todo, None)) is not None:
                asking = self._judge(trace)
                outcome = _advance(asking, None)
                if isinstance(outcome, Request):
                    waiting.append((trace, asking, outcome))
                else:
                    yield trace, outcome
            if not waiting:
                return
            replies = self._metered.complete([request for _, _, request in waiting])
            asked, waiting = waiting, []
            for (trace, asking, _), reply in zip(asked, replies, strict=True):
                outcome = _advance(asking, reply)
                if isinstance(outcome, Request):
                    waiting.append((trace, asking, outcome))
                else:
                    yield trace, outcome

    def _asker(self, trace: Trace) -> Asker:
        return Asker(trace, self.config, self.library, self._rules.check(trace).findings, self.twins, self.name)

    def _refuse_secrets(self, trace: Trace) -> None:
        if self.scan:
            lines = [(f"message {line.message}", line.text) for line in whole(trace).lines]
            secret_scan.refuse(trace.id, [*lines, ("tools", tool_lines(trace))])

    def _judge(self, trace: Trace) -> Asking[Critique]:
        """Return the judgements of every window for every vote; see `strategies`."""
        self._refuse_secrets(trace)
        asker = self._asker(trace)
        records = self.records(asker)
        run = loaded(self._strategy.implementation)
        votes: list[Judgement] = []
        for vote in range(self.config.votes):
            judged = []
            for record in records:
                judged.append((yield from run(asker, record, vote)))
            votes.append(judged[0] if len(judged) == 1 else merge_windows(judged))
        return self._critique(asker, agree(votes, self.config.min_agreement), note(records))

    def records(self, asker: Asker) -> list[Excerpt]:
        """Return the windows in which a trace is read. Each fits what the context leaves after instructions, tools,
        schema and answer."""
        context = self.backend.context_tokens
        if context is None:
            return [whole(asker.trace)]
        steps = tuple(range(len(asker.trace.step_indices)))
        empty = Excerpt(())
        schema = asker.answer_schema(steps)
        more = {"step": 0, "first": list(steps), "second": list(steps), "legal_steps": list(steps)}
        around = max(self.backend.count(asker.question(n, empty, schema, more)) for n in self._instructions())
        room = context - self.config.max_tokens - around - 32
        return windows(asker.trace, self.backend.count, room, self.config.overlap)

    def estimate(self, trace: Trace) -> Estimate:
        """Return an upper bound of the cost of one trace, without asking anything."""
        asker = self._asker(trace)
        requests = tokens = 0
        for record in self.records(asker):
            asked = [self.backend.count(text) for text in loaded(self._strategy.asked)(asker, record)]
            requests, tokens = requests + len(asked), tokens + sum(asked)
        return Estimate(requests * self.config.votes, tokens * self.config.votes)

    def prompt(self, trace: Trace, name: str | None = None) -> str:
        """Return the text that the critic reads about a trace under one of its prompts; for a trace in windows, the
        first one."""
        name = name or self._instructions()[0]
        asker = self._asker(trace)
        record = self.records(asker)[0]
        steps = list(record.steps)
        if self._roles()[name] == "half_prompt":
            halves = {"first": steps[: len(steps) // 2], "second": steps[len(steps) // 2 :]}
            return asker.question(name, record, half_schema(), halves)
        if self._roles()[name] == "step_prompt":
            schema = asker.step_schema()
            return asker.question(name, record.until(steps[0]), schema, {"step": steps[0]})
        return asker.question(name, record, asker.answer_schema(record.steps), {})

    def _critique(self, asker: Asker, judgement: Judgement, read: tuple[str, ...]) -> Critique:
        findings, notes = [], [*read, *asker.notes, *judgement.notes]
        for f in judgement.findings:
            message = asker.trace.step(f.step)
            quote_in, call = placed(f.quote, f.quote_in, f.call, message)
            if (quote_in, call) != (f.quote_in, f.call):
                notes.append(
                    f"step {f.step}: the quote is not in the part that the critic names; the whole step was searched"
                )
            finding = Finding(
                step=f.step,
                error_class=f.error_class.strip() or "other",
                quote=f.quote or None,
                hint=f.hint.strip() or None,
                confidence=min(1.0, max(0.0, f.confidence)),
                caused_by=f.caused_by if f.caused_by is not None and f.caused_by < f.step else None,
                critic=self.name,
                quote_in=quote_in,
                call=call,
                decisive=f.decisive,
            )
            if self.config.drop_unfound_quotes and not is_in_step(finding, message):
                notes.append(f"dropped: step {f.step}, quote not in the step: {(f.quote or '')[:60]!r}")
                continue
            findings.append(self._with_twin(asker.trace, finding, f.twin, notes))
        verdict = judgement.verdict
        if verdict == "findings" and not findings:
            verdict = "abstain"
        return Critique(
            trace_id=asker.trace.id,
            verdict=verdict,
            findings=tuple(findings),
            critics=(self.name,),
            usage=asker.usage,
            raw_answer="\n".join(asker.raw),
            notes=tuple(notes),
        )

    def _with_twin(self, trace: Trace, finding: Finding, parts: list[LLMEdit] | None, notes: list[str]) -> Finding:
        """Return the finding with the edit that the critic wrote; if the edit's quote does not occur, drop the edit
        with a note."""
        if not parts or not self.asks_edits:
            return finding
        try:
            return finding.model_copy(update={"twin": edit_of(trace, finding.step, parts, finding.critic)})
        except TwinError as error:
            notes.append(f"edit left out: step {finding.step}, {error.reason}: {error.message}")
            return finding


def _advance(asking: Asking[Critique], reply: Reply | HintdistillError | None) -> Request | Critique | HintdistillError:
    """Return the next question, or the outcome. Raises an error that ends the whole batch."""
    try:
        return asking.send(reply)  # type: ignore[arg-type]
    except StopIteration as done:
        return done.value
    except ServiceError as error:
        if not error.retryable:
            raise
        return error
    except HintdistillError as error:
        return error


__all__ = ["AnswerError", "Estimate", "LLMCritic"]

"""2. critique: Trace → Critique. Every critic is behind one protocol.

A critic answers a batch of traces in any order, each with a Critique or with the error that kept it from one; an error
costs that trace and is a row in the run folder. `key` says what the answer depends on besides the trace, so that a
changed prompt asks again and an unchanged one never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Protocol

from hintdistill.core.errors import HintdistillError, ServiceError
from hintdistill.core.threads import as_finished
from hintdistill.core.types import Critique, Finding, Trace, Usage, Verdict

Outcome = tuple[Trace, Critique | HintdistillError]


class Critic(Protocol):
    """Reads traces, finds errors."""

    name: str

    def key(self, trace: Trace) -> str:
        """Return a hash of everything that the critique depends on, except the trace: settings, prompts, recorded
        rows."""
        ...

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """Return one outcome per trace, in any order.

        Raises:
            ServiceError: nothing can be critiqued any more (server gone). What was yielded before is kept.
        """
        ...


def one_by_one(
    critique: Callable[[Trace], Critique], traces: Iterable[Trace], concurrency: int = 1
) -> Iterator[Outcome]:
    """Run a per-trace critic over many traces, `concurrency` at a time, yielding as they finish.

    What has finished by the same moment comes in the order of the traces; one at a time, everything does.
    A `ServiceError` with `retryable` False stops the whole batch; any other declared error costs its own trace. Closing the
    iterator cancels what is under way, which is owed.
    """
    with closing(as_finished(critique, traces, concurrency)) as finished:
        for trace, future in finished:
            try:
                yield trace, future.result()
            except ServiceError as error:
                if not error.retryable:
                    raise
                yield trace, error
            except HintdistillError as error:
                yield trace, error


def merge(trace_id: str, critiques: Iterable[Critique]) -> Critique:
    """Return what several critics say of one trace, as one critique.

    Findings are ordered by step; where two critics name the same error class at the same step, the earlier critic's
    words stand and the higher confidence is kept. A finding of one outweighs the silence of another.
    """
    findings: dict[tuple[int, str], Finding] = {}
    names: list[str] = []
    notes: list[str] = []
    usage = Usage()
    verdicts = []
    for critique in critiques:
        names += critique.critics
        notes += critique.notes
        verdicts.append(critique.verdict)
        usage = Usage(
            requests=usage.requests + critique.usage.requests,
            prompt_tokens=usage.prompt_tokens + critique.usage.prompt_tokens,
            completion_tokens=usage.completion_tokens + critique.usage.completion_tokens,
        )
        for finding in critique.findings:
            slot = (finding.step, finding.error_class)
            first = findings.get(slot)
            if first is None:
                findings[slot] = finding
            elif finding.confidence > first.confidence:
                findings[slot] = first.model_copy(update={"confidence": finding.confidence})
    ordered = tuple(sorted(findings.values(), key=lambda f: f.step))
    quiet: tuple[Verdict, ...] = ("none", "not_student", "abstain")
    verdict: Verdict = "findings" if ordered else next((v for v in quiet if v in verdicts), "abstain")
    return Critique(
        trace_id=trace_id, verdict=verdict, findings=ordered, critics=tuple(names), usage=usage, notes=tuple(notes)
    )

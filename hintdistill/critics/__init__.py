"""Run stage 2, critique: Trace → Critique. All critics share one protocol. A critic answers a batch of traces in any
order, each with a Critique or with an error. An error costs only that trace and becomes a row in the run folder. `key`
covers everything besides the trace that the answer depends on, so a trace is critiqued again only if something changed,
e.g. a prompt.
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
    """Find errors in traces."""

    name: str

    def key(self, trace: Trace) -> str:
        """Return a hash of everything that the critique depends on, except the trace: settings, prompts, recorded
        rows."""
        ...

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """Return one outcome per trace, in any order.

        Raises:
            ServiceError: no further trace can be critiqued, e.g. because the server is down. Earlier outcomes are kept.
        """
        ...


def one_by_one(
    critique: Callable[[Trace], Critique], traces: Iterable[Trace], concurrency: int = 1
) -> Iterator[Outcome]:
    """Run a per-trace critic over many traces, `concurrency` at a time, and yield outcomes as they finish.

    Traces that finish at the same moment come in their original order, and so do all traces if `concurrency` is 1. A
    `ServiceError` with `retryable` False stops the whole batch; any other declared error costs its own trace. Closing
    the iterator cancels open requests; their traces remain to be done.
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
    """Merge the critiques of one trace by several critics into one.

    Findings are ordered by step; if two critics name the same error class at the same step, the finding of the earlier
    critic is kept, with the higher confidence. A finding by one critic counts even if the others found nothing.
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

"""Inject the hints (stage 3): select the findings to use and splice their hints in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hintdistill.core.errors import EmptyFunnelError, HintdistillError
from hintdistill.core.storage import content_key
from hintdistill.core.types import Critique, Finding, Injection, Split, Trace
from hintdistill.injection.contexts import MadeContexts
from hintdistill.injection.splice import Injector
from hintdistill.pipeline import critique, read
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.contexts import Contexts
from hintdistill.pipeline.store import RunDir

NO_ERROR = "none"
"""The error class given to a step without a finding, if every step gets a context."""


@dataclass(frozen=True)
class LoadedInjection:
    """Hold a current injection with its trace and finding."""

    key: str
    """Content key of the injection alone, so that an unchanged injection keeps its target."""
    trace_key: str
    injection: Injection
    split: Split


def select(
    found: Critique, max_per_trace: int, min_confidence: float, which: Literal["decisive", "roots"] = "roots"
) -> list[tuple[Finding, str | None]]:
    """Return every finding with None if it is used, or else with the reason: only root errors are trained on, the
    earliest first.

    With `which="decisive"`, findings that their critic calls not decisive are not used either.
    """
    out: list[tuple[Finding, str | None]] = []
    taken = 0
    for finding in found.findings:
        reason = None
        if finding.caused_by is not None:
            reason = "consequence"
        elif which == "decisive" and finding.decisive is False:
            reason = "not_decisive"
        elif finding.confidence < min_confidence:
            reason = "low_confidence"
        elif taken == max_per_trace:
            reason = "over_max_per_trace"
        else:
            taken += 1
        out.append((finding, reason))
    return out


def run(ctx: RunContext) -> None:
    """Make the missing injections. A finding that cannot be injected becomes a row with the reason."""
    config, store = ctx.config, ctx.rundir.store("injections")
    critiques = critique.opened(ctx)
    done = ctx.rundir.rows("injections")
    # what contexts say is in their words, which are part of the key of whoever reads them
    prompts = {n: ctx.library.hash(n) for n in ctx.library.names() if not n.startswith(("critic/", "contexts/"))}
    section, placebos, contexts = config.injecting, config.rescoring.placebos, Contexts(ctx)
    ctx.rundir.note(model=vars(ctx.model_key), hint=section.hint)
    # of files of texts the words count, wherever they lie
    told = section.model_dump(mode="json", exclude={"contexts": {"solutions", "demonstrations", "file", "shown"}})
    settings = [ctx.renderer.key, told, placebos, content_key(prompts)]
    injector = Injector(ctx.renderer, ctx.library, section, placebos)
    index: list[str] = []
    with store.batched() as write, ctx.console.progress("inject", read.count(ctx)) as advance:
        for trace_key, trace, _ in read.each(ctx):
            rows = []
            found = critiques.get(trace_key)
            for finding, skipped in _selected(ctx, trace, found):
                words = None if skipped else _contexts(contexts, trace, finding, found)
                said = [] if words is None else [words.message if isinstance(words, HintdistillError) else vars(words)]
                key = content_key("inject", trace_key, finding.model_dump(mode="json"), skipped, *settings, *said)
                if (before := done.get(key)) is not None:
                    count = before.get("candidates", 1)
                else:
                    made = _outcomes(injector, trace, finding, skipped, words)
                    count = len(made)
                    # the first one last: where it is there, the others are
                    for n in reversed(range(count)):
                        rows.append({"key": _numbered(key, n), "trace": trace_key, **made[n]})
                index += [_numbered(key, n) for n in range(count)]
            write(rows)
            advance(1)
    ctx.rundir.set_index("inject", index)
    _summarise(ctx)


def _selected(ctx: RunContext, trace: Trace, found: Critique | None) -> Iterator[tuple[Finding, str | None]]:
    """Yield every finding of a trace with None or the reason why it is not used; or every step, if the steps do not
    come from findings."""
    section = ctx.config.critic
    found = found or Critique(trace_id=trace.id, verdict="abstain")
    if (steps := ctx.config.injecting.steps) is not None:
        chosen: list[tuple[Finding, str | None]] = [(f, None) for f in _steps(trace, found, steps)]
    else:
        chosen = select(found, section.max_per_trace, section.min_confidence, section.select)
    for finding, skipped in chosen:
        if finding.step in trace.given_steps:
            yield finding, skipped or "given_step"
        elif trace.step(finding.step).cut:
            yield finding, skipped or "cut_step"
        else:
            yield finding, skipped


def _steps(trace: Trace, found: Critique, which: str) -> Iterator[Finding]:
    """Yield every step of a trace, or only its last, as a finding about the whole step; the first finding of a critic
    on a step is kept."""
    every = range(len(trace.step_indices))
    for k in every if which == "every" else every[-1:]:
        own = next((f for f in found.findings if f.step == k), None)
        if own is None:
            yield Finding(step=k, error_class=NO_ERROR, critic="steps")
        else:
            yield own.model_copy(update={"quote": None, "quote_in": None, "call": None})


def _contexts(
    contexts: Contexts, trace: Trace, finding: Finding, found: Critique | None
) -> MadeContexts | HintdistillError | None:
    """Return the texts of a finding's contexts, or the reason for their absence; None if the hint source alone writes
    the teacher's context."""
    if not contexts.needed:
        return None
    try:
        return contexts.of(trace, finding, found.findings if found else ())
    except HintdistillError as error:
        return error


def _numbered(key: str, n: int) -> str:
    """Return the key of a finding's n-th hint."""
    return key if n == 0 else f"{key}-{n}"


def _outcomes(
    injector: Injector,
    trace: Trace,
    finding: Finding,
    skipped: str | None,
    contexts: MadeContexts | HintdistillError | None,
) -> list[dict[str, Any]]:
    """Return the rows of a finding: one for each of its hints, or one with the reason why it has none."""
    about = {"trace_id": trace.id, "finding": finding.model_dump(mode="json", exclude_defaults=True)}
    if skipped is not None:
        return [{**about, "skipped": skipped}]
    try:
        if isinstance(contexts, HintdistillError):
            raise contexts
        injections = (
            injector.candidates(trace, finding) if contexts is None else injector.in_context(trace, finding, contexts)
        )
    except HintdistillError as error:
        return [{**about, "failure": {"reason": error.reason, "message": error.message}}]
    counted = {"candidates": len(injections)} if len(injections) > 1 else {}
    return [{"injection": i.model_dump(mode="json", exclude_defaults=True), **counted} for i in injections]


def _summarise(ctx: RunContext) -> None:
    made, failed, left, first = 0, 0, 0, dict[str, None]()
    for row in ctx.rundir.each("inject", "injections"):
        made += "injection" in row
        failed += "failure" in row
        left += "injection" not in row and "failure" not in row
        if "failure" in row and failed <= 3:
            first[row["failure"]["message"]] = None
    ctx.console.note(f"inject: {made} injections, {failed} findings could not be injected, {left} skipped")
    for message in first:
        ctx.console.warn(message)


def require_some(rundir: RunDir) -> None:
    """Raise EmptyFunnelError if nothing was injected in this run, with counts that explain it."""
    why: Counter[str] = Counter()
    for row in rundir.each("inject", "injections"):
        if "injection" in row:
            return
        why[row["skipped"] if "skipped" in row else row["failure"]["reason"]] += 1
    counts = ", ".join(f"{n} {reason}" for reason, n in why.most_common()) or "the critics found no errors"
    raise EmptyFunnelError(
        f"no hint was injected, so no finding was rescored: {why.total()} findings ({counts})",
        hint="all rows are written: report.json contains the funnel, and critiques.jsonl and "
        "injections.jsonl contain the reasons",
    )


def loaded(rows: Iterable[Mapping[str, Any]], split: Split) -> list[LoadedInjection]:
    """Return the injections among the rows of a trace."""
    return [
        LoadedInjection(
            content_key("injection", r["injection"]), r["trace"], Injection.model_validate(r["injection"]), split
        )
        for r in rows
        if "injection" in r
    ]


def each(ctx: RunContext) -> Iterator[LoadedInjection]:
    """Yield the current injections in trace order, keeping those of one trace in memory."""
    rows = ctx.rundir.grouped("inject", "injections")
    for key, split in read.keys(ctx):
        yield from loaded(rows.of(key), split)


def load(ctx: RunContext) -> list[LoadedInjection]:
    """Return the current injections, in trace order, all in memory."""
    return list(each(ctx))

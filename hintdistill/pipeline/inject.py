"""Stage 3: which findings go on, and their hints spliced in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from hintdistill.core.errors import EmptyFunnelError, HintdistillError
from hintdistill.core.storage import content_key
from hintdistill.core.types import Critique, Finding, Injection, Split, Trace
from hintdistill.injection.splice import Injector
from hintdistill.pipeline import critique, read
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.store import RunDir


@dataclass(frozen=True)
class LoadedInjection:
    """A current injection and where it belongs."""

    key: str
    """Content key of the injection itself, so that an unchanged one keeps its target."""
    trace_key: str
    injection: Injection
    split: Split


def select(
    found: Critique, max_per_trace: int, min_confidence: float, which: Literal["decisive", "roots"] = "roots"
) -> list[tuple[Finding, str | None]]:
    """Every finding with None, or with why it goes no further: only root errors train, the earliest first.

    With `which="decisive"` one that its critic calls not decisive goes no further either.
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
    """Inject what is owed. A finding that cannot be injected is a row with its reason."""
    config, store = ctx.config, ctx.rundir.store("injections")
    critiques = critique.load(ctx)
    done = store.by_key()
    prompts = {n: ctx.library.hash(n) for n in ctx.library.names() if not n.startswith("critic/")}
    ctx.rundir.note(model=vars(ctx.model_key))
    settings = [ctx.renderer.key, config.inject.model_dump(mode="json"), config.rescore.placebos, content_key(prompts)]
    injector = Injector(ctx.renderer, ctx.library, config.inject, config.rescore.placebos)
    index: list[str] = []
    traces = read.load(ctx)
    with ctx.console.progress("inject", len(traces)) as advance:
        for trace_key, trace, _ in traces:
            rows = []
            for finding, skipped in select(
                critiques[trace_key] if trace_key in critiques else Critique(trace_id=trace.id, verdict="abstain"),
                config.critic.max_per_trace,
                config.critic.min_confidence,
                config.critic.select,
            ):
                if finding.step in trace.given_steps:
                    skipped = skipped or "given_step"
                elif trace.step(finding.step).cut:
                    skipped = skipped or "cut_step"
                key = content_key("inject", trace_key, finding.model_dump(mode="json"), skipped, *settings)
                if key in done:
                    count = done[key].get("candidates", 1)
                else:
                    made = _outcomes(injector, trace, finding, skipped)
                    count = len(made)
                    # the first one last: where it is there, the others are
                    for n in reversed(range(count)):
                        rows.append({"key": _numbered(key, n), "trace": trace_key, **made[n]})
                index += [_numbered(key, n) for n in range(count)]
            store.extend(rows)
            advance(1)
    ctx.rundir.set_index("inject", index)
    _summarise(ctx)


def _numbered(key: str, n: int) -> str:
    """The key of the n-th hint of a finding."""
    return key if n == 0 else f"{key}-{n}"


def _outcomes(injector: Injector, trace: Trace, finding: Finding, skipped: str | None) -> list[dict[str, Any]]:
    """The rows of a finding: each of its hints, or why there is none."""
    about = {"trace_id": trace.id, "finding": finding.model_dump(mode="json", exclude_defaults=True)}
    if skipped is not None:
        return [{**about, "skipped": skipped}]
    try:
        injections = injector.candidates(trace, finding)
    except HintdistillError as error:
        return [{**about, "failure": {"reason": error.reason, "message": error.message}}]
    counted = {"candidates": len(injections)} if len(injections) > 1 else {}
    return [{"injection": i.model_dump(mode="json", exclude_defaults=True), **counted} for i in injections]


def _summarise(ctx: RunContext) -> None:
    rows = ctx.rundir.current("inject", "injections")
    made = sum("injection" in r for r in rows)
    failed = [r["failure"] for r in rows if "failure" in r]
    ctx.console.note(
        f"inject: {made} injections, {len(failed)} findings without a place, {len(rows) - made - len(failed)} left out"
    )
    for message in dict.fromkeys(f["message"] for f in failed[:3]):
        ctx.console.warn(message)


def require_some(rundir: RunDir) -> None:
    """Raise EmptyFunnelError where nothing was injected in this run, with the counts that explain it."""
    rows = rundir.current("inject", "injections")
    if any("injection" in row for row in rows):
        return
    why = Counter(row["skipped"] if "skipped" in row else row["failure"]["reason"] for row in rows)
    counts = ", ".join(f"{n} {reason}" for reason, n in why.most_common()) or "the critics found nothing"
    raise EmptyFunnelError(
        f"no hint was injected, so that no finding was rescored: {len(rows)} findings ({counts})",
        hint="all rows are written; report.json has the funnel, and critiques.jsonl and injections.jsonl the reasons",
    )


def load(ctx: RunContext) -> list[LoadedInjection]:
    """The current injections, in trace order."""
    splits = {key: split for key, _, split in read.load(ctx)}
    out = []
    for row in ctx.rundir.current("inject", "injections"):
        if "injection" in row:
            key = content_key("injection", row["injection"])
            injection = Injection.model_validate(row["injection"])
            out.append(LoadedInjection(key, row["trace"], injection, splits[row["trace"]]))
    return out

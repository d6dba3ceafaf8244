"""Stage 2: every critic in use reads every trace, the strong one those that the others leave open; what they said is kept
apart and put together when it is used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from typing import Any

from hintdistill.config import CriticSection
from hintdistill.core.errors import HintdistillError, ServiceError
from hintdistill.core.storage import content_key
from hintdistill.core.types import Critique, Finding, Trace
from hintdistill.critics import Critic
from hintdistill.critics.build import make_critics
from hintdistill.critics.cascade import Said, escalation, settle
from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext, trace_key
from hintdistill.reporting.spending import PARTS


def critics(ctx: RunContext) -> list[Critic]:
    """The critics in use, in order. Raises ConfigError, PromptError or InputError."""
    # before there is a run folder the critics are only put together to see whether they can be
    cache = ctx.rundir.path / "answers.jsonl" if ctx.rundir.is_run() else None
    twins = ctx.config.train.twins.per_finding > 0
    return make_critics(ctx.config.critic, ctx.config.run, ctx.library, cache, twins=twins)


def asked(ctx: RunContext, traces: Sequence[Trace], made: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """What each critic would be asked about these traces, at most; nothing is asked.

    Args:
        made: keys of critiques that are there already, which are not asked for again.

    Returns:
        Per critic `requests` (repair rounds aside), `prompt_tokens`, `answer_tokens` (as many as may be given), and `money`: 0
        in this process or where nothing is asked, None where a server is asked and no price is set.
    """
    from hintdistill.critics.llm import LLMCritic

    out: dict[str, dict[str, Any]] = {}
    for critic in critics(ctx):
        owed = [t for t in traces if row_key(trace_key(t), critic, t) not in made] if made else traces
        if not isinstance(critic, LLMCritic):
            out[critic.name] = {"requests": 0, "prompt_tokens": 0, "answer_tokens": 0, "money": 0.0}
            continue
        each = [critic.estimate(t) for t in owed]
        requests, read = sum(e.requests for e in each), sum(e.prompt_tokens for e in each)
        written, price = requests * critic.config.max_tokens, critic.config.price
        if critic.config.backend != "server" or not requests:
            money: float | None = 0.0
        else:
            money = None if price is None else (read * price[0] + written * price[1]) / 1e6
        out[critic.name] = {"requests": requests, "prompt_tokens": read, "answer_tokens": written, "money": money}
    return out


def row_key(trace: str, critic: Critic, of: Trace) -> str:
    """Key of a critic's row on a trace, whose own row has the key `trace`."""
    return content_key("critique", trace, critic.name, critic.key(of))


def run(ctx: RunContext) -> None:
    """Critique what is owed.

    Raises:
        ServiceError: a critic's server is gone; what it answered before is kept.
    """
    traces = {trace.id: (key, trace) for key, trace, _ in read.load(ctx)}
    ctx.rundir.note(prompts={n: ctx.library.hash(n) for n in ctx.library.names()})
    store = ctx.rundir.store("critiques")
    index: list[str] = []
    said: dict[str, list[Said]] = {id_: [] for id_ in traces}
    for critic in critics(ctx):
        for note in getattr(getattr(critic, "backend", None), "notes", ()):
            ctx.console.note(note)
        asked = {id_: t for id_, (_, t) in traces.items() if critic.name != "strong" or _open(ctx, t, said[id_])}
        keys = {id_: row_key(traces[id_][0], critic, trace) for id_, trace in asked.items()}
        index += keys.values()
        # an answer that a second try may give is still owed
        rows = {k: r for k, r in store.by_key().items() if not r.get("failure", {}).get("retryable")}
        owed = [trace for id_, trace in asked.items() if keys[id_] not in rows]
        for id_ in asked:
            if keys[id_] in rows:
                said[id_].append(_said(rows[keys[id_]]))
        with ctx.console.progress(f"critique ({critic.name})", len(asked)) as advance:
            advance.before(len(asked) - len(owed))
            meter = Meter(ctx.config.critic, critic)
            # closed at once where the run is stopped, so that what is under way is cancelled, and owed
            with closing(_own_only(critic, owed)) as outcomes:
                for trace, answer in outcomes:
                    outcome = without_given(trace, answer)
                    store.append(_row(keys[trace.id], traces[trace.id][0], trace.id, critic.name, outcome))
                    said[trace.id].append(outcome)
                    advance.says(meter.add(answer))
                    advance(1)
    ctx.rundir.set_index("critique", index)
    _summarise(ctx, len(traces))


class Meter:
    """What a critic has been asked in this run, and what it cost."""

    def __init__(self, config: CriticSection, critic: Critic) -> None:
        self._used = dict.fromkeys(PARTS, 0)
        self._prices = getattr(getattr(config, critic.name, None), "price", None)

    def add(self, outcome: Said) -> str | None:
        """Count an outcome; returns questions, tokens and money so far, or None where nobody was asked."""
        usage = getattr(outcome, "usage", None)
        for part in PARTS if usage is not None else ():
            self._used[part] += getattr(usage, part)
        asked, read, written = (self._used[part] for part in PARTS)
        if not asked:
            return None
        money = (
            "" if self._prices is None else f", cost {(read * self._prices[0] + written * self._prices[1]) / 1e6:,.4f}"
        )
        return f"{asked:,} questions, {read + written:,} tokens{money}"


def owed(ctx: RunContext) -> dict[str, str]:
    """Traces whose critique another try may still give, each with the reason; none that the strong critic has judged."""
    rows = ctx.rundir.current("critique", "critiques")
    judged = {r["trace"] for r in rows if r["critic"] == "strong" and "critique" in r}
    return {
        r["trace"]: r["failure"]["reason"]
        for r in rows
        if r.get("failure", {}).get("retryable") and r["trace"] not in judged
    }


def require_answered(ctx: RunContext) -> None:
    """Refuse to train on the traces that happened to be answered.

    Raises:
        ServiceError: a greater share of the traces than `critic.allow_owed` is owed a critique.
    """
    missing, traces = owed(ctx), len(read.load(ctx))
    if not missing or len(missing) <= ctx.config.critic.allow_owed * traces:
        return
    why = ", ".join(f"{n} {reason}" for reason, n in Counter(missing.values()).most_common())
    raise ServiceError(
        f"{len(missing)} of {traces} traces are owed a critique ({why}); training on the others would leave them out",
        hint=f"run again with --resume once the critic answers{' and critic.budget_tokens is raised' * ('budget' in why)}; "
        f"critic.allow_owed={min(1.0, math.ceil(100 * len(missing) / traces) / 100):g} trains without them",
    )


def _own_only(critic: Critic, traces: Sequence[Trace]) -> Generator[tuple[Trace, Said], None, None]:
    """Ask the critic about traces with a step of their own; of the others there is nothing to say."""
    for trace in (t for t in traces if len(t.given_steps) == len(t.step_indices)):
        yield trace, Critique(trace_id=trace.id, verdict="none", critics=(critic.name,), notes=("every step is given",))
    yield from critic.critique([t for t in traces if len(t.given_steps) < len(t.step_indices)])


def without_given(trace: Trace, outcome: Said) -> Said:
    """The critique without findings on given steps, which are context; each is noted. An error caused by one is a root error."""
    if not isinstance(outcome, Critique) or not trace.given_steps:
        return outcome
    findings = tuple(
        f.model_copy(update={"caused_by": None}) if f.caused_by in trace.given_steps else f
        for f in outcome.findings
        if f.step not in trace.given_steps
    )
    notes = tuple(f"dropped: step {f.step} is given" for f in outcome.findings if f.step in trace.given_steps)
    verdict = "none" if outcome.findings and not findings else outcome.verdict
    return outcome.model_copy(update={"findings": findings, "verdict": verdict, "notes": (*outcome.notes, *notes)})


def _open(ctx: RunContext, trace: Trace, said: list[Said]) -> str | None:
    return escalation(ctx.config.critic, trace, said)


def _said(row: dict[str, Any]) -> Said:
    if "critique" in row:
        return Critique.model_validate(row["critique"])
    return ServiceError(row["failure"]["message"])


def _summarise(ctx: RunContext, traces: int) -> None:
    rows = ctx.rundir.current("critique", "critiques")
    failed = [r["failure"] for r in rows if "failure" in r]
    for (reason, again), n in Counter((f["reason"], f["retryable"]) for f in failed).most_common():
        first = next(f for f in failed if (f["reason"], f["retryable"]) == (reason, again))
        owed_or_not = f"{reason}, owed" if again else reason
        ctx.console.warn(f"{n} critiques failed ({owed_or_not}); the first: {first['message']}")
    merged = load(ctx)
    findings = sum(len(c.findings) for c in merged.values())
    erring = sum(c.verdict == "findings" for c in merged.values())
    dropped = sum(n.startswith("dropped:") for c in merged.values() for n in c.notes)
    split = sum(n.startswith("read in ") for c in merged.values() for n in c.notes)
    more = [f"{dropped} findings dropped"] * (dropped > 0) + [f"{split} traces read in windows"] * (split > 0)
    ctx.console.note(
        f"critique: {findings} findings in {erring} of {traces} traces, by {', '.join(ctx.config.critic.use)}"
        + (f" ({', '.join(more)})" if more else "")
    )


def _row(key: str, trace_key: str, trace_id: str, critic: str, outcome: Critique | HintdistillError) -> dict[str, Any]:
    row: dict[str, Any] = {"key": key, "trace": trace_key, "trace_id": trace_id, "critic": critic}
    if isinstance(outcome, Critique):
        return row | {"critique": outcome.model_dump(mode="json", exclude_defaults=True)}
    failure = {"reason": outcome.reason, "message": outcome.message, "retryable": outcome.retryable}
    if hasattr(outcome, "raw"):
        failure |= {"raw_answer": outcome.raw, "usage": outcome.usage.model_dump()}  # type: ignore[attr-defined]
    return row | {"failure": failure}


def load(ctx: RunContext) -> dict[str, Critique]:
    """The critique of each trace, by trace row key. Traces that no critic could read are absent."""
    said: dict[str, list[Critique]] = {}
    for row in ctx.rundir.current("critique", "critiques"):
        if "critique" in row:
            said.setdefault(row["trace"], []).append(Critique.model_validate(row["critique"]))
    revised = {r["finding"]: r["hint"] for r in ctx.rundir.current("revise", "revisions") if "hint" in r}
    return {key: _revised(key, settle(critiques[0].trace_id, critiques), revised) for key, critiques in said.items()}


def finding_key(trace_key: str, finding: Finding) -> str:
    """Content key of a finding as its critic made it."""
    return content_key("finding", trace_key, finding.model_dump(mode="json", exclude={"revised_from"}))


def _revised(trace_key: str, critique: Critique, revised: dict[str, str]) -> Critique:
    """The critique with the second hints of findings whose first the gate rejected."""
    if not revised:
        return critique
    findings = tuple(
        f
        if (hint := revised.get(finding_key(trace_key, f))) is None
        else f.model_copy(update={"hint": hint, "revised_from": f.hint})
        for f in critique.findings
    )
    return critique.model_copy(update={"findings": findings})

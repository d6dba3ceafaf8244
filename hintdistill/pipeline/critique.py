"""Critique the traces (stage 2): every critic in use reads every trace, except that the strong critic reads only
undecided ones. Answers are stored separately and merged when used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, cast

from hintdistill.config import CriticSection
from hintdistill.core.errors import HintdistillError, InputError, ServiceError
from hintdistill.core.rows import Lazy, Rows, chunks
from hintdistill.core.storage import PAUSE, content_key
from hintdistill.core.types import Critique, Finding, Trace
from hintdistill.critics import Critic
from hintdistill.critics.build import make_critics
from hintdistill.critics.cascade import Said, escalation, settle
from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext, trace_key
from hintdistill.reporting.spending import PARTS


def critics(ctx: RunContext) -> list[Critic]:
    """Return the critics in use, in order. Raises ConfigError, PromptError or InputError."""
    # before there is a run folder the critics are only put together to see whether they can be
    cache = ctx.rundir.path / "answers.jsonl" if ctx.rundir.is_run() else None
    twins = ctx.config.train.twins.per_finding > 0
    section = ctx.config.critic
    if ctx.shard is not None and section.budget_tokens is not None:
        # what all shards spend together stays within the budget
        section = section.model_copy(update={"budget_tokens": max(1, section.budget_tokens // ctx.shard[1])})
    return make_critics(section, ctx.config.run, ctx.library, cache, twins=twins)


def asked(ctx: RunContext, traces: Sequence[Trace], made: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return an upper bound of each critic's questions about these traces; nothing is asked.

    Args:
        made: keys of existing critiques, which are not requested again.

    Returns:
        Per critic `requests` (without repair rounds), `prompt_tokens`, `answer_tokens` (the largest possible number),
        and `money`, which is 0 if no server is asked, and None if a server is asked but no price is set.
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
    """Return the key under which a critic's row for a trace is stored; `trace` is the key of the trace's own row."""
    return content_key("critique", trace, critic.name, critic.key(of))


CHUNK = 512
"""Number of traces in memory at once; a critic gets all of them together, so that it can ask many questions in
parallel."""


def run(ctx: RunContext) -> None:
    """Ask the critics about all traces that lack a critique.

    Raises:
        ServiceError: a critic's server is unreachable; earlier answers are kept.
        InputError: shards are being merged, but one of them has not critiqued its traces.
    """
    ctx.rundir.note(prompts={n: ctx.library.hash(n) for n in ctx.library.names()})
    index: list[str] = []
    before: list[Critic] = []
    number = read.count(ctx)
    for critic in critics(ctx):
        said = _notes(ctx, critic, ())
        index += _one_critic(ctx, critic, before, number)
        _notes(ctx, critic, said)
        before.append(critic)
    ctx.rundir.set_index("critique", index)
    _summarise(ctx, number)


def _notes(ctx: RunContext, critic: Critic, said: Sequence[str]) -> Sequence[str]:
    """Print the notes of a critic's backend about its servers, except those already printed; return all of them."""
    notes: Sequence[str] = getattr(getattr(critic, "backend", None), "notes", ())
    for note in notes:
        if note not in said:
            ctx.console.note(note)
    return notes


def _one_critic(ctx: RunContext, critic: Critic, before: Sequence[Critic], number: int) -> list[str]:
    """Ask one critic for its missing answers. Return the keys of all its rows, in the order of the traces.

    Args:
        before: the critics that have already judged every trace.
        number: number of traces.
    """
    store, index = ctx.rundir.store("critiques"), list[str]()
    # what was there before, and what the critics before have said
    rows = ctx.rundir.rows("critiques")
    meter = Meter(ctx.config.critic, critic)
    # an answer that somebody waited for is kept at once
    pause = PAUSE if getattr(critic, "backend", None) is None else 0.0
    with store.batched(pause) as write, ctx.console.progress(f"critique ({critic.name})", number) as advance:
        for chunk in chunks(read.each(ctx), CHUNK):
            keyed = {t.id: (k, t) for k, t, _ in chunk}
            if critic.name == "strong":
                said = {id_: [_said(rows[row_key(k, c, t)]) for c in before] for id_, (k, t) in keyed.items()}
                keyed = {id_: kt for id_, kt in keyed.items() if escalation(ctx.config.critic, kt[1], said[id_])}
            keys = {id_: row_key(key, critic, trace) for id_, (key, trace) in keyed.items()}
            index += keys.values()
            owed = [t for id_, (_, t) in keyed.items() if _is_owed(ctx, rows, keys[id_])]
            advance.before(len(chunk) - len(owed))
            # closed at once where the run is stopped, so that what is under way is cancelled, and owed
            with closing(_own_only(critic, owed)) as outcomes:
                for trace, answer in outcomes:
                    outcome = without_given(trace, answer)
                    write([_row(keys[trace.id], keyed[trace.id][0], trace.id, critic.name, outcome)])
                    advance.says(meter.add(answer))
                    advance(1)
    return index


def _is_owed(ctx: RunContext, rows: Rows, key: str) -> bool:
    """Return whether a critic must be asked: it has not answered, or its failure may be temporary.

    Raises:
        InputError: shards are being merged, but none of them has the row.
    """
    row = rows.get(key)
    if row is None and ctx.gathers:
        raise InputError(f"{rows.path} has no critique {key}", hint="a shard is not finished")
    return row is None or (not ctx.gathers and bool(row.get("failure", {}).get("retryable")))


class Meter:
    """Count the questions that a critic was asked in this run, and their cost."""

    def __init__(self, config: CriticSection, critic: Critic) -> None:
        self._used = dict.fromkeys(PARTS, 0)
        self._prices = getattr(getattr(config, critic.name, None), "price", None)

    def add(self, outcome: Said) -> str | None:
        """Count an outcome. Return the questions, tokens and money so far, or None if nothing was asked."""
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
    """Return the traces whose critique may succeed in another attempt, with the reason; traces judged by the strong
    critic are excluded."""
    judged, missing = set[str](), dict[str, str]()
    for row in ctx.rundir.each("critique", "critiques"):
        if row["critic"] == "strong" and "critique" in row:
            judged.add(row["trace"])
        elif row.get("failure", {}).get("retryable"):
            missing[row["trace"]] = row["failure"]["reason"]
    return {trace: reason for trace, reason in missing.items() if trace not in judged}


def require_answered(ctx: RunContext) -> None:
    """Refuse to train on a biased selection of traces: those that happened to be answered.

    Raises:
        ServiceError: a larger share of the traces than `critic.allow_owed` lacks a critique.
    """
    missing, traces = owed(ctx), read.count(ctx)
    if not missing or len(missing) <= ctx.config.critic.allow_owed * traces:
        return
    why = ", ".join(f"{n} {reason}" for reason, n in Counter(missing.values()).most_common())
    raise ServiceError(
        f"{len(missing)} of {traces} traces lack a critique ({why}); training on the others would leave them out",
        hint="run again with --resume once the critic "
        f"answers{' and critic.budget_tokens is raised' * ('budget' in why)}; "
        f"critic.allow_owed={min(1.0, math.ceil(100 * len(missing) / traces) / 100):g} trains "
        "without them",
    )


def _own_only(critic: Critic, traces: Sequence[Trace]) -> Generator[tuple[Trace, Said], None, None]:
    """Ask the critic only about traces with steps that the student produced."""
    for trace in (t for t in traces if len(t.given_steps) == len(t.step_indices)):
        yield trace, Critique(trace_id=trace.id, verdict="none", critics=(critic.name,), notes=("every step is given",))
    yield from critic.critique([t for t in traces if len(t.given_steps) < len(t.step_indices)])


def without_given(trace: Trace, outcome: Said) -> Said:
    """Return the critique without findings on given steps, which are context. Each removed finding is noted; an error
    caused by one becomes a root error."""
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


def _said(row: dict[str, Any]) -> Said:
    if "critique" in row:
        return Critique.model_validate(row["critique"])
    return ServiceError(row["failure"]["message"])


def _summarise(ctx: RunContext, traces: int) -> None:
    failed: Counter[tuple[str, bool]] = Counter()
    first: dict[tuple[str, bool], str] = {}
    for row in ctx.rundir.each("critique", "critiques"):
        if "failure" in row:
            kind = (row["failure"]["reason"], row["failure"]["retryable"])
            failed[kind] += 1
            first.setdefault(kind, row["failure"]["message"])
    for (reason, again), n in failed.most_common():
        owed_or_not = f"{reason}, owed" if again else reason
        ctx.console.warn(f"{n} critiques failed ({owed_or_not}); the first: {first[reason, again]}")
    count: Counter[str] = Counter()
    for critique in opened(ctx).values():
        count["findings"] += len(critique.findings)
        count["erring"] += critique.verdict == "findings"
        count["dropped"] += sum(n.startswith("dropped:") for n in critique.notes)
        count["split"] += sum(n.startswith("read in ") for n in critique.notes)
    more = [f"{count['dropped']} findings dropped"] * (count["dropped"] > 0)
    more += [f"{count['split']} traces read in windows"] * (count["split"] > 0)
    ctx.console.note(
        f"critique: {count['findings']} findings in {count['erring']} of {traces} traces, by {', '.join(ctx.config.critic.use)}"
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


class Critiques(Mapping[str, Critique]):
    """Map trace row keys to critiques, which are read from disk on access. Traces that no critic could read are
    absent."""

    def __init__(self, ctx: RunContext) -> None:
        """Find the current rows. Raises InputError if one is missing from the folder."""
        self._rows = ctx.rundir.grouped("critique", "critiques")
        self._keys = Lazy(lambda: (key for key, _ in read.keys(ctx)))
        self._revised = {r["finding"]: r["hint"] for r in ctx.rundir.each("revise", "revisions") if "hint" in r}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the critique of a trace, or `default`."""
        said = [Critique.model_validate(row["critique"]) for row in self._rows.of(key) if "critique" in row]
        return _revised(key, settle(said[0].trace_id, said), self._revised) if said else default

    def __getitem__(self, key: str) -> Critique:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return cast(Critique, found)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._keys if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def items(self) -> Any:
        """Return each trace's key and critique, in reading order."""
        return ((key, found) for key in self._keys if (found := self.get(key)) is not None)

    def values(self) -> Any:
        """Return the critiques, in reading order."""
        return (found for _, found in self.items())


def opened(ctx: RunContext) -> Critiques:
    """Return the current critiques without loading them into memory."""
    return Critiques(ctx)


def load(ctx: RunContext) -> dict[str, Critique]:
    """Return the critique of each trace, by trace row key, all in memory; see `Critiques`."""
    return dict(Critiques(ctx).items())


def finding_key(trace_key: str, finding: Finding) -> str:
    """Return the content key of a finding in the form its critic gave it."""
    return content_key("finding", trace_key, finding.model_dump(mode="json", exclude={"revised_from"}))


def _revised(trace_key: str, critique: Critique, revised: dict[str, str]) -> Critique:
    """Return the critique with second hints for findings whose first hint the gate rejected."""
    if not revised:
        return critique
    findings = tuple(
        f
        if (hint := revised.get(finding_key(trace_key, f))) is None
        else f.model_copy(update={"hint": hint, "revised_from": f.hint})
        for f in critique.findings
    )
    return critique.model_copy(update={"findings": findings})

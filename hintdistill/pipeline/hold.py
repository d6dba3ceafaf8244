"""Hold traces: read from files like other traces, or played once by the initial policy; their steps are held in place.

Every record becomes a row of `hold.jsonl`, a trace or a failure. A hold trace that is also a training trace is left
out, because a step cannot be both corrected and held.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hintdistill.core.errors import EmptyFunnelError
from hintdistill.core.storage import content_key
from hintdistill.core.types import Source, Trace
from hintdistill.pipeline.context import RunContext, trace_key
from hintdistill.traces.options import Failure
from hintdistill.traces.reading import read_traces

ALSO_TRAINED = "also_trained"
"""Reason for leaving out a hold trace that is also a training trace."""


def read(ctx: RunContext) -> None:
    """Read the files of `train.hold.path`; do nothing if it is not set.

    Raises:
        InputError: a path does not exist.
        EmptyFunnelError: there is no usable hold trace.
    """
    section = ctx.config.train.hold
    if not section.path:
        if section.split is None:
            ctx.rundir.set_index("hold", [])
        return
    with ctx.console.progress("read hold traces", None) as advance:
        keep(ctx, _counted(read_traces(section.path, ctx.read_options()), advance), ", ".join(section.path))


def play(ctx: RunContext) -> None:
    """Play the split of `train.hold.split` with the initial policy; do nothing if it is not set or was already played.

    Raises:
        ConfigError: the environment has no such split.
        EmptyFunnelError: no episode was finished.
    """
    if ctx.config.train.hold.split is None:
        return
    keep(ctx, episodes(ctx), f"the split {ctx.config.train.hold.split}")


def episodes(ctx: RunContext) -> list[Trace | Failure]:
    """Return the initial policy's episodes of the split, one per task; episodes that are already rows are not played
    again."""
    from hintdistill.core.models import model_key
    from hintdistill.core.paths import object_content
    from hintdistill.pipeline.playing import episode_of, episode_row
    from hintdistill.rollouts.evaluate import load_suite, tasks_of
    from hintdistill.rollouts.measure import describe, options_of, played_from
    from hintdistill.rollouts.sampling import Sampler

    rollout, section = ctx.config.rollout, ctx.config.train.hold
    assert rollout.environment is not None and section.split is not None
    suite = load_suite(rollout.environment)
    tasks = tasks_of(suite, section.split, section.limit)
    options = options_of(rollout, played_from(rollout), ctx.config.run.seed)
    weights = model_key(ctx.initial_folder).weights
    base = content_key(
        "hold", weights, object_content(rollout.environment), describe(options), tasks, *ctx.renderer.options_content
    )
    store = ctx.rundir.store("hold_episodes")
    have, keys = store.by_key(), [f"{base}-{i}" for i in range(len(tasks))]
    # the seed draws a batch at a time, so a batch is the unit that is played again
    for at in range(0, len(tasks), options.batch_size):
        batch = keys[at : at + options.batch_size]
        if any(k not in have for k in batch):
            with ctx.console.progress("play hold traces", len(batch)) as advance:
                sampler = Sampler(ctx.engine(ctx.initial_folder), ctx.renderer, options)
                played = list(sampler.episodes(suite, tasks[at : at + options.batch_size], advance, first=at))
            store.extend([episode_row(k, e) for k, e in zip(batch, played, strict=True)])
    have, out = store.by_key(), list[Trace | Failure]()
    for number, key in enumerate(keys, 1):
        episode = episode_of(have[key])
        source = Source(file=section.split, position=f"task {number}")
        out.append(
            episode.trace.model_copy(update={"id": f"hold-{episode.trace.id}", "source": source})
            if episode.failure is None
            else Failure(source, "failed_episode", f"{episode.task}: {episode.failure}")
        )
    return out


def keep(ctx: RunContext, outcomes: Iterable[Trace | Failure], where: str) -> None:
    """Store the traces that were read or played as rows, and record which rows are current.

    Raises:
        EmptyFunnelError: there is no usable trace.
    """
    store, section = ctx.rundir.store("hold"), ctx.config.train.hold
    trained = set(ctx.rundir.index("read") or [])
    rows: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        row = _row(outcome, trained)
        rows[row["key"]] = row
    usable = [k for k, r in rows.items() if "trace" in r]
    if section.limit is not None and len(usable) > section.limit:
        chosen = set(random.Random(f"hold:{ctx.config.run.seed}").sample(sorted(usable), section.limit))
        rows = {k: r for k, r in rows.items() if "failure" in r or k in chosen}
    have = store.by_key()
    store.extend([row for key, row in rows.items() if key not in have])
    ctx.rundir.set_index("hold", list(rows))
    failures = [r["failure"] for r in rows.values() if "failure" in r]
    ctx.console.note(f"hold: {len(rows) - len(failures)} traces, {len(failures)} failed records")
    for failure in failures[:3]:
        ctx.console.warn(f"hold traces: {failure['source']}: {failure['message']}")
    if len(failures) > 3:
        ctx.console.warn(f"hold traces: {len(failures) - 3} more records failed; all are in {store.path}")
    if not usable:
        raise EmptyFunnelError(
            f"no usable hold trace in {where}" + "".join(f"; {f['source']}: {f['message']}" for f in failures[:2]),
            hint="name other traces in train.hold, or leave it out",
        )


def _counted(outcomes: Iterable[Trace | Failure], advance: Any) -> Iterator[Trace | Failure]:
    for outcome in outcomes:
        advance(1)
        yield outcome


def _row(outcome: Trace | Failure, trained: set[str]) -> dict[str, Any]:
    if isinstance(outcome, Trace) and trace_key(outcome) in trained:
        assert outcome.source is not None
        text = f"trace {outcome.id} is also a training trace"
        outcome = Failure(outcome.source, ALSO_TRAINED, text)
    if isinstance(outcome, Failure):
        failure = {"source": str(outcome.source), "reason": outcome.reason, "message": outcome.message}
        return {"key": content_key("hold failure", failure), "failure": failure}
    return {"key": trace_key(outcome), "trace": outcome.model_dump(mode="json", exclude_defaults=True)}


def load(ctx: RunContext) -> list[tuple[str, Trace]]:
    """Return the current hold traces with their keys, in reading order, all in memory."""
    return list(each(ctx))


def each(ctx: RunContext) -> Iterator[tuple[str, Trace]]:
    """Return the current hold traces with their keys, in reading order, one at a time."""
    return ((r["key"], Trace.model_validate(r["trace"])) for r in _current(ctx) if "trace" in r)


def keys(ctx: RunContext) -> list[str]:
    """Return the row keys of the current hold traces and of the records that failed."""
    return (ctx.rundir.index("hold") or []) if ctx.config.train.hold.given else []


def counts(ctx: RunContext) -> dict[str, Any] | None:
    """Return the number of hold traces, and of failed records by reason; None if there is no hold section."""
    failed, traces = Counter[str](), 0
    for row in _current(ctx):
        traces += "trace" in row
        if "failure" in row:
            failed[row["failure"]["reason"]] += 1
    return {"traces": traces, "failed": dict(sorted(failed.items()))} if traces or failed else None


def steps(ctx: RunContext, key: str, trace: Trace) -> list[int]:
    """Return the held steps of a hold trace: `train.hold.per_trace` steps, drawn only by the seed and the trace."""
    own = list(trace.own_steps)
    rng = random.Random(f"hold:{ctx.config.run.seed}:{key}")
    return sorted(rng.sample(own, min(ctx.config.train.hold.per_trace, len(own))))


def write_for_rounds(ctx: RunContext, path: Path) -> None:
    """Play the split once for all rounds of a loop, and write its traces to a file that each round reads.

    Raises:
        ConfigError, EmptyFunnelError: see `play`.
    """
    from hintdistill.traces.formats import native

    play(ctx)
    native.write(path, [trace for _, trace in each(ctx)])


def _current(ctx: RunContext) -> Iterator[dict[str, Any]]:
    if ctx.config.train.hold.given:
        yield from ctx.rundir.each("hold", "hold")

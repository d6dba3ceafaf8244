"""The work of a run, counted without weights: its traces, injections, anchors and rows as token ids.

The stages that need no model of the student actually run, in a temporary folder; existing critiques, injections and
targets come from the run folder. The counts are therefore those of the real run. A run in rounds has no traces yet: the
newest round's episodes represent those of the next one, and before the first round episodes are constructed from the
environment's opening messages.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hintdistill.config import RunConfig
from hintdistill.core.errors import HintdistillError
from hintdistill.core.lines import Histogram
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.rows import chunks
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.types import Trace
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.pipeline import critique, outcome, read, report, rescore, to_score, train
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.playing import draw_tasks
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.stages import run_stages, stages_between
from hintdistill.pipeline.store import RunDir, scratch_copy
from hintdistill.rescoring.scorer import AnchorItem, HintItem, Scorer
from hintdistill.rescoring.stored import StoredTargets
from hintdistill.rescoring.twins import TwinItem
from hintdistill.rollouts.evaluate import load_suite, tasks_of
from hintdistill.rollouts.openings import lay_out, lay_out_held
from hintdistill.training.reward import OutcomeData
from hintdistill.training.row_lengths import RowLength, StepIds, of_outcome, row_lengths, trained_lengths

FREE = ("rules", "recorded", "checker")
"""Critics that ask no model."""


@dataclass(frozen=True)
class Workload:
    """Hold the items that the stages would process."""

    source: str
    """Source of the injections."""
    lengths: dict[str, Histogram]
    """Histograms of the token counts of traces, steps and hints."""
    traces: int
    asked: dict[str, dict[str, int]]
    """Upper bounds of requests and prompt tokens, for each critic that is an LLM."""
    calls: list[list[ScoreRequest]]
    """The engine's calls for rescoring, in order: by block of traces, then watched steps, then hold traces."""
    blocks: tuple[int, ...]
    """Number of calls for each block of `rescore.part_rows` traces."""
    tail: tuple[int, int]
    """Number of calls for watched steps and for hold traces."""
    samples: tuple[list[ScoreRequest], list[ScoreRequest]]
    """The requests of the first hints and of the first anchors, as many as fit into one call; they are measured."""
    hinted: int
    """Number of hints to score."""
    targets: int
    entries: tuple[int, int]
    """Number of kept entries of all targets, and of the largest parquet part."""
    rows: list[RowLength]
    watched: list[RowLength]
    """Steps that are measured during training and never trained on."""
    after: list[list[ScoreRequest]]
    """For the report: scored steps to read again under the corrected student."""
    off_target: list[list[ScoreRequest]]
    """For the report: steps that both models read."""
    steps: float
    """Mean number of steps per trace."""
    hints: Sequence[HintItem] = ()
    """Items to score if no run folder contains them, constructed from opening messages."""
    anchors: Sequence[AnchorItem] = ()
    stored: bool = False
    """Whether targets already exist."""


class _Paper(RunContext):
    """A run without weights, whose engines know only the longest possible sequence."""

    shape: ModelShape

    def engine(self, folder: Path) -> TransformersEngine:
        """Return an object with only a `max_length`; any other access is an error."""
        return cast("TransformersEngine", SimpleNamespace(max_length=self.shape.max_length))


@contextlib.contextmanager
def gathered(config: RunConfig, shape: ModelShape, console: Console | None = None) -> Iterator[tuple[Workload, Path]]:
    """Read, critique without asking a model, inject, and yield the workload; the folder is deleted at the end.

    Raises:
        HintdistillError: one of these stages raised it.
    """
    console = console or Console(quiet=True)
    first, played = None, None
    if config.run.rounds is not None:
        first, played = config, _newest_round(config)
        config = _one_round(config, played)
    with scratch_copy(config.run.dir) as folder:
        if first is not None and played is None and first.rollout.source == "environment":
            yield _from_openings(first, shape, folder), folder
            return
        have = {stage for stage in ("critique", "rescore") if RunDir(folder).index(stage) is not None}
        asked = config.critic.use
        use = asked if "critique" in have else tuple(c for c in asked if c in FREE) or ("rules",)
        settings = config.model_copy(update={"critic": config.critic.model_copy(update={"use": use})})
        ctx = _Paper(settings, RunDir.create(folder, settings, resume=True), console)
        ctx.shape = shape
        try:
            requests = _stages(config, ctx, critiqued="critique" in have)
            targets = rescore.load(ctx) if "rescore" in have else None
            source = _source(config, use, have)
            work = _lay_out(ctx, requests, targets, _of_what(first, played, source))
        finally:
            ctx.rundir.close()
        yield work, folder


def gather(config: RunConfig, shape: ModelShape) -> Workload:
    """Return the workload of `gathered` without its folder. Raises what the stages up to inject raise."""
    with gathered(config, shape) as (work, _):
        return work


def _stages(config: RunConfig, ctx: RunContext, *, critiqued: bool) -> dict[str, dict[str, Any]]:
    """Run the stages that need no weights, and return the questions for the critics."""
    run_stages(ctx, until="read")
    outcome.require_outcomes(ctx)
    named = RunContext(config, RunDir(Path()), Console(quiet=True))
    asked = {
        n: each for n, each in critique.asked(named, [t for _, t, _ in read.load(ctx)]).items() if each["requests"]
    }
    last = [s.name for s in stages_between() if not s.needs_weights][-1]
    run_stages(ctx, first="critique", until=last, skip=("critique",) if critiqued else ())
    return asked


def _newest_round(config: RunConfig) -> Path | None:
    """Return the traces that the last round played; None if no round was played."""
    found = sorted((Path(config.run.dir) / "rounds").glob("*/rollouts.jsonl")) if config.run.dir is not None else []
    return next((p for p in reversed(found) if p.stat().st_size), None)


def _one_round(config: RunConfig, played: Path | None) -> RunConfig:
    """Return the configuration of one round on these traces."""
    run = config.run.model_copy(update={"rounds": None, "dir": None if played is None else str(played.parent / "run")})
    replays = config.rollout.source == "replay"
    path = (str(played),) if played else config.traces.path if replays else ()
    traces = config.traces.model_copy(update={"path": path})
    rollout = config.rollout.model_copy(update={"source": "environment"})
    return config.model_copy(update={"run": run, "traces": traces, "rollout": rollout})


def _of_what(loop: RunConfig | None, played: Path | None, source: str) -> str:
    """Describe the source of the traces: for a loop, those of a played round, or the replayed recordings."""
    if played is not None:
        return f"episodes of {played}; {source}"
    if loop is None:
        return source
    steps = loop.rollout.sample.episodes
    return f"the recorded traces with all their steps, of which a round acts at {steps}: an upper bound; {source}"


def _from_openings(config: RunConfig, shape: ModelShape, folder: Path) -> Workload:
    """Return a round constructed from the first messages of the tasks that it would draw; see `rollouts.openings`."""
    section = config.rollout
    assert section.environment is not None
    suite, ctx = load_suite(section.environment), RunContext(config, RunDir(folder), Console(quiet=True))
    known = tasks_of(suite, section.sample.split, None, section.sample.tasks)
    tasks = draw_tasks(known, section.sample.episodes, 1, config.run.seed, section.sample.per_task)
    found = lay_out(suite, ctx.renderer, tasks, config, shape)
    slots = [StepIds(i.trace_id, i.context_ids, i.step_ids, i.insert_at, i.block_ids) for _, i, _ in found.hints]
    slots += [StepIds(a.trace_id, a.rendered.context_ids, a.rendered.step_ids) for a in found.anchors]
    opened = Histogram.of(found.openings)
    return Workload(
        source=f"{len(tasks)} episodes of one round, from the environment's opening messages ({opened.median:,} tokens "
        f"median); assumed: {section.max_steps} steps of {section.max_new_tokens} tokens, with one error in the last",
        lengths={
            "opening": opened,
            "trace": Histogram.of(len(i.context_ids) + len(i.step_ids) for _, i, _ in found.hints),
            **_lengths(found.hints, found.anchors),
        },
        traces=len(tasks),
        asked={},
        **_scored(_Items(config, found.hints, found.anchors)),
        rows=row_lengths(slots),
        watched=[],
        after=[],
        off_target=[],
        steps=float(section.max_steps),
        hints=found.hints,
        anchors=found.anchors,
    )


def _source(config: RunConfig, use: Sequence[str], have: set[str]) -> str:
    if "rescore" in have:
        return f"targets of {config.run.dir}"
    if "critique" in have:
        return f"critiques of {config.run.dir}; every hint is assumed to be accepted"
    left = [c for c in config.critic.use if c not in use]
    said = f"findings of {', '.join(use)}; every hint is assumed to be accepted"
    return said if not left else f"estimated, because the plan does not ask {', '.join(left)}: {said}"


def _lay_out(ctx: _Paper, asked: dict[str, dict[str, int]], targets: StoredTargets | None, source: str) -> Workload:
    hints, anchors, twins = to_score.hint_items(ctx), to_score.anchor_items(ctx), to_score.twin_items(ctx)
    unplayed = [] if targets is not None else _unplayed_hold(ctx)
    anchors = [*anchors, *unplayed]
    ended = outcome.outcome_data(ctx)
    if targets is not None:
        trained = trained_lengths(train.selected(ctx, targets), ctx.config.train, ended)
    else:
        trained = row_lengths([*_all_slots(ctx, unplayed), *of_outcome(ended)])
    watched = _watched(ctx, targets, ended) if targets is not None else _perhaps_watched(ctx)
    if ctx.config.train.watch.every == 0:
        watched = []
    plain = [Scorer.requests(h.key, h.injection)[0] for h in hints] + [Scorer.twin_request(t.twin) for t in twins]
    after = [plain[at : at + 64] for at in range(0, len(plain), 64)]
    sets = report.off_target_sets(ctx)
    off = [requests[at : at + 32] for requests in sets.values() for at in range(0, len(requests), 32)]
    traces = [trace for _, trace, _ in read.load(ctx)]
    block_of = {t.id: n // ctx.config.rescore.part_rows for n, t in enumerate(traces)}
    together = ctx.teacher_folder == ctx.initial_folder
    return Workload(
        source=source
        if not unplayed
        else f"{source}; {len(unplayed)} steps of {ctx.config.train.hold.split}, not played yet, constructed from "
        "opening messages",
        traces=len(traces),
        asked=asked,
        **_scored(_Items(ctx.config, hints, anchors, twins, together, block_of, to_score.Found(ctx).anchored), targets),
        lengths={"trace": Histogram.of(n for t in traces if (n := _length(ctx, t))), **_lengths(hints, anchors)},
        rows=trained,
        watched=row_lengths(watched),
        after=after,
        off_target=off,
        steps=sum(len(t.step_indices) for t in traces) / max(1, len(traces)),
        stored=targets is not None,
    )


@dataclass(frozen=True)
class _Items:
    """Hold the items that rescoring scores."""

    config: RunConfig
    hints: Sequence[HintItem]
    anchors: Sequence[AnchorItem]
    twins: Sequence[TwinItem] = ()
    together: bool = True
    """Whether the same weights score hints and twins."""

    block_of: Mapping[str, int] = field(default_factory=dict)
    """The block of each trace, by trace id; if empty, all are in one block."""
    anchored: bool = True

    def batches(self) -> tuple[list[list[list[Any]]], list[list[Any]], list[list[Any]]]:
        """Return the items of each call: of each block, of watched steps, of hold traces; see `rescore.run`."""
        size, watched, held = self.config.rescore.part_rows, list[AnchorItem](), list[AnchorItem]()
        blocks: dict[int, tuple[list[HintItem], list[AnchorItem], list[TwinItem]]] = {
            n: ([], [], []) for n in sorted({0, *self.block_of.values()})
        }
        for hint in self.hints:
            blocks[self.block_of.get(hint.injection.trace_id, 0)][0].append(hint)
        for twin in self.twins:
            blocks[self.block_of.get(twin.twin.trace_id, 0)][2].append(twin)
        for anchor in self.anchors:
            if anchor.kind == "hold":
                held.append(anchor)
            elif self.block_of and (anchor.split == "holdout" or not self.anchored):
                watched.append(anchor)
            else:
                blocks[self.block_of.get(anchor.trace_id, 0)][1].append(anchor)
        of_watched = [list(some) for _, some in itertools.groupby(watched, key=lambda a: a.trace_id)]
        together = self.together
        of_blocks = [rescore.batched(h, a, t, size, together=together) for h, a, t in blocks.values()]
        return of_blocks, of_watched, list(chunks(held, size))

    def calls(self, batches: Sequence[list[Any]]) -> Iterator[list[ScoreRequest]]:
        """Yield the engine's calls for batches, in order."""
        injections = {h.key: h.injection for h in self.hints}
        for batch in batches:
            if isinstance(batch[0], TwinItem):
                # the originals are read once more, by the weights that score the twins
                wanted = [injections[key] for key in sorted({t.of for t in batch} & injections.keys())]
                yield [Scorer.request(i.plain_ids, len(i.step_ids), None, None) for i in wanted]
            yield [r for item in batch for r in requests_of(item)]


def requests_of(item: HintItem | AnchorItem | TwinItem) -> list[ScoreRequest]:
    """Return the requests of an item to the engine."""
    if isinstance(item, HintItem):
        return Scorer.requests(item.key, item.injection)
    if isinstance(item, TwinItem):
        return [Scorer.twin_request(item.twin)]
    ids = item.rendered.context_ids + item.rendered.step_ids
    return [Scorer.request(ids, len(item.rendered.step_ids), None, None)]


def _scored(items: _Items, targets: StoredTargets | None = None) -> dict[str, Any]:
    """Return the consequences of the items to score: the engine's calls and the kept entries."""
    size = items.config.rescore.part_rows
    blocks, watched, held = items.batches()
    calls = [[call for call in items.calls(b) if call] for b in (*blocks, watched, held)]
    return {
        "calls": [call for some in calls for call in some],
        "blocks": tuple(len(c) for c in calls[:-2]),
        "tail": (len(calls[-2]), len(calls[-1])),
        "samples": tuple([r for i in some[:size] for r in requests_of(i)] for some in (items.hints, items.anchors)),
        "hinted": len(items.hints),
        "targets": len(items.hints) + len(items.anchors) + len(items.twins),
        "entries": _entries(items, targets),
    }


def _lengths(hints: Sequence[HintItem], anchors: Sequence[AnchorItem]) -> dict[str, Histogram]:
    of_hints = [len(h.injection.step_ids) for h in hints]
    return {
        "step": Histogram.of(of_hints + [len(a.rendered.step_ids) for a in anchors]),
        "hint": Histogram.of(len(h.injection.block_ids) for h in hints),
    }


def _length(ctx: RunContext, trace: Trace) -> int:
    """Return the tokens of a trace up to the end of its last step; 0 if the template refuses it."""
    try:
        last = ctx.renderer.step(trace, len(trace.step_indices) - 1)
    except HintdistillError:
        return 0
    return len(last.context_ids) + len(last.step_ids)


def _unplayed_hold(ctx: _Paper) -> list[AnchorItem]:
    """Return the steps of the split in `train.hold` that rescoring would play first, constructed from its opening
    messages; none if it was already played."""
    section, rows = ctx.config.train.hold, {t.rows for t in ctx.config.train.effective_recipe.terms.values()}
    if section.split is None or "hold" not in rows or ctx.rundir.index("hold"):
        return []
    assert ctx.config.rollout.environment is not None
    suite = load_suite(ctx.config.rollout.environment)
    tasks = tasks_of(suite, section.split, section.limit)
    return lay_out_held(suite, ctx.renderer, tasks, ctx.config, ctx.shape)


def _all_slots(ctx: RunContext, unplayed: Sequence[AnchorItem] = ()) -> list[StepIds]:
    """Return an upper bound of what training uses: all injections and twins of its split, and as many anchors."""
    config = ctx.config.train
    terms = {t.rows for t in config.effective_recipe.terms.values()}
    out = [
        StepIds(
            h.injection.trace_id,
            h.injection.context_ids,
            h.injection.step_ids,
            h.injection.insert_at,
            h.injection.block_ids,
        )
        for h in to_score.hint_items(ctx)
        if h.split == "train" and h.injection.fidelity in config.fidelity
    ]
    out += [
        StepIds(t.twin.trace_id, t.twin.context_ids, t.twin.step_ids)
        for t in to_score.twin_items(ctx)
        if t.split == "train" and t.twin.fidelity in config.fidelity and "twin" in terms
    ]
    taken: dict[str, int] = {}
    for item in (*to_score.anchor_items(ctx), *unplayed):
        if item.kind == "hold":
            out.append(StepIds(item.trace_id, item.rendered.context_ids, item.rendered.step_ids))
            continue
        if item.split != "train" or "anchor" not in terms:
            # stored to be looked at while training
            continue
        taken[item.trace_id] = taken.get(item.trace_id, 0) + 1
        if taken[item.trace_id] <= config.anchor.per_trace:
            out.append(StepIds(item.trace_id, item.rendered.context_ids, item.rendered.step_ids))
    return out


def _watched(ctx: RunContext, targets: StoredTargets, ended: OutcomeData) -> list[StepIds]:
    """Return the stored targets that training reads to watch itself."""
    from hintdistill.training.watch import subsample

    sets, steps = train.watched(ctx, train.selected(ctx, targets), ended, targets), ctx.config.train.watch.steps
    chosen = [t for some in (sets.off_target, sets.heldout) for t in subsample(some, steps, ctx.config.run.seed)]
    return [StepIds(t.trace_id, t.context_ids, t.step_ids) for t in chosen]


def _perhaps_watched(ctx: RunContext) -> list[StepIds]:
    """Return as many clean steps of either split as will be watched; scoring decides which ones."""
    steps = ctx.config.train.watch.steps
    of: dict[str, list[StepIds]] = {"train": [], "holdout": []}
    for item in (i for i in to_score.anchor_items(ctx) if i.kind == "anchor"):
        of[item.split].append(StepIds(item.trace_id, item.rendered.context_ids, item.rendered.step_ids))
    return [*of["train"][-steps:], *of["holdout"][:steps]]


def _entries(items: _Items, targets: StoredTargets | None) -> tuple[int, int]:
    """Return the number of kept entries of all targets and of the largest part; existing ones are counted."""
    k = items.config.rescore.top_k
    kept = {} if targets is None else {targets.heads[i].key: t.support_ids.size for i, t in targets.by_part()}

    def of(item: HintItem | AnchorItem | TwinItem) -> int:
        if targets is not None:
            return kept.get(item.key, 0)
        first = requests_of(item)[0]
        # two views' top entries overlap: between k and 2 k, a third more than one's in the traces that were looked at
        return (first.end - first.start) * (k * 4 // 3 if isinstance(item, HintItem) else k + 1)

    blocks, watched, held = items.batches()
    each = [sum(map(of, batch)) for some in (*blocks, watched, held) for batch in some]
    return sum(each), max(each, default=0)

"""The plan of a run: per stage tokens, peak memory and time, what fits, and settings that suit the lengths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.core.extensions import ENGINES
from hintdistill.engines.prefix_tree import call_tokens
from hintdistill.planning.fits import load_of, longest_trace, options, setup_of, weight_bytes
from hintdistill.planning.histogram import Histogram, RowLength, by_length
from hintdistill.planning.machine import Room
from hintdistill.planning.memory import FLOAT, STAGE, STORED, Peak, Setup, scoring_peak, train_peak
from hintdistill.planning.shape import ModelShape
from hintdistill.planning.speed import SAVED_PER_SECOND, Speed, row_operations
from hintdistill.planning.token_counts import Reading, operations, pairs

MARGIN = 0.9
"""Share of the memory that recommended settings may fill."""
ENOUGH = 16_384
"""Tokens in a forward pass beyond which a larger one gains nothing."""
FLOOR_ROWS = 32
"""Rows read before training, to measure the mismatch of the engines; `training.stage`."""


@dataclass(frozen=True)
class StagePlan:
    """One stage."""

    stage: str
    tokens: int
    """That the student's model reads; of an LLM critic, its prompt tokens."""
    peak_bytes: int | None
    """Resident memory of the process at its worst moment, or device memory; None where it is not this process's."""
    parts: Mapping[str, int]
    """What the peak is made of."""
    seconds: float | None
    """None where nothing was measured."""
    fits: bool
    note: str = ""


@dataclass(frozen=True)
class Work:
    """What the stages would work on, as counted."""

    source: str
    lengths: Mapping[str, Histogram]
    traces: int
    asked: Mapping[str, Mapping[str, int]]
    rescore: Reading
    score_calls: int
    targets: int
    waiting: int
    entries: tuple[int, int]
    rows: Sequence[RowLength]
    watched: Sequence[RowLength]
    after: Reading
    off_target: Reading
    rollouts: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Recommended:
    """Settings under which everything fits, with the reason."""

    settings: Mapping[str, Any]
    token_budget: int
    """Tokens of a micro-batch that fit under these settings."""
    batches: int
    """Micro-batches of an epoch, were rows packed by length up to the budget."""
    largest_batch: int
    """Rows of the fullest of them."""
    why: str


@dataclass(frozen=True)
class RunPlan:
    """The whole plan."""

    model: Mapping[str, Any]
    source: str
    lengths: Mapping[str, Histogram]
    memory_bytes: int
    memory_source: str
    stages: tuple[StagePlan, ...]
    largest_trace: Mapping[str, int]
    """Tokens of the longest trace that fits, by stage, and for training by setting."""
    too_long: tuple[tuple[str, int], ...]
    """Traces that do not train under the present settings, with their tokens."""
    recommended: Recommended | None
    sharing: str
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return dataclasses.asdict(self)


def make_plan(
    config: RunConfig, shape: ModelShape, work: Work, where: Room, speed: Speed | None, order: Sequence[Sequence[int]]
) -> RunPlan:
    """Put the plan together.

    Args:
        order: the micro-batches of a run, as indices of rows.
        speed: what was measured, None for tokens and memory only.
    """
    setup = dataclasses.replace(
        setup_of(shape, config.run, config.train, where.on_cpu),
        other_weights=_engine_weights(config, shape, where),
        stored=work.entries[0],
        watched=sum(r.tokens for r in work.watched),
    )
    stages = (
        *_critique(work),
        _rescore(config, shape, work, where, speed),
        _train(config, shape, work, where, speed, setup, order),
        _report(config, shape, work, where, speed),
        *_rollouts(work),
    )
    longest = load_of(sorted(work.rows, key=lambda r: -r.tokens)[:1])
    trace = {"train": longest_trace(shape, setup, longest, where)}
    for words, other in options(shape, setup):
        trace[f"train with {words}"] = longest_trace(shape, other, longest, where)
    above = [(r.trace_id, r.tokens) for r in work.rows if r.tokens > trace["train"]]
    return RunPlan(
        model={
            "kind": shape.kind,
            "parameters": shape.parameters,
            "layers": shape.layers,
            "hidden": shape.hidden,
            "vocabulary": shape.vocab,
            "positions": shape.max_length,
        },
        source=work.source,
        lengths=work.lengths,
        memory_bytes=where.available,
        memory_source=where.source,
        stages=stages,
        largest_trace=trace | {"rescore": _longest_scored(config, shape, work, where)},
        too_long=tuple(sorted(above, key=lambda x: -x[1])),
        recommended=_recommend(config, shape, work, setup, where),
        sharing=speed.sharing if speed else "not measured",
        notes=_notes(config, speed, where),
    )


def _engine_weights(config: RunConfig, shape: ModelShape, where: Room) -> int:
    """The rescoring engine stays loaded while training follows in the same process."""
    own = ENGINES.get(config.rescore.engine.backend).shared
    return shape.parameters * weight_bytes(config.run.dtype, where.on_cpu) if own else 0


def _notes(config: RunConfig, speed: Speed | None, where: Room) -> tuple[str, ...]:
    notes = (
        list(speed.notes)
        if speed
        else ["nothing was measured: no times, and the way prefixes are shared is taken to be exact"]
    )
    if speed and speed.sharing == "separate":
        notes.append(
            "this model's prefixes are not shared: every sequence is read by itself, so rescoring reads what is asked"
        )
    if not where.on_cpu:
        notes.append("memory on an accelerator is counted and has not been checked against measurements")
    return tuple(notes)


def _critique(work: Work) -> Iterator[StagePlan]:
    for name, asked in work.asked.items():
        yield StagePlan(
            f"critique ({name})",
            asked["prompt_tokens"],
            None,
            {},
            None,
            True,
            f"{asked['requests']:,} requests at most; memory and time are the critic's own",
        )


def _scoring(
    config: RunConfig, shape: ModelShape, read: Reading, work: Work, where: Room, *, step: int, written: int, other: int
) -> Peak:
    return scoring_peak(
        shape,
        kept=read.kept,
        call=read.largest_call,
        masks=read.masks,
        together=read.together,
        step=step,
        weight_bytes=weight_bytes(config.run.dtype, where.on_cpu),
        top_k=config.rescore.top_k,
        written=written,
        waiting=work.waiting,
        other_weights=other,
        on_cpu=where.on_cpu,
    )


def _rescore(config: RunConfig, shape: ModelShape, work: Work, where: Room, speed: Speed | None) -> StagePlan:
    read = work.rescore
    apart = speed is not None and speed.sharing == "separate"
    tokens = read.asked if apart else read.computed
    if not ENGINES.get(config.rescore.engine.backend).shared:
        return StagePlan("rescore", read.asked, None, {}, None, True, f"read by {config.rescore.engine.backend}")
    peak = _scoring(
        config, shape, read, work, where, step=work.lengths["step"].longest, written=work.entries[1], other=0
    )
    seconds = None
    if speed is not None:
        counted = operations(shape, tokens, read.pairs, read.scored)
        seconds = speed.load_s + speed.score.seconds(work.score_calls, counted, read.scored)
    note = f"{read.asked:,} tokens asked, {read.asked / max(1, tokens):.1f}× fewer read; {work.targets:,} targets"
    return _stage("rescore", tokens, peak, seconds, where, note)


def _stage(name: str, tokens: int, peak: Peak, seconds: float | None, where: Room, note: str) -> StagePlan:
    return StagePlan(name, tokens, peak.total, dict(peak.parts), seconds, where.holds(peak), note)


def _train(
    config: RunConfig,
    shape: ModelShape,
    work: Work,
    where: Room,
    speed: Speed | None,
    setup: Setup,
    order: Sequence[Sequence[int]],
) -> StagePlan:
    rows, section = work.rows, config.train
    if not rows:
        return StagePlan("train", 0, None, {}, None, True, "no row to train on")
    batches = [[rows[i] for i in batch] for batch in order]
    peak = max((train_peak(shape, setup, load_of(b)) for b in batches), key=lambda p: p.total)
    epoch = sum(r.tokens for r in rows)
    tokens = round(section.epochs * epoch)
    steps = -(-len(rows) // section.batch_size) * section.epochs
    branches = sum(r.branch_tokens for r in rows) if setup.views else 0
    readings = _readings(config, steps) if work.watched else 0
    watched = sum(r.tokens for r in work.watched)
    seconds = None
    if speed is not None and speed.train is not None:
        each = [
            row_operations(
                shape,
                r if setup.views else dataclasses.replace(r, branches=()),
                section.lora is None,
                section.gradient_checkpointing,
            )
            for r in rows
        ]
        floor = sum(each[:FLOOR_ROWS]) / 3
        saved = (steps // section.save_steps + 1) * (3 * setup.trained * FLOAT)
        seconds = speed.load_s + speed.train.seconds(
            len(order) / max(1, -(-section.epochs // 1)) * section.epochs + min(len(rows), FLOOR_ROWS) / 3,
            sum(each) * section.epochs + floor,
        )
        seen = sum(operations(shape, r.tokens, pairs(0, r.tokens), r.scored) for r in work.watched)
        # a pass without gradient is a third of one with
        seconds += readings * (speed.train.fixed * 2 / 3 + speed.train.per_operation * seen)
        seconds += steps * setup.trained * speed.optimizer_s + saved / SAVED_PER_SECOND
    note = (
        f"{len(rows):,} rows of at most {max(r.tokens for r in rows):,} tokens, {steps:g} steps; "
        f"largest micro-batch {max(sum(r.tokens for r in b) for b in batches):,} tokens"
    )
    if branches:
        note += f"; {branches:,} tokens of branches an epoch for the teacher"
    if readings:
        note += f"; watched {readings} times, {watched:,} tokens each"
    read = tokens + round(section.epochs * branches) + readings * watched
    return _stage("train", read, peak, seconds, where, note)


def _readings(config: RunConfig, steps: float) -> int:
    """How often training is watched: at logging steps, and after the last step."""
    train = config.train
    every = train.logging_steps if train.watch.every is None else train.watch.every
    if every == 0:
        return 0
    last, log = math.ceil(steps), train.logging_steps
    due = [s for s in range(log, last + 1, log) if s // every > (s - log) // every]
    return len(set(due) | {last})


def _report(config: RunConfig, shape: ModelShape, work: Work, where: Room, speed: Speed | None) -> StagePlan:
    both = work.off_target
    tokens = work.after.computed + 2 * both.computed
    stored = shape.parameters * weight_bytes(config.run.dtype, where.on_cpu)
    peaks = [
        _scoring(config, shape, read, work, where, step=work.lengths["step"].longest, written=0, other=other)
        for read, other in ((work.after, stored), (both, stored))
    ]
    peak = max(peaks, key=lambda p: p.total)
    parts = dict(peak.parts) | {"rows": STORED * work.entries[0] + STAGE}
    seconds = None
    if speed is not None:
        counted = operations(shape, tokens, work.after.pairs + 2 * both.pairs, work.after.scored + 2 * both.scored)
        seconds = 2 * speed.load_s + speed.score.seconds(
            work.after.calls + 2 * both.calls, counted, work.after.scored + 2 * both.scored
        )
    note = "scored steps once more, and off-target steps under both models"
    return _stage("report", tokens, Peak(parts), seconds, where, note)


def _rollouts(work: Work) -> Iterator[StagePlan]:
    if work.rollouts is not None:
        read, sampled = work.rollouts["read"], work.rollouts["sampled"]
        yield StagePlan(
            "report: environment",
            read + sampled,
            None,
            {},
            None,
            True,
            f"{work.rollouts['episodes']:,} episodes like the traces: {sampled:,} tokens sampled; time depends on the environment",
        )


def _longest_scored(config: RunConfig, shape: ModelShape, work: Work, where: Room) -> int:
    """Tokens of the longest trace that can be rescored, with three injections of the longest hint and step in it."""
    from hintdistill.planning.fits import largest

    branch = work.lengths["hint"].longest + work.lengths["step"].longest
    branches = 3 * (2 + config.rescore.placebos) * branch
    groups = max(1, shape.heads // shape.kv_heads)

    def fits(tokens: int) -> bool:
        peak = scoring_peak(
            shape,
            kept=tokens + branch,
            call=min(call_tokens(config.rescore.batch_tokens, where.on_cpu), tokens + branches),
            masks=2 * groups * branches * (tokens + branch),
            together=branches,
            weight_bytes=weight_bytes(config.run.dtype, where.on_cpu),
            step=work.lengths["step"].longest,
            top_k=config.rescore.top_k,
            waiting=work.waiting,
            on_cpu=where.on_cpu,
        )
        return where.holds(peak)

    return min(largest(fits), shape.max_length)


def _recommend(config: RunConfig, shape: ModelShape, work: Work, setup: Setup, where: Room) -> Recommended | None:
    """The settings that need least beyond the present ones, and the largest micro-batch that fits under them."""
    if not work.rows:
        return None
    order = sorted(work.rows, key=lambda r: -r.tokens)
    for words, other in options(shape, setup):
        # one row at a time at first: accumulation keeps gradients beside activations
        if not where.holds(train_peak(shape, other, load_of(order[:1])), MARGIN):
            continue
        share = sum(r.scored for r in order) / sum(r.tokens for r in order)
        budget = _budget(shape, other, order, share, where)
        size = config.train.batch_size
        micro = max(
            m for m in range(1, size + 1) if size % m == 0 and (m == 1 or sum(r.tokens for r in order[:m]) <= budget)
        )
        settings: dict[str, Any] = {"train.micro_batch_size": micro}
        settings |= dict(w.split("=", 1) for w in words.split() if not w.startswith("train.micro_batch_size"))
        packed = by_length([r.tokens for r in order], max(budget, order[0].tokens))
        return Recommended(
            settings
            | {f"train.recipe.terms.{name}.normalize": "per_row" for name in config.train.effective_recipe.terms},
            budget,
            len(packed),
            max(map(len, packed)),
            f"the {micro} longest rows together have {sum(r.tokens for r in order[:micro]):,} tokens; every injection weighs the same",
        )
    return None


def _budget(shape: ModelShape, setup: Setup, order: Sequence[RowLength], share: float, where: Room) -> int:
    """Tokens of a micro-batch that fit, at the run's own share of scored tokens and branches."""
    from hintdistill.planning.fits import largest
    from hintdistill.planning.memory import Load

    branches = sum(r.branch_tokens for r in order) / sum(r.tokens for r in order)

    def fits(tokens: int) -> bool:
        return where.holds(
            train_peak(shape, setup, Load(tokens, round(tokens * share), round(tokens * branches))), MARGIN
        )

    return min(largest(fits), max(ENOUGH, order[0].tokens))

"""`hintdistill plan`: tokens, peak memory and time per stage, what fits, and settings suited to the lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.core.machine import Growth, Peak, Room, room
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.models import resolve_model
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.prefix_tree import call_tokens
from hintdistill.engines.token_counts import (
    FLOAT,
    ScoringUse,
    TokenCount,
    count_tokens,
    operations,
    pairs,
    scoring_peak,
)
from hintdistill.pipeline.context import in_use
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.shards import require_shardable
from hintdistill.pipeline.stages import check_inputs
from hintdistill.planning.forecasts import StageForecast
from hintdistill.planning.measure import Job, Measured, Part, measure
from hintdistill.planning.shards import ShardForecast, forecast_shards
from hintdistill.planning.workload import Histogram, Workload, gathered
from hintdistill.rollouts.openings import played_tokens
from hintdistill.training.fits import (
    MARGIN,
    Recommended,
    largest,
    load_of,
    longest_trace,
    options,
    recommend,
    setup_of,
    weight_bytes,
)
from hintdistill.training.memory import Beside, Load, TrainSetup, train_peak, with_caches
from hintdistill.training.row_lengths import RowLength, micro_batches, row_operations
from hintdistill.training.synthetic import shorter
from hintdistill.training.watch import times_watched

FLOOR_ROWS = 32
"""Number of rows read before training to measure the mismatch of the engines; `training.stage`."""
SAVED_PER_SECOND = 1e9
"""Assumed speed of writing checkpoints, in bytes per second; it is not measured."""
SHARES = (1 / 16, 1 / 4, 1 / 2)
"""Fractions of the largest call and of the longest rows that are measured; the last two are used for memory."""


@dataclass(frozen=True)
class Forecast:
    """Describe what a run would take; for a run in rounds, what one round would take."""

    model: Mapping[str, Any]
    source: str
    lengths: Mapping[str, Histogram]
    memory_bytes: int
    memory_source: str
    stages: tuple[StageForecast, ...]
    largest_trace: Mapping[str, int]
    """Number of tokens of the longest trace that fits, by stage, and for training by setting."""
    too_long: tuple[tuple[str, int], ...]
    """Traces that are too long for training under the present settings, with their tokens."""
    recommended: Recommended | None
    sharing: str
    notes: tuple[str, ...]
    rounds: int | None = None
    """Number of rounds like the planned one; None for a run without rounds."""
    shards: tuple[ShardForecast, ...] = ()
    """One forecast per shard, if shards were requested."""

    def document(self) -> dict[str, Any]:
        """Return the forecast as plain data for JSON."""
        return asdict(self)


def forecast(
    config: RunConfig,
    *,
    measured: bool = True,
    gigabytes: float | None = None,
    shards: int | None = None,
    console: Console | None = None,
    trust: bool = False,
) -> Forecast:
    """Plan a run; nothing is written, and only critics that ask no model are used.

    Args:
        measured: measure memory and time in short real runs; otherwise all estimates come from the model's shape.
        gigabytes: memory to plan for (10^9 bytes) instead of the free memory.
        shards: also plan each of this many shards.
        trust: see `pipeline.run.run`.

    Raises:
        ConfigError: shards of a run in rounds.
        HintdistillError: `check_inputs`, a stage up to inject, or `measure` raised it.
    """
    if shards is not None:
        require_shardable(config, "rescore")
    with in_use(config, trust):
        found, planner = _forecast(config, measured, gigabytes, console or Console(quiet=True))
    if shards is None:
        return found
    size = config.rescore.part_rows
    return replace(found, shards=forecast_shards(planner.work, shards, size, planner.rescored))


def _forecast(
    config: RunConfig, measured: bool, gigabytes: float | None, console: Console
) -> tuple[Forecast, _Planner]:
    check_inputs(config, "report")
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    folder = resolve_model(config.run.model)
    shape, where = ModelShape.of(folder), room(config.run.device, gigabytes)
    with gathered(config, shape, console) as (work, held):
        planner = _Planner(config, shape, where, work, measured=measured)
        if measured:
            planner.measure(folder, held, console)
    return planner.plan(), planner


class _Planner:
    """Build one plan: counts from the model's shape, corrected by measurements."""

    def __init__(self, config: RunConfig, shape: ModelShape, where: Room, work: Workload, *, measured: bool) -> None:
        self.config, self.shape, self.where, self.work = config, shape, where, work
        self.measured: Measured | None = None
        self.bytes = weight_bytes(config.run.dtype, where.on_cpu, shape)
        self.budget = call_tokens(config.rescore.batch_tokens, where.on_cpu)
        self.setup = setup_of(shape, config.run, config.train, where.on_cpu)
        own = config.rescore.engine.backend == "transformers"
        beside = Beside(
            # the rescoring engine stays loaded while training follows in the same process
            other_weights=shape.parameters * self.bytes if own else 0,
            # they are read part by part, in the measured run too where they are there
            stored=0 if work.stored and measured else work.entries[1],
            watched=sum(r.tokens for r in work.watched),
        )
        self.beside = replace(self.setup, beside=beside)
        self.batches = [
            [work.rows[i] for i in b]
            for b in micro_batches([r.tokens for r in work.rows], config.train, config.run.seed)
        ]

    @cached_property
    def counted(self) -> TokenCount:
        """Return the token count of rescoring."""
        return count_tokens(self.work.calls, self.shape, self.budget)

    def measure(self, folder: Path, held: Path, console: Console) -> None:
        """Measure parts of the two expensive stages; see `measure`."""
        laid_out = bool(self.work.hints)
        job = Job(
            config=self.config,
            model=folder,
            parts=list(self._calls()),
            # what is planned for may be another machine
            available=min(self.where.available, room(self.config.run.device).available),
            vocabulary=self.shape.vocab,
            folder=None if laid_out else held,
            hints=self.work.hints,
            anchors=self.work.anchors,
        )
        self.measured = measure(job, list(self._rows()), self.setup.trained, console.note)

    def _calls(self) -> Iterator[Part]:
        """Yield the beginnings of the largest call of hints and of the largest call of anchors, smallest first."""
        (hints, plain), found = self.work.samples, list[Part]()
        each = 2 + self.config.rescore.placebo_count
        for share in SHARES:
            items = max(1, round(min(self.work.hinted, self.config.rescore.part_rows) * share))
            if hints:
                found.append(self._call("hint", hints[: items * each], items))
            if plain and share != SHARES[0]:
                items = max(1, round(len(plain) * share))
                found.append(self._call("anchor", plain[:items], items))
        yield from sorted({p.operations: p for p in found}.values(), key=lambda p: (p.peak.added, p.operations))

    def _call(self, kind: Any, requests: Sequence[Any], items: int) -> Part:
        read = count_tokens([requests], self.shape, self.budget)
        written = sum(r.end - r.start for r in requests) * self.config.rescore.top_k
        peak = self._scoring(read, written=written // (2 + self.config.rescore.placebo_count if kind == "hint" else 1))
        return Part(kind, peak, operations(self.shape, read.computed, read.pairs, read.scored), items, read.scored)

    def _rows(self) -> Iterator[Part]:
        """Yield the largest micro-batch with rows of ¼ and of ½ of their lengths."""
        if self.batches:
            most = max(self.batches, key=lambda b: sum(r.tokens for r in b))
            setup = replace(self.setup, accumulates=len(most) < self.config.train.batch_size)
            for share in SHARES[1:]:
                cut = [shorter(r, share) for r in most]
                peak = train_peak(self.shape, setup, load_of(cut))
                yield Part("rows", peak, sum(map(self._row_operations, cut)), rows=cut)

    def _row_operations(self, row: RowLength) -> float:
        return row_operations(self.shape, row, self.config.train, in_step=self.setup.teacher.views > 0)

    def _forward(self, rows: Sequence[RowLength]) -> float:
        """Return the operations of reading rows once without gradient."""
        return sum(operations(self.shape, r.tokens, pairs(0, r.tokens), r.scored) for r in rows)

    def _grown(self, stage: str, peak: Peak, *, read_later: bool = False) -> Peak:
        """Return the expected memory; `read_later`: stored targets are read after the counted memory was released."""
        grown = growth(peak) if (growth := self._growth(stage)) else peak
        whole = with_caches(grown, self.work.entries[0], rows=stage == "train")
        if not read_later:
            return whole
        return Peak({**grown.parts, "kept targets": max(0, whole.parts["kept targets"] - peak.added)})

    def _growth(self, stage: str) -> Growth | None:
        return self.measured.growth.get(stage) if self.measured else None

    # -- the stages ----------------------------------------------------------------------------------------------------

    def plan(self) -> Forecast:
        """Put the plan together."""
        shape, work, where = self.shape, self.work, self.where
        stages = (*self._critique(), self._rescore(), self._train(), self._report(), *self._rollouts())
        longest = load_of(sorted(work.rows, key=lambda r: -r.tokens)[:1])
        growth = self._growth("train")
        trace = {"train": longest_trace(shape, self.beside, longest, where, growth)}
        for words, other in options(shape, self.beside):
            trace[f"train with {words}"] = longest_trace(shape, other, longest, where, growth)
        above = {r.trace_id: r.tokens for r in work.rows if r.tokens > trace["train"]}
        return Forecast(
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
            largest_trace=trace | {"rescore": self._longest_scored()},
            too_long=tuple(sorted(above.items(), key=lambda x: -x[1])),
            recommended=recommend(work.rows, options(shape, self.beside), self.config.train, self._holds),
            sharing=self.measured.sharing if self.measured else "not measured",
            notes=tuple(self._notes()),
            rounds=self.config.run.rounds,
        )

    def _notes(self) -> Iterator[str]:
        if self.measured is None:
            yield "nothing was measured: there are no times, and sharing of prefixes is assumed to work fully"
        else:
            yield from self.measured.notes
            if self.measured.sharing == "separate":
                yield (
                    "this model's prefixes cannot be shared: every sequence is read separately, so rescoring reads "
                    "all tokens asked for"
                )
        if self.measured is None and not self.where.on_cpu:
            yield "memory on an accelerator is computed and has not been checked against measurements"
        if self.config.run.rounds is not None:
            yield f"this is one round of {self.config.run.rounds}; the first one also measures the initial model"
        if self.work.hints:
            yield "watched steps and the report's off-target steps are unknown before a round was played"

    def _critique(self) -> Iterator[StageForecast]:
        for name, asked in self.work.asked.items():
            note = f"at most {asked['requests']:,} requests; memory and time depend on the critic"
            yield StageForecast(f"critique ({name})", asked["prompt_tokens"], note=note)

    def _scoring(self, read: TokenCount, *, written: int = 0, other: int = 0) -> Peak:
        step, top_k = self.work.lengths["step"].longest, self.config.rescore.top_k
        use = ScoringUse(self.bytes, step, top_k, written, other, self.where.on_cpu, self.config.rescore.offload)
        return scoring_peak(self.shape, read, use)

    def _stage(self, name: str, tokens: int, peak: Peak, seconds: float | None, note: str) -> StageForecast:
        return StageForecast(name, tokens, peak.total, dict(peak.parts), seconds, self.where.holds(peak), note)

    def _rescore(self) -> StageForecast:
        return self._rescored(self.counted, len(self.work.calls), f"{self.work.targets:,} targets")

    def rescored(self, calls: Sequence[list[ScoreRequest]]) -> StageForecast:
        """Plan the rescore stage of some of the calls."""
        return self._rescored(count_tokens(calls, self.shape, self.budget), len(calls), f"{len(calls):,} calls")

    def _rescored(self, read: TokenCount, calls: int, what: str) -> StageForecast:
        speed = self.measured
        if self.config.rescore.engine.backend != "transformers":
            return StageForecast("rescore", read.asked, note=f"read by {self.config.rescore.engine.backend}")
        tokens = read.asked if speed is not None and speed.sharing == "separate" else read.computed
        seconds = None
        if speed is not None and speed.score is not None:
            counted = operations(self.shape, tokens, read.pairs, read.scored)
            seconds = speed.startup_s["rescore"] + speed.score.seconds(calls, counted, read.scored)
        fewer = read.asked / max(1, tokens)
        note = f"{read.asked:,} tokens asked, {fewer:.1f}× fewer read; {what}"
        peak = self._grown("rescore", self._scoring(read, written=self.work.entries[1]), read_later=True)
        return self._stage("rescore", tokens, peak, seconds, note)

    def _train(self) -> StageForecast:
        rows, section = self.work.rows, self.config.train
        if not rows:
            return StageForecast("train", 0, note="no row to train on")
        peaks = [train_peak(self.shape, self.beside, load_of(b)) for b in self.batches]
        peak = self._grown("train", max(peaks, key=lambda p: p.total))
        steps = -(-len(rows) // section.batch_size) * section.epochs
        branches = sum(r.branch_tokens for r in rows) if self.setup.teacher.views else 0
        readings = times_watched(self.config.train, steps) if self.work.watched else 0
        watched = sum(r.tokens for r in self.work.watched)
        note = (
            f"{len(rows):,} rows of at most {max(r.tokens for r in rows):,} tokens, {steps:g} steps; "
            f"largest micro-batch {max(sum(r.tokens for r in b) for b in self.batches):,} tokens"
        )
        note += f"; {branches:,} tokens of branches an epoch for the teacher" if branches else ""
        note += f"; watched {readings} times, {watched:,} tokens each" if readings else ""
        read = round(section.epochs * (sum(r.tokens for r in rows) + branches)) + readings * watched
        return self._stage("train", read, peak, self._train_seconds(steps, readings), note)

    def _train_seconds(self, steps: float, readings: int) -> float | None:
        rows, section, speed = self.work.rows, self.config.train, self.measured
        if speed is None or speed.train is None:
            return None
        each = [self._row_operations(r) for r in rows]
        epochs = section.epochs / max(1, math.ceil(section.epochs))
        # these rows are read without gradient: no second forward pass under checkpointing, no branches
        floor = self._forward(rows[:FLOOR_ROWS])
        calls = len(self.batches) * epochs + min(len(rows), FLOOR_ROWS) / 3
        seconds = speed.train.seconds(calls, sum(each) * section.epochs + floor)
        seen = self._forward(self.work.watched)
        # a pass without gradient is a third of one with
        seconds += readings * (speed.train.fixed * 2 / 3 + speed.train.per_operation * seen)
        saved = (steps // section.save_steps + 1) * (3 * self.setup.trained * FLOAT)
        optimizer = steps * self.setup.trained * speed.optimizer_s
        return speed.startup_s["train"] + seconds + optimizer + saved / SAVED_PER_SECOND

    def _report(self) -> StageForecast:
        after = count_tokens(self.work.after, self.shape, self.budget)
        both = count_tokens(self.work.off_target, self.shape, self.budget)
        tokens, other = after.computed + 2 * both.computed, self.shape.parameters * self.bytes
        peak = max((self._scoring(r, other=other) for r in (after, both)), key=lambda p: p.total)
        seconds = None
        if (speed := self.measured) is not None and speed.score is not None:
            scored = after.scored + 2 * both.scored
            counted = operations(self.shape, tokens, after.pairs + 2 * both.pairs, scored)
            seconds = 2 * speed.startup_s["rescore"]
            seconds += speed.score.seconds(len(self.work.after) + 2 * len(self.work.off_target), counted, scored)
        note = "scored steps once more, and off-target steps under both models"
        return self._stage("report", tokens, self._grown("rescore", peak), seconds, note)

    def _rollouts(self) -> Iterator[StageForecast]:
        if (found := played_tokens(self.config, self.work.lengths, self.work.steps)) is not None:
            name = "report: environment" if self.config.run.rounds is None else "episodes"
            note = f"{found['episodes']:,} episodes like the traces: {found['sampled']:,} tokens sampled; time depends on the environment"
            yield StageForecast(name, found["read"] + found["sampled"], note=note)

    def _holds(self, setup: TrainSetup, load: Load) -> bool:
        return self.where.holds(self._grown("train", train_peak(self.shape, setup, load)), MARGIN)

    def _longest_scored(self) -> int:
        """Return the tokens of the longest trace that can be rescored, with three injections of the longest hint and
        step in it."""
        branch = self.work.lengths["hint"].longest + self.work.lengths["step"].longest
        branches = 3 * (2 + self.config.rescore.placebo_count) * branch
        groups = max(1, self.shape.heads // self.shape.kv_heads)

        def fits(tokens: int) -> bool:
            read = TokenCount(
                kept=tokens + branch,
                largest_call=min(self.budget, tokens + branches),
                masks=2 * groups * branches * (tokens + branch) if self.shape.masked else 0,
                together=branches,
            )
            return self.where.holds(self._grown("rescore", self._scoring(read)))

        return min(largest(fits), self.shape.max_length)

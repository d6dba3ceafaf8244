"""Run one job of the benchmark of twins: the part that a seed's arms share, or one arm's rounds and measurements."""

from __future__ import annotations

import hashlib
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.ablation import arms
from benchmarks.ablation.arm_run import off_target, round_episodes
from benchmarks.ablation.bench import Bench
from benchmarks.ablation.jobs import Job, OneUnit, job_key
from benchmarks.ablation.shared_baseline import run_shared
from benchmarks.ablation.twin_arms import Round, drawn, held_rows, kinds_of
from benchmarks.ablation.twin_reads import (
    error_probability,
    moved_on_pairs,
    read_pairs_of,
    removability,
    write_shared_reads,
)
from benchmarks.ablation.twin_settings import SUITE, TwinsConfig
from hintdistill.config import TrainSection
from hintdistill.core.errors import EmptyFunnelError, TripwireError
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key
from hintdistill.pipeline.arms import ArmTraining, Budget, changed, draw_rows, train_arm
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.outcome import outcome_data
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.rounds import collapsed
from hintdistill.pipeline.twins import counts


@dataclass(frozen=True)
class TwinJob(OneUnit):
    """A job of the benchmark, as the runner of arms takes it."""

    config: TwinsConfig
    folder: Path
    job: Job

    def key(self) -> str:
        """Key of everything that the result depends on."""
        measured = self.config.twins.model_dump(mode="json", exclude={"arms", "frontier", "rate"})
        pairs = hashlib.sha256(SUITE.with_name("near_miss_pairs.jsonl").read_bytes()).hexdigest()
        return content_key("twins", job_key(self.config.ablation, self.job), measured, pairs)

    def run(self, advance: Any) -> dict[str, Any]:
        """Play, train and measure, in the job's folder."""
        return {**asdict(self.job), **run_job(self.config, self.folder, self.job)}


def run_job(config: TwinsConfig, folder: Path, job: Job) -> dict[str, Any]:
    """Do one job in its folder; checkpoints are removed afterwards. Returns plain data."""
    bench = Bench(config.ablation, folder, job, Console(quiet=True))
    try:
        document = _shared(bench, config) if job.arm == "shared" else _arm(bench, config)
    finally:
        bench.close()
    for work in (bench.folder / "rounds").glob("*/train"):
        shutil.rmtree(work, ignore_errors=True)
    return document


def _shared(bench: Bench, config: TwinsConfig) -> dict[str, Any]:
    document = run_shared(bench)
    with bench.context(1, bench.initial) as ctx:
        write_shared_reads(bench, ctx, config.twins)
        twins = coverage(ctx, Round(config, _data(bench, ctx, 1), arms.rescored(ctx)))
    reads = {
        "pairs": read_pairs_of(bench, bench.initial, config.twins),
        "heldout": error_probability(bench, bench.initial),
        "removability": removability(bench, bench.initial),
    }
    return {**document, "twins": twins, **reads}


def _arm(bench: Bench, config: TwinsConfig) -> dict[str, Any]:
    students, rows, earlier = [bench.initial], list[dict[str, Any]](), list[Target]()
    assert bench.config.run.rounds is not None
    for number in range(1, bench.config.run.rounds + 1):
        row, held, student = _round(bench, config, number, students, earlier)
        rows.append(row)
        if row["tripwire"]:
            break
        earlier += held
        students.append(student)
        if number < bench.config.run.rounds:
            row["outcomes"] = bench.between_rounds(student)
    student = students[-1]
    return {
        "rounds": rows,
        "outcomes": bench.outcomes(student, bench.settings()),
        "pairs": read_pairs_of(bench, student, config.twins),
        "heldout": error_probability(bench, student),
        "removability": removability(bench, student),
        "off_target": off_target(bench, student) | moved_on_pairs(bench, student),
        "train": bench.config.train.model_dump(mode="json"),
    }


def _data(bench: Bench, ctx: RunContext, number: int) -> arms.RoundData:
    episodes = bench.loop.episodes(number, bench.initial) if number == 1 else []
    return arms.critiqued(ctx, episodes, bench.salt(number), bench.anchors_per_trace)


def _round(
    bench: Bench, config: TwinsConfig, number: int, students: Sequence[Path], earlier: Sequence[Target]
) -> tuple[dict[str, Any], list[Target], Path]:
    """Play, critique, rescore, choose rows, train. Held steps of earlier rounds are drawn from as well."""
    episodes = round_episodes(bench, number, students)
    failed = sum(e.failure is not None for e in episodes)
    row: dict[str, Any] = {"round": number, "tripwire": collapsed(failed, len(episodes), bench.config)}
    if row["tripwire"]:
        return row, [], students[-1]
    t = config.twins
    with bench.context(number, students[-1]) as ctx:
        data = arms.critiqued(ctx, episodes, bench.salt(number), bench.anchors_per_trace)
        source = Round(config, data, arms.rescored(ctx))
        held = held_rows(bench.job.arm, source)
        row |= {"findings": len(data.found), "twins": coverage(ctx, source)}
        hints = [x for x in source.targets if x.kind == "hint"]
        chosen, distinct = draw_rows(
            [*hints, *data.anchors()], Budget(t.hints, t.anchors, config.ablate.steps), data.salt
        )
        outcome = outcome_data(ctx)
    if not distinct["hint"]:
        raise EmptyFunnelError(f"{bench.job.name}: round {number} has no accepted hint")
    taken = {(x.trace_id, x.step) for x in chosen}
    own = [x for x in held if not (x.key.startswith("further:") and (x.trace_id, x.step) in taken)]
    pool = _shuffled([*own, *earlier], data.salt)
    rows = [*chosen, *drawn(pool, t.held if bench.job.arm != "none" else 0)]
    row |= {"distinct": distinct | {"held": min(len(pool), t.held)}, "held": kinds_of(rows[len(chosen) :])}
    out = bench.loop.round_folder(number) / "student"
    section = training(bench.config.train, rows, config, bench.job.arm)
    job = ArmTraining(
        bench.job.name, students[-1], bench.initial, bench.config.run, section, config.ablate.steps, outcome
    )
    try:
        summary = train_arm(job, rows, out, bench.loop.round_folder(number) / "train")
        row |= {
            "steps": summary.steps,
            "batch_size": section.batch_size,
            "slots": len(rows),
            "mass": mass(section, rows),
        }
    except TripwireError as error:
        return row | {"tripwire": error.message}, own, students[-1]
    return row, own, out


def _shuffled(pool: list[Target], salt: str) -> list[Target]:
    if not pool:
        return pool
    own = sorted(pool, key=lambda x: x.key)
    random.Random(f"held:{salt}").shuffle(own)
    return own


def training(section: TrainSection, rows: Sequence[Target], config: TwinsConfig, arm: str) -> TrainSection:
    """The arm's settings: as many rows per step as read all rows `passes` times, and the loss mass that every arm has."""
    from hintdistill.training.rows import build_rows

    t, change = config.twins, dict[str, Any]()
    if arm == "none":
        both = (section.anchor.weight or 0.0) * t.anchors + (section.twins.weight or 0.0) * t.held
        change = {"anchor": {"weight": both / t.anchors}, "twins": {"weight": 0.0}}
    weighed = TrainSection.model_validate(changed(section.model_dump(mode="json"), change))
    number = len(build_rows([replace(x) for x in rows], weighed))
    size = max(1, math.ceil(number * t.passes / config.ablate.steps))
    return weighed.model_copy(update={"batch_size": size})


def mass(section: TrainSection, rows: Sequence[Target]) -> dict[str, float]:
    """The coefficients of all slots by kind, summed: what hints and held steps weigh in a pass."""
    coefs = {term.rows: term.coef for term in section.effective_recipe.terms.values() if isinstance(term.coef, float)}
    return {kind: coefs.get(kind, 0.0) * sum(x.kind == kind for x in rows) for kind in ("hint", "anchor", "twin")}


def coverage(ctx: RunContext, source: Round) -> dict[str, Any]:
    """Count by class the findings with a twin, the dropped twins, and the twins that the policy's own probability then rejected."""
    said = counts(ctx.rundir.current("twins", "twins"))
    scored = [x for x in source.targets if x.kind == "twin"]
    return {
        **said,
        "accepted": kinds_of([x for x in scored if x.accepted]),
        "rejected": kinds_of([x for x in scored if not x.accepted]),
    }

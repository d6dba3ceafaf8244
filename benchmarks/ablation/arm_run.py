"""Run one arm on one seed: all of its rounds, then the measurements of its student."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ablation import arms, critic_noise
from benchmarks.ablation.bench import Bench
from benchmarks.ablation.shared_baseline import held_targets, off_target_requests
from hintdistill.core.errors import TripwireError
from hintdistill.core.scores import Target
from hintdistill.core.types import Trace
from hintdistill.injection.hints import seed_of
from hintdistill.pipeline.arms import ArmTraining, Budget, draw_rows, train_arm
from hintdistill.pipeline.outcome import outcome_data
from hintdistill.pipeline.preflight import predict
from hintdistill.pipeline.rounds import collapsed
from hintdistill.rescoring.drift import movement
from hintdistill.rollouts.sampling import Episode
from hintdistill.traces.formats import native
from hintdistill.traces.options import ReadOptions
from hintdistill.traces.reading import read_traces

if TYPE_CHECKING:
    from hintdistill.training.reward import OutcomeData
    from hintdistill.training.stage import TrainSummary

NO_PREDICTION = ("sft_success", "sft_corrected", "sft_gold", "gold_steps", "random_step", "none", "hint_outcome")
"""Arms without a hint at the erring step, or with more than that to learn from."""


def run_arm(bench: Bench) -> dict[str, Any]:
    """Play and train every round, then measure the last good student."""
    students, rows = [bench.initial], []
    assert bench.config.run.rounds is not None
    predicted: list[dict[str, Any]] = []
    for number in range(1, bench.config.run.rounds + 1):
        row, targets, student = _round(bench, number, students)
        rows.append(row)
        if number == 1 and bench.job.arm not in NO_PREDICTION:
            # of what it trains on: of gated arms, what was accepted
            predicted = [asdict(p) for p in predict(t for t in targets if t.accepted)]
        if row["collapsed"] and number > 1:
            students.pop()  # it is the student that played who collapsed
        if row["tripwire"]:
            break
        students.append(student)
        if number < bench.config.run.rounds:
            row["outcomes"] = bench.between_rounds(student)
    return {
        "rounds": rows,
        "predicted": predicted,
        "outcomes": bench.outcomes(students[-1], bench.settings()),
        "off_target": off_target(bench, students[-1]),
        "train": bench.config.train.model_dump(mode="json"),
    }


def _round(bench: Bench, number: int, students: Sequence[Path]) -> tuple[dict[str, Any], list[Target], Path]:
    arm, student = bench.job.arm, students[-1]
    episodes = round_episodes(bench, number, students)
    failed = sum(e.failure is not None for e in episodes)
    row: dict[str, Any] = {
        "round": number,
        "episodes": len(episodes),
        "failed": failed,
        "findings": 0,
        "candidates": 0,
        "rejected": 0,
        "rows": 0,
        "distinct": 0,
        "anchors": 0,
        "traces": 0,
        "steps": 0,
        "tripwire": collapsed(failed, len(episodes), bench.config),
        "collapsed": False,
    }
    if row["tripwire"]:
        return row | {"collapsed": True}, [], student
    critic = bench.ablate.llm_critic if arm == "llm_critic" else None
    with bench.context(number, student, critic) as ctx:
        data = arms.critiqued(ctx, episodes, bench.salt(number), bench.anchors_per_trace)
        targets = arms.targets_of(arm, data, bench.loop.round_folder(number) / "arm")
        # another critic finds other steps to be right
        held = held_targets(bench, ctx, bench.folder if critic else bench.shared)
        outcome = outcome_data(ctx)
        if ":" in arm:
            row |= critic_noise.counted(arms.noisy_findings(arm, data), data.found)
    a = bench.ablate
    others = {"twin": a.rows} if arm == "twins" else {}
    budget = Budget(a.rows, a.rows, a.steps, fill=a.fill, held_share=a.hold.share, others=others)
    chosen, distinct = draw_rows(targets, budget, bench.salt(number), held)
    hints = sum(t.kind == "hint" for t in chosen)
    row |= {
        "findings": len(data.found),
        "candidates": sum(t.kind == "hint" and t.accepted for t in targets),
        "rejected": sum(not t.accepted for t in targets),
        "rows": hints,
        "distinct": distinct["hint"],
        "anchors": len(chosen) - hints,
    }
    if not hints:
        return row, targets, student
    try:
        summary = train_rows(bench, chosen, student, number, outcome)
        row |= {"steps": summary.steps, "traces": summary.rows}
    except TripwireError as error:
        return row | {"tripwire": error.message}, targets, student
    return row, targets, bench.loop.round_folder(number) / "student"


def round_episodes(bench: Bench, number: int, students: Sequence[Path]) -> list[Episode]:
    """The round's episodes: the student's own, those of the round before, another policy's, or fresh steps at those."""
    arm, own = bench.job.arm, bench.loop.round_folder(number)
    if arm in ("foreign", "replay"):
        found = [t for t in read_traces(bench.ablate.foreign_traces, ReadOptions()) if isinstance(t, Trace)]
        random.Random(seed_of("foreign", bench.salt(number))).shuffle(found)
        found = found[: bench.config.rollout.sample.episodes]
        own.mkdir(parents=True, exist_ok=True)
        if arm == "replay":
            return bench.replayed(number, students[-1], found)
        native.write(own / "rollouts.jsonl", found)
        return [Episode(t.task_id or t.id, t) for t in found]
    if number == 1:
        # every arm starts from the same episodes of the same policy, whose critiques and targets are known already
        own.mkdir(parents=True, exist_ok=True)
        shared = bench.shared / "rounds" / "01"
        for name in ("episodes.jsonl", "rollouts.jsonl"):
            shutil.copy2(shared / name, own / name)
        if (shared / "run").is_dir() and not (own / "run").exists():
            shutil.copytree(shared / "run", own / "run")
        return bench.loop.episodes(number, bench.initial)
    # the student that stands at the end of the list is the one that trains now
    return bench.loop.episodes(number, students[-2] if arm == "stale" and len(students) > 1 else students[-1])


def train_rows(bench: Bench, targets: list[Target], student: Path, number: int, outcome: OutcomeData) -> TrainSummary:
    """Train `student` on the rows of round `number` for the ablation's fixed number of optimiser steps."""
    folder, config = bench.loop.round_folder(number), bench.config
    job = ArmTraining(bench.job.name, student, bench.initial, config.run, config.train, bench.ablate.steps, outcome)
    return train_arm(job, targets, folder / "student", folder / "train")


def off_target(bench: Bench, student: Path) -> dict[str, Any]:
    """Movement on steps that no row touched: test tasks' other steps and clean traces, clean tasks, and near-misses."""
    engine, out = bench.loop.top.engine, {}
    for name, requests in off_target_requests(bench).items():
        found = movement(engine(bench.initial), engine(student), requests)
        if found is not None:
            out[name] = asdict(found)
    return out

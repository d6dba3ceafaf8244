"""The jobs of an ablation: what is shared by all arms of a seed, and one arm on one seed. Each leaves one JSON file.

`shared`: the first round's episodes of the initial policy, the initial and the hinted student's success, and what the hints
do before any training. `arm`: all rounds of one arm, then what is measured of its student.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hintdistill.config import RunConfig, TrainSection
from hintdistill.errors import EmptyFunnelError, HintdistillError, TripwireError
from hintdistill.evidence import arms, disturb
from hintdistill.evidence.preflight import predict
from hintdistill.hints import seed_of
from hintdistill.injection import Injector
from hintdistill.movement import movement
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Voice
from hintdistill.pipeline.rounds import Loop
from hintdistill.rollouts.evaluate import Outcome, outcome_of, tasks_of
from hintdistill.rollouts.hinted import play_hinted
from hintdistill.rollouts.measure import Setting, off_target_sets, options_of, step_requests
from hintdistill.rollouts.sampling import Episode, Sampler
from hintdistill.rundir import RunDir, content_key, write_atomic
from hintdistill.scores import ScoreRequest, Target
from hintdistill.traces import ReadOptions, read_traces
from hintdistill.types import Trace


@dataclass(frozen=True)
class Job:
    """One arm on one seed in one regime; the arm `shared` comes before the others."""

    regime: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Also the name of its folder."""
        return f"{self.regime}/{self.arm.replace(':', '-')}/seed-{self.seed}"


class Bench:
    """What every job needs: a loop in the job's folder, on the regime's tasks and the seed."""

    def __init__(self, config: RunConfig, root: Path, job: Job, voice: Voice) -> None:
        self.ablate, self.root, self.job, self.voice = config.ablate, root, job, voice
        self.patterns = config.ablate.regimes[job.regime]
        self.anchors_per_trace = config.train.anchor.per_trace
        self.folder = root / job.name
        self.config = job_config(config, job, self.folder)
        self.rundir = RunDir.create(self.folder, self.config, resume=True)
        self.loop = Loop(self.config, self.rundir, voice)
        self.initial = self.loop.top.model_folder

    def settings(self) -> list[Setting]:
        """Everything that is measured of a final student."""
        a = self.ablate
        out = [Setting(a.test_split, t) for t in a.temperatures]
        out += [Setting(s, max(a.temperatures)) for s in (a.clean_split, a.transfer_split) if s]
        return out + [Setting(s, min(a.temperatures)) for s in a.near_splits]

    def outcomes(self, student: Path, settings: Sequence[Setting]) -> dict[str, list[dict[str, Any]]]:
        """Outcomes by setting; the regime's patterns apply to the test split."""
        out = {}
        for s in settings:
            patterns = self.patterns if s.split == self.ablate.test_split else ("*",)
            limit = self.ablate.limits.get(s.split, self.ablate.limit)
            out[s.name] = [asdict(o) for o in self.loop.outcomes(student, s, patterns, limit)]
        return out

    def between_rounds(self, student: Path) -> dict[str, list[dict[str, Any]]]:
        """A look at the test split before the next round, on at most 150 tasks."""
        setting = Setting(self.ablate.test_split, max(self.ablate.temperatures))
        limit = min(150, self.ablate.limits.get(setting.split, self.ablate.limit) or 150)
        return {setting.name: [asdict(o) for o in self.loop.outcomes(student, setting, self.patterns, limit)]}

    @contextmanager
    def context(self, number: int, student: Path, critic: Mapping[str, Any] | None = None) -> Iterator[RunContext]:
        """The round's run folder, open."""
        data = self.loop.round_config(number, student).model_dump(mode="json")
        data["train"]["anchor"]["per_trace"] = 0  # arms take their anchors from one place
        data["train"]["watch"]["every"] = 0  # and what is watched would pass for anchors
        data["traces"]["holdout"] = 0.0
        data["critic"] |= critic or {}
        config = RunConfig.model_validate(data)
        rundir = RunDir.create(self.loop.round_folder(number) / "run", config, resume=True)
        try:
            yield RunContext(config, rundir, self.voice, self.loop.engines)
        finally:
            rundir.close()

    def salt(self, number: int) -> str:
        """The same for every arm of a seed, so that arms draw alike."""
        return f"{self.job.regime}:{self.job.seed}:{number}"

    def close(self) -> None:
        """Let other processes in."""
        self.rundir.close()


def job_config(config: RunConfig, job: Job, folder: Path) -> RunConfig:
    """The run configuration of a job: its seed, folder and tasks, and the arm's own training settings."""
    data = config.model_dump(mode="json")
    data["run"] |= {"seed": job.seed, "dir": str(folder)}
    data["rollout"]["sample"]["tasks"] = list(config.ablate.regimes[job.regime])
    data["rollout"]["splits"] = [config.ablate.test_split]
    data["rollout"]["limit"] = config.ablate.limit
    data["train"] |= config.ablate.train.get(job.arm, config.ablate.train.get(job.arm.partition(":")[0], {}))
    if job.arm.startswith("sft_"):
        data["train"]["divergence"] = "fkl"
    return RunConfig.model_validate(data)


def run_job(config: RunConfig, root: Path, job: Job) -> Path:
    """Do a job that is owed; returns its result file."""
    result = root / job.name / "result.json"
    if not result.is_file():
        began = time.process_time()
        bench = Bench(config, root, job, Voice(quiet=True))
        try:
            document = run_shared(bench) if job.arm == "shared" else run_arm(bench)
            document["cpu_seconds"] = time.process_time() - began
            write_atomic(result, json.dumps({**asdict(job), **document}, ensure_ascii=False, allow_nan=False))
        finally:
            bench.close()
        for number in (bench.folder / "rounds").glob("*/train"):
            shutil.rmtree(number, ignore_errors=True)
    return result


# -- what all arms of a seed share -------------------------------------------------------------------------------------------


def run_shared(bench: Bench) -> dict[str, Any]:
    """Round one's episodes, the initial and the hinted student, and the hints before any training."""
    episodes = bench.loop.episodes(1, bench.initial)
    if "stale" in bench.ablate.arms:
        bench.loop.episodes(2, bench.initial)
    outcomes = bench.outcomes(bench.initial, bench.settings())
    _off_target_requests(bench)
    with bench.context(1, bench.initial) as ctx:
        data = arms.critiqued(ctx, episodes, bench.salt(1), bench.anchors_per_trace)
        targets = arms.rescored(ctx)
        return {
            "initial": outcomes,
            "hinted": {f"{s.name}": hinted_outcomes(bench, ctx, s) for s in bench.settings()[: len(bench.ablate.temperatures)]},
            "success_in_rollouts": float(np.mean([(e.trace.reward or 0.0) > 0.5 for e in episodes])),
            "effects": hint_effects(data, targets),
            "predicted": [asdict(p) for p in predict(targets)],
        }  # fmt: skip


def hinted_outcomes(bench: Bench, ctx: RunContext, setting: Setting) -> list[dict[str, Any]]:
    """How every task goes when the critic's hint stands above each erring step."""
    loop = bench.loop
    tasks = tasks_of(
        loop.suite, setting.split, bench.ablate.limits.get(setting.split, bench.ablate.limit), bench.patterns
    )
    sampler = Sampler(
        ctx.engine(bench.initial), ctx.renderer, options_of(bench.config.rollout, setting.temperature, bench.job.seed)
    )
    injector = Injector(ctx.renderer, ctx.library, ctx.config.inject, ctx.config.rescore.placebos)
    played = play_hinted(sampler, loop.suite, sampler.episodes(loop.suite, tasks), arms.judge(ctx), injector)
    return [asdict(outcome_of(loop.suite, e)) for e in played.episodes]


def hint_effects(data: arms.RoundData, targets: Sequence[Target]) -> dict[str, Any]:
    """Drop of the decision token for all findings and accepted ones, in the words the gate judged and in others.

    What the gate accepted is better than it will prove, because it was accepted for it; in other words it is not.
    """
    hints = [t for t in targets if t.kind == "hint"]
    accepted = {(t.trace_id, t.step) for t in hints if t.accepted}
    injector = Injector(data.ctx.renderer, data.ctx.library, data.ctx.config.inject, data.ctx.config.rescore.placebos)
    items = []
    for trace, finding in disturb.other_wording(data.found, data.ctx.library):
        try:
            items.append((f"other:{trace.id}:{finding.step}", injector.inject(trace, finding), "train"))
        except HintdistillError as error:
            data.ctx.voice.warn(f"other wording: {error.message}")
    scorer, size = arms._scorer(data), data.ctx.config.rescore.part_rows
    others = [t for at in range(0, len(items), size) for t in scorer.score(items[at : at + size])]  # type: ignore[arg-type]
    return {
        "all": _effect(hints),
        "accepted": _effect([t for t in hints if t.accepted]),
        "all_other_wording": _effect(others),
        "accepted_other_wording": _effect([t for t in others if (t.trace_id, t.step) in accepted]),
    }


def _effect(targets: Sequence[Target]) -> dict[str, Any]:
    drops = [t.decision.effect if t.decision else 0.0 for t in targets]
    return {"n": len(drops), "median_nats": float(np.median(drops)) if drops else None,
            "mean_nats": float(np.mean(drops)) if drops else None}  # fmt: skip


# -- one arm on one seed -----------------------------------------------------------------------------------------------------


def run_arm(bench: Bench) -> dict[str, Any]:
    """Play and train every round, then measure."""
    student, rows = bench.initial, []
    assert bench.config.run.rounds is not None
    predicted: list[dict[str, Any]] = []
    for number in range(1, bench.config.run.rounds + 1):
        row, targets, student = _round(bench, number, student)
        rows.append(row)
        if number == 1:
            predicted = [asdict(p) for p in predict(targets)] if bench.job.arm not in NO_PREDICTION else []
        if row["tripwire"]:
            break
        if number < bench.config.run.rounds:
            row["outcomes"] = bench.between_rounds(student)
    return {
        "rounds": rows,
        "predicted": predicted,
        "outcomes": bench.outcomes(student, bench.settings()),
        "off_target": off_target(bench, student),
    }


NO_PREDICTION = ("sft_success", "sft_corrected", "random_step", "none")
"""Arms without a hint at the erring step."""


def _round(bench: Bench, number: int, student: Path) -> tuple[dict[str, Any], list[Target], Path]:
    arm = bench.job.arm
    episodes = _episodes(bench, number, student)
    critic = bench.ablate.llm_critic if arm == "llm_critic" else None
    with bench.context(number, student, critic) as ctx:
        data = arms.critiqued(ctx, episodes, bench.salt(number), bench.anchors_per_trace)
        targets = arms.targets_of(arm, data, bench.loop.round_folder(number) / "arm")
    chosen = draw_rows(targets, bench.ablate.rows, bench.salt(number))
    hints = [t for t in chosen if t.kind == "hint"]
    row: dict[str, Any] = {
        "round": number, "episodes": len(episodes), "findings": len(data.found),
        "candidates": sum(t.kind == "hint" and t.accepted for t in targets),
        "rejected": sum(not t.accepted for t in targets), "rows": len(hints), "anchors": len(chosen) - len(hints),
        "steps": 0, "tripwire": None,
    }  # fmt: skip
    if not hints:
        return row, targets, student
    out = bench.loop.round_folder(number) / "student"
    try:
        row["steps"] = train_rows(bench, chosen, student, out, bench.loop.round_folder(number) / "train")
    except TripwireError as error:
        return row | {"tripwire": error.message}, targets, student
    return row, targets, out


def _episodes(bench: Bench, number: int, student: Path) -> list[Episode]:
    """The round's episodes: the student's own, those of the round before, or another policy's."""
    arm, own = bench.job.arm, bench.loop.round_folder(number)
    shared = bench.root / Job(bench.job.regime, "shared", bench.job.seed).name / "rounds" / f"{number:02d}"
    if arm == "foreign":
        found = [t for t in read_traces(bench.ablate.foreign_traces, ReadOptions()) if isinstance(t, Trace)]
        random.Random(seed_of("foreign", bench.salt(number))).shuffle(found)
        episodes = [Episode(t.task_id or t.id, t) for t in found[: bench.config.rollout.sample.episodes]]
        from hintdistill.traces import native

        own.mkdir(parents=True, exist_ok=True)
        native.write(own / "rollouts.jsonl", [e.trace for e in episodes])
        return episodes
    if number == 1 or arm == "stale":
        # every arm starts from the same episodes of the same policy
        own.mkdir(parents=True, exist_ok=True)
        for name in ("episodes.jsonl", "rollouts.jsonl"):
            shutil.copy2(shared / name, own / name)
        # what the initial policy's critiques and targets are is known already
        if (shared / "run").is_dir() and not (own / "run").exists():
            shutil.copytree(shared / "run", own / "run")
        return bench.loop.episodes(number, bench.initial)
    return bench.loop.episodes(number, student)


def draw_rows(targets: Sequence[Target], rows: int, salt: str) -> list[Target]:
    """At most `rows` accepted rows and as many anchors, drawn by `salt` alone."""
    out: list[Target] = []
    for kind in ("hint", "anchor"):
        members = sorted((t for t in targets if t.kind == kind and t.accepted), key=lambda t: t.key)
        out += members if len(members) <= rows else random.Random(seed_of("rows", salt, kind)).sample(members, rows)
    return out


def train_rows(bench: Bench, targets: list[Target], student: Path, out: Path, work: Path) -> int:
    """Train `student` on the rows for the arm's fixed number of steps; returns the steps taken."""
    from hintdistill.training.rows import build_rows
    from hintdistill.training.stage import read_summary, train
    from hintdistill.training.watch import WatchSets

    per_epoch = math.ceil(len(build_rows(targets, bench.config.train)) / bench.config.train.batch_size)
    # half a step less, because the number of steps is rounded up
    settings = bench.config.train.model_dump() | {"epochs": (bench.ablate.steps - 0.5) / per_epoch, "save_steps": 10**6}
    config = TrainSection.model_validate(settings)
    key = content_key("arm", bench.job.name, [t.key for t in targets], settings, str(student))
    summary = read_summary(out)
    if summary is None or summary.key != key:
        # movement is measured after the round, on sets that all arms share
        initial = student == bench.initial or config.objective.teacher.update == "initial"
        watch = WatchSets(from_initial=initial)
        summary = train(student, targets, bench.config.run, config, work, out, key, watch=watch)
    if summary.steps != bench.ablate.steps:
        raise EmptyFunnelError(f"{bench.job.name}: {summary.steps} optimiser steps instead of {bench.ablate.steps}")
    return summary.steps


def off_target(bench: Bench, student: Path) -> dict[str, Any]:
    """Movement on steps that no row touched: test tasks' other steps and clean traces, and near-misses."""
    loop, out = bench.loop, {}
    for name, requests in _off_target_requests(bench).items():
        found = movement(loop.top.engine(bench.initial), loop.top.engine(student), requests)
        if found is not None:
            out[name] = asdict(found)
    return out


def _off_target_requests(bench: Bench) -> dict[str, list[ScoreRequest]]:
    """The same steps for every arm of a seed; played once, by the initial policy, and kept beside what else is shared."""
    path = bench.root / Job(bench.job.regime, "shared", bench.job.seed).name / "off_target.json"
    if not path.is_file():
        sets = _play_off_target(bench)
        plain = {name: [[r.ids.tolist(), r.start, r.end] for r in requests] for name, requests in sets.items()}
        write_atomic(path, json.dumps(plain))
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {name: [ScoreRequest(np.array(i), a, b) for i, a, b in rows] for name, rows in stored.items()}


def _play_off_target(bench: Bench) -> dict[str, list[ScoreRequest]]:
    loop, limit = bench.loop, bench.config.report.off_target_steps
    options = options_of(bench.config.rollout, max(bench.ablate.temperatures), 977 + bench.job.seed)
    sampler = Sampler(loop.top.engine(bench.initial), loop.top.renderer, options)
    tasks = tasks_of(loop.suite, bench.ablate.test_split, 96, bench.patterns)
    sets = off_target_sets(
        loop.suite, loop.top.renderer, list(sampler.episodes(loop.suite, tasks)), limit, bench.job.seed
    )
    if bench.ablate.clean_split:
        quiet = sampler.episodes(loop.suite, tasks_of(loop.suite, bench.ablate.clean_split, 48))
        sets["clean_tasks"] = step_requests(loop.top.renderer, list(quiet), limit, bench.job.seed)
    near: list[Episode] = []
    for split in bench.ablate.near_splits:
        near += sampler.episodes(loop.suite, tasks_of(loop.suite, split, 24))
    if near:
        sets["near_misses"] = step_requests(loop.top.renderer, near, limit, bench.job.seed)
    return {name: requests for name, requests in sets.items() if requests}


def outcomes_from(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Outcomes as a result file has them."""
    return [Outcome(r["task"], r["success"], tuple(r["errors"]), r["failure"]) for r in rows]

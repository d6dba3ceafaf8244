"""The jobs of benchmarks/real.py: what the arms of a seed share, the untrained model, and each arm's training and measurement.

`shared` plays fresh episodes of the untrained model, and critiques, injects and rescores them by the ordinary stages; every arm
of the seed draws its rows from there. In a second round an arm's own student plays fresh episodes, and what is trained goes on
from it. What is measured afterwards has the same tasks and the same seed in every arm. Drift is a job of its own, beside its arm's.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.ablation import arms as shared_arms
from benchmarks.realmodel import arms, dpo, drift, play, untrained
from benchmarks.realmodel.plan import Announced, Plan
from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError
from hintdistill.core.models import resolve_model
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key
from hintdistill.pipeline import rescore
from hintdistill.pipeline.arms import ArmTraining, Budget, changed, draw_rows, result_of, train_arm
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.playing import draw_tasks
from hintdistill.pipeline.progress import Advance, Console
from hintdistill.pipeline.stages import run_stages
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.twins import counts
from hintdistill.rollouts.evaluate import load_suite, tasks_of
from hintdistill.traces.formats import native

UNPAIRED = ("shared", "shared_twins", "none", *untrained.ARMS)
"""Jobs that train nothing."""


@dataclass(frozen=True)
class RealJob:
    """A job, as the runner of arms takes it: `shared`, `shared_twins`, `none`, or an arm with the change of settings that
    names it."""

    plan: Plan
    arm: str
    seed: int
    label: str = ""
    change: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the `train` section in which this job differs."""
    round: int = 1
    """In round 2 the student of round 1 plays fresh episodes, and is trained on."""

    @property
    def name(self) -> str:
        """Folder of the job."""
        return f"seed{self.seed}/{self.title}"

    @property
    def title(self) -> str:
        """Its name in tables."""
        return (self.label or self.arm) + (f".round{self.round}" if self.round > 1 else "")

    @property
    def units(self) -> int:
        """One: the bar counts jobs."""
        return 1

    def first(self) -> RealJob:
        """The job of the round before."""
        return replace(self, round=self.round - 1)

    def key(self) -> str:
        """Key of everything that the result depends on; what is at its first value (round 1, recipe and hints of old) adds nothing."""
        later: dict[str, Any] = self.plan.changed()
        if self.arm in ("shared_twins", *arms.MORE):
            later["held"] = arms.HELD
        if self.round > 1:
            later["round"] = [self.round, self.first().key()]
        added = [later] if later else []
        return content_key("real", self.arm, self.seed, dict(self.change), self.plan.content(), *added)

    def run(self, advance: Advance) -> dict[str, Any]:
        """Do it."""
        if self.arm in untrained.ARMS:
            done = _untrained(self)
        elif self.round > 1:
            done = _second(self)
        else:
            done = {"shared": _shared, "shared_twins": _shared_twins, "none": _none}.get(self.arm, _arm)(self)
        return {"arm": self.arm, "seed": self.seed, "label": self.title, **done}


@dataclass(frozen=True)
class DriftJob:
    """Measure how far an arm's student moved on general prompts; needs the student that the arm's job saved."""

    of: RealJob

    @property
    def name(self) -> str:
        """Folder of the job."""
        return f"{self.of.name}.drift"

    @property
    def units(self) -> int:
        """One: the bar counts jobs."""
        return 1

    def key(self) -> str:
        """Key of everything that the result depends on."""
        return content_key("real drift", self.of.key(), drift.prompts(), drift.ANSWER)

    def run(self, advance: Advance) -> dict[str, Any]:
        """Measure. Raises ConfigError where the arm itself is owed."""
        plan = self.of.plan
        if result_of(plan.folder, self.of) is None:
            raise ConfigError(f"{self.of.name} is owed", hint="do it first: drift is read of its student")
        student = plan.folder / self.of.name / "student"
        return {"arm": self.of.arm, "seed": self.of.seed, "label": self.of.title, **drift.moved(plan, student)}


def jobs_of(plan: Plan, what: Announced) -> list[RealJob]:
    """What is announced, in the order of its worth: the announced arms of every seed, second rounds, what was added, the untrained."""

    def of(name: str, seed: int, number: int = 1) -> RealJob:
        change = dict(what.train.get(name, {}))
        arm = change.pop("arm", name)
        return RealJob(plan, arm, seed, name if arm != name else "", change, number)

    announced = [of(a, s) for s in what.seeds for a in ("shared", "none", *what.arms)]
    rounds = [of(a, s, 2) for s in what.seeds for a in what.second_round]
    return [*announced, *rounds, *(of(a, s) for s in what.seeds for a in (*what.added, *what.untrained))]


def drifts_of(jobs: Sequence[RealJob]) -> list[DriftJob]:
    """One for every job that trains."""
    return [DriftJob(j) for j in jobs if j.arm not in UNPAIRED]


# -- what the arms of a seed share -------------------------------------------------------------------------------------


def run_config(
    plan: Plan, seed: int, folder: Path, student: Path | None = None, held: Mapping[str, Any] | None = None
) -> RunConfig:
    """The configuration of a run folder below `folder`: its traces are fresh episodes, twins are made, nothing is held out.

    Args:
        student: whose episodes they are, where that is no longer the initial model.
        held: `train` settings of what is held, where they are not those that all arms share.
    """
    data = plan.config.model_dump(mode="json")
    data["run"] |= {"rounds": None, "seed": seed, "dir": str(folder / "run")}
    if student is not None:
        data["run"] |= {"model": str(student), "initial": str(resolve_model(str(plan.config.run.model)))}
    data["traces"] |= {"path": [str(folder / "rollouts.jsonl")], "holdout": 0.0}
    data["train"] = changed(data["train"], {**plan.train, **arms.PLAIN, "twins": {"per_finding": 1}, **(held or {})})
    data["train"]["anchor"]["per_trace"] = 0  # arms take their anchors from one place
    return RunConfig.model_validate(data)


@contextmanager
def opened(
    plan: Plan, seed: int, folder: Path, student: Path | None = None, held: Mapping[str, Any] | None = None
) -> Iterator[shared_arms.RoundData]:
    """The traces of a folder's episodes, read and critiqued, in its run folder; arguments as of `run_config`."""
    config = run_config(plan, seed, folder, student, held)
    assert config.run.dir is not None
    rundir = RunDir.create(Path(config.run.dir), config, resume=True)
    try:
        ctx = RunContext(config, rundir, Console(quiet=True))
        salt = f"real:{seed}" if student is None else f"real:{seed}:2"
        yield shared_arms.critiqued(ctx, [], salt, plan.config.train.anchor.per_trace)
    finally:
        rundir.close()


def _episodes(plan: Plan, seed: int, folder: Path, number: int, student: Path | None = None) -> dict[str, Any]:
    """Play the fresh episodes of a round and bring them to targets; what is told of both."""
    folder.mkdir(parents=True, exist_ok=True)
    world = play.World.load(plan.config, student)
    tasks = draw_tasks(list(tasks_of(world.suite, "train")), plan.episodes, number, seed)
    episodes = world.plain(tasks, seed)
    native.write(folder / "rollouts.jsonl", (e.trace for e in episodes if e.failure is None))
    with opened(plan, seed, folder, student) as data:
        targets = shared_arms.rescored(data.ctx)
        twins = counts(data.ctx.rundir.current("twins", "twins"))
    return {
        "episodes": play.rows_of(world.suite, episodes),
        "findings": Counter(f.error_class for _, f in data.found),
        "accepted": _by_class(targets, "hint"),
        "rejected": _by_class(targets, "hint", accepted=False),
        "twins": twins,
        "twins_accepted": _by_class(targets, "twin"),
    }


def _shared(job: RealJob) -> dict[str, Any]:
    return _episodes(job.plan, job.seed, job.plan.folder / job.name, 1)


def _shared_twins(job: RealJob) -> dict[str, Any]:
    """The shared episodes once more, with up to three twins of a finding by every maker, and hold traces: what is covered."""
    with _more_held(job) as data:
        targets = shared_arms.rescored(data.ctx)
        twins = counts(data.ctx.rundir.current("twins", "twins"))
    kept = {(t.error_class, t.trace_id, t.step) for t in targets if t.kind == "twin" and t.accepted}
    return {
        "findings": Counter(f.error_class for _, f in data.found),
        "twins": twins,
        "covered": Counter(c for c, _, _ in kept),
        "twins_accepted": _by_class(targets, "twin"),
        "held": sum(t.kind == "hold" for t in targets),
    }


@contextmanager
def _more_held(job: RealJob) -> Iterator[shared_arms.RoundData]:
    """A run folder on the seed's shared episodes that holds more; see `arms.HELD`. Raises ConfigError where they are owed."""
    seed, plan = job.seed, job.plan
    shared, folder = (plan.folder / f"seed{seed}" / name for name in ("shared", "shared_twins"))
    if not (shared / "rollouts.jsonl").is_file():
        raise ConfigError(f"seed{seed}/shared is owed", hint="its episodes are the arm's; do it first")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shared / "rollouts.jsonl", folder / "rollouts.jsonl")
    with opened(plan, seed, folder, held=arms.HELD) as data:
        yield data


def _by_class(targets: Sequence[Target], kind: str, accepted: bool = True) -> dict[str, int]:
    return dict(Counter(t.error_class or "-" for t in targets if t.kind == kind and t.accepted == accepted))


# -- arms --------------------------------------------------------------------------------------------------------------


def _arm(job: RealJob) -> dict[str, Any]:
    shared = job.plan.folder / f"seed{job.seed}" / "shared"
    with _more_held(job) if job.arm in arms.MORE else opened(job.plan, job.seed, shared) as data:
        return _trained(job, data, data.ctx.model_folder)


def _second(job: RealJob) -> dict[str, Any]:
    """The second round: the student of the first plays, and is trained on; anchors hold it to the initial model."""
    plan, folder, first = job.plan, job.plan.folder / job.name, job.first()
    if job.arm in arms.MORE:
        raise ConfigError(f"{job.arm} has no second round")
    if result_of(plan.folder, first) is None:
        raise ConfigError(f"{first.name} is owed", hint="its student plays the episodes of round 2; do it first")
    student = plan.folder / first.name / "student"
    played = folder / "played.json"
    key = job.key()
    if not played.is_file() or json.loads(played.read_text(encoding="utf-8"))["key"] != key:
        told = _episodes(plan, job.seed, folder, job.round, student)
        played.write_text(json.dumps({"key": key, **told}), encoding="utf-8")
    with opened(plan, job.seed, folder, student) as data:
        done = _trained(job, data, student)
    told = {k: v for k, v in json.loads(played.read_text(encoding="utf-8")).items() if k != "key"}
    return {**done, "played": told}


def _trained(job: RealJob, data: shared_arms.RoundData, student: Path) -> dict[str, Any]:
    """Draw the arm's rows, train on from `student`, measure what came out."""
    plan, folder, base = job.plan, job.plan.folder / job.name, data.ctx.initial_folder
    section = arms.section_of(job.arm, plan.config.train, plan.train, job.change)
    if job.round > 1:
        # the adapter of round 1 is merged, and what comes out stands alone
        section = section.model_copy(update={"save": "merged"})
    budget = Budget(plan.budget["rows"], plan.budget["anchors"], plan.budget["steps"], others=_others(job))
    training = ArmTraining(job.name, student, base, data.ctx.config.run, section, budget.steps)
    if job.arm == "dpo":
        pairs = arms.pairs_of(data)
        rows = dpo.drawn(pairs, budget.rows, data.salt)
        summary = dpo.train_pairs(training, rows, folder / "student", folder / "train")
        distinct, available = {"pair": min(len(pairs), budget.rows)}, {"pair": len(pairs)}
    else:
        run_stages(data.ctx, first="inject", until="rescore")
        own = arms.targets_of(job.arm, data, list(rescore.load(data.ctx)))
        chosen, distinct = draw_rows(own, budget, data.salt)
        available = Counter(t.kind for t in own if t.accepted)
        summary = train_arm(training, chosen, folder / "student", folder / "train")
    return {
        "distinct": distinct,
        "available": available,
        "steps": summary.steps,
        "measured": measured(plan, job.seed, folder / "student"),
    }


def _others(job: RealJob) -> dict[str, int]:
    twins = {"twin": job.plan.budget["twins"]} if job.arm in arms.TWINNED else {}
    return twins | ({"hold": job.plan.budget["twins"]} if job.arm == "targeted_stop_hold" else {})


def _none(job: RealJob) -> dict[str, Any]:
    """The untrained model, and under hints of level 1 on the tasks that gain is read on."""
    world, read = play.World.load(job.plan.config), next(iter(job.plan.tasks))
    plain = {split: world.plain(tasks, job.seed) for split, tasks in job.plan.tasks.items() if split != read}
    first = world.plain(job.plan.tasks[read], job.seed)
    hinted = world.hinted(first, "level1", job.seed)
    return {
        "measured": {s: play.rows_of(world.suite, e) for s, e in ({read: first} | plain).items()},
        "hinted": play.rows_of(world.suite, hinted.episodes),
        "repairs": play.repairs_of(world.suite, hinted),
    }


def _untrained(job: RealJob) -> dict[str, Any]:
    world = play.World.load(job.plan.config)
    return {"measured": {s: untrained.played(job.arm, world, t, job.seed) for s, t in job.plan.tasks.items()}}


def measured(plan: Plan, seed: int, student: Path) -> dict[str, Any]:
    """Play every split of the plan with a student, at the frozen sampling settings."""
    world = play.World.load(plan.config, student)
    return {s: play.rows_of(world.suite, world.plain(t, seed)) for s, t in plan.tasks.items()}


def grid_tasks(config: RunConfig, n: int) -> dict[str, list[str]]:
    """Tasks that settings are chosen on: validation, and pairs of another draw than the test's."""
    assert config.rollout.environment is not None
    suite = load_suite(config.rollout.environment)
    return {
        "validation": list(tasks_of(suite, "validation", n)),
        "found": [f"found.v.{i}" for i in range(n // 2)],
        "last": [f"last.v.{i}" for i in range(n // 2)],
    }

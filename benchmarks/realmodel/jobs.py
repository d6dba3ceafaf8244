"""The jobs of benchmarks/real.py: what the arms of a seed share, the untrained model, and each arm's training and measurement.

`shared` plays fresh episodes of the untrained model, and critiques, injects and rescores them by the ordinary stages; every arm
of the seed draws its rows from there. What is measured afterwards has the same tasks and the same seed in every arm.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ablation import arms as shared_arms
from benchmarks.realmodel import play
from hintdistill.config import RunConfig, TrainSection
from hintdistill.core.errors import ConfigError
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key
from hintdistill.pipeline import rescore, variants
from hintdistill.pipeline.arms import ArmTraining, Budget, changed, cross_entropy, draw_rows, train_arm
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.corrections import corrections
from hintdistill.pipeline.playing import draw_tasks
from hintdistill.pipeline.progress import Advance, Console
from hintdistill.pipeline.stages import run_stages
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.twins import counts
from hintdistill.rollouts.evaluate import load_suite, tasks_of
from hintdistill.traces.formats import native

PREREG = play.ROOT / "benchmarks" / "prereg" / "real.yaml"
PLAIN: Mapping[str, Any] = {"save": "adapter", "watch": {"every": 0}}


@dataclass(frozen=True)
class Plan:
    """What is equal in all jobs."""

    config: RunConfig
    folder: Path
    episodes: int
    budget: Mapping[str, int]
    """`rows`, `anchors`, `twins`, `steps`."""
    tasks: Mapping[str, Sequence[str]]
    """By split: what is measured."""
    train: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def registered(cls, config: RunConfig, folder: Path) -> tuple[Plan, list[tuple[str, int]]]:
        """The plan of benchmarks/prereg/real.yaml and its (arm, seed), most valuable first."""
        said = yaml.safe_load(PREREG.read_text(encoding="utf-8"))
        draw = commit_of(PREREG)
        tasks = {split: [f"{split}.{draw[:12]}.{i}" for i in range(n)] for split, n in said["tasks"].items()}
        budget = {k: said[k] for k in ("rows", "anchors", "twins", "steps")}
        plan = cls(config, folder, said["episodes"], budget, tasks, said["train"])
        return plan, [(arm, seed) for seed in said["seeds"] for arm in ("none", *said["arms"])]

    def content(self) -> dict[str, Any]:
        """What a result depends on, as plain data."""
        own = {k: getattr(self, k) for k in ("episodes", "budget", "tasks", "train")}
        data = self.config.model_dump(mode="json", include={"rollout", "inject", "rescore", "train"})
        return {**own, **data, "weights": model_key(resolve_model(str(self.config.run.model))).weights}


def commit_of(path: Path) -> str:
    """The hash of the commit that added a file. Raises ConfigError where none did: test tasks may not exist before."""
    said = ["git", "log", "--diff-filter=A", "--format=%H", "--", str(path)]
    found = subprocess.run(said, cwd=path.parent, capture_output=True, text=True, check=False).stdout.split()
    if not found:
        raise ConfigError(f"{path.name} is in no commit, so its test tasks have no names yet", hint="commit it first")
    return found[-1]


@dataclass(frozen=True)
class RealJob:
    """A job, as the runner of arms takes it: `shared`, `none`, or an arm with the change of settings that names it."""

    plan: Plan
    arm: str
    seed: int
    label: str = ""
    change: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the `train` section in which this job differs."""

    @property
    def name(self) -> str:
        """Folder of the job."""
        return f"seed{self.seed}/{self.label or self.arm}"

    @property
    def units(self) -> int:
        """One: the bar counts jobs."""
        return 1

    def key(self) -> str:
        """Key of everything that the result depends on."""
        return content_key("real", self.arm, self.seed, dict(self.change), self.plan.content())

    def run(self, advance: Advance) -> dict[str, Any]:
        """Do it."""
        of = {"shared": _shared, "none": _none}.get(self.arm, _arm)
        return {"arm": self.arm, "seed": self.seed, "label": self.label or self.arm, **of(self)}


# -- what the arms of a seed share -------------------------------------------------------------------------------------


def shared_config(plan: Plan, seed: int) -> RunConfig:
    """The configuration of a seed's run folder: its traces are the fresh episodes, twins are made, nothing is held out."""
    folder = plan.folder / f"seed{seed}" / "shared"
    data = plan.config.model_dump(mode="json")
    data["run"] |= {"rounds": None, "seed": seed, "dir": str(folder / "run")}
    data["traces"] |= {"path": [str(folder / "rollouts.jsonl")], "holdout": 0.0}
    data["train"] = changed(data["train"], {**plan.train, **PLAIN, "twins": {"per_finding": 1}})
    data["train"]["anchor"]["per_trace"] = 0  # arms take their anchors from one place
    return RunConfig.model_validate(data)


@contextmanager
def opened(plan: Plan, seed: int) -> Iterator[shared_arms.RoundData]:
    """A seed's traces, read and critiqued, in its run folder."""
    config = shared_config(plan, seed)
    assert config.run.dir is not None
    rundir = RunDir.create(Path(config.run.dir), config, resume=True)
    try:
        ctx = RunContext(config, rundir, Console(quiet=True))
        yield shared_arms.critiqued(ctx, [], f"real:{seed}", plan.config.train.anchor.per_trace)
    finally:
        rundir.close()


def _shared(job: RealJob) -> dict[str, Any]:
    plan, folder = job.plan, job.plan.folder / job.name
    folder.mkdir(parents=True, exist_ok=True)
    world = play.World.load(plan.config)
    tasks = draw_tasks(list(tasks_of(world.suite, "train")), plan.episodes, 1, job.seed)
    episodes = world.plain(tasks, job.seed)
    native.write(folder / "rollouts.jsonl", (e.trace for e in episodes if e.failure is None))
    with opened(plan, job.seed) as data:
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


def _by_class(targets: Sequence[Target], kind: str, accepted: bool = True) -> dict[str, int]:
    return dict(Counter(t.error_class or "-" for t in targets if t.kind == kind and t.accepted == accepted))


# -- arms --------------------------------------------------------------------------------------------------------------


def targets_of(arm: str, data: shared_arms.RoundData, targets: Sequence[Target]) -> list[Target]:
    """What an arm draws its rows from, anchors included; `targets` are those of the shared run."""
    own: Sequence[Target]
    if arm in ("targeted", "targeted_twins"):
        own = [t for t in targets if t.kind == "hint" or (t.kind == "twin" and arm == "targeted_twins")]
    elif arm == "placebo":
        own = variants.hinted(data, data.found, arm, placebo=True)
    elif arm == "wrong_hint":
        own = variants.hinted(data, variants.wrong_hints(data.found, data.ctx.library, 1.0, data.salt), arm)
    elif arm == "sft_corrected":
        own = variants.sft(data.ctx, corrections(data.ctx, data.found, data.salt).kept)
    else:
        raise ConfigError(f"no arm {arm!r}")
    return [*own, *data.anchors()]


def section_of(job: RealJob) -> TrainSection:
    """The settings that an arm trains with."""
    twins = {"twins": {"per_finding": 1, "weight": 1.0}} if job.arm == "targeted_twins" else {}
    base = changed(job.plan.config.train.model_dump(mode="json"), {**job.plan.train, **PLAIN, **twins})
    section = TrainSection.model_validate(changed(base, job.change))
    if job.arm == "sft_corrected":
        section = TrainSection.model_validate(changed(section.model_dump(mode="json"), cross_entropy(section)))
    return section


def _arm(job: RealJob) -> dict[str, Any]:
    plan, folder = job.plan, job.plan.folder / job.name
    with opened(plan, job.seed) as data:
        run_stages(data.ctx, first="inject", until="rescore")
        own = targets_of(job.arm, data, list(rescore.load(data.ctx)))
        others = {"twin": plan.budget["twins"]} if job.arm == "targeted_twins" else {}
        budget = Budget(plan.budget["rows"], plan.budget["anchors"], plan.budget["steps"], others=others)
        rows, distinct = draw_rows(own, budget, data.salt)
        base = data.ctx.model_folder
        training = ArmTraining(job.name, base, base, data.ctx.config.run, section_of(job), budget.steps)
        summary = train_arm(training, rows, folder / "student", folder / "train")
    return {
        "distinct": distinct,
        "available": Counter(t.kind for t in own if t.accepted),
        "steps": summary.steps,
        "measured": measured(job, folder / "student"),
    }


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


def measured(job: RealJob, student: Path) -> dict[str, Any]:
    """What a student does on every split of the plan, at the frozen sampling."""
    world = play.World.load(job.plan.config, student)
    return {s: play.rows_of(world.suite, world.plain(t, job.seed)) for s, t in job.plan.tasks.items()}


def grid_tasks(config: RunConfig, n: int) -> dict[str, list[str]]:
    """Tasks that settings are chosen on: validation, and pairs of another draw than the test's."""
    assert config.rollout.environment is not None
    suite = load_suite(config.rollout.environment)
    return {
        "validation": list(tasks_of(suite, "validation", n)),
        "found": [f"found.v.{i}" for i in range(n // 2)],
        "last": [f"last.v.{i}" for i in range(n // 2)],
    }

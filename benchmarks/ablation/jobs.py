"""The jobs of an ablation: what is shared by all arms of a seed, and one arm on one seed. Each leaves one JSON file.

`shared` (`before.py`): the first round's episodes of the initial policy, the initial and the hinted student's success, and
what the hints do before any training. An arm (`one_arm.py`): all of its rounds, then what is measured of its student.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.storage import content_key, write_atomic
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.rounds import Loop
from hintdistill.pipeline.store import RunDir
from hintdistill.rollouts.measure import Setting

LIKE_HINT = ("stale", "foreign", "llm_critic", "hint_outcome", "step", "alarm", "hint")
"""Arms that are the method on other data, under another critic or beside a reward, and train as it does unless told otherwise."""


@dataclass(frozen=True)
class Job:
    """One arm on one seed in one regime; the arm `shared` comes before the others."""

    regime: str
    arm: str
    seed: int
    setting: int | None = None
    """Of a sweep: which of the arm's settings."""

    @property
    def name(self) -> str:
        """Also the name of its folder."""
        tried = "" if self.setting is None else f"/setting-{self.setting}"
        return f"{self.regime}/{self.arm.replace(':', '-')}{tried}/seed-{self.seed}"


class Bench:
    """What every job needs: a loop in the job's folder, on the regime's tasks and the seed."""

    def __init__(self, config: RunConfig, root: Path, job: Job, console: Console) -> None:
        self.ablate, self.root, self.job, self.console = config.ablate, root, job, console
        self.patterns = config.ablate.regimes[job.regime]
        self.anchors_per_trace = config.train.anchor.per_trace
        self.folder = root / job.name
        self.config = job_config(config, job, self.folder)
        self.rundir = RunDir.create(self.folder, self.config, resume=True)
        self.loop = Loop(self.config, self.rundir, console)
        self.initial = self.loop.top.model_folder
        self.shared = root / Job(job.regime, "shared", job.seed).name

    def settings(self) -> list[Setting]:
        """Everything that is measured of a final student."""
        a = self.ablate
        out = [Setting(a.test_split, t) for t in a.temperatures]
        out += [Setting(s, max(a.temperatures)) for s in (a.clean_split, a.transfer_split) if s]
        return out + [Setting(s, min(a.temperatures)) for s in a.near_splits]

    def tasks_of(self, setting: Setting) -> tuple[Sequence[str], int | None]:
        """Patterns and limit of a setting's tasks; the regime's patterns apply to the test split."""
        patterns = self.patterns if setting.split == self.ablate.test_split else ("*",)
        return patterns, self.ablate.limits.get(setting.split, self.ablate.limit)

    def outcomes(self, student: Path, settings: Sequence[Setting]) -> dict[str, list[dict[str, Any]]]:
        """Outcomes by setting."""
        return {s.name: [asdict(o) for o in self.loop.outcomes(student, s, *self.tasks_of(s))] for s in settings}

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
            yield RunContext(config, rundir, self.console, self.loop.engines)
        finally:
            rundir.close()

    def salt(self, number: int) -> str:
        """The same for every arm of a seed, so that arms draw alike."""
        return f"{self.job.regime}:{self.job.seed}:{number}"

    def close(self) -> None:
        """Let other processes in."""
        self.rundir.close()


def family(arm: str) -> str:
    """Whose settings an arm takes where it has none of its own: the method's for what is the method on other data."""
    kind, _, noise = arm.partition(":")
    return "hint" if noise or kind in LIKE_HINT else arm


def job_config(config: RunConfig, job: Job, folder: Path) -> RunConfig:
    """The run configuration of a job: its seed, folder and tasks, and the arm's own training settings."""
    data = config.model_dump(mode="json")
    data["run"] |= {"seed": job.seed, "dir": str(folder)}
    data["rollout"]["sample"]["tasks"] = list(config.ablate.regimes[job.regime])
    data["rollout"]["splits"] = [config.ablate.test_split]
    data["rollout"]["limit"] = config.ablate.limit
    own = config.ablate.train
    data["train"] |= own.get(job.arm, own.get(job.arm.partition(":")[0], own.get(family(job.arm), {})))
    if job.setting is not None:
        data["train"] |= settings_of(config, job.arm)[job.setting]
    if job.arm.startswith("sft_"):
        distill = {"distill": {"divergence": {"kind": "fkl"}}}
        data["train"]["recipe"] = {"preset": data["train"]["recipe"], "terms": distill}
    if job.arm == "hint_outcome":
        coupling = {"kind": "additive", "weight": 0.5}
        data["train"]["recipe"] = {"preset": data["train"]["recipe"], "coupling": coupling}
        # a round plays each task once
        data["train"].setdefault("outcome", {"baseline": "round"})
    return RunConfig.model_validate(data)


def settings_of(config: RunConfig, arm: str) -> tuple[dict[str, Any], ...]:
    """The settings that an arm tries in the sweep."""
    return config.ablate.sweep.own.get(arm, config.ablate.sweep.settings)


MEASURED = (
    "rows",
    "fill",
    "steps",
    "hold",
    "test_split",
    "clean_split",
    "near_splits",
    "transfer_split",
    "temperatures",
    "limit",
    "limits",
)
"""Keys of `ablate` that every job's result depends on."""


def job_key(config: RunConfig, job: Job) -> str:
    """Key of everything a job's result depends on; a result with another key is owed again."""
    own = job_config(config, job, Path())
    data = own.model_dump(mode="json", exclude={"ablate": True, "report": {"html"}, "run": {"dir", "threads"}})
    if job.arm == "shared":
        del data["train"]
    ablate = config.ablate.model_dump(mode="json")
    wanted = {"foreign": ["foreign_traces"], "llm_critic": ["llm_critic"]}.get(job.arm, [])
    weights = model_key(resolve_model(config.run.model)).weights
    return content_key("job", asdict(job), data, {k: ablate[k] for k in (*MEASURED, *wanted)}, weights)


def result_of(config: RunConfig, root: Path, job: Job) -> dict[str, Any] | None:
    """The result of a job that was done with these settings, or None where it is owed."""
    path = root / job.name / "result.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result.get("key") == job_key(config, job) else None


def run_job(config: RunConfig, root: Path, job: Job) -> Path:
    """Do a job that is owed; returns its result file."""
    from benchmarks.ablation.arm_run import run_arm
    from benchmarks.ablation.shared_baseline import run_shared

    path = root / job.name / "result.json"
    if result_of(config, root, job) is None:
        began = time.process_time()
        bench = Bench(config, root, job, Console(quiet=True))
        try:
            document = run_shared(bench) if job.arm == "shared" else run_arm(bench)
            document["cpu_seconds"] = time.process_time() - began
            row = {"key": job_key(config, job), **asdict(job), **document}
            write_atomic(path, json.dumps(row, ensure_ascii=False, allow_nan=False))
        finally:
            bench.close()
        for folder in (bench.folder / "rounds").glob("*/train"):
            shutil.rmtree(folder, ignore_errors=True)
    return path

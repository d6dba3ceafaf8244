"""The tools of every ablation job: a loop in the job's own folder, on the tasks of the regime and with the seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.ablation.jobs import Job, job_config
from benchmarks.ablation.settings import AblationConfig
from hintdistill.config import RunConfig
from hintdistill.core.types import Trace
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.replaying import Replayer
from hintdistill.pipeline.rounds import Loop
from hintdistill.pipeline.store import RunDir
from hintdistill.rollouts.measure import Setting
from hintdistill.rollouts.sampling import Episode
from hintdistill.traces.formats import native


class Bench:
    """The tools of every job: a loop in the job's folder, on the regime's tasks and with the seed."""

    def __init__(self, config: AblationConfig, root: Path, job: Job, console: Console) -> None:
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

    def replayed(self, number: int, student: Path, recorded: Sequence[Trace]) -> list[Episode]:
        """One fresh step of the student at every step of recorded traces, as `rollout.source: replay` samples them."""
        folder = self.loop.round_folder(number)
        native.write(folder / "recorded.jsonl", recorded)
        data = self.config.model_dump(mode="json")
        data["run"]["dir"] = str(folder / "recorded")
        data["traces"] |= {"path": [str(folder / "recorded.jsonl")], "holdout": 0.0}
        data["rollout"]["source"] = "replay"
        # as many judged steps as the recorded traces have
        data["rollout"]["sample"]["episodes"] = sum(len(t.own_steps) for t in recorded)
        config = RunConfig.model_validate(data)
        rundir = RunDir.create(folder / "recorded", config, resume=True)
        try:
            player = Replayer(RunContext(config, rundir, self.console, self.loop.engines))
            episodes = player.episodes(number, student, folder)
        finally:
            rundir.close()
        native.write(folder / "rollouts.jsonl", (e.trace for e in episodes if e.failure is None))
        return episodes

    def salt(self, number: int) -> str:
        """Return a generator that is the same for every arm of a seed, so that arms draw alike."""
        return f"{self.job.regime}:{self.job.seed}:{number}"

    def close(self) -> None:
        """Let other processes in."""
        self.rundir.close()

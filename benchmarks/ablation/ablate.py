"""Run every arm on every seed, in one-thread processes that can be resumed job by job; then write table and figure."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.ablation.arm_run import run_arm
from benchmarks.ablation.bench import Bench
from benchmarks.ablation.jobs import Job, OneUnit, job_config, job_key
from benchmarks.ablation.pages import write_evidence
from benchmarks.ablation.settings import AblationConfig, run_part
from benchmarks.ablation.shared_baseline import run_shared
from benchmarks.ablation.sweep import chosen_settings, sweep_config, sweep_jobs, swept_arms, with_chosen
from benchmarks.ablation.table import summarise_jobs
from hintdistill.config import CriticSection
from hintdistill.core.errors import ConfigError
from hintdistill.core.storage import JsonlStore, write_atomic
from hintdistill.pipeline.arms import result_of, run_owed
from hintdistill.pipeline.progress import Advance, Console
from hintdistill.pipeline.store import RunDir

SETTINGS = "ablation.json"
"""The settings that an ablation's folder was made with."""


def plan_jobs(config: AblationConfig) -> tuple[list[Job], list[Job]]:
    """What is shared by the arms of a seed, and the arms; the seeds of an arm stand together last, so that a run that is
    stopped half-way has every arm on its first seeds.

    Raises:
        ConfigError: the configuration cannot be ablated.
    """
    a = config.ablate
    if config.run.rounds is None:
        raise ConfigError("an ablation is a set of loops; set run.rounds")
    if config.train.effective_recipe.teacher.update != "initial" or config.train.target_source != "stored":
        raise ConfigError(
            "arms are rows of stored targets of the initial teacher; leave train.recipe.teacher and train.targets"
        )
    if config.rescore.engine.backend != "transformers":
        raise ConfigError("arms are scored by transformers, on the union of the views' top k; leave rescore.engine")
    for arm in {"foreign", "replay"} & {*a.arms}:
        if not a.foreign_traces:
            raise ConfigError(f"the arm `{arm}` needs ablate.foreign_traces")
    if "llm_critic" in a.arms and not a.llm_critic:
        raise ConfigError("the arm `llm_critic` needs ablate.llm_critic, the critic section it uses")
    _check_settings(config)
    first = next(iter(a.regimes))
    # whose traces, how good a critic, and what a reward adds are questions of the first regime alone
    arms = [
        (r, arm)
        for r in a.regimes
        for arm in (*a.arms, *(a.noise if r == first else ()))
        if arm != "none" and (r == first or arm not in ("stale", "foreign", "replay", "hint_outcome"))
    ]
    shared = [Job(regime, "shared", seed) for seed in a.seeds for regime in a.regimes]
    return shared, [Job(regime, arm, seed) for seed in a.seeds for regime, arm in arms]


def _check_settings(config: AblationConfig) -> None:
    """Raises ConfigError where what an arm changes is no setting, before hours are spent on the arms before it."""
    a, regime = config.ablate, next(iter(config.ablate.regimes))
    tried = [Job(regime, arm, a.seeds[0], i) for arm in swept_arms(config) for i in range(len(a.sweep.settings))]
    for job in (*(Job(regime, arm, a.seeds[0]) for arm in dict.fromkeys((*a.arms, *a.train))), *tried):
        try:
            job_config(config, job, Path())
        except ValidationError as error:
            where = (
                f"ablate.train.{job.arm}"
                if job.setting is None
                else f"ablate.sweep, setting {job.setting} of {job.arm}"
            )
            raise ConfigError(
                f"{where}: {error.errors()[0]['msg']} ({'.'.join(map(str, error.errors()[0]['loc']))})"
            ) from None
    try:
        CriticSection.model_validate(config.critic.model_dump(mode="json") | a.llm_critic)
    except ValidationError as error:
        raise ConfigError(f"ablate.llm_critic: {error.errors()[0]['msg']} ({error.errors()[0]['loc'][0]})") from None


def ablate(
    config: AblationConfig, folder: Path, *, resume: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Run all jobs that are owed, then write evidence.json, evidence.md and the figure; returns the document.

    With `ablate.sweep.use`, every arm's settings are chosen first, on validation tasks. A result that was made with other
    settings is owed again.

    Raises:
        ConfigError: see `plan_jobs`; or the folder is in use.
        HintdistillError: a job failed; the others were finished first and are kept.
    """
    from hintdistill.pipeline.stages import check_inputs

    console = console or Console()
    plan_jobs(config)
    check_inputs(config, "report")
    rundir = RunDir.create(folder, run_part(config), resume=resume)
    try:
        write_atomic(folder / SETTINGS, config.model_dump_json(indent=1))
        log = rundir.store("sessions")
        if config.ablate.sweep.use:
            shared, trials = sweep_jobs(config)
            _phase(log, sweep_config(config), folder, {"shared (sweep)": shared, "sweep": trials}, console)
        tuned, chosen = tuned_config(config, folder)
        if chosen:
            write_atomic(folder / "sweep.json", json.dumps(chosen, indent=1, ensure_ascii=False))
        shared, arms = plan_jobs(tuned)
        _phase(log, tuned, folder, {"shared": shared, "arms": arms}, console)
        return _summarise(config, folder, list(log.rows()))
    finally:
        rundir.close()


def owed_jobs(config: AblationConfig, folder: Path) -> list[str]:
    """Check settings and inputs; the names of the jobs without a result in `folder`.

    With a sweep, the arms are counted with the settings that it has chosen so far, so that most are owed before it ends.

    Raises:
        ConfigError, InputError, ModelError: what `ablate` would raise before its first job.
    """
    from hintdistill.pipeline.stages import check_inputs

    plan_jobs(config)
    check_inputs(config, "report")
    groups: list[tuple[AblationConfig, Sequence[Job]]] = []
    if config.ablate.sweep.use:
        shared, trials = sweep_jobs(config)
        groups.append((sweep_config(config), [*shared, *trials]))
    tuned, _ = tuned_config(config, folder)
    shared, arms = plan_jobs(tuned)
    groups.append((tuned, [*shared, *arms]))
    return [j.name for c, jobs in groups for j in jobs if result_of(folder, BenchJob(c, folder, j)) is None]


def tuned_config(config: AblationConfig, folder: Path) -> tuple[AblationConfig, dict[str, Any]]:
    """The configuration with what the sweep chose so far, and its trials; as it is where no sweep is asked for."""
    if not config.ablate.sweep.use:
        return config, {}
    trial_config = sweep_config(config)
    chosen = chosen_settings(config, _results(trial_config, folder, sweep_jobs(config)[1]))
    return with_chosen(config, chosen), chosen


def summarise_again(folder: Path) -> dict[str, Any]:
    """Table and figure of the jobs that are there, e.g. of an ablation still running. Raises ConfigError for none."""
    try:
        config = AblationConfig.model_validate_json((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no ablation at {folder}", hint=f"its folder holds {SETTINGS}") from None
    return _summarise(config, folder, list(RunDir.open(folder).store("sessions").rows()))


def _summarise(config: AblationConfig, folder: Path, sessions: list[dict[str, Any]]) -> dict[str, Any]:
    tuned, chosen = tuned_config(config, folder)
    results = finished(tuned, folder)
    if not any(r["arm"] != "shared" for r in results):
        raise ConfigError(f"no job of {folder} is finished yet")
    document = summarise_jobs(tuned, results, sessions, chosen)
    write_evidence(document, folder)
    return document


def finished(config: AblationConfig, folder: Path) -> list[dict[str, Any]]:
    """The results that are there, of what the arms of a seed share and of the arms."""
    shared, arms = plan_jobs(config)
    return _results(config, folder, (*shared, *arms))


def _results(config: AblationConfig, folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    found = (result_of(folder, BenchJob(config, folder, j)) for j in jobs)
    return [r for r in found if r is not None]


def run_jobs(
    config: AblationConfig, folder: Path, jobs: Mapping[str, Sequence[Job]], console: Console | None = None
) -> int:
    """Run the jobs that are owed, one kind after the other; `jobs` are by kind. Return the number of finished ones."""
    folder.mkdir(parents=True, exist_ok=True)
    console, done = console or Console(), 0
    for label, members in jobs.items():
        work = [BenchJob(config, folder, j) for j in members]
        done += run_owed(folder, work, label, console, processes=config.ablate.processes)
    return done


def _phase(
    log: JsonlStore, config: AblationConfig, folder: Path, jobs: Mapping[str, Sequence[Job]], console: Console
) -> None:
    """Jobs one kind after the other; how long it took, and where, is a row."""
    began, done = time.monotonic(), 0
    try:
        for label, members in jobs.items():
            done += run_jobs(config, folder, {label: members}, console)
    finally:
        if done:
            row = {"phase": list(jobs)[-1], "jobs": done, "seconds": time.monotonic() - began}
            log.append({"key": f"session-{len(list(log.rows()))}", **row, **about_this_machine(config)})


@dataclass(frozen=True)
class BenchJob(OneUnit):
    """A job of the ablation for the runner of arms; the arm runs in a separate process."""

    config: AblationConfig
    folder: Path
    job: Job

    def key(self) -> str:
        """Key of everything that the result depends on."""
        return job_key(self.config, self.job)

    def run(self, advance: Advance) -> dict[str, Any]:
        """Play, train and measure, in the job's folder; the rounds' checkpoints are removed afterwards."""
        bench = Bench(self.config, self.folder, self.job, Console(quiet=True))
        try:
            document = run_shared(bench) if self.job.arm == "shared" else run_arm(bench)
        finally:
            bench.close()
        for work in (bench.folder / "rounds").glob("*/train"):
            shutil.rmtree(work, ignore_errors=True)
        return {**asdict(self.job), **document}


def about_this_machine(config: AblationConfig) -> dict[str, Any]:
    """Return what a reader needs to judge the times: processor, processes, commit."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"processor": _processor(), "cores": os.cpu_count(), "processes": config.ablate.processes, "commit": commit}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())

"""`hintdistill ablate`: every arm on every seed, in one-thread processes, resumable job by job; then table and figure."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.ablation.jobs import Job, job_config, result_of, run_job
from benchmarks.ablation.sweep import chosen_settings, sweep_config, sweep_jobs, swept_arms, with_chosen
from hintdistill.config import CriticSection, RunConfig
from hintdistill.core.errors import ConfigError, HintdistillError
from hintdistill.core.storage import JsonlStore, write_atomic
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir


def plan_jobs(config: RunConfig) -> tuple[list[Job], list[Job]]:
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
    if "foreign" in a.arms and not a.foreign_traces:
        raise ConfigError("the arm `foreign` needs ablate.foreign_traces")
    if "llm_critic" in a.arms and not a.llm_critic:
        raise ConfigError("the arm `llm_critic` needs ablate.llm_critic, the critic section it uses")
    _check_settings(config)
    first = next(iter(a.regimes))
    # whose traces, how good a critic, and what a reward adds are questions of the first regime alone
    arms = [
        (r, arm)
        for r in a.regimes
        for arm in (*a.arms, *(a.noise if r == first else ()))
        if arm != "none" and (r == first or arm not in ("stale", "foreign", "hint_outcome"))
    ]
    shared = [Job(regime, "shared", seed) for seed in a.seeds for regime in a.regimes]
    return shared, [Job(regime, arm, seed) for seed in a.seeds for regime, arm in arms]


def _check_settings(config: RunConfig) -> None:
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


def ablate(config: RunConfig, folder: Path, *, resume: bool = False, console: Console | None = None) -> dict[str, Any]:
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
    rundir = RunDir.create(folder, config, resume=resume)
    try:
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


def tuned_config(config: RunConfig, folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration with what the sweep chose so far, and its trials; as it is where no sweep is asked for."""
    if not config.ablate.sweep.use:
        return config, {}
    trial_config = sweep_config(config)
    chosen = chosen_settings(config, _results(trial_config, folder, sweep_jobs(config)[1]))
    return with_chosen(config, chosen), chosen


def summarise_again(folder: Path) -> dict[str, Any]:
    """Table and figure of the jobs that are there, e.g. of an ablation still running. Raises ConfigError for none."""
    rundir = RunDir.open(folder)
    config = RunConfig.model_validate(rundir.manifest()["config"])
    return _summarise(config, folder, list(rundir.store("sessions").rows()))


def _summarise(config: RunConfig, folder: Path, sessions: list[dict[str, Any]]) -> dict[str, Any]:
    from benchmarks.ablation.pages import write_evidence
    from benchmarks.ablation.table import summarise_jobs

    tuned, chosen = tuned_config(config, folder)
    shared, arms = plan_jobs(tuned)
    results = _results(tuned, folder, (*shared, *arms))
    if not any(r["arm"] != "shared" for r in results):
        raise ConfigError(f"no job of {folder} is finished yet")
    document = summarise_jobs(tuned, results, sessions, chosen)
    write_evidence(document, folder)
    return document


def _results(config: RunConfig, folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    found = (result_of(config, folder, j) for j in jobs)
    return [r for r in found if r is not None]


def _phase(
    log: JsonlStore, config: RunConfig, folder: Path, jobs: Mapping[str, Sequence[Job]], console: Console
) -> None:
    """Jobs one kind after the other; how long it took, and where, is a row."""
    began, done = time.monotonic(), 0
    try:
        for label, members in jobs.items():
            done += _run_all(config, folder, members, label, console)
    finally:
        if done:
            row = {"phase": list(jobs)[-1], "jobs": done, "seconds": time.monotonic() - began}
            log.append({"key": f"session-{len(list(log.rows()))}", **row, **about_this_machine(config)})


def _run_all(config: RunConfig, folder: Path, jobs: Sequence[Job], label: str, console: Console) -> int:
    """Do the jobs that are owed; returns how many were."""
    owed = [j for j in jobs if result_of(config, folder, j) is None]
    with console.progress(label, len(jobs)) as advance:
        advance(len(jobs) - len(owed))

        def done(job: Job, seconds: float) -> None:
            advance(1)
            console.note(f"{job.name}: {seconds:.0f} s")

        if owed:
            _in_processes(config, folder, owed, done)
    return len(owed)


def _in_processes(config: RunConfig, folder: Path, owed: Sequence[Job], done: Callable[[Job, float], object]) -> None:
    """Each job in one of `ablate.processes` processes of one thread; a failure waits until the others are done."""
    # read when the child imports torch; two threads on a busy machine are ten times slower than one
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")}
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    failed: list[tuple[Job, HintdistillError]] = []
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(config.ablate.processes, len(owed)), mp_context=context) as pool:
            futures = {pool.submit(_timed, config.model_dump(mode="json"), folder, job): job for job in owed}
            for future in as_completed(futures):
                job = futures[future]
                try:
                    done(job, future.result())
                except HintdistillError as error:
                    failed.append((job, error))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    if failed:
        job, first = failed[0]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise type(first)(f"job {job.name}{more}: {first.message}", hint="--resume does what is owed")


def _timed(config: dict[str, Any], folder: Path, job: Job) -> float:
    import torch

    torch.set_num_threads(1)
    began = time.monotonic()
    run_job(RunConfig.model_validate(config), folder, job)
    return time.monotonic() - began


def about_this_machine(config: RunConfig) -> dict[str, Any]:
    """What a reader needs to judge the times: processor, processes, commit."""
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

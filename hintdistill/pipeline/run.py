"""Do a whole run in its folder: the stages in order, or rounds of them, and uploads at the end."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError
from hintdistill.core.storage import disk_errors
from hintdistill.core.trust import require_trusted
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.continuing import changed_settings, settings_before
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.shards import run_shard, shard_of
from hintdistill.pipeline.stages import check_inputs, run_stages, stage_named, write_report
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.verify import repair
from hintdistill.training import processes


def run_folder(config: RunConfig, name: str) -> Path:
    """Return the folder of the run: `run.dir`, or `runs/<name>-<UTC time>`."""
    if config.run.dir is not None:
        return Path(config.run.dir)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return Path("runs") / f"{name}-{now}"


def check_named_folder(file: Path, overrides: Sequence[str]) -> None:
    """Raise ConfigError if the run folder to continue has another schema, before its configuration is read.

    An older configuration has many keys and paths with another meaning in this release, which would otherwise cause the
    first errors. The folder is that of the override `run.dir=`; without one, the file's folder if the file is a run's
    own config.yaml.
    """
    named = [o.removeprefix("run.dir=") for o in overrides if o.startswith("run.dir=")]
    folder = Path(named[-1]).expanduser() if named else file.parent
    if named or file.name == "config.yaml":
        RunDir(folder).check_continues()


def run(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    until: str = "report",
    console: Console | None = None,
    trust: bool = False,
    file: Path | None = None,
) -> Path:
    """Run the stages up to and including `until`, and return the run folder.

    With several processes, the main one runs the stages; the others wait, and train with it.

    Args:
        trust: whether settings read from a run folder from elsewhere may run code, download and contact servers.
        file: the config file, by which `run FILE --resume` finds this run later.

    Raises:
        ConfigError: the folder is in use, or `until` is not a stage.
        UntrustedError: settings from elsewhere need one of these without `trust`.
        DiskError: the folder cannot be written.
        HintdistillError: an error stopped a stage; everything done before it is kept.
    """
    stage_named(until)
    if (part := shard_of(RunDir(folder))) is not None and resume:
        return run_shard(config, folder.parent.parent, part, until=until, console=console, trust=trust)
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    console, named = console or Console(), {"file": str(file.resolve())} if file is not None else {}
    with in_use(config, trust), disk_errors(folder):
        return _run(config, folder, resume, until, console, named)


def _run(config: RunConfig, folder: Path, resume: bool, until: str, console: Console, named: Mapping[str, str]) -> Path:
    if processes.world() == 1:
        return _lead(config, folder, resume, until, console, named)
    from hintdistill.engines.transformers import pick_device

    device = pick_device(config.run.device)
    if not processes.is_main():
        processes.follow(device)
        return folder
    with processes.leading(device):
        return _lead(config, folder, resume, until, console, named)


def _lead(
    config: RunConfig, folder: Path, resume: bool, until: str, console: Console, named: Mapping[str, str]
) -> Path:
    check_inputs(config, until)
    if config.run.rounds is not None and until != "report":
        raise ConfigError(f"run.rounds is a loop over all stages and cannot end at {until!r}", hint="unset run.rounds")
    RunDir(folder).require_whole()
    before = settings_before(folder) if resume else None
    rundir = RunDir.create(folder, config, resume=resume)
    try:
        rundir.note(until=until, finished=False, **named)
        if before is not None:
            for line in changed_settings(before, rundir.manifest()["config"]):
                console.note(line)
            for item in repair(rundir):
                console.warn(str(item))
        if config.run.rounds is not None:
            from hintdistill.pipeline.rounds import run_rounds

            run_rounds(config, rundir, console)
        else:
            ctx = RunContext(config, rundir, console)
            run_stages(ctx, until=until)
            if until != "report":
                write_report(ctx)
        if until == "report":
            push(config, folder, console)
        rundir.note(finished=True)
    finally:
        rundir.close()
    return folder


def report_only(folder: Path, console: Console | None = None, *, trust: bool = False) -> None:
    """Make the missing measurements and rewrite the report of an existing run.

    A run of an older schema keeps its manifest and its student's card, which records how the student was made. Unless
    `trust` is set, things that a run from elsewhere names (an environment, a model to download) are left out with a
    warning.

    Raises:
        InputError, ConfigError: see `RunDir.reopen` and `RunDir.config`.
    """
    console, rundir = console or Console(), RunDir.reopen(folder)
    try:
        config, unknown = rundir.config()
        if unknown:
            console.note(
                f"{folder} was made by an older release and has keys unknown to this one: {', '.join(unknown)}"
            )
        with in_use(config, trust), disk_errors(folder):
            run_stages(RunContext(config, rundir, console), first="report")
    finally:
        rundir.close()


def push(
    config: RunConfig, folder: Path, console: Console, repository: str | None = None, *, private: bool = True
) -> str | None:
    """Upload the run's student to `repository`, or else to `train.push`. Return None if neither is set or nothing was
    trained.

    Raises:
        ConfigError: there is no token, or the repository name is invalid.
        InputError: `repository` is given but the run has no student.
        ServiceError: the hub cannot be reached or refuses.
    """
    if repository is None and config.train.push is not None:
        require_trusted(f"push the student to {config.train.push}")
    student, name = folder / "student", repository or config.train.push
    if name is None or (repository is None and not student.is_dir()):
        return None
    from hintdistill.training.push import push_student

    where = push_student(student, name, private)
    console.note(f"pushed {student} → {where}")
    return where

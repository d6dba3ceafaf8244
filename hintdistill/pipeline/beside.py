"""`hintdistill train RUN --beside NAME`: train another student on the stored targets of a run. Nothing is scored
again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hintdistill.config import RunConfig
from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError
from hintdistill.pipeline import train
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir

FOLDER = "students"
"""Name of the folder in the run folder that contains one folder for each student."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def train_beside(run: Path, name: str, overrides: Sequence[str], console: Console, *, trust: bool = False) -> Path:
    """Train a student with other training settings into RUN/students/NAME; the run's own student stays unchanged.

    A second call with the same settings does nothing; after a kill, training continues from the last checkpoint.

    Args:
        overrides: `train.…=value` items that change the run's own settings.
        trust: see `pipeline.run.run`.

    Raises:
        ConfigError: an override is not a training setting, would change the stored targets, or the name is invalid.
        HintdistillError: training failed; see `train.into`.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a valid folder name: use at most 64 letters, digits, dots and dashes")
    if others := [o for o in overrides if not o.startswith("train.")]:
        raise ConfigError(
            f"{others[0]} is not a training setting, and the stored targets were made with the run's own settings",
            hint="--beside takes only train.…=value; start another run for other settings",
        )
    rundir = RunDir.reopen(run)
    try:
        foreign = rundir.config()[0].foreign
        own, config = (load_config(rundir.settings_file(), list(o)).of_folder(foreign) for o in ((), overrides))
        if own.run.rounds is not None:
            raise ConfigError(
                "each round of this run has its own targets", hint="--beside works only on a run without rounds"
            )
        _same_targets(own, config)
        folder = rundir.path / FOLDER / name
        folder.parent.mkdir(exist_ok=True)
        with in_use(config, trust):
            train.into(RunContext(config, rundir, console), folder)
    finally:
        rundir.close()
    return folder


def _same_targets(own: RunConfig, config: RunConfig) -> None:
    """Raise ConfigError if the rescore stage would store different targets under these settings."""
    one, other = (c.train.effective_recipe for c in (own, config))
    differ = {
        "train.recipe.teacher": one.teacher != other.teacher,
        "train.targets": config.train.target_source != own.train.target_source,
        "train.anchor.candidates": own.train.anchor.candidates != config.train.anchor.candidates,
        "train.twins.per_finding": own.train.twins.per_finding != config.train.twins.per_finding,
        "train.watch.steps": own.train.watch.steps != config.train.watch.steps,
        "train.hold": own.train.hold.model_dump(exclude={"weight"}) != config.train.hold.model_dump(exclude={"weight"}),
    }
    if named := [key for key, differs in differ.items() if differs]:
        raise ConfigError(
            f"{', '.join(named)} changes which targets are scored and stored, but --beside trains on the stored ones",
            hint="start another run with this setting",
        )

"""TensorBoard, trackio and wandb, through the Trainer's own integrations; their files go into the training's folder.

Nothing is tracked by default; `metrics.jsonl` is always written. TensorBoard and trackio write files and send nothing.
wandb sends names, settings and metrics to its server unless WANDB_MODE=offline. Environment variables of the trackers
that are already set are left unchanged: TENSORBOARD_LOGGING_DIR, TRACKIO_DIR, TRACKIO_SPACE_ID, WANDB_DIR, WANDB_MODE,
WANDB_PROJECT.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import netrc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hintdistill.config import TrainSection
from hintdistill.core.errors import ConfigError
from hintdistill.core.trust import require_trusted
from hintdistill.core.variables import environment_variables

TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "hintdistill"
OFFLINE = ("offline", "disabled", "dryrun")


def trackers_arguments(config: TrainSection, work: Path, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the keyword arguments of TrainingArguments and the environment variables that the trackers need.

    Args:
        work: the training's folder; each tracker gets `work/tracker/<its name>`.
        name: the run's name; a training run resumed under the same name continues the same tracker run.
    """
    if not config.trackers:
        return {"report_to": "none"}, {}
    if "wandb" in config.trackers:
        require_trusted("send metrics to wandb")
    folder = (work / "tracker").resolve()
    keywords = {
        "report_to": list(config.trackers),
        "run_name": name,
        "project": PROJECT,
        "trackio_static_space_id": False,
    }
    wanted = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard")},
        "trackio": {"TRACKIO_DIR": str(folder / "trackio")},
        # wandb makes its own folder in there, and would send what is printed, which may hold names of traces
        "wandb": {
            "WANDB_DIR": str(folder),
            "WANDB_PROJECT": PROJECT,
            "WANDB_CONSOLE": "off",
            "WANDB_RUN_ID": name,
            "WANDB_RESUME": "allow",
        },
    }
    if os.environ.get("WANDB_MODE") in OFFLINE:
        # offline there is nothing to look the run up in
        del wanted["wandb"]["WANDB_RESUME"]
    environment = {k: v for tracker in config.trackers for k, v in wanted[tracker].items() if k not in os.environ}
    return keywords, environment


@contextlib.contextmanager
def tracking(config: TrainSection, work: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the keywords of `trackers_arguments`, with the trackers ready for a Trainer that is created and run inside.

    Meanwhile trackers that print to standard output print to standard error. At the end a wandb run is closed, so that
    the next training in this process gets a separate one.

    Raises:
        ConfigError: see `check_trackers`.
    """
    check_trackers(config)
    keywords, environment = trackers_arguments(config, work, name)
    if not config.trackers:
        yield keywords
        return
    with environment_variables(environment), contextlib.redirect_stdout(sys.stderr):
        if "wandb" in config.trackers:
            # wandb falls back to a folder for temporary files where this one does not exist
            Path(os.environ["WANDB_DIR"]).mkdir(parents=True, exist_ok=True)
        try:
            yield keywords
        finally:
            if "wandb" in config.trackers:
                import wandb

                if wandb.run is not None:
                    wandb.finish()


@contextlib.contextmanager
def one_trackio_folder(config: TrainSection, folder: Path) -> Iterator[None]:
    """Give trackio the shared `folder`, because it reads its folder only once per process."""
    needed = "trackio" in config.trackers and "TRACKIO_DIR" not in os.environ
    with environment_variables({"TRACKIO_DIR": str((folder / "tracker" / "trackio").resolve())} if needed else {}):
        yield


def check_trackers(config: TrainSection) -> None:
    """Raise an error before any work if a tracker cannot be used.

    Raises:
        ConfigError: a package is missing, or wandb has no key.
    """
    missing = [t for t in config.trackers if installed(t) is None]
    if missing:
        raise ConfigError(
            f"train.trackers names {', '.join(missing)}, but it is not installed here",
            hint=f"pip install {' '.join(missing)}, or 'hintdistill[trackers]' for all of them",
        )
    if "wandb" in config.trackers and os.environ.get("WANDB_MODE") not in OFFLINE and not _wandb_key():
        raise ConfigError(
            "train.trackers names wandb, but there is no key for it",
            hint="run `wandb login` or set WANDB_API_KEY; WANDB_MODE=offline keeps everything here",
        )


def installed(tracker: str) -> str | None:
    """Return a tracker's version; None if it is not installed."""
    if importlib.util.find_spec(tracker) is None:
        return None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(tracker)
    return None


def _wandb_key() -> bool:
    """Return whether wandb would find a key, in the environment or in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False

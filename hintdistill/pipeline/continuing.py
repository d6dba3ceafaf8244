"""Find the run to continue, the settings that have changed since, and the command that continues it.

A run's manifest records its config file, the last stage requested, and whether the run was finished.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError, HintdistillError
from hintdistill.pipeline.stages import STAGES
from hintdistill.pipeline.store import RUN_SCHEMA, RunDir

RUNS = Path("runs")
"""The folder for runs that name no folder."""
_NAMED = re.compile(r"-\d{8}T\d{6}Z")
_FROM = {
    "run.seed": "read",
    "run.model": "inject",
    "run.initial": "inject",
    "run.dtype": "rescore",
    "traces": "read",
    "critic": "critique",
    "inject": "inject",
    "rescore": "rescore",
    "train": "train",
    "train.hold": "read",
    "train.twins": "inject",
    "train.anchor": "rescore",
    "rollout": "report",
    "report": "report",
}
"""Key or section → the first stage whose rows it affects; the longest matching entry applies."""


def runs_of(file: Path) -> list[Path]:
    """Return the run folders in `runs/` that were made from a config file, oldest first."""
    found = []
    for folder in sorted(RUNS.glob("*")):
        with contextlib.suppress(HintdistillError):
            manifest = RunDir(folder).manifest()
            made_of = manifest.get("file")
            before = made_of is None and _NAMED.fullmatch(folder.name.removeprefix(file.stem)) is not None
            if manifest.get("schema") == RUN_SCHEMA and (made_of == str(file.resolve()) or before):
                found.append(folder)
    return found


def is_unfinished(folder: Path, until: str) -> bool:
    """Return whether a run has work left up to and including the stage `until`."""
    run = RunDir(folder)
    manifest = run.manifest()
    if "finished" not in manifest:
        return run.index("report") is None
    return not manifest["finished"] or STAGES.index(manifest.get("until", "report")) < STAGES.index(until)


def only_unfinished(file: Path, until: str) -> Path | None:
    """Return the one unfinished run of a config file; None if there is none.

    Raises:
        ConfigError: there are several; the error lists them.
    """
    left = [folder for folder in runs_of(file) if is_unfinished(folder, until)]
    if len(left) > 1:
        raise ConfigError(
            f"{len(left)} runs of {file} are not finished: {', '.join(map(str, left))}",
            hint=f"choose one: {command(left[-1], until)}",
        )
    return left[0] if left else None


def command(folder: Path, until: str = "report", *, trust: bool = False) -> str:
    """Return the command that continues the run in a folder."""
    parts = ["hintdistill", "run", str(folder), "--resume"]
    parts += ["--until", until] if until != "report" else []
    return shlex.join([*parts, "--trust"] if trust else parts)


def settings_before(folder: Path) -> dict[str, Any] | None:
    """Return the configuration that a run was last continued with; None if none can be read."""
    with contextlib.suppress(HintdistillError):
        run = RunDir(folder)
        return dict(run.manifest()["config"]) if run.is_run() else None
    return None


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each key whose value has changed: both values, and what is computed again."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key != "run.dir":
            said = f"{key} was {_short(old.get(key))} and is now {_short(new.get(key))}"
            names = [".".join(key.split(".")[:n]) for n in range(key.count(".") + 1, 0, -1)]
            stage = next((_FROM[n] for n in names if n in _FROM), None)
            made = (
                "nothing is computed again"
                if stage is None
                else f"rows that depend on it are computed again, from {stage} onwards"
            )
            lines.append(f"changed: {said}; {made}")
    return lines


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Stopped(KeyboardInterrupt):
    """A signal that asks a process to end."""


@contextlib.contextmanager
def says_how_to_continue(folder: Path, until: str, *, trust: bool = False) -> Iterator[None]:
    """Add the command that continues the run, as a note, to any declared error raised inside.

    A termination signal (SIGTERM, SIGHUP) stops the run like Ctrl-C, and the command line then prints the same note.
    """
    with ends_as_ctrl_c():
        try:
            yield
        except Exception as error:
            if RunDir(folder).is_run():
                error.add_note(line(folder, until, trust))
            raise


def line(folder: Path, until: str, trust: bool) -> str:
    """Return the sentence with the command that continues a run."""
    unsigned = True
    with contextlib.suppress(HintdistillError):
        unsigned = not RunDir(folder).is_own()
    return f"Continue with: {command(folder, until, trust=trust and unsigned)}"


@contextlib.contextmanager
def ends_as_ctrl_c() -> Iterator[None]:
    """Treat a termination signal (SIGTERM, SIGHUP) like Ctrl-C, unless another handler is installed."""

    def stop(number: int, frame: Any) -> None:
        raise _Stopped

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""`hintdistill verify`: check that the files of a run folder are unchanged since they were written, and move damaged
ones out.

Targets and students carry checksums; rows, indexes and documents must have their expected form. Nothing is deleted:
damaged files are moved to `damaged/` in the run folder, and --resume makes them again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hintdistill.core.errors import InputError
from hintdistill.core.storage import read_json, write_atomic
from hintdistill.pipeline.store import SHARDS, RunDir
from hintdistill.rescoring.store import TargetStore
from hintdistill.training.checkpoints import broken
from hintdistill.training.checksums import wrong_files

FOLDER = "damaged"


@dataclass(frozen=True)
class Damage:
    """Describe a file whose bytes have changed since it was written."""

    path: Path
    what: str
    """The damage found."""
    redone: str
    """How the file is made again."""
    lines: tuple[int, ...] = ()
    """Damaged lines of a file of rows, counted from 1; the other lines are intact."""

    def __str__(self) -> str:
        return f"damaged: {self.path}: {self.what}; {self.redone}"


def damages(run: RunDir) -> list[Damage]:
    """Return the damaged parts of a run folder, including those in its rounds. Raises InputError if its manifest cannot
    be read."""
    run.manifest()
    within = (p for pattern in ("rounds/*/run", f"{SHARDS}/*-of-*") for p in run.path.glob(pattern) if p.is_dir())
    folders = [run.path, *sorted(within)]
    return [damage for folder in folders for damage in _of(folder)]


def repair(run: RunDir) -> list[Damage]:
    """Move damaged parts out of a folder that the caller has open, and return them.

    Raises:
        InputError: see `damages`.
    """
    # what a kill left of files that were being written: none has its name yet
    for left in sorted(run.path.rglob("*.writing")):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    found = damages(run)
    for damage in found:
        _keep(run.path, damage)
        if damage.lines:
            _without(damage.path, damage.lines)
        elif damage.path.is_dir():
            shutil.rmtree(damage.path)
        else:
            damage.path.unlink(missing_ok=True)
    return found


def verify(folder: Path) -> list[Damage]:
    """Open a run folder, find its damaged parts, and move them out; see `repair`.

    Raises:
        InputError: there is no run, or its manifest cannot be read.
        ConfigError: another process has it open.
    """
    with ExitStack() as opened:
        run = RunDir.reopen(folder, parts=True)
        opened.callback(run.close)
        for path in sorted(folder.glob(f"{SHARDS}/*-of-*")):
            if RunDir(path).is_run():
                # nobody may be working in them
                opened.callback(RunDir.reopen(path).close)
        return repair(run)


def _of(folder: Path) -> Iterator[Damage]:
    again = "--resume makes it again"
    for path in sorted(folder.glob("*.jsonl")):
        if bad := _bad_lines(path, "key"):
            said = f"{len(bad)} lines are not rows, for example line {bad[0]}"
            yield Damage(path, said, "--resume makes them again", tuple(bad))
    for path in sorted(folder.glob("index/*.json")):
        yield from _json(path, list, again)
    for part, what in TargetStore(folder / "targets").damaged():
        yield Damage(part, what, "--resume scores its rows again")
    if wrong := wrong_files(folder / "student"):
        said = "; ".join(f"{name} {what}" for name, what in wrong.items())
        yield Damage(folder / "student", said, "--resume trains it again, from the last checkpoint")
    for path in sorted(folder.glob("train/*/*.json")):
        yield from _json(path, object, "--resume measures it again")
    for path in sorted(folder.glob("train/*/metrics.jsonl")):
        if bad := _bad_lines(path, "step"):
            yield Damage(
                path, f"{len(bad)} lines are not rows, for example line {bad[0]}", "they are left out", tuple(bad)
            )
    for path in sorted(folder.glob("train/*/checkpoint-*")):
        if path.is_dir() and (seen := broken(path, every_byte=True)) is not None:
            yield Damage(path, seen, "--resume continues from the one before it, or from the start")
    for name in ("report.json", "controls.json", "rounds.json"):
        if (folder / name).is_file():
            yield from _json(folder / name, object, "--resume writes it again")


def _json(path: Path, kind: type, redone: str) -> Iterator[Damage]:
    try:
        read_json(path, kind)
    except InputError as error:
        yield Damage(path, error.message.removeprefix(f"{path} "), redone)


def _bad_lines(path: Path, key: str) -> list[int]:
    """Return the lines that are not an object with that key; an incomplete last line counts as missing, not as
    damaged."""
    bad = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line.decode("utf-8", "surrogatepass"))
                sound = isinstance(row, dict) and key in row
            except (ValueError, RecursionError):
                sound = False
            if not sound:
                bad.append(number)
    return bad


def _keep(root: Path, damage: Damage) -> None:
    """Copy a file into `damaged/`, under the next free name."""
    if not damage.path.exists():
        return
    name = "-".join(damage.path.relative_to(root).parts)
    (root / FOLDER).mkdir(exist_ok=True)
    number = 1
    while (kept := root / FOLDER / (name if number == 1 else f"{name}.{number}")).exists():
        number += 1
    shutil.copytree(damage.path, kept, symlinks=True) if damage.path.is_dir() else shutil.copy2(damage.path, kept)


def _without(path: Path, lines: tuple[int, ...]) -> None:
    """Remove lines from a file."""
    out = set(lines)
    with path.open("rb") as file:
        kept = b"".join(line for number, line in enumerate(file, 1) if number not in out)
    write_atomic(path, kept.decode("utf-8", "surrogatepass"))

"""Find and delete the parts of a run folder that can be removed, after measuring their size.

Checkpoints and half-written folders are never read again once a student exists. Students of earlier rounds and stored
targets are deleted only on request, because that loses something.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hintdistill.pipeline.store import SHARDS, RunDir


@dataclass(frozen=True)
class Removable:
    """Describe a file or folder that can be removed."""

    path: Path
    bytes: int
    loses: str
    """What can no longer be done without it; empty if nothing is lost."""


def removable(run: RunDir, *, students: bool = False, targets: bool = False) -> list[Removable]:
    """Return the parts of a run folder that can be removed, including those in the rounds of a loop.

    Args:
        run: the run's folder.
        students: also return the students of earlier rounds; the last good one is `student/` of the loop.
        targets: also return stored targets.
    """
    found = [
        Removable(path, _bytes(path), loses)
        for folder in (run.path, *sorted(run.path.glob("rounds/*/run")))
        for path, loses in _of_run(folder, folder != run.path and students, targets)
    ]
    if "merged" in run.manifest() and (run.path / SHARDS).is_dir():
        found.append(Removable(run.path / SHARDS, _bytes(run.path / SHARDS), ""))
    return [item for item in found if item.bytes]


def clean(run: RunDir, items: list[Removable]) -> int:
    """Delete `items` while holding the run's lock, and return the number of bytes freed.

    Raises:
        ConfigError: another process is working in the folder.
    """
    locked = RunDir.reopen(run.path)
    try:
        for item in items:
            shutil.rmtree(item.path) if item.path.is_dir() else item.path.unlink()
    finally:
        locked.close()
    return sum(item.bytes for item in items)


def _of_run(folder: Path, students: bool, targets: bool) -> Iterator[tuple[Path, str]]:
    if (folder / "student").is_dir():
        for checkpoint in sorted(folder.glob("train/*/checkpoint-*")):
            yield checkpoint, ""
    for pattern in ("*.writing", ".*.writing"):
        for left in sorted(folder.glob(pattern)):
            yield left, ""
    if students and (folder / "student").is_dir():
        yield folder / "student", "the loop cannot be continued, and the student of this round is lost"
    if targets and (folder / "targets").is_dir():
        yield folder / "targets", "another training, here or elsewhere, must first score again"


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(p.stat().st_size for p in files)

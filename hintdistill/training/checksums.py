"""Checksums of a student's folder or a checkpoint, to detect files that have changed since they were written.

They are in `checksums.json` in the same folder. The model card is left out, because the report rewrites it. This module
does not import torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hintdistill.core.errors import InputError
from hintdistill.core.storage import checksum, read_json, sync, write_atomic

FILE = "checksums.json"
LEFT_OUT = (FILE, "README.md")


def write_checksums(folder: Path) -> None:
    """Flush every file of a folder to disk and write its checksums."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in LEFT_OUT)
    sums = {}
    for path in files:
        sync(path)
        sums[path.relative_to(folder).as_posix()] = [path.stat().st_size, checksum(path)]
    write_atomic(folder / FILE, json.dumps(sums, indent=1))
    for path in (p for p in folder.rglob("*") if p.is_dir()):
        sync(path)


def wrong_files(folder: Path) -> dict[str, str]:
    """Return the problems found in the files of a student or a checkpoint, by name; empty if there are none.

    It is also empty if there is no folder, or if the folder has no checksums because an older release wrote it.
    """
    if not (folder / FILE).is_file():
        return {}
    try:
        sums: dict[str, Any] = read_json(folder / FILE, dict)
    except InputError as error:
        return {FILE: error.message.removeprefix(f"{folder / FILE} ")}
    return {name: what for name, said in sums.items() if (what := _wrong(folder / name, said))}


def _wrong(path: Path, said: Any) -> str | None:
    if not path.is_file():
        return "is missing"
    if not isinstance(said, list) or len(said) != 2:
        return "has no checksum"
    if path.stat().st_size != said[0]:
        return f"has {path.stat().st_size} bytes instead of {said[0]}"
    return None if checksum(path) == said[1] else "has changed since it was written"

"""Checksums of a student's folder, and of a checkpoint's: what was written is what is there.

They are in `checksums.json` beside the files. The model card is left out: the report writes it again. Torch-free.
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
    """Have every file of a folder on disk and write the checksums beside them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in LEFT_OUT)
    sums = {}
    for path in files:
        sync(path)
        sums[path.relative_to(folder).as_posix()] = [path.stat().st_size, checksum(path)]
    write_atomic(folder / FILE, json.dumps(sums, indent=1))
    for path in (p for p in folder.rglob("*") if p.is_dir()):
        sync(path)


def wrong_files(folder: Path) -> dict[str, str]:
    """Return what is wrong with the files of a student or a checkpoint, by name; empty if nothing is.

    So it is where there is no folder, and where it has no checksums because a release before wrote it.
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
        return "is not there"
    if not isinstance(said, list) or len(said) != 2:
        return "has no checksum"
    if path.stat().st_size != said[0]:
        return f"has {path.stat().st_size} bytes of {said[0]}"
    return None if checksum(path) == said[1] else "has other bytes than were written"

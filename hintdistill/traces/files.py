"""Turn paths into files: a path is a file, a folder, a glob, a zip, a table or a data set on the hub. Files that must
not be read are named, never followed.

Folders are untrusted: a symbolic link is read only if it stays inside its folder, and anything that is not a regular
file is refused (a pipe would block for ever). Archives are handled in `archives.py`.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hintdistill.core.errors import InputError
from hintdistill.core.types import Source
from hintdistill.traces.archives import Member, members
from hintdistill.traces.compressed import COMPRESSED, inner_name, open_compressed
from hintdistill.traces.hub import HubSet, hub_rows, hub_set, is_hub_set
from hintdistill.traces.options import Failure
from hintdistill.traces.tables import SAVED, TABLES, is_saved_set, saved_tables, table_rows

SUFFIXES = (".jsonl", ".json", ".ndjson", ".traj", ".har")
ARCHIVES = (".zip", ".eval")


@dataclass(frozen=True)
class TraceFile:
    """Describe a file to read, or a file that is not read together with the reason."""

    name: str
    """Path, followed by `!/member` for a file in an archive."""
    path: Path
    member: Member | None = None
    refused: Failure | None = None
    foreign: bool = False
    """Whether the file is not read because its ending is unknown; this is reported, but is not a failure."""
    hub: HubSet | None = None

    def open(self) -> IO[bytes]:
        """Open the file and return its bytes from the start. Raises OSError, or BadZipFile if an archive is damaged."""
        if self.member is not None:
            return self.member.open()
        if self.path.suffix.lower() in COMPRESSED:
            return open_compressed(self.path)
        return self.path.open("rb", buffering=1 << 20)

    def rows(self) -> Iterator[tuple[str, Any]] | None:
        """Return the place and value of each row if the file is a table or a data set on the hub, else None. Iterating
        may raise OSError."""
        if self.hub is not None:
            return ((f"split {split}, row {n}", row) for split, n, row in hub_rows(self.hub))
        if self.member is None and self.path.suffix.lower() in TABLES:
            return ((f"row {n}", row) for n, row in enumerate(table_rows(self.path), 1))
        return None

    @property
    def kind(self) -> str:
        """Return the kind of file suggested by its name, for the line that counts unread files."""
        return Path(self.name).suffix or "no ending"


def not_read(files: Sequence[TraceFile]) -> str | None:
    """Return one line about the files of unknown kinds, grouped by ending; None if there are none."""
    counted: dict[str, int] = {}
    for file in files:
        counted[file.kind] = counted.get(file.kind, 0) + 1
    if not counted:
        return None
    listed = ", ".join(f"{n} {kind}" for kind, n in sorted(counted.items()))
    shown = "; ".join(file.name for file in files[:3])
    return (
        f"not read, because they are not trace files of a known kind: {listed} "
        f"({shown}{', …' if len(files) > 3 else ''})"
    )


def trace_files(paths: Sequence[str | Path], key: str | None = None) -> list[Path]:
    """Return the trace files and archives under `paths`, in order, without opening any. Errors mention `key`, the
    setting that names the paths.

    Raises:
        InputError: a path does not exist, or a folder contains no file with a known ending.
    """
    return [file.path for file in _walk_all(paths, key) if not file.foreign]


def all_files(paths: Sequence[str | Path]) -> Iterator[TraceFile]:
    """Yield every file under `paths`, including members of archives, in a stable order; files that are not read carry
    the reason.

    Raises:
        InputError: a path does not exist, or a folder contains no file with a known ending.
    """
    for file in _walk_all(paths):
        if file.refused is None and not file.foreign and file.path.suffix.lower() in ARCHIVES:
            for member in members(file.path, SUFFIXES):
                if isinstance(member, Failure):
                    yield TraceFile(member.source.file, file.path, refused=member)
                else:
                    beside = file.path.suffix.lower() == ".eval" and not member.info.filename.startswith("samples/")
                    yield TraceFile(member.name, file.path, member=member, foreign=member.foreign or beside)
        else:
            yield file


def _walk_all(paths: Sequence[str | Path], key: str | None = None) -> Iterator[TraceFile]:
    seen: set[Path] = set()
    for given in paths:
        if is_hub_set(given):
            yield TraceFile(str(given), Path(str(given)), hub=hub_set(str(given)))
    for path in (found for given in paths if not is_hub_set(given) for found in _expand(given, key)):
        for file in [TraceFile(str(path), path)] if path.is_file() else _folder(path):
            if file.path not in seen:
                seen.add(file.path)
                yield file


def _expand(given: str | Path, key: str | None) -> list[Path]:
    path = Path(given)
    if path.is_dir() or path.is_file():
        return [path]
    if glob.has_magic(str(given)):
        found = sorted(p for p in map(Path, glob.glob(str(given), recursive=True)) if p.is_file() or p.is_dir())  # noqa: PTH207
        if not found:
            raise InputError(f"nothing matches {given}", hint="quote the pattern, so that the shell does not expand it")
        # a folder that a pattern matches beside its own files would only name them again
        return [p for p in found if not any(q in found for q in p.parents)]
    hint = (
        f"{key} names it"
        if key
        else "a path in a config file is relative to the file; other paths are relative to the working directory"
    )
    raise InputError(f"no such file or folder: {path}", hint=hint)


def _folder(folder: Path) -> list[TraceFile]:
    root = folder.resolve()
    found: list[TraceFile] = []
    for where, folders, names in os.walk(folder, followlinks=False):
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        entries = [_look(Path(where) / name, root) for name in (*names, *links)]
        found += _of_saved_set(Path(where), names, entries) if is_saved_set(names) else entries
    if all(f.foreign for f in found):
        endings = ", ".join("*" + s for s in (*SUFFIXES, *ARCHIVES, *TABLES)) + ", also with .gz or .zst"
        raise InputError(f"no trace files in {folder}", hint=f"searched for {endings}")
    return sorted(found, key=lambda f: f.path)


def _of_saved_set(folder: Path, names: list[str], entries: list[TraceFile]) -> list[TraceFile]:
    """Return the tables of a set that `datasets` saved, without the other files that it writes."""
    tables = saved_tables(folder, names)
    kept = [e for e in entries if e.path.name not in SAVED]
    return [e for e in kept if e.path.suffix.lower() != ".arrow" or e.path.name in tables]


def is_trace_name(name: str) -> bool:
    """Return whether a file's name has one of the known endings."""
    lower = name.lower()
    if lower.endswith(COMPRESSED):
        inner = Path(inner_name(lower)).suffix
        return inner in SUFFIXES or not inner
    return Path(lower).suffix in (*SUFFIXES, *ARCHIVES, *TABLES)


def _look(path: Path, root: Path) -> TraceFile:
    """Return one directory entry as read, foreign or refused."""

    def refuse(reason: str, message: str) -> TraceFile:
        return TraceFile(str(path), path, refused=Failure(Source(file=str(path), position="file"), reason, message))

    if path.is_symlink():
        try:
            target = path.resolve()
        except (OSError, RuntimeError):
            # Python before 3.13 says it with a RuntimeError
            return refuse("symlink", "a symbolic link that leads back to itself, which is not followed")
        if not target.is_relative_to(root):
            return refuse("symlink", f"a symbolic link out of the folder, to {target}, which is not followed")
        if not target.is_file():
            return refuse("symlink", "a symbolic link to something that is not a file, which is not followed")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return refuse("unreadable", f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(mode):
        return refuse("not_a_file", "neither a regular file nor a folder, so it is not opened")
    return TraceFile(str(path), path, foreign=not is_trace_name(path.name))

"""Compute content keys, write whole files, and append rows: the operations on a run folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hintdistill.core.errors import DiskError, HintdistillError, InputError


def content_key(*parts: Any) -> str:
    """Return a hash of JSON-able parts, 24 hexadecimal digits; equal parts give equal keys in every process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


REPAIR = "`hintdistill verify` lists the damaged files of the folder, and --resume makes them again"
"""Advice about a damaged file of a run folder."""


def write_atomic(path: Path, text: str) -> None:
    """Write a temporary file, flush it to disk and rename it: a reader sees either the old file or the
    new one, never a partial file.

    Lone surrogates, which a trace may contain, are written in the same way as in rows.
    """
    with writing_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8", "surrogatepass"))


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Write a text that comes in pieces, as `write_atomic` does; only the current piece is in memory."""
    with writing_aside(path) as aside, aside.open("wb") as file:
        for piece in pieces:
            file.write(piece.encode("utf-8", "surrogatepass"))


@contextmanager
def writing_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. When the block ends, the file is flushed to disk and replaces `path`; after
    an error it is deleted."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file grew beyond a limit",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EIO: "the disk reports an error",
}
_PATHS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EXDEV,
    errno.ENXIO,
    errno.ESTALE,
)
"""Error numbers for paths that are missing or of the wrong kind."""
_SAID = re.compile(
    r"No space left|StorageFull|Disk quota|File too large|FileTooLarge|Read-only file system|ReadOnlyFilesystem"
    r"|PytorchStreamWriter failed writing|code: (?:28|27|30|122)\b|\[errno (?:28|27|30|122)\]",
    re.IGNORECASE,
)
"""Wording of disk errors in libraries that are not written in Python."""


def disk_trouble(error: BaseException, folder: Path | None = None) -> DiskError | None:
    """Return this package's error for an exception that a disk or a path caused, here or in a library; None for any
    other.

    Args:
        folder: the folder being written, used if the exception names no file.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and number in _PATHS and error.filename is not None:
        return DiskError(
            f"{os.fsdecode(error.filename)}: {error.strerror}", hint="check that path; complete files are not lost"
        )
    if number not in _DISK and not (isinstance(error, Exception) and _SAID.search(str(error))):
        return None
    named = getattr(error, "filename", None)
    where = (os.fsdecode(named) if isinstance(named, str | bytes) else None) or (str(folder) if folder else "a file")
    what = (
        _DISK[number] if number in _DISK else f"the disk reports an error ({str(error).strip().splitlines()[0][:160]})"
    )
    return DiskError(
        f"cannot write {where}: {what}",
        hint="free some space, or make it writable; complete files are kept, and --resume continues",
    )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise DiskError if a full or read-only disk causes an error inside the block, at any depth."""
    try:
        yield
    except HintdistillError:
        raise
    except Exception as error:
        trouble = disk_trouble(error, folder)
        if trouble is None:
            raise
        raise trouble from error


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path, kind: type, *, hint: str = REPAIR) -> Any:
    """Return the JSON value of a file, which must be of type `kind`: dict or list.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is empty, not JSON, of another type, or cannot be read; the error names it and carries
            `hint`.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", hint=hint) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", hint=hint) from None
    if not isinstance(value, kind):
        named = {dict: "object", list: "array", float: "number"}.get(kind, kind.__name__)
        raise InputError(f"{path} does not hold a JSON {named}", hint=hint)
    return value


LINE = "`hintdistill verify` removes damaged lines from a folder; --resume makes them again"


def append_line(path: Path, text: str) -> None:
    """Append `text` and a line end in one write, and flush it to disk. After a failure, the file is unchanged."""
    data = memoryview(text.encode("utf-8", "surrogatepass") + b"\n")
    # no buffer, which would be written when the file is closed after a failure
    at = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(at).st_size
        try:
            while data:
                data = data[os.write(at, data) :]
            os.fsync(at)
        except BaseException:
            # a full disk, or an interrupt: half a row would run into the next one
            with suppress(OSError):
                os.ftruncate(at, before)
            raise
    finally:
        os.close(at)


def parse_row(line: bytes, where: str) -> dict[str, Any]:
    """Return the row of a line. Raises InputError if it is not JSON or has no key; `where` is its position."""
    try:
        row = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}", hint=LINE) from None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        raise InputError(f"{where}: not an object with a key", hint=LINE)
    return row


PAUSE = 0.1
"""Seconds between writes of rows that cost little to make again."""
BLOCK = 1 << 20
"""Number of bytes read at once to find the end of the last whole row."""


class JsonlStore:
    """Store append-only rows, one JSON object with a `key` per line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked = False

    def _drop_torn_line(self) -> None:
        """Remove an incomplete last line that an interrupted process left. Only a writer may do so, because another
        process may be writing."""
        if self._checked or not self.path.is_file():
            return
        self._checked = True
        with self.path.open("rb+") as file:
            end = whole = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - BLOCK)
                file.seek(start)
                if (last := file.read(end - start).rfind(b"\n")) >= 0:
                    end = start + last + 1
                    break
                end = start
            if end < whole:
                file.truncate(end)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row in a single write, and flush it to disk before returning."""
        self.extend([row])

    def extend(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append several rows in a single write."""
        if not rows:
            return
        self._drop_torn_line()
        append_line(self.path, "\n".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in rows))

    @contextmanager
    def batched(self, seconds: float = PAUSE) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
        """Give a function that appends rows, those of `seconds` in a single write; all are written when the block ends, however
        it ends. What a kill takes is owed again.

        A file system that takes milliseconds to have a write on disk would take longer than many a row does to make.
        """
        waiting, last = list[Mapping[str, Any]](), 0.0

        def append(rows: Sequence[Mapping[str, Any]]) -> None:
            nonlocal last
            waiting.extend(rows)
            if waiting and time.monotonic() - last >= seconds:
                self.extend(waiting)
                waiting.clear()
                last = time.monotonic()

        try:
            yield append
        finally:
            self.extend(waiting)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every row, oldest first. Raises InputError, which names the line, if a line is not JSON."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                yield parse_row(line, f"{self.path}, line {number}")

    def by_key(self) -> dict[str, dict[str, Any]]:
        """Return the newest row of each key."""
        return {row["key"]: row for row in self.rows()}

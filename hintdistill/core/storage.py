"""Content keys, whole-file writes, and append-only rows: what a run folder is made of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hintdistill.core.errors import InputError


def content_key(*parts: Any) -> str:
    """Hash of JSON-able parts, 24 hexadecimal digits; equal parts give equal keys in every process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


REPAIR = "`hintdistill verify` says what of the folder is damaged, and --resume makes it again"
"""What to do about a damaged file of a run folder."""


def write_atomic(path: Path, text: str) -> None:
    """Write a file aside, have it on disk, and rename it: a reader sees the old one or the new one, never half.

    Lone surrogates, which a trace may hold, are written as they are in rows.
    """
    with writing_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8", "surrogatepass"))


@contextmanager
def writing_aside(path: Path) -> Iterator[Path]:
    """A path to write a file to; it is on disk and takes the place of `path` when the block ends, and goes where it fails."""
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


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def read_json(path: Path, kind: type, *, hint: str = REPAIR) -> Any:
    """The JSON value of a file, which is a `kind`: dict or list.

    Raises:
        FileNotFoundError: it is not there.
        InputError: it is empty, no JSON, of another kind, or cannot be read; names it and says `hint`.
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
        raise InputError(f"{path} holds no JSON {'object' if kind is dict else 'array'}", hint=hint)
    return value


LINE = "`hintdistill verify` takes damaged lines out of a folder; --resume makes them again"


class JsonlStore:
    """Append-only rows, one JSON object with a `key` per line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked = False

    def _drop_torn_line(self) -> None:
        """Cut off what a kill left of the last line; only a writer may, because another process may be mid-write."""
        if self._checked or not self.path.is_file():
            return
        self._checked = True
        with self.path.open("rb+") as file:
            data = file.read()
            if data and not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row in a single write, and have it on disk before going on."""
        self.extend([row])

    def extend(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append several rows in a single write."""
        if not rows:
            return
        self._drop_torn_line()
        data = "".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) + "\n" for r in rows)
        with self.path.open("ab") as file:
            file.write(data.encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, oldest first. Raises InputError for a line that is not JSON, naming it."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line.decode("utf-8", "surrogatepass"))
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{self.path}, line {number}: not valid JSON: {error}", hint=LINE) from None
                if not isinstance(row, dict) or not isinstance(row.get("key"), str):
                    raise InputError(f"{self.path}, line {number}: no object with a key", hint=LINE)
                yield row

    def by_key(self) -> dict[str, dict[str, Any]]:
        """The newest row of each key."""
        return {row["key"]: row for row in self.rows()}

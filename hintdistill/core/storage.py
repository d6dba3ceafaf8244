"""Content keys, whole-file writes, and append-only rows: what a run folder is made of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hintdistill.core.errors import InputError


def content_key(*parts: Any) -> str:
    """Hash of JSON-able parts, 24 hexadecimal digits; equal parts give equal keys in every process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def write_atomic(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that a reader sees the old one or the new one, never half."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


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
                    yield json.loads(line.decode("utf-8", "surrogatepass"))
                except ValueError as error:
                    raise InputError(
                        f"{self.path}, line {number}: not valid JSON: {error}",
                        hint="delete that line; --resume makes it again",
                    ) from None

    def by_key(self) -> dict[str, dict[str, Any]]:
        """The newest row of each key."""
        return {row["key"]: row for row in self.rows()}

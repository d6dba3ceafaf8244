"""Paths to records: JSON lines, a JSON array, one JSON object.

A broken record costs itself: one bad line is one failure with its number, and the rest of the file is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.errors import InputError
from hintdistill.types import Source

SUFFIXES = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True)
class Record:
    """One decoded JSON value and where it stood."""

    value: Any
    source: Source


@dataclass(frozen=True)
class Malformed:
    """Bytes that are not a JSON value."""

    source: Source
    reason: str
    message: str


def trace_files(paths: Sequence[str | Path]) -> list[Path]:
    """The trace files under `paths`, folders searched recursively, in sorted order.

    Raises:
        InputError: a path does not exist, or a folder holds no file with a known ending.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
            if not found:
                raise InputError(f"no trace files in {path}", hint=f"looked for {', '.join('*' + s for s in SUFFIXES)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"no such file or folder: {path}", hint="traces.path names the traces to read")
    return files


def read_records(file: Path) -> Iterator[Record | Malformed]:
    """Every record of one file. An empty file is one failure."""
    data = file.read_bytes()
    if not data.strip():
        yield Malformed(Source(file=str(file), position="line 1"), "empty_file", "the file is empty")
        return
    if file.suffix == ".json":
        yield from _json_document(file, data)
    else:
        yield from _json_lines(file, data)


def _json_document(file: Path, data: bytes) -> Iterator[Record | Malformed]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        # many a `.json` is JSON lines; a file whose first line parses alone is read as such
        first = data.split(b"\n", 1)[0]
        if b"\n" in data.strip() and _loads(first) is not None:
            yield from _json_lines(file, data)
            return
        yield Malformed(Source(file=str(file), position=_place(error)), "not_json", f"not valid JSON: {error}")
        return
    if isinstance(value, list) and not _is_conversation(value):
        if not value:
            yield Malformed(Source(file=str(file), position="line 1"), "empty_file", "the list is empty")
        for i, item in enumerate(value, 1):
            yield Record(item, Source(file=str(file), position=f"record {i}"))
    else:
        yield Record(value, Source(file=str(file), position="record 1"))


def _json_lines(file: Path, data: bytes) -> Iterator[Record | Malformed]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        source = Source(file=str(file), position=f"line {number}")
        try:
            yield Record(json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")), source)
        except UnicodeDecodeError as error:
            yield Malformed(source, "not_utf8", f"not valid UTF-8: {error.reason} at byte {error.start}")
        except ValueError as error:
            yield Malformed(source, "not_json", f"not valid JSON: {error}")
        except RecursionError:
            yield Malformed(source, "too_deep", "nested too deeply")


def _is_conversation(value: list[Any]) -> bool:
    """A bare list of chat messages is one trace, not many records."""
    return bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _loads(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _place(error: Exception) -> str:
    return f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "line 1"

"""The findings of a report on disk: one per line, parsed on access, so that a report with many findings needs little
memory.

In report.json each finding is also one line, so that `read_document` can find it without parsing all of them.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

from hintdistill.core.storage import writing_aside

BEGIN, END = b' "findings": [\n', (b" ],\n", b" ]\n")


class Entries(Sequence[dict[str, Any]]):
    """Give access to findings in a file, in any order."""

    def __init__(self, file: BinaryIO, offsets: Sequence[int]) -> None:
        """Store an open file and the offset of each finding's line."""
        self._file, self._offsets = file, array("Q", offsets)

    def line(self, at: int) -> bytes:
        """Return a finding as one line of JSON."""
        self._file.seek(self._offsets[at])
        return self._file.readline().rstrip(b",\n")

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, at: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, at: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return dict(json.loads(self.line(at % len(self)).decode("utf-8", "surrogatepass")))

    def __del__(self) -> None:
        self._file.close()


class Collected:
    """Collect findings in any order, and return them as `Entries` in the order of their numbers."""

    def __init__(self, number: int) -> None:
        """Expect this many findings."""
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        self._offsets = [0] * number

    def add(self, number: int, entry: Mapping[str, Any]) -> None:
        """Keep a finding."""
        self._offsets[number] = self._file.tell()
        self._file.write(_line(entry) + b"\n")

    def entries(self) -> Entries:
        """Return all findings."""
        self._file.flush()
        return Entries(self._file, self._offsets)


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a report document as JSON with one finding per line; raise an error for NaN, which is not valid JSON."""
    with writing_aside(path) as aside, aside.open("wb") as file:
        rest = json.dumps({**document, "findings": []}, indent=1, ensure_ascii=False, allow_nan=False)
        head, mark, tail = rest.partition('\n "findings": []')
        assert mark
        file.write(_bytes(head) + b"\n" + BEGIN)
        findings = document["findings"]
        for at in range(len(findings)):
            line = findings.line(at) if isinstance(findings, Entries) else _line(findings[at])
            file.write(b"  " + line + (b",\n" if at + 1 < len(findings) else b"\n"))
        file.write(b" ]" + _bytes(tail))


def read_document(path: Path) -> dict[str, Any]:
    """Read a report document; if this release wrote it, its findings stay in the file.

    Raises:
        ValueError: the file is not JSON.
    """
    rest, offsets = list[bytes](), list[int]()
    file = path.open("rb")
    begun = False
    while line := file.readline():
        at = file.tell() - len(line)
        if begun and line in END:
            begun = False
        if begun:
            offsets.append(at + 2)
        else:
            rest.append(line)
        begun = begun or line == BEGIN
    if offsets:
        file.seek(offsets[0])
        if not file.readline().startswith(b'{"'):
            # one of a release before, which wrote a finding over many lines
            offsets.clear()
    if not offsets:
        file.close()
        return dict(json.loads(path.read_bytes().decode("utf-8", "surrogatepass")))
    document = dict(json.loads(b"".join(rest).decode("utf-8", "surrogatepass")))
    return document | {"findings": Entries(file, offsets)}


def _line(entry: Mapping[str, Any]) -> bytes:
    return _bytes(json.dumps(entry, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

"""Read rows that stay on disk: memory holds only the offset of each row and a hash of its key.

A run of 100,000 traces has as many rows in every file. A stage needs one row at a time, and the set of keys. So a file
is read once, a hash and an offset of each row are kept (16 bytes), and a row is parsed on access.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, overload

import numpy as np

from hintdistill.core.errors import InputError
from hintdistill.core.storage import LINE, JsonlStore, parse_row

T = TypeVar("T")
_KEY = re.compile(rb'\{"key":"([^"\\]+)"')
"""Beginning of a row that this package wrote."""


def _hashed(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _sorted(hashes: array[int], offsets: array[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes in ascending order with their offsets; equal hashes keep their order."""
    found = np.array(hashes, np.uint64)
    order = np.argsort(found, kind="stable")
    return found[order], np.array(offsets, np.uint64)[order]


class _File:
    """Hold a file of rows open for reading at any offset. It is reopened in another process and after a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: BinaryIO | None = None

    def line(self, at: int, most: int = -1) -> bytes:
        """Return the line at an offset, or at most the given number of its bytes."""
        if self._stream is None:
            self._stream = self.path.open("rb")
        self._stream.seek(at)
        return self._stream.readline(most)

    def key(self, at: int) -> str:
        """Return the key of the row at an offset."""
        begun = _KEY.match(self.line(at, 128))
        return begun.group(1).decode("utf-8", "surrogatepass") if begun else str(self.row(at)["key"])

    def row(self, at: int) -> dict[str, Any]:
        """Return the row at an offset. Raises InputError, with file and offset, if there is no valid row."""
        return parse_row(self.line(at), f"{self.path}, byte {at}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stream": None}

    def __del__(self) -> None:
        if self._stream is not None:
            self._stream.close()


class Rows:
    """Give access to the newest row of each key of a file. Rows appended later are not seen."""

    def __init__(self, store: JsonlStore) -> None:
        """Index the file. Raises InputError, which names the line, for a line without a key."""
        self.path = store.path
        self._file = _File(store.path)
        hashes, offsets = array("Q"), array("Q")
        for key, at in _keys(store.path):
            hashes.append(_hashed(key))
            offsets.append(at)
        self._hashes, self._offsets = _sorted(hashes, offsets)

    def __len__(self) -> int:
        """Return the number of distinct keys; keys with equal hashes count once."""
        return len(np.unique(self._hashes))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.place(key) is not None

    def place(self, key: str) -> int | None:
        """Return the offset of the newest row with a key; None if there is no such row."""
        wanted = np.uint64(_hashed(key))
        end = int(np.searchsorted(self._hashes, wanted, side="right"))
        while end and self._hashes[end - 1] == wanted:
            at = int(self._offsets[end - 1])
            # two keys may share a hash
            if self._file.key(at) == key:
                return at
            end -= 1
        return None

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the newest row with a key, parsed; None if there is no such row. Raises InputError if its line is
        damaged."""
        at = self.place(key)
        return None if at is None else self._file.row(at)

    def __getitem__(self, key: str) -> dict[str, Any]:
        row = self.get(key)
        if row is None:
            raise KeyError(key)
        return row

    def each(self, keys: Iterable[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yield each key with its newest row, parsed; None if there is none.

        Keys mostly come in the order of the file, which is then read on from row to row.
        """
        in_order = len(self) == len(self._hashes) and self.path.is_file()
        with ExitStack() as opened:
            stream = opened.enter_context(self.path.open("rb")) if in_order else None
            next_at = 0
            for key in keys:
                at, line = next_at, b"" if stream is None else stream.readline()
                begun = _KEY.match(line) if line.endswith(b"\n") else None
                if begun is None or begun.group(1) != key.encode("utf-8", "surrogatepass"):
                    found = self.place(key)
                    at, line = (next_at, b"") if found is None else (found, self._file.line(found))
                    if stream is not None:
                        # the next one is expected behind this one
                        stream.seek(at + len(line))
                next_at = at + len(line)
                yield key, parse_row(line, f"{self.path}, byte {at}") if line else None

    def grouped(self, keys: Iterable[str], field: str) -> Grouped:
        """Return the rows with these keys, grouped by the string in `field`; see `Grouped`."""
        return Grouped(self, keys, field)


class Grouped:
    """Group rows by one of their fields, in the order of their keys: e.g. all critiques or all injections of a
    trace."""

    def __init__(self, rows: Rows, keys: Iterable[str], field: str) -> None:
        """Read the field of each row once. Raises InputError if the file lacks a key."""
        self.field, self._file = field, rows._file
        self._begins = re.compile(rb'\{"key":"[^"\\]+","' + field.encode() + rb'":"([^"\\]+)"')
        hashes, offsets = array("Q"), array("Q")
        lacking = list[str]()
        for key in keys:
            if (at := rows.place(key)) is None:
                lacking.append(key)
                continue
            hashes.append(_hashed(self._value(at)))
            offsets.append(at)
        if lacking:
            raise InputError(f"{rows.path} lacks {len(lacking)} rows, the first {lacking[0]}", hint=LINE)
        self._hashes, self._offsets = _sorted(hashes, offsets)

    def _value(self, at: int) -> str:
        # the row's second field, of rows that this package wrote
        begun = self._begins.match(self._file.line(at, 256))
        return begun.group(1).decode("utf-8", "surrogatepass") if begun else str(self._file.row(at)[self.field])

    def values(self) -> Iterator[str]:
        """Return the value of each row, in file order."""
        return (self._value(int(at)) for at in np.sort(self._offsets))

    def of(self, value: str) -> list[dict[str, Any]]:
        """Return the rows with this value, in the order of their keys."""
        wanted = np.uint64(_hashed(value))
        start, end = (int(np.searchsorted(self._hashes, wanted, side=s)) for s in ("left", "right"))
        found = (self._file.row(int(at)) for at in self._offsets[start:end])
        return [row for row in found if row[self.field] == value]


class KeySet(Set[str]):
    """Hold a set of keys as contiguous bytes, in a fifth of the memory of a set of strings."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Read the keys, a bounded number at a time."""
        parts = [np.array([k.encode("utf-8", "surrogatepass") for k in some]) for some in chunks(keys, 1 << 14)]
        self._keys = np.unique(np.concatenate(parts)) if parts else np.array([], "S1")

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return (k.decode("utf-8", "surrogatepass") for k in self._keys)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        wanted = np.bytes_(key.encode("utf-8", "surrogatepass"))
        at = int(np.searchsorted(self._keys, wanted))
        return at < len(self._keys) and self._keys[at] == wanted


class OnDemand(Mapping[str, T], Generic[T]):
    """Map keys to values that are made on access and not kept."""

    def __init__(self, keys: Iterable[str], make: Callable[[str], T]) -> None:
        self._keys, self._make = dict.fromkeys(keys), make

    def __getitem__(self, key: str) -> T:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class Lazy(Sequence[T], Generic[T]):
    """Represent a sequence that is made anew on each iteration and not kept in memory."""

    def __init__(self, make: Callable[[], Iterator[T]], length: int | None = None) -> None:
        """Take the function that makes the members. Without `length`, the first call of `len` counts them."""
        self._make, self._length = make, length

    def __iter__(self) -> Iterator[T]:
        return self._make()

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self._make())
        return self._length

    @overload
    def __getitem__(self, at: int) -> T: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...

    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        """Return one member or a slice, by iterating up to it."""
        if isinstance(at, slice):
            return list(itertools.islice(self._make(), *at.indices(len(self))))
        if at < 0:
            at += len(self)
        for item in itertools.islice(self._make(), at, at + 1):
            return item
        raise IndexError(at)


class Picked(Sequence[T], Generic[T]):
    """Select some members of a sequence in a given order. Each is fetched on access and not kept."""

    def __init__(self, source: Sequence[T], numbers: Sequence[int]) -> None:
        self._source, self._numbers = source, array("Q", numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> T: ...

    @overload
    def __getitem__(self, at: slice) -> Picked[T]: ...

    def __getitem__(self, at: int | slice) -> T | Picked[T]:
        """Return one member, or a slice whose members are not fetched yet."""
        if isinstance(at, slice):
            return Picked(self._source, self._numbers[at])
        return self._source[self._numbers[at]]


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items each, in order; the last list may be shorter."""
    walk = iter(items)
    while found := list(itertools.islice(walk, size)):
        yield found


def _keys(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the key and the offset of each whole line. Raises InputError for a line without a key."""
    if not path.is_file():
        return
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            begun = _KEY.match(line)
            key = begun.group(1).decode("utf-8", "surrogatepass") if begun else None
            yield key or parse_row(line, f"{path}, line {number}")["key"], at
            at += len(line)

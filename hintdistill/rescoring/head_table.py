"""Store the heads of many targets in arrays, 120 bytes each instead of a kilobyte for objects; heads are made on
access.

Most stored targets are anchors, three or four per trace. Text that many rows share is stored once and referred to by
number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, overload

import numpy as np
import pyarrow as pa

from hintdistill.core.scores import Measurement, TargetHead

AT_ONCE = 1024
"""Number of heads that are made together during iteration."""
_NO_NUMBER = np.iinfo(np.int32).min
_WORDS = (
    "trace_id",
    "kind",
    "split",
    "error_class",
    "fidelity",
    "candidate",
    "choice",
    "guards",
    "reasons",
    "versions",
)
"""Columns for which a row stores the number of its value."""
_NUMBERS = ("step", "span_start", "span_end", "insert_at", "first_position")
_ROW = np.dtype(
    [
        ("part", "i4"),
        ("group", "i4"),
        ("row", "i4"),
        ("length", "i4"),
        *((name, "i4") for name in _NUMBERS),
        ("action_start", "i4"),
        ("measured", "i4"),
        *((name, "i4") for name in _WORDS),
        ("recorded_gap", "f4"),
        ("level", "i1"),
        ("accepted", "?"),
    ]
)
_OPTIONAL = ("position", "instead_id", "legal_mass_gain", "odds", "rise", "placebo_odds", "placebo_odds_median")
_MEASURED = tuple(f.name for f in fields(Measurement))
_WHOLE = {"position": int, "instead_id": int, "flips": bool}
Decided = Mapping[int, tuple[bool, tuple[str, ...]]]
"""Row number → whether the current gate accepts the row, and its reasons if not."""


class _Words:
    """Number the distinct values of a column."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.values, self._make, self._numbers = list[Any](), make, dict[Any, int]()

    def number(self, value: Any) -> int:
        """Return the number of a value."""
        if value not in self._numbers:
            self._numbers[value] = len(self.values)
            self.values.append(self._make(value))
        return self._numbers[value]

    def numbers(self, column: pa.Array) -> np.ndarray:
        """Return the number of each value of an Arrow column, int32 [N]."""
        if pa.types.is_list(column.type):
            return np.array([self.number(tuple(value)) for value in column.to_pylist()], np.int32)
        encoded = column.dictionary_encode(null_encoding="encode")
        known = np.array([self.number(value) for value in encoded.dictionary.to_pylist()], np.int32)
        return known[encoded.indices.to_numpy(zero_copy_only=False)]


class HeadTable:
    """Store the heads of all rows, with the location of each row and the length of its sequence."""

    def __init__(self) -> None:
        """Start without rows; `add` adds them, and `close` completes the table."""
        self._words = {name: _Words(json.loads if name == "versions" else _itself) for name in _WORDS}
        self._parts, self._key_parts, self._measured_parts = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
        self._measured_rows = 0
        self.keys = np.zeros(0, "S1")
        self.rows = np.zeros(0, _ROW)
        self.measured = np.zeros((0, len(_MEASURED)))
        """float64 [M, fields of a measurement]; NaN if a field is None."""

    def add(self, part: int, groups: Sequence[int], table: pa.Table) -> None:
        """Add the light columns of a part; `groups` gives the number of rows in each of its groups."""
        table = table.combine_chunks()
        column = {name: _one(table.column(name)) for name in table.column_names}
        rows = np.zeros(len(table), _ROW)
        rows["part"] = part
        rows["group"] = np.repeat(np.arange(len(groups)), groups)
        rows["row"] = np.concatenate([np.arange(n) for n in groups]) if groups else 0
        rows["length"] = np.diff(column["step_ids"].offsets.to_numpy())
        for name in _NUMBERS:
            rows[name] = column[name].to_numpy()
        rows["accepted"] = column["accepted"].to_numpy(zero_copy_only=False)
        rows["recorded_gap"] = column["recorded_gap"].to_numpy(zero_copy_only=False)
        # parts of earlier releases lack some
        for name, none in (("level", -1), ("action_start", _NO_NUMBER)):
            rows[name] = column[name].fill_null(none).to_numpy() if name in column else none
        for name, missing in (("candidate", ""), ("choice", "only")):
            if name not in column:
                rows[name] = self._words[name].number(missing)
        for name in _WORDS:
            if name in column:
                rows[name] = self._words[name].numbers(column[name])
        rows["measured"] = self._measure(column["measurement"])
        self._parts.append(rows)
        self._key_parts.append(np.array([k.encode("utf-8", "surrogatepass") for k in column["key"].to_pylist()]))

    def _measure(self, column: pa.StructArray) -> np.ndarray:
        """Add measurements, and return the number of each row's measurement, int32 [N], -1 without one."""
        known = column.is_valid().to_numpy(zero_copy_only=False)
        some = column.filter(pa.array(known))
        values = np.empty((len(some), len(_MEASURED)))
        for i, f in enumerate(fields(Measurement)):
            if some.type.get_field_index(f.name) >= 0:
                values[:, i] = some.field(f.name).cast(pa.float64()).to_numpy(zero_copy_only=False)
            else:
                values[:, i] = np.nan if f.default in (None, MISSING) else float(f.default)
        numbers = np.full(len(column), -1, np.int32)
        numbers[known] = np.arange(self._measured_rows, self._measured_rows + len(some))
        self._measured_rows += len(some)
        self._measured_parts.append(values)
        return numbers

    def close(self) -> None:
        """Combine the added parts."""
        if self._parts:
            self.rows, self.keys = np.concatenate(self._parts), np.concatenate(self._key_parts)
            self.measured = np.concatenate(self._measured_parts)
        self._parts, self._key_parts, self._measured_parts = [], [], []

    def __len__(self) -> int:
        return len(self.rows)

    def head(self, number: int, decided: Decided) -> TargetHead:
        """Return the head of a row."""
        return next(self.heads(np.array([number]), decided))

    def heads(self, numbers: np.ndarray, decided: Decided) -> Iterator[TargetHead]:
        """Yield the heads of some rows, with the current gate's decisions."""
        for begin in range(0, len(numbers), AT_ONCE):
            some = numbers[begin : begin + AT_ONCE]
            for number, key, row in zip(some.tolist(), self.keys[some].tolist(), self.rows[some].tolist(), strict=True):
                said = dict(zip(_ROW.names or (), row, strict=True))
                words = {name: self._words[name].values[said[name]] for name in _WORDS}
                if number in decided:
                    said["accepted"], words["reasons"] = decided[number]
                yield TargetHead(
                    key=key.decode("utf-8", "surrogatepass"),
                    step=said["step"],
                    span=(said["span_start"], said["span_end"]),
                    action_start=None if said["action_start"] == _NO_NUMBER else said["action_start"],
                    insert_at=said["insert_at"],
                    level=None if said["level"] < 0 else said["level"],
                    measurement=None if said["measured"] < 0 else self._measurement(said["measured"]),
                    accepted=said["accepted"],
                    recorded_gap=None if np.isnan(said["recorded_gap"]) else said["recorded_gap"],
                    **words,
                )

    def _measurement(self, number: int) -> Measurement:
        said: dict[str, Any] = {}
        for name, value in zip(_MEASURED, self.measured[number].tolist(), strict=True):
            # where a field may be None, that is not a number here
            said[name] = None if value != value and name in _OPTIONAL else _WHOLE.get(name, float)(value)
        return Measurement(**said)

    def having(self, numbers: np.ndarray, column: str, values: Sequence[str]) -> np.ndarray:
        """Return the rows among those given that have one of these values in a column of words."""
        wanted = [i for i, value in enumerate(self._words[column].values) if value in values]
        return numbers[np.isin(self.rows[column][numbers], wanted)]


class HeadList(Sequence[TargetHead]):
    """Represent the heads of some rows of a table in a given order."""

    def __init__(self, table: HeadTable, numbers: np.ndarray, decided: Decided) -> None:
        """Take the rows' numbers, and the current gate's decisions for some of them."""
        self.table, self.numbers, self.decided = table, numbers, decided

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[TargetHead]:
        return self.table.heads(self.numbers, self.decided)

    @overload
    def __getitem__(self, at: int) -> TargetHead: ...

    @overload
    def __getitem__(self, at: slice) -> HeadList: ...

    def __getitem__(self, at: int | slice) -> TargetHead | HeadList:
        if isinstance(at, slice):
            return HeadList(self.table, self.numbers[at], self.decided)
        return self.table.head(int(self.numbers[at]), self.decided)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def having(self, column: str, values: Sequence[str]) -> HeadList:
        """Return the heads with one of these values in a column of words, in the same order."""
        return HeadList(self.table, self.table.having(self.numbers, column, values), self.decided)

    def taken(self, places: Sequence[int] | np.ndarray) -> HeadList:
        """Return the heads at these positions, in this order."""
        return HeadList(self.table, self.numbers[np.asarray(places, np.int64)], self.decided)


def _one(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one contiguous array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _itself(value: Any) -> Any:
    return value

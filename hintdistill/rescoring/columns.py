"""Convert the columns of a part of targets to heads and whole targets.

Arrow's lists become numpy arrays directly; only text and placebos, which are few, pass through Python objects.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hintdistill.core.errors import InputError
from hintdistill.core.scores import Measurement, Placebo, Target, TargetHead

TARGET_SCHEMA = 3
READABLE = (2, 3)
"""Schemas that can be read. Schema 2 has no odds and no level: its hints are judged only by the fall of the decision
token."""
META = b"hintdistill.targets"
"""Entry of a part's metadata with the number of its schema."""

_AGAIN = "delete it; --resume makes it again"
_PER_TOKEN = (
    "support_ids",
    "teacher_logprobs",
    "plain_logprobs",
    "teacher_tail",
    "plain_tail",
    "teacher_sampled",
    "plain_sampled",
)
_ADDED = ("level", "candidate", "choice", "action_start", "views")
"""Columns that parts of earlier releases lack: the first three came with schema 3, the others later."""
_TEXTS = ("tokens", "instead", "hint", "placebos", "views")


def context_hash(ids: Sequence[int] | np.ndarray) -> str:
    """Return the SHA-256 of context ids as little-endian int32, with which a foreign trainer checks its own context."""
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()


def open_part(part: Path) -> pq.ParquetFile:
    """Open a part for reading.

    Raises:
        InputError: it is not a parquet file, or another program or version wrote it; the message names it.
    """
    try:
        file = pq.ParquetFile(part)
        version = (file.schema_arrow.metadata or {}).get(META)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{part} is not a readable parquet file: {error}", hint=_AGAIN) from None
    if version is None:
        raise InputError(f"{part} does not contain hintdistill targets", hint="another program wrote it; move it away")
    if version not in [str(n).encode() for n in READABLE]:
        known = " and ".join(map(str, READABLE))
        raise InputError(f"{part} has target schema {version.decode()}; this release reads {known}")
    return file


def read_columns(part: Path, file: pq.ParquetFile, group: int | None, columns: Sequence[str] | None = None) -> pa.Table:
    """Return some columns, or all, of a group of rows or of the whole part. Raises InputError, which names the part, if
    they are damaged."""
    try:
        names = None if columns is None else [c for c in columns if c not in _ADDED or c in file.schema_arrow.names]
        return file.read(columns=names) if group is None else file.read_row_group(group, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{part} is damaged: {error}", hint=_AGAIN) from None


class Heads:
    """Turn light columns into heads; values that many rows share are stored once."""

    COLUMNS = (
        "key",
        "trace_id",
        "step",
        "kind",
        "split",
        "error_class",
        "level",
        "candidate",
        "choice",
        "fidelity",
        "accepted",
        "reasons",
        "guards",
        "insert_at",
        "first_position",
        "span_start",
        "span_end",
        "action_start",
        "recorded_gap",
        "measurement",
        "versions",
        "step_ids",
    )

    def __init__(self) -> None:
        self._versions: dict[str, Mapping[str, str]] = {}
        self._words: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, table: pa.Table) -> Iterator[tuple[TargetHead, int, int]]:
        """Yield each row's head, with the numbers of tokens of its context and its step."""
        lengths = np.diff(_array(table, "step_ids").offsets.to_numpy())
        rows = table.drop_columns(["step_ids"]).to_pylist()
        for row, length in zip(rows, lengths, strict=True):
            start = row.pop("first_position")
            yield TargetHead(**self.fields(row)), start, int(length)

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a head from a row of the file."""
        measured = row["measurement"]
        text = {n: row[n] for n in ("trace_id", "kind", "split", "error_class", "fidelity")}
        return {
            **{n: None if value is None else sys.intern(value) for n, value in text.items()},
            "key": row["key"],
            "step": row["step"],
            "span": (row["span_start"], row["span_end"]),
            "action_start": row.get("action_start"),
            "level": row.get("level"),
            "candidate": row.get("candidate", ""),
            "choice": sys.intern(row.get("choice", "only")),
            "insert_at": row["insert_at"],
            "measurement": Measurement(**measured) if measured else None,
            "guards": self._words.setdefault(words := tuple(row["guards"]), words),
            "accepted": row["accepted"],
            "reasons": self._words.setdefault(words := tuple(row["reasons"]), words),
            "recorded_gap": row["recorded_gap"],
            "versions": self._made_by(row["versions"]),
        }

    def _made_by(self, text: str) -> Mapping[str, str]:
        if text not in self._versions:
            self._versions[text] = json.loads(text)
        return self._versions[text]


class Columns:
    """Hold all columns of a group of rows, and return single targets from them."""

    def __init__(self, part: Path, table: pa.Table) -> None:
        self.part, self.nbytes = part, table.nbytes
        lists = [n for n in table.column_names if pa.types.is_list(table.schema.field(n).type)]
        self._lists = {n: _array(table, n) for n in lists}
        self._small = table.select([n for n in table.column_names if n not in lists or n in (*_TEXTS, *_WORDS)])
        self._read = Heads()

    def __len__(self) -> int:
        return len(self._small)

    def target(self, row: int) -> Target:
        """Return the target of a row. Raises InputError, naming file and row, if the row is not a valid target."""
        small = self._small.slice(row, 1).to_pylist()[0]
        arrays = {name: self._flat(name, row) for name in ("context_ids", "step_ids", "block_ids", "legal_ids")}
        nested = {name: self._nested(name, row) for name in _PER_TOKEN[:3]}
        flat = {name: self._flat(name, row) for name in _PER_TOKEN[3:]}
        if problem := _problem(small, arrays, nested, flat):
            raise InputError(
                f"{self.part}: row {small['key']}: {problem}", hint="delete the part; --resume makes it again"
            )
        fields = self._read.fields(small)
        fields |= {name: values.astype(np.int64) for name, values in arrays.items()}
        fields |= {name: values.astype(np.float32) for name, values in flat.items()}
        fields["sampler_logprobs"] = self._sampled_with(row, len(arrays["step_ids"]), small["key"])
        return Target(
            **fields,
            support_ids=_padded(*nested["support_ids"], -1, np.int64),
            teacher_logprobs=_padded(*nested["teacher_logprobs"], -np.inf, np.float32),
            plain_logprobs=_padded(*nested["plain_logprobs"], -np.inf, np.float32),
            hint=small["hint"],
            placebos=tuple(
                Placebo(
                    p["kind"],
                    p["text"],
                    np.array(p["hint_effect"], np.float32),
                    Measurement(**p["measurement"]),
                    p.get("odds"),
                )
                for p in small["placebos"]
            ),
            tokens=tuple(small["tokens"]),
            instead=tuple(small["instead"]),
            views={v["name"]: (v["insert_at"], np.array(v["block_ids"], np.int64)) for v in small.get("views") or ()},
        )

    def _sampled_with(self, row: int, length: int, key: str) -> np.ndarray:
        """Return the recorded log-probabilities of a row's step; empty if there are none, or if an earlier release
        wrote the part."""
        if "sampler_logprobs" not in self._lists:
            return np.zeros(0, np.float32)
        found = self._flat("sampler_logprobs", row).astype(np.float32)
        if len(found) not in (0, length):
            raise InputError(
                f"{self.part}: row {key}: sampler_logprobs covers {len(found)} tokens of {length}", hint=_AGAIN
            )
        return found

    def _flat(self, name: str, row: int) -> np.ndarray:
        """Return one row of a list column."""
        column = self._lists[name]
        start, stop = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
        return column.values[start:stop].to_numpy(zero_copy_only=False)

    def _nested(self, name: str, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one row of a column of lists of lists: all values in sequence, and the length of each inner list."""
        column = self._lists[name]
        start, stop = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
        ends = column.values.offsets[start : stop + 1].to_numpy()
        return column.values.values[int(ends[0]) : int(ends[-1])].to_numpy(zero_copy_only=False), np.diff(ends)


_WORDS = ("reasons", "guards")
"""Columns with lists of short texts."""


def _array(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _problem(
    small: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    nested: Mapping[str, tuple[np.ndarray, np.ndarray]],
    flat: Mapping[str, np.ndarray],
) -> str | None:
    """Return the reason why a row is not a valid target; None if it is valid."""
    steps = len(arrays["step_ids"])
    for name in _PER_TOKEN:
        found = len(nested[name][1]) if name in nested else len(flat[name])
        if found != steps:
            return f"{name} covers {found} tokens, but the step has {steps}"
    counts = np.stack([n for _, n in nested.values()])
    if len(differ := np.flatnonzero((counts != counts[0]).any(0))):
        return f"the support and the log-probabilities of token {differ[0]} differ in length"
    if not all(np.isfinite(flat[n].astype(np.float32)).all() for n in ("teacher_sampled", "plain_sampled")):
        return "a log-probability of a sampled token is missing or not finite"
    if (action := small.get("action_start")) is not None and not -1 <= action < steps:
        return f"action_start is {action}, but the step has {steps} tokens"
    if small["context_sha256"] != context_hash(arrays["context_ids"]):
        return "the context does not match its hash"
    return None


def _padded(values: np.ndarray, counts: np.ndarray, fill: float, dtype: Any) -> np.ndarray:
    """Stack lists of different lengths, padded on the right."""
    width = int(counts.max())
    if len(values) == width * len(counts):
        return values.astype(dtype).reshape(len(counts), width)
    out = np.full((len(counts), width), fill, dtype)
    out[np.arange(width) < counts[:, None]] = values
    return out

"""Store targets on disk in versioned, immutable parquet parts.

There is one row per injection (or anchor). It suffices for a foreign trainer that does not use this package: the
student's context ids and their hash, absolute positions, step ids, and per position the kept ids with the
log-probabilities of teacher and plain, the tail masses, and the weight of each token. A part is written to a temporary
file and renamed, so an interruption leaves only whole parts. Numbers are float32, as the engine returns them, so
storing them loses nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hintdistill.config import GateSection
from hintdistill.core.errors import InputError
from hintdistill.core.rows import KeySet
from hintdistill.core.scores import Target, TargetHead
from hintdistill.core.storage import JsonlStore, checksum, writing_aside
from hintdistill.rescoring.columns import META, TARGET_SCHEMA, Columns, Heads, context_hash, open_part, read_columns
from hintdistill.rescoring.stored import CACHE_BYTES, Index, StoredTargets

SUMS = "checksums.jsonl"
"""Name of the file, next to the parts, with the size and SHA-256 of each part."""
GROUP_ROWS = 16
"""Number of rows that are read together when one of them is needed."""

_IDS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
_MEASUREMENT = [
    ("position", pa.int32()),
    ("instead_id", pa.int32()),
    ("effect", pa.float32()),
    ("plain_logprob", pa.float32()),
    ("max_raise", pa.float32()),
    ("specificity", pa.float32()),
    ("legal_mass_gain", pa.float32()),
    ("best_placebo", pa.float32()),
    ("odds", pa.float32()),
    ("rise", pa.float32()),
    ("placebo_odds", pa.float32()),
    ("placebo_odds_median", pa.float32()),
    ("flips", pa.bool_()),
]
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("trace_id", pa.string()),
        ("step", pa.int32()),
        ("kind", pa.string()),
        ("split", pa.string()),
        ("error_class", pa.string()),
        ("hint", pa.string()),
        ("level", pa.int8()),
        ("candidate", pa.string()),
        ("choice", pa.string()),
        ("fidelity", pa.string()),
        ("accepted", pa.bool_()),
        ("reasons", pa.list_(pa.string())),
        ("guards", pa.list_(pa.string())),
        ("context_ids", _IDS),
        ("context_sha256", pa.string()),
        ("insert_at", pa.int32()),
        ("block_ids", _IDS),
        ("first_position", pa.int32()),
        ("step_ids", _IDS),
        ("span_start", pa.int32()),
        ("span_end", pa.int32()),
        ("action_start", pa.int32()),
        ("token_weights", _FLOATS),
        ("support_ids", pa.list_(_IDS)),
        ("teacher_logprobs", pa.list_(_FLOATS)),
        ("plain_logprobs", pa.list_(_FLOATS)),
        ("teacher_tail", _FLOATS),
        ("plain_tail", _FLOATS),
        ("teacher_sampled", _FLOATS),
        ("plain_sampled", _FLOATS),
        ("tokens", pa.list_(pa.string())),
        ("instead", pa.list_(pa.string())),
        ("legal_ids", _IDS),
        ("sampler_logprobs", _FLOATS),
        ("recorded_gap", pa.float32()),
        ("measurement", pa.struct(_MEASUREMENT)),
        (
            "placebos",
            pa.list_(
                pa.struct(
                    [
                        ("kind", pa.string()),
                        ("text", pa.string()),
                        ("hint_effect", _FLOATS),
                        ("measurement", pa.struct(_MEASUREMENT)),
                        ("odds", pa.float32()),
                    ]
                )
            ),
        ),
        ("versions", pa.string()),
        ("views", pa.list_(pa.struct([("name", pa.string()), ("insert_at", pa.int32()), ("block_ids", _IDS)]))),
    ],
    metadata={META: str(TARGET_SCHEMA).encode()},
)
"""Columns of a row; `docs/targets.md` explains each."""


class TargetStore:
    """Manage a folder of parquet parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def parts(self) -> list[Path]:
        """Return the parts, in a stable order."""
        return sorted(self.folder.glob("part-*.parquet"))

    def append(self, targets: Sequence[Target]) -> None:
        """Write one part; write nothing if there are no targets."""
        if not targets:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256("".join(t.key for t in targets).encode()).hexdigest()[:16]
        path = self.folder / f"part-{digest}.parquet"
        with writing_aside(path) as aside:
            pq.write_table(_table(targets), aside, compression="zstd", row_group_size=GROUP_ROWS)
            # before the part has its name: a part without a checksum is one of a release before
            self._sums().append({"key": path.name, "bytes": aside.stat().st_size, "sha256": checksum(aside)})

    def _sums(self) -> JsonlStore:
        return JsonlStore(self.folder / SUMS)

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Yield the parts whose bytes have changed since they were written, with the problem. All bytes are read.

        A part without a checksum, from an earlier release, is only checked for readability. A missing part is not
        reported; its targets are made again.
        """
        try:
            sums = self._sums().by_key()
        except InputError as error:
            yield self.folder / SUMS, error.message
            sums = {}
        for part in self.parts():
            said = sums.get(part.name)
            if said is None:
                try:
                    for _ in self.read_part(part):
                        pass
                except InputError as error:
                    yield part, error.message
            elif part.stat().st_size != said.get("bytes"):
                yield part, f"it has {part.stat().st_size} bytes instead of {said.get('bytes')}"
            elif checksum(part) != said.get("sha256"):
                yield part, "its bytes differ from those that were written"

    def keys(self) -> KeySet:
        """Return the keys of all stored rows."""
        return KeySet(
            row["key"] for part in self.parts() for group in _groups(part, ["key"]) for row in group.to_pylist()
        )

    def open(
        self, keys: Sequence[str] | None = None, gate: GateSection | None = None, *, cache_bytes: int = CACHE_BYTES
    ) -> StoredTargets:
        """Return the targets with these keys, in their order; without `keys`, all targets in stored order, each key
        once.

        Light columns are read here, once; a target's arrays are read on access.

        Args:
            gate: gate that judges the hints again; without it the stored decisions are used.
            cache_bytes: bytes of recently read columns that are cached.

        Raises:
            InputError: a part is corrupt, another program or version wrote it, or a key is missing; the message names
                it.
        """
        return StoredTargets.open(self.folder, Index(self.parts(), cache_bytes), keys, gate)

    def read(self) -> Iterator[Target]:
        """Yield every stored target, one group of rows at a time, including all rows with the same key.

        Raises:
            InputError: a part is corrupt, or another program or version wrote it; the message names the file.
        """
        for part in self.parts():
            yield from self.read_part(part)

    def heads(self, part: Path) -> list[TargetHead]:
        """Return the light columns of one part; see `read`."""
        read = Heads()
        return [head for group in _groups(part, list(Heads.COLUMNS)) for head, _, _ in read.of(group)]

    def read_part(self, part: Path) -> Iterator[Target]:
        """Yield the targets of one part; see `read`."""
        for group in _groups(part, None):
            columns = Columns(part, group)
            for row in range(len(columns)):
                yield columns.target(row)


def _groups(part: Path, columns: list[str] | None) -> Iterator[pa.Table]:
    with open_part(part) as file:
        for group in range(file.num_row_groups):
            yield read_columns(part, file, group, columns)


def _table(targets: Sequence[Target]) -> pa.Table:
    """Return a table with one row per target; arrays of numbers become Arrow's lists directly, without Python
    objects."""
    columns: dict[str, Any] = {
        name: _lists([getattr(t, name) for t in targets], SCHEMA.field(name).type.value_type) for name in _FLAT
    }
    columns["token_weights"] = _lists([_token_weights(t) for t in targets], pa.float32())
    kept = [t.support_ids >= 0 for t in targets]
    counts = [n for k in kept for n in k.sum(1)]
    for name in _NESTED:
        values = np.concatenate([getattr(t, name)[k] for t, k in zip(targets, kept, strict=True)])
        inner = pa.ListArray.from_arrays(
            _offsets(counts), pa.array(values, SCHEMA.field(name).type.value_type.value_type)
        )
        columns[name] = pa.ListArray.from_arrays(_offsets([len(t.support_ids) for t in targets]), inner)
    rest = pa.schema([f for f in SCHEMA if f.name not in columns])
    rows = pa.Table.from_pylist([_row(t) for t in targets], schema=rest)
    columns |= {name: rows.column(name) for name in rest.names}
    return pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


_FLAT = (
    "context_ids",
    "block_ids",
    "step_ids",
    "teacher_tail",
    "plain_tail",
    "teacher_sampled",
    "plain_sampled",
    "legal_ids",
    "sampler_logprobs",
)
"""Fields of a target that are plain lists of numbers."""
_NESTED = ("support_ids", "teacher_logprobs", "plain_logprobs")
"""Fields with as many numbers at each position as its support has ids."""


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())


def _lists(each: Sequence[np.ndarray], of: pa.DataType) -> pa.ListArray:
    return pa.ListArray.from_arrays(_offsets([len(a) for a in each]), pa.array(np.concatenate(each), of))


def _token_weights(t: Target) -> np.ndarray:
    weights = np.zeros(len(t.step_ids), np.float32)
    weights[slice(*t.span)] = 1.0
    return weights


def _row(t: Target) -> dict[str, Any]:
    return {
        "key": t.key,
        "trace_id": t.trace_id,
        "step": t.step,
        "kind": t.kind,
        "split": t.split,
        "error_class": t.error_class,
        "hint": t.hint,
        "level": t.level,
        "candidate": t.candidate,
        "choice": t.choice,
        "fidelity": t.fidelity,
        "accepted": t.accepted,
        "reasons": list(t.reasons),
        "guards": list(t.guards),
        "context_sha256": context_hash(t.context_ids),
        "insert_at": t.insert_at,
        "first_position": len(t.context_ids),
        "span_start": t.span[0],
        "span_end": t.span[1],
        "action_start": t.action_start,
        "tokens": list(t.tokens),
        "instead": list(t.instead),
        "recorded_gap": t.recorded_gap,
        "measurement": asdict(t.measurement) if t.measurement else None,
        "placebos": [
            {
                "kind": p.kind,
                "text": p.text,
                "hint_effect": p.hint_effect.tolist(),
                "measurement": asdict(p.measurement),
                "odds": p.odds,
            }
            for p in t.placebos
        ],
        "versions": json.dumps(dict(t.versions), sort_keys=True),
        "views": [{"name": name, "insert_at": at, "block_ids": ids.tolist()} for name, (at, ids) in t.views.items()],
    }

"""Targets on disk: parquet, versioned, in immutable parts.

One row per injection (or anchor), enough for a foreign trainer that knows nothing of this package: the student's context
ids and their hash, absolute positions, step ids, and per position the kept ids with the log-probabilities of teacher and
plain, the tail masses, and the weight of each token. A part is written aside and renamed, so a kill leaves whole parts
only. Numbers are float32, as the engine gave them: storing loses nothing.
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

from hintdistill.core.errors import InputError
from hintdistill.core.scores import Measurement, Placebo, Target

TARGET_SCHEMA = 2
_META = b"hintdistill.targets"

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
                    ]
                )
            ),
        ),
        ("versions", pa.string()),
    ],
    metadata={_META: str(TARGET_SCHEMA).encode()},
)
"""Column by column, what a row holds; `docs/targets.md` explains each."""


def context_hash(ids: Sequence[int] | np.ndarray) -> str:
    """SHA-256 of context ids as little-endian int32: what a foreign trainer checks its own context against."""
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()


class TargetStore:
    """A folder of parquet parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def parts(self) -> list[Path]:
        """The parts, in a stable order."""
        return sorted(self.folder.glob("part-*.parquet"))

    def append(self, targets: Sequence[Target]) -> None:
        """Write one part. Nothing is written for no targets."""
        if not targets:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256("".join(t.key for t in targets).encode()).hexdigest()[:16]
        path = self.folder / f"part-{digest}.parquet"
        aside = path.with_suffix(".writing")
        table = pa.Table.from_pylist([_row(t) for t in targets], schema=SCHEMA)
        pq.write_table(table, aside, compression="zstd")
        aside.replace(path)

    def keys(self) -> set[str]:
        """Keys of all stored rows."""
        return {key for part in self.parts() for key in _table(part, ["key"]).column("key").to_pylist()}

    def read(self) -> Iterator[Target]:
        """Every stored target; of rows with the same key, each.

        Raises:
            InputError: a part is corrupt, or another program or version wrote it; names the file.
        """
        for part in self.parts():
            yield from self.read_part(part)

    def read_part(self, part: Path) -> Iterator[Target]:
        """The targets of one part; see `read`."""
        for row in _table(part, None).to_pylist():
            if problem := _problem(row):
                raise InputError(
                    f"{part}: row {row['key']}: {problem}", hint="delete the part; --resume makes it again"
                )
            yield _target(row)


def _table(part: Path, columns: list[str] | None) -> pa.Table:
    try:
        schema = pq.read_schema(part)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{part} is not a readable parquet file: {error}", hint="delete it; --resume makes it again"
        ) from None
    version = (schema.metadata or {}).get(_META)
    if version is None:
        raise InputError(f"{part} holds no hintdistill targets", hint="another program wrote it; move it away")
    if version != str(TARGET_SCHEMA).encode():
        raise InputError(f"{part} has target schema {version.decode()}; this release reads {TARGET_SCHEMA}")
    try:
        return pq.read_table(part, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{part} is damaged: {error}", hint="delete it; --resume makes it again") from None


def _problem(row: dict[str, Any]) -> str | None:
    """Why a row cannot be a target; None if it can."""
    steps = len(row["step_ids"])
    per_token = (
        "support_ids",
        "teacher_logprobs",
        "plain_logprobs",
        "teacher_tail",
        "plain_tail",
        "teacher_sampled",
        "plain_sampled",
    )
    for name in per_token:
        if len(row[name]) != steps:
            return f"{name} speaks of {len(row[name])} tokens, the step has {steps}"
    for t, ids in enumerate(row["support_ids"]):
        if not len(ids) == len(row["teacher_logprobs"][t]) == len(row["plain_logprobs"][t]):
            return f"the support and the log-probabilities of token {t} differ in length"
    if not np.isfinite(row["teacher_sampled"] + row["plain_sampled"]).all():
        return "a log-probability of a sampled token is missing or not finite"
    if row["context_sha256"] != context_hash(row["context_ids"]):
        return "the context is not the one its hash was taken of"
    return None


def _ragged(values: np.ndarray, ids: np.ndarray) -> list[list[Any]]:
    return [row[keep].tolist() for row, keep in zip(values, ids >= 0, strict=True)]


def _row(t: Target) -> dict[str, Any]:
    weights = np.zeros(len(t.step_ids), np.float32)
    weights[slice(*t.span)] = 1.0
    return {
        "key": t.key,
        "trace_id": t.trace_id,
        "step": t.step,
        "kind": t.kind,
        "split": t.split,
        "error_class": t.error_class,
        "hint": t.hint,
        "fidelity": t.fidelity,
        "accepted": t.accepted,
        "reasons": list(t.reasons),
        "guards": list(t.guards),
        "context_ids": t.context_ids.tolist(),
        "context_sha256": context_hash(t.context_ids),
        "insert_at": t.insert_at,
        "block_ids": t.block_ids.tolist(),
        "first_position": len(t.context_ids),
        "step_ids": t.step_ids.tolist(),
        "span_start": t.span[0],
        "span_end": t.span[1],
        "token_weights": weights.tolist(),
        "support_ids": _ragged(t.support_ids, t.support_ids),
        "teacher_logprobs": _ragged(t.teacher_logprobs, t.support_ids),
        "plain_logprobs": _ragged(t.plain_logprobs, t.support_ids),
        "teacher_tail": t.teacher_tail.tolist(),
        "plain_tail": t.plain_tail.tolist(),
        "teacher_sampled": t.teacher_sampled.tolist(),
        "plain_sampled": t.plain_sampled.tolist(),
        "tokens": list(t.tokens),
        "instead": list(t.instead),
        "legal_ids": t.legal_ids.tolist(),
        "recorded_gap": t.recorded_gap,
        "measurement": asdict(t.measurement) if t.measurement else None,
        "placebos": [
            {
                "kind": p.kind,
                "text": p.text,
                "hint_effect": p.hint_effect.tolist(),
                "measurement": asdict(p.measurement),
            }
            for p in t.placebos
        ],
        "versions": json.dumps(dict(t.versions), sort_keys=True),
    }


def _padded(rows: list[list[Any]], fill: float, dtype: Any) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), fill, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _floats(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def _target(row: dict[str, Any]) -> Target:
    return Target(
        key=row["key"],
        trace_id=row["trace_id"],
        step=row["step"],
        kind=row["kind"],
        split=row["split"],
        context_ids=np.array(row["context_ids"], np.int64),
        step_ids=np.array(row["step_ids"], np.int64),
        span=(row["span_start"], row["span_end"]),
        support_ids=_padded(row["support_ids"], -1, np.int64),
        teacher_logprobs=_padded(row["teacher_logprobs"], -np.inf, np.float32),
        plain_logprobs=_padded(row["plain_logprobs"], -np.inf, np.float32),
        teacher_tail=_floats(row["teacher_tail"]),
        plain_tail=_floats(row["plain_tail"]),
        teacher_sampled=_floats(row["teacher_sampled"]),
        plain_sampled=_floats(row["plain_sampled"]),
        insert_at=row["insert_at"],
        block_ids=np.array(row["block_ids"], np.int64),
        error_class=row["error_class"],
        hint=row["hint"],
        fidelity=row["fidelity"],
        measurement=Measurement(**row["measurement"]) if row["measurement"] else None,
        placebos=tuple(
            Placebo(p["kind"], p["text"], _floats(p["hint_effect"]), Measurement(**p["measurement"]))
            for p in row["placebos"]
        ),
        guards=tuple(row["guards"]),
        accepted=row["accepted"],
        reasons=tuple(row["reasons"]),
        tokens=tuple(row["tokens"]),
        instead=tuple(row["instead"]),
        legal_ids=np.array(row["legal_ids"], np.int64),
        recorded_gap=row["recorded_gap"],
        versions=json.loads(row["versions"]),
    )

"""Make training data for Tinker's `forward_backward(…, "cross_entropy")`, with weights per token and id.

The service sums Σ weights·(-log S) over tokens and ids. With weights of weight·T, this is the forward KL plus the
teacher's entropy, which has no gradient. Tested with tinker 0.38.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hintdistill.bridges.flat import FlatRow, flat_rows
from hintdistill.bridges.formats import ExportJob
from hintdistill.bridges.formulas import at
from hintdistill.bridges.peers import need
from hintdistill.bridges.runs import open_rows
from hintdistill.bridges.tables import read_rows, row_at, write_rows

NAME = "tinker"
_IDS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("kind", pa.string()),
        ("input_ids", _IDS),
        ("start", pa.int32()),
        ("target_tokens", pa.list_(_IDS)),
        ("weights", pa.list_(_FLOATS)),
    ]
)
"""Columns: `input_ids` is the whole sequence, `start` the position of its first step token; the lists have one entry
per step token."""


def columns(row: FlatRow) -> dict[str, Any]:
    """Return a row's columns."""
    there = np.isfinite(row.teacher) & (row.weights != 0)[:, None]
    weights = np.where(there, np.exp(np.where(there, row.teacher, 0.0)) * row.weights[:, None], 0.0)
    return {
        "key": row.key,
        "kind": row.kind,
        "input_ids": row.ids.tolist(),
        "start": row.start,
        "target_tokens": np.where(there, row.support_ids, 0).tolist(),
        "weights": weights.tolist(),
    }


def write(job: ExportJob) -> dict[str, Any]:
    """Write the rows."""
    longest, width = 0, 0

    def each() -> Iterator[dict[str, Any]]:
        nonlocal longest, width
        for row in flat_rows(job.rows, job.section.effective_recipe):
            longest, width = max(longest, len(row.ids)), max(width, row.support_ids.shape[1])
            yield columns(row)

    return {"rows": write_rows(job.folder, NAME, SCHEMA, each()), "longest": longest, "ids_per_token": width}


def loss_in_file(folder: Path, number: int, row: FlatRow, student: np.ndarray) -> float:
    """Return the cross-entropy minus the teacher's entropy."""
    read = row_at(folder, NAME, number)
    weights = np.array(read["weights"], np.float64)
    ours = at(student, np.array(read["target_tokens"], np.int64))
    return float(-(weights * ours).sum()) - entropy(row)


def entropy(row: FlatRow) -> float:
    """Return -Σ_t weight·Σ T·log T over the kept ids, the constant in the service's loss."""
    there = np.isfinite(row.teacher)
    logs = np.where(there, row.teacher, 0.0)
    return float(-(np.where(there, np.exp(logs) * logs, 0.0).sum(1) * row.weights).sum())


def to_datums(source: Path | str, k: int | None = 20) -> list[Any]:
    """Return a run's or an export's training data as `tinker.Datum`, one per step.

    `loss_fn_inputs` are `target_tokens` int64 [N, K] and `weights` float32 [N, K], with N the number of tokens of the
    sequence minus one.

    Args:
        source: a run folder, or a folder that `hintdistill export --to tinker` wrote; in the latter case `k` must be
            the export's value or None.
        k: number of ids per token of a run's targets, including the sampled one; the probabilities are renormalised.

    Raises:
        ConfigError: tinker is not installed.
        InputError: there are no targets.
    """
    tinker = need("tinker")
    import torch

    out = []
    for row in _source_rows(Path(source), k):
        ids, start = row["input_ids"], int(row["start"])
        tokens, weights = torch.tensor(row["target_tokens"]), torch.tensor(row["weights"], dtype=torch.float32)
        wide = torch.zeros(len(ids) - 1, tokens.shape[1], dtype=torch.int64)
        heavy = torch.zeros(len(ids) - 1, tokens.shape[1])
        wide[start - 1 : start - 1 + len(tokens)], heavy[start - 1 : start - 1 + len(tokens)] = tokens, weights
        inputs = {
            "target_tokens": tinker.TensorData.from_torch(wide),
            "weights": tinker.TensorData.from_torch(heavy),
        }
        out.append(tinker.Datum(model_input=tinker.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=inputs))
    return out


def _source_rows(source: Path, k: int | None) -> Iterator[dict[str, Any]]:
    if (source / "manifest.json").is_file():
        run = open_rows(source, k, "renormalise")
        yield from (columns(row) for row in flat_rows(run.rows, run.section.effective_recipe))
    else:
        yield from read_rows(source, NAME)

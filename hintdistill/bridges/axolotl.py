"""Write targets for Axolotl's KD plugin: a pre-tokenised parquet file, and the YAML that trains on it.

Axolotl's loss is Σ exp(l)·(l - log S) over the listed ids, divided by the number of labels. So `l` holds log(weight·T),
which gives each token its weight. Each step has one label, so that the mean is over steps, as in this toolkit; with
`kd_ce_alpha: 0`, labels have no other use. Its trainer compares hidden state t with target t, so the targets are
already shifted: entry t is the teacher for token t + 1. Tested with axolotl 0.19; the plugin's code is the same in
0.21.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from hintdistill.bridges.flat import FlatRow, flat_rows
from hintdistill.bridges.formats import DATA, ExportJob
from hintdistill.bridges.formulas import at
from hintdistill.bridges.tables import row_at, write_rows

NAME = "axolotl"
KEYS = "keys.json"
CONFIG = "axolotl.yaml"
IGNORED = -100
_IDS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("input_ids", _IDS),
        ("attention_mask", _IDS),
        ("labels", _IDS),
        ("target_token_ids", pa.list_(_IDS)),
        ("target_logprobs", pa.list_(_FLOATS)),
        ("target_mask", pa.list_(_IDS)),
    ]
)
"""Columns of the file. There are no others, because axolotl's collator pads every column that it finds."""


def columns(row: FlatRow) -> dict[str, Any]:
    """Return a row's columns; positions without loss have no ids, and the collator pads them."""
    length = len(row.ids)
    ids: list[list[int]] = [[] for _ in range(length)]
    logprobs: list[list[float]] = [[] for _ in range(length)]
    for t in row.carried:
        there = np.isfinite(row.teacher[t])
        place = row.start - 1 + int(t)
        ids[place] = row.support_ids[t][there].tolist()
        logprobs[place] = (row.teacher[t][there] + np.log(row.weights[t])).tolist()
    labels = [IGNORED] * length
    labels[row.start] = int(row.ids[row.start])
    return {
        "input_ids": row.ids.tolist(),
        "attention_mask": [1] * length,
        "labels": labels,
        "target_token_ids": ids,
        "target_logprobs": logprobs,
        "target_mask": [[1] * len(i) for i in ids],
    }


def write(job: ExportJob) -> dict[str, Any]:
    """Write the rows, their keys in the same order, and the YAML."""
    keys, longest, width = list[str](), 0, 0

    def each() -> Iterator[dict[str, Any]]:
        nonlocal longest, width
        for row in flat_rows(job.rows, job.section.effective_recipe):
            keys.append(row.key)
            longest, width = max(longest, len(row.ids)), max(width, row.support_ids.shape[1])
            yield columns(row)

    count = write_rows(job.folder, NAME, SCHEMA, each())
    (job.folder / KEYS).write_text(json.dumps(keys), encoding="utf-8")
    (job.folder / CONFIG).write_text(_config(job, longest), encoding="utf-8")
    return {"rows": count, "longest": longest, "ids_per_token": width}


def _config(job: ExportJob, longest: int) -> str:
    train = job.section
    settings = {
        "base_model": "PATH/TO/THE/MODEL",
        "plugins": ["axolotl.integrations.kd.KDPlugin"],
        "kd_trainer": True,
        "kd_ce_alpha": 0.0,
        "kd_alpha": 1.0,
        "kd_temperature": 1.0,
        "kd_beta": 0.0,
        "kd_normalize_topk": False,
        # no `type`: the rows are tokenised already
        "datasets": [{"path": DATA, "ds_type": "parquet"}],
        "sequence_len": longest,
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "micro_batch_size": train.micro_batch_size or train.batch_size,
        "gradient_accumulation_steps": train.batch_size // (train.micro_batch_size or train.batch_size),
        "num_epochs": train.epochs,
        "learning_rate": train.rate,
        "lr_scheduler": train.schedule,
        "warmup_ratio": train.warmup_ratio,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optimizer": "adamw_torch",
        "output_dir": "student",
    }
    head = (
        "# Written by hintdistill export; put the model that the run started from in place of PATH/TO/THE/MODEL.\n"
        "# Each step has one label, so that the loss is a mean over steps; kd_ce_alpha must stay 0.\n"
        "# sequence_len must hold the longest row: a row that is cut loses its step.\n"
    )
    return head + yaml.safe_dump(settings, sort_keys=False)


def loss_in_file(folder: Path, number: int, row: FlatRow, student: np.ndarray) -> float:
    """Return the loss by axolotl's formula, without the constant that the weights add."""
    read = row_at(folder, NAME, number)
    total = 0.0
    for t in range(len(row.weights)):
        ids, logprobs = read["target_token_ids"][row.start - 1 + t], read["target_logprobs"][row.start - 1 + t]
        if ids:
            wanted = np.array(logprobs, np.float64)
            ours = at(student[t : t + 1], np.array([ids], np.int64))[0]
            total += float((np.exp(wanted) * (wanted - ours)).sum())
    return total - weight_constant(row)


def weight_constant(row: FlatRow) -> float:
    """Return Σ_t weight·log weight·(teacher's kept mass), the constant by which the logged loss of a row is too
    large."""
    carried = row.carried
    mass = np.exp(row.teacher[carried]).sum(1)
    return float((row.weights[carried] * np.log(row.weights[carried]) * mass).sum())

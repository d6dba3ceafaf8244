"""The rows of metrics that a training run writes, and their truncation when it continues from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hintdistill.core.storage import append_line, write_atomic

METRICS = "metrics.jsonl"


def write_row(work: Path, row: dict[str, Any]) -> None:
    """Append a row to the metrics of a training run."""
    append_line(work / METRICS, json.dumps(row))


def cut_metrics(work: Path, checkpoint: Path | None) -> tuple[float, dict[str, Any]]:
    """Cut the metrics back to the checkpoint from which training continues, because later rows are written again.

    Return the sum of the loss over the earlier steps covered by rows, and the last row with a measurement of the watch.
    """
    path, until = work / METRICS, 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    if not path.is_file():
        return 0.0, {}
    kept, total, last, reading = [], 0.0, 0, {}
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            # what a kill tore off
            continue
        whole = line.endswith(b"\n") and isinstance(row, dict)
        if whole and row.get("step", until + 1) <= until and "train_runtime" not in row:
            kept.append(line)
            if "loss" in row:
                total, last = total + row["loss"] * (row["step"] - last), row["step"]
            if "off_target_kl" in row or "heldout_kl" in row:
                reading = row
    write_atomic(path, b"".join(kept).decode("utf-8"))
    return total, reading

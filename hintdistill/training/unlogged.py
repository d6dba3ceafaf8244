"""Measurements that a training run has not written into a row yet, kept with each checkpoint.

Rows are written every `train.logging_steps` steps and checkpoints every `train.save_steps`. If one is not a multiple of
the other, the first row after a resume also covers steps before the checkpoint. The sums of these steps are in
`unlogged.json` next to the weights, so that the row equals that of an uninterrupted training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hintdistill.core.storage import read_json, write_atomic
from hintdistill.training import processes

FILE = "unlogged.json"


class Losses:
    """Sum up the loss of each optimiser step; the Trainer's own sums restart when it resumes."""

    def __init__(self) -> None:
        self.since: Tensor | None = None
        """Sum in this process over the steps since the last row."""
        self.total = 0.0
        """Mean over the processes, over the steps up to the last row."""
        self.step = 0
        """The optimiser step of the last row."""

    def add(self, loss: Tensor) -> None:
        """Count the loss of a micro-batch, a scalar without gradient."""
        self.since = loss if self.since is None else self.since + loss

    def mean(self, step: int) -> float:
        """Return the mean over the steps since the last row, of which `step` is the current one; all processes call
        it."""
        steps = step - self.step
        found = self._take()
        self.total, self.step = self.total + found, step
        return found / steps

    def of_all(self, step: int) -> float:
        """Return the mean over all `step` steps; all processes call it."""
        self.total += self._take()
        return self.total / max(step, 1)

    def _take(self) -> float:
        each = processes.from_each(0.0 if self.since is None else float(self.since))
        self.since = None
        return sum(each) / len(each)


def save(trainer: Any, checkpoint: str | Path) -> None:
    """Write the sums of every process into a checkpoint's folder; all processes call it, the main one writes."""
    losses: Losses = trainer.losses
    mine = {
        "loss": None if losses.since is None else float(losses.since),
        "loss_of_rows": losses.total,
        "last_row": losses.step,
        "sums": trainer.meter.held(),
        "grad_window_cosine": None if trainer.probe is None else trainer.probe.fresh,
    }
    each = processes.from_each(mine)
    if processes.is_main():
        Path(checkpoint).mkdir(parents=True, exist_ok=True)
        write_atomic(Path(checkpoint) / FILE, json.dumps(each))


def load(trainer: Any, checkpoint: Path) -> bool:
    """Restore the sums from a checkpoint; return False if it has none, because an older release wrote it.

    If the number of processes has changed, the loss is their mean, and the main process takes all other sums, which are
    added up over the processes anyway.

    Raises:
        InputError: the file cannot be read.
    """
    if not (checkpoint / FILE).is_file():
        return False
    each: list[dict[str, Any]] = read_json(checkpoint / FILE, list)
    rank, same = trainer.args.process_index, len(each) == trainer.args.world_size
    mine = [each[rank]] if same else each
    losses: Losses = trainer.losses
    if mine[0]["loss"] is not None:
        losses.since = torch.tensor(sum(e["loss"] for e in mine) / len(mine), device=trainer.args.device)
    losses.total, losses.step = mine[0]["loss_of_rows"], mine[0]["last_row"]
    for held in mine if same or rank == 0 else ():
        trainer.meter.take(held["sums"])
    if trainer.probe is not None:
        trainer.probe.fresh = mine[0]["grad_window_cosine"]
    return True

"""Define the formats of `hintdistill export`: what each keeps, what it loses, and the module that writes it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hintdistill.bridges.flat import FlatRow
from hintdistill.bridges.narrow import Tail
from hintdistill.config import TrainSection
from hintdistill.core.errors import ConfigError
from hintdistill.core.registry import nearest
from hintdistill.training.rows import Rows

DATA = "rows.parquet"
"""Name of the file with an export's rows."""


@dataclass(frozen=True)
class ExportJob:
    """Hold the input of a format's writer."""

    rows: Rows
    """Rows of targets, with the requested number of ids per token."""
    section: TrainSection
    seed: int
    folder: Path
    tail: Tail


@dataclass(frozen=True)
class Checked:
    """Hold a checked row: the exported row, the toolkit's row, and both losses."""

    key: str
    loss: float
    """Loss by the format's formula from the exported file, nats."""
    reference: float
    """Loss by the toolkit's formula from the stored target, nats."""
    bound: float
    """Allowed difference of the two, because of what the format does not keep, nats; 0 if it keeps everything."""
    scale: float = 1.0
    """Sum of the row's weights, an upper limit on the effect of a difference of one nat per token."""

    @property
    def off(self) -> float:
        """Difference of the two losses, nats."""
        return abs(self.loss - self.reference)

    @property
    def relative(self) -> float:
        """Difference of the two losses, relative to the loss."""
        return self.off / max(abs(self.reference), 1e-30)


class Student(Protocol):
    """Student's log-probabilities of the vocabulary at a step's positions, float64 [T, V]."""

    def __call__(self, ids: np.ndarray, start: int) -> np.ndarray: ...


class Writer(Protocol):
    """Interface of the module of a format."""

    def write(self, job: ExportJob) -> dict[str, Any]:
        """Write the rows, and return the data for the card."""

    def loss_in_file(self, folder: Path, number: int, row: FlatRow, student: np.ndarray) -> float:
        """Return the loss of the `number`-th exported row by the format's own formula, in the units of `formulas.forward_kl`.

        `row` is the row that was passed to `write`, for constants that the format leaves out; everything else is read
        from the file.
        """


@dataclass(frozen=True)
class Format:
    """Describe a format: its writer, and the texts of its data card."""

    name: str
    module: str
    reads: str
    """The trainer that reads it."""
    formula: str
    tails: tuple[Tail, ...]
    """Supported treatments of the rest; the first is the default."""
    why: str
    """Reason why no other treatment is supported."""
    loses: tuple[str, ...]
    """Parts of a run that are lost, in the same words for every run."""
    mass: float = 0.0
    """Probability by which the rest may be wrong, regardless of what is kept."""

    def writer(self) -> Any:
        """The module that writes it, a `Writer`; for `hf` see `bridges.hf`."""
        return importlib.import_module(f"hintdistill.bridges.{self.module}")

    def require_tail(self, tail: str | None) -> Tail:
        """Return the treatment of the rest. Raises ConfigError if the format does not support it."""
        if tail is None:
            return self.tails[0]
        for known in self.tails:
            if tail == known:
                return known
        raise ConfigError(
            f"{self.name} does not support tail={tail}: {self.why}", hint=f"tail={' or tail='.join(self.tails)}"
        )


_ONE_DIVERGENCE = (
    "the recipe's own divergence, weights by score and schedules: the export trains the forward KL to the stored "
    "teacher"
)
_ONE_SLOT = "the shared pass over a trace: each step becomes a row with its whole context"
FORMATS = (
    Format(
        "hf",
        "hf",
        "transformers.Trainer with hintdistill.bridges.hf, i.e. its data set, collator and loss function",
        "the recipe's terms, mean over slots",
        ("keep",),
        "the recipe's divergence is computed on the kept ids and one entry for the rest, on both sides",
        ("nothing with all stored ids; with k, the distribution within the rest",),
    ),
    Format(
        "trl",
        "trl",
        "trl.experimental.async_distillation.AsyncDistillationTrainer with hintdistill.bridges.trl.StoredRollouts",
        "forward KL over the kept ids and the rest, mean over the tokens of a batch",
        ("keep",),
        "its trainer computes the rest itself (add_tail_bucket), and otherwise renormalises the student as well",
        (
            _ONE_DIVERGENCE,
            "weights inside a step other than 0 and 1: such rows are refused by name",
            "the mean over steps: a batch's loss is a mean over its tokens, so a long step counts more than a short "
            "one",
            "the rest's stored probability: the trainer uses one minus the kept probabilities in float32, and at "
            "least 1e-7",
            _ONE_SLOT,
        ),
        mass=3e-7,
    ),
    Format(
        "axolotl",
        "axolotl",
        "axolotl's KDPlugin (kd_trainer: true), as a pre-tokenised data set",
        "forward KL over the kept ids; log-probabilities hold the token's weight, labels count steps",
        ("renormalise", "drop"),
        "its loss reads only the kept ids, without an entry for the rest",
        (
            _ONE_DIVERGENCE,
            "the rest of the vocabulary: its mass changes only through the kept ids",
            "the logged loss differs by Σ weight·log weight, a constant without a gradient",
            _ONE_SLOT,
        ),
    ),
    Format(
        "tinker",
        "tinker",
        "tinker's forward_backward(…, 'cross_entropy'), through hintdistill.bridges.tinker.to_datums",
        "cross-entropy with weights per token and id: forward KL plus the teacher's entropy, a constant",
        ("renormalise", "drop"),
        "cross_entropy reads only the given ids, without an entry for the rest",
        (
            _ONE_DIVERGENCE,
            "the rest of the vocabulary: its mass changes only through the kept ids",
            "the mean over steps: the service sums, so divide by the number of rows in an optimiser step",
            _ONE_SLOT,
        ),
    ),
)
"""All formats of the command."""


def format_named(name: str) -> Format:
    """Return a format by its name. Raises ConfigError, with the nearest name."""
    known = {f.name: f for f in FORMATS}
    if name not in known:
        raise ConfigError(f"unknown format {name!r}{nearest(name, known)}", hint=f"--to {'|'.join(known)}")
    return known[name]

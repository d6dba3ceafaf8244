"""A truncated gradient that flows only through the last W tokens before each scored span. It is opt-in
(`train.grad_window`).

The student first reads the rows without gradient and keeps keys and values. Then each span, with the W tokens before
it, is read again with gradient, and attends to earlier tokens as constants. The loss is the same, but its gradient is
an approximation: the share that reaches the weights through the keys and values of earlier tokens is left out. Its
quality depends on the model and the traces, so the cosine with the exact gradient is measured during training and
recorded.

Source: truncated backpropagation as in recurrent networks (Williams & Peng 1990), here through attention's keys and
values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hintdistill.core.errors import ModelError
from hintdistill.core.storage import read_json, write_atomic
from hintdistill.engines.prefix_tree import Piece
from hintdistill.engines.shared_prefix import Memory, PackedCall, run_call
from hintdistill.training.passes import Passes, StudentPass, forest
from hintdistill.training.processes import lockstep
from hintdistill.training.rows import TraceRow

FILE = "grad_window.json"
"""File in a training run's working folder that maps steps to cosines."""


def require_window(passes: Passes) -> None:
    """Raise ModelError if keys and values of earlier tokens cannot be treated as constants."""
    hint = "leave train.grad_window out: the exact gradient has no such requirement"
    model = passes.owner
    name = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    if passes.way != "shared_prefix":
        raise ModelError(
            f"train.grad_window needs a model in which all layers attend, but {name} is read as `{passes.way}`",
            hint=hint,
        )
    if not passes.rides:
        raise ModelError(
            f"train.grad_window reads tokens twice, but {name} drops different activations each time (dropout)",
            hint=hint,
        )


def windows(rows: Sequence[TraceRow], width: int) -> list[Piece]:
    """Return the tokens read with gradient: for each scored span its positions and the `width` tokens before them.

    Spans with overlapping windows are read as one piece, so slightly more than `width` tokens carry gradient there; the
    order is that of rows and positions.
    """
    out: list[Piece] = []
    for i, row in enumerate(rows):
        for slot in sorted(row.slots, key=lambda s: s.start):
            start, stop = max(0, slot.positions.start - width), slot.positions.stop
            if out and out[-1].chain == i and start < out[-1].stop:
                out[-1] = Piece(i, min(start, out[-1].start), max(stop, out[-1].stop))
            else:
                out.append(Piece(i, start, stop))
    return out


def windowed(passes: Passes, model: Any, rows: Sequence[TraceRow], width: int, ride: bool) -> StudentPass:
    """Make the student's pass over whole rows with a truncated gradient; see `Passes.student`."""
    branched = [(i, s) for i, row in enumerate(rows) for s in row.slots if ride and len(s.block)]
    tree, memory = forest(rows, branched), Memory()
    pieces = windows(rows, width)
    # as far as a window or a branch looks back
    depth = [
        max([p.start for p in pieces if p.chain == i] + [s.insert_at for j, s in branched if j == i], default=0)
        for i in range(len(rows))
    ]
    trunks = [Piece(i, 0, n) for i, n in enumerate(depth) if n]
    with torch.no_grad(), lockstep(passes.owner):
        if trunks:
            call = PackedCall(tree, trunks, memory, keep_trunks=True)
            # of the last layer only keys and values are wanted; one row, because some kinds take no empty ones
            call.rows = {0: [range(1)]}
            run_call(passes.owner, call, [0])
    memory.closed = True
    if not pieces:
        # a process without a slot, where others have some
        return passes.student(model, rows, ride=ride)
    call = PackedCall(tree, pieces, memory, windows=True)
    columns, order = [], []
    for i, row in enumerate(rows):
        for slot in row.slots:
            n = next(n for n, p in enumerate(pieces) if p.chain == i and p.start <= slot.positions.start < p.stop)
            columns.append(torch.arange(slot.positions.start, slot.positions.stop) - pieces[n].start + call.offsets[n])
            order.append(slot)
    hidden = passes.run(model, call.inputs(passes.device), torch.cat(columns))
    split = hidden.split([s.length for s in order])
    return StudentPass(
        {s.key: h for s, h in zip(order, split, strict=True)},
        tree,
        memory,
        {s.key: n for n, (_, s) in enumerate(branched)},
        0.0 * hidden.float().sum(),
    )


class WindowProbe:
    """Measure the cosine between the truncated and the exact gradient of a batch, at the first step and at regular
    intervals."""

    def __init__(self, every: int, folder: str | Path, *, writes: bool = True) -> None:
        """Store the arguments; `every` is the number of optimiser steps between two measurements; `writes` is whether
        this process keeps the file.

        A resumed run restores the earlier measurements. With several processes, each measures its own rows.
        """
        self.every, self.file, self.writes = every, Path(folder) / FILE, writes
        self.measured: dict[int, float] = {}
        if self.file.is_file():
            self.measured = {int(k): float(v) for k, v in read_json(self.file, dict).items()}
        self.fresh: float | None = None
        """The measurements since the last log."""
        self._done = -1
        self._taken: list[tuple[Tensor | None, ...]] = []

    def due(self, step: int) -> bool:
        """Return whether to measure at this optimiser step; once, on its first micro-batch."""
        return step % self.every == 0 and step != self._done

    def take(self, model: Any, loss: Tensor) -> None:
        """Take one of the two gradients: of a loss, with respect to the trained parameters."""
        trained = [p for p in model.parameters() if p.requires_grad]
        self._taken.append(torch.autograd.grad(loss, trained, allow_unused=True))

    def done(self, step: int) -> float:
        """Return the cosine of the two measured gradients, and store it."""
        self.fresh = self.measured[step] = cosine(*self._taken)
        self._done, self._taken = step, []
        if self.writes:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.file, json.dumps(self.measured))
        return self.fresh

    @property
    def least(self) -> float | None:
        """Return the smallest cosine measured so far."""
        return min(self.measured.values(), default=None)


def cosine(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> float:
    """Return the cosine of two gradients in the same order; a missing one counts as zero, and it is 1 if both vanish."""
    product = left = right = 0.0
    for a, b in zip(first, second, strict=True):
        left += 0.0 if a is None else float(a.double().square().sum())
        right += 0.0 if b is None else float(b.double().square().sum())
        product += 0.0 if a is None or b is None else float((a.double() * b.double()).sum())
    if left == right == 0.0:
        return 1.0
    return product / max((left * right) ** 0.5, 1e-300)

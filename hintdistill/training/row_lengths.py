"""Compute, from ids alone, how long the rows will be that training makes of injections and anchors. This module does
not import torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hintdistill.config import TrainSection
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.scores import Target
from hintdistill.engines.token_counts import operations, pairs

if TYPE_CHECKING:
    from hintdistill.training.reward import OutcomeData
    from hintdistill.training.rows import RowPlan

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class RowLength:
    """Describe one training row: a trace, cut after its last scored token, with all its injections and anchors."""

    trace_id: str
    tokens: int
    """Number of tokens that the student reads with gradient. The last scored token itself is not read."""
    scored: int
    """Number of positions that have a loss."""
    hinted: int = 0
    """Number of these positions that have a hinted view."""
    branches: tuple[tuple[int, int], ...] = ()
    """For each hint with its step: the position at which it leaves the trace, and its number of tokens; an in-step
    teacher reads them."""

    @property
    def branch_tokens(self) -> int:
        """Return the number of tokens in all branches."""
        return sum(n for _, n in self.branches)


@dataclass(frozen=True)
class StepIds:
    """Hold the ids of one injection or anchor, from which rows are made."""

    trace_id: str
    context: Ids
    step: Ids
    insert_at: int = 0
    block: Ids = ()
    """Empty for an anchor."""


def row_lengths(slots: Iterable[StepIds]) -> list[RowLength]:
    """Return the rows of these slots, in order of appearance.

    Slots of one trace share a row if the tokens of one are a prefix of the other's. A template that rewrites history
    gives a trace several rows.
    """
    by_trace: dict[str, list[StepIds]] = {}
    for slot in slots:
        by_trace.setdefault(slot.trace_id, []).append(slot)
    out: list[RowLength] = []
    for trace_id, members in by_trace.items():
        trunks: list[tuple[np.ndarray, list[StepIds]]] = []
        for slot in sorted(members, key=lambda s: -len(s.context) - len(s.step)):
            ids = np.concatenate([np.asarray(slot.context, np.int64), np.asarray(slot.step, np.int64)])
            for trunk, held in trunks:
                if np.array_equal(trunk[: len(ids)], ids):
                    held.append(slot)
                    break
            else:
                trunks.append((ids, [slot]))
        out += [_row(trace_id, trunk, held) for trunk, held in trunks]
    return out


def trained_lengths(targets: Sequence[Target], config: TrainSection, outcome: OutcomeData) -> list[RowLength]:
    """Return the lengths of the rows that training would make of stored targets."""
    from hintdistill.rescoring.stored import by_key
    from hintdistill.training.rows import build_rows

    return [_length(plan) for plan in build_rows(by_key(targets), config, outcome).plans]


def _length(plan: RowPlan) -> RowLength:
    hinted = [m for m in plan.members if m.block]
    return RowLength(
        trace_id=plan.trace_id,
        # the last token is read by nobody
        tokens=plan.length - 1,
        scored=sum(m.length for m in plan.members),
        hinted=sum(m.length for m in hinted),
        branches=tuple((m.insert_at, m.block + m.start - m.insert_at + m.length - 1) for m in hinted),
    )


def of_outcome(outcome: OutcomeData) -> list[StepIds]:
    """Return the part of them that belongs to steps with an outcome."""
    return [StepIds(r.trace_id, r.ids[: -r.length].numpy(), r.ids[-r.length :].numpy()) for r in outcome.rows]


def micro_batches(lengths: Sequence[int], train: TrainSection, seed: int) -> list[list[int]]:
    """Return the row indices of each micro-batch of a whole training, in the order in which the trainer reads them."""
    from hintdistill.training.rows import LengthSampler

    each = train.micro_batch_size or train.batch_size
    sampler = LengthSampler([n + 1 for n in lengths], train.batch_size, seed)
    out: list[list[int]] = []
    for epoch in range(math.ceil(train.epochs) if lengths else 0):
        sampler.set_epoch(epoch)
        order = list(sampler)
        out += [order[at : at + each] for at in range(0, len(order), each)]
    return out


def _row(trace_id: str, trunk: np.ndarray, held: Sequence[StepIds]) -> RowLength:
    hinted = [s for s in held if len(s.block)]
    return RowLength(
        trace_id=trace_id,
        tokens=len(trunk) - 1,
        scored=sum(len(s.step) for s in held),
        hinted=sum(len(s.step) for s in hinted),
        branches=tuple((s.insert_at, len(s.block) + len(s.context) - s.insert_at + len(s.step) - 1) for s in hinted),
    )


def row_operations(shape: ModelShape, row: RowLength, train: TrainSection, *, in_step: bool) -> float:
    """Count the floating-point operations of training on a row once, including its branches if views are made in the
    step."""
    own = train_operations(
        shape,
        row.tokens,
        pairs(0, row.tokens),
        row.scored,
        full=train.lora is None,
        checkpointing=train.gradient_checkpointing,
    )
    return own + sum(operations(shape, n, pairs(at, n), 0) for at, n in (row.branches if in_step else ()))


def train_operations(
    shape: ModelShape, tokens: int, keys: int, scored: int, *, full: bool, checkpointing: bool
) -> float:
    """Count the operations of a student's pass with its backward pass.

    Backward: 4 per body parameter and token (2 if the weights are frozen under adapters), 2.5 times the attention's
    forward pass; the head once more for hidden states, and once more for its own gradient. Checkpointing adds a forward
    pass.
    """
    attention = 4.0 * shape.query_width * shape.layers * keys
    forward = 2.0 * shape.body * tokens + attention
    backward = (4.0 if full else 2.0) * shape.body * tokens + 2.5 * attention
    head = (6.0 if full else 4.0) * shape.head * scored
    return forward * (2 if checkpointing else 1) + backward + head

"""Lengths of traces, steps and hints in tokens, and the rows that training would make of them. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Ids = Sequence[int] | np.ndarray
QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Histogram:
    """How long the things of one kind are, tokens."""

    count: int
    total: int
    shortest: int
    median: int
    p90: int
    p99: int
    longest: int

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Histogram:
        """Of these lengths; of none, all zero."""
        values = np.array(list(lengths), np.int64)
        if not len(values):
            return cls(0, 0, 0, 0, 0, 0, 0)
        marks = np.quantile(values, QUANTILES, method="higher").astype(int).tolist()
        return cls(len(values), int(values.sum()), *marks)


@dataclass(frozen=True)
class RowLength:
    """One training row: a trace, cut after its last scored token, with all its injections and anchors."""

    trace_id: str
    tokens: int
    """What the student reads with gradient. The last scored token itself is read by nobody."""
    scored: int
    """Positions that carry a loss."""
    hinted: int = 0
    """Positions of those with a hinted view."""
    branches: tuple[tuple[int, int], ...] = ()
    """(position at which it leaves the trace, tokens) of each hint with its step: what an in-step teacher reads."""

    @property
    def branch_tokens(self) -> int:
        """Tokens of all branches."""
        return sum(n for _, n in self.branches)


@dataclass(frozen=True)
class Slot:
    """One injection or anchor, as ids: what a row is made of."""

    trace_id: str
    context: Ids
    step: Ids
    insert_at: int = 0
    block: Ids = ()
    """Empty for an anchor."""


def rows(slots: Iterable[Slot]) -> list[RowLength]:
    """The rows of these slots, in order of appearance.

    Slots of one trace share a row where one's tokens begin another's. A template that rewrites history gives a trace
    several rows.
    """
    by_trace: dict[str, list[Slot]] = {}
    for slot in slots:
        by_trace.setdefault(slot.trace_id, []).append(slot)
    out: list[RowLength] = []
    for trace_id, members in by_trace.items():
        trunks: list[tuple[np.ndarray, list[Slot]]] = []
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


def _row(trace_id: str, trunk: np.ndarray, held: Sequence[Slot]) -> RowLength:
    hinted = [s for s in held if len(s.block)]
    return RowLength(
        trace_id=trace_id,
        tokens=len(trunk) - 1,
        scored=sum(len(s.step) for s in held),
        hinted=sum(len(s.step) for s in hinted),
        branches=tuple((s.insert_at, len(s.block) + len(s.context) - s.insert_at + len(s.step) - 1) for s in hinted),
    )


def micro_batches(lengths: Sequence[int], rows_each: int) -> list[int]:
    """Tokens of each micro-batch where rows are taken in the given order."""
    return [sum(lengths[i : i + rows_each]) for i in range(0, len(lengths), rows_each)]


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows sorted by length and packed up to `budget` tokens each, longest first; lengths in each batch.

    A row above the budget stands alone.
    """
    out: list[list[int]] = []
    room = 0
    for n in sorted(lengths, reverse=True):
        if not out or n > room:
            out.append([])
            room = budget
        out[-1].append(n)
        room -= n
    return out

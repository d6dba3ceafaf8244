"""Which slots share a row, decided from fingerprints of their sequences, so that no two need to be in memory together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hintdistill.core.scores import Target
from hintdistill.rescoring.stored import heads
from hintdistill.training.reward import OutcomeRow


@dataclass(frozen=True)
class Member:
    """A slot before its arrays are read."""

    source: int
    """Number of its target; behind the targets, of its outcome row."""
    key: str
    kind: str
    """`hint`, `anchor`, or another kind that a term names as its `rows`; `outcome` for a step that the reward alone trains."""
    start: int
    length: int
    insert_at: int = 0
    block: int = 0
    """Tokens of the hint."""


@dataclass(frozen=True)
class RowPlan:
    """A row before its arrays are read."""

    key: str
    trace_id: str
    length: int
    """Tokens."""
    trunk: int
    """The source whose sequence is the row."""
    members: tuple[Member, ...]


class Layout:
    """Which slots share a row: those of one trace, wherever one's sequence begins the other's, token for token.

    Sequences are read once, in any order. Of each only fingerprints are kept, of its beginnings as long as the other
    sequences of its trace: two that agree there are the same tokens.
    """

    def __init__(self, targets: Sequence[Target], lengths: Sequence[int], outcomes: Sequence[OutcomeRow] = ()) -> None:
        """`lengths`: tokens of each target's context and step."""
        self._traces = [h.trace_id for h in heads(targets)] + [r.trace_id for r in outcomes]
        self._lengths = [*lengths, *(len(r.ids) for r in outcomes)]
        self._cuts: dict[str, set[int]] = {}
        for trace_id, length in zip(self._traces, self._lengths, strict=True):
            self._cuts.setdefault(trace_id, set()).add(length)
        self._prints: dict[int, dict[int, bytes]] = {}
        self._members: dict[int, Member] = {}
        for i, row in enumerate(outcomes, len(targets)):
            self._add(Member(i, row.key, "outcome", len(row.ids) - row.length, row.length), row.ids.numpy())

    def read(self, number: int, target: Target) -> None:
        """Take a target up."""
        start, block = len(target.context_ids), len(target.block_ids)
        # without a hint nothing is inserted, wherever that would be
        at = target.insert_at if block else start
        member = Member(number, target.key, target.kind, start, len(target.step_ids), at, block)
        self._add(member, np.concatenate([target.context_ids, target.step_ids]))

    def _add(self, member: Member, ids: np.ndarray) -> None:
        self._members[member.source] = member
        digest, done, prints = hashlib.blake2b(digest_size=16), 0, {}
        for cut in sorted(c for c in self._cuts[self._traces[member.source]] if c <= len(ids)):
            digest.update(np.ascontiguousarray(ids[done:cut], np.int64).tobytes())
            prints[cut], done = digest.digest(), cut
        self._prints[member.source] = prints

    def plans(self, chosen: Iterable[int]) -> list[RowPlan]:
        """The rows of these targets and of all outcomes, traces in the order in which they appear."""
        outcomes = [i for i, m in self._members.items() if m.kind == "outcome"]
        by_trace: dict[str, list[int]] = {}
        for i in [*sorted(chosen), *sorted(outcomes)]:
            by_trace.setdefault(self._traces[i], []).append(i)
        rows: list[RowPlan] = []
        for trace_id, members in by_trace.items():
            trunks: list[tuple[int, list[Member]]] = []
            for i in sorted(members, key=lambda i: -self._lengths[i]):
                length = self._lengths[i]
                own = self._prints[i][length]
                home = next((found for trunk, found in trunks if self._prints[trunk].get(length) == own), None)
                if home is None:
                    trunks.append((i, [self._members[i]]))
                else:
                    home.append(self._members[i])
            for n, (trunk, found) in enumerate(trunks):
                found.sort(key=lambda m: (m.start, m.key))
                key = trace_id if n == 0 else f"{trace_id}#{n + 1}"
                rows.append(RowPlan(key, trace_id, self._lengths[trunk], trunk, tuple(found)))
        return rows

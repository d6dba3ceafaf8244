"""Access targets that stay on disk: light columns are in memory, and everything else is read on access, part by part.

Selection, resume and the order of training need a target's key, trace, split and decision, but no arrays. So a store is
indexed once by its light columns, and `StoredTargets` is a sequence of targets whose arrays are read on access.
Recently read data is cached up to `CACHE_BYTES`; otherwise memory grows only with the targets' heads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from hintdistill.config import GateSection
from hintdistill.core.errors import InputError
from hintdistill.core.scores import Target, TargetHead
from hintdistill.core.types import Split, TargetKind
from hintdistill.rescoring.columns import Columns, Heads, open_part, read_columns
from hintdistill.rescoring.gate import decide
from hintdistill.rescoring.head_table import Decided, HeadList, HeadTable

CACHE_BYTES = 32 << 20
"""Size limit of the cache of recently read columns, bytes; it holds at least one group of rows."""


class Index:
    """Index the heads and locations of all rows of a folder, and cache recently read groups of rows."""

    def __init__(self, parts: Sequence[Path], cache_bytes: int = CACHE_BYTES) -> None:
        """Read the light columns of these parts; if several rows have the same key, the last one counts.

        Raises:
            InputError: a part is corrupt, or another program or version wrote it; the message names the file.
        """
        self.parts, self.cache_bytes, self.table = list(parts), cache_bytes, HeadTable()
        self._kept: OrderedDict[tuple[int, int], Columns] = OrderedDict()
        for number, part in enumerate(self.parts):
            with open_part(part) as file:
                groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
                if groups:
                    self.table.add(number, groups, read_columns(part, file, None, Heads.COLUMNS))
        self.table.close()
        # of equal keys the last one, in the order in which keys first come
        self._sorted, first = np.unique(self.table.keys, return_index=True)
        last = np.unique(self.table.keys[::-1], return_index=True)[1]
        self._numbers = len(self.table) - 1 - last
        self.numbers = self._numbers[np.argsort(first)]
        """Numbers of the rows that count, in stored order, int64 [N]."""

    def find(self, keys: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Return the rows with these keys, int64 [N], and the keys without a row."""
        wanted = np.array([k.encode("utf-8", "surrogatepass") for k in keys] or [b""])
        at = np.minimum(np.searchsorted(self._sorted, wanted), max(0, len(self._sorted) - 1))
        there = self._sorted[at] == wanted if len(self._sorted) else np.zeros(len(wanted), bool)
        lacking = [k for k, found in zip(keys, there.tolist(), strict=False) if not found]
        return (self._numbers[at[: len(keys)]] if not lacking else np.zeros(0, np.int64)), lacking

    def target(self, number: int) -> Target:
        """Return the whole target of a row. Raises InputError, naming file and row, if the row is not a valid
        target."""
        row = self.table.rows[number]
        return self._columns(int(row["part"]), int(row["group"])).target(int(row["row"]))

    def _columns(self, part: int, group: int) -> Columns:
        if (part, group) in self._kept:
            self._kept.move_to_end((part, group))
            return self._kept[part, group]
        path = self.parts[part]
        with open_part(path) as file:
            columns = Columns(path, read_columns(path, file, group))
        self._kept[part, group] = columns
        while len(self._kept) > 1 and sum(c.nbytes for c in self._kept.values()) > self.cache_bytes:
            self._kept.popitem(last=False)
        return columns

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}


class StoredTargets(Sequence[Target]):
    """Represent targets of a store in a fixed order. Access and iteration read from disk; `heads` does not."""

    def __init__(self, source: Index, heads: HeadList) -> None:
        self.source, self.heads = source, heads

    @classmethod
    def open(cls, folder: Path, index: Index, keys: Sequence[str] | None, gate: GateSection | None) -> StoredTargets:
        """Return the targets with these keys, in their order, judged by `gate`; by default, all targets with their
        stored decisions.

        Raises:
            InputError: the folder lacks one of them; the message names it.
        """
        numbers, lacking = (index.numbers, []) if keys is None else index.find(keys)
        if lacking:
            raise InputError(
                f"{folder} lacks {len(lacking)} of {len(keys or ())} targets, the first is {lacking[0]}",
                hint="--resume makes them again",
            )
        return cls(index, HeadList(index.table, numbers, {} if gate is None else _decided(index.table, numbers, gate)))

    def __len__(self) -> int:
        return len(self.heads)

    @overload
    def __getitem__(self, at: int) -> Target: ...

    @overload
    def __getitem__(self, at: slice) -> StoredTargets: ...

    def __getitem__(self, at: int | slice) -> Target | StoredTargets:
        """Return one target, read from disk, or a selection, of which nothing is read yet."""
        if isinstance(at, slice):
            return StoredTargets(self.source, self.heads[at])
        number = int(self.heads.numbers[at])
        target = self.source.target(number)
        # the gate may have changed since the row was written
        said = self.heads.decided.get(number)
        return target if said is None else replace(target, accepted=said[0], reasons=said[1])

    def where(self, keep: Callable[[TargetHead], bool]) -> StoredTargets:
        """Return the targets whose head satisfies a condition, in the same order, without reading from disk."""
        return StoredTargets(self.source, self.heads.taken([i for i, h in enumerate(self.heads) if keep(h)]))

    def of_kind(self, *kinds: TargetKind) -> StoredTargets:
        """Return the targets of some kinds, in the same order, without making heads."""
        return StoredTargets(self.source, self.heads.having("kind", kinds))

    def extent(self, at: int) -> tuple[int, int]:
        """Return the lengths in tokens of a target's context and step, without reading from disk."""
        row = self.source.table.rows[self.heads.numbers[at]]
        return int(row["first_position"]), int(row["length"])

    def by_part(self) -> Iterator[tuple[int, Target]]:
        """Yield each target with its number, in the order on disk, so that every part is read once."""
        rows = self.source.table.rows[self.heads.numbers]
        for i in np.lexsort((rows["row"], rows["group"], rows["part"])).tolist():
            yield i, self[i]


def _decided(table: HeadTable, numbers: np.ndarray, gate: GateSection) -> Decided:
    """Return the gate's decisions for the hints among some rows."""
    hints = table.having(numbers, "kind", ("hint",))
    judged = (decide(head, gate) for head in table.heads(hints, {}))
    return {n: (head.accepted, head.reasons) for n, head in zip(hints.tolist(), judged, strict=True)}


def heads(targets: Sequence[Target]) -> Sequence[TargetHead]:
    """Return each target's `TargetHead`; for stored targets, nothing is read from disk."""
    return targets.heads if isinstance(targets, StoredTargets) else targets


def by_key(targets: Sequence[Target]) -> Sequence[Target]:
    """Return the targets ordered by their keys; stored targets stay on disk."""
    keys = [h.key for h in heads(targets)]
    return take(targets, sorted(range(len(keys)), key=keys.__getitem__))


def take(targets: Sequence[Target], numbers: Sequence[int]) -> Sequence[Target]:
    """Return the targets with these numbers, in this order; stored targets stay on disk."""
    if isinstance(targets, StoredTargets):
        return StoredTargets(targets.source, targets.heads.taken(numbers))
    return [targets[i] for i in numbers]


def by_part(targets: Sequence[Target]) -> Iterator[tuple[int, Target]]:
    """Yield each target with its number, in the order that reads least."""
    return targets.by_part() if isinstance(targets, StoredTargets) else iter(enumerate(targets))


def extents(targets: Sequence[Target]) -> list[tuple[int, int]]:
    """Return the lengths in tokens of each target's context and step; for stored targets, nothing is read from disk."""
    if isinstance(targets, StoredTargets):
        return [targets.extent(i) for i in range(len(targets))]
    return [(len(t.context_ids), len(t.step_ids)) for t in targets]


def of_kind(targets: Sequence[Target], kind: TargetKind) -> Sequence[Target]:
    """Return the targets of a kind, in their order; for stored targets, no heads are made."""
    return targets.of_kind(kind) if isinstance(targets, StoredTargets) else [t for t in targets if t.kind == kind]


def number_of(targets: Sequence[Target], kind: TargetKind, split: Split) -> int:
    """Return the number of targets with a given kind and split."""
    found = heads(of_kind(targets, kind))
    if isinstance(found, HeadList):
        return len(found.having("split", (split,)))
    return sum(h.split == split for h in found)

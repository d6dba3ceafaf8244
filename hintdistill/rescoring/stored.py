"""Targets that stay on disk: light columns in memory, everything else read part by part when it is asked for.

Selection, resume and the order of a training need a target's key, trace, split and decision and no array. So a store is
indexed once, by its light columns, and `StoredTargets` is a sequence of targets whose arrays are read when one of them is
taken. What was read last is kept up to `CACHE_BYTES`; memory does not grow with the number of targets beyond their heads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from hintdistill.config import GateSection
from hintdistill.core.errors import InputError
from hintdistill.core.scores import Target, TargetHead
from hintdistill.rescoring.columns import Columns, Heads, open_part, read_columns
from hintdistill.rescoring.gate import decide

CACHE_BYTES = 32 << 20
"""Bytes of the columns that were read last and are kept; at least one group of rows is."""


@dataclass(frozen=True)
class Place:
    """Where a target lies, and how long its sequence is."""

    part: int
    group: int
    """Row group of the part."""
    row: int
    """Row of the group."""
    start: int
    """Tokens of its context."""
    length: int
    """Tokens of its step."""


class Index:
    """The heads and places of every row of a folder, by key, and the groups of rows that were read last."""

    def __init__(self, parts: Sequence[Path], cache_bytes: int = CACHE_BYTES) -> None:
        """Read the light columns of these parts; of rows with the same key the last one counts.

        Raises:
            InputError: a part is corrupt, or another program or version wrote it; names the file.
        """
        self.parts, self.cache_bytes = list(parts), cache_bytes
        self.heads: dict[str, TargetHead] = {}
        self.places: dict[str, Place] = {}
        self._kept: OrderedDict[tuple[int, int], Columns] = OrderedDict()
        read = Heads()
        for number, part in enumerate(self.parts):
            with open_part(part) as file:
                for group in range(file.num_row_groups):
                    table = read_columns(part, file, group, Heads.COLUMNS)
                    for row, (head, start, length) in enumerate(read.of(table)):
                        self.heads[head.key] = head
                        self.places[head.key] = Place(number, group, row, start, length)

    def target(self, key: str) -> Target:
        """A whole target. Raises InputError where its row cannot be one; names file and row."""
        place = self.places[key]
        return self._columns(place.part, place.group).target(place.row)

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
    """Targets of a store in a fixed order. Taking one, or going through them, reads from disk; `heads` does not."""

    def __init__(self, source: Index, heads: Sequence[TargetHead]) -> None:
        self.source, self.heads = source, tuple(heads)

    @classmethod
    def open(cls, folder: Path, index: Index, keys: Sequence[str] | None, gate: GateSection | None) -> StoredTargets:
        """Those with these keys, in their order, judged by `gate`; all of them, as they were judged, without either.

        Raises:
            InputError: the folder lacks one of them; names it.
        """
        wanted = list(index.heads) if keys is None else keys
        if lacking := [k for k in wanted if k not in index.heads]:
            raise InputError(
                f"{folder} lacks {len(lacking)} of {len(wanted)} targets, the first is {lacking[0]}",
                hint="--resume makes them again",
            )
        found = [index.heads[k] for k in wanted]
        return cls(index, found if gate is None else [decide(h, gate) for h in found])

    def __len__(self) -> int:
        return len(self.heads)

    @overload
    def __getitem__(self, at: int) -> Target: ...

    @overload
    def __getitem__(self, at: slice) -> StoredTargets: ...

    def __getitem__(self, at: int | slice) -> Target | StoredTargets:
        """One target, read from disk; or some of them, of which nothing is read yet."""
        if isinstance(at, slice):
            return StoredTargets(self.source, self.heads[at])
        head = self.heads[at]
        target = self.source.target(head.key)
        # the gate may have changed since the row was written
        return replace(target, accepted=head.accepted, reasons=head.reasons)

    def where(self, keep: Callable[[TargetHead], bool]) -> StoredTargets:
        """Those whose head is to be kept, in the same order; reads nothing."""
        return StoredTargets(self.source, [h for h in self.heads if keep(h)])

    def extent(self, at: int) -> tuple[int, int]:
        """Tokens of a target's context and of its step; reads nothing."""
        place = self.source.places[self.heads[at].key]
        return place.start, place.length

    def by_part(self) -> Iterator[tuple[int, Target]]:
        """Each with its number, in the order in which they lie on disk: every part is read once."""
        places = [self.source.places[h.key] for h in self.heads]
        for i in sorted(range(len(places)), key=lambda i: (places[i].part, places[i].group, places[i].row)):
            yield i, self[i]


def heads(targets: Sequence[Target]) -> Sequence[TargetHead]:
    """The light columns of targets; of stored ones nothing is read for it."""
    return targets.heads if isinstance(targets, StoredTargets) else targets


def by_key(targets: Sequence[Target]) -> Sequence[Target]:
    """The targets in order of their keys; stored ones stay on disk."""
    return take(targets, sorted(range(len(targets)), key=lambda i: heads(targets)[i].key))


def take(targets: Sequence[Target], numbers: Sequence[int]) -> Sequence[Target]:
    """The targets of these numbers, in this order; stored ones stay on disk."""
    if isinstance(targets, StoredTargets):
        return StoredTargets(targets.source, [targets.heads[i] for i in numbers])
    return [targets[i] for i in numbers]


def by_part(targets: Sequence[Target]) -> Iterator[tuple[int, Target]]:
    """Each target with its number, in whichever order reads least."""
    return targets.by_part() if isinstance(targets, StoredTargets) else iter(enumerate(targets))


def extents(targets: Sequence[Target]) -> list[tuple[int, int]]:
    """Tokens of each target's context and step; of stored ones nothing is read for it."""
    if isinstance(targets, StoredTargets):
        return [targets.extent(i) for i in range(len(targets))]
    return [(len(t.context_ids), len(t.step_ids)) for t in targets]

"""Share one edited context between several twins of a trace: the engine reads it once, and it is one row in training.

The edits of a trace's findings are combined if their places do not collide. Each twin gets the edits above its own
step, is rendered again, and must pass the same checks as alone. If it fails, or if the contexts are not prefixes of one
another token for token, it keeps a context of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from hintdistill.core.errors import HintdistillError
from hintdistill.core.types import Replacement, Trace, Twin, TwinEdit

COMBINED = "combined"
"""Note of a twin whose context also contains the edits of other findings; the number of findings follows."""
Build = Callable[[Twin, TwinEdit], Twin]
"""Makes the same twin under another edit, with all its checks. Raises HintdistillError if one fails."""


def combined(trace: Trace, twins: Sequence[Twin], build: Build) -> list[Twin]:
    """Return the twins of one trace, at most one per finding, in as few contexts as possible and in the given order.

    Twins whose edit removes messages or was written by a critic are left unchanged.
    """
    groups: list[list[int]] = []
    made = list(twins)
    for i in sorted(range(len(twins)), key=lambda i: (twins[i].finding.step, i)):
        if _alone(twins[i]):
            continue
        for group in groups:
            if (joint := _joint(trace, [twins[k] for k in (*group, i)], build)) is not None:
                group.append(i)
                for k, twin in zip(group, joint, strict=True):
                    made[k] = twin
                break
        else:
            groups.append([i])
    return made


def _alone(twin: Twin) -> bool:
    return bool(twin.edit.removed) or twin.edit == twin.finding.twin


def _joint(trace: Trace, twins: Sequence[Twin], build: Build) -> list[Twin] | None:
    """Return these twins in one context, in the order of their steps; None if that is impossible."""
    every = union([t.edit for t in twins])
    if every is None:
        return None
    out: list[Twin] = []
    for twin in twins:
        edit = twin.edit.model_copy(update={"replacements": _above(every, trace, twin.finding.step)})
        try:
            now = build(twin, edit)
        except HintdistillError:
            return None
        out.append(now.model_copy(update={"notes": (*now.notes, f"{COMBINED} {len(twins)}")}))
    for first, second in pairwise(out):
        begins = first.plain_ids if second.finding.step > first.finding.step else first.context_ids
        if second.context_ids[: len(begins)] != begins:
            return None
    return out


def _above(replacements: Sequence[Replacement], trace: Trace, step: int) -> tuple[Replacement, ...]:
    """Return the edits whose places a step has read."""
    at = trace.step_indices[step]
    return tuple(r for r in replacements if r.where == "tools" or r.index < at)


def union(edits: Sequence[TwinEdit]) -> tuple[Replacement, ...] | None:
    """Return the replacements of several edits without repetitions; None if one text occurs in another at the same
    place."""
    found: list[Replacement] = []
    for edit in edits:
        for r in edit.replacements:
            if r in found:
                continue
            if any(_collide(r, other) for other in found):
                return None
            found.append(r)
    return tuple(found)


def _collide(a: Replacement, b: Replacement) -> bool:
    if (a.where, a.index) != (b.where, b.index):
        return False
    if not a.old and not b.old:
        # two additions at one place are two sentences, or two schemas
        return a.new in b.new or b.new in a.new
    if not a.old or not b.old:
        added, replaced = (a, b) if not a.old else (b, a)
        return a.where == "message" and replaced.old in added.new
    return any(x in y for x, y in ((a.old, b.old), (b.old, a.old), (a.old, b.new), (b.old, a.new)))

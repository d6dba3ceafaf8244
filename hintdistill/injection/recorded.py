"""An edited context on recorded ids: what the edit does not name keeps the ids that the student read.

Every function here takes token ids alone. `original` is the context as rendered, `recorded` as the student read it (the same
tokens, or other spellings of earlier steps), `made` the edited context as rendered, and `origin` says for each token of `made`
where it comes from in `original`, or None for what the edit put there.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from hintdistill.core.errors import SpliceError, TwinError
from hintdistill.injection.opening import first_difference


def changed(old: Sequence[Any] | str, new: Sequence[Any] | str) -> tuple[int, int, int]:
    """Return where two sequences differ: the common beginning, and the half-open ends of the differing stretch in
    each."""
    start = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    room = min(len(old), len(new)) - start
    same = next((i for i in range(room) if old[len(old) - 1 - i] != new[len(new) - 1 - i]), room)
    return start, len(old) - same, len(new) - same


def onto_recorded(
    original: tuple[int, ...],
    recorded: tuple[int, ...],
    made: tuple[int, ...],
    origin: Sequence[int | None],
    loose: bool = False,
) -> tuple[int, ...]:
    """Return the edited context with recorded ids wherever nothing is edited.

    Args:
        original: the original context as rendered.
        recorded: the original context as recorded; the same tokens, or other spellings of earlier steps.
        made: the edited context as rendered.
        origin: for each token of `made`, where it comes from in `original`; None for what the edit put there.
        loose: whether what is taken out may be spelled otherwise in the recorded context, as messages taken out whole may.

    Raises:
        TwinError: the recorded context is not what the template prints around an edited place (`recorded_differs`).
    """
    if original == recorded:
        return made
    where = [-1, *_matches(original, recorded), len(recorded)]
    kept = [-1, *(i for i in origin if i is not None), len(original)]
    new: dict[int, list[int]] = {}
    last = -1
    for token, source in zip(made, origin, strict=True):
        if source is None:
            new.setdefault(last, []).append(token)
        else:
            last = source
    out: list[int] = []
    at = 0
    for before, after in pairwise(kept):
        if after == before + 1 and before not in new:
            continue
        left, right = where[before + 1], where[after + 1]
        exact = right is not None and left is not None and right - left == after - before
        if left is None or right is None or not (exact or (loose and right > left)):
            raise TwinError(
                "recorded_differs", "the recorded context is not what the template prints at an edited place"
            )
        out += [*recorded[at : left + 1], *new.get(before, ())]
        at = right
    return tuple(out) + recorded[at:]


def _matches(original: tuple[int, ...], recorded: tuple[int, ...]) -> list[int | None]:
    """For each token of the rendered context, the same token of the recorded one; None if there is none."""
    start, end, recorded_end = changed(original, recorded)
    out: list[int | None] = [*range(start), *([None] * (end - start))]
    out += [recorded_end + i for i in range(len(original) - end)]
    middle = SequenceMatcher(None, original[start:end], recorded[start:recorded_end], autojunk=False)
    for block in middle.get_matching_blocks():
        for i in range(block.size):
            out[start + block.a + i] = start + block.b + i
    return out


def require_kept(
    original: tuple[int, ...],
    recorded: tuple[int, ...],
    made: tuple[int, ...],
    origin: Sequence[int | None],
    context: tuple[int, ...],
) -> None:
    """Refuse an edited context whose ids outside the edit are not those of the original; asked of every twin.

    Raises:
        SpliceError: a kept token has another id or another order, or what is above the first edited place or below the
            last one is not what was recorded there.
    """
    kept = [(i, at) for i, at in enumerate(origin) if at is not None]
    if len(origin) != len(made) or any(made[i] != original[at] for i, at in kept):
        raise SpliceError("a token outside the edit has another id in the twin than in the original context")
    if any(a >= b for (_, a), (_, b) in pairwise(kept)):
        raise SpliceError("tokens outside the edit have another order in the twin than in the original context")
    above = next((i for i, at in enumerate(origin) if at != i), len(origin))
    below = next((i for i in range(len(origin)) if origin[-1 - i] != len(original) - 1 - i), len(origin))
    where = [*_matches(original, recorded), len(recorded)]
    first = where[above - 1] if above else -1
    last = where[len(original) - below]
    if first is None or context[: first + 1] != recorded[: first + 1]:
        raise SpliceError("above the first edited place, the twin's ids are not those of the original context")
    rest = len(recorded) - (len(recorded) if last is None else last)
    if last is None or context[len(context) - rest :] != recorded[last:]:
        raise SpliceError("below the last edited place, the twin's ids are not those of the original context")


def require_text(made: str, context: str) -> None:
    """Refuse an edited context on recorded ids that reads otherwise than the edited render. Raises SpliceError."""
    if made != context:
        raise SpliceError(f"on the recorded ids, the twin is not the edited render: {first_difference(made, context)}")

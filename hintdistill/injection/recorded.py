"""Put an edited context onto recorded ids: outside the edit, the ids that the student read are kept.

Every function here takes only token ids. `original` is the rendered context, and `recorded` the one that the student
read (the same tokens, or other spellings of earlier steps). `made` is the rendered edited context. `origin` gives for
each token of `made` its position in `original`, or None if the edit inserted it.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from hintdistill.core.errors import SpliceError, TwinError
from hintdistill.injection.opening import first_difference


def changed(old: Sequence[Any] | str, new: Sequence[Any] | str) -> tuple[int, int, int]:
    """Return the length of the common beginning of two sequences, and the half-open end of the differing range in
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
    """Return the edited context with recorded ids outside the edit.

    Args:
        original: the original context as rendered.
        recorded: the original context as recorded; the same tokens, or other spellings of earlier steps.
        made: the edited context as rendered.
        origin: for each token of `made`, its position in `original`; None if the edit inserted it.
        loose: whether removed text may be spelled differently in the recorded context, as is allowed for whole
            messages.

    Raises:
        TwinError: the recorded context differs from the template's render around an edited place (`recorded_differs`).
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
                "recorded_differs", "the recorded context differs from the template's render at an edited place"
            )
        out += [*recorded[at : left + 1], *new.get(before, ())]
        at = right
    return tuple(out) + recorded[at:]


def _matches(original: tuple[int, ...], recorded: tuple[int, ...]) -> list[int | None]:
    """Return, for each token of the rendered context, the matching token of the recorded one; None if there is none."""
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
    """Refuse an edited context whose ids outside the edit differ from the original; every twin is checked.

    Raises:
        SpliceError: a kept token has another id or position, or the ids before the first edited place or after the last
            one differ from the recorded ones.
    """
    kept = [(i, at) for i, at in enumerate(origin) if at is not None]
    if len(origin) != len(made) or any(made[i] != original[at] for i, at in kept):
        raise SpliceError("a token outside the edit has a different id in the twin than in the original context")
    if any(a >= b for (_, a), (_, b) in pairwise(kept)):
        raise SpliceError("tokens outside the edit are in a different order in the twin than in the original context")
    above = next((i for i, at in enumerate(origin) if at != i), len(origin))
    below = next((i for i in range(len(origin)) if origin[-1 - i] != len(original) - 1 - i), len(origin))
    where = [*_matches(original, recorded), len(recorded)]
    first = where[above - 1] if above else -1
    last = where[len(original) - below]
    if first is None or context[: first + 1] != recorded[: first + 1]:
        raise SpliceError("above the first edited place, the twin's ids differ from the original context")
    rest = len(recorded) - (len(recorded) if last is None else last)
    if last is None or context[len(context) - rest :] != recorded[last:]:
        raise SpliceError("below the last edited place, the twin's ids differ from the original context")


def require_text(made: str, context: str) -> None:
    """Refuse an edited context on recorded ids whose text differs from the edited render. Raises SpliceError."""
    if made != context:
        raise SpliceError(
            f"on the recorded ids, the twin's text differs from the edited render: {first_difference(made, context)}"
        )

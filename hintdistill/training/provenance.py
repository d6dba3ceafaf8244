"""Check stored targets before training: they must come from the same weights, tokenizer and template."""

from __future__ import annotations

from collections.abc import Sequence

from hintdistill.core.errors import InputError
from hintdistill.core.scores import TargetHead

SPEAKS_OF = {"weights": "the teacher's weights", "renderer": "the tokenizer or the chat template"}
"""Entry of `Target.versions` → what has changed if it differs."""


def require_same(targets: Sequence[TargetHead], weights: str, renderer: str) -> None:
    """Refuse targets made by other weights or another tokenizer, and targets of unknown origin.

    Args:
        weights: key of the weights that made the targets, `ModelKey.weights` of the teacher's folder.
        renderer: key of the student's tokenizer and template, `Renderer.key`.

    Raises:
        InputError: the message names the first such target, their number, and the difference.
    """
    for name, now in (("weights", weights), ("renderer", renderer)):
        other = [t for t in targets if t.versions.get(name) != now]
        if not other:
            continue
        first = other[0]
        made = first.versions.get(name)
        about = (
            f"{SPEAKS_OF[name]} changed: {made} → {now}"
            if made
            else f"it does not say which {name} made it (now: {now})"
        )
        raise InputError(
            f"{len(other)} of {len(targets)} targets do not belong to this training, for example "
            f"{first.key} (trace {first.trace_id}, step {first.step}): {about}",
            hint="score them again with this teacher and tokenizer, in a new run folder, or with --resume "
            "after moving the targets folder away; or train the model they were made with",
        )

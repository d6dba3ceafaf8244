"""Represent a further context of a step as tokens: the text that an extra view of a recipe reads."""

from __future__ import annotations

from hintdistill.core.frozen import FrozenModel


class ContextBlock(FrozenModel):
    """Hold the tokens of a further context, inserted at the same place as the hint."""

    text: str
    insert_at: int
    block_ids: tuple[int, ...] = ()
    """Tokens of the context. If empty, the view reads the same text as the student."""

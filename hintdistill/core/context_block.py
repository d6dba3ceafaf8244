"""A further context of a step, as tokens: what another view of a recipe reads beside the student and the hinted teacher."""

from __future__ import annotations

from hintdistill.core.frozen import FrozenModel


class ContextBlock(FrozenModel):
    """The tokens of a further context, for the same place as the hint."""

    text: str
    insert_at: int
    block_ids: tuple[int, ...] = ()
    """None at all: the view reads what the student read."""

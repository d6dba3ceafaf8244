"""Rows → the batches that the objectives take: views at the scored positions, sampled tokens, facts.

Stored targets hold kept entries and a tail, so their batches are *restricted*: the columns are those entries, the same for
every view. Views that a model makes in the step cover the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hintdistill.objectives import Batch, gather_with_tail
from hintdistill.training.rows import TrainRow


def _wide(parts: Sequence[Tensor], fill: float) -> Tensor:
    """Rows of different widths under each other [N, max K]; the last column is the tail and stays last."""
    width = max(p.shape[-1] for p in parts)
    out = []
    for part in parts:
        pad = part.new_full((len(part), width - part.shape[-1]), fill)
        out.append(torch.cat([part[:, :-1], pad, part[:, -1:]], -1))
    return torch.cat(out)


def restricted(rows: Sequence[TrainRow], student: Sequence[Tensor]) -> Batch:
    """A batch of stored targets; `student` are log-probabilities of the vocabulary, [T, V] per row."""
    device = student[0].device
    supports = [r.support_ids.to(device) for r in rows]
    ours = [gather_with_tail(s, ids) for s, ids in zip(student, supports, strict=True)]
    teacher, plain = ([x.to(device) for x in side] for side in ([r.target for r in rows], [r.plain for r in rows]))
    # the sampled id is always in a stored support
    sampled = [
        (ids == r.ids[-r.length :, None].to(device)).int().argmax(-1) for r, ids in zip(rows, supports, strict=True)
    ]
    before = _wide(plain, -torch.inf)
    return Batch(
        # the run has trained nothing when targets are made, so the plain view is the initial policy's
        views={"student": _wide(ours, -torch.inf), "teacher": _wide(teacher, -torch.inf), "plain": before, "initial": before},
        sampled=torch.cat(sampled), lengths=[r.length for r in rows], facts=facts(rows, device), restricted=True,
    )  # fmt: skip


def whole(rows: Sequence[TrainRow], views: Mapping[str, Tensor], special_ids: Sequence[int]) -> Batch:
    """A batch of views over the vocabulary, [ΣT, V] each."""
    device = views["student"].device
    return Batch(
        views=views, sampled=torch.cat([r.ids[-r.length :] for r in rows]).to(device), lengths=[r.length for r in rows],
        facts=facts(rows, device), special_ids=special_ids,
    )  # fmt: skip


def facts(rows: Sequence[TrainRow], device: torch.device) -> dict[str, Tensor]:
    """The rows' facts under each other, [ΣT] each."""
    each = [r.facts() for r in rows]
    return {name: torch.cat([f[name] for f in each]).to(device) for name in each[0]}


def base(rows: Sequence[TrainRow], device: torch.device) -> dict[str, Tensor]:
    """The rows' static weights by term, [ΣT] each."""
    return {name: torch.cat([r.weights[name] for r in rows]).to(device) for name in rows[0].weights}

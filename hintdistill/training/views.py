"""Convert slots into the batches that the objectives take: views at the scored positions, sampled tokens, facts.

Stored targets contain kept entries and a tail, so their batches are *restricted*: the columns are those entries, the
same for every view. Views that a model makes in the step cover the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hintdistill.objectives import Batch
from hintdistill.training.slots import Slot


def wide(parts: Sequence[Tensor], fill: float) -> Tensor:
    """Stack slots of different widths [N, max K]; the last column is the tail and stays last."""
    width = max(p.shape[-1] for p in parts)
    out = []
    for part in parts:
        pad = part.new_full((len(part), width - part.shape[-1]), fill)
        out.append(torch.cat([part[:, :-1], pad, part[:, -1:]], -1))
    return torch.cat(out)


def supports(slots: Sequence[Slot], device: torch.device) -> Tensor:
    """Return the stored supports stacked, int64 [N, max K], padded with -1."""
    width = max(s.support_ids.shape[1] for s in slots)
    each = [torch.nn.functional.pad(s.support_ids, (0, width - s.support_ids.shape[1]), value=-1) for s in slots]
    return torch.cat(each).to(device)


def restricted(slots: Sequence[Slot], student: Tensor) -> Batch:
    """Return a batch of stored targets; `student` contains log-probabilities of the stored entries and of the rest, [N,
    max K + 1]."""
    device = student.device
    return Batch(
        views={"student": student, **stored(slots, device)},
        sampled=columns(slots, device),
        lengths=[s.length for s in slots],
        facts=facts(slots, device),
        restricted=True,
    )


def stored(slots: Sequence[Slot], device: torch.device) -> dict[str, Tensor]:
    """Return the stored views stacked, log-probabilities of kept entries and tail, [N, max K + 1] each."""
    before = wide([s.plain for s in slots], -torch.inf).to(device)
    # the run has trained nothing when targets are made, so the plain view is the initial policy's
    return {"teacher": wide([s.target for s in slots], -torch.inf).to(device), "plain": before, "initial": before}


def columns(slots: Sequence[Slot], device: torch.device) -> Tensor:
    """Return the index of each sampled token in its stored support, int64 [N]."""
    return torch.cat([s.columns for s in slots]).to(device)


def whole(slots: Sequence[Slot], views: Mapping[str, Tensor], special_ids: Sequence[int]) -> Batch:
    """Return a batch of views over the vocabulary, [N, V] each."""
    device = views["student"].device
    return Batch(
        views=views,
        sampled=sampled(slots, device),
        lengths=[s.length for s in slots],
        facts=facts(slots, device),
        special_ids=special_ids,
    )


def sampled(slots: Sequence[Slot], device: torch.device) -> Tensor:
    """Return the sampled ids stacked, int64 [N]."""
    return torch.cat([s.sampled for s in slots]).to(device)


def facts(slots: Sequence[Slot], device: torch.device) -> dict[str, Tensor]:
    """Return the slots' facts stacked, [N] each."""
    each = [s.facts() for s in slots]
    # anchors may come from traces that are no part of the round, and then nobody knows their outcome
    known = [name for name in each[0] if all(name in f for f in each)]
    return {name: torch.cat([f[name] for f in each]).to(device) for name in known}


def base(slots: Sequence[Slot], device: torch.device) -> dict[str, Tensor]:
    """Return the slots' static weights stacked by term, [N] each."""
    return {name: torch.cat([s.weights[name] for s in slots]).to(device) for name in slots[0].weights}

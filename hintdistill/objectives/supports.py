"""Define supports: the vocabulary entries that are compared, and the treatment of the remainder.

Truncating a KL without its remainder changes its gradient: the optimiser lowers the mass of the kept set. So the
remainder becomes one bucket, the tail, which gives the exact KL of a coarser distribution, never above the full KL.
`renorm` compares conditional distributions instead, and has no gradient on the kept mass; `drop` is for `rkl_sg` and
for one-sided sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hintdistill.objectives.checks import rows_alike, same_shape


def gather_with_tail(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities of the kept ids and of all other entries together: [..., K+1].

    Args:
        logprobs: log-probabilities of the whole vocabulary [..., V].
        ids: kept ids [..., K], each once per row, -1 for padding; at least one per row.

    If the whole vocabulary is kept, the tail is -inf and has no gradient.
    """
    rows_alike(logprobs=logprobs, ids=ids)
    pads = ids < 0
    kept = logprobs.gather(-1, ids.clamp(min=0)).masked_fill(pads, -torch.inf)
    # a pad points at its row's first id, which is kept anyway
    holes = torch.where(pads, ids[..., :1], ids)
    rest = logprobs.scatter(-1, holes, -torch.inf)
    tail = rest.logsumexp(-1, keepdim=True)
    return torch.cat([kept, tail], -1)


def union_of(*sets: Tensor) -> Tensor:
    """Return per row the sorted union of all id sets [..., K_i], padded with -1 at the end: [..., ΣK_i]."""
    ids = torch.cat(sets, -1).sort(-1).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[..., 1:] = ids[..., 1:] == ids[..., :-1]
    # repeats and pads sort behind every id
    behind = torch.iinfo(ids.dtype).max
    ids = ids.masked_fill(again | (ids < 0), behind).sort(-1).values
    return ids.masked_fill(ids == behind, -1)


def intersection_of(a: Tensor, b: Tensor) -> Tensor:
    """Return per row the ids in both sets, in the order of the first, padded with -1 at the end: [..., K_a]."""
    rows_alike(a=a, b=b)
    both = (a[..., :, None] == b[..., None, :]).any(-1) & (a >= 0)
    return _pads_last(a.masked_fill(~both, -1))


def without(ids: Tensor, removed: Tensor) -> Tensor:
    """Return the ids that are not in `removed` [M], padded with -1 at the end: [..., K]."""
    return _pads_last(ids.masked_fill(torch.isin(ids, removed), -1))


def _pads_last(ids: Tensor) -> Tensor:
    order = (ids < 0).to(torch.int8).argsort(dim=-1, stable=True)
    return ids.gather(-1, order)


SUPPORTS = ("sampled", "full", "student_topk", "teacher_topk", "union", "intersection", "token_set")
RESTS = ("tail", "renorm", "drop")


def select(
    kind: str,
    student: Tensor,
    target: Tensor,
    sampled: Tensor,
    *,
    k: int = 100,
    token_ids: Sequence[int] = (),
    removed: Sequence[int] = (),
    include_sampled: bool = False,
) -> Tensor | None:
    """Return the ids that a support keeps, [N, K] padded with -1; None for the full vocabulary. Raises ValueError for
    an unknown kind.

    Args:
        student, target: log-probabilities [N, V]; only their order matters, so no gradient passes.
        k: entries taken of each side. Published: 100 (SDPO, HINT-SD, HERO, ROSD), 64 (TrOPD, KAT), 50 (OpenClaw), 32
            (Revisiting OPD), 20 (SDPO with feedback), 16 (EOPD, TRB, TA-OPD), 256 (NCA).
        token_ids: the entries of a `token_set`, e.g. the tokens of the tool names.
        removed: entries that are never kept, e.g. special tokens (Revisiting OPD, arXiv 2603.25562).
        include_sampled: also keep the sampled token, so that an error outside the teacher's top-k is still lowered.
    """
    same_shape(student=student, target=target)
    rows_alike(student=student, sampled=sampled[:, None])
    vocab = student.shape[-1]
    k = min(k, vocab)
    own = sampled[:, None]

    def top(logprobs: Tensor) -> Tensor:
        return logprobs.detach().topk(k).indices

    if kind == "full":
        if not removed:
            return None
        ids = torch.arange(vocab, device=student.device).expand(len(student), vocab)
    elif kind == "sampled":
        return own
    elif kind == "student_topk":
        ids = top(student)
    elif kind == "teacher_topk":
        ids = top(target)
    elif kind == "union":
        ids = union_of(top(student), top(target), own)
    elif kind == "intersection":
        ids = intersection_of(top(student), top(target))
    elif kind == "token_set":
        ids = torch.tensor(sorted(set(token_ids)), device=student.device).expand(len(student), -1)
    else:
        raise ValueError(f"unknown support {kind!r}; the kinds are {', '.join(SUPPORTS)}")
    if include_sampled and kind not in ("full", "union"):
        ids = union_of(ids, own)
    return without(ids, torch.as_tensor(list(removed), device=ids.device)) if removed else ids


def restrict(logprobs: Tensor, ids: Tensor | None, rest: str = "tail") -> Tensor:
    """Return log-probabilities on a support: [N, K+1] with `tail`, [N, K] with `renorm` or `drop`, [N, V] if ids is
    None.

    A position without kept entries contributes nothing (all -inf) under `renorm` and `drop`, and one bucket under
    `tail`.
    """
    if ids is None:
        return logprobs
    rows_alike(logprobs=logprobs, ids=ids)
    pads = ids < 0
    if rest == "tail":
        nothing = pads.all(-1, keepdim=True)
        if not nothing.any():
            return gather_with_tail(logprobs, ids)
        # with nothing kept the tail is everything, log 1, and has no gradient
        some = torch.where(nothing & (torch.arange(ids.shape[-1], device=ids.device) == 0), 0, ids)
        bucket = torch.full_like(logprobs[..., : ids.shape[-1] + 1], -torch.inf)
        bucket[..., -1] = 0.0
        return torch.where(nothing, bucket, gather_with_tail(logprobs, some))
    kept = logprobs.gather(-1, ids.clamp(min=0)).masked_fill(pads, -torch.inf)
    if rest == "drop":
        return kept
    if rest != "renorm":
        raise ValueError(f"unknown remainder {rest!r}; the kinds are {', '.join(RESTS)}")
    empty = pads.all(-1, keepdim=True)
    total = torch.where(empty, 0.0, kept).logsumexp(-1, keepdim=True)
    return torch.where(pads, -torch.inf, kept - total)

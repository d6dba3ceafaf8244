"""Supports: which vocabulary entries are compared.

Truncating a KL without its remainder changes its gradient (the optimiser lowers the mass of the kept set), so the
remainder is one bucket, the tail: an exact KL of a coarser distribution, never above the full one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gather_with_tail(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the kept ids and of everything else: [..., K+1].

    Args:
        logprobs: log-probabilities of the whole vocabulary [..., V].
        ids: kept ids [..., K], each once per row, -1 for padding; at least one per row.

    Where the whole vocabulary is kept the tail is -inf and has no gradient.
    """
    pads = ids < 0
    kept = logprobs.gather(-1, ids.clamp(min=0)).masked_fill(pads, -torch.inf)
    # a pad points at its row's first id, which is kept anyway
    holes = torch.where(pads, ids[..., :1], ids)
    rest = logprobs.scatter(-1, holes, -torch.inf)
    tail = rest.logsumexp(-1, keepdim=True)
    return torch.cat([kept, tail], -1)


def union_of(*sets: Tensor) -> Tensor:
    """Per row, the ids of all sets [..., K_i], each once, ascending, padded with -1 at the end: [..., ΣK_i]."""
    ids = torch.cat(sets, -1).sort(-1).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[..., 1:] = ids[..., 1:] == ids[..., :-1]
    # repeats and pads sort behind every id
    behind = torch.iinfo(ids.dtype).max
    ids = ids.masked_fill(again | (ids < 0), behind).sort(-1).values
    return ids.masked_fill(ids == behind, -1)

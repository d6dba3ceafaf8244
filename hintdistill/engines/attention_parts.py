"""Compute attention over parts of the keys without a mask: a fused kernel for each part, combined through their
log-sums.

A branch sees all of the trunk before its fork, and itself causally; a later piece of a long trunk sees all earlier
ones, and itself causally. So no part needs a mask. For a block of 256 queries over 128k keys, a mask would be larger
than the keys. If o_i is the output of part i and l_i the log of its softmax denominator, the total is Σ o_i exp(l_i -
logsumexp l), as for the blocks of flash attention (Dao et al. 2022, arXiv 2205.14135).

The kernels are those behind torch's `scaled_dot_product_attention`; they are called directly, because that function
does not return the log-sums. Each is tested once per device, precision and width. If it is missing or inexact, callers
use masks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDEST = 256
"""Largest head width for which the fused kernels exist."""
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Largest allowed difference to plain attention in the test; 0.03 in lower precisions."""


@dataclass(frozen=True)
class Part:
    """Hold keys [Hk, S, D] and values [Hk, S, D] that all queries see. If `causal`, there are as many keys as queries,
    and each query sees the keys up to its own."""

    key: Tensor
    value: Tensor
    causal: bool = False


def fits(query: Tensor, value: Tensor) -> bool:
    """Return whether queries [H, n, D] can attend here to parts with values [Hk, S, Dv]: without gradient, and with a
    tested kernel."""
    if torch.is_grad_enabled() and query.requires_grad:
        return False
    if query.dtype != value.dtype:
        # under autocast rotated queries and keys may be float32 beside values in bfloat16; the kernels take one precision
        return False
    width = query.shape[-1]
    return width == value.shape[-1] <= WIDEST and _tried(query.device.type, query.dtype, width)


def attend_parts(query: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
    """Return the attention output [H, n, D] of queries [H, n, D] over all keys of all parts. At least one part must not
    be empty."""
    whole: Tensor | None = None
    total: Tensor | None = None
    for part in parts:
        if not part.key.shape[1]:
            continue
        out, logsum = _attend(query, part, scale)
        if whole is None or total is None:
            whole, total = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out, logsum
            continue
        both = torch.logaddexp(total, logsum)
        whole = whole * (total - both).exp()[..., None] + out * (logsum - both).exp()[..., None]
        total = both
    if whole is None:
        raise ValueError("there are no keys to attend to")
    return whole.to(query.dtype)


def _attend(query: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output [H, n, D] and log-sums [H, n] of one part."""
    heads, n, width = query.shape
    key, value, groups = part.key, part.value, heads // part.key.shape[0]
    if groups > 1 and part.causal:
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    elif groups > 1:
        # the query heads of one key head are further rows: no key is copied
        query = query.reshape(key.shape[0], groups * n, width)
    out, logsum = _kernel(query[None], key[None], value[None], part.causal, scale)
    return out[0].reshape(heads, n, width), logsum[0, :, : query.shape[1]].reshape(heads, n)


def _kernel(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output [1, H, n, D] and log-sums [1, H, ≥ n] from the kernel for this device and precision."""
    aten = torch.ops.aten
    if query.device.type == "cpu":
        out, logsum = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    elif query.dtype in (torch.float16, torch.bfloat16):
        out, logsum = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)[:2]
    else:
        out, logsum = aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )[:2]
    return out, logsum


@functools.cache
def _tried(device: str, dtype: torch.dtype, width: int) -> bool:
    """Return whether the kernel exists and agrees with plain attention on random numbers."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(h, n, width, generator=generator, dtype=torch.float64) for h, n in ((4, 5), (2, 12), (2, 12))
    )
    scale = width**-0.5
    hidden = torch.ones(5, 12, dtype=torch.bool).triu(8)
    logits = (query @ key.repeat_interleave(2, 0).transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
    wanted = logits.softmax(-1) @ value.repeat_interleave(2, 0)
    try:
        q, k, v = (x.to(device, dtype) for x in (query, key, value))
        with torch.no_grad():
            found = attend_parts(q, [Part(k[:, :7], v[:, :7]), Part(k[:, 7:], v[:, 7:], causal=True)], scale)
        return bool((found.double().cpu() - wanted).abs().max() <= BOUNDS.get(dtype, 0.03))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False

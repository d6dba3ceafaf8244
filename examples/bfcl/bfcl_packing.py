"""Train on sheets: the system prompt of a sheet is read once, and each of its rows attends only to it and to itself.

What a row's answer tokens are given is what they would be given in a sequence of the row's own (a test holds this), for about half
of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bfcl_rows import Sheet

from hintdistill.core.types import Message
from hintdistill.injection.rendering import Renderer

TRUNK, PADDING = 0, -1


@dataclass(frozen=True)
class Packed:
    """Sheets as tensors: B sheets, S tokens."""

    ids: torch.Tensor
    """int64 [B S]"""
    positions: torch.Tensor
    """int64 [B S]"""
    segments: torch.Tensor
    """int64 [B S]: 0 for the shared prompt, n for row n, -1 for padding."""
    targets: torch.Tensor
    """int64 [B S]: the token that comes next, where it is one of an answer; else -100."""
    weights: torch.Tensor
    """float32 [B S]: weight of each target."""


def encoded(renderer: Renderer, sheet: Sheet, end: int) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """Ids of the shared prompt, and of each row what is read after it and what is answered, `end` included.

    Raises:
        ValueError: the template does not print the prompt on its own before the row.
    """
    prompt = renderer.render((sheet.system,), (), header=False)
    trunk, rows = renderer.encode(prompt), []
    for row in sheet.rows:
        whole = renderer.render((sheet.system, *row.said), (), header=True)
        rest = renderer.encode(whole[len(prompt) :])
        if not whole.startswith(prompt) or renderer.encode(whole) != trunk + rest:
            raise ValueError(f"the prompt of {row.source} is not printed on its own")
        rows.append((rest, [*renderer.encode(row.answer), end]))
    return trunk, rows


def length(renderer: Renderer, said: Sequence[Message]) -> int:
    """Tokens of an opening."""
    return len(renderer.encode(renderer.render(tuple(said), (), header=True)))


def answer_weights(tokens: int, decision: float | None) -> torch.Tensor:
    """Weights of an answer's tokens [tokens], float32.

    Args:
        decision: share of the answer's weight, 1 in all, that its first token has, which says whether a call comes; None: all tokens
            alike, the square root of their number in all.
    """
    if decision is None or tokens == 1:
        return torch.full((tokens,), tokens**-0.5)
    weights = torch.full((tokens,), (1 - decision) / (tokens - 1))
    weights[0] = decision
    return weights


def pack(
    parts: Sequence[tuple[list[int], list[tuple[list[int], list[int]]]]], pad: int, decision: float | None = None
) -> Packed:
    """Put encoded sheets side by side, padded to the longest; `decision` as in `answer_weights`."""
    size = max(len(trunk) + sum(len(a) + len(b) for a, b in rows) for trunk, rows in parts)
    shape = (len(parts), size)
    ids, positions = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    segments, targets = torch.full(shape, PADDING), torch.full(shape, -100)
    weights = torch.zeros(shape)
    for b, (trunk, rows) in enumerate(parts):
        at = len(trunk)
        ids[b, :at], positions[b, :at], segments[b, :at] = torch.tensor(trunk), torch.arange(at), TRUNK
        for n, (read, answer) in enumerate(rows, start=1):
            own = read + answer
            end = at + len(own)
            ids[b, at:end] = torch.tensor(own)
            positions[b, at:end] = torch.arange(len(trunk), len(trunk) + len(own))
            segments[b, at:end] = n
            first = at + len(read) - 1
            targets[b, first : end - 1] = torch.tensor(answer)
            weights[b, first : end - 1] = answer_weights(len(answer), decision)
            at = end
    return Packed(ids, positions, segments, targets, weights)


def attention(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B 1 S S], added to the scores: a token attends to the shared prompt and to its own row, up to itself."""
    size = segments.shape[1]
    own = segments[:, :, None] == segments[:, None, :]
    allowed = (own | (segments[:, None, :] == TRUNK)) & torch.ones(size, size, dtype=torch.bool).tril()
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def loss(body: Any, head: Any, packed: Packed) -> torch.Tensor:
    """Cross-entropy of the answers, weighted; `body` gives hidden states and `head` logits, read in float32."""
    dtype = next(p.dtype for p in head.parameters())
    hidden = body(
        input_ids=packed.ids,
        attention_mask=attention(packed.segments, dtype),
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state
    asked = packed.targets != -100
    logits = head(hidden[asked]).float()
    each = torch.nn.functional.cross_entropy(logits, packed.targets[asked], reduction="none")
    weights = packed.weights[asked]
    return (each * weights).sum() / weights.sum()

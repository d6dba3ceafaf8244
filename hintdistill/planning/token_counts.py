"""What an engine would read for a set of requests: tokens exactly, from the ids alone, through the engine's own prefix tree. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.prefix_tree import Piece, PrefixTree, batches, grow
from hintdistill.planning.memory import kept_tokens, mask_bytes
from hintdistill.planning.shape import ModelShape


@dataclass(frozen=True)
class Reading:
    """One forward pass after another over a set of requests, or the sum of several."""

    sequences: int = 0
    asked: int = 0
    """Tokens that separate passes would read."""
    computed: int = 0
    """Tokens that are read."""
    pairs: int = 0
    """Σ over tokens of the keys they attend to, half of a token's own stretch counted."""
    scored: int = 0
    """Positions that the head is applied to."""
    calls: int = 0
    kept: int = 0
    """Tokens whose keys and values are kept at once."""
    largest_call: int = 0
    """Tokens of the largest forward call."""
    masks: int = 0
    """Entries of all masks of the call that has most of them."""
    together: int = 0
    """Scored positions whose hidden states are kept at once."""
    longest: int = 0
    """Tokens of the longest sequence."""

    def __add__(self, other: Reading) -> Reading:
        return Reading(
            self.sequences + other.sequences,
            self.asked + other.asked,
            self.computed + other.computed,
            self.pairs + other.pairs,
            self.scored + other.scored,
            self.calls + other.calls,
            max(self.kept, other.kept),
            max(self.largest_call, other.largest_call),
            max(self.masks, other.masks),
            max(self.together, other.together),
            max(self.longest, other.longest),
        )


def reading(calls: Iterable[Sequence[ScoreRequest]], shape: ModelShape, budget: int) -> Reading:
    """What `Engine.score` would read, call by call, with at most `budget` tokens per forward pass."""
    total = Reading()
    for requests in calls:
        total += _one_call(requests, shape, budget)
    return total


def _one_call(requests: Sequence[ScoreRequest], shape: ModelShape, budget: int) -> Reading:
    # the last scored token itself is not read
    sequences = [np.ascontiguousarray(r.ids[: r.end - 1], dtype=np.int64) for r in requests]
    total = Reading()
    for batch in batches(sequences, budget) if sequences else []:
        some = [sequences[i] for i in batch]
        places = [range(requests[i].start - 1, requests[i].end - 1) for i in batch]
        total += of_tree(grow(some), places, shape, budget)
    scored = sum(r.end - r.start for r in requests)
    return total + Reading(together=scored)


def of_tree(tree: PrefixTree, positions: Sequence[range], shape: ModelShape, budget: int) -> Reading:
    """What one tree costs; `positions` are the scored ones of each sequence."""
    wanted = _wanted(tree, positions)
    calls = tree.calls(budget)
    pieces = [p for call in calls for p in call]
    return Reading(
        sequences=len(tree.leaves),
        asked=tree.asked,
        computed=tree.computed,
        pairs=sum(pairs(p.start, p.length) for p in pieces),
        scored=sum(len(p) for p in positions),
        calls=len(calls),
        kept=kept_tokens(tree),
        largest_call=max((sum(p.length for p in call) for call in calls), default=0),
        masks=max((mask_bytes(shape, call, wanted, 1) for call in calls), default=0),
        longest=max(tree.lengths, default=0),
    )


def pairs(past: int, tokens: int) -> int:
    """Keys that `tokens` new tokens attend to after `past` others."""
    return tokens * past + tokens * tokens // 2


def _wanted(tree: PrefixTree, positions: Sequence[range]) -> Callable[[Piece], range]:
    """Which stretch of a piece is asked for: from its first wanted position to its last."""
    by_chain: dict[int, list[int]] = {}
    for i, some in enumerate(positions):
        for chain, position in tree.places(i, some):
            by_chain.setdefault(chain, []).append(position)

    def wanted(piece: Piece) -> range:
        here = [p for p in by_chain.get(piece.chain, ()) if piece.start <= p < piece.stop]
        return range(min(here), max(here) + 1) if here else range(piece.start, piece.start)

    return wanted


def operations(shape: ModelShape, tokens: int, keys: int, scored: int) -> float:
    """Floating-point operations of a pass without gradient: 2 per body parameter and token, 4·(heads × width) per layer and
    pair of query and key, 2 per head entry and scored position."""
    attention = 4.0 * shape.query_width * shape.layers * keys
    return 2.0 * shape.body * tokens + attention + 2.0 * shape.head * scored


def train_operations(
    shape: ModelShape, tokens: int, keys: int, scored: int, *, full: bool, checkpointing: bool
) -> float:
    """Of a student's pass with its backward pass.

    Backward: 4 per body parameter and token (2 where the weights are frozen beside adapters), 2.5 times the attention's
    forward; the head once more for hidden states, and once more for its own gradient. Checkpointing adds a forward pass.
    """
    attention = 4.0 * shape.query_width * shape.layers * keys
    forward = 2.0 * shape.body * tokens + attention
    backward = (4.0 if full else 2.0) * shape.body * tokens + 2.5 * attention
    head = (6.0 if full else 4.0) * shape.head * scored
    return forward * (2 if checkpointing else 1) + backward + head

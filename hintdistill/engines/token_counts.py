"""Count the tokens that an engine would read for a set of requests, and the memory that it would hold, from the ids
alone, with the engine's own prefix tree. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hintdistill.core.machine import Peak
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.prefix_tree import Piece, PrefixTree, batches, grow

FLOAT = 4
ID = 8
"""Bytes of a token id in a request."""
PROGRAM = 400_000_000
"""Resident bytes of a process that has imported torch and transformers, before it loads a model (measured with the CPU
build)."""
LOGIT_CHUNK = 1 << 24
"""Entries of a chunk of logits in an engine, equal to `engines.forward.CHUNK_ELEMENTS`."""
MASK_ROWS = 256
"""Queries per masked block, equal to `engines.shared_prefix.BLOCK`."""
HEAP_BLOCK = 32 << 20
"""Bytes from which on glibc maps a block by itself and gives it back when it is freed; smaller ones lie in a heap."""
HEAP_SHARE = 0.9
"""What glibc's heap holds of freed blocks while a call is read, as a share of the call's tensors. Measured; see docs/decisions.md."""
ENTRY = 104
"""Bytes of a kept entry while a part is written: the Python objects of its id and two log-probabilities, with their
list slots."""


@dataclass(frozen=True)
class TokenCount:
    """Count one forward pass after another over a set of requests, or the sum of several."""

    asked: int = 0
    """Number of tokens that separate passes would read."""
    computed: int = 0
    """Number of tokens that are actually read."""
    pairs: int = 0
    """Sum over tokens of the keys that they attend to, with half of a token's own piece counted."""
    scored: int = 0
    """Number of positions to which the head is applied."""
    calls: int = 0
    kept: int = 0
    """Number of tokens whose keys and values are kept at once."""
    largest_call: int = 0
    """Number of tokens of the largest forward call."""
    masks: int = 0
    """Number of entries of all masks in the call with the most mask entries."""
    together: int = 0
    """Number of scored positions whose hidden states are kept at once."""
    requested: int = 0
    """Number of tokens of the requests that are handed over at once."""

    def __add__(self, other: TokenCount) -> TokenCount:
        return TokenCount(
            self.asked + other.asked,
            self.computed + other.computed,
            self.pairs + other.pairs,
            self.scored + other.scored,
            self.calls + other.calls,
            max(self.kept, other.kept),
            max(self.largest_call, other.largest_call),
            max(self.masks, other.masks),
            max(self.together, other.together),
            max(self.requested, other.requested),
        )


def count_tokens(calls: Iterable[Sequence[ScoreRequest]], shape: ModelShape, budget: int) -> TokenCount:
    """Return the counts for `Engine.score`, call by call, with at most `budget` tokens per forward pass."""
    total = TokenCount()
    for requests in calls:
        total += _one_call(requests, shape, budget)
    return total


def _one_call(requests: Sequence[ScoreRequest], shape: ModelShape, budget: int) -> TokenCount:
    # the last scored token itself is not read
    sequences = [np.ascontiguousarray(r.ids[: r.end - 1], dtype=np.int64) for r in requests]
    total = TokenCount()
    for batch in batches(sequences, budget) if sequences else []:
        some = [sequences[i] for i in batch]
        places = [range(requests[i].start - 1, requests[i].end - 1) for i in batch]
        total += of_tree(grow(some), places, shape, budget)
    scored = sum(r.end - r.start for r in requests)
    return total + TokenCount(together=scored, requested=sum(map(len, sequences)))


def of_tree(tree: PrefixTree, positions: Sequence[range], shape: ModelShape, budget: int) -> TokenCount:
    """Return the counts for one tree; `positions` are the scored ones of each sequence."""
    wanted = _wanted(tree, positions)
    calls = tree.calls(budget)
    pieces = [p for call in calls for p in call]
    return TokenCount(
        asked=tree.asked,
        computed=tree.computed,
        pairs=sum(pairs(p.start, p.length) for p in pieces),
        scored=sum(len(p) for p in positions),
        calls=len(calls),
        kept=kept_tokens(tree),
        largest_call=max((sum(p.length for p in call) for call in calls), default=0),
        masks=max((mask_bytes(shape, call, wanted, 1) for call in calls), default=0),
    )


def pairs(past: int, tokens: int) -> int:
    """Return the number of keys that `tokens` new tokens attend to after `past` others."""
    return tokens * past + tokens * tokens // 2


def _wanted(tree: PrefixTree, positions: Sequence[range]) -> Callable[[Piece], range]:
    """Return the requested range of a piece, from its first wanted position to its last."""
    by_chain: dict[int, list[int]] = {}
    for i, some in enumerate(positions):
        for chain, position in tree.places(i, some):
            by_chain.setdefault(chain, []).append(position)

    def wanted(piece: Piece) -> range:
        here = [p for p in by_chain.get(piece.chain, ()) if piece.start <= p < piece.stop]
        return range(min(here), max(here) + 1) if here else range(piece.start, piece.start)

    return wanted


def forward_bytes(shape: ModelShape, tokens: int, width: int) -> int:
    """Return the largest memory of a pass without gradient, apart from keys and values, `width` bytes per entry: one
    layer's tensors, and what all layers see, the embedded tokens and the sines and cosines of their positions."""
    h, a, k, i = shape.hidden, shape.query_width, shape.key_width, shape.intermediate
    return tokens * width * (h + 2 * shape.head_dim + max(2 * h + 3 * i, 2 * h + 4 * a + 3 * k))


def heap_bytes(shape: ModelShape, tokens: int, width: int) -> int:
    """Return what glibc's heap holds of freed blocks within a call: the feed-forward block's tensors do not fit where the smaller
    ones of norms and attention were. Nothing where the larger ones are mapped by themselves."""
    kept = tokens * width * shape.intermediate < HEAP_BLOCK
    return int(HEAP_SHARE * forward_bytes(shape, tokens, width)) if kept else 0


def cache_bytes(shape: ModelShape, tokens: int, width: int) -> int:
    """Return the bytes of the keys and values of all layers."""
    return 2 * shape.key_width * shape.layers * tokens * width


def mask_bytes(shape: ModelShape, pieces: Sequence[Piece], wanted: Callable[[Piece], range], width: int) -> int:
    """Return the number of mask entries of one packed call: a block of queries times the keys that it may see, kept
    until the call is done. Plain attention needs none. `wanted`: the positions of a piece whose hidden states are
    requested; the last layer masks only those.
    """
    if not shape.masked:
        return 0
    groups = max(1, shape.heads // shape.kv_heads)
    blocks: set[tuple[int, int]] = set()
    for piece in pieces:
        ranges = [wanted(piece)] if piece.start == 0 else [range(piece.start, piece.stop), wanted(piece)]
        for r in ranges:
            blocks |= {(at, min(at + MASK_ROWS, r.stop)) for at in range(r.start, r.stop, MASK_ROWS)}
    return sum(groups * (stop - start) * stop for start, stop in blocks) * width


def kept_tokens(tree: PrefixTree) -> int:
    """Return the number of tokens whose keys and values are kept, including the spare room of trunks for their
    branches."""
    return sum(
        tree.depths[i] if chain.trunk == i else len(chain.ids)
        for i, chain in enumerate(tree.chains)
        if i in tree.parents
    )


@dataclass(frozen=True)
class ScoringUse:
    """Describe how an engine scores, as far as memory is concerned."""

    weight_bytes: int
    step: int
    """Number of tokens of the longest step."""
    top_k: int
    written: int = 0
    """Number of kept entries of one parquet part."""
    other_weights: int = 0
    """Bytes of another loaded model."""
    on_cpu: bool = True
    offload: bool = False
    """Whether keys and values are kept in the host's memory."""


def scoring_peak(shape: ModelShape, read: TokenCount, use: ScoringUse) -> Peak:
    """Return the peak of scoring: keys and values, one call's tensors, masks, a chunk of logits, and the part being
    written."""
    width = use.weight_bytes
    reads = {
        # offloaded, one layer of them is on the device at a time
        "keys and values": cache_bytes(shape, read.kept, width)
        // (shape.layers if use.offload and not use.on_cpu else 1),
        "activations": forward_bytes(shape, read.largest_call, width),
        "masks": read.masks * width,
        "allocator": heap_bytes(shape, read.largest_call, width) if use.on_cpu else 0,
    }
    chunk = min(use.step * shape.vocab, LOGIT_CHUNK)
    rows = min(use.step, max(1, LOGIT_CHUNK // (2 * use.top_k * shape.hidden)))
    heads = {
        "logits": 3 * chunk * FLOAT + 2 * rows * 2 * use.top_k * shape.hidden * width,
        "targets": use.written * ENTRY,
    }
    parts = {
        "program": PROGRAM if use.on_cpu else 0,
        "weights": shape.parameters * width,
        "other models": use.other_weights,
        **max((reads, heads), key=lambda part: sum(part.values())),
        "hidden states": 3 * read.together * shape.hidden * width,
        "token ids": read.requested * ID,
    }
    return Peak({k: int(v) for k, v in parts.items() if v})


def operations(shape: ModelShape, tokens: int, keys: int, scored: int) -> float:
    """Return the floating-point operations of a pass without gradient: 2 per body parameter and token, 4·(heads ×
    width) per layer and pair of query and key, 2 per head entry and scored position."""
    attention = 4.0 * shape.query_width * shape.layers * keys
    return 2.0 * shape.body * tokens + attention + 2.0 * shape.head * scored

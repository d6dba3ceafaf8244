"""Build a prefix tree over token ids in which every distinct token occurs once. Torch-free.

The tree is stored as chains. A chain is a run of tokens that branches off another chain (its parent) at a position, or
that begins a sequence (a trunk). The longest sequence is added first, so a trunk is at least as long as its branches.
This module knows no views, hints or steps. It follows from the ids alone that K hints at one place share the context
above them, that hints share their first words, and that a template which rewrites history makes two trunks of one
trace.

Tokens computed equal the longest-common-prefix bound of the set: Σ length − (tokens shared with the neighbour in sorted
order). Positions are absolute, counted from the start of the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

ROOT = -1
CALL_TOKENS = 16_384
"""Default number of tokens per forward call on an accelerator."""
CALL_TOKENS_CPU = 4_096
"""Default number of tokens per forward call on a CPU. Larger calls are no faster there and take proportionally more
memory (see docs/decisions.md)."""


def call_tokens(asked: int | None, on_cpu: bool) -> int:
    """Return the tokens per forward call: the given number, else the default of the device."""
    return asked if asked is not None else CALL_TOKENS_CPU if on_cpu else CALL_TOKENS


@dataclass(frozen=True)
class Chain:
    """Hold a run of tokens that is computed once."""

    parent: int
    """Index of the chain from which it branches off; `ROOT` for a trunk."""
    trunk: int
    """Index of the trunk from which it descends; its own index for a trunk."""
    at: int
    """Position of its first token."""
    ids: np.ndarray
    """int64 [n]"""

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.at + len(self.ids)


@dataclass(frozen=True)
class Piece:
    """Name the tokens [start, stop) of one chain, read in one forward call."""

    chain: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


@dataclass(frozen=True)
class PrefixTree:
    """Hold the chains of a set of sequences, and the end of each sequence."""

    chains: tuple[Chain, ...]
    """Chains, parents before their children."""
    leaves: tuple[int, ...]
    """Index of the chain with the last token, for each sequence."""
    lengths: tuple[int, ...]
    """Number of tokens of each sequence."""
    given: int = 0
    """Number of trunks at the beginning of `chains` that were read earlier and cost nothing."""

    @property
    def asked(self) -> int:
        """Number of tokens that separate forward passes would read."""
        return sum(self.lengths)

    @property
    def computed(self) -> int:
        """Number of tokens that are actually read."""
        return sum(len(c.ids) for c in self.chains[self.given :])

    @cached_property
    def parents(self) -> frozenset[int]:
        """Chains from which another chain branches off."""
        return frozenset(c.parent for c in self.chains if c.parent != ROOT)

    @cached_property
    def depths(self) -> dict[int, int]:
        """Position after the last token of each trunk and all its descendants."""
        out: dict[int, int] = {}
        for chain in self.chains:
            out[chain.trunk] = max(out.get(chain.trunk, 0), chain.end)
        return out

    def path(self, chain: int, stop: int) -> list[Piece]:
        """Return the pieces that spell the sequence up to position `stop` of a chain, from the trunk onwards."""
        out: list[Piece] = []
        while chain != ROOT:
            out.append(Piece(chain, self.chains[chain].at, stop))
            stop, chain = self.chains[chain].at, self.chains[chain].parent
        return out[::-1]

    def places(self, sequence: int, positions: range) -> list[tuple[int, int]]:
        """Return (chain, position) of each position of a sequence."""
        path = self.path(self.leaves[sequence], self.lengths[sequence])
        out: list[tuple[int, int]] = []
        for piece in path:
            first, last = max(positions.start, piece.start), min(positions.stop, piece.stop)
            out += [(piece.chain, p) for p in range(first, last)]
        return out

    def calls(self, budget: int) -> list[list[Piece]]:
        """Split the tree into forward calls of at most `budget` tokens, ordered so that every token's past is read
        before it."""
        out: list[list[Piece]] = []
        room = 0
        for index, chain in enumerate(self.chains[self.given :], self.given):
            start = chain.at
            while start < chain.end:
                if room == 0:
                    out.append([])
                    room = budget
                piece = Piece(index, start, min(chain.end, start + room))
                out[-1].append(piece)
                start, room = piece.stop, room - piece.length
        return out

    def __str__(self) -> str:
        times = self.asked / max(self.computed, 1)
        trunks = sum(c.parent == ROOT for c in self.chains)
        return (
            f"{len(self.leaves)} sequences, {self.asked:,} tokens asked, {self.computed:,} computed ({times:.1f}× fewer): "
            f"{trunks} trunks, {len(self.chains) - trunks} branches"
        )


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """Return the number of tokens that two id arrays share from their start."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def grow(sequences: Sequence[np.ndarray], trunks: Sequence[np.ndarray] = ()) -> PrefixTree:
    """Return the prefix tree of sequences, each int64 [S_i], not empty. `trunks` are added first and count as read."""
    chains: list[Chain] = []
    children: dict[tuple[int, int, int], int] = {}

    def insert(ids: np.ndarray) -> int:
        parent, depth = ROOT, 0
        while depth < len(ids):
            key = (parent, depth, int(ids[depth]))
            chain = children.get(key)
            if chain is None:
                chain = len(chains)
                children[key] = chain
                chains.append(Chain(parent, chains[parent].trunk if parent != ROOT else chain, depth, ids[depth:]))
                return chain
            depth += shared_length(ids[depth:], chains[chain].ids[depth - chains[chain].at :])
            parent = chain
        return parent

    for trunk in trunks:
        insert(np.asarray(trunk, np.int64))
    given = len(chains)
    if given != len(trunks):
        raise ValueError("a given trunk has the same beginning as another one")
    leaves = [ROOT] * len(sequences)
    for i in sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), sequences[i].tobytes())):
        leaves[i] = insert(np.asarray(sequences[i], np.int64))
    return PrefixTree(tuple(chains), tuple(leaves), tuple(len(s) for s in sequences), given)


def batches(sequences: Sequence[np.ndarray], budget: int) -> list[list[int]]:
    """Return groups of sequence indices, one tree each: neighbours in sorted order, up to `budget` distinct tokens.

    Sequences that share most of their tokens, or as many tokens as a call holds, stay together whatever the budget,
    because separate trees would compute the shared part twice. `PrefixTree.calls` keeps each forward call within the
    budget.
    """
    order = sorted(range(len(sequences)), key=lambda i: np.asarray(sequences[i], ">i8").tobytes())
    out: list[list[int]] = []
    distinct = 0
    for previous, i in zip([None, *order], order, strict=False):
        shared = 0 if previous is None else shared_length(sequences[previous], sequences[i])
        fresh = len(sequences[i]) - shared
        if not out or (distinct + fresh > budget and 2 * shared < len(sequences[i]) and shared < budget):
            out.append([])
            distinct, fresh = 0, len(sequences[i])
        out[-1].append(i)
        distinct += fresh
    return out

"""Keep the state of growing conversations between calls, and read the requests of concurrent callers together.

The engine keeps the keys, values and last hidden states of each conversation's plain view. That view is the first
sequence of every group of requests: the step in its own context. The next call reads only the new tokens and the
branches of its hints. Steps that were read earlier are scored from the kept hidden states. The least recently used
conversations are dropped above `max_bytes`; a running call may hold its own conversation beyond that limit.

Callers must wait for one another, because there is only one model. So the first waiting caller works for all: their
sequences are packed into the same forward calls. Callers are served in order of arrival, at most `TOGETHER` at a time,
without waiting for others. A caller that holds the turn (`turns`) releases it while it waits. One thread runs the
model, because two torch thread pools slow each other down. A batch of several callers is divided among readers with one
torch thread each (`side_by_side`).
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hintdistill.core.errors import ScoreError
from hintdistill.core.machine import give_back
from hintdistill.core.scores import ScoreRequest, Scores
from hintdistill.engines.prefix_tree import ROOT, Chain, Piece, PrefixTree, grow, shared_length
from hintdistill.engines.shared_prefix import Memory, PackedCall, read_places, run_call, shared_attention
from hintdistill.engines.sharing import SharingWarning
from hintdistill.engines.side_by_side import SideBySide, readers_for
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.engines.turns import Turns

SLACK = 256
"""Minimum number of free token places in a conversation's buffers."""
TOGETHER = 16
"""Maximum number of callers served together; above it, callers that still prepare are not waited for."""
WORTH = 32
"""Number of common tokens above which one of two new conversations waits until the other has been read."""
Layers = dict[int, tuple[Tensor, Tensor]]


@dataclass(eq=False)
class Kept:
    """Hold one conversation: its ids, and the model's state for them."""

    ids: np.ndarray
    """int64 [S]"""
    layers: Layers = field(default_factory=dict)
    """Keys and values [Hk, room, D] of each attention layer, with room for at least S tokens."""
    hidden: Tensor | None = None
    """[S, H]: the hidden states that the head reads."""
    read: int = 0
    """Number of tokens of `ids` that have been read."""

    @property
    def bytes(self) -> int:
        """Memory used, bytes."""
        own = [] if self.hidden is None else [self.hidden]
        tensors = [t for pair in self.layers.values() for t in pair] + own
        return sum(t.numel() * t.element_size() for t in tensors)

    def prefix(self, length: int, ids: np.ndarray) -> Kept:
        """Another conversation that begins with the first `length` tokens of this one."""
        layers = {k: (a[:, :length].clone(), b[:, :length].clone()) for k, (a, b) in self.layers.items()}
        return Kept(ids, layers, None if self.hidden is None else self.hidden[:length].clone(), length)


@dataclass(eq=False)
class _Job:
    """Hold one caller's requests and their scores."""

    requests: Sequence[ScoreRequest]
    top_k: int
    returns: bool = False
    """Whether its caller held the turn and takes it back when it is served."""
    scores: list[Scores] | None = None
    error: Exception | None = None
    served: bool = False
    """Whether the job has scores or an error, and its caller has been called back."""


class KeptEngine:
    """Score with kept conversations. It implements `Engine` and is as exact as the engine that it wraps."""

    capabilities = TransformersEngine.capabilities

    def __init__(
        self, engine: TransformersEngine, max_bytes: int, turns: Turns | None = None, readers: int | None = None
    ) -> None:
        """Wrap an engine.

        Args:
            max_bytes: limit on the kept state, bytes.
            turns: shared with the threads that prepare requests for this engine.
            readers: number of threads that read a batch; None for torch's number of threads, if the model allows it.
        """
        self.turns = turns or Turns(contextlib.nullcontext())
        self.engine, self.max_bytes = engine, max_bytes
        self.key, self.max_length, self.batch_tokens = engine.key, engine.max_length, engine.batch_tokens
        self.computed = 0
        """Number of tokens read so far."""
        self.asked = 0
        """Number of tokens that separate forward passes would have read."""
        self.batches = 0
        """Number of calls of the model's owner, each for one or several callers."""
        self._kept: list[Kept] = []
        self._queue: list[_Job] = []
        self._waiting, self._led = threading.Condition(), False
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hintdistill-model")
        self._side = SideBySide(readers_for(engine.model, engine.on_cpu) if readers is None else readers)
        self._separate, self._warned = False, False
        """Whether nothing is kept, and whether a caller was told so."""

    @property
    def bytes(self) -> int:
        """Memory used by the kept conversations, bytes."""
        return sum(k.bytes for k in self._kept)

    @property
    def conversations(self) -> int:
        """Number of kept conversations."""
        return len(self._kept)

    def clear(self) -> None:
        """Forget all conversations; necessary after the model's weights have changed."""
        with self.engine.at_work():
            self._kept = []

    def score(self, requests: Sequence[ScoreRequest], top_k: int) -> list[Scores]:
        """See `Engine.score`. Callers that wait at the same time are served together."""
        job = _Job(list(requests), top_k, self.turns.mine)
        with self._waiting:
            self._queue.append(job)
        self.turns.nudge()
        with self.turns.released(job):
            try:
                self._served(job)
            except BaseException:
                # interrupted while others work: nobody is to wait for this caller
                with self._waiting:
                    job.returns = False
                    self._queue = [j for j in self._queue if j is not job]
                raise
        if self._separate:
            self._warn()
        if job.error is not None:
            raise job.error
        assert job.scores is not None
        return job.scores

    def _served(self, job: _Job) -> None:
        """Wait until a job is served; the thread whose job is first in the queue serves the queue."""
        with self._waiting:
            while not job.served and (self._led or self._queue[0] is not job):
                self._waiting.wait()
            if job.served:
                return
            self._led = True
        try:
            self._lead()
        finally:
            with self._waiting:
                self._led = False
                self._waiting.notify_all()

    def _lead(self) -> None:
        """Serve the waiting jobs when the turn has come."""
        with self.turns.last(lambda: len(self._queue) >= TOGETHER):
            with self._waiting:
                jobs, self._queue = self._queue[:TOGETHER], self._queue[TOGETHER:]
            reading = self._reader.submit(self._serve, jobs)
            try:
                try:
                    reading.result()
                finally:
                    # an interrupt of the one that leads must not take the answer from the others
                    wait([reading])
            except BaseException:
                for job in (j for j in jobs if j.scores is None):
                    job.error = job.error or ScoreError(
                        "the caller that was reading this request was interrupted; ask again"
                    )
                raise
            finally:
                # at once: a caller that sees its answer stands in the line already
                with self._waiting:
                    for job in jobs:
                        job.served = True
                    self.turns.call_back([job for job in jobs if job.returns])

    def _serve(self, jobs: Sequence[_Job]) -> None:
        """Serve several callers at once; if that fails, serve each alone, so that an error reaches only one caller."""
        self.batches += 1
        try:
            with self.engine.at_work():
                self._score(jobs)
        except Exception as error:
            # what a failed call has left half read is not to be trusted
            self._kept = [k for k in self._kept if k.read == len(k.ids) and not isinstance(error, ScoreError)]
            if len(jobs) == 1:
                jobs[0].error = error
                return
            for job in jobs:
                job.scores = None
                self._serve([job])

    def _score(self, jobs: Sequence[_Job]) -> None:
        requests = [r for job in jobs for r in job.requests]
        for request in requests:
            self.engine.fits(request.end)
        if self.engine.way() != "shared_prefix":
            self._separate = True
            for job in jobs:
                job.scores = self.engine.score(job.requests, job.top_k)
            return
        sequences = [np.ascontiguousarray(r.ids[: r.end - 1], dtype=np.int64) for r in requests]
        mains, at = list[np.ndarray](), 0
        for job in jobs:
            mains += _mains(job.requests, sequences[at : at + len(job.requests)])
            at += len(job.requests)
        with shared_attention(self.engine.model):
            used = self._extend(mains)
            hidden = iter(self._hidden(sequences, [range(r.start - 1, r.end - 1) for r in requests]))
        states = [[next(hidden) for _ in job.requests] for job in jobs]

        def head(some: Sequence[int]) -> None:
            for i in some:
                jobs[i].scores = self.engine.scores_of(jobs[i].requests, states[i], jobs[i].top_k)

        self._side.map(head, self._side.divide([len(some) for some in states]))
        self._bound(used)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"nothing is kept between calls, because this model shares prefixes by {self.engine.sharing}",
                SharingWarning,
                stacklevel=3,
            )

    def _extend(self, mains: Sequence[np.ndarray]) -> list[Kept]:
        """Read the new tokens of these conversations in few forward calls, and return the conversations used.

        If several new conversations begin alike, one is read first and the others continue from it.
        """
        used: list[Kept] = []
        later: list[np.ndarray] = []
        for ids in sorted(mains, key=lambda m: -len(m)):
            if any(shared_length(k.ids, ids) == len(ids) for k in used):
                continue
            best = max(self._kept, key=lambda k: shared_length(k.ids[: k.read], ids), default=None)
            n = 0 if best is None else shared_length(best.ids[: best.read], ids)
            if best is not None and n == len(ids):
                used.append(best)
                continue
            if best is not None and n == len(best.ids) and best not in used:
                best.ids = ids
                used.append(best)
                continue
            if any(shared_length(k.ids, ids) >= n + WORTH for k in used):
                later.append(ids)
                continue
            fresh = best.prefix(n, ids) if best is not None and n else Kept(ids)
            self._kept.append(fresh)
            used.append(fresh)
        owed = [k for k in used if k.read < len(k.ids)]
        self.computed += sum(len(k.ids) - k.read for k in owed)
        parts = self._side.divide([len(k.ids) - k.read for k in owed])
        self._side.map(self._read, [[owed[i] for i in part] for part in parts])
        return used + (self._extend(later) if later else [])

    def _read(self, owed: Sequence[Kept]) -> None:
        """Read the missing positions of conversations, each a trunk of one tree; call it in `shared_attention`."""
        tree = PrefixTree(tuple(Chain(ROOT, i, 0, k.ids) for i, k in enumerate(owed)), (), ())
        memory, found = Memory(), [list[Tensor]() for _ in owed]
        for i, k in enumerate(owed):
            memory.put(i, k.layers, _room(len(k.ids)))
        for pieces in _calls([Piece(i, k.read, len(k.ids)) for i, k in enumerate(owed)], self.batch_tokens):
            call = PackedCall(tree, pieces, memory, keep_trunks=True)
            states = run_call(self.engine.model, call, range(call.offsets[-1]))
            for piece, part in zip(pieces, states.split([p.length for p in pieces]), strict=True):
                found[piece.chain].append(part)
        for i, k in enumerate(owed):
            k.layers = memory.give(i)
            k.hidden = torch.cat([*([k.hidden] if k.hidden is not None else []), *found[i]])
            k.read = len(k.ids)

    def _hidden(self, sequences: Sequence[np.ndarray], positions: Sequence[range]) -> list[Tensor]:
        """Return the hidden states [T_i, H] at each sequence's positions: kept ones, and those of new branches."""
        members, owed = dict[int, list[int]](), dict[int, int]()
        for i, ids in enumerate(sequences):
            shared = [shared_length(k.ids, ids) for k in self._kept]
            best = int(np.argmax(shared)) if any(shared) else ROOT
            members.setdefault(best, []).append(i)
            owed[best] = owed.get(best, 0) + len(ids) - (shared[best] if best != ROOT else 0)
        trunks, out = list(members), dict[int, Tensor]()

        def read(some: Sequence[int]) -> tuple[PrefixTree, dict[int, Tensor]]:
            return self._branches({trunks[n]: members[trunks[n]] for n in some}, sequences, positions)

        for tree, found in self._side.map(read, self._side.divide([owed[k] for k in trunks])):
            self.asked += tree.asked
            self.computed += tree.computed
            out |= found
        return [out[i] for i in range(len(sequences))]

    def _branches(
        self, members: Mapping[int, Sequence[int]], sequences: Sequence[np.ndarray], positions: Sequence[range]
    ) -> tuple[PrefixTree, dict[int, Tensor]]:
        """Return the tree of some sequences, grouped by kept conversation (or `ROOT`), and their hidden states."""
        trunks = [k for k in members if k != ROOT]
        tree = _forest(
            [grow([sequences[i] for i in members[k]], [self._kept[k].ids]) for k in trunks]
            + ([grow([sequences[i] for i in members[ROOT]])] if ROOT in members else [])
        )
        memory = Memory()
        for chain, k in enumerate(trunks):
            longest = max(len(sequences[i]) for i in members[k])
            memory.put(chain, self._kept[k].layers, _room(max(longest, len(self._kept[k].ids))))
        order = [i for k in (*trunks, *([ROOT] if ROOT in members else [])) for i in members[k]]
        places = {i: tree.places(n, positions[i]) for n, i in enumerate(order)}
        branches = {p for some in places.values() for p in some if p[0] >= tree.given}
        rows, states = (
            read_places(self.engine.model, tree, branches, self.batch_tokens, memory) if branches else ({}, None)
        )
        for chain, k in enumerate(trunks):
            self._kept[k].layers = memory.give(chain)
        kept = [self._kept[k].hidden for k in trunks]
        return tree, {i: _gather(some, tree.given, kept, rows, states) for i, some in places.items()}

    def _bound(self, used: Sequence[Kept]) -> None:
        """Move the conversations used last to the end, and drop the oldest beyond the limit."""
        self._kept = [*(k for k in self._kept if k not in used), *used]
        total = self.bytes
        while self._kept and total > self.max_bytes:
            total -= self._kept.pop(0).bytes
        if self.engine.on_cpu:
            give_back()


def _mains(requests: Sequence[ScoreRequest], sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the first sequence of every group, the plain view."""
    first: dict[str, np.ndarray] = {}
    for request, ids in zip(requests, sequences, strict=True):
        if request.group is not None:
            first.setdefault(request.group, ids)
    return list(first.values())


def _room(length: int) -> int:
    """Return the number of tokens for which a conversation's buffers have room; spare room makes copies rare."""
    return -(-(length + SLACK) // SLACK) * SLACK


def _calls(pieces: Sequence[Piece], budget: int) -> list[list[Piece]]:
    """Return the number of forward calls of at most `budget` tokens."""
    out: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            if room == 0:
                out.append([])
                room = budget
            stop = min(piece.stop, start + room)
            out[-1].append(Piece(piece.chain, start, stop))
            room -= stop - start
            start = stop
    return out


def _forest(trees: Sequence[PrefixTree]) -> PrefixTree:
    """Merge several trees into one, with given trunks first; its sequences are theirs, one tree after another."""
    given = [tree.given for tree in trees]
    chains: list[Chain] = [c for tree in trees for c in tree.chains[: tree.given]]
    leaves: list[int] = []
    lengths: list[int] = []
    numbers: list[dict[int, int]] = []
    for n, tree in enumerate(trees):
        numbers.append({own: sum(given[:n]) + own for own in range(tree.given)})
    # parents before children: the trunks' numbers are known first
    chains = [Chain(ROOT, i, c.at, c.ids) for i, c in enumerate(chains)]
    for n, tree in enumerate(trees):
        for own, chain in enumerate(tree.chains[tree.given :], tree.given):
            numbers[n][own] = len(chains)
            parent = ROOT if chain.parent == ROOT else numbers[n][chain.parent]
            trunk = len(chains) if chain.parent == ROOT else numbers[n][chain.trunk]
            chains.append(Chain(parent, trunk, chain.at, chain.ids))
        leaves += [numbers[n][leaf] for leaf in tree.leaves]
        lengths += tree.lengths
    return PrefixTree(tuple(chains), tuple(leaves), tuple(lengths), sum(given))


def _gather(
    places: Sequence[tuple[int, int]],
    given: int,
    kept: Sequence[Tensor | None],
    rows: dict[tuple[int, int], int],
    states: Tensor | None,
) -> Tensor:
    """Return hidden states [T, H] at (chain, position) places, from given trunks' kept state and this pass."""
    parts: list[Tensor] = []
    at = 0
    while at < len(places):
        chain, first = places[at]
        stop = at
        while stop < len(places) and places[stop][0] == chain:
            stop += 1
        source = kept[chain] if chain < given else states
        assert source is not None
        where = list(range(first, first + stop - at)) if chain < given else [rows[p] for p in places[at:stop]]
        parts.append(source[torch.tensor(where, device=source.device)])
        at = stop
    return parts[0] if len(parts) == 1 else torch.cat(parts)

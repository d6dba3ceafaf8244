"""An engine that keeps what it has read of growing conversations, and reads the requests of concurrent callers together.

Of each conversation the keys, the values and the last hidden states of its plain view are kept: the first sequence of every
group of requests, which is the step in its own context. The next call reads what was added, and the branches of its hints. Steps
that were read earlier are scored from the kept hidden states. Conversations are dropped in the order of their last use once all of
them together take more than `max_bytes`; while a call works it may hold its own conversation beyond that.

Callers wait for one another in any case, because a model is one. So the first of those that wait works for all of them: their
sequences are packed into the same forward calls. They are served in the order in which they came, no more than `TOGETHER` at a time,
and nobody is waited for who has not come yet. A caller that holds the turn (`turns`) when it asks lets others have it meanwhile.
One thread reads for whoever works: torch keeps a team of threads for every thread that computes, and two teams are in each other's way.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Sequence
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
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.engines.turns import Turns

SLACK = 256
"""Tokens that a conversation's buffers have room for beyond what they hold, at least."""
TOGETHER = 16
"""Callers that are served together at most, and although others still prepare."""
WORTH = 32
"""Tokens that two new conversations must have in common for one of them to wait until the other has been read."""
Layers = dict[int, tuple[Tensor, Tensor]]


@dataclass(eq=False)
class Kept:
    """One conversation: its ids, and what the model made of them."""

    ids: np.ndarray
    """int64 [S]"""
    layers: Layers = field(default_factory=dict)
    """Per attention layer, keys and values [Hk, room, D] with room for at least S tokens."""
    hidden: Tensor | None = None
    """[S, H]: what the head reads."""
    read: int = 0
    """Tokens of `ids` that have been read."""

    @property
    def bytes(self) -> int:
        """Memory taken."""
        tensors = [t for pair in self.layers.values() for t in pair] + (
            [self.hidden] if self.hidden is not None else []
        )
        return sum(t.numel() * t.element_size() for t in tensors)

    def prefix(self, length: int, ids: np.ndarray) -> Kept:
        """Another conversation that begins with the first `length` tokens of this one."""
        layers = {k: (a[:, :length].clone(), b[:, :length].clone()) for k, (a, b) in self.layers.items()}
        return Kept(ids, layers, None if self.hidden is None else self.hidden[:length].clone(), length)


@dataclass(eq=False)
class _Job:
    """One caller's requests and their scores."""

    requests: Sequence[ScoreRequest]
    top_k: int
    returns: bool = False
    """Whether its caller held the turn, and goes on with it when it is served."""
    scores: list[Scores] | None = None
    error: Exception | None = None
    served: bool = False
    """Whether one of the two is there, and its caller has been called back."""


class KeptEngine:
    """See the module. Fulfils `Engine`; exact as the engine it wraps is."""

    capabilities = TransformersEngine.capabilities

    def __init__(self, engine: TransformersEngine, max_bytes: int, turns: Turns | None = None) -> None:
        """`turns` is shared with those who prepare requests for this engine."""
        self.turns = turns or Turns(contextlib.nullcontext())
        self.engine, self.max_bytes = engine, max_bytes
        self.key, self.max_length, self.batch_tokens = engine.key, engine.max_length, engine.batch_tokens
        self.computed = 0
        """Tokens read so far."""
        self.asked = 0
        """Tokens that separate forward passes would have read."""
        self.batches = 0
        """Calls of the model's owner, each for one caller or several."""
        self._kept: list[Kept] = []
        self._queue: list[_Job] = []
        self._waiting, self._led = threading.Condition(), False
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hintdistill-model")
        self._separate, self._warned = False, False
        """Whether nothing is kept, and whether a caller was told so."""

    @property
    def bytes(self) -> int:
        """Memory that kept conversations take."""
        return sum(k.bytes for k in self._kept)

    @property
    def conversations(self) -> int:
        """Conversations kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Forget everything that was kept; necessary after the model's weights have changed."""
        with self.engine.at_work():
            self._kept = []

    def score(self, requests: Sequence[ScoreRequest], top_k: int) -> list[Scores]:
        """See `Engine.score`. Callers that wait meanwhile are served together."""
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
        """Wait until a job is served; the thread whose job is first in the queue has the queue served."""
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
        """Serve those that wait, when the turn has come."""
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
                    job.error = job.error or ScoreError("the caller that had this read was interrupted; ask again")
                raise
            finally:
                # at once: a caller that sees its answer stands in the line already
                with self._waiting:
                    for job in jobs:
                        job.served = True
                    self.turns.call_back([job for job in jobs if job.returns])

    def _serve(self, jobs: Sequence[_Job]) -> None:
        """Serve several callers at once; where that fails, each alone, so that an error reaches the one it belongs to."""
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
        used = self._extend(mains)
        hidden = self._hidden(sequences, [range(r.start - 1, r.end - 1) for r in requests])
        at = 0
        for job in jobs:
            mine = hidden[at : at + len(job.requests)]
            job.scores = self.engine.scores_of(job.requests, mine, job.top_k)
            at += len(job.requests)
        self._bound(used)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"nothing is kept between calls: this model's prefixes are shared by {self.engine.sharing}",
                SharingWarning,
                stacklevel=3,
            )

    def _extend(self, mains: Sequence[np.ndarray]) -> list[Kept]:
        """Read what is new of these conversations, in as few forward calls as there can be; those that were used.

        Of new conversations with a common beginning one is read first, and the others go on from it.
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
        if owed:
            self._read(owed)
        return used + (self._extend(later) if later else [])

    def _read(self, owed: Sequence[Kept]) -> None:
        """Read the positions that are still missing from conversations, each a trunk of one tree."""
        tree = PrefixTree(tuple(Chain(ROOT, i, 0, k.ids) for i, k in enumerate(owed)), (), ())
        memory, found = Memory(), [list[Tensor]() for _ in owed]
        for i, k in enumerate(owed):
            memory.put(i, k.layers, _room(len(k.ids)))
        with shared_attention(self.engine.model):
            for pieces in _calls([Piece(i, k.read, len(k.ids)) for i, k in enumerate(owed)], self.batch_tokens):
                call = PackedCall(tree, pieces, memory, keep_trunks=True)
                states = run_call(self.engine.model, call, range(call.offsets[-1]))
                for piece, part in zip(pieces, states.split([p.length for p in pieces]), strict=True):
                    found[piece.chain].append(part)
        for i, k in enumerate(owed):
            self.computed += len(k.ids) - k.read
            k.layers = memory.give(i)
            k.hidden = torch.cat([*([k.hidden] if k.hidden is not None else []), *found[i]])
            k.read = len(k.ids)

    def _hidden(self, sequences: Sequence[np.ndarray], positions: Sequence[range]) -> list[Tensor]:
        """Hidden states [T_i, H] at each sequence's positions: kept ones, and those of branches, which are read now."""
        members = dict[int, list[int]]()
        for i, ids in enumerate(sequences):
            shared = [shared_length(k.ids, ids) for k in self._kept]
            best = int(np.argmax(shared)) if any(shared) else ROOT
            members.setdefault(best, []).append(i)
        trunks = [k for k in members if k != ROOT]
        tree, order = _forest(
            [grow([sequences[i] for i in members[k]], [self._kept[k].ids]) for k in trunks]
            + ([grow([sequences[i] for i in members[ROOT]])] if ROOT in members else [])
        )
        memory = Memory()
        for chain, k in enumerate(trunks):
            longest = max(len(sequences[i]) for i in members[k])
            memory.put(chain, self._kept[k].layers, _room(max(longest, len(self._kept[k].ids))))
        inverse = [i for k in (*trunks, *([ROOT] if ROOT in members else [])) for i in members[k]]
        places: list[list[tuple[int, int]]] = [[] for _ in sequences]
        for n, i in enumerate(inverse):
            places[i] = tree.places(order[n], positions[i])
        branches = {p for some in places for p in some if p[0] >= tree.given}
        self.asked += tree.asked
        self.computed += tree.computed
        rows, states = (
            read_places(self.engine.model, tree, branches, self.batch_tokens, memory) if branches else ({}, None)
        )
        for chain, k in enumerate(trunks):
            self._kept[k].layers = memory.give(chain)
        kept = [self._kept[k].hidden for k in trunks]
        return [_gather(some, tree.given, kept, rows, states) for some in places]

    def _bound(self, used: Sequence[Kept]) -> None:
        """Put what was used last, and drop the oldest beyond the bound."""
        self._kept = [*(k for k in self._kept if k not in used), *used]
        total = self.bytes
        while self._kept and total > self.max_bytes:
            total -= self._kept.pop(0).bytes
        if self.engine.on_cpu:
            give_back()


def _mains(requests: Sequence[ScoreRequest], sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the first sequence of every group: the plain view."""
    first: dict[str, np.ndarray] = {}
    for request, ids in zip(requests, sequences, strict=True):
        if request.group is not None:
            first.setdefault(request.group, ids)
    return list(first.values())


def _room(length: int) -> int:
    """Tokens that the buffers of a conversation have room for, so that few of its turns copy them."""
    return -(-(length + SLACK) // SLACK) * SLACK


def _calls(pieces: Sequence[Piece], budget: int) -> list[list[Piece]]:
    """Forward calls of at most `budget` tokens."""
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


def _forest(trees: Sequence[PrefixTree]) -> tuple[PrefixTree, list[int]]:
    """Return several trees as one, given trunks first; and the sequence of the forest that each sequence, tree by tree,
    is."""
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
    return PrefixTree(tuple(chains), tuple(leaves), tuple(lengths), sum(given)), list(range(len(leaves)))


def _gather(
    places: Sequence[tuple[int, int]],
    given: int,
    kept: Sequence[Tensor | None],
    rows: dict[tuple[int, int], int],
    states: Tensor | None,
) -> Tensor:
    """Hidden states [T, H] at (chain, position) places, from what is kept of given trunks and from what was read."""
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

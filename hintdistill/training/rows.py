"""Turn targets into training rows: whole traces with all their accepted injections, and static weights.

A row is the student's own sequence of one trace, cut after the last scored token. Its slots are the steps that carry
loss: hints, anchors, and for an additive outcome reward every sampled step of a rollout that was better or worse than
its group. One student pass reads the row once and covers all of them. If a template rewrote history, a trace makes
several rows. Its twins have other contexts and hence separate rows, one for all twins of a trace that share an edited
context.

A batch's loss is the mean over its slots of `coef · Σ_t weight_t · W_t · ℓ_t`, summed over the recipe's terms. Weights
are per slot: the static weights of a term (loss span and normaliser) sum to 1 over the tokens of a slot (`per_row`), or
on average over the term's slots (otherwise), independently of other terms. A term's total is therefore `coef` times its
number of slots: a single anchor among 49 hints has the weight of one anchor, and more hints do not change the weight of
an anchor. The static weights are fixed over the data set before training starts, so that eight rows at once and eight
accumulated rows give the same gradient; weights that depend on the views themselves (W) are multiplied on top.

An additive outcome reward is the exception, because its coupling mixes two means in a fixed proportion: the reward is
the mean over the outcome slots and the terms are the mean over all other slots, so each side's weights compensate for
the slots of the other.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from hintdistill.config import TrainSection
from hintdistill.core.errors import InputError
from hintdistill.core.scores import Target
from hintdistill.objectives.spans import slot_scale
from hintdistill.rescoring.stored import by_part, extents, heads
from hintdistill.training.reward import (
    NO_OUTCOME,
    OutcomeData,
    OutcomeRow,
    SampledLikelihood,
    TraceOutcome,
    with_perplexities,
)
from hintdistill.training.slots import Slot, loss_weights, slot_of_outcome, slot_of_target

CACHE_BYTES = 64 << 20
"""Size in bytes of the cache of rows read last; at least one row is cached."""


@dataclass(frozen=True)
class TraceRow:
    """Hold one trace to train on."""

    key: str
    """The trace's id; if history was rewritten, followed by the row's number. The key of a twin's row is the id and
    `~twin`."""
    ids: torch.Tensor
    """int64 [L]: the student's own tokens without a hint, up to the last scored one."""
    slots: tuple[Slot, ...]

    def hinted(self, slot: Slot) -> torch.Tensor:
        """Return int64: the tokens that a teacher reads for a slot, up to the slot's last token; without a hint, the
        plain sequence."""
        stop = slot.start + slot.length
        return torch.cat([self.ids[: slot.insert_at], slot.block, self.ids[slot.insert_at : stop]])

    def plain(self, slot: Slot) -> torch.Tensor:
        """Return int64: the tokens that the student read for a slot, up to the slot's last token."""
        return self.ids[: slot.start + slot.length]

    def read(self, slot: Slot, context: str) -> torch.Tensor:
        """Return int64: the tokens that a view with this context reads for a slot: `plain`, `hint`, or one of the
        slot's further contexts.

        Raises InputError, naming the slot, if it has no such context.
        """
        if context == "plain":
            return self.plain(slot)
        if context == "hint":
            return self.hinted(slot)
        if context not in slot.views:
            raise InputError(
                f"{slot.key}: the target has no context `{context}`, which the recipe needs; it was made "
                "under another recipe",
                hint="start a new run folder, or use --resume with train.recipe, so that contexts are made again",
            )
        at, block = slot.views[context]
        return torch.cat([self.ids[:at], block, self.ids[at : slot.start + slot.length]])


class RowDataset(Dataset[TraceRow]):
    """Hold rows in a fixed order, followed by stand-in rows if several processes must read equally many."""

    def __init__(self, rows: Sequence[TraceRow], multiple: int = 1) -> None:
        """Fill up to a multiple of `multiple` with rows of two tokens and no slot, which have no loss and are not
        counted."""
        self.rows, self.fill = rows, -len(rows) % multiple
        self.sampler: LengthSampler | None = None

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler: when several processes resume a run, accelerate calls only the data set."""
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)

    @property
    def lengths(self) -> list[int]:
        """Return the number of tokens of each row."""
        return self.rows.lengths if isinstance(self.rows, Rows) else [len(r.ids) for r in self.rows]

    def __len__(self) -> int:
        return len(self.rows) + self.fill

    def __getitem__(self, index: int) -> TraceRow:
        return self.rows[index] if index < len(self.rows) else TraceRow("", self.rows[0].ids[:2], ())


class LengthSampler(Sampler[int]):
    """Draw a new order of the rows for each epoch, and sort the rows of one optimiser step by length.

    The micro-batches of a step thus contain rows of similar length, while the selection of rows for a step stays
    random.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, fill: int = 0) -> None:
        """Store the arguments; `batch_size` counts the rows of one optimiser step over all processes; `fill` counts
        stand-ins after the rows, which are read last."""
        self.lengths, self.batch_size, self.seed, self.fill, self.epoch = list(lengths), batch_size, seed, fill, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0; the Trainer calls this, also in a resumed run."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.fill

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.lengths)).tolist()
        for at in range(0, len(order), self.batch_size):
            yield from sorted(order[at : at + self.batch_size], key=lambda i: (-self.lengths[i], i))
        yield from range(len(self.lengths), len(self))


def build_rows(targets: Sequence[Target], config: TrainSection, outcome: OutcomeData = NO_OUTCOME) -> Rows:
    """Return the rows of accepted targets; the weights of each term are per slot, see the module's docstring.

    Targets that no term of the recipe uses make no slot: targets of a kind without a term, and anchors on which the
    initial policy was uncertain at every token. All targets are read once here, part by part, and their arrays are
    released again.

    Args:
        outcome: the outcomes of the traces, for a recipe that uses them.

    Raises:
        InputError: a sampled step has different numbers of recorded log-probabilities and tokens, or a stored row
            cannot be a target; the message names it.
    """
    for row in outcome.rows:
        if len(row.behaviour) != row.length:
            raise InputError(f"{row.key}: {len(row.behaviour)} log-probabilities for {row.length} sampled tokens")
    weighing = Weighing(config, outcome)
    lengths = [a + b for a, b in extents(targets)]
    layout = _Layout(targets, lengths, outcome.rows)
    sums: dict[int, dict[str, float]] = {}
    for i, target in by_part(targets):
        raw = weighing.raw(target)
        carried = {n: float(w.sum()) for n, w in raw.items() if w.any()}
        if carried:
            sums[i] = carried
            layout.read(i, target)
            weighing.hear(target, raw)
    weighing.settle([sums[i] for i in sorted(sums)])
    return Rows(layout.plans(sums), targets, weighing)


class Weighing:
    """Compute the static weights of slots: first what is fixed over the whole data set, then each slot's weights."""

    def __init__(self, config: TrainSection, outcome: OutcomeData = NO_OUTCOME) -> None:
        self.terms, self.outcome = config.effective_recipe.terms, outcome
        self._slots, self._share = 0, 1.0
        self._likelihoods: dict[str, SampledLikelihood] = {}
        self._outcomes: Mapping[str, TraceOutcome] = outcome.outcomes
        # term → how many slots carry it, and the sum of their weights
        self._members: dict[str, tuple[int, float]] = {}

    def raw(self, target: Target) -> dict[str, np.ndarray]:
        """Return the weights by term before normalisation, float32 [T] each, for the terms that use this kind of
        target."""
        return {n: loss_weights(target, term) for n, term in self.terms.items() if term.rows == target.kind}

    def hear(self, target: Target, raw: Mapping[str, np.ndarray]) -> None:
        """Add the probability with which a hint's step was sampled, if the recipe uses the outcome of its rollout."""
        if target.kind == "hint" and target.trace_id in self.outcome.outcomes:
            carried = np.any(np.stack([w != 0 for w in raw.values()]), axis=0)
            self._likelihoods.setdefault(target.trace_id, SampledLikelihood()).add(target, carried)

    def settle(self, sums: Sequence[Mapping[str, float]]) -> None:
        """Add up the sums of every slot's raw weights by term, for the terms that weight any of its tokens."""
        self._outcomes = with_perplexities(self.outcome.outcomes, self._likelihoods)
        # terms and reward are a mean each over slots of their own
        self._slots = len(sums) + len(self.outcome.rows)
        self._share = self._slots / max(1, len(sums))
        for name in self.terms:
            each = [s[name] for s in sums if name in s]
            self._members[name] = (len(each), sum(each))

    def slot(self, target: Target) -> Slot:
        """Return the slot of a target."""
        weights = self.raw(target)
        for name in [n for n, w in weights.items() if w.any()]:
            members, total = self._members[name]
            own = float(weights[name].sum())
            scale = slot_scale(self.terms[name].normalize, own, members, total)
            weights[name] = weights[name] * np.float32(scale * self._share)
        return slot_of_target(target, weights, self._outcomes.get(target.trace_id))

    def outcome_slot(self, row: OutcomeRow) -> Slot:
        """Return the slot of a sampled step of a rollout."""
        return slot_of_outcome(row, self.outcome, self._slots / len(self.outcome.rows))


def watch_rows(targets: Sequence[Target]) -> list[TraceRow]:
    """Return the rows of steps that are watched and never trained on; their slots have no weight."""
    layout = _Layout(targets, [a + b for a, b in extents(targets)])
    for i, target in by_part(targets):
        layout.read(i, target)
    return list(Rows(layout.plans(range(len(targets))), targets, None))


@dataclass(frozen=True)
class Member:
    """Describe a slot before its arrays are read."""

    source: int
    """Index of its target; indices after the targets refer to outcome rows."""
    key: str
    kind: str
    """`hint`, `anchor`, or another kind that a term names as its `rows`; `outcome` for a step that only the reward
    trains."""
    start: int
    length: int
    insert_at: int = 0
    block: int = 0
    """The tokens of the hint."""
    views: tuple[str, ...] = ()
    """Further contexts that contain tokens, by name."""


@dataclass(frozen=True)
class RowPlan:
    """Describe a row before its arrays are read."""

    key: str
    trace_id: str
    length: int
    """Number of tokens."""
    trunk: int
    """The source whose sequence forms the row."""
    members: tuple[Member, ...]


class _Layout:
    """Decide which slots share a row: slots of one trace, if the sequence of one begins with the other's, token for
    token.

    Sequences are read once, in any order. Only fingerprints of each are kept, of its prefixes as long as the other
    sequences of its trace; prefixes with equal fingerprints have the same tokens.
    """

    def __init__(self, targets: Sequence[Target], lengths: Sequence[int], outcomes: Sequence[OutcomeRow] = ()) -> None:
        """Store the arguments; `lengths` are the numbers of tokens of each target's context and step."""
        self._traces = [h.trace_id for h in heads(targets)] + [r.trace_id for r in outcomes]
        self._lengths = [*lengths, *(len(r.ids) for r in outcomes)]
        self._cuts: dict[str, set[int]] = {}
        for trace_id, length in zip(self._traces, self._lengths, strict=True):
            self._cuts.setdefault(trace_id, set()).add(length)
        self._prints: dict[int, dict[int, bytes]] = {}
        self._members: dict[int, Member] = {}
        for i, row in enumerate(outcomes, len(targets)):
            self._add(Member(i, row.key, "outcome", len(row.ids) - row.length, row.length), row.ids.numpy())

    def read(self, number: int, target: Target) -> None:
        """Add a target."""
        start, block = len(target.context_ids), len(target.block_ids)
        # without a hint nothing is inserted, wherever that would be
        at = target.insert_at if block else start
        views = tuple(name for name, (_, ids) in target.views.items() if len(ids))
        member = Member(number, target.key, target.kind, start, len(target.step_ids), at, block, views)
        self._add(member, np.concatenate([target.context_ids, target.step_ids]))

    def _add(self, member: Member, ids: np.ndarray) -> None:
        self._members[member.source] = member
        digest, done, prints = hashlib.blake2b(digest_size=16), 0, {}
        for cut in sorted(c for c in self._cuts[self._traces[member.source]] if c <= len(ids)):
            digest.update(np.ascontiguousarray(ids[done:cut], np.int64).tobytes())
            prints[cut], done = digest.digest(), cut
        self._prints[member.source] = prints

    def plans(self, chosen: Iterable[int]) -> list[RowPlan]:
        """Return the rows of these targets and of all outcomes, with traces in order of appearance."""
        outcomes = [i for i, m in self._members.items() if m.kind == "outcome"]
        by_trace: dict[str, list[int]] = {}
        for i in [*sorted(chosen), *sorted(outcomes)]:
            by_trace.setdefault(self._traces[i], []).append(i)
        rows: list[RowPlan] = []
        for trace_id, members in by_trace.items():
            trunks: list[tuple[int, list[Member]]] = []
            for i in sorted(members, key=lambda i: -self._lengths[i]):
                length = self._lengths[i]
                own = self._prints[i][length]
                home = next((found for trunk, found in trunks if self._prints[trunk].get(length) == own), None)
                if home is None:
                    trunks.append((i, [self._members[i]]))
                else:
                    home.append(self._members[i])
            taken: Counter[str] = Counter()
            for trunk, found in trunks:
                found.sort(key=lambda m: (m.start, m.key))
                name = f"{trace_id}~twin" if all(m.kind == "twin" for m in found) else trace_id
                taken[name] += 1
                key = name if taken[name] == 1 else f"{name}#{taken[name]}"
                rows.append(RowPlan(key, trace_id, self._lengths[trunk], trunk, tuple(found)))
        return rows


class Rows(Sequence[TraceRow]):
    """Hold rows in a fixed order. A row's arrays are read on access, and the latest rows are cached."""

    def __init__(self, plans: Sequence[RowPlan], targets: Sequence[Target], weighing: Weighing | None) -> None:
        """Store the arguments; without `weighing`, slots have no weight."""
        self.plans, self._targets, self._weighing = list(plans), targets, weighing
        self._kept: OrderedDict[int, TraceRow] = OrderedDict()
        self._kept_bytes = 0

    @property
    def lengths(self) -> list[int]:
        """Return the number of tokens of each row without reading any."""
        return [p.length for p in self.plans]

    def number_of(self, kind: str) -> int:
        """Return the number of slots of a kind without reading any row."""
        return sum(m.kind == kind for p in self.plans for m in p.members)

    def contexts(self) -> dict[str, int]:
        """Count the hint slots whose teacher reads tokens that the student does not, by the context's name, without
        reading any row."""
        hints = [m for p in self.plans for m in p.members if m.kind == "hint"]
        further = Counter(name for m in hints for name in m.views)
        return {"hint": sum(m.block > 0 for m in hints), **dict(sorted(further.items()))}

    def __len__(self) -> int:
        return len(self.plans)

    @overload
    def __getitem__(self, at: int) -> TraceRow: ...

    @overload
    def __getitem__(self, at: slice) -> list[TraceRow]: ...

    def __getitem__(self, at: int | slice) -> TraceRow | list[TraceRow]:
        """Return a row with its arrays, or several."""
        numbers = range(len(self.plans))[at]
        if isinstance(numbers, range):
            return [self[i] for i in numbers]
        if numbers in self._kept:
            self._kept.move_to_end(numbers)
            return self._kept[numbers]
        row = self._kept[numbers] = self._row(self.plans[numbers])
        self._kept_bytes += _nbytes(row)
        while len(self._kept) > 1 and self._kept_bytes > CACHE_BYTES:
            self._kept_bytes -= _nbytes(self._kept.popitem(last=False)[1])
        return row

    def _row(self, plan: RowPlan) -> TraceRow:
        sources = {m.source: self._source(m.source) for m in plan.members}
        ids = _ids(sources[plan.trunk]).astype(np.int64)
        return TraceRow(plan.key, torch.from_numpy(ids), tuple(self._slot(sources[m.source]) for m in plan.members))

    def _source(self, number: int) -> Target | OutcomeRow:
        if number < len(self._targets):
            return self._targets[number]
        assert self._weighing is not None
        return self._weighing.outcome.rows[number - len(self._targets)]

    def _slot(self, source: Target | OutcomeRow) -> Slot:
        if self._weighing is None:
            assert isinstance(source, Target)
            return slot_of_target(source, {})
        return self._weighing.outcome_slot(source) if isinstance(source, OutcomeRow) else self._weighing.slot(source)


def _nbytes(row: TraceRow) -> int:
    """Return the number of bytes of a row's largest tensors."""
    each = [t for s in row.slots for t in (s.support_ids, s.target, s.plain, s.sampled, *s.weights.values())]
    return sum(t.nbytes for t in [row.ids, *each])


def _ids(source: Target | OutcomeRow) -> np.ndarray:
    if isinstance(source, OutcomeRow):
        return source.ids.numpy()
    return np.concatenate([source.context_ids, source.step_ids])

"""Forward passes of a training step: one of the student over whole rows, and those that a teacher still needs.

The rows of a micro-batch are packed into one sequence of tokens, without padding; each attends only to itself. If the
teacher has the student's own weights, its branches (hint and step) reuse the keys and values of the student's pass,
before the backward pass: each costs only its own tokens. With other weights, each trace is read once, followed by its
branches. Models whose prefixes cannot be shared are read with padding, every hinted sequence separately.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hintdistill.engines.forward import intercept, last_feed_forward_on
from hintdistill.engines.prefix_tree import ROOT, Chain, Piece, PrefixTree, grow
from hintdistill.engines.shared_prefix import Memory, PackedCall, shared_hidden
from hintdistill.engines.sharing import Sharing, SharingWarning, hidden_states
from hintdistill.training.rows import TraceRow
from hintdistill.training.slots import Slot

Placed = tuple[TraceRow, Slot]
"""A slot and the row it is in."""
MANY = 4
"""The last layer attends only at scored positions if they are at most one in this many."""


@dataclass
class StudentPass:
    """Hold the results of the student's pass over a micro-batch."""

    hidden: dict[str, Tensor]
    """Hidden states [T, H] by slot key, with gradient."""
    tree: PrefixTree | None
    """The rows as trunks, and the hinted slots as their branches; None if nothing is shared."""
    memory: Memory
    """Detached keys and values of the trunks, if there are branches."""
    branches: dict[str, int]
    """Index of a slot's branch among the tree's sequences, by slot key."""
    nothing: Tensor
    """0, computed from every parameter that the pass used."""


def places(rows: Sequence[TraceRow], kind: str | None = None) -> list[Placed]:
    """Return every slot with its row, in order; optionally only those of one kind."""
    return [(row, slot) for row in rows for slot in row.slots if kind is None or slot.kind == kind]


def forest(rows: Sequence[TraceRow], branched: Sequence[tuple[int, Slot]]) -> PrefixTree:
    """Return a tree in which each row is a trunk, even where two rows begin alike, because each carries its own
    gradient; branches start from the trunks.

    A row's last token is scored but never read. The trunks count as given, because the student's pass reads them.
    """
    chains = [Chain(ROOT, i, 0, row.ids[:-1].numpy()) for i, row in enumerate(rows)]
    lengths = []
    for i, slot in branched:
        stop = slot.start + slot.length
        ids = torch.cat([slot.block, rows[i].ids[slot.insert_at : stop - 1]]).numpy()
        chains.append(Chain(i, i, slot.insert_at, ids))
        lengths.append(slot.insert_at + len(ids))
    leaves = range(len(rows), len(chains))
    return PrefixTree(tuple(chains), tuple(leaves), tuple(lengths), given=len(rows))


def stretches(wanted: Sequence[range], length: int) -> list[range]:
    """Return the positions at which a row's last layer attends: scored positions with overlaps merged, or all positions
    if there are many.

    A few rows are attended under a mask, which is slower per row than torch's causal attention over all rows.
    """
    out: list[range] = []
    for r in sorted(wanted, key=lambda r: r.start):
        if out and r.start <= out[-1].stop:
            out[-1] = range(out[-1].start, max(out[-1].stop, r.stop))
        else:
            out.append(r)
    return out if MANY * sum(map(len, out)) <= length else [range(length)]


class Passes:
    """Read rows with the student, and hinted or plain sequences with the teacher."""

    def __init__(self, owner: Any, way: Sharing, budget: int, *, narrow: bool = True, link: bool = False) -> None:
        """Store the model for its passes.

        Args:
            owner: the model itself, if the trainer's model is a wrapper around it.
            way: how prefixes are shared, see `engines.sharing`.
            budget: tokens per forward call without gradient.
            narrow: let the last layer's feed-forward block see only scored positions; not under gradient checkpointing,
                whose second forward pass would see the others.
            link: add the logits (times zero) to the hidden states, so that hooks on a wrapper's outputs are called.
        """
        self.owner, self.way, self.budget, self.narrow, self.link = owner, way, budget, narrow, link
        self.pad = int(owner.config.get_text_config().pad_token_id or 0)
        self.rides = way == "shared_prefix" and not _drops(owner)
        """Whether a teacher with the student's weights can use the student's keys and values; not possible under
        dropout."""
        if way in ("snapshots", "snapshots_by_token"):
            base = owner.get_base_model() if hasattr(owner, "get_base_model") else owner
            warnings.warn(
                f"{type(base).__name__}: its layers keep a state, so rows are read with padding and every "
                f"teacher reads each trace separately ({way}), which is exact but slower",
                SharingWarning,
                stacklevel=3,
            )

    def student(self, model: Any, rows: Sequence[TraceRow], *, ride: bool) -> StudentPass:
        """Make one pass over whole rows, with gradient. `ride`: keep keys and values, and lay out branches for hinted
        slots."""
        if self.way != "shared_prefix":
            found, nothing = self._padded(model, rows)
            return StudentPass(found, None, Memory(), {}, nothing)
        branched = [(i, s) for i, row in enumerate(rows) for s in row.slots if ride and len(s.block)]
        tree, memory = forest(rows, branched), Memory()
        call = PackedCall(tree, [Piece(i, 0, len(tree.chains[i].ids)) for i in range(len(rows))], memory)
        call.rows = {i: self._attended(row) for i, row in enumerate(rows)}
        columns = torch.tensor(
            [p + call.offsets[i] for i, row in enumerate(rows) for s in row.slots for p in s.positions],
            dtype=torch.long,
        )
        hidden = self.run(model, call.inputs(self.device), columns)
        slots = [s for row in rows for s in row.slots]
        split = hidden.split([s.length for s in slots])
        # what a second forward of gradient checkpointing reads again is not kept again
        memory.closed = True
        return StudentPass(
            {s.key: h for s, h in zip(slots, split, strict=True)},
            tree,
            memory,
            {s.key: n for n, (_, s) in enumerate(branched)},
            0.0 * hidden.float().sum(),
        )

    def _attended(self, row: TraceRow) -> list[range]:
        """Return the positions at which the last layer attends; a row without a slot is still read, so that every
        parameter takes part."""
        whole = range(len(row.ids) - 1)
        return stretches([s.positions for s in row.slots], len(whole)) or [whole]

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return next(self.owner.parameters()).device

    def run(self, model: Any, inputs: dict[str, Any], columns: Tensor) -> Tensor:
        """Return hidden states [len(columns), H] of the single packed row."""
        out: list[Tensor] = []
        with intercept(self.owner, torch.zeros_like(columns), columns, out):
            if self.narrow and len(columns):
                with last_feed_forward_on(self.owner, columns.unique()):
                    answer = model(**inputs)
            else:
                answer = model(**inputs)
        return out[0] + 0.0 * answer.logits.float().sum() if self.link else out[0]

    def _padded(self, model: Any, rows: Sequence[TraceRow]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the same if nothing is shared, with rows padded on the right, and the pass's `nothing`."""
        positions = [[p for s in row.slots for p in s.positions] for row in rows]
        hidden = self._read_padded(model, [row.ids[:-1] for row in rows], positions)
        slots = [s for row in rows for s in row.slots]
        split = hidden.split([s.length for s in slots])
        return {s.key: h for s, h in zip(slots, split, strict=True)}, 0.0 * hidden.float().sum()

    def _read_padded(self, model: Any, sequences: Sequence[Any], positions: Sequence[Sequence[int]]) -> Tensor:
        """Return hidden states [all positions, H] of sequences padded on the right, with gradient."""
        ids = torch.full((len(sequences), max(len(s) for s in sequences)), self.pad, dtype=torch.long)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.long)
        every = [torch.tensor(list(p), dtype=torch.long) for p in positions]
        where = torch.cat([torch.full_like(c, i) for i, c in enumerate(every)])
        out: list[Tensor] = []
        with intercept(self.owner, where, torch.cat(every), out):
            answer = model(input_ids=ids.to(self.device), use_cache=False)
        return out[0] + 0.0 * answer.logits.float().sum() if self.link else out[0]

    @torch.no_grad()
    def riding(self, model: Any, done: StudentPass, placed: Sequence[Placed]) -> dict[str, Tensor]:
        """Return hidden states [T, H] under the hint by slot key, using the student's own keys and values; no gradient.

        A slot without a hint gets the student's own hidden states, bit for bit.
        """
        assert done.tree is not None
        positions = [range(0)] * len(done.tree.leaves)
        for _, slot in placed:
            if slot.key in done.branches:
                shift = len(slot.block)
                positions[done.branches[slot.key]] = range(slot.positions.start + shift, slot.positions.stop + shift)
        found = shared_hidden(model, done.tree, positions, self.budget, done.memory) if done.branches else []
        return {
            s.key: found[done.branches[s.key]] if s.key in done.branches else done.hidden[s.key].detach()
            for _, s in placed
        }

    @torch.no_grad()
    def apart(self, model: Any, placed: Sequence[Placed], context: str) -> dict[str, Tensor]:
        """Return hidden states [T, H] by slot key with other weights: each trace is read once, then its branches; no
        gradient."""
        sequences, positions = _sequences(placed, context)
        found = hidden_states(self.way, model, grow(sequences), sequences, positions, self.budget)
        return {s.key: h for (_, s), h in zip(placed, found, strict=True)}

    def with_gradient(self, model: Any, placed: Sequence[Placed], context: str) -> dict[str, Tensor]:
        """Return hidden states [T, H] by slot key of a view through which a term trains; each sequence is a separate
        row."""
        sequences, positions = _sequences(placed, context)
        split = self._read_padded(model, sequences, positions).split([len(p) for p in positions])
        return {s.key: h for (_, s), h in zip(placed, split, strict=True)}

    def stand_in(self, model: Any) -> Tensor:
        """Return 0 as a function of the parameters: the pass of a process without a slot while others run
        `with_gradient`."""
        return 0.0 * self._read_padded(model, [[self.pad]], [[0]]).float().sum()


def _sequences(placed: Sequence[Placed], context: str) -> tuple[list[np.ndarray], list[range]]:
    """Return the tokens read for each slot, up to the one before its last, and the positions whose next token is
    scored."""
    ids = [row.read(slot, context).numpy() for row, slot in placed]
    return [x[:-1] for x in ids], [
        range(len(x) - s.length - 1, len(x) - 1) for x, (_, s) in zip(ids, placed, strict=True)
    ]


def _drops(model: Any) -> bool:
    """Return whether any part of the model drops activations during training."""
    dropouts = (m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
    config = model.config.get_text_config()
    return any(p > 0 for p in dropouts) or bool(getattr(config, "attention_dropout", 0.0))

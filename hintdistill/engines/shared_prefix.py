"""Read every distinct token of a set of sequences once: branches attend to the kept keys and values of trunks.

All pieces of a call are packed into one row of tokens, each with its own positions. An attention function registered
with transformers' `AttentionInterface` splits the row again. It keeps the keys and values of chains with branches, and
lets each piece attend to its past among them and to itself. So the model's own code runs (norms, rotary embedding,
adapters, experts). Without a window, cap or sink there is no mask at all (`attention_parts`); otherwise no mask is
larger than a block of queries times the keys that it may see.

The keys and values are captured in the attention function and not in a transformers cache, because that cache is
silently empty under gradient checkpointing, and cropping it is refused or wrong on sliding layers. They are detached
copies, so the forward pass of a training step can keep its trunk for the teacher's branches.

Sources: prefix sharing as in PrefixGrouper (arXiv 2506.05433) and Tree Training (arXiv 2511.00413), but without the
gradient through the branches; attention sinks as in gpt-oss; soft caps as in Gemma 2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hintdistill.core.errors import SharingError
from hintdistill.core.machine import give_back
from hintdistill.engines.attention_parts import Part, attend_parts, fits
from hintdistill.engines.forward import intercept, last_feed_forward_on
from hintdistill.engines.keys_values import Memory
from hintdistill.engines.prefix_tree import ROOT, Piece, PrefixTree, grow

ATTENTION = "hintdistill_shared_prefix"
BLOCK = 256
"""Number of queries per block if a mask is needed; a mask has at most this many rows, times the query heads per key
head."""


@dataclass(frozen=True)
class Rule:
    """Describe how one layer attends."""

    scale: float
    window: int | None
    """Number of keys that a query may see, itself included; None means all."""
    softcap: float | None
    sinks: Tensor | None
    """[query heads]: an extra logit per head that takes part in the softmax without a value."""
    last: bool = False
    """Whether no later layer attends. Then only rows with wanted hidden states need an output."""

    @property
    def plain(self) -> bool:
        """Whether torch's fused attention can compute it."""
        return self.softcap is None and self.sinks is None


class PackedCall:
    """Describe one forward call: the position of each piece in the packed row, and how attention splits the row
    again."""

    def __init__(
        self,
        tree: PrefixTree,
        pieces: Sequence[Piece],
        memory: Memory,
        keep_trunks: bool = False,
        windows: bool = False,
    ) -> None:
        """Set up the state of one call.

        Args:
            keep_trunks: also keep the keys and values of trunks without branches in this tree.
            windows: let pieces that begin within a trunk carry a gradient. They attend to their past in the memory,
                which has no gradient. Without `windows` such a piece refuses a gradient, because it would be cut off
                silently.
        """
        self.tree, self.pieces, self.memory, self.keep_trunks = tree, pieces, memory, keep_trunks
        self.windows = windows
        self.offsets = np.cumsum([0, *(p.length for p in pieces)]).tolist()
        self.layers: set[int] = set()
        """Attention layers that used this call."""
        self.rows: dict[int, list[range]] | None = None
        """Piece → ascending rows for which the last layer must compute an output, if only some are wanted; None for all
        rows."""
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Return the model's keyword arguments."""
        chains = self.tree.chains
        ids = np.concatenate([chains[p.chain].ids[p.start - chains[p.chain].at :][: p.length] for p in self.pieces])
        positions = np.concatenate([np.arange(p.start, p.stop) for p in self.pieces])
        return {
            "input_ids": torch.from_numpy(ids)[None].to(device),
            "position_ids": torch.from_numpy(positions)[None].to(device),
            "use_cache": False,
            "tree": self,
        }

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Return the attention output [1, N, H, Dv] of the packed row: query [1, H, N, D], key [1, Hk, N, D], value [1,
        Hk, N, Dv]."""
        self.layers.add(layer)
        parts = [
            (query[0, :, a:b], key[0, :, a:b], value[0, :, a:b])
            for a, b in zip(self.offsets, self.offsets[1:], strict=False)
        ]
        for piece, (_, k, v) in zip(self.pieces, parts, strict=True):
            chain = self.tree.chains[piece.chain]
            if self._is_kept(piece) and not (self.memory.closed and chain.parent == ROOT):
                room = self.tree.depths[piece.chain] if chain.parent == ROOT else len(chain.ids)
                self.memory.write(layer, piece.chain, piece.start - chain.at, room, k, v)
        out = []
        for i, (piece, qkv) in enumerate(zip(self.pieces, parts, strict=True)):
            if self.rows is None or not rule.last:
                out.append(self._attend_piece(layer, piece, *qkv, rule, range(piece.length)))
                continue
            nothing, at = value.new_zeros(query.shape[1], piece.length, value.shape[3]), 0
            for rows in self.rows.get(i, ()):
                out += [nothing[:, at : rows.start], self._attend_piece(layer, piece, *qkv, rule, rows)]
                at = rows.stop
            out.append(nothing[:, at:])
        return torch.cat(out, dim=1).transpose(0, 1)[None].contiguous()

    def _is_kept(self, piece: Piece) -> bool:
        chain = self.tree.chains[piece.chain]
        return piece.chain in self.tree.parents or piece.length < len(chain.ids) or self.keep_trunks

    def _attend_piece(
        self, layer: int, piece: Piece, q: Tensor, k: Tensor, v: Tensor, rule: Rule, rows: range
    ) -> Tensor:
        """Return the output [H, rows, Dv] of some rows of a piece."""
        whole = len(rows) == piece.length
        if piece.start == 0 and whole and rule.plain and not (rule.window or 1 << 60) < len(rows):
            return _causal(q, k, v, rule.scale)
        q, first, stop = q[:, rows.start : rows.stop], piece.start + rows.start, piece.start + rows.stop
        maskless = rule.plain and not (rule.window or 1 << 60) < stop and fits(q, v)
        if piece.start == 0 and not maskless:
            return self._in_blocks(q, k[:, :stop], v[:, :stop], first, rule)
        if self.windows and piece.start and self.tree.chains[piece.chain].parent == ROOT:
            past_k, past_v = (x[:, : piece.start] for x in self.memory.read(layer, piece.chain, q.device))
            # copied, because the backward pass needs both parts as they are now
            keys, values = torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
            return self._in_blocks(q, keys[:, :stop], values[:, :stop], first, rule)
        if torch.is_grad_enabled() and q.requires_grad:
            raise SharingError("only whole trunks can carry a gradient, because a past read from the cache is detached")
        path = self.tree.path(piece.chain, piece.stop)
        if maskless:
            seen, mine = slice(rows.start), slice(rows.start, rows.stop)
            own = [Part(k[:, seen], v[:, seen]), Part(k[:, mine], v[:, mine], causal=True)]
            return attend_parts(q, [*self._past(layer, path, piece, q.device), *own], rule.scale)
        keys, values = self.memory.read(layer, path[0].chain, q.device, piece.stop)
        if len(path) == 1:
            return self._in_blocks(q, keys[:, :stop], values[:, :stop], first, rule)
        tail = [*self._past(layer, path, piece, q.device)[1:], Part(k, v)]
        tail_k, tail_v = torch.cat([p.key for p in tail], dim=1), torch.cat([p.value for p in tail], dim=1)
        fork = path[0].stop
        # the tail is laid over the trunk's own continuation for a moment: copying the trunk instead would cost as much
        # memory traffic as the attention itself
        with _borrowed(keys, fork, tail_k), _borrowed(values, fork, tail_v):
            return self._in_blocks(q, keys[:, :stop], values[:, :stop], first, rule)

    def _past(self, layer: int, path: Sequence[Piece], piece: Piece, device: torch.device) -> list[Part]:
        """Return the kept keys and values of the tokens before the piece, from the trunk and from each chain above
        it."""
        stretches = [(p.chain, p.stop) for p in path[:-1]]
        if piece.start > path[-1].start:
            stretches.append((piece.chain, piece.start))
        parts = []
        for chain, stop in stretches:
            key, value = self.memory.read(layer, chain, device)
            n = stop - self.tree.chains[chain].at
            parts.append(Part(key[:, :n], value[:, :n]))
        return parts

    def _in_blocks(self, q: Tensor, keys: Tensor, values: Tensor, first: int, rule: Rule) -> Tensor:
        """Return the attention of queries [H, n, D] at positions `first`… over keys at positions 0…first+n, block by
        block."""
        out = []
        for i in range(0, q.shape[1], BLOCK):
            part = q[:, i : i + BLOCK]
            start, stop = first + i, first + i + part.shape[1]
            low = 0 if rule.window is None else max(0, start - rule.window + 1)
            mask = self._mask(start, stop, low, rule.window, q.shape[0] // keys.shape[0], q)
            out.append(_masked(part, keys[:, low:stop], values[:, low:stop], mask, rule))
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)

    def _mask(self, start: int, stop: int, low: int, window: int | None, groups: int, like: Tensor) -> Tensor:
        """Return a mask [groups · queries, keys]: 0 if query [start, stop) may see key [low, stop), else -inf. All
        layers share it."""
        slot = (start, stop, low, window, groups, like.device, like.dtype)
        if slot not in self._masks:
            rows = torch.arange(start, stop, device=like.device)[:, None]
            columns = torch.arange(low, stop, device=like.device)[None]
            hidden = columns > rows
            if window is not None:
                hidden |= columns <= rows - window
            mask = torch.zeros(hidden.shape, device=like.device, dtype=like.dtype).masked_fill_(hidden, -torch.inf)
            self._masks[slot] = mask.repeat(groups, 1)
        return self._masks[slot]


@contextmanager
def _borrowed(buffer: Tensor, at: int, tail: Tensor) -> Iterator[None]:
    """Yield `buffer` with `tail` written over it from `at` on, and restore it afterwards."""
    stop = at + tail.shape[1]
    before = buffer[:, at:stop].clone()
    buffer[:, at:stop] = tail
    try:
        yield
    finally:
        buffer[:, at:stop] = before


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    groups = q.shape[0] // k.shape[0]
    fused = k.shape[-1] == v.shape[-1] <= 256
    if groups > 1 and not fused:
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    return scaled_dot_product_attention(
        q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=groups > 1 and fused
    )[0]


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    """Return the attention of queries [H, n, D] over keys [Hk, S, D]; the query heads of one key head are stacked as
    further rows."""
    heads, n, width = q.shape
    stacked = q.reshape(k.shape[0], -1, width)
    if rule.plain:
        out = scaled_dot_product_attention(stacked[None], k[None], v[None], attn_mask=mask, scale=rule.scale)[0]
        return out.reshape(heads, n, -1)
    logits = torch.matmul(stacked, k.transpose(1, 2)).float() * rule.scale
    if rule.softcap is not None:
        logits = torch.tanh(logits / rule.softcap) * rule.softcap
    logits = (logits + mask).reshape(heads, n, -1)
    if rule.sinks is not None:
        sinks = rule.sinks.float().reshape(-1, 1, 1).expand(heads, n, 1)
        weights = torch.cat([logits, sinks], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = logits.softmax(-1)
    return torch.matmul(weights.to(v.dtype).reshape(k.shape[0], -1, k.shape[1]), v).reshape(heads, n, -1)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute attention for transformers in place of its own. Without a `tree`, use scaled-dot-product attention."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    tree: PackedCall | None = kwargs.pop("tree", None)
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("position_bias") is not None:
        raise SharingError("position biases cannot be shared between branches")
    scale, config = kwargs.get("scaling"), getattr(module, "config", None)
    rule = Rule(
        scale if scale is not None else query.shape[-1] ** -0.5,
        kwargs.get("sliding_window") or None,
        kwargs.get("softcap"),
        kwargs.get("s_aux"),
        getattr(module, "layer_idx", None) == getattr(config, "num_hidden_layers", 0) - 1,
    )
    return tree.attend(id(module), query, key, value, rule), None


def register() -> None:
    """Register the attention with transformers under the name `ATTENTION`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)


@contextmanager
def shared_attention(model: Any) -> Iterator[None]:
    """Give the model the shared-prefix attention inside the block, and restore its own afterwards.

    A training step with gradient checkpointing must stay inside until its backward pass is done.
    """
    before = model.config._attn_implementation
    if before == ATTENTION:
        yield
        return
    register()
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def run_call(model: Any, call: PackedCall, columns: Sequence[int]) -> Tensor:
    """Run one call, and return the hidden states [len(columns), H] at these places of the packed row."""
    out: list[Tensor] = []
    places = torch.tensor(columns, dtype=torch.long)
    with contextlib.ExitStack() as stack:
        if call.rows is not None:
            # one place where nothing is asked: not every block takes none
            stack.enter_context(last_feed_forward_on(model, places if columns else torch.zeros(1, dtype=torch.long)))
        stack.enter_context(intercept(model, torch.zeros_like(places), places, out))
        model(**call.inputs(next(model.parameters()).device))
    return out[0]


def shared_hidden(
    model: Any, tree: PrefixTree, positions: Sequence[range], budget: int, memory: Memory | None = None
) -> list[Tensor]:
    """Return the hidden states [T_i, H] at each sequence's positions, reading every distinct token once.

    Args:
        tree: the tree of the sequences, in their order.
        budget: tokens per forward call.
        memory: keys and values of the tree's given trunks, if it has any.

    Raises:
        ValueError: a wanted position lies on a given trunk, whose hidden states are no longer available.
    """
    places = [tree.places(i, p) for i, p in enumerate(positions)]
    if any(chain < tree.given for some in places for chain, _ in some):
        raise ValueError("a scored position lies on a given trunk; score it in the pass that reads the trunk")
    rows, hidden = read_places(model, tree, {p for some in places for p in some}, budget, memory)
    return [hidden[torch.tensor([rows[p] for p in some], device=hidden.device)] for some in places]


def read_places(
    model: Any, tree: PrefixTree, places: Collection[tuple[int, int]], budget: int, memory: Memory | None = None
) -> tuple[dict[tuple[int, int], int], Tensor]:
    """Read a tree once; return the row of each (chain, position), and the hidden states [rows, H]. `places` may not be
    empty."""
    memory = memory if memory is not None else Memory()
    wanted: dict[int, list[int]] = {}
    for chain, position in sorted(places):
        wanted.setdefault(chain, []).append(position)
    rows: dict[tuple[int, int], int] = {}
    found: list[Tensor] = []
    on_cpu = next(model.parameters()).device.type == "cpu"
    with shared_attention(model):
        for number, pieces in enumerate(tree.calls(budget)):
            if number and on_cpu:
                # what a call leaves lies between what the next one takes: the heap would grow from call to call
                give_back()
            call, columns = PackedCall(tree, pieces, memory), []
            call.rows = {}
            for i, piece in enumerate(pieces):
                here = [p for p in wanted.get(piece.chain, ()) if piece.start <= p < piece.stop]
                if here:
                    call.rows[i] = [range(here[0] - piece.start, here[-1] - piece.start + 1)]
                columns += [call.offsets[i] + p - piece.start for p in here]
                rows.update({(piece.chain, p): len(rows) + n for n, p in enumerate(here)})
            found.append(run_call(model, call, columns))
            if not call.layers:
                raise SharingError("its attention does not go through transformers' AttentionInterface")
    return rows, torch.cat(found)


class Trunk:
    """Hold a sequence with its keys and values, so that later calls can branch off it."""

    def __init__(self, ids: np.ndarray, memory: Memory) -> None:
        self.ids, self.memory = ids, memory

    @classmethod
    def read(cls, model: Any, ids: np.ndarray, budget: int, offload: bool = False) -> Trunk:
        """Read int64 ids [S] through the model, at most `budget` tokens per forward call; for `offload` see `Memory`."""
        ids = np.ascontiguousarray(ids, np.int64)
        tree, memory = grow([ids]), Memory(offload)
        with shared_attention(model):
            for pieces in tree.calls(budget):
                call = PackedCall(tree, pieces, memory, keep_trunks=True)
                call.rows = {}
                run_call(model, call, [])
        return cls(ids, memory)

    @classmethod
    def call(cls, ids: np.ndarray) -> tuple[Trunk, dict[str, Any]]:
        """Return a trunk, and the model arguments with which a forward pass inside `shared_attention` fills it.

        A training step keeps the student's keys and values for its teacher in this way. Gradients flow through the
        forward pass as usual; the kept keys and values are detached copies.
        """
        ids = np.ascontiguousarray(ids, np.int64)
        tree, memory = grow([ids]), Memory()
        call = PackedCall(tree, [Piece(0, 0, len(ids))], memory, keep_trunks=True)
        return cls(ids, memory), call.inputs()

"""Run one forward pass, take hidden states at chosen positions, and turn them into log-probabilities.

The model's own root forward runs, so that wrappers and their hooks keep working. A hook on the output embedding
extracts the hidden states of the wanted positions before the matrix product. So `[positions, vocab]` exists only for
scored positions, and only one chunk at a time. The model's changes to its logits (soft cap, scale) are read from its
config and checked once against its own logits.

Sequences are padded on the right and no mask is passed. With causal attention, later positions do not affect earlier
ones, and without a mask no L×L array is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

Head = Callable[[torch.Tensor], torch.Tensor]
CHUNK_ELEMENTS = 1 << 24
"""Entries of one chunk of logits: 64 MB in float32."""
READER: ContextVar[object | None] = ContextVar("reader", default=None)
"""Identifies one of several threads that run the same model at the same time; None if only one runs it. A hook of one
reader does not act on the forward passes of another."""


@contextmanager
def intercept(
    model: torch.nn.Module, rows: torch.Tensor, columns: torch.Tensor, out: list[torch.Tensor]
) -> Iterator[None]:
    """Take the hidden states at (row, column) places from the next forward pass, and skip the head for all others."""

    reader = READER.get()

    def take(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if READER.get() is not reader:
            return None
        hidden = args[0]
        out.append(hidden[rows.to(hidden.device), columns.to(hidden.device)])
        return (hidden[:, :1], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(take)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def last_feed_forward_on(model: Any, columns: torch.Tensor) -> Iterator[None]:
    """Run the last layer's feed-forward block only on these columns of the single row in the batch.

    After the last attention, positions no longer interact, so the other outputs are never read; they are zero. Models
    whose last layer has no `mlp` that maps a tensor to a tensor compute all columns as usual.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(getattr(base, "model", None), "layers", None)
    block = getattr(layers[-1], "mlp", None) if layers is not None and len(layers) else None
    if not isinstance(block, torch.nn.Module):
        yield
        return
    widths: list[int] = []
    reader = READER.get()

    def narrow(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if READER.get() is not reader:
            return None
        widths.append(args[0].shape[1])
        return (args[0][:, columns.to(args[0].device)], *args[1:])

    def widen(module: torch.nn.Module, args: tuple[torch.Tensor, ...], out: Any) -> Any:
        if READER.get() is not reader:
            return None
        some = out[0] if isinstance(out, tuple) else out
        whole = some.new_zeros(some.shape[0], widths.pop(), some.shape[2])
        whole[:, columns.to(some.device)] = some
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    handles = [block.register_forward_pre_hook(narrow), block.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hidden_at(
    model: Any, sequences: Sequence[Any], positions: Sequence[range], pad: int, *, owner: Any = None
) -> list[torch.Tensor]:
    """Return the hidden states [T_i, H] of each sequence at its positions, from one right-padded forward pass.

    `positions[i]` are the positions whose *next* token is wanted. Gradients flow if they are enabled. `owner` is the
    module with the output embedding, if `model` is a wrapper around it.
    """
    width = max(len(s) for s in sequences)
    device = next(model.parameters()).device
    ids = torch.full((len(sequences), width), pad, dtype=torch.long)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.long)
    rows = torch.cat([torch.full((len(p),), i, dtype=torch.long) for i, p in enumerate(positions)])
    columns = torch.cat([torch.arange(p.start, p.stop) for p in positions])
    out: list[torch.Tensor] = []
    with intercept(owner if owner is not None else model, rows, columns, out):
        model(input_ids=ids.to(device), use_cache=False)
    return list(out[0].split([len(p) for p in positions]))


def squash_numbers(model: Any) -> tuple[float, float | None]:
    """Return the factor that a model applies to its logits after the matrix product, and its soft cap."""
    config = model.config.get_text_config()
    scale, scaling = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    factor = (1.0 if scale is None else float(scale)) / (1.0 if scaling is None else float(scaling))
    return factor, getattr(config, "final_logit_softcapping", None)


def make_squash(model: Any) -> Head:
    """Return the model's function on logits after the matrix product: scale, then soft cap."""
    factor, cap = squash_numbers(model)

    def squash(logits: torch.Tensor) -> torch.Tensor:
        if factor != 1.0:
            logits = logits * factor
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return squash


def make_head(model: Any) -> Head:
    """Return the function from hidden states to logits (float32), including scale and soft cap."""
    embedding, squash = model.get_output_embeddings(), make_squash(model)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        return squash(embedding(hidden).float())

    return head


def head_error(model: Any, head: Head) -> float:
    """Return the largest difference, in logits, between `head` and the model's own logits on a short sequence."""
    vocab = model.get_output_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    sequence = torch.randint(0, vocab, (12,), generator=generator).tolist()
    device = next(model.parameters()).device
    with torch.no_grad():
        own = model(input_ids=torch.tensor([sequence], device=device), use_cache=False).logits[0].float()
        ours = head(hidden_at(model, [sequence], [range(len(sequence))], 0)[0])
    return float((own - ours).abs().max())


def chunks(rows: int, vocab: int) -> Iterator[slice]:
    """Return slices over positions that keep each chunk of logits small."""
    size = max(1, CHUNK_ELEMENTS // vocab)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))

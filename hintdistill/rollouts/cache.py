"""Keys and values of a batch during sampling, in buffers with room to grow.

The library's own layers append every new token's keys by copying all keys, which for a small model takes a third of the
time of a rollout. Here a token is written into space that was already allocated.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Number of free token places in a newly allocated buffer."""


class GrowingLayer(DynamicLayer):
    """Hold one layer's keys and values [B, heads, S, D]; `keys` and `values` are the filled part of the buffers."""

    keys: Any
    values: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffers: list[Tensor | None] = [None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values, and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._appended(0, self.keys, key_states)
        self.values = self._appended(1, self.values, value_states)
        return self.keys, self.values

    def _appended(self, which: int, held: Tensor, new: Tensor) -> Tensor:
        n = held.shape[-2] if held.numel() else 0
        total, buffer = n + new.shape[-2], self._buffers[which]
        # rows that were selected, reordered or cropped since are other tensors than the buffer's own beginning
        if buffer is None or total > buffer.shape[-2] or (n and not _begins(buffer, held)) or len(buffer) != len(new):
            buffer = self._buffers[which] = new.new_empty((*new.shape[:-2], total + ROOM, new.shape[-1]))
            if n:
                buffer[..., :n, :] = held
        buffer[..., n:total, :] = new
        return buffer[..., :total, :]


def _begins(buffer: Tensor, held: Tensor) -> bool:
    return held.data_ptr() == buffer.data_ptr() and held.stride() == buffer.stride()


def growing_cache(config: Any) -> Any:
    """Return an empty cache of growing layers, for a model with full attention in every layer."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() for _ in cache.layers]
    return cache

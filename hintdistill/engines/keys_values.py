"""Hold the keys and values that later tokens attend to, on the device or in the host's memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Memory:
    """Hold the keys and values of chains with branches, per attention layer."""

    def __init__(self, offload: bool = False) -> None:
        """Keep them on the device, or with `offload` in the host's memory, from which one layer of one chain is fetched
        at a time."""
        self.offload = offload
        self._stored: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._fetched: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None
        self.closed = False
        """Whether trunks are complete. If so, a second write, as by gradient checkpointing, is ignored."""

    def write(self, layer: int, chain: int, at: int, room: int, key: Tensor, value: Tensor) -> None:
        """Store key [Hk, n, D] and value [Hk, n, Dv] from offset `at` on, in a buffer for `room` tokens."""
        slot = (layer, chain)
        if slot not in self._stored:
            self._stored[slot] = (self._buffer(key, room), self._buffer(value, room))
        for buffer, new in zip(self._stored[slot], (key, value), strict=True):
            buffer[:, at : at + new.shape[1]] = new.detach()
        if self._fetched is not None and self._fetched[0] == slot:
            self._fetched = None

    def _buffer(self, like: Tensor, room: int) -> Tensor:
        place = torch.device("cpu") if self.offload else like.device
        # pinned, so that copies from and to an accelerator are direct
        pinned = place.type == "cpu" and like.device.type == "cuda"
        return like.new_empty((like.shape[0], room, like.shape[2]), device=place, pin_memory=pinned)

    def read(self, layer: int, chain: int, device: torch.device, room: int = 0) -> tuple[Tensor, Tensor]:
        """Return the buffers of a chain on a device, enlarged to `room` tokens if they are smaller."""
        slot = (layer, chain)
        if self._stored[slot][0].shape[1] < room:
            grown = tuple(b.new_empty((b.shape[0], room, b.shape[2])) for b in self._stored[slot])
            for new, old in zip(grown, self._stored[slot], strict=True):
                new[:, : old.shape[1]] = old
            self._stored[slot] = (grown[0], grown[1])
            self._fetched = None
        if not self.offload:
            return self._stored[slot]
        if self._fetched is None or self._fetched[0] != slot:
            self._fetched = None  # before the next one comes
            key, value = (b.to(device) for b in self._stored[slot])
            self._fetched = slot, (key, value)
        return self._fetched[1]

    def put(self, chain: int, layers: dict[int, tuple[Tensor, Tensor]], room: int) -> None:
        """Take over the buffers of a chain from another memory, with room for the given number of tokens."""
        for layer, pair in layers.items():
            self._stored[layer, chain] = pair
            self.read(layer, chain, pair[0].device, room)

    def give(self, chain: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the buffers of a chain, by layer."""
        return {layer: pair for (layer, own), pair in self._stored.items() if own == chain}

"""Make the case for the rescoring and training benchmarks: a trace with N errors, and the shape of a small model."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen3Config

WIDTH, FEED_FORWARD, HEADS, KEY_HEADS, HEAD = 512, 1536, 8, 4, 64


@dataclass(frozen=True)
class Errors:
    """A trace with N errors evenly spread, the last one at its end."""

    tokens: int
    errors: int
    vocab: int
    hint: int = 48
    step: int = 64

    @property
    def ends(self) -> list[int]:
        """Where each erring step ends in the trace."""
        return [self.tokens * (i + 1) // self.errors for i in range(self.errors)]


def small(layers: int, vocab: int) -> Qwen3Config:
    """An untied Qwen3 of these widths."""
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=HEAD,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    )


class Meter:
    """Seconds of the wall and memory of one device. On a CPU, memory is not told: every figure of it is None."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.accelerated = self.device.type != "cpu"

    def clock(self) -> float:
        """Read seconds, after all work on the device is done."""
        if self.accelerated:
            torch.accelerator.synchronize()
        return time.perf_counter()

    def allocated(self) -> int:
        """Bytes that tensors on the device take now."""
        return int(torch.cuda.memory_allocated(self.device)) if self.accelerated else 0

    def peak_bytes(self) -> int:
        """The most that `allocated` was since `reset`."""
        return int(torch.cuda.max_memory_allocated(self.device)) if self.accelerated else 0

    def reset(self) -> None:
        """Drop what nobody holds, and begin to measure the peak anew."""
        gc.collect()
        if self.accelerated:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def of(self, run: Callable[[], Any], repeats: int, before: Callable[[], Any] = lambda: None) -> dict[str, Any]:
        """Run once unmeasured, then `repeats` times: least seconds `s`, and the peak above what was there, `mb`."""
        before()
        run()
        self.reset()
        there, best = self.allocated(), float("inf")
        for _ in range(repeats):
            before()
            began = self.clock()
            run()
            best = min(best, self.clock() - began)
        return {"s": best, "mb": round((self.peak_bytes() - there) / 1e6, 1) if self.accelerated else None}

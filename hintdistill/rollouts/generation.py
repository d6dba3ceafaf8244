"""How one step is sampled: by the weights in this process, or by a server that serves them.

Both take token ids and give token ids, so that nothing the student sampled is ever tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from hintdistill.engines.transformers import TransformersEngine
from hintdistill.scores import ScoreRequest


@dataclass(frozen=True)
class SamplingOptions:
    """How episodes are sampled."""

    temperature: float = 1.0
    """0 is greedy."""
    max_new_tokens: int = 256
    """Tokens per step."""
    max_steps: int = 16
    batch_size: int = 64
    seed: int = 0
    parser: str = "hermes"
    logprobs: bool = False
    """Whether to keep the log-probability of every sampled token (in process: one more prefill per step)."""
    timeout_s: float | None = 60.0
    """Time an environment has for one answer; None waits for ever."""


@dataclass(frozen=True)
class Sampled:
    """One sampled step; the end-of-turn token is kept where it was sampled."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each id at temperature 1, nats."""


class Generator(Protocol):
    """Samples one step after each of many contexts."""

    key: str
    """Key of the weights."""
    max_length: int

    def generate(
        self, contexts: Sequence[Sequence[int]], stop: Sequence[int], options: SamplingOptions, seed: int
    ) -> list[Sampled]:
        """One step per context, at most `options.max_new_tokens` ids, ending with the first id of `stop`.

        Raises:
            ServiceError: a server did not answer.
        """
        ...


class TransformersGenerator:
    """Batched sampling with `model.generate`."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.key, self.max_length = engine, engine.key, engine.max_length

    def generate(
        self, contexts: Sequence[Sequence[int]], stop: Sequence[int], options: SamplingOptions, seed: int
    ) -> list[Sampled]:
        """See `Generator.generate`."""
        rows = [_cut(row, stop) for row in self._rows(contexts, stop, options, seed)]
        logprobs = self._logprobs(contexts, rows) if options.logprobs else [None] * len(rows)
        return [Sampled(tuple(row), lp) for row, lp in zip(rows, logprobs, strict=True)]

    def _rows(
        self, contexts: Sequence[Sequence[int]], stop: Sequence[int], options: SamplingOptions, seed: int
    ) -> list[list[int]]:
        width = max(len(c) for c in contexts)
        device = next(self.engine.model.parameters()).device
        ids = torch.full((len(contexts), width), self.engine.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, context in enumerate(contexts):
            ids[i, width - len(context) :] = torch.tensor(context)
            mask[i, width - len(context) :] = 1
        sample = options.temperature > 0
        rng = torch.random.fork_rng(devices=[] if device.type == "cpu" else [device])
        with self.engine.hold() as model, rng, torch.inference_mode():
            torch.manual_seed(seed)
            return model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), do_sample=sample,
                temperature=options.temperature if sample else None, top_k=0 if sample else None,
                top_p=1.0 if sample else None, max_new_tokens=options.max_new_tokens,
                eos_token_id=list(stop), pad_token_id=self.engine.pad,
            )[:, width:].tolist()  # fmt: skip

    def _logprobs(self, contexts: Sequence[Sequence[int]], rows: list[list[int]]) -> list[tuple[float, ...] | None]:
        requests = [
            ScoreRequest(np.array([*context, *ids]), len(context), len(context) + len(ids))
            for context, ids in zip(contexts, rows, strict=True)
        ]
        scores = self.engine.score(requests, top_k=1)
        return [tuple(round(float(x), 6) for x in s.sampled) for s in scores]


def _cut(row: list[int], stop: Sequence[int]) -> list[int]:
    for i, token in enumerate(row):
        if token in stop:
            return row[: i + 1]
    return row

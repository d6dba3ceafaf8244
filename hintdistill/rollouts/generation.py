"""Sample one step, either with the weights in this process or on a server that has them.

Both take and return token ids, so that a sampled step is never tokenised again.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.rollouts.attention import sampling_attention
from hintdistill.rollouts.cache import growing_cache


@dataclass(frozen=True)
class SamplingOptions:
    """Hold the options for sampling episodes."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that together have this probability, after the temperature and
    `top_k`."""
    top_k: int = 0
    """Sample only from this many most likely tokens; 0 means all."""
    min_p: float = 0.0
    """Sample only from tokens with at least this share of the most likely token's probability."""
    max_new_tokens: int = 256
    """Maximum number of tokens per step."""
    max_steps: int = 16
    batch_size: int = 64
    seed: int = 0
    parser: str = "hermes"
    logprobs: bool = False
    """Whether to keep the log-probability of every sampled token, which in this process takes one more prefill per
    step."""
    timeout_s: float | None = 60.0
    """Seconds that an environment may take for one answer; None sets no limit."""


def drawing(options: SamplingOptions) -> dict[str, Any]:
    """Return the arguments of `model.generate` that sample from the requested distribution; greedy at temperature 0.

    The library applies the temperature, then `top_k`, `top_p` and `min_p`, each to the result of the one before.
    """
    if options.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "min_p": None}
    # 0 and 1 switch filters off; None would bring back what the model's own generation config says
    filters = {"top_k": options.top_k, "top_p": options.top_p, "min_p": options.min_p}
    return {"do_sample": True, "temperature": options.temperature, **filters}


@dataclass(frozen=True)
class Sampled:
    """Hold one sampled step, including the end-of-turn token if it was sampled."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each id at temperature 1, in nats."""


class Generator(Protocol):
    """Sample one step after each of many contexts."""

    key: str
    """Key of the weights."""
    max_length: int

    def generate(
        self, contexts: Sequence[Sequence[int]], stop: Sequence[int], options: SamplingOptions, seed: int
    ) -> list[Sampled]:
        """Return one step per context, at most `options.max_new_tokens` ids, ending with the first id of `stop`.

        Raises:
            ServiceError: a server did not answer.
        """
        ...


@dataclass
class _Kept:
    """Hold the tokens read and written in the last call: S columns; the model's keys and values cover all but the
    last."""

    sequences: list[tuple[int, ...]]
    """Context and sampled ids of each row."""
    ids: torch.Tensor
    """int64 [B, S]"""
    mask: torch.Tensor
    """int64 [B, S]; 0 at padding, which is in the middle after a step that ended early."""
    cache: Any


class TransformersGenerator:
    """Sample in batches with `model.generate`.

    The next turn of an episode begins with the context and step of this one, so their keys and values are kept, and
    only the environment's additions are read. Everything is read again if a context does not continue the previous one,
    or if the model has layers without full attention (padding in the middle would count in a window, and would enter a
    recurrent state).
    """

    def __init__(self, engine: TransformersEngine, reuse: bool = True) -> None:
        self.engine, self.key, self.max_length = engine, engine.key, engine.max_length
        self.reuse = reuse and _full_attention(engine.model.config.get_text_config())
        self._kept: _Kept | None = None

    def generate(
        self, contexts: Sequence[Sequence[int]], stop: Sequence[int], options: SamplingOptions, seed: int
    ) -> list[Sampled]:
        """Implement `Generator.generate`."""
        rows = self._rows(contexts, stop, options, seed)
        logprobs = self._logprobs(contexts, rows) if options.logprobs else [None] * len(rows)
        return [Sampled(tuple(row), lp) for row, lp in zip(rows, logprobs, strict=True)]

    def _rows(
        self, contexts: Sequence[Sequence[int]], stop: Sequence[int], options: SamplingOptions, seed: int
    ) -> list[list[int]]:
        device = next(self.engine.model.parameters()).device
        ids, mask, cache = self._continued(contexts) or (*self._padded(contexts, device), self._empty())
        rng = torch.random.fork_rng(devices=[] if device.type == "cpu" else [device])
        with self.engine.hold() as model, rng, torch.inference_mode(), self._attention(model):
            torch.manual_seed(seed)
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                **drawing(options),
                max_new_tokens=options.max_new_tokens,
                eos_token_id=list(stop),
                pad_token_id=self.engine.pad,
                return_dict_in_generate=True,
                **({} if cache is None else {_cache_name(model): cache}),
            )
        rows = [_cut(row, stop) for row in out.sequences[:, ids.shape[1] :].tolist()]
        if self.reuse:
            self._keep(contexts, rows, out, mask)
        return rows

    def _attention(self, model: Any) -> AbstractContextManager[None]:
        """Return the attention suited to few new tokens; windowed attention is left to the library."""
        return sampling_attention(model) if self.reuse else nullcontext()

    def _empty(self) -> Any:
        """Return an empty initial cache, or None to use the library's own."""
        return growing_cache(self.engine.model.config.get_text_config()) if self.reuse else None

    def _padded(self, contexts: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(c) for c in contexts)
        ids = torch.full((len(contexts), width), self.engine.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, context in enumerate(contexts):
            if len(context):
                ids[i, width - len(context) :] = torch.tensor(context)
                mask[i, width - len(context) :] = 1
        return ids.to(device), mask.to(device)

    def _continued(self, contexts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, Any] | None:
        """Return the kept columns and the new ones, or None if some context does not continue the kept row at its
        position."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        at: list[int] = []
        rest: list[tuple[int, ...]] = []
        for context in (tuple(c) for c in contexts):
            row = at[-1] + 1 if at else 0
            while row < len(kept.sequences) and context[: len(kept.sequences[row])] != kept.sequences[row]:
                row += 1
            if row == len(kept.sequences) or len(context) == len(kept.sequences[row]):
                return None
            at.append(row)
            rest.append(context[len(kept.sequences[row]) :])
        chosen = torch.tensor(at, device=kept.ids.device)
        new_ids, new_mask = self._padded(rest, kept.ids.device)
        with torch.inference_mode():
            kept.cache.batch_select_indices(chosen)
        return torch.cat([kept.ids[chosen], new_ids], 1), torch.cat([kept.mask[chosen], new_mask], 1), kept.cache

    def _keep(self, contexts: Sequence[Sequence[int]], rows: list[list[int]], out: Any, mask: torch.Tensor) -> None:
        width, total = mask.shape[1], out.sequences.shape[1]
        longer = torch.zeros((len(rows), total), dtype=mask.dtype, device=mask.device)
        longer[:, :width] = mask
        for i, row in enumerate(rows):
            longer[i, width : width + len(row)] = 1
        sequences = [(*context, *row) for context, row in zip(contexts, rows, strict=True)]
        self._kept = _Kept(sequences, out.sequences, longer, _cache_of(out))

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


def _full_attention(config: Any) -> bool:
    """Return whether every layer attends to all earlier tokens through plain keys and values."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    window = getattr(config, "sliding_window", None)
    return window is None and not any(
        hasattr(config, n) for n in ("linear_num_key_heads", "ssm_cfg", "state_size", "mamba_d_state")
    )


def _cache_name(model: Any) -> str:
    """Return the argument's name, which was `past_key_values` before transformers 5.24 or so."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _cache_of(out: Any) -> Any:
    return out.cache if "cache" in out else out.past_key_values

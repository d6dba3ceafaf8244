"""Run vLLM in this process, with its structured outputs, and a prefix cache that all questions share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError, ContextLengthError, HintdistillError, ServiceError
from hintdistill.core.models import load_tokenizer, model_key
from hintdistill.core.trust import model_code_allowed
from hintdistill.core.types import Usage
from hintdistill.critics.backends import Reply, Request
from hintdistill.critics.local import question_ids


class VLLMBackend:
    """Answer with vLLM's offline engine on a model folder; see `Backend`."""

    together = True

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int,
        context_tokens: int | None = None,
        dtype: str = "auto",
        engine: Any = None,
    ) -> None:
        """Set the model; the engine starts at the first question.

        Args:
            engine: a running `vllm.LLM` to use.

        Raises:
            ConfigError: vLLM is not installed.
        """
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"critic.llm.backend=vllm needs vLLM, which is not installed: {error}",
                hint="pip install 'hintdistill[vllm]', or use critic.llm.backend=server or local",
            ) from None
        self.folder, self.max_tokens, self.dtype = folder, max_tokens, dtype
        self.key = f"{model_key(folder)} {max_tokens}"
        self._context_tokens, self._given = context_tokens, engine

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer. Raises ModelError."""
        return load_tokenizer(self.folder)

    @cached_property
    def engine(self) -> Any:
        """The running engine. Raises ServiceError if it does not start."""
        if self._given is not None:
            return self._given
        from vllm import LLM

        try:
            return LLM(
                model=str(self.folder),
                dtype=self.dtype,
                max_model_len=self._context_tokens,
                enable_prefix_caching=True,
                trust_remote_code=model_code_allowed(),
                structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            )
        except Exception as error:
            failure = ServiceError(
                f"vLLM did not start on {self.folder}: {error}",
                hint="a lower critic.llm.context_tokens limits its memory",
            )
            failure.retryable = False
            raise failure from error

    def count(self, text: str) -> int:
        """See `Backend.count`."""
        return len(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    @property
    def context_tokens(self) -> int | None:
        """Context length of the engine."""
        if self._context_tokens is None:
            self._context_tokens = int(self.engine.llm_engine.model_config.max_model_len)
        return self._context_tokens

    def complete(self, requests: Sequence[Request]) -> list[Reply | HintdistillError]:
        """See `Backend.complete`."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        out: list[Reply | HintdistillError] = [ContextLengthError("not asked")] * len(requests)
        prompts: list[Any] = []
        params: list[Any] = []
        asked: list[int] = []
        for i, request in enumerate(requests):
            try:
                ids = question_ids(self.tokenizer, request.messages)
            except HintdistillError as error:
                out[i] = error
                continue
            if len(ids) + self.max_tokens > (self.context_tokens or 1 << 30):
                out[i] = ContextLengthError(
                    f"the question has {len(ids)} tokens and the answer up to {self.max_tokens}; the critic's context "
                    f"holds {self.context_tokens}"
                )
                continue
            asked.append(i)
            prompts.append({"prompt_token_ids": ids})
            params.append(
                SamplingParams(
                    temperature=request.temperature,
                    max_tokens=self.max_tokens,
                    seed=request.seed,
                    structured_outputs=StructuredOutputsParams(json=request.schema),
                )
            )
        for i, done in zip(asked, self.engine.generate(prompts, params, use_tqdm=False) if asked else [], strict=True):
            usage = Usage(
                requests=1,
                prompt_tokens=len(done.prompt_token_ids),
                completion_tokens=len(done.outputs[0].token_ids),
            )
            out[i] = Reply(done.outputs[0].text, usage, cut=done.outputs[0].finish_reason == "length")
        return out

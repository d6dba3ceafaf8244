"""The server engine: log-probabilities of a prompt over HTTP, from vLLM or any OpenAI-compatible completions endpoint.

Two dialects. `prompt_logprobs` is vLLM's: ids and ranks of every prompt position. `echo` is OpenAI's completions
endpoint with `echo` and `logprobs`: it names tokens as text, so servers are asked to write `token_id:N`
(`return_tokens_as_token_ids`), and where they do not, a function that knows the vocabulary has to be given.

A server does not read its prefix cache for such requests; results are right and every prompt is read in full. vLLM has
to be started with `--max-logprobs` at least `rescore.top_k`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import numpy as np

from hintdistill.core.errors import ConfigError, ScoreError, ServiceError
from hintdistill.core.scores import ScoreRequest, Scores
from hintdistill.engines.prompt_logprobs import Position, Unit, scores, units

Dialect = Literal["prompt_logprobs", "echo"]
MARK = "token_id:"


class ServerEngine:
    """Scores through a completions endpoint; see `Engine`. No `gather`: own top k, the sampled id and the tail."""

    capabilities: frozenset[str] = frozenset()

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        max_length: int | None = None,
        dialect: Dialect = "prompt_logprobs",
        id_of: Callable[[str], int | None] | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout_s: float = 600.0,
        retries: int = 2,
        key: str | None = None,
    ) -> None:
        """Point at a server.

        Args:
            base_url: up to and including `/v1`.
            model: the name it serves the weights under.
            max_length: longest prompt it takes, tokens; None asks the server.
            id_of: the id of a token's text, for the `echo` dialect where the server writes text.
            key: key of the weights it serves, where the caller knows them; default: its address and their name there.

        Raises:
            ServiceError: the server cannot be reached or does not serve the model.
        """
        from openai import OpenAI

        self.base_url, self.model, self.dialect, self.id_of = base_url, model, dialect, id_of
        self.concurrency, self.key = concurrency, key or f"{base_url}:{model}"
        self._client = OpenAI(
            base_url=base_url, api_key=os.environ.get(api_key_env) or "none", timeout=timeout_s, max_retries=retries
        )
        self.max_length = max_length if max_length is not None else self._asked_length()

    def _asked_length(self) -> int:
        for card in self._call(lambda: self._client.models.list()).data:
            if card.id == self.model:
                # one token is generated, because servers generate at least one
                return int((card.model_extra or {}).get("max_model_len") or 1 << 30) - 1
        raise ServiceError(f"{self.base_url} does not serve {self.model}", hint="its /v1/models lists what it serves")

    def score(self, requests: Sequence[ScoreRequest], top_k: int) -> list[Scores]:
        """See `Engine.score`.

        Raises:
            ServiceError: the server cannot be reached or refuses the request.
            ConfigError: the server gives fewer log-probabilities than `top_k`.
        """
        out: list[Scores | None] = [None] * len(requests)
        todo = units(requests, self.max_length)
        with ThreadPoolExecutor(self.concurrency) as pool:
            tables = list(pool.map(lambda u: self._ask(u, top_k), todo))
        for unit, table in zip(todo, tables, strict=True):
            for i in unit.members:
                out[i] = scores(requests[i], top_k, None, partial(_at, table))
        return [s for s in out if s is not None]

    def _ask(self, unit: Unit, top_k: int) -> list[Position | None]:
        """What the server says about each position of a prompt."""
        ids = np.asarray(unit.ids).tolist()
        if self.dialect == "prompt_logprobs":
            extra: dict[str, Any] = {"prompt_logprobs": top_k}
            answer = self._call(lambda: self._complete(ids, extra_body=extra), top_k)
            table = (answer.choices[0].model_extra or {}).get("prompt_logprobs")
            if table is None:
                raise ServiceError(
                    f"{self.base_url} knows no prompt_logprobs", hint="for other servers than vLLM: dialect='echo'"
                )
            return [None if row is None else {int(i): float(e["logprob"]) for i, e in row.items()} for row in table]
        extra = {"return_tokens_as_token_ids": True}
        answer = self._call(lambda: self._complete(ids, echo=True, logprobs=top_k, extra_body=extra), top_k)
        said = answer.choices[0].logprobs
        if said is None or said.token_logprobs is None or len(said.token_logprobs) < len(ids):
            raise ServiceError(f"{self.base_url} does not echo the prompt's log-probabilities")
        tops = said.top_logprobs or [None] * len(ids)
        return [self._echoed(ids[p], said.token_logprobs[p], tops[p]) for p in range(len(ids))]

    def _echoed(self, here: int, logprob: float | None, top: dict[str, float] | None) -> Position | None:
        if logprob is None:
            return None
        return {self._id(text): lp for text, lp in (top or {}).items()} | {here: logprob}

    def _id(self, text: str) -> int:
        if text.startswith(MARK):
            return int(text.removeprefix(MARK))
        found = self.id_of(text) if self.id_of is not None else None
        if found is None:
            raise ScoreError(
                f"the server names a token as the text {text!r}, which no id is known for",
                hint="give ServerEngine an `id_of`, or use a server that knows return_tokens_as_token_ids",
            )
        return found

    def _complete(self, ids: list[int], **kwargs: Any) -> Any:
        return self._client.completions.create(model=self.model, prompt=ids, max_tokens=1, temperature=0.0, **kwargs)

    def _call(self, request: Callable[[], Any], top_k: int = 0) -> Any:
        import openai

        try:
            return request()
        except openai.APIConnectionError as error:
            raise ServiceError(
                f"cannot reach the engine at {self.base_url}: {error}", hint="is the server up, and the port right?"
            ) from None
        except openai.APIStatusError as error:
            if "logprobs" in error.message and error.status_code == 400:
                raise ConfigError(
                    f"{self.base_url} refuses {top_k} log-probabilities: {error.message}",
                    hint=f"start vLLM with --max-logprobs {top_k}, or lower rescore.top_k",
                ) from None
            if error.status_code in (400, 422):
                # the fault of this prompt, not of the server
                raise ScoreError(f"{self.base_url} refuses the prompt: {error.message}") from None
            raise ServiceError(f"{self.base_url} answered {error.status_code}: {error.message}") from None


def _at(table: Sequence[Position | None], position: int) -> Position | None:
    return table[position] if position < len(table) else None

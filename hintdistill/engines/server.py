"""Score over HTTP with vLLM or any OpenAI-compatible completions endpoint.

There are two dialects. `prompt_logprobs` is vLLM's, with ids and ranks at every prompt position. `echo` is OpenAI's
completions endpoint with `echo` and `logprobs`. It names tokens as text, so servers are asked to write `token_id:N`
(`return_tokens_as_token_ids`); for servers that do not, the caller must pass a function that maps texts to ids.

A server does not use its prefix cache for such requests, so results are right but every prompt is read in full. vLLM
must be started with `--max-logprobs` of at least `rescore.top_k`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np

from hintdistill.core.errors import ConfigError, ScoreError, ServiceError
from hintdistill.core.http import MOST_BYTES, Answer, Server, StatusError
from hintdistill.core.pool import ServerPool
from hintdistill.core.scores import ScoreRequest, Scores
from hintdistill.core.threads import in_order
from hintdistill.engines.prompt_logprobs import Position, Unit, scores, units

Dialect = Literal["prompt_logprobs", "echo"]
MARK = "token_id:"
BYTES_PER_LOGPROB = 512
"""Upper bound on the bytes that a server writes per log-probability: id, text, rank and value."""


class ServerEngine:
    """Score through a completions endpoint; see `Engine`. Without `gather`, it returns its own top k, the sampled id
    and the tail."""

    capabilities: frozenset[str] = frozenset()

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        *,
        max_length: int | None = None,
        dialect: Dialect = "prompt_logprobs",
        id_of: Callable[[str], int | None] | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout_s: float = 600.0,
        retries: int = 2,
        allow_hosts: Iterable[str] = (),
    ) -> None:
        """Set the server and its limits.

        Args:
            base_url: address up to and including `/v1`; several servers with the same weights under the same name are
                used as one, see `core/pool.py`.
            model: the server's name for the weights.
            max_length: longest prompt that it accepts, in tokens; None asks the server.
            id_of: function from a token's text to its id, for the `echo` dialect if the server writes text.
            timeout_s: time limit of one whole answer, seconds.
            allow_hosts: hosts outside this machine that may receive traces, as token ids.

        Raises:
            ConfigError: the server is outside this machine and its host is not allowed.
            ServiceError: the server cannot be reached or does not serve the model.
        """
        first, *more = (base_url,) if isinstance(base_url, str) else base_url
        self._client = ServerPool(
            Server(
                first,
                "the engine",
                "rescore.engine",
                tuple(allow_hosts),
                "rescore.engine.allow_hosts",
                api_key_env,
                timeout_s,
                retries,
            ),
            more,
        )
        self.base_url, self.model, self.dialect, self.id_of = self._client.url, model, dialect, id_of
        self.text_of: Callable[[int], str] | None = None
        """Function from an id to its text, which checks echoed tokens if the server writes text; may be set."""
        self.concurrency = concurrency * len(self._client.members)
        self.key = f"{self.base_url}:{model}"
        """Key of the served weights: the server's address and its name for them. Callers that know a better key may set
        it."""
        self.max_length = max_length if max_length is not None else self._asked_length()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about how the servers are reached, and which of them failed."""
        return self._client.notes

    def _asked_length(self) -> int:
        """Return the smallest length that any server accepts. Raises ServiceError if an answering server serves another
        model."""
        return min(self._length_at(client.url, answer) for client, answer in self._client.each("/models"))

    def _length_at(self, url: str, answer: Answer) -> int:
        data = self._read(answer).get("data")
        for card in data if isinstance(data, list) else ():
            if isinstance(card, dict) and card.get("id") == self.model:
                length = card.get("max_model_len")
                # one token is generated, because servers generate at least one
                return (length if type(length) is int and length > 1 else 1 << 30) - 1
        raise ServiceError(f"{url} does not serve {self.model}", hint="its /v1/models lists the models that it serves")

    def score(self, requests: Sequence[ScoreRequest], top_k: int) -> list[Scores]:
        """See `Engine.score`.

        Raises:
            ServiceError: the server cannot be reached or refuses the request.
            ConfigError: the server returns fewer log-probabilities than `top_k`.
        """
        out: list[Scores | None] = [None] * len(requests)
        todo = units(requests, self.max_length)
        tables = in_order(lambda u: self._ask(u, top_k), todo, self.concurrency)
        for unit, table in zip(todo, tables, strict=True):
            for i in unit.members:
                out[i] = scores(requests[i], top_k, None, partial(_at, table))
        return [s for s in out if s is not None]

    def _ask(self, unit: Unit, top_k: int) -> list[Position | None]:
        """Return the server's log-probabilities at each position of a prompt."""
        ids = np.asarray(unit.ids).tolist()
        if self.dialect == "prompt_logprobs":
            choice = self._complete(ids, top_k, prompt_logprobs=top_k)
            table = choice.get("prompt_logprobs")
            if table is None:
                raise ServiceError(
                    f"{self.base_url} does not support prompt_logprobs",
                    hint="for servers other than vLLM, use dialect='echo'",
                )
            with self._well_formed():
                self._same_prompt(ids, table)
                return [None if row is None else {int(i): float(e["logprob"]) for i, e in row.items()} for row in table]
        said = self._complete(ids, top_k, echo=True, logprobs=top_k, return_tokens_as_token_ids=True).get("logprobs")
        with self._well_formed():
            if said is None or said.get("token_logprobs") is None or len(said["token_logprobs"]) < len(ids):
                raise ServiceError(f"{self.base_url} does not echo the prompt's log-probabilities")
            self._same_tokens(ids, said.get("tokens"))
            tops = said.get("top_logprobs") or [None] * len(ids)
            return [self._echoed(ids[p], said["token_logprobs"][p], tops[p]) for p in range(len(ids))]

    def _same_prompt(self, ids: Sequence[int], table: Sequence[Any]) -> None:
        """Check that a table has one row for each id that was sent, and that each row contains its token.

        Raises:
            ServiceError: the server scored another prompt, e.g. with an added BOS token.
        """
        if len(table) != len(ids):
            raise self._other_prompt(f"{len(table)} positions for {len(ids)} tokens")
        for p, row in enumerate(table):
            if row is not None and str(ids[p]) not in {str(i) for i in row}:
                raise self._other_prompt(f"position {p} does not list token {ids[p]}")

    def _same_tokens(self, ids: Sequence[int], tokens: Any) -> None:
        """Check that echoed tokens equal the ids that were sent, with at most one generated token after them. Raises
        ServiceError."""
        if not isinstance(tokens, list):
            raise ServiceError(f"{self.base_url} does not say which tokens its log-probabilities belong to")
        if not len(ids) <= len(tokens) <= len(ids) + 1:
            raise self._other_prompt(f"{len(tokens)} tokens instead of {len(ids)} and one generated")
        for p, text in enumerate(tokens[: len(ids)]):
            if not self._is(ids[p], text):
                raise self._other_prompt(f"position {p} is {text!r}, not token {ids[p]}")

    def _is(self, here: int, text: str) -> bool:
        """Return whether the server's text for a token can be that id. Tokens for parts of a character have no text to
        compare."""
        if text.startswith(MARK):
            return int(text.removeprefix(MARK)) == here
        if "\ufffd" in text or text.startswith("bytes:"):
            return True
        if self.text_of is not None:
            own = self.text_of(here)
            return "\ufffd" in own or own.strip() == text.strip()
        return self.id_of is None or self.id_of(text) in (None, here)

    def _other_prompt(self, what: str) -> ServiceError:
        return ServiceError(
            f"{self.base_url} scored a different prompt from the one that was sent: {what}",
            hint="the server may add a BOS token to prompts of token ids; switch that off, or use dialect='prompt_logprobs'",
        )

    @contextmanager
    def _well_formed(self) -> Iterator[None]:
        """Raise ServiceError if an answer does not have the form of the dialect."""
        try:
            yield
        except (TypeError, KeyError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise ServiceError(
                f"{self.base_url} gave an answer that does not fit the dialect {self.dialect}: {error!r}"
            ) from None

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
                f"the server names a token as the text {text!r}, for which no id is known",
                hint="give ServerEngine an `id_of`, or use a server that supports return_tokens_as_token_ids",
            )
        return found

    def _complete(self, ids: list[int], top_k: int, **more: Any) -> dict[str, Any]:
        """Return the first choice of the completion of a prompt."""
        body = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, **more}
        bound = MOST_BYTES + (len(ids) + 1) * (top_k + 2) * BYTES_PER_LOGPROB
        try:
            answer = self._client.post("/completions", body, most_bytes=bound)
        except StatusError as error:
            if "logprobs" in error.said and error.status == 400:
                raise ConfigError(
                    f"{self.base_url} refuses {top_k} log-probabilities: {error.said}",
                    hint=f"start vLLM with --max-logprobs {top_k}, or lower rescore.top_k",
                ) from None
            if error.status in (400, 422):
                # the fault of this prompt, not of the server
                raise ScoreError(f"{self.base_url} refuses the prompt: {error.said}") from None
            raise
        choices = self._read(answer).get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ServiceError(f"{self.base_url} answered without a choice: {answer.text[:300]}")
        return choices[0]

    def _read(self, answer: Answer) -> dict[str, Any]:
        """Return the JSON object in an answer. Raises ServiceError if there is none."""
        try:
            data = json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise ServiceError(f"{self.base_url} did not answer with JSON: {error}") from None
        if not isinstance(data, dict):
            raise ServiceError(f"{self.base_url} did not answer with a JSON object: {answer.text[:300]}")
        return data


def _at(table: Sequence[Position | None], position: int) -> Position | None:
    return table[position] if position < len(table) else None

"""Any OpenAI-compatible server: vLLM, SGLang, cloud services.

Rate limits and passing errors are retried by the client with growing pauses, a bounded number of times. What stays is
told apart by whether the next question would fail as well: an unreachable server, a wrong key or a wrong model name
stop the batch; anything else costs its own trace.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import openai

from hintdistill.config import LLMSection
from hintdistill.core.errors import HintdistillError, ServiceError
from hintdistill.core.hosts import require_allowed
from hintdistill.core.types import Usage
from hintdistill.critics.backends import Reply, Request, by_bytes

CONNECT_S = 20.0
"""Seconds after which a server that does not take the connection counts as unreachable."""
RAW_LENGTH = 20_000
"""Characters of an unusable answer that are kept."""


class NoCompletionError(ServiceError):
    """A server's answer that is no chat completion: a proxy's page, half a body, another format."""

    def __init__(self, url: str, what: str, body: str) -> None:
        super().__init__(
            f"{url} answered with something that is no chat completion: {what}",
            hint="is it an OpenAI-compatible server, and the URL complete up to /v1? What it said is in the failure row",
        )
        self.raw, self.usage = body[:RAW_LENGTH], Usage(requests=1)


class ServerBackend:
    """A chat-completions server; see `Backend`."""

    together = False

    def __init__(self, config: LLMSection, allow_hosts: Iterable[str] = (), section: str = "llm") -> None:
        """Set up the client.

        Raises:
            ConfigError: the server is outside this machine and its host is not allowed.
            ModelError: the tokenizer that should count tokens cannot be loaded.
        """
        assert config.base_url is not None and config.model is not None
        require_allowed("the critic", config.base_url, allow_hosts, "critic.allow_hosts")
        self.config, self.section = config, section
        self.key = f"{config.base_url} {config.model} {config.max_tokens} {config.structured}"
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=openai.Timeout(config.timeout_s, connect=min(config.timeout_s, CONNECT_S)),
            max_retries=config.retries,
        )
        self._count: Callable[[str], int] = by_bytes
        if config.tokenizer is not None:
            from hintdistill.core.models import load_tokenizer

            tokenizer = load_tokenizer(Path(config.tokenizer))
            self._count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
        self._context: int | None = config.context_tokens
        self._asked = config.context_tokens is not None
        self._lock = threading.Lock()

    def count(self, text: str) -> int:
        """See `Backend.count`."""
        return self._count(text)

    @property
    def context_tokens(self) -> int | None:
        """From the config, else what the server says of its model (vLLM and SGLang do), else None."""
        with self._lock:
            if not self._asked:
                self._asked = True
                try:
                    models = self._client.with_options(max_retries=0, timeout=5.0).models.list()
                    named = [m for m in models.data if m.id == self.config.model]
                    value = getattr(named[0], "max_model_len", None) if named else None
                    self._context = value if isinstance(value, int) else None
                except (openai.OpenAIError, AttributeError, TypeError):
                    self._context = None
        return self._context

    def complete(self, requests: Sequence[Request]) -> list[Reply | HintdistillError]:
        """See `Backend.complete`."""
        out: list[Reply | HintdistillError] = []
        for request in requests:
            try:
                out.append(self._one(request))
            except ServiceError as error:
                if not error.retryable:
                    raise
                out.append(error)
        return out

    def _one(self, request: Request) -> Reply:
        extra: dict[str, Any] = {}
        if self.config.structured != "none":
            strict = self.config.structured == "json_schema_strict"
            spec = {"name": "critique", "schema": request.schema, "strict": strict}
            extra["response_format"] = {"type": "json_schema", "json_schema": spec}
        if request.seed is not None:
            extra["seed"] = request.seed
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.config.model or "",
                messages=list(request.messages),  # type: ignore[arg-type]
                temperature=request.temperature,
                max_tokens=self.config.max_tokens,
                **extra,
            )
        except openai.APIError as error:
            raise self._service_error(error) from error
        return read_reply(response.text, self.config.base_url or "")

    def _service_error(self, error: openai.APIError) -> ServiceError:
        url, tries, where = self.config.base_url, self.config.retries + 1, f"critic.{self.section}"
        # by name: the client's HTTP library is httpx in some of its releases and httpx2 in others
        cause = error.__cause__
        what = type(cause).__name__
        if isinstance(error, openai.APITimeoutError) and what != "ConnectTimeout":
            return ServiceError(
                f"{url} gave no answer within {self.config.timeout_s:g} s, {tries} times",
                hint=f"raise {where}.timeout_s, or lower {where}.concurrency",
            )
        if what in ("ReadError", "RemoteProtocolError"):
            # it took the question; whether it is gone the next question tells
            return ServiceError(f"{url} cut the connection in the middle of an answer, {tries} times: {cause}")
        if isinstance(error, openai.APIConnectionError):
            failure = ServiceError(
                f"cannot reach the critic at {url} ({tries} attempts): {cause or error}",
                hint=f"start the server or correct {where}.base_url; --resume keeps what was done",
            )
            failure.retryable = False
            return failure
        failure = ServiceError(f"{url} refused: {error.message[:500]}")
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError):
            failure.hint = f"check {where}.model ({self.config.model}) and the key in ${self.config.api_key_env}"
            failure.retryable = False
        elif isinstance(error, openai.BadRequestError):
            failure.hint = (
                f"if it takes no JSON schema, {where}.structured=none; if the question is too long for it, "
                f"{where}.context_tokens, and {where}.tokenizer to count exactly"
            )
        return failure


def read_reply(body: str, url: str) -> Reply:
    """The answer in a response's body. Raises NoCompletionError where it is none; no choices at all are an empty answer."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoCompletionError(url, f"no JSON ({error})", body) from None
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list):
        raise NoCompletionError(url, "no list of choices", body)
    message = choices[0].get("message") if choices and isinstance(choices[0], dict) else {}
    if not isinstance(message, dict):
        raise NoCompletionError(url, "a choice without a message", body)
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
    spent = data.get("usage") if isinstance(data.get("usage"), dict) else {}
    counted = {
        n: v if isinstance(v := spent.get(n), int) and v >= 0 else 0 for n in ("prompt_tokens", "completion_tokens")
    }
    # half of a surrogate pair cannot be stored
    text = content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""
    return Reply(text, Usage(requests=1, **counted))

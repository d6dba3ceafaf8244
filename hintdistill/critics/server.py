"""Ask an OpenAI-compatible server: vLLM, SGLang, cloud services.

The client retries after rate limits and transient errors, with growing pauses and a limited number of times
(`core/http.py`). Other errors stop the batch if the next question would fail too: an unreachable server, a redirect, a
wrong key, a wrong model name. Any other error costs only its own trace. That trace remains to be done if another
attempt may help; it has failed if the same question would be refused again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hintdistill.config import LLMSection
from hintdistill.core.errors import HintdistillError, InputError, ServiceError
from hintdistill.core.http import Server, StatusError
from hintdistill.core.masking import mask
from hintdistill.core.pool import ServerPool
from hintdistill.core.types import Usage
from hintdistill.critics.backends import Reply, Request, by_bytes

RAW_LENGTH = 20_000
"""Number of characters kept of an unusable answer."""
REFUSES_KEY_OR_MODEL = (401, 403, 404)
REFUSES_QUESTION = (400, 413, 422)
COUNTS = ("prompt_tokens", "completion_tokens")
MOST_TOKENS = 10**9
"""Largest plausible count of tokens; a number above it is not used."""


class NoCompletionError(ServiceError):
    """A server's answer is not a chat completion but, e.g., a proxy's page, half a body, or another format."""

    def __init__(self, url: str, what: str, body: str) -> None:
        super().__init__(
            f"{url} did not answer with a chat completion: {what}",
            hint="check that the server is OpenAI-compatible and that the URL is complete up to /v1; its answer is in "
            "the failure row",
        )
        self.raw, self.usage = body[:RAW_LENGTH], Usage(requests=1)


class RefusedError(InputError):
    """The server, or its model, refuses to answer this question and would refuse again."""

    def __init__(self, message: str, raw: str = "", usage: Usage | None = None, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.raw, self.usage = raw[:RAW_LENGTH], usage or Usage(requests=1)


class ServerBackend:
    """Answer with a chat-completions server; see `Backend`."""

    together = False

    def __init__(self, config: LLMSection, allow_hosts: Iterable[str] = (), section: str = "llm") -> None:
        """Set up the client.

        Raises:
            ConfigError: the server is outside this machine and its host is not allowed.
            ModelError: the tokenizer that should count tokens cannot be loaded.
        """
        assert config.base_url is not None and config.model is not None
        self.config, self.section = config, section
        self._client = ServerPool(
            Server(
                config.base_url,
                "the critic",
                f"critic.{section}",
                tuple(allow_hosts),
                "critic.allow_hosts",
                config.api_key_env,
                config.timeout_s,
                config.retries,
            ),
            config.more_urls,
        )
        self.key = f"{self._client.url} {config.model} {config.max_tokens} {config.structured}"
        self._count: Callable[[str], int] = by_bytes
        if config.tokenizer is not None:
            from hintdistill.core.models import load_tokenizer

            tokenizer = load_tokenizer(Path(config.tokenizer))
            self._count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
        self._context: int | None = config.context_tokens
        self._asked = config.context_tokens is not None
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about how the servers are reached, and which of them failed."""
        return self._client.notes

    def count(self, text: str) -> int:
        """See `Backend.count`."""
        return self._count(text)

    @property
    def context_tokens(self) -> int | None:
        """Context length from the config, else as the server reports it (vLLM and SGLang do), else None."""
        with self._lock:
            if not self._asked:
                self._asked = True
                try:
                    said = json.loads(self._client.get("/models", timeout_s=5.0, retries=0).body)
                except (HintdistillError, ValueError, RecursionError):
                    said = None
                cards = said.get("data") if isinstance(said, dict) else None
                named = [c for c in cards or () if isinstance(c, dict) and c.get("id") == self.config.model]
                value = named[0].get("max_model_len") if named else None
                # what is no number of tokens says nothing
                self._context = value if type(value) is int and value > 0 else None
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
            except InputError as error:
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
        asked = {
            "model": self.config.model,
            "messages": list(request.messages),
            "temperature": request.temperature,
            "max_tokens": self.config.max_tokens,
        }
        try:
            answer = self._client.post("/chat/completions", asked | extra)
        except StatusError as error:
            raise self._refusal(error) from None
        return read_reply(answer.text, self._client.url)

    def _refusal(self, error: StatusError) -> HintdistillError:
        where = f"critic.{self.section}"
        if error.status in REFUSES_QUESTION:
            return RefusedError(
                error.message,
                error.said,
                hint=f"if it accepts no JSON schema, set {where}.structured=none; if the question is too long for it, "
                f"set {where}.context_tokens, and {where}.tokenizer for exact counts",
            )
        if error.status in REFUSES_KEY_OR_MODEL:
            error.hint = f"check {where}.model ({self.config.model}) and the key in ${self.config.api_key_env}"
            error.retryable = False
        return error


def read_reply(body: str, url: str) -> Reply:
    """Return the answer in a response's body; without choices, it is empty. Raises NoCompletionError if it is not an
    answer."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoCompletionError(url, f"not JSON ({error})", body) from None
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
    counted = {n: v if type(v := spent.get(n)) is int and 0 <= v <= MOST_TOKENS else 0 for n in COUNTS}
    usage = Usage(requests=1, **counted)
    text = content if isinstance(content, str) else ""
    reason = choices[0].get("finish_reason") if message else None
    refusal, filtered = message.get("refusal"), reason == "content_filter"
    if not text.strip() and (filtered or (isinstance(refusal, str) and refusal)):
        why = refusal if isinstance(refusal, str) and refusal else "its content filter"
        raise RefusedError(f"{url} refuses to answer: {why[:500]}", body, usage)
    # half of a surrogate pair cannot be stored, and an escape may have spelled the key
    return Reply(mask(text.encode("utf-8", "replace").decode()), usage, cut=reason == "length")

"""Who answers an LLM critic's questions, behind one protocol; answers already paid for; what may still be spent."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hintdistill.core.errors import HintdistillError
from hintdistill.core.storage import JsonlStore
from hintdistill.core.types import Usage

BYTES_PER_TOKEN = 3
"""What a token is taken to be if no tokenizer is known; English text has four or more."""


@dataclass(frozen=True)
class Request:
    """One question: chat messages, the JSON schema of the answer, and how to sample it."""

    messages: tuple[dict[str, str], ...]
    schema: dict[str, Any]
    temperature: float = 0.0
    seed: int | None = None
    vote: int = 0

    @property
    def key(self) -> str:
        """Content hash; two votes are two questions."""
        parts = [self.messages, self.schema, self.temperature, self.seed, self.vote]
        return hashlib.sha256(
            json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        ).hexdigest()


@dataclass(frozen=True)
class Reply:
    """An answer's text and what it cost."""

    text: str
    usage: Usage
    cut: bool = False
    """Whether the limit on answer tokens ended it."""


class Backend(Protocol):
    """Answers questions."""

    key: str
    """What answers depend on besides the question: server and model, or the hash of the weights."""
    together: bool
    """Whether `complete` is best given many questions at once (in-process models) or one per thread (servers)."""

    def complete(self, requests: Sequence[Request]) -> list[Reply | HintdistillError]:
        """Return one reply per question, in order.

        Raises:
            ServiceError: no question can be answered any more (`retryable` False).
        """
        ...

    def count(self, text: str) -> int:
        """Tokens of a text, exact if the tokenizer is known."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """Tokens of question and answer together that fit, where known."""
        ...


class BudgetError(HintdistillError):
    """The token budget is spent; the trace is still owed."""

    exit_code = 5
    retryable = True


class Budget:
    """Tokens that may be spent; safe to share between threads. `limit` None means no limit.

    What is promised, whatever the number of questions in flight and the order in which they are answered:

    - A question is sent only where its tokens, what is set aside for questions in flight and what was paid are within
      the limit together. So what is paid exceeds the limit by no more than what the questions in flight at the end cost
      above what was set aside for them; where no question costs more than that, it never exceeds the limit.
    - A question is refused only if it does not fit beside what was *paid*. What is set aside for others is a bound
      above their cost; a question that needs that room waits until they are answered. What was paid never shrinks, so
      once a question is refused, no question as large is sent.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit, self.spent, self.in_flight = limit, 0, 0
        self._changed = threading.Condition()

    def reserve(self, tokens: int, *, wait: bool = True) -> bool:
        """Set tokens aside before a question is sent; every `reserve` that did is followed by one `settle`.

        Args:
            wait: whether to wait for questions in flight if they hold the room. Only a caller that has itself
                nothing set aside may wait, else two could wait for each other.

        Returns:
            Whether tokens were set aside; always True with `wait`.

        Raises:
            BudgetError: the tokens do not fit beside what was paid.
        """
        with self._changed:
            while self.limit is not None and self.spent + self.in_flight + tokens > self.limit:
                if self.spent + tokens > self.limit:
                    raise BudgetError(
                        f"the budget of {self.limit} tokens is spent ({self.spent} used, {tokens} wanted)",
                        hint="raise critic.budget_tokens and continue with --resume; answers already paid for are kept",
                    )
                if not wait:
                    return False
                self._changed.wait()
            self.in_flight += tokens
            return True

    def settle(self, reserved: int, usage: Usage) -> None:
        """Put what the question really cost, nothing if it failed, in the place of what was set aside."""
        with self._changed:
            self.in_flight -= reserved
            self.spent += usage.prompt_tokens + usage.completion_tokens
            self._changed.notify_all()


class AnswerCache:
    """Answers by content of the question and of who answered, on disk as they come in."""

    def __init__(self, path: str | Path | None) -> None:
        self._store = None if path is None else JsonlStore(Path(path))
        self._rows: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if self._store is not None:
            self._store.path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = self._store.by_key()

    def get(self, key: str) -> Reply | None:
        """Return the reply, or None."""
        row = self._rows.get(key)
        return None if row is None else Reply(row["text"], Usage.model_validate(row["usage"]), row.get("cut", False))

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; it is on disk when this returns."""
        row: dict[str, Any] = {"key": key, "text": reply.text, "usage": reply.usage.model_dump()}
        if reply.cut:
            row["cut"] = True
        with self._lock:
            self._rows[key] = row
            if self._store is not None:
                self._store.append(row)


class Metered:
    """A backend with a cache before it and a budget around it. Cached answers cost nothing."""

    def __init__(self, backend: Backend, cache: AnswerCache, budget: Budget, answer_tokens: int) -> None:
        self.backend, self.cache, self.budget, self.answer_tokens = backend, cache, budget, answer_tokens

    def complete(self, requests: Sequence[Request]) -> list[Reply | HintdistillError]:
        """See `Backend.complete`; a question beyond the budget is answered by a BudgetError."""
        keys = [f"{self.backend.key}:{r.key}" for r in requests]
        out: list[Reply | HintdistillError | None] = [self.cache.get(k) for k in keys]
        owed = [i for i, reply in enumerate(out) if reply is None]
        while owed:
            reserved: dict[int, int] = {}
            for i in owed:
                tokens = self._tokens(requests[i])
                try:
                    if self.budget.reserve(tokens, wait=not reserved):
                        reserved[i] = tokens
                except BudgetError as error:
                    out[i] = error
            for i, reply in self._ask(requests, keys, reserved).items():
                out[i] = reply
            owed = [i for i in owed if out[i] is None]
        return [r for r in out if r is not None]

    def _tokens(self, request: Request) -> int:
        if self.budget.limit is None:
            return 0
        return sum(self.backend.count(m["content"]) for m in request.messages) + self.answer_tokens

    def _ask(
        self, requests: Sequence[Request], keys: Sequence[str], reserved: dict[int, int]
    ) -> dict[int, Reply | HintdistillError]:
        """Return the replies to the questions that tokens are set aside for; answers are kept, and the budget is
        settled always."""
        replies: dict[int, Reply | HintdistillError] = {}
        try:
            if reserved:
                replies.update(zip(reserved, self.backend.complete([requests[i] for i in reserved]), strict=True))
            for i, reply in replies.items():
                if isinstance(reply, Reply):
                    self.cache.put(keys[i], reply)
        finally:
            for i, tokens in reserved.items():
                self.budget.settle(tokens, getattr(replies.get(i), "usage", None) or Usage())
        return replies


def by_bytes(text: str) -> int:
    """Tokens of a text if no tokenizer is known."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)

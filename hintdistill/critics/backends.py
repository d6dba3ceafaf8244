"""Define the protocol of backends that answer an LLM critic's questions, with a cache of answers and a token budget."""

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
"""Assumed bytes per token if no tokenizer is known; English text has four or more."""


@dataclass(frozen=True)
class Request:
    """Describe one question: chat messages, the JSON schema of the answer, and sampling settings."""

    messages: tuple[dict[str, str], ...]
    schema: dict[str, Any]
    temperature: float = 0.0
    seed: int | None = None
    vote: int = 0

    @property
    def key(self) -> str:
        """Content hash of the question; two votes count as two questions."""
        parts = [self.messages, self.schema, self.temperature, self.seed, self.vote]
        return hashlib.sha256(
            json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        ).hexdigest()


@dataclass(frozen=True)
class Reply:
    """Hold the text of an answer and its cost."""

    text: str
    usage: Usage
    cut: bool = False
    """Whether the token limit cut the answer."""


class Backend(Protocol):
    """Answer questions."""

    key: str
    """Key of what answers depend on besides the question: server and model, or the hash of the weights."""
    together: bool
    """Whether `complete` works best with many questions at once (models in this process) or with one per thread
    (servers)."""

    def complete(self, requests: Sequence[Request]) -> list[Reply | HintdistillError]:
        """Return one reply per question, in order.

        Raises:
            ServiceError: no further question can be answered (`retryable` is False).
        """
        ...

    def count(self, text: str) -> int:
        """Return the number of tokens of a text; exact if the tokenizer is known."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """Maximum number of tokens of a question and its answer together, if known."""
        ...


class BudgetError(HintdistillError):
    """The token budget is spent; the trace remains to be critiqued."""

    exit_code = 5
    retryable = True


class Budget:
    """Limit the tokens that may be spent. Threads may share it. `limit` None means no limit.

    These guarantees hold for any number of open questions and any order of answers:

    - A question is sent only if its tokens, the tokens reserved for open questions and the tokens already paid stay
      within the limit together. The limit is exceeded only if an open question costs more than was reserved for it, and
      only by that difference.
    - A question is refused only if it does not fit into the limit minus the tokens already *paid*. A reservation is an
      upper bound, so a question that needs reserved tokens waits until the open questions are answered. The paid tokens
      never decrease, so after a refusal no question of the same size is sent.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit, self.spent, self.in_flight = limit, 0, 0
        self._changed = threading.Condition()

    def reserve(self, tokens: int, *, wait: bool = True) -> bool:
        """Reserve tokens before a question is sent. Every successful `reserve` must be followed by one `settle`.

        Args:
            wait: whether to wait for open questions if their reservations leave too few tokens. Only a caller without a
                reservation may wait; otherwise two callers could wait for each other.

        Returns:
            Whether tokens were reserved; always True with `wait`.

        Raises:
            BudgetError: the tokens exceed what is left after the tokens already paid.
        """
        with self._changed:
            while self.limit is not None and self.spent + self.in_flight + tokens > self.limit:
                if self.spent + tokens > self.limit:
                    raise BudgetError(
                        f"the budget of {self.limit} tokens is spent ({self.spent} used, {tokens} wanted)",
                        hint="raise critic.budget_tokens and continue with --resume; paid answers are kept",
                    )
                if not wait:
                    return False
                self._changed.wait()
            self.in_flight += tokens
            return True

    def settle(self, reserved: int, usage: Usage) -> None:
        """Replace the reservation by the actual cost of the question, which is zero if it failed."""
        with self._changed:
            self.in_flight -= reserved
            self.spent += usage.prompt_tokens + usage.completion_tokens
            self._changed.notify_all()


class AnswerCache:
    """Keep answers, by content of the question and by backend, on disk as they arrive."""

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
        """Store a reply; it is on disk on return."""
        row: dict[str, Any] = {"key": key, "text": reply.text, "usage": reply.usage.model_dump()}
        if reply.cut:
            row["cut"] = True
        with self._lock:
            self._rows[key] = row
            if self._store is not None:
                self._store.append(row)


class Metered:
    """Wrap a backend with a cache and a budget. Cached answers cost nothing."""

    def __init__(self, backend: Backend, cache: AnswerCache, budget: Budget, answer_tokens: int) -> None:
        self.backend, self.cache, self.budget, self.answer_tokens = backend, cache, budget, answer_tokens

    def complete(self, requests: Sequence[Request]) -> list[Reply | HintdistillError]:
        """See `Backend.complete`; a question beyond the budget gives a BudgetError as its outcome."""
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
        """Ask the questions that have a reservation, store the answers, and settle the budget in every case."""
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
    """Return the estimated tokens of a text without a tokenizer."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)

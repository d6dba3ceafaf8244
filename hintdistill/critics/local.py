"""Run a transformers model in this process, with decoding constrained by llguidance.

The grammar is compiled from the answer's JSON schema, without optional white space. At each position it gives the
allowed tokens, and the model chooses among them. Questions are decoded together in left-padded batches.

The question's text is tokenised separately from the chat template, and special tokens in it are treated as plain text,
so that a turn marker in a trace stays text.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from hintdistill.core.errors import ConfigError, ContextLengthError, HintdistillError, TemplateError
from hintdistill.core.models import load_tokenizer, model_key
from hintdistill.core.trust import model_code_allowed
from hintdistill.core.types import Usage
from hintdistill.critics.backends import Reply, Request
from hintdistill.engines.transformers import pick_device, pick_dtype
from hintdistill.engines.weights import load_model

PLACE = "question-{}-goes-here"


def require_llguidance() -> Any:
    """Return the library llguidance. Raises ConfigError if it is not installed."""
    try:
        import llguidance
        import llguidance.hf
        import llguidance.torch
    except ImportError as error:
        raise ConfigError(
            f"a local critic needs llguidance, which is not installed: {error}",
            hint="pip install llguidance, or use critic.llm.backend=server",
        ) from None
    return llguidance


def question_ids(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Return the token ids of a chat up to and including the assistant header. Message text never becomes a special
    token.

    Raises:
        TemplateError: the chat template refuses the messages or does not print them verbatim.
    """
    marks = [PLACE.format(i) for i in range(len(messages))]
    try:
        frame = tokenizer.apply_chat_template(
            [{"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)],
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:
        raise TemplateError(f"the critic's chat template refuses the question: {error}") from None
    ids: list[int] = []
    for mark, message in zip(marks, messages, strict=True):
        before, found, frame = frame.partition(mark)
        if not found:
            raise TemplateError(f"the critic's chat template does not print the {message['role']} message")
        ids += tokenizer(before, add_special_tokens=False)["input_ids"]
        ids += tokenizer(message["content"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids + tokenizer(frame, add_special_tokens=False)["input_ids"]


class LocalBackend:
    """Answer with a model from a folder; see `Backend`."""

    together = True

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int,
        context_tokens: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        """Set the model; it is loaded at the first question.

        Raises:
            ConfigError: llguidance is not installed.
        """
        self._llguidance = require_llguidance()
        self.folder, self.max_tokens, self.device, self.dtype = folder, max_tokens, device, dtype
        self.key = f"{model_key(folder)} {max_tokens}"
        self._context_tokens = context_tokens
        self._grammars: dict[str, str] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, with padding on the left. Raises ModelError."""
        tokenizer = load_tokenizer(self.folder)
        tokenizer.padding_side = "left"
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """The model from the folder. Raises ModelError."""
        where = pick_device(self.device)
        return load_model(self.folder, pick_dtype(self.dtype, where, self.folder), where)

    @cached_property
    def _token_table(self) -> Any:
        size = int(self.model.get_output_embeddings().weight.shape[0])
        return self._llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=size)

    def count(self, text: str) -> int:
        """See `Backend.count`."""
        return len(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    @property
    def context_tokens(self) -> int | None:
        """Context length from the config, else the model's number of positions."""
        from transformers import AutoConfig

        if self._context_tokens is None:
            config = AutoConfig.from_pretrained(self.folder, trust_remote_code=model_code_allowed()).get_text_config()
            self._context_tokens = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        return self._context_tokens

    def complete(self, requests: Sequence[Request]) -> list[Reply | HintdistillError]:
        """See `Backend.complete`."""
        out: list[Reply | HintdistillError] = [ContextLengthError("not asked")] * len(requests)
        rows: list[tuple[int, list[int]]] = []
        for i, request in enumerate(requests):
            try:
                ids = question_ids(self.tokenizer, request.messages)
            except HintdistillError as error:
                out[i] = error
                continue
            limit = self.context_tokens or 1 << 30
            if len(ids) + self.max_tokens > limit:
                out[i] = ContextLengthError(
                    f"the question has {len(ids)} tokens and the answer up to {self.max_tokens}; the critic's context "
                    f"holds {limit}"
                )
            else:
                rows.append((i, ids))
        if rows:
            for (i, _), reply in zip(
                rows, self._decode([ids for _, ids in rows], [requests[i] for i, _ in rows]), strict=True
            ):
                out[i] = reply
        return out

    def _grammar(self, request: Request) -> str:
        matcher = self._llguidance.LLMatcher
        return matcher.grammar_from_json_schema(
            request.schema, defaults={"whitespace_flexible": False}, overrides={"whitespace_flexible": False}
        )

    @torch.inference_mode()
    def _decode(self, prompts: Sequence[list[int]], requests: Sequence[Request]) -> list[Reply]:
        """Decode a batch, one grammar per row. Tokens that the grammar forces need no model pass: the beginning of the
        answer goes into the prefill, and a row is finished once only a forced ending is left."""
        rows = [
            _Row(i, r, self._llguidance.LLMatcher(self._token_table, self._grammar(r))) for i, r in enumerate(requests)
        ]
        inputs = [[*prompt, *row.force()] for row, prompt in zip(rows, prompts, strict=True)]
        device, pad = self.model.device, int(self.tokenizer.pad_token_id or 0)
        width = max(map(len, inputs))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in inputs], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in inputs], device=device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        live = list(rows)
        while live:
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_argument: cache},
            )
            picked = self._pick(live, output.logits[:, -1].float().cpu())
            going = [n for n, row in enumerate(live) if row.take(picked[n], self._ends, self.max_tokens)]
            if not going:
                break
            if len(going) < len(live):
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                mask, positions = mask[keep], positions[keep]
                live, picked = [live[n] for n in going], [picked[n] for n in going]
            ids = torch.tensor(picked, device=device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
            positions = positions[:, -1:] + 1
        return [
            Reply(
                self.tokenizer.decode(row.answer, skip_special_tokens=False),
                Usage(requests=1, prompt_tokens=len(prompt), completion_tokens=len(row.answer)),
                cut=len(row.answer) >= self.max_tokens and not row.matcher.is_stopped(),
            )
            for row, prompt in zip(rows, prompts, strict=True)
        ]

    def _pick(self, live: Sequence[_Row], logits: torch.Tensor) -> list[int]:
        """Return the next token of each row among those that its grammar allows; `logits` is float32 [B, V]."""
        bitmask = self._llguidance.torch.allocate_token_bitmask(len(live), logits.shape[1])
        for n, row in enumerate(live):
            self._llguidance.torch.fill_next_token_bitmask(row.matcher, bitmask, n)
        logits.masked_fill_(~_allowed(bitmask, logits.shape[1]), float("-inf"))
        best = logits.argmax(-1).tolist()
        return [
            best[n] if row.request.temperature == 0.0 else _draw(logits[n] / row.request.temperature, row.draw)
            for n, row in enumerate(live)
        ]

    @cached_property
    def _cache_argument(self) -> str:
        """Return the name of the cache argument in this release of transformers."""
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    @cached_property
    def _ends(self) -> frozenset[int]:
        stated = getattr(self.model.generation_config, "eos_token_id", None)
        ends = stated if isinstance(stated, list) else [stated]
        return frozenset(e for e in (*ends, self.tokenizer.eos_token_id) if e is not None)


def _allowed(bitmask: torch.Tensor, vocab: int) -> torch.Tensor:
    """Unpack bits int32 [B, ceil(V/32)] to booleans [B, V]. The library's own function compiles itself first, which
    takes longer."""
    bits = (bitmask[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
    return bits.flatten(1)[:, :vocab].bool()


def _draw(logits: torch.Tensor, draw: torch.Generator) -> int:
    return int(torch.multinomial(logits.softmax(-1), 1, generator=draw))


def _seed(request: Request) -> int:
    return int.from_bytes(hashlib.sha256(request.key.encode()).digest()[:6], "big")


class _Row:
    """Hold one answer while it is decoded."""

    def __init__(self, at: int, request: Request, matcher: Any) -> None:
        self.at, self.request, self.matcher = at, request, matcher
        self.draw = torch.Generator().manual_seed(_seed(request))
        self.answer: list[int] = []

    def force(self) -> list[int]:
        """Append the tokens that the grammar forces."""
        forced = list(self.matcher.compute_ff_tokens())
        if forced and not self.matcher.consume_tokens(forced):
            return []
        self.answer += forced
        return forced

    def take(self, token: int, ends: frozenset[int], limit: int) -> bool:
        """Append a token, and return whether another model pass is needed."""
        if token in ends or not self.matcher.consume_token(token):
            return False
        self.answer.append(token)
        if self.matcher.is_stopped() or len(self.answer) >= limit:
            return False
        forced = list(self.matcher.compute_ff_tokens())
        if not forced or len(self.answer) + len(forced) > limit:
            return True
        if self.matcher.consume_tokens(forced) and self.matcher.is_stopped():
            self.answer += forced
            return False
        self.matcher.rollback(len(forced))
        return True

"""A transformers model in this process, decoding constrained by llguidance.

The grammar is compiled from the answer's JSON schema, without optional white space; at each position it says which
tokens may come next, and the model picks among those. Questions are decoded together in left-padded batches.

The question's text is tokenised apart from the chat template around it, and with special tokens spelled out, so that
trace text that spells a template's turn marker stays text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hintdistill.critics.backends import Reply, Request
from hintdistill.engines.transformers import load_model, pick_device, pick_dtype
from hintdistill.errors import ConfigError, ContextLengthError, HintdistillError, TemplateError
from hintdistill.models import load_tokenizer, model_key
from hintdistill.types import Usage

PLACE = "question-{}-goes-here"


def require_llguidance() -> Any:
    """The library. Raises ConfigError where it is not installed."""
    try:
        import llguidance
        import llguidance.hf
        import llguidance.torch
    except ImportError as error:
        raise ConfigError(
            f"a local critic needs llguidance, which is not here: {error}",
            hint="pip install 'hintdistill[critic]', or use critic.llm.backend=server",
        ) from None
    return llguidance


def question_ids(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of a chat up to and including the assistant header; message text never becomes a special token.

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
    """A model folder; see `Backend`."""

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
        """Name the model; it is loaded with the first question.

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
        """The folder's tokenizer, padding on the left. Raises ModelError."""
        tokenizer = load_tokenizer(self.folder)
        tokenizer.padding_side = "left"
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """The folder's model. Raises ModelError."""
        where = pick_device(self.device)
        return load_model(self.folder, pick_dtype(self.dtype, where), where)

    @cached_property
    def _token_table(self) -> Any:
        size = int(self.model.get_output_embeddings().weight.shape[0])
        return self._llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=size)

    def count(self, text: str) -> int:
        """See `Backend.count`."""
        return len(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    @property
    def context_tokens(self) -> int | None:
        """From the config, else the model's number of positions."""
        from transformers import AutoConfig

        if self._context_tokens is None:
            config = AutoConfig.from_pretrained(self.folder).get_text_config()
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
                    f"the question has {len(ids)} tokens and the answer up to {self.max_tokens}; the critic has {limit}"
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
        """Decode a batch: `ids` [B, S] left-padded, one grammar per row; a row that is done is padded."""
        device, pad = self.model.device, int(self.tokenizer.pad_token_id or 0)
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        matchers = [self._llguidance.LLMatcher(self._token_table, self._grammar(r)) for r in requests]
        vocab = int(self.model.get_output_embeddings().weight.shape[0])
        bitmask = self._llguidance.torch.allocate_token_bitmask(len(prompts), vocab)
        draws = [torch.Generator().manual_seed(_seed(r)) for r in requests]
        answers: list[list[int]] = [[] for _ in prompts]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        past, live = None, list(range(len(prompts)))
        for _ in range(self.max_tokens):
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
            past, logits = output.past_key_values, output.logits[:, -1].float().cpu()
            for i in live:
                self._llguidance.torch.fill_next_token_bitmask(matchers[i], bitmask, i)
            logits.masked_fill_(~_allowed(bitmask, vocab), float("-inf"))
            picked = [pad] * len(prompts)
            for i in list(live):
                picked[i] = _pick(logits[i], requests[i].temperature, draws[i])
                if picked[i] in self._ends or not matchers[i].consume_token(picked[i]):
                    live.remove(i)
                    continue
                answers[i].append(picked[i])
                if matchers[i].is_stopped():
                    live.remove(i)
            if not live:
                break
            ids = torch.tensor(picked, device=device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
            positions = positions[:, -1:] + 1
        return [
            Reply(self.tokenizer.decode(a, skip_special_tokens=False),
                  Usage(requests=1, prompt_tokens=len(p), completion_tokens=len(a)))
            for p, a in zip(prompts, answers, strict=True)
        ]  # fmt: skip

    @cached_property
    def _ends(self) -> frozenset[int]:
        stated = getattr(self.model.generation_config, "eos_token_id", None)
        ends = stated if isinstance(stated, list) else [stated]
        return frozenset(e for e in (*ends, self.tokenizer.eos_token_id) if e is not None)


def _allowed(bitmask: torch.Tensor, vocab: int) -> torch.Tensor:
    """Packed bits int32 [B, ceil(V/32)] as booleans [B, V]; the library's own function compiles itself, which takes longer."""
    bits = (bitmask[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
    return bits.flatten(1)[:, :vocab].bool()


def _pick(logits: torch.Tensor, temperature: float, draw: torch.Generator) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw))


def _seed(request: Request) -> int:
    return int.from_bytes(hashlib.sha256(request.key.encode()).digest()[:6], "big")

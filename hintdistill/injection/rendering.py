"""Trace → token ids, token-faithfully, through the student's own chat template.

The truth for a step is what the student saw: `context = template(messages before it, tools, generation prompt)`, and
the step's ids as sampled. Where a trace carries ids they are used verbatim. Where it does not, the context is rendered
once per step, so that a template that rewrites history (drops earlier thinking) is followed and not fought; the step is
the difference between the render with and without it.

Raw argument strings stay raw. Templates treat a string under `arguments` in three ways: print it, encode it a second
time, or refuse it. For the last two the call is rendered with a placeholder object, and the raw text is put where the
placeholder was printed (`raw_spliced`); a template that spells arguments out key by key gets the parsed object, and the
step's fidelity is `reserialised`.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hintdistill.core.errors import SpliceError, TemplateError
from hintdistill.core.models import load_tokenizer
from hintdistill.core.types import Fidelity, Message, ToolCall, Trace

SENTINEL = "hdSENTINELhd"
ArgumentsMode = Literal["raw", "raw_spliced", "reserialised"]


@dataclass(frozen=True)
class Opening:
    """What stands above a step, as the template prints it."""

    before: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    bare: str
    """The messages."""
    header: str
    """The assistant header that the generation prompt adds."""
    trailer: str
    """What the template closes a conversation with when no header follows; it is no part of any context."""

    @property
    def text(self) -> str:
        """The context."""
        return self.bare + self.header


@dataclass(frozen=True)
class RenderedStep:
    """A step and its context as token ids."""

    context_ids: tuple[int, ...]
    step_ids: tuple[int, ...]
    header_ids: tuple[int, ...]
    """The assistant header: the end of `context_ids` that the template's generation prompt added."""
    fidelity: Fidelity
    notes: tuple[str, ...]
    opening: Opening
    """The same context as text; recorded ids may spell it with other tokens."""


class Renderer:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, template_kwargs: dict[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = template_kwargs or {}
        """Passed to the template, e.g. `enable_thinking`."""
        # drawn anew each time, so that no text in a trace can pose as one
        self._placeholder = f"hd_{secrets.token_hex(8)}_{{}}"

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Renderer:
        """The renderer of a model folder. Raises ModelError; see `load_tokenizer`."""
        return cls(load_tokenizer(Path(folder)))

    @cached_property
    def key(self) -> str:
        """Hash of tokenizer, template and template arguments."""
        state = self.tokenizer.backend_tokenizer.to_str() + str(self.tokenizer.chat_template)
        return hashlib.sha256((state + json.dumps(self.template_kwargs, sort_keys=True)).encode()).hexdigest()[:16]

    # -- text and ids -------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of rendered text; nothing is added at either end."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and the character each token starts at."""
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return out["input_ids"], [start for start, _ in out["offset_mapping"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def token_spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """Text of `ids` and the character range [start, end) of each token in it.

        Tokens that together make one character (bytes of a multi-byte one) share its range. Works on any id sequence,
        also one that is not how the tokenizer would split its own text.
        """
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        at, prefix, read, pending = 0, 0, 0, 0
        for i in range(len(ids)):
            known, text = self.decode(ids[prefix:read]), self.decode(ids[prefix : i + 1])
            pending += 1
            last = i == len(ids) - 1
            if (len(text) > len(known) and not text.endswith("\ufffd")) or last:
                piece = text[len(known) :]
                spans += [(at, at + len(piece))] * pending
                pieces.append(piece)
                at, prefix, read, pending = at + len(piece), read, i + 1, 0
        return "".join(pieces), spans

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Text of each token; of tokens that share a character, the last one carries it."""
        text, spans = self.token_spans(ids)
        return tuple("" if i + 1 < len(spans) and spans[i + 1] == s else text[s[0] : s[1]] for i, s in enumerate(spans))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token text → id, for every id that decodes to whole characters; the lowest id where several do."""
        ids = range(len(self.tokenizer))
        texts = self.tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
        table: dict[str, int] = {}
        for i, text in zip(ids, texts, strict=True):
            if text and "\ufffd" not in text:
                table.setdefault(text, i)
        return table

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of tokens that text never turns into by itself."""
        return frozenset(self.tokenizer.added_tokens_decoder) | frozenset(self.tokenizer.all_special_ids)

    # -- the template -------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], header: bool) -> str:
        """The conversation as the template prints it; `header` adds the generation prompt.

        Raises:
            TemplateError: the template refuses these messages.
        """
        raws: list[str] = []
        mode = self.arguments_mode
        conversation = [self._for_template(m, mode, raws) for m in messages]
        text = self._apply(conversation, tools, header)
        for i, raw in enumerate(raws):
            text, count = self._placeholder_pattern(i).subn(lambda _, raw=raw: raw, text, count=1)  # type: ignore[misc]
            if not count:
                raise TemplateError("the template does not print the arguments of every tool call")
        return text

    def _apply(self, conversation: list[dict[str, Any]], tools: Sequence[dict[str, Any]], header: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                conversation,
                tools=list(tools) or None,
                add_generation_prompt=header,
                tokenize=False,
                **self.template_kwargs,
            )
        except Exception as error:
            roles = " ".join(m["role"] for m in conversation[-4:])
            raise TemplateError(f"the chat template refuses a conversation ending in [{roles}]: {error}") from error

    def _for_template(self, message: Message, mode: ArgumentsMode, raws: list[str]) -> dict[str, Any]:
        out: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.reasoning:
            out["reasoning_content"] = message.reasoning
        if message.tool_calls:
            out["tool_calls"] = [self._call_for_template(c, mode, raws) for c in message.tool_calls]
        if message.tool_call_id:
            out["tool_call_id"] = message.tool_call_id
        if message.name:
            out["name"] = message.name
        return out

    def _placeholder_pattern(self, i: int) -> re.Pattern[str]:
        return re.compile(r"\{\s*\"" + self._placeholder.format(i) + r"\"\s*:\s*0\s*\}")

    def _call_for_template(self, call: ToolCall, mode: ArgumentsMode, raws: list[str]) -> dict[str, Any]:
        arguments: Any
        if call.arguments_form == "object" or mode == "reserialised":
            arguments = call.arguments if call.arguments is not None else call.arguments_raw
        elif mode == "raw":
            arguments = call.arguments_raw
        else:
            arguments = {self._placeholder.format(len(raws)): 0}
            raws.append(call.arguments_raw)
        out = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
        return out | ({"id": call.id} if call.id else {})

    @cached_property
    def arguments_mode(self) -> ArgumentsMode:
        """What the template does with arguments, found out by rendering one call with a string and with an object.

        `raw` only if the string is printed where the object's JSON would be: some templates print a string as it is
        but spell an object out in a syntax of their own, and the object is what a server hands them.
        """
        raw = '{"hd_probe":  [1,2]}'
        printed = self._probe(raw)
        as_string = None if printed is None or raw not in printed else printed.replace(raw, SENTINEL, 1)
        dumped = self._probe({self._placeholder.format(0): 0})
        as_object = None
        if dumped is not None and self._placeholder_pattern(0).search(dumped):
            as_object = self._placeholder_pattern(0).sub(SENTINEL, dumped, count=1)
        if as_string is not None and (as_string == as_object or dumped is None):
            return "raw"
        return "raw_spliced" if as_object is not None else "reserialised"

    def _probe(self, arguments: Any) -> str | None:
        call = {"type": "function", "id": "call12345", "function": {"name": "hd_tool", "arguments": arguments}}
        talk: list[dict[str, Any]] = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            return self._apply(talk, (), False)
        except TemplateError:
            return None

    # -- steps --------------------------------------------------------------------------------------------------

    def step(self, trace: Trace, k: int) -> RenderedStep:
        """Context and ids of step `k`.

        Raises:
            TemplateError: the template refuses the conversation, or rewrites it so that the step cannot be told apart.
            SpliceError: recorded ids that do not belong to this tokenizer or template.
        """
        message, before = trace.step(k), trace.before(k)
        opening = self.opening(before, trace.tools)
        if message.token_ids is not None:
            return self._recorded(trace, k, message, opening)
        return self._rendered(trace, k, message, opening)

    def opening(self, before: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Opening:
        """What stands above a step: the messages, and the header the generation prompt adds.

        Raises:
            TemplateError: the generation prompt changes more than the end of the conversation.
        """
        closed = self.render(before, tools, header=False)
        asked = self.render(before, tools, header=True)
        bare, trailer = closed, ""
        if not asked.startswith(closed):
            # a template may close a conversation with an end-of-text token unless a header follows
            (ids, _), (other, starts) = self.encode_with_starts(closed), self.encode_with_starts(asked)
            common = next(
                (i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other))
            )
            bare = asked[: starts[common]] if common < len(starts) else asked
            trailer = closed[len(bare) :]
            if not closed.startswith(bare) or not set(self.encode(trailer.strip())) <= self.special_ids:
                raise TemplateError("the template's generation prompt rewrites the conversation")
        return Opening(tuple(before), tuple(tools), bare, asked[len(bare) :], trailer)

    def _recorded(self, trace: Trace, k: int, message: Message, opening: Opening) -> RenderedStep:
        assert message.token_ids is not None
        where = f"trace {trace.id}, step {k}"
        context_ids = message.prompt_token_ids or tuple(self.encode(opening.text))
        top = max(max(context_ids), max(message.token_ids))
        if top >= len(self.tokenizer):
            raise SpliceError(
                f"{where}: recorded id {top} is outside this tokenizer's {len(self.tokenizer)} entries",
                hint="the trace comes from another model; traces.token_ids=ignore renders it through this one's template",
            )
        header_ids = tuple(self.encode(opening.header))
        if header_ids and context_ids[-len(header_ids) :] != header_ids:
            raise SpliceError(
                f"{where}: the recorded context does not end in this template's assistant header",
                hint="the trace was recorded under another template; traces.token_ids=ignore renders it anew",
            )
        said = message.content or (message.tool_calls[0].name if message.tool_calls else "")
        if said.strip() and said.strip()[:40] not in self.decode(message.token_ids):
            raise SpliceError(
                f"{where}: the recorded ids decode to something else than the message",
                hint="the trace comes from another tokenizer; traces.token_ids=ignore renders it through this one's template",
            )
        return RenderedStep(context_ids, message.token_ids, header_ids, "ids", (), opening)

    def _rendered(self, trace: Trace, k: int, message: Message, opening: Opening) -> RenderedStep:
        where, notes = f"trace {trace.id}, step {k}", []
        whole = self.render((*opening.before, message), trace.tools, header=False).removesuffix(opening.trailer)
        if not whole.startswith(opening.text):
            # the template shows a finished step under another header than it asks for one
            opening = self._finished_opening(message, opening)
            notes.append("rewritten_history")
            if not whole.startswith(opening.text):
                raise TemplateError(f"{where}: the template rewrites the messages before the step")
        context_ids, whole_ids = self.encode(opening.text), self.encode(whole)
        tail = whole[len(opening.text) :]
        self._must_print(message, tail, where)
        if message.raw_text is not None:
            step_ids = self.encode(message.raw_text) + self._end_of_turn(tail)
        elif whole_ids[: len(context_ids)] == context_ids:
            step_ids = self._without_scaffold(whole_ids[len(context_ids) :])
        else:
            # a merge across the header's end: the student could only start a new token there
            notes.append("boundary_retokenised")
            step_ids = self._without_scaffold(self.encode(tail))
        fidelity = self._fidelity(message, tail) if "rewritten_history" not in notes else "reserialised"
        header_ids = tuple(self.encode(opening.header))
        return RenderedStep(tuple(context_ids), tuple(step_ids), header_ids, fidelity, tuple(notes), opening)

    def _finished_opening(self, message: Message, opening: Opening) -> Opening:
        """The opening under the header that this template shows above a finished step."""
        probes: list[dict[str, Any]] = [{"reasoning": SENTINEL}] if message.reasoning else []
        for update in (*probes, {"content": SENTINEL, "tool_calls": ()}):
            probe = message.model_copy(update=update)
            text = self.render((*opening.before, probe), opening.tools, header=False)
            at = text.find(SENTINEL)
            if at >= 0 and text.startswith(opening.bare):
                return replace(opening, header=text[len(opening.bare) : at])
        raise TemplateError("the template rewrites earlier messages when a step follows them")

    @staticmethod
    def _must_print(message: Message, tail: str, where: str) -> None:
        """Refuse a template that leaves out what the student did."""
        missing = [f"the call of {c.name}" for c in message.tool_calls if c.name not in tail]
        words = (message.content or "").split()
        if words and (words[0] not in tail or words[-1] not in tail):
            missing.append("the content")
        if missing:
            raise TemplateError(f"{where}: the chat template does not print {' or '.join(missing)} of this step")

    def _fidelity(self, message: Message, tail: str) -> Fidelity:
        if message.raw_text is not None:
            return "raw_text"
        if message.reasoning:
            # a server cut the reasoning out; the white space around it is the template's guess
            return "reserialised"
        if message.tool_calls:
            raw = (
                all(c.arguments_form == "string" for c in message.tool_calls) and self.arguments_mode != "reserialised"
            )
            return "raw_text" if raw else "reserialised"
        verbatim = bool(message.content) and tail.startswith(message.content or "")
        return "raw_text" if verbatim else "reserialised"

    def _without_scaffold(self, ids: list[int]) -> list[int]:
        """Drop what the template prints after the end-of-turn token: the student never sampled it."""
        for i in range(len(ids) - 1, -1, -1):
            if ids[i] in self.special_ids:
                return ids[: i + 1] if not self.decode(ids[i + 1 :]).strip() else ids
        return ids

    def _end_of_turn(self, tail: str) -> list[int]:
        """The special token that ends a step in this template, if any."""
        ids = self._without_scaffold(self.encode(tail))
        return ids[-1:] if ids and ids[-1] in self.special_ids else []

    def splice_point(self, context_ids: Sequence[int], context: str, char: int) -> tuple[int, bool]:
        """Where in `context_ids` a hint belonging at character `char` of the rendered `context` goes.

        `context_ids` may be recorded ids; only their end has to agree with the render. Returns the index, and whether
        it had to move to the next token boundary.

        Raises:
            SpliceError: the end of the recorded context is not what the template prints.
        """
        ids, starts = self.encode_with_starts(context)
        at = int(np.searchsorted(starts, char, side="left"))
        shifted = at < len(starts) and starts[at] != char
        rest = tuple(ids[at:])
        if rest and tuple(context_ids[-len(rest) :]) != rest:
            raise SpliceError(
                "the recorded context does not end as this template prints it, so the hint has no exact place",
                hint="traces.token_ids=ignore renders the trace anew",
            )
        return len(context_ids) - len(rest), shifted

"""Render a trace to exact token ids through the student's own chat template.

The reference for a step is what the student saw: `context = template(messages before it, tools, generation prompt)`,
and the step's ids as sampled. If a trace has recorded ids, they are used verbatim. Otherwise the context is rendered
once per step, which respects templates that rewrite history (e.g. drop earlier thinking). The step is then the
difference between the renders with and without it.

A template need not be append-only. If the finished conversation prints the messages above the step differently from the
context, the step is the text after its last assistant header there (`not_append_only`), and its fidelity is
`reserialised`.

Raw argument strings stay raw. Templates treat a string under `arguments` in three ways: they print it, encode it a
second time, or refuse it. In the last two cases the call is rendered with a placeholder object, and the raw text
replaces the printed placeholder (`raw_spliced`). A template that prints arguments key by key receives the parsed
object, and the step's fidelity is `reserialised`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hintdistill.core.errors import ModelError, SpliceError, TemplateError
from hintdistill.core.models import load_tokenizer
from hintdistill.core.types import Fidelity, Message, ToolCall, Trace
from hintdistill.injection import action, printed
from hintdistill.injection.opening import Opening, RenderedStep, common, first_difference
from hintdistill.injection.raw_arguments import Placeholders
from hintdistill.injection.template_options import TemplateOptions
from hintdistill.injection.token_text import TokenText

SENTINEL = "hdSENTINELhd"
REWRITTEN = "rewritten_history"
"""Note: the template shows a finished step under a header that differs from its generation prompt."""
NOT_APPEND_ONLY = "not_append_only"
"""Note: the finished conversation prints the messages above the step differently from the context."""
ArgumentsMode = Literal["raw", "raw_spliced", "reserialised"]


class Renderer(TokenText):
    """Render with a tokenizer, its chat template, and template options."""

    def __init__(
        self, tokenizer: Any, options: Mapping[str, Any] | TemplateOptions | None = None, template: str | None = None
    ) -> None:
        """Bind a tokenizer to a template.

        Args:
            options: options for the template, e.g. `enable_thinking`; `strftime_now` is a date that replaces today's
                date.
            template: the chat template's text; default: the tokenizer's own.

        Raises:
            ConfigError: the template does not read an option, or it is not a template option.
        """
        self.tokenizer, self.template = tokenizer, template
        self.options = options if isinstance(options, TemplateOptions) else TemplateOptions(dict(options or {}))
        self.options.require_read(self.template_text)
        self._placeholders = Placeholders()
        self._with, self._dated = dict[str, Renderer](), dict[bool, str]()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, options: Mapping[str, Any] | None = None, template: str | Path | None = None
    ) -> Renderer:
        """Return the renderer of a model folder.

        Args:
            options: see `Renderer`.
            template: file with a chat template that replaces the folder's.

        Raises:
            ModelError: see `load_tokenizer`; also if the file cannot be read.
            ConfigError: see `Renderer`.
        """
        if template is None:
            return cls(load_tokenizer(Path(folder)), options)
        try:
            text = Path(template).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read the chat template {template}: {error}") from error
        return cls(load_tokenizer(Path(folder), needs_template=False), options, text)

    @property
    def template_text(self) -> str:
        """The text of the chat template, or of all templates if the tokenizer has several."""
        own = self.tokenizer.chat_template if self.template is None else self.template
        return "\n".join(map(str, own.values())) if isinstance(own, dict) else str(own)

    def for_trace(self, trace: Trace) -> Renderer:
        """Return a renderer with the recorded options of a trace, which override those of the run.

        Options that this template does not read are left out, with a note on the step (`unread option`).

        Raises:
            ConfigError: a recorded date is invalid.
        """
        recorded = {k: v for k, v in trace.template.items() if self.options.reads(self.template_text, k)}
        if all(self.options.values.get(k, self) == v for k, v in recorded.items()):
            return self
        slot = json.dumps(recorded, sort_keys=True, default=str)
        if slot not in self._with:
            other = copy.copy(self)
            for name in ("key", "arguments_mode", "leads"):
                other.__dict__.pop(name, None)
            other.options = self.options.updated(recorded, f"trace {trace.id}")
            other.options.require_read(self.template_text)
            other._with, other._dated = {}, {}
            self._with[slot] = other
        return self._with[slot]

    @cached_property
    def key(self) -> str:
        """Hash of tokenizer, template and template options."""
        own = str(self.tokenizer.chat_template) if self.template is None else self.template
        state = self.tokenizer.backend_tokenizer.to_str() + own + self.options.key(self.template_text)
        return hashlib.sha256(state.encode()).hexdigest()[:16]

    @property
    def options_content(self) -> tuple[str, ...]:
        """Options and replaced template for content keys that already cover the weights; empty if there are none."""
        own = self.options.values or self.template is not None
        return (self.options.key(self.template_text), self.template or "") if own else ()

    # -- the template -------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], header: bool) -> str:
        """Return the rendered conversation; `header` adds the generation prompt.

        Raises:
            TemplateError: the template refuses these messages.
        """
        raws: list[str] = []
        mode = self.arguments_mode
        conversation = [self._for_template(m, mode, raws) for m in messages]
        text, missing = self._placeholders.filled(self._apply(conversation, tools, header), raws)
        if missing is not None:
            calls = [c.name for m in messages for c in m.tool_calls if c.arguments_form == "string"]
            raise TemplateError(
                f"the template does not print the arguments of every tool call: call {missing + 1} of {len(raws)}, "
                f"of {calls[missing]}, is missing"
            )
        return text

    def _apply(self, conversation: list[dict[str, Any]], tools: Sequence[dict[str, Any]], header: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                conversation,
                tools=list(tools) or None,
                add_generation_prompt=header,
                tokenize=False,
                chat_template=self._chat_template(bool(tools)),
                **self.options.arguments(),
            )
        except Exception as error:
            roles = " ".join(m["role"] for m in conversation[-4:])
            raise TemplateError(f"the chat template refuses a conversation ending in [{roles}]: {error}") from error

    def _chat_template(self, with_tools: bool) -> str:
        """Return the template's text for rendering: the one for tools if the tokenizer has one, with a fixed date."""
        if with_tools not in self._dated:
            text = self.template or self.tokenizer.get_chat_template(None, [{}] if with_tools else None)
            self._dated[with_tools] = self.options.dated(text)
        return self._dated[with_tools]

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

    def _call_for_template(self, call: ToolCall, mode: ArgumentsMode, raws: list[str]) -> dict[str, Any]:
        arguments: Any
        if call.arguments_form == "object" or mode == "reserialised":
            arguments = call.arguments if call.arguments is not None else call.arguments_raw
        elif mode == "raw":
            arguments = call.arguments_raw
        else:
            arguments = self._placeholders.of(len(raws))
            raws.append(call.arguments_raw)
        out = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
        return out | ({"id": call.id} if call.id else {})

    @cached_property
    def arguments_mode(self) -> ArgumentsMode:
        """Return how the template treats arguments, determined by rendering one call with a string and with an object.

        It is `raw` only if the string is printed where the object's JSON would be. Some templates print a string as it
        is but have their own syntax for objects, and servers pass objects.
        """
        raw = '{"hd_probe":  [1,2]}'
        printed = self._probe(raw)
        as_string = None if printed is None or raw not in printed else printed.replace(raw, SENTINEL, 1)
        dumped = self._probe(self._placeholders.of(0))
        as_object = self._placeholders.probed(dumped, SENTINEL)
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
        """Return the context and ids of step `k`, rendered with the recorded options of the trace.

        Raises:
            TemplateError: the template refuses the conversation, or rewrites it so that the step cannot be separated
                from its context.
            SpliceError: the recorded ids do not belong to this tokenizer or template.
        """
        own = self.for_trace(trace)
        if own is not self:
            return own.step(trace, k)
        message, before = trace.step(k), trace.before(k)
        try:
            opening = self.opening(before, trace.tools)
            if message.token_ids is not None:
                made = self._recorded(trace, k, message, opening)
            else:
                made = self._rendered(trace, k, message, opening)
        except TemplateError as error:
            where = f"trace {trace.id}, step {k}"
            if error.message.startswith(where):
                raise
            raise TemplateError(f"{where}: {error.message}", hint=error.hint) from error
        unread = [name for name in trace.template if not self.options.reads(self.template_text, name)]
        notes = (*made.notes, *(f"unread option: {name}" for name in unread))
        return replace(made, notes=notes, action_start=action.action_start(self, message, made.step_ids))

    def opening(self, before: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Opening:
        """Return the rendered context of a step: the messages, and the header that the generation prompt adds.

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
                raise TemplateError(
                    "the template's generation prompt rewrites the conversation: " + first_difference(closed, asked)
                )
        header = asked[len(bare) :]
        return Opening(tuple(before), tuple(tools), bare, header, trailer, header)

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
                f"{where}: the recorded context does not end with this template's assistant header",
                hint="the trace was recorded under another template; traces.token_ids=ignore renders it again",
            )
        said = message.content or (message.tool_calls[0].name if message.tool_calls else "")
        if said.strip() and said.strip()[:40] not in self.decode(message.token_ids):
            raise SpliceError(
                f"{where}: the recorded ids do not decode to the message",
                hint="the trace comes from another tokenizer; traces.token_ids=ignore renders it through this one's template",
            )
        read = message.prompt_token_ids is not None
        notes = () if read else printed.unprinted(opening.before, opening.tools, opening.text)
        return RenderedStep(context_ids, message.token_ids, header_ids, "ids", notes, opening)

    def _rendered(self, trace: Trace, k: int, message: Message, opening: Opening) -> RenderedStep:
        where = f"trace {trace.id}, step {k}"
        whole = self.render((*opening.before, message), trace.tools, header=False).removesuffix(opening.trailer)
        opening, tail, notes = self._tail(message, opening, whole, where)
        notes = (*notes, *printed.unprinted(opening.before, opening.tools, opening.text))
        context_ids = self.encode(opening.text)
        printed.require_printed(message, tail, where)
        if message.raw_text is not None:
            step_ids = self.encode(message.raw_text) + self._end_of_turn(tail)
            fidelity: Fidelity = "reserialised" if REWRITTEN in notes else "raw_text"
        else:
            joined = self.encode(opening.text + tail)
            if joined[: len(context_ids)] == context_ids:
                step_ids = self._without_scaffold(joined[len(context_ids) :])
            else:
                # a merge across the header's end: the student could only start a new token there
                notes = (*notes, "boundary_retokenised")
                step_ids = self._without_scaffold(self.encode(tail))
            around = printed.step_notes(message, tail, self.leads, self._special_texts)
            exact = not around and NOT_APPEND_ONLY not in notes and REWRITTEN not in notes
            fidelity = (
                "raw_text"
                if exact and printed.verbatim(message, self.arguments_mode != "reserialised")
                else "reserialised"
            )
            notes = (*notes, *around)
        header_ids = tuple(self.encode(opening.header))
        return RenderedStep(tuple(context_ids), tuple(step_ids), header_ids, fidelity, notes, opening)

    def _tail(self, message: Message, opening: Opening, whole: str, where: str) -> tuple[Opening, str, tuple[str, ...]]:
        """Return the template's text for a step in the finished conversation `whole`, the opening above it, and notes.

        Raises:
            TemplateError: the finished conversation has no assistant header above the step.
        """
        if whole.startswith(opening.text):
            return opening, whole[len(opening.text) :], ()
        if whole.startswith(opening.bare):
            # the template shows a finished step under another header than it asks for one
            other = self._finished_opening(message, opening)
            if other is not None and whole.startswith(other.text):
                return other, whole[len(other.text) :], (REWRITTEN,)
        start = self._last_header_end(opening, whole)
        if start is None:
            raise TemplateError(
                f"{where}: the template rewrites the messages before the step, and prints the step without a header: "
                + first_difference(opening.text, whole)
            )
        return opening, whole[start:], (NOT_APPEND_ONLY,)

    def _finished_opening(self, message: Message, opening: Opening) -> Opening | None:
        """Return the opening with the header that this template prints above a finished step."""
        probes: list[dict[str, Any]] = [{"reasoning": SENTINEL}] if message.reasoning else []
        for update in (*probes, {"content": SENTINEL, "tool_calls": ()}):
            probe = message.model_copy(update=update)
            text = self.render((*opening.before, probe), opening.tools, header=False)
            at = text.find(SENTINEL)
            if at >= 0 and text.startswith(opening.bare):
                return replace(opening, header=text[len(opening.bare) : at])
        return None

    def _last_header_end(self, opening: Opening, whole: str) -> int | None:
        """Return the start of the last step in a finished conversation: after its header, or where two other steps
        would begin.

        None if there is no such place after the message above the step.
        """
        fixed = len(whole)
        for words in (SENTINEL, SENTINEL.swapcase()):
            probe = Message(role="assistant", content=words)
            other = self.render((*opening.before, probe), opening.tools, header=False)
            fixed = min(fixed, common(whole, other))
        start = fixed
        if opening.header:
            at = whole.rfind(opening.header, 0, fixed)
            start = at + len(opening.header)
            if at < 0:
                return None
        last = (opening.before[-1].content or "").strip()[-40:] if opening.before else ""
        return None if last and last in whole and whole.rfind(last, 0, fixed) > start - len(opening.header) else start

    @cached_property
    def leads(self) -> tuple[str, ...]:
        """Return the texts that the template prints between the assistant header and the content, in a first answer and
        after a tool result."""
        user, answer = Message(role="user", content="x"), Message(role="assistant", content=SENTINEL)
        call = ToolCall(name="hd_tool", arguments_raw="{}", id="call12345")
        asked = Message(role="assistant", tool_calls=(call,))
        told = Message(role="tool", content="x", tool_call_id="call12345", name="hd_tool")
        found = []
        for before in ((user,), (user, asked, told)):
            try:
                context = self.render(before, (), header=True)
                whole = self.render((*before, answer), (), header=False)
            except TemplateError:
                continue
            at = whole.find(SENTINEL)
            if at >= 0 and whole.startswith(context):
                found.append(whole[len(context) : at])
        return tuple(dict.fromkeys(f for f in found if f))

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        return tuple(t for t in (self.decode([i]) for i in sorted(self.special_ids)) if t.strip())

    def _without_scaffold(self, ids: list[int]) -> list[int]:
        """Remove the text that the template prints after the end-of-turn token, because the student never sampled
        it."""
        for i in range(len(ids) - 1, -1, -1):
            if ids[i] in self.special_ids:
                return ids[: i + 1] if not self.decode(ids[i + 1 :]).strip() else ids
        return ids

    def _end_of_turn(self, tail: str) -> list[int]:
        """Return the special token that ends a step in this template; None if there is none."""
        ids = self._without_scaffold(self.encode(tail))
        return ids[-1:] if ids and ids[-1] in self.special_ids else []

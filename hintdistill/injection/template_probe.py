"""Determine which parts of a complete conversation a chat template shows to the student; `doctor` checks this first."""

from __future__ import annotations

from hintdistill.core.errors import TemplateError
from hintdistill.core.types import Message, ToolCall
from hintdistill.injection.printed import unprinted
from hintdistill.injection.rendering import Renderer

_TOOL = {
    "type": "function",
    "function": {
        "name": "hd_weather",
        "description": "The weather of a hamlet.",
        "parameters": {"type": "object", "properties": {"hamlet": {"type": "string"}}, "required": ["hamlet"]},
    },
}
_CALL = ToolCall(name="hd_weather", arguments_raw='{"hamlet": "Lower Probing"}', id="call12345")
_ASK = Message(role="user", content="hd question")
_TALK: tuple[tuple[str, tuple[Message, ...]], ...] = (
    ("a system prompt", (Message(role="system", content="hd system prompt"), _ASK)),
    ("a tool list", (_ASK,)),
    ("a call and its result", (_ASK, Message(role="assistant", tool_calls=(_CALL,)))),
    ("reasoning", (_ASK, Message(role="assistant", content="hd answer", reasoning="hd thought"), _ASK)),
)
_RESULT = Message(role="tool", content="hd result", tool_call_id="call12345", name="hd_weather")


def unseen(renderer: Renderer) -> list[str]:
    """Name the parts that a student will not see under a template, one line each: tool list, call, result, reasoning,
    system prompt.

    A part that the template refuses also gets a line, with the template's error.
    """
    lines = []
    for what, messages in _TALK:
        tools = (_TOOL,) if what in ("a tool list", "a call and its result") else ()
        if what == "a call and its result":
            messages = (*messages, _RESULT)
        try:
            notes = unprinted(messages, tools, renderer.render(messages, tools, header=True))
        except TemplateError as error:
            lines.append(f"{what}: {error.message}")
            continue
        # the tool list is a line of its own
        kept = [n.removeprefix("unprinted: ") for n in notes if what == "a tool list" or ": tools " not in n]
        lines += [f"{what}: the template does not print the {n}" for n in kept]
    return lines

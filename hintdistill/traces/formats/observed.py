"""Convert the records that tracing tools keep of model calls, in the forms of many frameworks, into chat messages.

Spans, Langfuse and LangSmith share this module. Forms found in real exports: chat messages; GenAI `parts`; Gemini
`contents`; Responses items; Anthropic blocks; LangChain messages and generations; a Vercel AI SDK list of calls; a
prompt; plain text. Each of them may be a JSON string, encoded once or twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hintdistill.core.errors import TraceError
from hintdistill.traces.formats import anthropic, openai_responses
from hintdistill.traces.reasoning import KEYS as REASONING_KEYS
from hintdistill.traces.values import as_text, listed

Messages = list[dict[str, Any]]
LANGCHAIN = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "AIMessageChunk": "assistant",
    "HumanMessageChunk": "user",
    "SystemMessageChunk": "system",
    "ToolMessageChunk": "tool",
}
MISSING = "missing"
"""Key of an assistant message whose position is known but whose words are missing from the log."""
SPOKEN = re.compile(r"^(system|developer|user|assistant|tool): ", re.MULTILINE)


def unwrap(value: Any) -> Any:
    """Return the value inside JSON strings, at most three deep; plain text stays text."""
    for _ in range(3):
        if not isinstance(value, str) or value[:1] not in ("{", "[", '"'):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            break
    return value


def messages_in(value: Any, role: str) -> Messages:
    """Return the messages of one side of a call; the list is empty if the value is not a conversation.

    Args:
        value: the recorded input or output.
        role: the role given to plain text: `user` for an input, `assistant` for an output.
    """
    value = unwrap(value)
    if value is None or value == "" or value == [] or value == {}:
        return []
    if isinstance(value, str):
        return _text(value, role)
    if isinstance(value, list):
        return _listed(value, role)
    return _object(value, role) if isinstance(value, Mapping) else []


def _text(text: str, role: str) -> Messages:
    """Return plain text as messages; an input that is a transcript with lines `role: ` is split at them."""
    if role == "user" and SPOKEN.match(text):
        starts = [*SPOKEN.finditer(text)]
        ends = [m.start() for m in starts[1:]] + [len(text)]
        return [_spoken(m.group(1), text[m.end() : end].rstrip("\n")) for m, end in zip(starts, ends, strict=True)]
    # a printed None is an answer without text, whose calls the exporter did not print
    return [{"role": role, "content": text}] if text != "None" or role != "assistant" else []


def _spoken(role: str, text: str) -> dict[str, Any]:
    return {"role": role, MISSING: True} if (role, text) == ("assistant", "None") else {"role": role, "content": text}


def _listed(items: list[Any], role: str) -> Messages:
    items = [unwrap(i) for i in items]
    if len(items) == 1 and isinstance(items[0], list):
        return _listed(items[0], role)  # LangChain batches its inputs
    if not all(isinstance(i, Mapping) for i in items):
        return []
    if all("toolName" in i for i in items):
        return [{"role": "assistant", "content": None, "tool_calls": [_vercel_call(i) for i in items]}]
    if any(i.get("type") in openai_responses.OWN_TYPES for i in items):
        try:
            return openai_responses.turns([_typed(i) for i in items])
        except TraceError:
            return []
    return [m for i in items for m in _message(i, role)]


def _typed(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return item if "type" in item or "role" not in item else {**item, "type": "message"}


def _object(value: Mapping[str, Any], role: str) -> Messages:
    """Return the messages of one object: a message, a request or a response."""
    if isinstance(value.get("messages"), list):
        return [*_told(value, value["messages"]), *_listed(value["messages"], role)]
    if isinstance(value.get("contents"), list):
        return _gemini(value)
    for key, inner in (("choices", "message"), ("candidates", "content"), ("generations", None)):
        if isinstance(value.get(key), list) and value[key]:
            first = value[key][0]
            first = first[0] if isinstance(first, list) and first else first
            found = first.get(inner, first) if isinstance(first, Mapping) and inner else first
            return messages_in(found, role)
    if isinstance(value.get("output"), list):
        return _listed(value["output"], role)
    if isinstance(value.get("message"), Mapping):
        return _message(value["message"], role)
    if "role" in value or _is_langchain(value) or isinstance(value.get("parts"), list):
        return _message(value, role)
    if isinstance(value.get("content"), Mapping | list):
        # ADK's answer: `{content: {parts, role}}`; or blocks without a role
        return (
            messages_in(value["content"], role)
            if isinstance(value["content"], Mapping)
            else _message({**value, "role": role}, role)
        )
    if isinstance(value.get("prompt"), str):
        system = [{"role": "system", "content": value["system"]}] if isinstance(value.get("system"), str) else []
        return [*system, {"role": role, "content": value["prompt"]}]
    return []


def _told(value: Mapping[str, Any], messages: list[Any]) -> Messages:
    """Return the system prompt that a request keeps outside its messages; the result is empty if the messages begin
    with one."""
    first = unwrap(messages[0]) if messages else None
    if isinstance(first, Mapping) and first.get("role") in ("system", "developer"):
        return []
    found = next((value[k] for k in ("system", "instructions", "system_prompt") if value.get(k)), None)
    if isinstance(found, str):
        return [{"role": "system", "content": found}]
    texts = [b.get("text") for b in found if isinstance(b, Mapping)] if isinstance(found, list) else []
    return [{"role": "system", "content": "".join(t for t in texts if isinstance(t, str))}] if any(texts) else []


def _gemini(value: Mapping[str, Any]) -> Messages:
    config = value.get("config") if isinstance(value.get("config"), Mapping) else {}
    system = value.get("system_instruction") or (
        config.get("system_instruction") if isinstance(config, Mapping) else None
    )
    found = messages_in(system, "system") if not isinstance(system, str) else [{"role": "system", "content": system}]
    return [*[{**m, "role": "system"} for m in found], *_listed(value["contents"], "user")]


def _is_langchain(value: Mapping[str, Any]) -> bool:
    return value.get("type") in tuple(LANGCHAIN) or (
        isinstance(value.get("kwargs"), Mapping) and isinstance(value.get("id"), list)
    )


def _message(value: Mapping[str, Any], role: str) -> Messages:
    """Convert one message of any framework; results in it become separate messages."""
    if isinstance(value.get("kwargs"), Mapping) and isinstance(value.get("id"), list):
        value = {"type": _class_role(value["id"]), **value["kwargs"]}
    if value.get("type") in tuple(LANGCHAIN) and "role" not in value:
        return _langchain(value)
    if isinstance(value.get("parts"), list):
        return _parts(value, role)
    content = unwrap(value.get("content")) if isinstance(value.get("content"), str) else value.get("content")
    if isinstance(content, list) and all(isinstance(b, Mapping) and "type" in b for b in content) and content:
        if any(b.get("type") in ("tool-call", "tool-result", "tool-error") for b in content):
            return _vercel(value, content)
        if any(anthropic.is_block(b) for b in content):
            return anthropic.split({**value, "role": value.get("role", role), "content": content}, 0)
        return [{**value, "role": value.get("role", role), "content": content}]
    extra = value.get("additional_kwargs")
    if isinstance(extra, Mapping) and extra.get("tool_calls") and not value.get("tool_calls"):
        value = {**{k: v for k, v in value.items() if k != "additional_kwargs"}, "tool_calls": extra["tool_calls"]}
    if "role" not in value and not any(k in value for k in ("content", "tool_calls")):
        return []
    return [{**value, "role": value.get("role", role)}]


def _class_role(path: list[Any]) -> str:
    name = str(path[-1]) if path else ""
    return next((k for k in LANGCHAIN if name.lower().startswith(k.lower())), name)


def _langchain(value: Mapping[str, Any]) -> Messages:
    rest = {
        k: v for k, v in value.items() if k not in ("type", "tool_calls", "content") and v not in (None, "", [], {})
    }
    made: dict[str, Any] = {**rest, "role": LANGCHAIN[value["type"]], "content": value.get("content")}
    kwargs = value.get("additional_kwargs")
    raw = kwargs.get("tool_calls") if isinstance(kwargs, Mapping) else None
    # the provider's own calls keep the arguments as the model wrote them; LangChain's are parsed
    invalid = listed(value.get("invalid_tool_calls"))  # what the student wrote, and LangChain could not parse
    made.pop("invalid_tool_calls", None)
    calls = raw or [
        {k: v for k, v in c.items() if k not in ("type", "error")}
        for c in (*listed(value.get("tool_calls")), *invalid)
        if isinstance(c, Mapping)
    ]
    if calls:
        made["tool_calls"] = calls
    if isinstance(kwargs, Mapping):
        made |= {k: kwargs[k] for k in (*REASONING_KEYS, "refusal") if kwargs.get(k) and k not in made}
    if isinstance(made["content"], list):
        return _message(made, made["role"])
    return [made]


def _parts(value: Mapping[str, Any], role: str) -> Messages:
    """Convert the parts of GenAI conventions and of Gemini: typed parts, or parts identified by their key."""
    said = str(value.get("role", role))
    blocks = [b for part in value["parts"] if isinstance(part, Mapping) for b in _blocks(part, said)]
    rest = {k: v for k, v in value.items() if k not in ("parts", "role", "content", "type")}
    made = anthropic.split({**rest, "role": "assistant" if said in ("model", "ai") else said, "content": blocks}, 0)
    return [{**m, "role": said} if said == "model" and m["role"] == "assistant" else m for m in made]


def _blocks(part: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
    """Return one part as content blocks: text, thinking, a call, a result, or a call with its result."""
    what = str(part.get("type") or "")
    call = _either(part, "function_call", "functionCall") or (part if what == "tool_call" else None)
    answer = _either(part, "function_response", "functionResponse") or (part if what == "tool_call_response" else None)
    code, printed = (
        _either(part, "executable_code", "executableCode"),
        _either(part, "code_execution_result", "codeExecutionResult"),
    )
    if call is not None:
        return [{**{k: v for k, v in call.items() if k != "type"}, "type": "tool_use"}]
    if answer is not None:
        result = next((answer[k] for k in ("response", "result", "content") if answer.get(k) is not None), None)
        return [_result(answer.get("id"), result, answer.get("name"))]
    if code is not None:
        return [{"type": "tool_use", "id": code.get("id"), "name": "code_execution", "input": dict(code)}]
    if printed is not None:
        return [_result(printed.get("id"), printed.get("output"), "code_execution")]
    if what.startswith("tool-") or what == "dynamic-tool":
        return _ui_tool(part, what)
    if what in ("reasoning", "thinking") or part.get("thought"):
        return [{"type": "thinking", "thinking": str(part.get("content", part.get("text")) or "")}]
    text = part.get("content", part.get("text"))
    if isinstance(text, str):
        return [{"type": "text", "text": text}]
    if what in ("step-start", "step-finish") or (not what and not any(part.values())):
        return []
    shown = what or next((str(k) for k in part), "part")
    if role in ("model", "assistant", "ai"):
        return [{"type": "unseen", "what": shown, "item": dict(part)}]
    return [{"type": "text", "text": f"[{shown}]"}]


def _either(part: Mapping[str, Any], *names: str) -> Mapping[str, Any] | None:
    return next((part[n] for n in names if isinstance(part.get(n), Mapping)), None)


def _ui_tool(part: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Return a call, with its result, from a message in the form that a user interface keeps."""
    name = part.get("toolName") or what.removeprefix("tool-")
    made = [
        {"type": "tool_use", "id": part.get("toolCallId"), "name": name, "input": part.get("input", part.get("args"))}
    ]
    result = next((part[k] for k in ("output", "result", "errorText") if part.get(k) is not None), None)
    return made if result is None else [*made, _result(part.get("toolCallId"), result, name)]


def _result(call_id: Any, result: Any, name: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": as_text(result), "name": name}


def _vercel(value: Mapping[str, Any], content: list[Any]) -> Messages:
    """Convert parts of the Vercel AI SDK in their order; the result of a tool that the provider ran is in the model's
    own message."""
    blocks: list[Any] = []
    for b in content:
        if b.get("type") == "tool-call":
            blocks.append({"type": "tool_use", **_vercel_call(b)})
        elif b.get("type") in ("tool-result", "tool-error"):
            said = next((b[k] for k in ("output", "result", "error") if b.get(k) is not None), None)
            blocks.append(_result(b.get("toolCallId"), said, b.get("toolName")))
        elif b.get("type") == "reasoning":
            blocks.append({"type": "thinking", "thinking": b.get("text")})
        else:
            blocks.append(b)
    return anthropic.split({**value, "role": value.get("role", "assistant"), "content": blocks}, 0)


def _vercel_call(item: Mapping[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in item.items() if k not in ("type", "toolCallId", "toolName")}
    return {**rest, "id": item.get("toolCallId"), "name": item.get("toolName")}


def schema_in(message: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the tool schema that some exporters log as a message of a tool, or None."""
    value = unwrap(message.get("content")) if message.get("role") == "tool" else None
    if isinstance(value, Mapping) and value.get("type") == "function" and isinstance(value.get("function"), Mapping):
        return value
    return None

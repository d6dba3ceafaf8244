"""OpenAI chat messages, in the variants real files have.

A record is an object with `messages` (or `traj`, tau-bench), or a bare list of messages. What is handled, all seen in
real files: `arguments` as a string (kept byte for byte), an object, or null; call ids missing or reused (never used as
a map: results are paired by order); null, empty or part-list content; the legacy `function_call`; `reasoning_content`;
rewards as number or string; token ids and log-probabilities under the names of vLLM and NeMo Gym. Keys that mean
nothing to us are kept in `extra`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hintdistill.errors import TraceError
from hintdistill.traces.options import ReadOptions
from hintdistill.types import Message, Source, ToolCall, Trace

MESSAGE_KEYS = ("messages", "traj")
ROLES = {"system", "developer", "user", "assistant", "tool"}
ALIASES = {"function": "tool"}
TOKEN_KEYS = {
    "prompt_token_ids": ("prompt_token_ids",),
    "token_ids": ("token_ids", "generation_token_ids", "completion_token_ids"),
    "logprobs": ("logprobs", "generation_log_probs"),
}


def parse(value: Any, source: Source, options: ReadOptions) -> Trace:
    """One record to a Trace.

    Raises:
        TraceError: the record holds no messages, or a message is malformed; the text says which and why.
    """
    record: Mapping[str, Any] = {"messages": value} if isinstance(value, list) else value
    if not isinstance(record, Mapping):
        raise TraceError(f"a record must be an object or a list of messages, not {_kind(value)}")
    key = next((k for k in MESSAGE_KEYS if isinstance(record.get(k), list)), None)
    if key is None:
        found = ", ".join(list(record)[:8]) or "none"
        raise TraceError(f"no list under {' or '.join(map(repr, MESSAGE_KEYS))} (keys present: {found})")
    messages = tuple(_message(m, i, options) for i, m in enumerate(record[key]))
    if not messages:
        raise TraceError("the list of messages is empty")
    tools = parse_tools(record["tools"]) if record.get("tools") else options.tools
    reward = _number(next((record[k] for k in ("reward", "score") if k in record), None))
    known = {key, "tools", "id", "trace_id", "task_id", "model"} | ({"reward"} if reward is not None else set())
    try:
        return Trace(
            id=_trace_id(record, source),
            messages=messages,
            tools=tools,
            reward=reward,
            task_id=str(record["task_id"]) if record.get("task_id") is not None else None,
            model=record["model"] if isinstance(record.get("model"), str) else None,
            source=source,
            extra={k: v for k, v in record.items() if k not in known},
        )
    except ValidationError as error:
        raise TraceError(str(error.errors()[0]["msg"])) from None


def parse_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Tool schemas from a list (wrapped, bare or names only), a dict by name, or a JSON string of one of those."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise TraceError("`tools` is a string that is not JSON") from None
    if isinstance(value, Mapping):
        value = [{"name": k, **v} if isinstance(v, Mapping) and "name" not in v else v for k, v in value.items()]
    if not isinstance(value, list):
        raise TraceError(f"`tools` must be a list, not {_kind(value)}")
    return tuple(_tool(t) for t in value)


def _tool(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"type": "function", "function": {"name": value}}
    if isinstance(value, Mapping):
        function = value.get("function", value)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            if "function" in value:
                return {"type": "function", **value}
            return {"type": "function", "function": {k: v for k, v in value.items() if k != "type"}}
    raise TraceError(f"a tool schema without a name: {json.dumps(value, default=str)[:80]}")


def _message(value: Any, index: int, options: ReadOptions) -> Message:
    if not isinstance(value, Mapping):
        raise TraceError(f"message {index} is {_kind(value)}, not an object")
    said = value.get("role")
    role: Any = "assistant" if said == options.student_role else ALIASES.get(str(said), said)
    if role not in ROLES:
        raise TraceError(f"message {index} has the role {value.get('role')!r}; traces.student_role names the student's")
    calls = _calls(value, index)
    used = {"role", "content", "tool_calls", "function_call", "tool_call_id", "name", "raw_text"}
    used |= {"reasoning_content", "reasoning"}
    tokens: dict[str, Any] = {}
    for field, names in TOKEN_KEYS.items():
        name = next((n for n in names if value.get(n)), None)
        used |= set(names)
        if name is not None and options.token_ids == "use":
            tokens[field] = _logprobs(value[name], index) if field == "logprobs" else value[name]
    if "token_ids" not in tokens and tokens.pop("logprobs", None) is not None:
        # log-probabilities of a server that keeps its token ids to itself cannot be paired with anything
        used -= set(TOKEN_KEYS["logprobs"])
    reasoning = value.get("reasoning_content") or value.get("reasoning")
    try:
        return Message(
            role=role,
            content=_content(value.get("content"), index),
            reasoning=reasoning if isinstance(reasoning, str) else None,
            tool_calls=calls,
            tool_call_id=value["tool_call_id"] if isinstance(value.get("tool_call_id"), str) else None,
            name=value["name"] if isinstance(value.get("name"), str) else None,
            raw_text=value["raw_text"] if isinstance(value.get("raw_text"), str) else None,
            extra={k: v for k, v in value.items() if k not in used},
            **tokens,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise TraceError(f"message {index}, {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _content(value: Any, index: int) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, list):
        raise TraceError(f"message {index} has content of type {_kind(value)}")
    texts = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        text = part.get("text", part.get("content")) if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
            raise TraceError(f"message {index} has a content part of type {kind!r}; only text can be rendered")
        texts.append(text)
    return "".join(texts)


def _calls(value: Mapping[str, Any], index: int) -> tuple[ToolCall, ...]:
    raw = value.get("tool_calls")
    if raw is None and isinstance(value.get("function_call"), Mapping):
        raw = [{"function": value["function_call"]}]
    if not raw:
        return ()
    if not isinstance(raw, list):
        raise TraceError(f"message {index}: `tool_calls` must be a list, not {_kind(raw)}")
    return tuple(_call(c, index) for c in raw)


def _call(value: Any, index: int) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if isinstance(function, str) and isinstance(value, Mapping):
        function = {"name": function, "arguments": value.get("arguments")}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TraceError(f"message {index}: a tool call without a function name")
    arguments = function.get("arguments")
    call_id = value.get("id")
    return ToolCall(
        name=function["name"],
        arguments_raw=arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False),
        arguments_form="string" if isinstance(arguments, str) else "object",
        id=call_id if isinstance(call_id, str) else None,
    )


def _logprobs(value: Any, index: int) -> list[float]:
    """A list of numbers, or OpenAI's `{"content": [{"token", "logprob"}]}`."""
    items = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(items, list):
        raise TraceError(f"message {index}: log-probabilities of type {_kind(value)}")
    return [i["logprob"] if isinstance(i, Mapping) and "logprob" in i else i for i in items]


def _trace_id(record: Mapping[str, Any], source: Source) -> str:
    for key in ("trace_id", "id"):
        if isinstance(record.get(key), str | int) and str(record[key]):
            return str(record[key])
    return f"{Path(source.file).stem}#{source.position.rpartition(' ')[2]}"


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(
        type(value), type(value).__name__
    )

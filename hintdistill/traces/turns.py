"""From a source's messages to ours: what every format comes down to.

A message arrives as a mapping in the shape of an OpenAI chat message; adapters of other formats make such mappings. What
is handled here, all seen in real files: `arguments` as a string (kept byte for byte), an object, or null; call ids missing
or reused (never used as a map: results are paired by order); null, empty or part-list content; the legacy
`function_call`; thinking beside the content or in it; roles under other names; token ids and log-probabilities under the
names of vLLM, NeMo Gym and ATIF. Keys that mean nothing to us are kept in `extra`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.options import ReadOptions

_ROLES = ("system", "developer", "user", "assistant", "tool")
_PLAIN = {"role", "content", "tool_call_id"}
_TEXTS = ("tool_call_id", "name", "raw_text")
ALIASES = {
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "toolresult": "tool",
    "tool_result": "tool",
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bot": "assistant",
}
TOKEN_KEYS = {
    "prompt_token_ids": ("prompt_token_ids",),
    "token_ids": ("token_ids", "generation_token_ids", "completion_token_ids"),
    "logprobs": ("logprobs", "generation_log_probs", "generation_logprobs"),
}
GIVEN: Any = object()
"""Key by which an adapter marks a turn as given; no JSON key can be equal to it."""
_ALL_TOKEN_KEYS = frozenset(n for names in TOKEN_KEYS.values() for n in names)
_USED = _ALL_TOKEN_KEYS | {
    "role",
    "content",
    "tool_calls",
    "function_call",
    "tool_call_id",
    "name",
    "raw_text",
    "logprobs_of",
    "reasoning_content",
    "reasoning",
    GIVEN,
}
MAX_DEPTH = 64
"""Deepest nesting kept in `extra` and in tool schemas; deeper values cannot be written back by every JSON library."""


class DepthError(TraceError):
    """A record is nested too deeply."""

    code = "too_deep"


def build_trace(
    record: Mapping[str, Any],
    messages: Sequence[Any],
    source: Source,
    options: ReadOptions,
    *,
    known: set[str],
    tools: Any = None,
    suffix: str = "",
    reward: Any = None,
    task_id: Any = None,
    model: Any = None,
) -> Trace:
    """A Trace of messages in chat shape.

    Args:
        record: what the source said; keys not in `known` go to `extra`.
        messages: mappings in the shape of OpenAI chat messages.
        source: where the record stood.
        options: how to read.
        known: keys of `record` that were used.
        tools: schemas in any shape `parse_tools` takes; `options.tools` where empty.
        suffix: told apart traces of one record, e.g. `/2`.
        reward: a number or a string with one; anything else is kept in `extra`.
        task_id, model: as the record has them.

    Raises:
        TraceError: no messages, or a malformed one; the text says which and why.
    """
    if not messages:
        raise TraceError("the list of messages is empty")
    found = number(reward)
    extra = {k: v for k, v in record.items() if k not in known}
    for key, value, used in (("reward", reward, found is not None), ("model", model, isinstance(model, str))):
        if key in known and record.get(key) is not None and record[key] is value and not used:
            extra[key] = value
    if record.get("trace_id") and "id" in record and "id" in known:
        extra["id"] = record["id"]
    check_plain(extra, "extra")
    fields: dict[str, Any] = {
        "id": trace_id(record, source) + suffix,
        "messages": [_message(m, i, options) for i, m in enumerate(messages)],
        "tools": _TOOLS.parse(tools) if tools else (),
        "reward": found,
        "task_id": str(task_id) if task_id is not None else None,
        "model": model if isinstance(model, str) and model else None,
        "source": source,
        "extra": extra,
    }
    fields["tools"] = fields["tools"] or options.tools
    try:
        # one call for the trace and all its messages: validation is most of what reading costs
        return Trace.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = list(first["loc"])
        place = f"message {where[1]}, " if where[0] == "messages" and len(where) > 1 else ""
        raise TraceError(f"{place}{'.'.join(map(str, where[2:] if place else where))}: {first['msg']}") from None


class _LastTools:
    """The schemas parsed last: most traces of a file carry the same ones."""

    def __init__(self) -> None:
        self._given: Any = None
        self._parsed: tuple[dict[str, Any], ...] = ()

    def parse(self, value: Any) -> tuple[dict[str, Any], ...]:
        """As `parse_tools`. Raises TraceError."""
        if type(value) is not type(self._given) or value != self._given:
            parsed = parse_tools(value)
            check_plain(list(parsed), "tools")
            self._given, self._parsed = value, parsed
        return self._parsed


_TOOLS = _LastTools()


def _role(value: dict[str, Any], index: int, student: str) -> Any:
    said = value.get("role")
    if student == "assistant":
        role = said if said in _ROLES else ALIASES.get(str(said).lower())
    elif said == student or (value.get("name") == student and said != "tool"):
        return "assistant"
    else:
        role = said if said in _ROLES and said != "assistant" else ALIASES.get(str(said).lower(), "user")
        role = "user" if role == "assistant" else role
    if role is None:
        raise TraceError(f"message {index} has the role {said!r}; traces.student_role names the student's")
    return role


def _message(value: Any, index: int, options: ReadOptions) -> dict[str, Any]:
    """The fields of one Message."""
    if type(value) is not dict:
        if not isinstance(value, Mapping):
            raise TraceError(f"message {index} is {kind(value)}, not an object")
        value = dict(value)
    said, role = value.get("role"), _role(value, index, options.student_role)
    content = value.get("content")
    fields: dict[str, Any] = {"role": role}
    if content is not None:
        fields["content"] = content if type(content) is str else text_of(content, index)
    if said == role and value.keys() <= _PLAIN:
        answered = value.get("tool_call_id")
        if type(answered) is str:
            fields["tool_call_id"] = answered
        if answered is None or type(answered) is str:
            return fields
    extra = {} if value.keys() <= _USED else {k: v for k, v in value.items() if k not in _USED}
    if not _ALL_TOKEN_KEYS.isdisjoint(value):
        tokens, kept = _tokens(value, index, options)
        fields |= tokens
        extra |= kept
    if "logprobs" in fields and isinstance(value.get("logprobs_of"), Mapping):
        fields["logprobs_of"] = dict(value["logprobs_of"])
    elif value.get("logprobs_of") is not None:
        extra["logprobs_of"] = value["logprobs_of"]
    if calls := _calls(value, index):
        fields["tool_calls"] = calls
    for key in _TEXTS:
        if (text := value.get(key)) is not None:
            (fields if type(text) is str else extra)[key] = text
    if (reasoning := value.get("reasoning_content") or value.get("reasoning")) is not None:
        if isinstance(reasoning, str):
            fields["reasoning"] = reasoning
        else:
            extra["reasoning"] = reasoning
    if value.get(GIVEN):
        fields["given"] = True
    if (
        role == "user"
        and said != "user"
        and isinstance(said, str)
        and "name" not in fields
        and said.lower() not in ALIASES
    ):
        fields["name"] = said
    if extra:
        check_plain(extra, f"message {index}")
        fields["extra"] = extra
    return fields


def _tokens(value: Mapping[str, Any], index: int, options: ReadOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Token fields, and what of them is kept in `extra`."""
    tokens: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for field, names in TOKEN_KEYS.items():
        name = next((n for n in names if value.get(n)), None)
        if name is not None and options.token_ids == "use":
            tokens[field] = _logprobs(value[name], index) if field == "logprobs" else value[name]
    if "token_ids" not in tokens and tokens.pop("logprobs", None) is not None:
        # log-probabilities of a server that keeps its token ids to itself cannot be paired with anything
        kept = {n: value[n] for n in TOKEN_KEYS["logprobs"] if n in value}
    logprobs = tokens.get("logprobs")
    if logprobs is not None and any(p is None for p in logprobs):
        # ids are still the truth; a list with holes is none
        kept["logprobs"] = tokens.pop("logprobs")
    return tokens, kept


def _logprobs(value: Any, index: int) -> list[Any]:
    """A list of numbers, or OpenAI's `{"content": [{"token", "logprob"}]}`."""
    items = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(items, list):
        raise TraceError(f"message {index}: log-probabilities of type {kind(value)}")
    return [i["logprob"] if isinstance(i, Mapping) and "logprob" in i else i for i in items]


def text_of(value: Any, index: int) -> str | None:
    """Content as text: a string, null, an object (its JSON), or a list of text parts.

    Raises:
        TraceError: a part that is no text, e.g. an image.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, list):
        raise TraceError(f"message {index} has content of type {kind(value)}")
    texts = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        text = part.get("text", part.get("content")) if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            shown = part.get("type") if isinstance(part, Mapping) else kind(part)
            raise TraceError(f"message {index} has a content part of type {shown!r}; only text can be rendered")
        texts.append(text)
    return "".join(texts)


def _calls(value: dict[str, Any], index: int) -> list[dict[str, Any]]:
    raw = value.get("tool_calls")
    if raw is None and isinstance(value.get("function_call"), Mapping):
        raw = [{"function": value["function_call"]}]
    if not raw:
        return []
    if not isinstance(raw, list):
        raise TraceError(f"message {index}: `tool_calls` must be a list, not {kind(raw)}")
    return [_call(c, index) for c in raw]


def _call(value: Any, index: int) -> dict[str, Any]:
    """The fields of one ToolCall."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if isinstance(function, str):
        function = {"name": function, "arguments": value.get("arguments")}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TraceError(f"message {index}: a tool call without a function name")
    arguments = function.get("arguments")
    call_id = value.get("id")
    fields: dict[str, Any] = {"name": function["name"], "arguments_raw": arguments}
    if not isinstance(arguments, str):
        fields["arguments_raw"] = json.dumps(arguments or {}, ensure_ascii=False)
        fields["arguments_form"] = "object"
    if isinstance(call_id, str):
        fields["id"] = call_id
    return fields


def parse_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Tool schemas from a list (wrapped, bare or names only), a dict by name, or a JSON string of one of those.

    Raises:
        TraceError: a string that is no JSON, or a schema without a name.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise TraceError("`tools` is a string that is not JSON") from None
    if isinstance(value, Mapping):
        value = [{"name": k, **v} if isinstance(v, Mapping) and "name" not in v else v for k, v in value.items()]
    if not isinstance(value, list):
        raise TraceError(f"`tools` must be a list, not {kind(value)}")
    return tuple(_tool(t) for item in value for t in _declared(item))


def _declared(item: Any) -> list[Any]:
    """Gemini wraps its schemas once more."""
    for key in ("function_declarations", "functionDeclarations"):
        if isinstance(item, Mapping) and isinstance(item.get(key), list):
            return list(item[key])
    return [item]


def _tool(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"type": "function", "function": {"name": value}}
    if isinstance(value, Mapping):
        function = value.get("function", value)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            rest = {k: v for k, v in value.items() if k not in ("type", "function")} if "function" in value else {}
            return {"type": "function", "function": _schema(function), **rest}
        if "function" not in value and isinstance(value.get("type"), str) and value["type"] != "function":
            # a tool the server itself runs, e.g. `web_search`: its type is all the name it has
            return {
                "type": "function",
                "function": {"name": value["type"]},
                **{k: v for k, v in value.items() if k != "type"},
            }
    raise TraceError(f"a tool schema without a name: {json.dumps(value, default=str)[:80]}")


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """One function's schema; what other APIs call `input_schema`, or list argument by argument, becomes `parameters`."""
    made = {k: v for k, v in function.items() if k != "type"}
    for other in ("input_schema", "inputSchema", "parameters_json_schema"):
        if "parameters" not in made and isinstance(made.get(other), Mapping):
            made["parameters"] = made.pop(other)
    listed = made.get("parameters")
    if isinstance(listed, list):
        named = [p for p in listed if isinstance(p, Mapping) and isinstance(p.get("name"), str)]
        if len(named) < len(listed):
            raise TraceError(f"tool {made['name']!r} lists a parameter without a name")
        made["parameters"] = {
            "type": "object",
            "properties": {p["name"]: {k: v for k, v in p.items() if k not in ("name", "required")} for p in named},
            "required": [p["name"] for p in named if p.get("required") is True],
        }
    return made


def trace_id(record: Mapping[str, Any], source: Source) -> str:
    """The record's own id, else the file's stem and the place in it."""
    for key in ("trace_id", "id"):
        if isinstance(record.get(key), str | int) and str(record[key]):
            return str(record[key])
    return f"{Path(source.file.rpartition('!/')[2] or source.file).stem}#{_place(source.position)}"


def _place(position: str) -> str:
    """`line 7` → `7`; `line 7, value 2` → `7.2`."""
    return ".".join(part.rpartition(" ")[2] for part in position.split(", "))


def number(value: Any) -> float | None:
    """A finite number, or a string that is one; else None."""
    try:
        found = float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
    return found if found is not None and math.isfinite(found) else None


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Refuse values that could be read but not be written back.

    Raises:
        DepthError: nested more than `MAX_DEPTH` levels.
    """
    if depth > MAX_DEPTH:
        raise DepthError(f"{where}: nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for item in value.values():
            if isinstance(item, dict | list):
                check_plain(item, where, depth + 1)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list):
                check_plain(item, where, depth + 1)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(
        type(value), type(value).__name__
    )

"""Convert a source's messages into ours; every format uses this module.

A message arrives as a mapping in the form of an OpenAI chat message; adapters of other formats create such mappings.
The following variants, all seen in real files, are handled here: `arguments` as a string (kept byte for byte), an
object, or null; call ids that are missing or reused (they are never used as keys: results are paired by order); content
that is null, empty or a list of parts; the legacy `function_call`; thinking next to the content or in it; roles under
other names; token ids and log-probabilities under the names of vLLM, NeMo Gym and ATIF. Unknown keys are kept in
`extra`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.calls import call_fields
from hintdistill.traces.guards import GIVEN_BECAUSE
from hintdistill.traces.masks import masked_by
from hintdistill.traces.options import ReadOptions
from hintdistill.traces.reasoning import KEYS, is_thinking, reasoning_of, thinking_text
from hintdistill.traces.schemas import TOOLS
from hintdistill.traces.unread import note_unread
from hintdistill.traces.values import check_plain, kind, number

_ROLES = ("system", "developer", "user", "assistant", "tool")
_PLAIN = frozenset({"role", "content", "tool_call_id"})
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
"""Key with which an adapter marks a turn as given; the value is True or the reason. No JSON key can be equal to it."""
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
    *KEYS,
    GIVEN,
}
_REASONING = frozenset(KEYS)


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
    """Build a Trace from messages in chat form.

    Args:
        record: the record of the source; keys not in `known` go to `extra`.
        messages: mappings in the form of OpenAI chat messages.
        source: the record's position.
        options: how to read.
        known: keys of `record` that were already used.
        tools: schemas in any form that `parse_tools` takes; if empty, `options.tools` is used.
        suffix: distinguishes several traces of one record, e.g. `/2`.
        reward: a number, or a string that contains one; other values are kept in `extra`.
        task_id, model: as in the record.

    Raises:
        TraceError: there are no messages, or one is malformed; the text says which one and why.
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
    options_said = extra.pop("chat_template_kwargs", None)
    if options_said is not None and not isinstance(options_said, dict):
        extra["chat_template_kwargs"] = options_said
    fields: dict[str, Any] = {
        "id": trace_id(record, source) + suffix,
        "messages": [_message(m, i, options) for i, m in enumerate(messages)],
        "tools": TOOLS.parse(tools) if tools else (),
        "reward": found,
        "task_id": str(task_id) if task_id is not None else None,
        "model": model if isinstance(model, str) and model else None,
        "source": source,
        "template": options_said if isinstance(options_said, dict) else {},
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
        raise TraceError(f"message {index} has the role {said!r}; traces.student_role sets the student's role")
    return role


def _message(value: Any, index: int, options: ReadOptions) -> dict[str, Any]:
    """Return the fields of one Message."""
    if (plain := _plain(value, index, options)) is not None:
        return plain
    if type(value) is not dict:
        if not isinstance(value, Mapping):
            raise TraceError(f"message {index} is {kind(value)}, not an object")
        value = dict(value)
    said, role = value.get("role"), _role(value, index, options.student_role)
    content = value.get("content")
    if type(content) is list and any(map(is_thinking, content)):
        value = _without_thinking(value, content)
        content = value["content"]
    fields: dict[str, Any] = {"role": role}
    if content is not None:
        fields["content"] = content if type(content) is str else text_of(content, index)
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
    if not _REASONING.isdisjoint(value):
        text, kept = reasoning_of(value)
        extra |= kept
        if text is not None:
            fields["reasoning"] = text
    if role == "assistant":
        _add_given(fields, extra, value)
    if (
        role == "user"
        and said != "user"
        and isinstance(said, str)
        and "name" not in fields
        and said.lower() not in ALIASES
    ):
        fields["name"] = said
    if not fields.get("content") and extra:
        note_unread(fields, value, extra)
    if extra:
        check_plain(extra, f"message {index}")
        fields["extra"] = extra
    return fields


_CALLING = frozenset({"role", "content", "tool_calls"})


def _plain(value: Any, index: int, options: ReadOptions) -> dict[str, Any] | None:
    """Return the fields of a message that contains only text or calls, as most do; None for any other message."""
    if type(value) is not dict or options.student_role != "assistant":
        return None
    role, content = value.get("role"), value.get("content")
    if role not in _ROLES or (content is not None and type(content) is not str):
        return None
    fields = {"role": role} if content is None else {"role": role, "content": content}
    if _PLAIN.issuperset(value):
        answered = value.get("tool_call_id")
        if answered is not None:
            fields["tool_call_id"] = answered
        return fields if answered is None or type(answered) is str else None
    calls = value.get("tool_calls")
    if _CALLING.issuperset(value) and type(calls) is list:
        return {**fields, "tool_calls": [call_fields(c, index) for c in calls]}
    return None


def _without_thinking(value: Mapping[str, Any], content: list[Any]) -> dict[str, Any]:
    """Return the message with the thinking moved from its content parts to its own field; unreadable thinking is
    kept."""
    thought = [part for part in content if is_thinking(part)]
    text = thinking_text(thought)
    rest = [part for part in content if not is_thinking(part)]
    made = {**value, "content": rest or None}
    if text:
        made["reasoning_content"] = "\n".join(t for t in (value.get("reasoning_content"), text) if isinstance(t, str))
    if hidden := [part for part in thought if not thinking_text(part)]:
        made["hidden_thinking"] = hidden
    return made


def _add_given(fields: dict[str, Any], extra: dict[str, Any], value: Mapping[Any, Any]) -> None:
    """Mark a turn that serves only as context, with the reason if one is known."""
    reason = value.get(GIVEN) or (masked_by(extra) if extra else None)
    if reason:
        fields["given"] = True
        if isinstance(reason, str):
            extra[GIVEN_BECAUSE] = reason


def _tokens(value: Mapping[str, Any], index: int, options: ReadOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the token fields, and the related values to keep in `extra`."""
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
    """Return the log-probabilities from a list of numbers, or from OpenAI's `{"content": [{"token", "logprob"}]}`."""
    items = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(items, list):
        raise TraceError(f"message {index}: log-probabilities of type {kind(value)}")
    return [i["logprob"] if isinstance(i, Mapping) and "logprob" in i else i for i in items]


def text_of(value: Any, index: int) -> str | None:
    """Return content as text; it may be a string, null, an object (returned as JSON), or a list of text parts.

    Raises:
        TraceError: a part is not text, e.g. an image.
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
        if not isinstance(text, str) or _is_no_text(part):
            shown = part.get("type") if isinstance(part, Mapping) else kind(part)
            raise TraceError(f"message {index} has a content part of type {shown!r}; only text can be rendered")
        texts.append(text)
    return "".join(texts)


def _is_no_text(part: Mapping[str, Any]) -> bool:
    """Return whether a part with words in it is not part of the message's text: a call, a result."""
    what = part.get("type")
    return isinstance(what, str) and ("tool" in what or "call" in what or "function" in what)


def _calls(value: dict[str, Any], index: int) -> list[dict[str, Any]]:
    raw = value.get("tool_calls")
    if raw is None and isinstance(value.get("function_call"), Mapping):
        raw = [{"function": value["function_call"]}]
    if not raw:
        return []
    if not isinstance(raw, list):
        raise TraceError(f"message {index}: `tool_calls` must be a list, not {kind(raw)}")
    return [call_fields(c, index) for c in raw]


def trace_id(record: Mapping[str, Any], source: Source) -> str:
    """Return the record's own id, else the file's stem and the position in the file."""
    for key in ("trace_id", "id"):
        if isinstance(record.get(key), str | int) and str(record[key]):
            return str(record[key])
    return f"{Path(source.file.rpartition('!/')[2] or source.file).stem}#{_place(source.position)}"


def _place(position: str) -> str:
    """Shorten a position: `line 7` → `7`; `line 7, value 2` → `7.2`."""
    return ".".join(part.rpartition(" ")[2] for part in position.split(", "))

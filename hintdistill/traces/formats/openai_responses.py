"""OpenAI Responses items: `message`, `reasoning`, `function_call`, `function_call_output`, grouped into turns.

One turn of the model is what it said between two things it read: reasoning, text and any number of calls, parallel calls
together. A record is `{input, output}` or `{input, response: {output}}`, or a bare list of items. Assistant turns in
`input` were given, not produced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.formats.openai_chat import given
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.repeats import chains
from hintdistill.traces.turns import TOKEN_KEYS, build_trace, text_of
from hintdistill.traces.values import kind, number

NAME = "openai_responses"
SCOPE: Literal["record"] = "record"
CALLS = True
"""Each record repeats the conversation so far; see `repeats.py`."""
ITEM_TYPES = (
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
)
CALL_TYPES = {"function_call": "arguments", "custom_tool_call": "input"}
OUTPUTS = (
    "function_call_output",
    "custom_tool_call_output",
)


def fits(value: Any) -> bool:
    """A list of items, or an object with one as the output of a response."""
    if isinstance(value, list):
        return _items(value) and any(isinstance(i, dict) and i.get("type") in ITEM_TYPES for i in value)
    if not isinstance(value, dict):
        return False
    response = value.get("response")
    body = response if isinstance(response, dict) else value
    return _items(body.get("output")) and ("input" in value or body.get("object") == "response" or "input" in body)


def _items(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    flat = [i for item in value for i in (item if isinstance(item, list) else [item])]
    return bool(flat) and all(isinstance(i, dict) and ("type" in i or "role" in i) for i in flat)


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """The one trace of a record. Raises TraceError."""
    value = record.value
    if isinstance(value, list):
        value = {"output": value}
    response = value["response"] if isinstance(value.get("response"), dict) else value
    yield from conversation(value, value.get("input", response.get("input")), response, record.source, options)


def conversation(
    record: Mapping[str, Any],
    read: Any,
    response: Mapping[str, Any],
    source: Source,
    options: ReadOptions,
    *,
    reward: Any = None,
    task_id: Any = None,
    used: frozenset[str] = frozenset(),
    tools: Any = None,
    prompted: bool = False,
) -> Iterator[Trace]:
    """The traces of what was read and answered; an output of lists (aviary) is folded into its longest chains.

    Args:
        record: the whole record; its keys outside `used` are kept.
        read: `input`: a string, or a list of items or messages.
        response: the response body: `output`, `instructions`, `tools`, `model`.
        source, options: as for every format.
        reward, task_id, used, tools: what the caller knows of the record.
        prompted: whether assistant turns in `read` belong to the task, not to the run.

    Raises:
        TraceError: no output, or a malformed item.
    """
    output = response.get("output")
    if not isinstance(output, list):
        raise TraceError(f"`output` is {kind(output)}, not a list of items")
    # a list of lists: an environment's transitions, each the state so far and what was done in it
    nested = bool(output) and all(isinstance(i, list) for i in output)
    runs = chains([turns(i) for i in output]) if nested else [turns(output)]
    schemas = tools or response.get("tools") or record.get("tools")
    instructions = record.get("instructions") or response.get("instructions")
    prefix = [{"role": "system", "content": instructions}] if isinstance(instructions, str) else []
    keep = {k: v for k, v in record.items() if k != "response"}
    keep |= {f"response.{k}": v for k, v in response.items() if v not in (None, [], {}) and response is not record}
    known = set(used) | {"input", "output", "tools", "instructions", "model", "id", "object", "reward", "task_id"}
    known |= {"response.output", "response.tools", "response.instructions", "response.model"}
    # an id of the response is the run's own only where the record has none
    for n, run in enumerate(runs, 1):
        read_messages = turns(read) if read is not None else []
        read_messages = given(read_messages) if prompted else read_messages
        yield build_trace(
            keep,
            [*prefix, *read_messages, *run],
            source,
            options,
            known=known,
            tools=schemas,
            suffix=f"/{n}" if len(runs) > 1 else "",
            reward=reward if reward is not None else number(record.get("reward")),
            task_id=task_id if task_id is not None else record.get("task_id"),
            model=response.get("model") or record.get("model"),
        )


def turns(items: Any) -> list[dict[str, Any]]:
    """Items to chat messages, the items of one model turn in one assistant message.

    Raises:
        TraceError: something that is neither a message nor a known item.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list):
        raise TraceError(f"items must be a list or a string, not {kind(items)}")
    out: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise TraceError(f"item {index} is {kind(item)}, not an object")
        if (item.get("type", "message") == "message" and item.get("role") != "assistant") or item.get(
            "type"
        ) in OUTPUTS:
            turn = None
            out.append(_read(item, index))
            continue
        if turn is None or _starts_anew(turn, items, index):
            turn = {"role": "assistant", "content": None, "tool_calls": []}
            out.append(turn)
        _add(turn, item, index)
    return out


def _read(item: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Something the model read: a message of somebody else, or a call's result."""
    if item.get("type") not in OUTPUTS:
        rest = {k: v for k, v in item.items() if k not in ("type", "status") and v is not None}
        return {**rest, "role": item.get("role"), "content": text_of(item.get("content"), index)}
    rest = {k: v for k, v in item.items() if k in ("id", "status", "is_error") and v is not None}
    return {"role": "tool", "content": text_of(item.get("output"), index), "tool_call_id": item.get("call_id"), **rest}


def _starts_anew(turn: Mapping[str, Any], items: list[Any], index: int) -> bool:
    """Whether an item opens another turn although nothing was read in between: a second text, or a second list of ids."""
    item = items[index]
    if any(item.get(n) for n in TOKEN_KEYS["token_ids"]) and any(turn.get(n) for n in TOKEN_KEYS["token_ids"]):
        return True
    if turn["tool_calls"] or not turn["content"]:
        return False  # calls wait for their results, whatever is noted beside them
    after = next((i for i in items[index:] if not (isinstance(i, Mapping) and i.get("type") == "reasoning")), None)
    if not isinstance(after, Mapping) or after.get("type", "message") != "message" or after.get("role") != "assistant":
        return False
    return bool(text_of(_texts(after.get("content")), index))


def _add(turn: dict[str, Any], item: Mapping[str, Any], index: int) -> None:
    what = item.get("type", "message")
    for names in TOKEN_KEYS.values():
        for name in names:
            if item.get(name):
                turn[name] = item[name]
    if what == "message":
        turn["content"] = (turn["content"] or "") + (text_of(_texts(item.get("content")), index) or "")
        if item.get("id"):
            turn.setdefault("id", item["id"])
    elif what == "reasoning":
        text = _reasoning(item, index)
        turn["reasoning_content"] = "\n".join(t for t in (turn.get("reasoning_content"), text) if t)
        if item.get("encrypted_content"):
            turn["encrypted_reasoning"] = item["encrypted_content"]
    elif what in tuple(CALL_TYPES):
        call = {
            "id": item.get("call_id") or item.get("id"),
            "name": item.get("name"),
            "arguments": item.get(CALL_TYPES[what]),
        }
        turn["tool_calls"].append(call)
    else:
        # calls of tools the server runs itself (`web_search_call`, …): nothing the student wrote as a call of ours
        turn.setdefault("server_items", []).append(dict(item))


def _texts(content: Any) -> Any:
    """A refusal is what the model said, too."""
    if not isinstance(content, list):
        return content
    return [p.get("refusal") if isinstance(p, Mapping) and "refusal" in p else p for p in content]


def _reasoning(item: Mapping[str, Any], index: int) -> str:
    """Thinking stands in `content`, in `summary`, or nowhere readable."""
    for key in ("content", "summary"):
        if item.get(key):
            return text_of(item[key], index) or ""
    return ""

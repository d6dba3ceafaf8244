"""OpenAI Responses items: `message`, `reasoning`, `function_call`, `function_call_output`, grouped into turns.

One turn of the model is its output between two inputs: reasoning, text and any number of calls; parallel calls belong
to one turn. A record is `{input, output}` or `{input, response: {output}}`, or a bare list of items. Assistant turns in
`input` count as given, because this call did not produce them.
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
from hintdistill.traces.unread import HOSTED, UNSEEN
from hintdistill.traces.values import as_text, kind, number, result_text

NAME = "openai_responses"
SCOPE: Literal["record"] = "record"
CALLS = True
"""Each record repeats the conversation so far; see `repeats.py`."""
OWN_TYPES = (
    "reasoning",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "computer_call",
    "computer_call_output",
    "mcp_call",
    "mcp_list_tools",
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "tool_search_call",
)
"""Types of items that only this API has. Other types that end in `_call` and `_output` are read in the same way."""
ITEM_TYPES = ("message", *OWN_TYPES)
RESULTS = ("output", "outputs", "result", "results", "error")
"""Keys that hold the result of a call that a server ran."""
DOING = ("action", "operation", "queries", "code")
"""Keys that hold the action of a built-in tool's call."""
BESIDE = ("mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "ghost_snapshot")
"""Items that are neither output of the student nor messages that it read."""


def fits(value: Any) -> bool:
    """Return whether the record is a list of items, or an object with one as the output of a response."""
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
    """Yield the one trace of a record. Raises TraceError."""
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
    """Yield the traces of one input and output; an output of several lists (aviary) is folded into its longest chains.

    Args:
        record: the whole record; keys not in `used` are kept.
        read: the value of `input`: a string, or a list of items or messages.
        response: the response body: `output`, `instructions`, `tools`, `model`.
        source, options: as for every format.
        reward, task_id, used, tools: values from the record that the caller already knows.
        prompted: whether assistant turns in `read` belong to the task rather than to the run.

    Raises:
        TraceError: there is no output, or an item is malformed.
    """
    output = response.get("output")
    if not isinstance(output, list):
        raise TraceError(f"`output` is {kind(output)}, not a list of items")
    # a list of lists: an environment's transitions, each the state so far and what was done in it
    nested = bool(output) and all(isinstance(i, list) for i in output)
    runs = chains([turns(i) for i in output]) if nested else [turns(output)]
    schemas = tools or response.get("tools") or record.get("tools")
    schemas = (
        [*(schemas if isinstance(schemas, list) else []), *_listed_tools(output)]
        if isinstance(schemas, list | None)
        else schemas
    )
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


def _listed_tools(items: list[Any]) -> list[Any]:
    """Return the schemas that an MCP server listed; the student saw them."""
    listing = [i for i in items if isinstance(i, Mapping) and i.get("type") == "mcp_list_tools"]
    return [t for i in listing if isinstance(i.get("tools"), list) for t in i["tools"]]


def turns(items: Any) -> list[dict[str, Any]]:
    """Convert items to chat messages; the items of one model turn become one assistant message.

    Raises:
        TraceError: an element is neither a message nor a known item.
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
        what = item.get("type", "message")
        if (what == "message" and item.get("role") != "assistant") or _is_output(what):
            turn = None
            out.append(_read(item, index))
            continue
        if turn is None or _starts_anew(turn, items, index):
            turn = {"role": "assistant", "content": None, "tool_calls": []}
            out.append(turn)
        _add(turn, item, index)
        if _is_call(what) and (result := _inner_result(item)) is not None:
            out.append(result)
            turn = None
    return [m for m in out if _says_something(m)]


def _says_something(message: Mapping[str, Any]) -> bool:
    """Return whether a message has content, unlike an empty turn that was opened only by an item whose result is a
    separate message."""
    opened = message.keys() <= {"role", "content", "tool_calls"} and message.get("role") == "assistant"
    return not opened or message.get("content") is not None or bool(message.get("tool_calls"))


def _is_output(what: Any) -> bool:
    return isinstance(what, str) and what.endswith("_output")


def _is_call(what: Any) -> bool:
    return isinstance(what, str) and what.endswith("_call")


def _inner_result(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the result of a call that a server ran, if the call itself contains it."""
    found = next((item[k] for k in RESULTS if item.get(k) not in (None, [], {})), None)
    if found is None or item.get("type") in CALL_TYPES:
        return None
    return {"role": "tool", "content": result_text(found), "tool_call_id": item.get("call_id") or item.get("id")}


CALL_TYPES = ("function_call", "custom_tool_call")


def _read(item: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Convert an input of the model: a message from someone else, or a call's result."""
    if not _is_output(item.get("type")):
        rest = {k: v for k, v in item.items() if k not in ("type", "status") and v is not None}
        return {**rest, "role": item.get("role"), "content": text_of(item.get("content"), index)}
    rest = {k: v for k, v in item.items() if k in ("id", "status", "is_error") and v is not None}
    return {"role": "tool", "content": _output(item), "tool_call_id": item.get("call_id"), **rest}


def _output(item: Mapping[str, Any]) -> str | None:
    """Return a tool's answer; an object without a known key is returned whole."""
    known = next((item[k] for k in ("output", "result", "results", "content") if item.get(k) is not None), None)
    if known is not None:
        return result_text(known)
    rest = {k: v for k, v in item.items() if k not in ("type", "id", "call_id", "status", "output") and v is not None}
    return as_text(rest) if rest else None


def _starts_anew(turn: Mapping[str, Any], items: list[Any], index: int) -> bool:
    """Return whether an item starts another turn although no input came in between: a second text, or a second list of
    ids."""
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
    elif _is_call(what):
        _add_call(turn, item, str(what))
    else:
        turn.setdefault("server_items", []).append(dict(item))
        if what not in BESIDE:
            turn[UNSEEN] = ", ".join(w for w in (turn.get(UNSEEN), str(what)) if w)


def _add_call(turn: dict[str, Any], item: Mapping[str, Any], what: str) -> None:
    """Add a call of any tool: one of the caller's, a built-in one, or one that the server itself ran."""
    name = item.get("name") or what.removesuffix("_call")
    call_id = item.get("call_id") or item.get("id")
    skipped = (
        "type",
        "id",
        "call_id",
        "name",
        "status",
        "approval_request_id",
        "agent",
        "server_label",
        *RESULTS,
        *_TOKENS,
    )
    rest = {k: v for k, v in item.items() if k not in skipped or (k in RESULTS and what in CALL_TYPES)}
    if what not in CALL_TYPES and "arguments" not in rest and "input" not in rest:
        done = next((rest[k] for k in DOING if isinstance(rest.get(k), Mapping)), None)
        rest = {"arguments": done if done is not None else rest}
    turn["tool_calls"].append({**rest, "id": call_id, "name": name})
    if what not in CALL_TYPES:
        turn.setdefault(HOSTED, []).append(str(name))
    if what not in CALL_TYPES and "call_id" not in item and _inner_result(item) is None:
        # a server ran it and kept the result to itself: what the student read next is not known
        turn[UNSEEN] = ", ".join(w for w in (turn.get(UNSEEN), what) if w)


_TOKENS = frozenset(name for names in TOKEN_KEYS.values() for name in names)


def _texts(content: Any) -> Any:
    """Return the texts of an item; a refusal is also output of the model."""
    if not isinstance(content, list):
        return content
    return [p.get("refusal") if isinstance(p, Mapping) and "refusal" in p else p for p in content]


def _reasoning(item: Mapping[str, Any], index: int) -> str:
    """Return the reasoning from `content` or `summary`; it is empty if neither is readable."""
    for key in ("content", "summary"):
        if item.get(key):
            return text_of(item[key], index) or ""
    return ""

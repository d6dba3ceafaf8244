"""Amazon Bedrock Converse: requests with content blocks `{text}`, `{toolUse}`, `{toolResult}`, and their answers.

A record is a request with its answer's `output`, `{request, response}`, or a line of Bedrock's invocation log. Each
block has a single key that identifies its type, as in the service's model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.formats import anthropic
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace
from hintdistill.traces.values import kind, listed, mapping

NAME = "bedrock"
SCOPE: Literal["record"] = "record"
CALLS = True
"""Each record repeats the conversation so far; see `repeats.py`."""
KEYS = frozenset({"toolUse", "toolResult", "reasoningContent", "guardContent", "cachePoint"})
MARKS = frozenset({"modelId", "toolConfig", "inferenceConfig", "additionalModelRequestFields", "stopReason"})


def fits(value: Any) -> bool:
    """Return whether the record is a request or an answer whose messages contain such blocks."""
    if not isinstance(value, dict):
        return False
    request, answer = _sides(value)
    messages, output = request.get("messages"), _output(answer)
    said = [*(messages if type(messages) is list else ()), *(() if output is None else (output,))]
    # every record of every file is asked this: a first message of plain text says no
    if not said or type(said[0]) is not dict or type(said[0].get("content")) is not list:
        return False
    blocks = [b for m in said if isinstance(m, dict) and isinstance(m.get("content"), list) for b in m["content"]]
    if not blocks or not all(isinstance(b, dict) and "type" not in b for b in blocks):
        return False
    return any(KEYS & b.keys() for b in blocks) or (
        all(b.keys() == {"text"} for b in blocks) and (bool(MARKS & request.keys()) or output is not None)
    )


def _sides(value: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the request and the answer, whether they are side by side, wrapped, or as in the invocation log."""
    logged_in, logged_out = mapping(value.get("input")), mapping(value.get("output"))
    if isinstance(logged_in.get("inputBodyJson"), Mapping):
        return {"modelId": value.get("modelId"), **logged_in["inputBodyJson"]}, mapping(
            logged_out.get("outputBodyJson")
        )
    request, answer = value.get("request"), value.get("response")
    request = request if isinstance(request, Mapping) else value
    return request, answer if isinstance(answer, Mapping) else value


def _output(answer: Mapping[str, Any]) -> Any:
    return mapping(answer.get("output")).get("message")


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a record. Raises TraceError."""
    value = record.value
    request, answer = _sides(value)
    messages: list[dict[str, Any]] = []
    if told := [
        b["text"] for b in listed(request.get("system")) if isinstance(b, Mapping) and isinstance(b.get("text"), str)
    ]:
        messages.append({"role": "system", "content": "".join(told)})
    said = [*listed(request.get("messages")), *([_output(answer)] if _output(answer) is not None else [])]
    for index, message in enumerate(said):
        if not isinstance(message, Mapping):
            raise TraceError(f"message {index} is {kind(message)}, not an object")
        blocks = [b for block in listed(message.get("content")) for b in _block(block, index)]
        messages += anthropic.split({**message, "content": blocks}, index)
    tools = [
        t["toolSpec"]
        for t in listed(mapping(request.get("toolConfig")).get("tools"))
        if isinstance(t, Mapping) and "toolSpec" in t
    ]
    used = ("messages", "system", "toolConfig", "output")
    beside = {"" if request is value else "request.": request, "" if answer is value else "response.": answer}
    kept = {f"{sign}{k}": v for sign, side in beside.items() for k, v in side.items() if k not in used}
    head = {k: v for k, v in value.items() if k not in ("input", "output", "request", "response", *used)}
    yield build_trace(
        {**kept, **head},
        messages,
        record.source,
        options,
        known={"id", "trace_id", "task_id", "reward", "input", "output", "request", "response", "modelId"},
        tools=[_schema(t) for t in tools],
        reward=value.get("reward"),
        task_id=value.get("task_id"),
        model=request.get("modelId"),
    )


def _schema(spec: Any) -> Any:
    """Return a tool's specification; its schema is wrapped once more than usual."""
    if not isinstance(spec, Mapping):
        return spec
    schema = mapping(spec.get("inputSchema")).get("json")
    return {k: v for k, v in spec.items() if k != "inputSchema"} | (
        {"parameters": schema} if isinstance(schema, Mapping) else {}
    )


def _block(block: Any, index: int) -> list[dict[str, Any]]:
    """Return one block in the form that `anthropic.split` takes. Raises TraceError if it is not text, e.g. an image."""
    if not isinstance(block, Mapping):
        raise TraceError(f"message {index} has a block that is {kind(block)}, not an object")
    use, result, thought = block.get("toolUse"), block.get("toolResult"), block.get("reasoningContent")
    if isinstance(use, Mapping):
        rest = {k: v for k, v in use.items() if k not in ("toolUseId", "type")}
        return [{**rest, "type": "tool_use", "id": use.get("toolUseId")}]
    if isinstance(result, Mapping):
        made = {
            "type": "tool_result",
            "tool_use_id": result.get("toolUseId"),
            "content": _answered(result.get("content")),
            "status": result.get("status"),
        }
        return [{**made, **({"is_error": True} if result.get("status") == "error" else {})}]
    if isinstance(thought, Mapping):
        text = mapping(thought.get("reasoningText")).get("text")
        return [
            {"type": "thinking", "thinking": text}
            if isinstance(text, str)
            else {"type": "redacted_thinking", **thought}
        ]
    if isinstance(block.get("text"), str):
        return [{"type": "text", "text": block["text"]}]
    if block.keys() <= {"cachePoint"}:
        return []
    guard = mapping(mapping(block.get("guardContent")).get("text")).get("text")
    if isinstance(guard, str):
        return [{"type": "text", "text": guard}]
    raise TraceError(
        f"message {index} has a block of {', '.join(map(repr, block)) or 'nothing'}; only text can be rendered"
    )


def _answered(content: Any) -> Any:
    """Return a result's blocks as text; JSON is serialised, and media are replaced by their name."""
    if not isinstance(content, list):
        return content
    return [
        part
        if isinstance(part, Mapping) and ("text" in part or "json" in part)
        else {"type": f"{next(iter(part), 'part')} file"}
        for part in content
        if isinstance(part, Mapping)
    ]

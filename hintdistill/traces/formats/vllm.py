"""Logs of single calls: a request's messages with the response's choices, as returned by vLLM and every
OpenAI-compatible server.

With `return_token_ids` the body contains `prompt_token_ids` and, per choice, `token_ids`, which are used verbatim. A
record is a bare response body (whose context is known only by its ids), `{request, response}`, or a log that puts the
request's messages next to the response (OpenHands, LiteLLM). Each call repeats the conversation so far; `repeats.py`
trains each turn only once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.formats.openai_chat import loads
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace
from hintdistill.traces.values import kind

NAME = "vllm"
SCOPE: Literal["record"] = "record"
CALLS = True
"""Each record repeats the conversation so far; see `repeats.py`."""
REQUESTS = ("request", "body", "input", "request_body", "inputs", "kwargs", "params", "parameters", "payload", "data")
PROMPTS = ("messages", "prompt", "input", "inputs")
"""Keys of a request that hold its input: messages, or one text."""
RESPONSES = ("response", "output", "response_body", "outputs", "result", "completion", "response_obj")


def fits(value: Any) -> bool:
    """Return whether the record has choices with a message or token ids, at the top level or in a response."""
    return isinstance(value, dict) and _parts(value) is not None


def _choices(value: Any) -> bool:
    choices = value.get("choices") if type(value) is dict else None
    return type(choices) is list and bool(choices) and isinstance(choices[0], dict) and "message" in choices[0]


def _parts(value: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return the request and the response body; the record itself if it is one of them."""
    response = value if _choices(value) else next((value[k] for k in RESPONSES if _choices(value.get(k))), None)
    if response is None:
        return None
    held = (value[k] for k in REQUESTS if isinstance(value.get(k), dict) and value[k] is not response)
    request = next((r for r in held if _asked(r)[0] is not None), value)
    return request, response


def _asked(request: Mapping[str, Any]) -> tuple[Any, str]:
    """Return a request's input and its key; None if it has no input."""
    for key in PROMPTS:
        found = loads(request.get(key))
        if isinstance(found, list) and all(isinstance(m, dict) for m in found):
            return found, key
        if isinstance(found, str) and found:
            return [{"role": "user", "content": found}], key
    return None, "messages"


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield one trace per choice. Raises TraceError."""
    value = record.value
    parts = _parts(value)
    if parts is None:
        raise TraceError("no `choices` with a message in the record or its response")
    request, response = parts
    read, asked_under = _asked(request)
    if read is None and request.get("messages") is not None:
        raise TraceError(f"`messages` is {kind(request['messages'])}, not a list of messages")
    read = [] if read is None else read
    known = {
        "choices",
        "prompt_token_ids",
        "messages",
        "tools",
        "id",
        "trace_id",
        "model",
        "task_id",
    }
    kept = (
        {k: v for k, v in request.items() if k not in ("tools", "model", asked_under, *RESPONSES)}
        if request is not value
        else {}
    )
    said = {k: v for k, v in response.items() if k not in ("choices", "prompt_token_ids", "model")}
    extra = {
        **value,
        **({"request_options": kept} if kept else {}),
        **({"response_body": said} if response is not value else {}),
    }
    used = {k for k in (*REQUESTS, *RESPONSES) if value.get(k) is request or value.get(k) is response}
    used |= {asked_under} if request is value else set()
    choices = response["choices"]
    for n, choice in enumerate(choices, 1):
        yield build_trace(
            extra,
            [*read, _answer(choice, response, n)],
            record.source,
            options,
            known=known | used,
            tools=request.get("tools"),
            suffix=f"/{n}" if len(choices) > 1 else "",
            reward=value.get("reward"),
            task_id=value.get("task_id"),
            model=response.get("model") or request.get("model"),
        )


def _answer(choice: Any, response: Mapping[str, Any], n: int) -> dict[str, Any]:
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
        raise TraceError(f"choice {n} is {kind(choice)} without a message")
    message = {k: v for k, v in choice["message"].items() if v is not None}
    message.setdefault("role", "assistant")
    for key in ("finish_reason", "stop_reason"):
        if choice.get(key) is not None:
            message[key] = choice[key]
    ids = choice.get("token_ids") or message.get("token_ids") or response.get("token_ids")
    prompt = choice.get("prompt_token_ids") or response.get("prompt_token_ids")
    if ids:
        message |= {"token_ids": ids, "prompt_token_ids": prompt or None}
    if choice.get("logprobs"):
        message["logprobs"] = choice["logprobs"]
    return message

"""Record every call of a client of the openai package, synchronous or not, streamed or not.

Token ids and log-probabilities are recorded if the server returns them. vLLM does so on request: `ask_ids=True` adds
`return_token_ids` and `logprobs` to every chat completion.
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, TypeVar

from hintdistill.recording.jsonable import jsonable
from hintdistill.recording.sink import TraceSink

Client = TypeVar("Client")
KNOWN_RESPONSES = 256
"""Number of responses whose items are remembered for `previous_response_id`."""


def record_openai(
    client: Client, sink: TraceSink, *, ask_ids: bool = False, about: Mapping[str, Any] | None = None
) -> Client:
    """Record the chat completions and responses of a client, and return it.

    Args:
        client: an `OpenAI` or `AsyncOpenAI` object; its methods `create` are replaced.
        ask_ids: request token ids and log-probabilities; only for servers that know `return_token_ids`.
        about: further fields of every record: `task_id`, `reward`, ...
    """
    recorder = _Recorder(sink, dict(about or {}))
    for path, asked, record in (
        (("chat", "completions"), recorder.asking if ask_ids else _as_it_is, recorder.chat),
        (("responses",), _as_it_is, recorder.response),
    ):
        owner: Any = client
        for name in path:
            owner = getattr(owner, name, None)
        if owner is not None:
            owner.create = _recorded(owner.create, asked, record, sink)
    return client


def _as_it_is(options: dict[str, Any]) -> dict[str, Any]:
    return options


def _recorded(
    create: Callable[..., Any],
    asked: Callable[[dict[str, Any]], dict[str, Any]],
    record: Callable[[Any, Any], None],
    sink: TraceSink,
) -> Callable[..., Any]:
    """Wrap `create` so that its input and output are recorded. Its own errors reach the caller; errors of the recorder
    do not."""

    def begin(options: dict[str, Any]) -> Any:
        try:
            # a copy: the agent goes on writing into its list of messages
            return jsonable(options)
        except Exception as error:
            sink.failed(error)
            return None

    def end(request: Any, answer: Any) -> None:
        if request is None:
            return
        try:
            record(request, answer)
        except Exception as error:
            sink.failed(error)

    def taken(request: Any, answer: Any) -> Any:
        if request is None or not request.get("stream"):
            end(request, answer)
            return answer
        return (_AsyncStream if hasattr(answer, "__aiter__") else _Stream)(answer, functools.partial(end, request))

    if inspect.iscoroutinefunction(inspect.unwrap(create)):

        @functools.wraps(create)
        async def later(*args: Any, **options: Any) -> Any:
            options = asked(options)
            request = begin(options)
            return taken(request, await create(*args, **options))

        return later

    @functools.wraps(create)
    def now(*args: Any, **options: Any) -> Any:
        options = asked(options)
        request = begin(options)
        return taken(request, create(*args, **options))

    return now


class _Recorder:
    """Make records from requests and answers."""

    def __init__(self, sink: TraceSink, about: dict[str, Any]) -> None:
        self.sink, self.about = sink, about
        self._items: OrderedDict[str, list[Any]] = OrderedDict()

    def asking(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a chat completion with the request for ids and log-probabilities added."""
        body = {"return_token_ids": True, **(options.get("extra_body") or {})}
        return {"logprobs": True, **options, "extra_body": body}

    def chat(self, request: dict[str, Any], answer: Any) -> None:
        """Record one chat completion, or the chunks of one."""
        response = _from_chunks(answer) if isinstance(answer, list) else jsonable(answer)
        self.sink.call({**self.about, "request": request, "response": response})

    def response(self, request: dict[str, Any], answer: Any) -> None:
        """Record one response, or the events of one; items behind `previous_response_id` are inserted."""
        if isinstance(answer, list):
            answer = next((e.response for e in reversed(answer) if hasattr(e, "response")), None)
            if answer is None:
                raise ValueError("the stream of a response did not contain the response")
        body = jsonable(answer)
        given = request.get("input", [])
        read = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        before = request.get("previous_response_id")
        if before is not None:
            if before not in self._items:
                raise ValueError(f"the response {before}, which this one continues, was not recorded")
            read = [*self._items[before], *read]
        self._items[body["id"]] = [*read, *body.get("output", [])]
        while len(self._items) > KNOWN_RESPONSES:
            self._items.popitem(last=False)
        body.setdefault("instructions", request.get("instructions"))
        body.setdefault("tools", request.get("tools"))
        self.sink.call({**self.about, "input": read, "response": {k: v for k, v in body.items() if v is not None}})


class _Stream:
    """Pass on the chunks of a stream and keep them; at the end of the stream they are recorded."""

    def __init__(self, stream: Any, end: Callable[[Any], None]) -> None:
        self._stream, self._end, self._chunks = stream, end, list[Any]()

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._stream:
            self._chunks.append(chunk)
            yield chunk
        self._end(self._chunks)

    def __next__(self) -> Any:
        try:
            chunk = next(self._stream)
        except StopIteration:
            self._end(self._chunks)
            raise
        self._chunks.append(chunk)
        return chunk

    def __enter__(self) -> _Stream:
        self._stream.__enter__()
        return self

    def __exit__(self, *why: Any) -> None:
        self._stream.__exit__(*why)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _AsyncStream:
    """Do the same for an asynchronous stream."""

    def __init__(self, stream: Any, end: Callable[[Any], None]) -> None:
        self._stream, self._end, self._chunks = stream, end, list[Any]()

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for chunk in self._stream:
            self._chunks.append(chunk)
            yield chunk
        self._end(self._chunks)

    async def __anext__(self) -> Any:
        try:
            chunk = await self._stream.__anext__()
        except StopAsyncIteration:
            self._end(self._chunks)
            raise
        self._chunks.append(chunk)
        return chunk

    async def __aenter__(self) -> _AsyncStream:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *why: Any) -> None:
        await self._stream.__aexit__(*why)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _from_chunks(chunks: list[Any]) -> dict[str, Any]:
    """Return the chat completion that the chunks form together."""
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in map(jsonable, chunks):
        whole |= {k: v for k, v in chunk.items() if k not in ("choices", "object")}
        for part in chunk.get("choices", ()):
            choice = choices.setdefault(part.get("index", 0), {"message": {"role": "assistant"}})
            _add(choice, part)
    for choice in choices.values():
        calls = choice["message"].pop("tool_calls", None)
        if calls:
            choice["message"]["tool_calls"] = [calls[i] for i in sorted(calls)]
    return {**whole, "object": "chat.completion", "choices": [choices[i] for i in sorted(choices)]}


def _add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    message, delta = choice["message"], part.get("delta") or {}
    for key in ("content", "reasoning_content", "reasoning", "refusal"):
        if delta.get(key):
            message[key] = message.get(key, "") + delta[key]
    for call in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", {})
        mine = calls.setdefault(call.get("index", 0), {"type": "function", "function": {"name": "", "arguments": ""}})
        if call.get("id"):
            mine["id"] = call["id"]
        for key in ("name", "arguments"):
            mine["function"][key] += (call.get("function") or {}).get(key) or ""
    for key in ("token_ids", "prompt_token_ids"):
        if part.get(key):
            choice[key] = [*choice.get(key, ()), *part[key]]
    if (part.get("logprobs") or {}).get("content"):
        choice.setdefault("logprobs", {"content": []})["content"] += part["logprobs"]["content"]
    for key in ("finish_reason", "stop_reason"):
        if part.get(key) is not None:
            choice[key] = part[key]

"""A callback for LangChain and LangGraph. Needs the package `langchain-core`.

graph.invoke(state, config={"callbacks": [HintdistillCallback(TraceSink("traces"))]})
"""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from hintdistill.recording.jsonable import jsonable
from hintdistill.recording.sink import TraceSink
from hintdistill.traces.formats.observed import messages_in

OPTIONS = ("model", "model_name", "temperature", "top_p", "seed")


class HintdistillCallback(BaseCallbackHandler):
    """Write a record at the end of every call of a chat model."""

    raise_error = False

    def __init__(self, sink: TraceSink) -> None:
        self.sink = sink
        self._lock, self._asked = threading.Lock(), dict[UUID, list[dict[str, Any]]]()

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Store the input of a chat model. Never raises."""
        try:
            options = kwargs.get("invocation_params") or {}
            known = {k: options[k] for k in OPTIONS if options.get(k) is not None}
            known["tools"] = options.get("tools") or options.get("functions") or []
            asked = [{"messages": [_chat(m) for m in batch], **jsonable(known)} for batch in messages]
            with self._lock:
                self._asked[run_id] = asked
        except Exception as error:
            self.sink.failed(error)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Record the model's answer. Never raises."""
        with self._lock:
            asked = self._asked.pop(run_id, None)
        if asked is None:
            return
        try:
            for request, generations in zip(asked, response.generations, strict=True):
                choices = [_choice(g) for g in generations]
                self.sink.call({"request": request, "response": {"choices": choices}})
        except Exception as error:
            self.sink.failed(error)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Discard the stored input, because there is no answer to record."""
        with self._lock:
            self._asked.pop(run_id, None)


def _chat(message: BaseMessage) -> dict[str, Any]:
    """Return a chat message. Raises ValueError if it is not one."""
    made = messages_in([jsonable(message)], "user")
    if len(made) != 1:
        raise ValueError(f"a message of type {message.type!r} cannot be read")
    return made[0]


def _choice(generation: Any) -> dict[str, Any]:
    message, told = generation.message, generation.message.response_metadata or {}
    choice: dict[str, Any] = {"message": _chat(message)}
    if told.get("finish_reason"):
        choice["finish_reason"] = told["finish_reason"]
    if told.get("logprobs"):
        choice["logprobs"] = jsonable(told["logprobs"])
    for key in ("token_ids", "prompt_token_ids"):
        if told.get(key):
            choice[key] = told[key]
    return choice

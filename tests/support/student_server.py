"""An OpenAI-compatible server of the shipped student: what agents' packages are tested against. Greedy, token ids on request."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from conftest import STUDENT
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from support.agent_server import free_port

import hintdistill as hd
from hintdistill.agents.conversation import conversation
from hintdistill.core.scores import ScoreRequest
from hintdistill.rollouts.parsing import parse_hermes
from hintdistill.rollouts.sampling import Sampler, SamplingOptions


class Student:
    """Answers a request with the student's own next step."""

    def __init__(self) -> None:
        self.loaded = hd.load_engine(str(STUDENT), device="cpu", dtype="float32")
        options = SamplingOptions(temperature=0.0, max_new_tokens=96)
        self.sampler = Sampler(self.loaded.engine, self.loaded.renderer, options)
        self.lock = threading.Lock()

    def say(self, messages: Any, tools: Any) -> tuple[list[int], list[int], Any, list[float]]:
        """Context ids, sampled ids, the message, and the log-probabilities of its tokens."""
        with self.lock:
            trace = conversation(messages, tools)
            renderer = self.loaded.renderer
            context = renderer.encode(renderer.render(trace.messages, trace.tools, header=True))
            ids = list(map(int, self.sampler.generate([context], seed=0)[0]))
            text = renderer.decode(ids).removesuffix(renderer.tokenizer.eos_token)
            whole = np.array([*context, *ids], np.int64)
            (scores,) = self.loaded.engine.score([ScoreRequest(whole, len(context), len(whole))], 1)
            return context, ids, parse_hermes(text), scores.sampled.tolist()


def create_app(student: Student) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def chat(asked: dict[str, Any]) -> Any:
        context, ids, said, logprobs = student.say(asked["messages"], asked.get("tools"))
        calls = [
            {"id": f"call_{n}", "type": "function", "function": {"name": c.name, "arguments": c.arguments_raw}}
            for n, c in enumerate(said.tool_calls)
        ]
        message = {"role": "assistant", "content": said.content, **({"tool_calls": calls} if calls else {})}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        if asked.get("logprobs"):
            texts = student.loaded.renderer.token_texts(ids)
            content = [
                {"token": t, "logprob": p, "bytes": None, "top_logprobs": []}
                for t, p in zip(texts, logprobs, strict=True)
            ]
            choice["logprobs"] = {"content": content, "refusal": None}
        if asked.get("return_token_ids"):
            choice["token_ids"] = ids
        head = {"id": "chatcmpl-1", "created": 1, "model": asked.get("model", "student")}
        if asked.get("stream"):
            return StreamingResponse(_events(head, choice, context, asked), media_type="text/event-stream")
        usage = {"prompt_tokens": len(context), "completion_tokens": len(ids), "total_tokens": len(context) + len(ids)}
        body = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        return {**body, **({"prompt_token_ids": context} if asked.get("return_token_ids") else {})}

    @app.post("/v1/responses")
    def responses(asked: dict[str, Any]) -> Any:
        given = asked["input"]
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        head = [{"role": "system", "content": asked["instructions"]}] if asked.get("instructions") else []
        _, _, said, _ = student.say({"input": [*head, *items], "output": []}, asked.get("tools") or None)
        output: list[dict[str, Any]] = []
        if said.content:
            part = {"type": "output_text", "text": said.content, "annotations": []}
            output.append({"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]})
        output += [
            {
                "id": f"f{n}",
                "type": "function_call",
                "call_id": f"c{time.monotonic_ns()}",
                "name": c.name,
                "arguments": c.arguments_raw,
                "status": "completed",
            }
            for n, c in enumerate(said.tool_calls)
        ]
        return {
            "id": f"resp_{time.monotonic_ns()}",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": "student",
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": asked.get("tools") or [],
            "instructions": asked.get("instructions"),
        }

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error)}}, 500)

    return app


def _events(head: dict[str, Any], choice: dict[str, Any], context: list[int], asked: dict[str, Any]) -> Any:
    """The answer in three chunks: its beginning, its rest, its end."""
    message = choice["message"]
    calls = [{**c, "index": n} for n, c in enumerate(message.get("tool_calls", ()))]
    for half in range(2):
        delta: dict[str, Any] = {"role": "assistant"} if half == 0 else {}
        if message["content"]:
            at = len(message["content"]) // 2
            delta["content"] = message["content"][:at] if half == 0 else message["content"][at:]
        if calls:
            delta["tool_calls"] = [_half(c, half) for c in calls]
        part: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        for key in ("token_ids",):
            if key in choice:
                at = len(choice[key]) // 2
                part[key] = choice[key][:at] if half == 0 else choice[key][at:]
        if "logprobs" in choice:
            content = choice["logprobs"]["content"]
            at = len(content) // 2
            part["logprobs"] = {"content": content[:at] if half == 0 else content[at:], "refusal": None}
        ids = {"prompt_token_ids": context} if half == 0 and asked.get("return_token_ids") else {}
        yield f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [part], **ids})}\n\n"
    end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    yield f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [end]})}\n\ndata: [DONE]\n\n"


def _half(call: dict[str, Any], half: int) -> dict[str, Any]:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    at = len(arguments) // 2
    if half == 0:
        return {
            "index": call["index"],
            "id": call["id"],
            "type": "function",
            "function": {"name": name, "arguments": arguments[:at]},
        }
    return {"index": call["index"], "function": {"arguments": arguments[at:]}}


@contextmanager
def running() -> Any:
    """The server in a thread; gives its base URL and the student."""
    student, port = Student(), free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(student), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}/v1", student
    finally:
        server.should_exit = True
        thread.join()

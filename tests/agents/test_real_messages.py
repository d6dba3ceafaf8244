"""The message classes of the openai and anthropic packages, as an agent holds them, are read as they are."""

from __future__ import annotations

import json

import pytest
from conftest import STUDENT

import hintdistill as hd
from hintdistill.agents.conversation import conversation

pytestmark = pytest.mark.agents


@pytest.fixture(scope="module")
def loaded():
    return hd.load_engine(str(STUDENT), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def case(unknown_tool_case):
    trace, _, _ = unknown_tool_case
    return trace, trace.step(0).tool_calls[0]


def check(trace, case, messages, loaded, tools):
    read = conversation(messages, tools)
    assert [m.role for m in read.messages] == ["system", "user", "assistant", "tool"]
    assert read.step(0).tool_calls[0].name == case[1].name
    found = hd.diagnose(messages, tools=tools, engine=loaded, twins=False)
    assert found.findings[0].quote == case[1].name and found.findings[0].hints
    json.dumps(found.to_dict(), allow_nan=False)
    return read


def test_openai_chat_messages(case, loaded):
    from openai.types.chat import ChatCompletion, ChatCompletionMessage

    trace, wrong = case
    answer = ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "student",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "tool_calls",
                    "logprobs": None,
                    "message": {
                        "role": "assistant",
                        "content": None,
                        "refusal": None,
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": wrong.name, "arguments": wrong.arguments_raw},
                            }
                        ],
                    },
                }
            ],
        }
    )
    message = answer.choices[0].message
    assert isinstance(message, ChatCompletionMessage)
    messages = [
        *({"role": m.role, "content": m.content} for m in trace.before(0)),
        message,
        {"role": "tool", "tool_call_id": "1", "content": '{"error":"unknown tool"}'},
    ]
    read = check(trace, case, messages, loaded, list(trace.tools))
    assert read.step(0).tool_calls[0].arguments_raw == wrong.arguments_raw


def test_openai_responses_items(case, loaded):
    from openai.types.responses import ResponseFunctionToolCall, ResponseReasoningItem
    from openai.types.responses.response_input_item import FunctionCallOutput

    trace, wrong = case
    items = [
        *({"role": m.role, "content": m.content} for m in trace.before(0)),
        ResponseReasoningItem(id="rs", type="reasoning", summary=[]),
        ResponseFunctionToolCall(
            id="fc",
            call_id="1",
            name=wrong.name,
            arguments=wrong.arguments_raw,
            type="function_call",
            status="completed",
        ),
        FunctionCallOutput(call_id="1", output='{"error":"unknown tool"}', type="function_call_output"),
    ]
    flat = [{"type": "function", **t["function"]} for t in trace.tools]
    check(trace, case, items, loaded, flat)


def test_anthropic_messages(case, loaded):
    from anthropic.types import Message, TextBlock, ToolUseBlock, Usage

    trace, wrong = case
    system, user = trace.before(0)
    answer = Message(
        id="msg",
        type="message",
        role="assistant",
        model="student",
        stop_reason="tool_use",
        content=[
            TextBlock(type="text", text=""),
            ToolUseBlock(type="tool_use", id="1", name=wrong.name, input=json.loads(wrong.arguments_raw)),
        ],
        usage=Usage(input_tokens=1, output_tokens=1),
    )
    result = {"type": "tool_result", "tool_use_id": "1", "content": '{"error":"unknown tool"}', "is_error": True}
    tools = [{"name": t["function"]["name"], "input_schema": t["function"]["parameters"]} for t in trace.tools]
    for said in (answer, {"role": "assistant", "content": answer.content}):
        request = {
            "system": system.content,
            "messages": [{"role": "user", "content": user.content}, said, {"role": "user", "content": [result]}],
        }
        check(trace, case, request, loaded, tools)


def test_langchain_messages(case, loaded):
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

    trace, wrong = case
    system, user = trace.before(0)
    messages = [
        SystemMessage(system.content),
        HumanMessage(user.content),
        AIMessage("", tool_calls=[{"id": "1", "name": wrong.name, "args": json.loads(wrong.arguments_raw)}]),
        ToolMessage('{"error":"unknown tool"}', tool_call_id="1"),
    ]
    check(trace, case, messages, loaded, list(trace.tools))

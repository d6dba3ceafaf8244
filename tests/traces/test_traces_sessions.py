"""Formats that are spread over a file: coding agents' sessions, spans, Langfuse, LangSmith."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WEATHER
from test_traces_formats import shape

from hintdistill.core.types import Trace
from hintdistill.traces.options import Failure
from hintdistill.traces.reading import read_traces


@pytest.fixture
def read(tmp_path: Path):
    def get(value: Any, name: str = "t.json") -> list[Trace | Failure]:
        path = tmp_path / name
        path.write_text(
            "\n".join(map(json.dumps, value)) if name.endswith("l") else json.dumps(value), encoding="utf-8"
        )
        return list(read_traces([path]))

    return get


def line(
    uuid: str, parent: str | None, role: str, content: Any, answer: str | None = None, **more: Any
) -> dict[str, Any]:
    message = {"role": role, "content": content, **({"id": answer, "model": "m"} if answer else {})}
    return {
        "type": role,
        "uuid": uuid,
        "parentUuid": parent,
        "sessionId": "s",
        "isSidechain": False,
        "message": message,
        **more,
    }


def use(call_id: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "f", "input": {}}


def result(call_id: str) -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": call_id, "content": "r"}]


def test_claude_code_joins_an_answer_and_keeps_parallel_calls_together(read):
    lines = [
        {"type": "summary", "leafUuid": "x", "summary": "old"},
        line("1", None, "user", "q"),
        line("2", "1", "assistant", [{"type": "thinking", "thinking": "hm"}], "a1"),
        line("3", "2", "assistant", [use("c1")], "a1"),
        line("4", "3", "assistant", [use("c2")], "a1"),
        line("5", "3", "user", result("c1")),
        line("6", "4", "user", result("c2")),
        line("7", "6", "assistant", [{"type": "text", "text": "done"}], "a2"),
    ]
    (trace,) = read(lines, "s.jsonl")
    assert shape(trace) == ["user", "assistant f f", "tool", "tool", "assistant"]
    assert trace.step(0).reasoning == "hm" and trace.extra["skipped_lines"] == {"summary": 1}


def test_claude_code_rewinds_sidechains_and_compaction(read):
    lines = [
        line("1", None, "user", "q"),
        line("2", "1", "assistant", "a", "a1"),
        line("3", "2", "user", "wrong turn"),
        line("4", "3", "assistant", "b", "a2"),
        line("5", "2", "user", "right turn"),
        line("6", "5", "assistant", "c", "a3"),
        line("7", None, "user", "sub task", isSidechain=True, agentId="sub"),
        line("8", "7", "assistant", "d", "a4", isSidechain=True, agentId="sub"),
        {"type": "system", "subtype": "compact_boundary", "uuid": "9", "sessionId": "s"},
        line("10", "9", "user", "summary of all", isCompactSummary=True),
        line("11", "10", "assistant", "e", "a5"),
    ]
    traces = read(lines, "s.jsonl")
    assert [shape(t) for t in traces] == [
        ["user", "assistant", "user", "assistant"],
        ["user", "assistant*", "user", "assistant"],
        ["user", "assistant"],
        ["user", "assistant"],
    ]
    assert traces[2].extra["sidechain"] and len({t.id for t in traces}) == 4


def test_claude_code_lines_without_a_tree_are_in_order_and_odd_ones_are_failures(read):
    lines = [
        line("1", None, "user", "q"),
        {**line("2", None, "assistant", "x"), "message": "boom"},
        line("3", None, "assistant", "a", "a1"),
    ]
    failure, trace = read(lines, "s.jsonl")
    assert isinstance(failure, Failure) and "uuid 2" in str(failure.source) and shape(trace) == ["user", "assistant"]


def test_codex_contexts(read):
    def item(**payload):
        return {"timestamp": "t", "type": "response_item", "payload": payload}

    def text(role, words):
        return item(
            type="message",
            role=role,
            content=[{"type": "input_text" if role == "user" else "output_text", "text": words}],
        )

    lines = [
        {"type": "session_meta", "payload": {"id": "s", "cwd": "/x", "base_instructions": {"text": "be brief"}}},
        {"type": "turn_context", "payload": {"model": "m"}},
        text("user", "q"),
        {"type": "event_msg", "payload": {"type": "user_message"}},
        item(type="reasoning", summary=[{"text": "hm"}], content=None),
        item(type="function_call", name="shell", arguments='{"cmd": "ls"}', call_id="c"),
        item(type="function_call_output", call_id="c", output="a"),
        item(type="custom_tool_call", name="patch", input="*** Begin", call_id="d"),
        item(type="custom_tool_call_output", call_id="d", output="ok"),
        text("assistant", "done"),
        {"type": "compacted", "payload": {"message": "what was"}},
        text("user", "next"),
        text("assistant", "yes"),
    ]
    one, two = read(lines, "rollout.jsonl")
    assert shape(one) == ["system", "user", "assistant shell", "tool", "assistant patch", "tool", "assistant"]
    assert one.step(0).reasoning == "hm" and one.step(1).tool_calls[0].arguments_raw == "*** Begin"
    assert shape(two) == ["system", "user", "user", "assistant"] and (one.model, one.id, two.id) == ("m", "s/1", "s/2")


def span(
    span_id: str, start: int, attributes: dict[str, Any], parent: str | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "trace_id": "t",
        "span_id": span_id,
        "parent_span_id": parent,
        "start_time": start,
        "attributes": attributes,
        **more,
    }


def part(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "parts": list(parts)}


ASK = part("user", {"type": "text", "content": "q"})
CALL = part("assistant", {"type": "tool_call", "id": "c", "name": "f", "arguments": '{"x": 1}'})
SEEN = part("tool", {"type": "tool_call_response", "id": "c", "response": "r"})
DONE = part("assistant", {"type": "text", "content": "a"})


def chat(
    span_id: str, start: int, read: list[Any], said: list[Any], parent: str | None = None, **more: Any
) -> dict[str, Any]:
    own = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps(read),
        "gen_ai.output.messages": json.dumps(said),
        **more,
    }
    return span(span_id, start, own, parent)


def test_genai_spans_fold_into_one_conversation(read):
    told = json.dumps([{"type": "text", "content": "be brief"}])
    tools = json.dumps([{"type": "function", "name": "f", "parameters": {}}])
    agent = span(
        "0",
        0,
        {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.input.messages": json.dumps([ASK]),
            "gen_ai.output.messages": json.dumps([DONE]),
            "gen_ai.tool.definitions": tools,
        },
    )
    spans = [
        chat("2", 2, [ASK, CALL, SEEN], [DONE], "0", **{"gen_ai.system_instructions": told}),
        agent,
        chat("1", 1, [ASK], [CALL], "0", **{"gen_ai.system_instructions": told}),
    ]
    (trace,) = read(spans)
    assert shape(trace) == ["system", "user", "assistant f", "tool", "assistant"] and list(trace.tool_schemas) == ["f"]
    assert trace.step(0).tool_calls[0].arguments_raw == '{"x": 1}' and not trace.given_steps


def test_otlp_events_and_values(read):
    def typed(value):
        return (
            {"stringValue": value} if isinstance(value, str) else {"arrayValue": {"values": [typed(v) for v in value]}}
        )

    event = {
        "name": "gen_ai.client.inference.operation.details",
        "attributes": [
            {"key": "gen_ai.input.messages", "value": typed(json.dumps([ASK]))},
            {"key": "gen_ai.output.messages", "value": typed(json.dumps([DONE]))},
        ],
    }
    own = [
        {"key": "gen_ai.operation.name", "value": typed("chat")},
        {"key": "gen_ai.response.finish_reasons", "value": typed(["stop"])},
    ]
    flat = {"traceId": "t", "spanId": "1", "startTimeUnixNano": "1", "attributes": own, "events": [event]}
    (trace,) = read([{"resourceSpans": [{"scopeSpans": [{"spans": [flat]}]}]}], "otlp.jsonl")
    assert shape(trace) == ["user", "assistant"]


def test_one_event_per_message_and_bodies(read):
    events = [
        {"name": "gen_ai.system.message", "attributes": {"content": "s"}},
        {"name": "gen_ai.user.message", "attributes": {"content": "q"}},
        {
            "name": "gen_ai.choice",
            "attributes": {
                "message": json.dumps(
                    {
                        "content": None,
                        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                    }
                )
            },
        },
    ]
    (trace,) = read([span("1", 1, {"gen_ai.operation.name": "chat"}, events=events)])
    assert shape(trace) == ["system", "user", "assistant f"]
    body = {
        "input": {"messages": [{"role": "user", "content": "q"}]},
        "output": {"messages": [{"role": "assistant", "content": "a"}]},
    }
    (trace,) = read([span("1", 1, {"gen_ai.operation.name": "chat"}, span_events=[{"event_name": "x", "body": body}])])
    assert shape(trace) == ["user", "assistant"]


def test_openinference_flattened(read):
    prefix = "llm.input_messages"
    own = {
        "openinference.span.kind": "LLM",
        f"{prefix}.0.message.role": "user",
        f"{prefix}.0.message.content": "q",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "f",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"x":1}',
        "llm.tools.0.tool.json_schema": json.dumps(WEATHER),
    }
    later = {
        "openinference.span.kind": "LLM",
        f"{prefix}.0.message.role": "user",
        f"{prefix}.0.message.content": "q",
        f"{prefix}.2.message.role": "tool",
        f"{prefix}.2.message.content": "r",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "a",
    }
    (trace,) = read([span("1", 1, own), span("2", 2, later)])
    assert shape(trace) == ["user", "assistant f", "tool", "assistant"], (
        "the message without attributes is filled from the call before"
    )
    assert list(trace.tool_schemas) == ["get_weather"]


def test_traceloop_vercel_and_adk_attributes(read):
    loop = {
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "q",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "a",
    }
    vercel = {
        "ai.prompt.messages": json.dumps([{"role": "user", "content": [{"type": "text", "text": "q"}]}]),
        "ai.response.text": "so",
        "ai.response.toolCalls": json.dumps([{"toolCallId": "c", "toolName": "f", "input": "{}"}]),
    }
    adk = {
        "gcp.vertex.agent.llm_request": json.dumps(
            {
                "contents": [{"role": "user", "parts": [{"text": "q"}]}],
                "config": {"system_instruction": "s", "tools": [{"function_declarations": [{"name": "f"}]}]},
            }
        ),
        "gcp.vertex.agent.llm_response": json.dumps(
            {"content": {"role": "model", "parts": [{"function_call": {"name": "f", "args": {}}}]}}
        ),
    }
    expected = {
        "loop": ["user", "assistant"],
        "vercel": ["user", "assistant f"],
        "adk": ["system", "user", "assistant f"],
    }
    for name, own in {"loop": loop, "vercel": vercel, "adk": adk}.items():
        (trace,) = read([span("1", 1, own)], f"{name}.json")
        assert shape(trace) == expected[name], name


def test_a_turn_of_another_agent_is_given(read):
    handed = part("assistant", {"type": "tool_call", "id": "h", "name": "transfer", "arguments": {}})
    other = part("system", {"type": "text", "content": "you are the second"})
    first = chat("1", 1, [ASK], [handed])
    second = chat("2", 2, [other, ASK, handed, SEEN], [DONE])
    one, two = read([first, second])
    assert shape(one) == ["user", "assistant transfer"] and shape(two) == [
        "system",
        "user",
        "assistant transfer*",
        "tool",
        "assistant",
    ]


def test_spans_without_content_are_a_failure(read):
    (failure,) = read([span("1", 1, {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 3})])
    assert (
        isinstance(failure, Failure)
        and "trace t" in str(failure.source)
        and "content capture was off" in failure.message
    )


def twice(value: Any) -> str:
    return json.dumps(json.dumps(value))


def observation(
    key: str, start: str, read: Any, said: Any, kind: str = "GENERATION", parent: str | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "id": key,
        "type": kind,
        "startTime": start,
        "parentObservationId": parent,
        "input": read and twice(read),
        "output": said and twice(said),
        "metadata": "{}",
        **more,
    }


def test_langfuse(read):
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    call = {
        "role": "assistant",
        "content": "",
        "additional_kwargs": {
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        },
    }
    schema = {"role": "tool", "content": {"type": "function", "function": {"name": "f", "parameters": {}}}}
    seen = {"role": "tool", "content": "r", "tool_call_id": "c"}
    listed = [
        observation("2", "2", [user, call, seen, schema], answer, parent="0"),
        observation("0", "0", {"messages": [user]}, {"messages": [user, answer]}, "SPAN"),
        observation("1", "1", [user, schema], call, parent="0"),
    ]
    (trace,) = read(
        {"trace": {"id": "t", "name": "run", "scores": [{"name": "ok", "value": 1}]}, "observations": listed}
    )
    assert shape(trace) == ["user", "assistant f", "tool", "assistant"] and list(trace.tool_schemas) == ["f"]
    assert trace.extra["scores"] == [{"name": "ok", "value": 1}]


def test_langfuse_calls_that_only_show_what_is_new(read):
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"x": 1}}]}
    listed = [
        observation("1", "1", {"role": "user", "content": "q"}, use),
        observation("2", "2", {"x": 1}, {"content": [{"type": "text", "text": "r"}]}, "TOOL", name="f"),
        observation("3", "3", {"content": "role"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}),
    ]
    (trace,) = read({"trace": {"id": "t"}, "observations": listed})
    assert shape(trace) == ["user", "assistant f", "tool", "assistant"] and trace.messages[2].content == "r"


def test_langsmith_batches(read):
    post = {
        "id": "r",
        "trace_id": "t",
        "run_type": "llm",
        "dotted_order": "1",
        "start_time": "1",
        "inputs": {"messages": [{"role": "user", "content": "q"}]},
        "outputs": {},
        "extra": {"invocation_params": {"tools": [WEATHER]}, "metadata": {"ls_model_name": "m"}},
    }
    patch = {
        "id": "r",
        "trace_id": "t",
        "dotted_order": "1",
        "outputs": {"choices": [{"message": {"role": "assistant", "content": "a"}}]},
    }
    (trace,) = read({"post": [post], "patch": [patch]})
    assert shape(trace) == ["user", "assistant"] and (trace.model, list(trace.tool_schemas)) == ("m", ["get_weather"])
    generation = {
        "generations": [
            [
                {
                    "message": {
                        "id": ["langchain", "schema", "AIMessage"],
                        "kwargs": {"content": "", "tool_calls": [{"id": "c", "name": "f", "args": {}}]},
                    }
                }
            ]
        ]
    }
    inputs = {"messages": [[{"id": ["langchain", "schema", "HumanMessage"], "kwargs": {"content": "q"}}]]}
    (trace,) = read([{**post, "inputs": inputs, "outputs": generation}], "runs.jsonl")
    assert shape(trace) == ["user", "assistant f"]

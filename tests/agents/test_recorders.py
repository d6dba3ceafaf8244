"""Recorders with the real packages, against the shipped student behind a real local server: what is written is what was said."""

from __future__ import annotations

import asyncio
import warnings

import pytest
from support.student_server import running

from hintdistill.core.types import Trace
from hintdistill.recording.openai import record_openai
from hintdistill.recording.sink import RecordingWarning, TraceSink
from hintdistill.traces.reading import read_traces

pytestmark = pytest.mark.agents


@pytest.fixture(scope="module")
def student():
    with running() as served:
        yield served


@pytest.fixture(scope="module")
def task(unknown_tool_case):
    """The beginning of a conversation in which the student calls a tool that is not listed, its tools, and the call."""
    trace, _, _ = unknown_tool_case
    messages = [{"role": m.role, "content": m.content} for m in trace.before(0)]
    return messages, list(trace.tools), trace.step(0).tool_calls[0]


def read(folder):
    return [t for t in read_traces([folder]) if isinstance(t, Trace)]


def play(create, messages, tools, turns=2, **options):
    """A loop as agents have it; the messages afterwards."""
    messages = list(messages)
    for _ in range(turns):
        answer = create(model="student", messages=messages, tools=tools, **options)
        message = answer.choices[0].message
        messages.append(message)
        for call in message.tool_calls or ():
            error = f'{{"error":"unknown tool {call.function.name}"}}'
            messages.append({"role": "tool", "tool_call_id": call.id, "content": error})
        if not message.tool_calls:
            break
    return messages


def test_an_openai_client_is_recorded_with_ids_and_logprobs(student, task, tmp_path):
    from openai import OpenAI

    messages, tools, wrong = task
    sink = TraceSink(tmp_path)
    client = record_openai(OpenAI(base_url=student[0], api_key="x"), sink, ask_ids=True, about={"task_id": "t1"})
    said = play(client.chat.completions.create, messages, tools)
    (trace,) = read(tmp_path)
    assert sink.written == 2 and sink.lost == 0 and trace.task_id == "t1"
    assert (
        trace.step(0).tool_calls[0].name == wrong.name
        and trace.step(0).tool_calls[0].arguments_raw == wrong.arguments_raw
    )
    assert [m.role for m in trace.messages[:4]] == [m["role"] if isinstance(m, dict) else m.role for m in said[:4]]
    # the student rescored on its own ids is as sure of them as it was
    step = trace.step(0)
    assert not trace.given_steps and [bool(trace.step(k).token_ids) for k in range(len(trace.step_indices))] == [
        True,
        True,
    ]
    rendered = student[1].loaded.renderer.step(trace, 0)
    assert (
        rendered.fidelity == "ids" and rendered.step_ids == step.token_ids and len(step.logprobs) == len(step.token_ids)
    )
    assert trace.tool_schemas.keys() == {t["function"]["name"] for t in tools}


def test_streams_and_asynchronous_clients_are_recorded_alike(student, task, tmp_path):
    from openai import AsyncOpenAI, OpenAI

    messages, tools, wrong = task
    sink = TraceSink(tmp_path / "stream")
    client = record_openai(OpenAI(base_url=student[0], api_key="x"), sink, ask_ids=True)
    with client.chat.completions.create(model="student", messages=messages, tools=tools, stream=True) as stream:
        chunks = list(stream)
    assert len(chunks) == 3
    (streamed,) = read(tmp_path / "stream")
    sink = TraceSink(tmp_path / "async")
    client = record_openai(AsyncOpenAI(base_url=student[0], api_key="x"), sink, ask_ids=True)

    async def ask():
        await client.chat.completions.create(model="student", messages=messages, tools=tools)
        return [
            c
            async for c in await client.chat.completions.create(
                model="student", messages=messages, tools=tools, stream=True
            )
        ]

    assert len(asyncio.run(ask())) == 3 and sink.written == 2
    alone = [t.step(0) for t in (streamed, *read(tmp_path / "async"))]
    assert all(
        s.tool_calls[0].arguments_raw == wrong.arguments_raw and s.token_ids == alone[0].token_ids for s in alone
    )
    assert all(s.logprobs and len(s.logprobs) == len(s.token_ids) for s in alone)


def test_responses_that_go_on_from_one_another_are_whole(student, task, tmp_path):
    from openai import OpenAI

    messages, tools, wrong = task
    flat = [{"type": "function", **t["function"]} for t in tools]
    client = record_openai(OpenAI(base_url=student[0], api_key="x"), TraceSink(tmp_path))
    system, user = (m["content"] for m in messages)
    first = client.responses.create(model="student", instructions=system, input=user, tools=flat)
    call = first.output[0]
    assert call.type == "function_call" and call.name == wrong.name
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"error":"unknown tool"}'}
    client.responses.create(
        model="student", instructions=system, input=[result], previous_response_id=first.id, tools=flat
    )
    (trace,) = read(tmp_path)
    assert [m.role for m in trace.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert trace.step(0).tool_calls[0].name == wrong.name and not trace.given_steps


def test_the_agents_sdk_is_recorded_by_its_tracing(student, task, tmp_path):
    from agents import Agent, FunctionTool, ModelSettings, OpenAIChatCompletionsModel, Runner, set_trace_processors
    from openai import AsyncOpenAI

    from hintdistill.recording.openai_agents import HintdistillProcessor

    messages, tools, _ = task

    async def answer(context, arguments):
        return '{"error":"busy"}'

    functions = [
        FunctionTool(
            name=t["function"]["name"],
            description=t["function"].get("description", ""),
            params_json_schema=t["function"]["parameters"],
            on_invoke_tool=answer,
            strict_json_schema=False,
        )
        for t in tools
    ]
    sink = TraceSink(tmp_path)
    set_trace_processors([HintdistillProcessor(sink, functions)])
    model = OpenAIChatCompletionsModel(model="student", openai_client=AsyncOpenAI(base_url=student[0], api_key="x"))
    agent = Agent(
        name="a", instructions=messages[0]["content"], tools=functions, model=model, model_settings=ModelSettings()
    )
    # the student calls a tool that is not listed, which the SDK refuses: the call is recorded all the same
    try:
        asyncio.run(Runner.run(agent, messages[1]["content"], max_turns=2))
    except Exception as error:
        assert "Tool" in str(error) or "turns" in str(error)
    traces = read(tmp_path)
    assert sink.written >= 1 and sink.lost == 0 and traces
    assert (
        traces[0].messages[0].content == messages[0]["content"]
        and traces[0].messages[1].content == messages[1]["content"]
    )
    assert traces[0].step(0).tool_calls and traces[0].tool_schemas.keys() == {t["function"]["name"] for t in tools}


def test_langchain_and_langgraph_are_recorded_by_a_callback(student, task, tmp_path):
    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, MessagesState, StateGraph

    from hintdistill.recording.langchain import HintdistillCallback

    messages, tools, wrong = task
    sink = TraceSink(tmp_path)
    model = ChatOpenAI(model="student", base_url=student[0], api_key="x").bind_tools(tools)

    def agent(state):
        return {"messages": [model.invoke(state["messages"])]}

    def refuse(state):
        calls = state["messages"][-1].tool_calls
        return {
            "messages": [
                {"role": "tool", "tool_call_id": c["id"], "content": '{"error":"unknown tool"}'} for c in calls
            ]
        }

    def route(state):
        done = len(state["messages"]) > 4 or not state["messages"][-1].tool_calls
        return END if done else "tools"

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("tools", refuse)
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", route)
    graph.add_edge("tools", "agent")
    graph.compile().invoke({"messages": messages}, config={"callbacks": [HintdistillCallback(sink)]})
    (trace,) = read(tmp_path)
    assert sink.written == 2 and sink.lost == 0
    assert [m.role for m in trace.messages][:4] == ["system", "user", "assistant", "tool"]
    assert trace.step(0).tool_calls[0].name == wrong.name and trace.tool_schemas.keys() == {
        t["function"]["name"] for t in tools
    }


def test_a_failing_recorder_never_breaks_the_agent(student, task, tmp_path, monkeypatch):
    from langchain_openai import ChatOpenAI
    from openai import NotFoundError, OpenAI

    from hintdistill.recording.langchain import HintdistillCallback

    messages, tools, wrong = task

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    sink = TraceSink(tmp_path)
    monkeypatch.setattr(sink, "call", full)
    client = record_openai(OpenAI(base_url=student[0], api_key="x", max_retries=0), sink)
    with pytest.warns(RecordingWarning, match="No space left"):
        said = play(client.chat.completions.create, messages, tools, turns=1)
    assert said[2].tool_calls[0].function.name == wrong.name and sink.lost == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        another = TraceSink(tmp_path)
        monkeypatch.setattr(another, "call", full)
        chunks = record_openai(OpenAI(base_url=student[0], api_key="x"), another).chat.completions.create(
            model="student", messages=messages, tools=tools, stream=True
        )
        assert len(list(chunks)) == 3 and another.lost == 1
    model = ChatOpenAI(model="student", base_url=student[0], api_key="x").bind_tools(tools)
    assert model.invoke(messages, config={"callbacks": [HintdistillCallback(sink)]}).tool_calls and sink.lost == 2
    # the server's own errors are the agent's
    client = OpenAI(base_url=student[0] + "/nowhere", api_key="x", max_retries=0)
    with pytest.raises(NotFoundError):
        record_openai(client, TraceSink(tmp_path)).chat.completions.create(model="student", messages=messages)
    assert not list(tmp_path.iterdir())

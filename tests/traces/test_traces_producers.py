"""Readers of libraries whose traces are made here, by the libraries themselves, in an environment of their own.

`make test-producers` makes that environment; `HINTDISTILL_PRODUCERS` names its Python. The scripts run agents on scripted models:
a thought where the library has a place for it, two calls in one turn, a failing call, an answer.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from hintdistill.core.types import Trace
from hintdistill.traces.conservation import lost_of
from hintdistill.traces.options import Failure, Record
from hintdistill.traces.reading import Deduplicator, read_traces

pytestmark = pytest.mark.slow
PYTHON = Path(os.environ.get("HINTDISTILL_PRODUCERS", ROOT / ".venv-producers" / "bin" / "python"))
ASKED, FOUND, DONE = "Which train leaves Oslo?", "R61 at nine forty", "It is the R61."


def produced(tmp_path: Path, script: str, name: str, listed: bool = False) -> list[Trace]:
    """The traces of what a script writes to its first argument; every string of it is in them, or explained."""
    if not PYTHON.exists():
        pytest.skip(f"no environment of the producers at {PYTHON}; make test-producers makes it")
    path = tmp_path / f"{name}.json"
    done = subprocess.run([PYTHON, "-c", script, str(path)], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[Trace | Failure] = []
    lost = []

    def watch(record: Record, read_as: str, outcomes: list[Trace | Failure]) -> None:
        assert read_as == ("conversation" if listed else name), "a file that is a list of messages is a conversation"
        lost.extend(i for i in lost_of(record.value, outcomes, read_as) if i.reason is None)

    keep = Deduplicator()
    keep.watch = watch
    found = list(read_traces([path], keep=keep))
    assert not lost, lost
    traces = [o for o in found if isinstance(o, Trace)]
    assert len(traces) == len(found), found
    return traces


def shape(trace: Trace) -> list[str]:
    """Role and calls of each message."""
    return [" ".join([m.role, *(c.name for c in m.tool_calls)]) for m in trace.messages]


def check_run(trace: Trace) -> None:
    """The talk that every script has, as the student had it."""
    assert next(m.content for m in trace.messages if m.role == "user") == ASKED
    first = next(m for m in trace.messages if m.tool_calls)
    assert [c.arguments for c in first.tool_calls] == [{"origin": "Oslo"}, {"origin": "Bergen"}]
    results = [m for m in trace.messages if m.role == "tool"]
    assert [m.tool_call_id for m in results[:2]] == [c.id for c in first.tool_calls]
    assert FOUND in (results[0].content or "") and trace.messages[-1].content == DONE and not trace.given_steps


LANGGRAPH = """
import json, sys
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, messages_to_dict
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

@tool
def find_train(origin: str) -> str:
    "Finds trains."
    return "R61 at nine forty"

calls = [{"name": "find_train", "args": {"origin": o}, "id": "c" + o} for o in ("Oslo", "Bergen")]
model = GenericFakeChatModel(messages=iter([AIMessage("", tool_calls=calls), AIMessage("It is the R61.")]))
graph = StateGraph(MessagesState)
graph.add_node("agent", lambda s: {"messages": [model.invoke(s["messages"])]})
graph.add_node("tools", ToolNode([find_train]))
graph.add_edge(START, "agent"); graph.add_conditional_edges("agent", tools_condition); graph.add_edge("tools", "agent")
app = graph.compile(checkpointer=InMemorySaver())
config = {"configurable": {"thread_id": "thread-1"}}
app.invoke({"messages": [("user", "Which train leaves Oslo?")]}, config)
state = app.get_state(config)
forms = {
    "dumped": {"values": {"messages": [m.model_dump(mode="json") for m in state.values["messages"]]}, "config": config},
    "dicts": messages_to_dict(state.values["messages"]),
    "constructors": json.loads(dumps({"messages": state.values["messages"]})),
}
json.dump(FORM, open(sys.argv[1], "w"))
"""


@pytest.mark.parametrize("form", ["dumped", "dicts", "constructors"])
def test_langgraph(tmp_path, form):
    (trace,) = produced(tmp_path, LANGGRAPH.replace("FORM", f"forms[{form!r}]"), "langgraph", form == "dicts")
    assert shape(trace) == ["user", "assistant find_train find_train", "tool", "tool", "assistant"]
    check_run(trace)
    assert form != "dumped" or trace.id == "thread-1"


PYDANTIC_AI = """
import sys
from pathlib import Path
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel

turns = iter([
    [
        ThinkingPart("Look it up."),
        ToolCallPart("find_train", {"origin": "Oslo"}, "c1"),
        ToolCallPart("find_train", '{"origin": "Bergen"}', "c2"),
    ],
    [ToolCallPart("find_train", {"origin": "nowhere"}, "c3")],
    [TextPart("It is the R61.")],
])
agent = Agent(FunctionModel(lambda messages, info: ModelResponse(parts=next(turns))), instructions="Be brief.")

@agent.tool_plain
def find_train(origin: str) -> str:
    "Finds trains."
    if origin == "nowhere":
        raise ModelRetry("no such place")
    return "R61 at nine forty"

result = agent.run_sync("Which train leaves Oslo?")
Path(sys.argv[1]).write_bytes(result.all_messages_json())
"""


def test_pydantic_ai(tmp_path):
    (trace,) = produced(tmp_path, PYDANTIC_AI, "pydantic_ai", listed=True)
    check_run(trace)
    calls = [
        "system",
        "user",
        "assistant find_train find_train",
        "tool",
        "tool",
        "assistant find_train",
        "tool",
        "assistant",
    ]
    assert shape(trace) == calls and trace.messages[0].content == "Be brief."
    first = trace.messages[2]
    assert first.reasoning == "Look it up." and [c.arguments_form for c in first.tool_calls] == ["object", "string"]
    assert "no such place" in trace.messages[6].content


MLFLOW = """
import json, os, sys
os.environ |= {"MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
import mlflow
from mlflow.entities import SpanType
from mlflow.entities.trace_location import MlflowExperimentLocation
mlflow.set_tracking_uri("http://127.0.0.1:9")  # nothing answers there: the trace is taken on its way out
mlflow.tracing.set_destination(MlflowExperimentLocation("1"))

schema = {"type": "object", "properties": {"origin": {"type": "string"}}}
tools = [{"type": "function", "function": {"name": "find_train", "description": "Finds trains.", "parameters": schema}}]
functions = [{"name": "find_train", "arguments": json.dumps({"origin": o})} for o in ("Oslo", "Bergen")]
calls = [{"id": f"c{n}", "type": "function", "function": f} for n, f in enumerate(functions)]
answers = iter([{"role": "assistant", "content": None, "tool_calls": calls}, {"role": "assistant", "content": "It is the R61."}])

@mlflow.trace(name="model", span_type=SpanType.CHAT_MODEL)
def model(messages, tools):
    return {"model": "m", "choices": [{"index": 0, "message": next(answers)}]}

@mlflow.trace(name="find_train", span_type=SpanType.TOOL)
def find_train(origin):
    return "R61 at nine forty"

@mlflow.trace(name="agent", span_type=SpanType.AGENT)
def agent(question):
    messages = [{"role": "user", "content": question}]
    while True:
        said = model(list(messages), tools)["choices"][0]["message"]
        messages.append(said)
        if not said.get("tool_calls"):
            return said["content"]
        for call in said["tool_calls"]:
            result = find_train(**json.loads(call["function"]["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})

EXPORT
"""
MLFLOW_EXPORT = """
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.tracing.export import mlflow_v3
taken = []
manager = InMemoryTraceManager.get_instance()
pop = manager.pop_trace
def keep(trace_id):
    found = pop(trace_id)
    if found is not None:
        taken.append(found.trace)
    return found
manager.pop_trace = keep
agent("Which train leaves Oslo?")
open(sys.argv[1], "w").write(taken[0].to_json())
"""


def test_mlflow(tmp_path):
    (trace,) = produced(tmp_path, MLFLOW.replace("EXPORT", MLFLOW_EXPORT), "mlflow")
    assert shape(trace) == ["user", "assistant find_train find_train", "tool", "tool", "assistant"]
    check_run(trace)
    assert list(trace.tool_schemas) == ["find_train"] and trace.model == "m"


BEDROCK = """
import json, sys
import botocore.session
from botocore.validate import ParamValidator

service = botocore.session.get_session().get_service_model("bedrock-runtime")
operation = service.operation_model("Converse")
use = [{"toolUse": {"toolUseId": "c" + o, "name": "find_train", "input": {"origin": o}}} for o in ("Oslo", "Bergen")]
said = {"content": [{"text": "R61 at nine forty"}], "status": "success"}
result = [{"toolResult": {"toolUseId": "c" + o, **said}} for o in ("Oslo", "Bergen")]
schema = {"json": {"type": "object", "properties": {"origin": {"type": "string"}}}}
request = {
    "modelId": "m", "system": [{"text": "Be brief."}],
    "messages": [
        {"role": "user", "content": [{"text": "Which train leaves Oslo?"}]},
        {"role": "assistant", "content": [{"reasoningContent": {"reasoningText": {"text": "Look it up."}}}, *use]},
        {"role": "user", "content": result},
    ],
    "toolConfig": {"tools": [{"toolSpec": {"name": "find_train", "description": "Finds trains.", "inputSchema": schema}}]},
    "inferenceConfig": {"maxTokens": 100},
}
answer = {
    "output": {"message": {"role": "assistant", "content": [{"text": "It is the R61."}]}}, "stopReason": "end_turn",
    "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}, "metrics": {"latencyMs": 5},
}
for value, shape in ((request, operation.input_shape), (answer, operation.output_shape)):
    report = ParamValidator().validate(value, shape)
    assert not report.has_errors(), report.generate_report()
known = set(service.shape_for("ContentBlock").members)
assert {"text", "toolUse", "toolResult", "reasoningContent", "guardContent", "cachePoint"} <= known, known
records = {"wrapped": {"request": request, "response": answer}, "flat": {**request, **answer},
    "log": {"schemaType": "ModelInvocationLog", "operation": "Converse", "modelId": "m",
            "input": {"inputBodyJson": request}, "output": {"outputBodyJson": answer}}}
json.dump(FORM, open(sys.argv[1], "w"))
"""


@pytest.mark.parametrize("form", ["wrapped", "flat", "log"])
def test_bedrock_converse(tmp_path, form):
    """Requests and answers that botocore's model of the service takes for valid."""
    (trace,) = produced(tmp_path, BEDROCK.replace("FORM", f"records[{form!r}]"), "bedrock")
    assert shape(trace) == ["system", "user", "assistant find_train find_train", "tool", "tool", "assistant"]
    check_run(trace)
    assert trace.messages[2].reasoning == "Look it up." and trace.model == "m"
    assert (
        json.dumps(trace.tool_schemas["find_train"])
        == '{"type": "object", "properties": {"origin": {"type": "string"}}}'
    )

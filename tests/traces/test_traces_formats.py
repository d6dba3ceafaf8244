"""Each format on a minimal record written here: turns, calls, results, ids, schemas, rewards, and what is the student's."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import WEATHER

from hintdistill.core.errors import ConfigError
from hintdistill.core.types import Trace
from hintdistill.traces import registry
from hintdistill.traces.options import Failure, ReadOptions
from hintdistill.traces.reading import read_traces
from hintdistill.traces.registry import format_named, formats

IDS = {"prompt_token_ids": [1, 2, 3], "token_ids": [4, 5], "logprobs": [-0.5, -0.25]}


@pytest.fixture
def read(tmp_path: Path):
    def get(value: Any, name: str = "t.json", **options: Any) -> list[Trace | Failure]:
        path = tmp_path / name
        lines = name.endswith("l") and isinstance(value, list)
        path.write_text("\n".join(map(json.dumps, value)) if lines else json.dumps(value), encoding="utf-8")
        return list(read_traces([path], ReadOptions(**options)))

    return get


def shape(trace: Trace | Failure) -> list[str]:
    """`role:calls` of each message; a star marks what was given."""
    assert isinstance(trace, Trace), trace
    return [m.role + "".join(f" {c.name}" for c in m.tool_calls) + ("*" if m.given else "") for m in trace.messages]


def test_every_format_fulfils_the_protocol_and_has_its_own_name():
    names = [f.NAME for f in formats()]
    assert len(set(names)) == len(names) and all(isinstance(f, registry.TraceFormat) for f in formats())
    assert format_named("atif").SCOPE == "record"
    with pytest.raises(ConfigError, match=r"unknown trace format `openai_chta` \(did you mean `openai_chat`\?\)"):
        format_named("openai_chta")


def test_an_entry_point_adds_a_format_that_is_asked_first(monkeypatch, read):
    def made(record, options):
        from hintdistill.traces.formats import openai_chat

        yield openai_chat.parse(
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": record.value["mine"]}],
            record.source,
            options,
        )

    mine = SimpleNamespace(
        NAME="mine", SCOPE="record", fits=lambda value: isinstance(value, dict) and "mine" in value, traces=made
    )
    points = [SimpleNamespace(name="mine", value="pkg:mine", load=lambda: mine)]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: points if group == registry.ENTRY_POINTS else []
    )
    registry.FORMATS.refresh()
    try:
        assert formats()[0].NAME == "mine"
        (trace,) = read({"mine": "hello", "messages": []})
        assert trace.step(0).content == "hello"
        points[0].load = lambda: object()
        registry.FORMATS.refresh()
        with pytest.raises(ConfigError, match=r"mine \(pkg:mine\) lacks"):
            formats()
    finally:
        monkeypatch.undo()
        registry.FORMATS.refresh()


def test_a_format_can_be_forced(read):
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert shape(read(record, format="openai_chat")[0]) == ["user", "assistant"]
    (failure,) = read(record, format="native")
    assert failure.reason == "not_a_trace" and "hintdistill_trace" in failure.message


def test_prompt_and_completion_of_a_dataset(read):
    user, given, answer = ({"role": r, "content": r} for r in ("user", "assistant", "assistant"))
    tools = json.dumps([WEATHER])
    (trace,) = read([{"prompt": [user, given, user], "completion": [answer], "tools": tools}], "t.jsonl")
    assert shape(trace) == ["user", "assistant*", "user", "assistant"] and list(trace.tool_schemas) == ["get_weather"]
    (trace,) = read([{"prompt": [user], "chosen": [answer], "rejected": [answer]}], "t.jsonl")
    assert shape(trace) == ["user", "assistant"] and "rejected" in trace.extra


def test_tau_bench(read):
    (trace,) = read(
        [
            {
                "task_id": 3,
                "reward": 1.0,
                "trial": 0,
                "info": {},
                "traj": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            }
        ]
    )
    assert (trace.task_id, trace.reward, trace.extra) == ("3", 1.0, {"trial": 0, "info": {}})


def test_swe_agent_and_mini(read):
    demo = {"role": "assistant", "content": "demo", "is_demo": True}
    step = {
        "role": "assistant",
        "content": "look",
        "thought": "look",
        "action": "ls",
        "tool_calls": [{"function": {"name": "bash", "arguments": "{}"}, "id": "c", "type": "function"}],
    }
    answer = {"role": "tool", "content": "a.py", "tool_call_ids": ["c"]}
    run = {
        "history": [{"role": "system", "content": "s"}, demo, step, answer],
        "trajectory": [{"action": "ls"}],
        "info": {"exit_status": "submitted"},
    }
    (trace,) = read(run, "run.traj")
    assert shape(trace) == ["system", "assistant*", "assistant bash", "tool"]
    assert trace.messages[3].tool_call_id == "c" and trace.extra["info"] == {"exit_status": "submitted"}
    mini = {
        "trajectory_format": "mini-swe-agent-1.1",
        "instance_id": "i",
        "info": {},
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    }
    (trace,) = read(mini, "mini.traj.json")
    assert (shape(trace), trace.task_id) == (["user", "assistant"], "i")


def test_sharegpt_keeps_the_bytes_of_a_call(read):
    call = '{"name": "get_weather", "arguments": {"city":  "Paris"}}'
    record = {
        "system": "s",
        "tools": json.dumps([WEATHER["function"]]),
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "a"},
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "broken'},
        ],
    }
    (trace,) = read([record])
    assert shape(trace) == ["system", "user", "assistant get_weather", "tool", "assistant", "user", "assistant"]
    assert trace.step(0).tool_calls[0].arguments_raw == '{"city":  "Paris"}'
    assert trace.step(2).content == '{"name": "broken'


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


OUTPUT = [
    item("function_call", call_id="c", name="f", arguments="{}"),
    item("function_call_output", call_id="c", output="r"),
    item("message", role="assistant", content=[{"type": "output_text", "text": "a"}]),
]


def test_responses(read):
    request = {
        "input": [{"role": "user", "content": "q"}],
        "instructions": "be brief",
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
    }
    (trace,) = read([{**request, "response": {"id": "r", "output": OUTPUT, "model": "m", "object": "response"}}])
    assert shape(trace) == ["system", "user", "assistant f", "tool", "assistant"]
    assert (trace.model, list(trace.tool_schemas)) == ("m", ["f"])
    items = [{"type": "message", "role": "user", "content": "q"}, *OUTPUT]
    assert shape(read(items, "items.jsonl")[0]) == ["user", "assistant f", "tool", "assistant"]


def test_nemo_gym_with_ids(read):
    message = {
        **OUTPUT[2],
        "prompt_token_ids": [1, 2, 3],
        "generation_token_ids": [4, 5],
        "generation_log_probs": [-0.5, -0.25],
    }
    earlier = item("message", role="assistant", content="before")
    record = {
        "responses_create_params": {
            "input": [{"role": "user", "content": "q"}, earlier, {"role": "user", "content": "q2"}],
            "tools": [],
            "temperature": 1.0,
        },
        "response": {"output": [*OUTPUT[:2], message], "model": "m"},
        "reward": 0.25,
        "id": 1,
        "_ng_task_index": 7,
        "agent_ref": {"name": "env"},
    }
    one, two = read([record, {**record, "reward": 1.0}], "t.jsonl")
    assert shape(one) == ["user", "assistant*", "user", "assistant f", "tool", "assistant"]
    last = one.step(2)
    assert (last.prompt_token_ids, last.token_ids, last.logprobs) == ((1, 2, 3), (4, 5), (-0.5, -0.25))
    assert (one.reward, one.task_id, two.reward, one.id != two.id) == (0.25, "env:7", 1.0, True)
    (failure,) = read([{"responses_create_params": {}, "response": None}], "t.jsonl")
    assert "without a response" in failure.message


def test_anthropic(read):
    use = {"type": "tool_use", "id": "u", "name": "f", "input": {"x": 1}}
    record = {
        "system": "s",
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {"x": {}}}}],
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}, use],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "u",
                        "content": [{"type": "text", "text": "r"}, {"type": "image"}],
                    },
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
        "response": {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "done"}]},
    }
    (trace,) = read([record])
    assert shape(trace) == ["system", "user", "assistant f", "tool", "user", "assistant"]
    step = trace.step(0)
    assert (step.reasoning, step.content, step.tool_calls[0].arguments_form) == ("hm", "so", "object")
    assert (trace.messages[3].content, trace.messages[3].tool_call_id) == ("r[image]", "u")
    assert list(trace.tool_schemas["f"]["properties"]) == ["x"]


def test_vllm_bodies(read):
    body = {
        "object": "chat.completion",
        "model": "m",
        "prompt_token_ids": [1, 2, 3],
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": text},
                "token_ids": [4, 5 + i],
                "logprobs": {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]},
            }
            for i, text in enumerate("ab")
        ],
    }
    bare = read([body], "t.jsonl")
    assert [shape(t) for t in bare] == [["assistant"], ["assistant"]] and bare[0].id != bare[1].id
    step = bare[1].step(0)
    assert (step.prompt_token_ids, step.token_ids, step.logprobs) == ((1, 2, 3), (4, 6), (-0.5, -0.25))
    (whole, _) = read(
        [
            {
                "request": {"messages": [{"role": "user", "content": "q"}], "tools": [WEATHER], "top_p": 1},
                "response": body,
            }
        ],
        "u.jsonl",
    )
    assert (
        shape(whole) == ["user", "assistant"]
        and whole.step(0).token_ids == (4, 5)
        and whole.extra["request_options"] == {"top_p": 1}
    )


def test_verifiers_and_prime_rl(read):
    row = {
        "example_id": 4,
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
        "reward": 0.0,
        "info": {"x": 1},
    }
    tokens = {"prompt_ids": [1], "completion_ids": [2, 3], "completion_logprobs": [-0.5, -0.25]}
    one, two = read(
        [
            row,
            {**row, "completion": "text", "trajectory": None},
        ][:2],
        "results.jsonl",
    )
    assert (shape(one), one.task_id, two.step(0).content) == (["user", "assistant"], "4", "text")
    (trace,) = read([{**row, "trajectory": [{"tokens": tokens}]}], "rollouts.jsonl")
    assert (trace.step(0).prompt_token_ids, trace.step(0).token_ids) == ((1,), (2, 3))


def test_verifiers_v1_paths_share_their_trunk(read):
    def node(parent, role, text, ids=(), mask=(), logprobs=()):
        message = {"role": role, "content": text}
        return {
            "parent": parent,
            "message": message,
            "sampled": role == "assistant",
            "token_ids": list(ids),
            "mask": list(mask),
            "logprobs": list(logprobs),
        }

    nodes = [
        node(None, "user", "q", [1, 2], [0, 0]),
        node(0, "assistant", "a", [9, 3, 4], [0, 1, 1], [0.0, -0.5, -0.25]),
        node(1, "user", "more", [5], [0]),
        node(2, "assistant", "b", [6], [1], [-0.5]),
        node(2, "assistant", "c"),
    ]
    first, second = read(
        [
            {
                "id": "e",
                "task": {"id": "t"},
                "nodes": nodes,
                "tools": [{"name": "f", "description": "", "parameters": {}}],
                "rewards": {"x": {"value": 1, "weight": 0.5}},
            }
        ]
    )
    assert shape(first) == ["user", "assistant", "user", "assistant"] and shape(second) == [
        "user",
        "assistant*",
        "user",
        "assistant",
    ]
    step = first.step(0)
    assert (step.prompt_token_ids, step.token_ids, step.logprobs) == ((1, 2, 9), (3, 4), (-0.5, -0.25))
    assert first.step(1).prompt_token_ids == (1, 2, 9, 3, 4, 5) and second.step(1).token_ids is None
    assert (first.reward, first.task_id, list(first.tool_schemas)) == (0.5, "t", ["f"])
    (failure,) = read([{"nodes": [{"parent": 0, "message": {}}]}])
    assert "is not before it" in failure.message


def test_rllm(read):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    steps = [
        {"chat_completions": chat, "prompt_ids": [1], "response_ids": [2], "logprobs": [-0.5]},
        {
            "chat_completions": [*chat, {"role": "user", "content": "r"}],
            "model_response": "b",
            "prompt_ids": [1, 2, 3],
            "response_ids": [4],
            "logprobs": [-1.0],
        },
    ]
    (trace,) = read(
        [
            {
                "id": "task9:0",
                "task": {"question": "q"},
                "trajectories": [{"name": "solver", "steps": steps, "reward": 1.0}],
            }
        ]
    )
    assert shape(trace) == ["user", "assistant", "user", "assistant"] and (trace.task_id, trace.reward) == (
        "task9",
        1.0,
    )
    assert [trace.step(k).token_ids for k in (0, 1)] == [(2,), (4,)]


def test_atif(read):
    run = {
        "schema_version": "ATIF-v1.8",
        "session_id": "s",
        "trajectory_id": "t",
        "agent": {"name": "a", "version": "1", "model_name": "m", "tool_definitions": [WEATHER], "odd": 1},
        "steps": [
            {"step_id": 1, "source": "user", "message": "q"},
            {"step_id": 2, "source": "agent", "message": "copied", "is_copied_context": True},
            {
                "step_id": 3,
                "source": "agent",
                "message": "",
                "reasoning_content": "hm",
                "tool_calls": [{"tool_call_id": "c", "function_name": "get_weather", "arguments": {"city": "P"}}],
                "observation": {"results": [{"content": "rain"}]},
                "metrics": {"prompt_token_ids": [1, 2, 3], "completion_token_ids": [4, 5], "logprobs": [-0.5, -0.25]},
            },
            {
                "step_id": 4,
                "source": "agent",
                "message": "dispatch",
                "llm_call_count": 0,
                "observation": {"results": [{"content": "screen"}]},
            },
            {"step_id": 5, "source": "agent", "message": "done"},
        ],
        "subagent_trajectories": [
            {
                "schema_version": "ATIF-v1.8",
                "trajectory_id": "sub",
                "agent": {"name": "b", "version": "1"},
                "steps": [
                    {"step_id": 1, "source": "user", "message": "q"},
                    {"step_id": 2, "source": "agent", "message": "x"},
                ],
            }
        ],
    }
    main, sub = read(run)
    assert shape(main) == ["user", "assistant*", "assistant get_weather", "tool", "assistant*", "user", "assistant"]
    step = main.step(1)
    assert (step.reasoning, step.prompt_token_ids, step.token_ids, step.logprobs) == (
        "hm",
        (1, 2, 3),
        (4, 5),
        (-0.5, -0.25),
    )
    assert (main.id, main.model, list(main.tool_schemas), main.extra["unknown"]) == (
        "t",
        "m",
        ["get_weather"],
        {"agent.odd": 1},
    )
    assert (sub.id, shape(sub)) == ("sub/sub1", ["user", "assistant"])
    run["steps"][2]["step_id"] = 9
    (failure,) = read(run)
    assert "invalid ATIF" in failure.message and "not sequential" in failure.message


@pytest.mark.parametrize("version", [f"ATIF-v1.{n}" for n in range(9)])
def test_atif_versions(read, version):
    run = {
        "schema_version": version,
        "session_id": "s",
        "agent": {"name": "a", "version": "1"},
        "steps": [{"step_id": 1, "source": "user", "message": "q"}, {"step_id": 2, "source": "agent", "message": "x"}],
    }
    assert shape(read(run)[0]) == ["user", "assistant"]


def test_atif_without_its_package_is_refused_with_the_way_out(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "atif", None)
    (failure,) = read({"schema_version": "ATIF-v1.7", "agent": {}, "steps": []})
    assert "pip install 'hintdistill[atif]'" in failure.message


def test_har_without_atif_make_is_refused_with_the_way_out(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "atif_make", None)
    (failure,) = read({"log": {"entries": []}}, "capture.har")
    assert "needs Python 3.12" in failure.message and "atif-make" in failure.message


def test_inspect(read):
    raw = '{"cmd":  "ls"}'
    events = [
        {
            "event": "model",
            "tools": [{"name": "bash", "description": "", "parameters": {"type": "object"}}],
            "call": {
                "response": {
                    "choices": [
                        {"message": {"tool_calls": [{"id": "c", "function": {"name": "bash", "arguments": raw}}]}}
                    ]
                }
            },
        }
    ]
    sample = {
        "id": 3,
        "epoch": 1,
        "input": "q",
        "target": "t",
        "events": events,
        "attachments": {"abc": "long text"},
        "scores": {"match": {"value": "C"}},
        "messages": [
            {"role": "user", "content": "attachment://abc"},
            {"role": "assistant", "source": "input", "content": "shot"},
            {
                "role": "assistant",
                "source": "generate",
                "content": [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "so"}],
                "tool_calls": [{"id": "c", "function": "bash", "arguments": {"cmd": "ls"}}],
            },
            {
                "role": "tool",
                "content": "",
                "function": "bash",
                "tool_call_id": "c",
                "error": {"type": "timeout", "message": "too slow"},
            },
        ],
    }
    (trace, failure) = read({"eval": {"task": "browse", "model": "m"}, "samples": [sample, {"id": 4}]})
    assert shape(trace) == ["user", "assistant*", "assistant bash", "tool"]
    assert trace.messages[0].content == "long text" and trace.messages[3].content == "too slow"
    step = trace.step(1)
    assert (step.content, step.reasoning, step.tool_calls[0].arguments_raw, step.tool_calls[0].arguments_form) == (
        "so",
        "hm",
        raw,
        "string",
    )
    assert (trace.task_id, trace.reward, list(trace.tool_schemas)) == ("browse:3", 1.0, ["bash"])
    assert isinstance(failure, Failure) and "sample 2" in str(failure.source)


def test_tau2_hides_the_users_own_calls(read):
    raw = {
        "choices": [
            {
                "message": {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"x":1}'}}]},
                "token_ids": None,
            }
        ]
    }
    run = {
        "id": "s",
        "task_id": "7",
        "reward_info": {"reward": 1.0},
        "messages": [
            {"role": "assistant", "content": "hi"},
            {
                "role": "user",
                "content": None,
                "tool_calls": [{"id": "u", "name": "toggle", "arguments": {}, "requestor": "user"}],
            },
            {"id": "u", "role": "tool", "requestor": "user", "content": "on"},
            {"role": "user", "content": "done"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c", "name": "f", "arguments": {"x": 1}, "requestor": "assistant"}],
                "raw_data": raw,
            },
            {"id": "c", "role": "tool", "requestor": "assistant", "content": "ok", "error": False},
        ],
    }
    for value in (run, {"simulations": [run]}):
        (trace,) = read(value)
        assert shape(trace) == ["assistant*", "user", "assistant f", "tool"], "a greeting is given"
        assert trace.step(1).tool_calls[0].arguments_raw == '{"x":1}' and (trace.reward, trace.task_id) == (1.0, "7")


def test_toolbench_chats_and_failed_searches(read):
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "q"}
    a, b = ({"role": "assistant", "content": None, "function_call": {"name": n, "arguments": "{}"}} for n in "ab")
    seen = {"role": "function", "name": "a", "content": "r"}
    chats = {
        "tree": {},
        "win": True,
        "answer_generation": {
            "function": [{"name": "a", "parameters": {}}],
            "query": "q",
            "train_messages": [[system, user, a], [system, user, a, seen, b]],
        },
    }
    (trace,) = read(chats)
    assert shape(trace) == ["system", "user", "assistant a", "tool", "assistant b"] and not trace.given_steps

    def node(kind, text, children=(), **more):
        return {"node_type": kind, "description": text, "children": list(children), **more}

    leaves = [node("Thought", "hm", [node("Action", n, [node("Action Input", "{}", observation="r")])]) for n in "bc"]
    root = node("Action Input", "", [node("Action", "a", [node("Action Input", "{}", leaves, observation="e")])])
    one, two = read({"tree": {"tree": root}, "win": False, "answer_generation": {"function": [], "query": "q"}})
    assert shape(one) == ["user", "assistant a", "tool", "assistant b", "tool"]
    assert shape(two) == ["user", "assistant a*", "tool", "assistant c", "tool"] and two.step(1).content == "hm"
    (failure,) = read({"tree": {}, "answer_generation": {}})
    assert "neither chats nor a tree" in failure.message


def test_toolbench_branches_beside_the_answered_one_are_counted(read):
    def node(kind, text, children=(), **more):
        return {"node_type": kind, "description": text, "children": list(children), **more}

    call = {"role": "assistant", "content": None, "function_call": {"name": "b", "arguments": "{}"}}
    leaves = [node("Action", n, [node("Action Input", "{}", observation="r")]) for n in "bcd"]
    answer = {"function": [], "query": "q", "train_messages": [[{"role": "user", "content": "q"}, call]]}
    trace, failure = read({"tree": {"tree": node("Action Input", "", leaves)}, "answer_generation": answer})
    assert shape(trace) == ["user", "assistant b"]
    assert failure.reason == "unread_branches" and failure.message.startswith("2 abandoned branches of the search tree")


def test_swe_agent_last_step_stands_in_the_trajectory_alone(read):
    history = [
        {"role": "system", "content": "s"},
        {"role": "assistant", "content": "shown", "is_demo": True},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "r1"},
    ]
    steps = [{"response": "one\n", "action": "ls", "observation": "r1"}, {"response": "two", "observation": "r2"}]
    (trace,) = read({"history": history, "trajectory": [*steps, {"response": "", "observation": "killed"}]})
    assert shape(trace) == ["system", "assistant*", "user", "assistant", "user", "assistant", "user"]
    assert trace.step(2).content == "two" and trace.messages[-1].content == "r2"
    (whole,) = read({"history": history, "trajectory": steps[:1]})
    assert len(whole.step_indices) == 2
    called = [*history[:3], {**history[3], "tool_calls": [{"id": "1", "function": {"name": "a", "arguments": "{}"}}]}]
    trace, failure = read({"history": called, "trajectory": steps})
    assert len(trace.step_indices) == 2 and failure.reason == "lost_step" and "last 1 steps" in failure.message


def test_openhands_events_take_the_models_own_message(read):
    answer = {
        "id": "r1",
        "model": "m",
        "choices": [
            {
                "message": {
                    "content": "look",
                    "tool_calls": [
                        {"id": "1", "function": {"name": "bash", "arguments": '{"command":"ls"}'}},
                        {"id": "2", "function": {"name": "bash", "arguments": '{"command":"pwd"}'}},
                    ],
                }
            }
        ],
    }

    def event(**fields):
        return {"timestamp": "t", **fields}

    def meta(n):
        return {"function_name": "bash", "tool_call_id": str(n), "model_response": answer}

    events = [
        event(source="agent", action="system", args={"content": "s", "tools": [WEATHER]}),
        event(source="user", action="message", args={"content": "q"}),
        event(source="user", action="recall", args={}),
        event(source="environment", observation="recall", content="ctx"),
        event(source="agent", action="run", args={"command": "ls"}, tool_call_metadata=meta(1)),
        event(source="agent", action="run", args={}, tool_call_metadata=meta(2)),
        event(source="agent", observation="run", content="a", tool_call_metadata=meta(1)),
        event(source="agent", observation="run", content="b", tool_call_metadata=meta(2)),
        event(source="agent", action="message", args={"content": "done"}),
    ]
    expected = ["system", "user", "user", "assistant bash bash", "tool", "tool", "assistant"]
    for value in (events, [{"instance_id": "i", "history": events}]):
        (trace,) = read(value)
        assert shape(trace) == expected and trace.step(0).tool_calls[0].arguments_raw == '{"command":"ls"}'
        assert (trace.model, list(trace.tool_schemas)) == ("m", ["get_weather"])


def test_adk_sessions_and_evaluation_sets(read):
    def said(role, *parts):
        return {"author": "user" if role == "user" else "agent", "content": {"role": role, "parts": list(parts)}}

    events = [
        said("user", {"text": "q"}),
        said("model", {"function_call": {"name": "f", "args": {"x": 1}}}),
        said("user", {"function_response": {"name": "f", "response": {"y": 2}}}),
        said("model", {"text": "a"}),
    ]
    logs = [
        {
            "model_request": {
                "config": {"system_instruction": "s", "tools": [{"function_declarations": [{"name": "f"}]}]}
            }
        }
    ]
    (trace,) = read({"id": "s", "events": events, "event_logs": logs})
    assert shape(trace) == ["system", "user", "assistant f", "tool", "assistant"] and list(trace.tool_schemas) == ["f"]
    assert trace.messages[3].content == '{"y": 2}'
    turn = {
        "user_content": {"role": "user", "parts": [{"text": "q"}]},
        "intermediate_data": {"tool_uses": [{"name": "f", "args": {}}]},
        "final_response": {"role": "model", "parts": [{"text": "a"}]},
    }
    (trace, failure) = read({"eval_set_id": "e", "eval_cases": [{"eval_id": "c", "conversation": [turn]}, {}]})
    assert shape(trace) == ["user", "assistant f", "assistant"] and isinstance(failure, Failure)

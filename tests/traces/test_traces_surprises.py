"""The sixteen surprises of real trace files, each on a record written here that shows it, read through the front door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKS, TIME, WEATHER, RulesCritic

from hintdistill.core.types import Message, Source, Trace
from hintdistill.traces.options import Failure, ReadOptions
from hintdistill.traces.reading import read_traces
from hintdistill.traces.repeats import Repeats, marks_of

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Weather in Paris?"}
DONE = {"role": "assistant", "content": "It rains."}


def call(name: str = "get_weather", arguments: Any = '{"city": "Paris"}', call_id: str | None = "c1") -> dict[str, Any]:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if call_id is None else {"id": call_id, **made}


def calls(*made: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(made), **extra}


def result(content: Any = "rain", call_id: str | None = "c1") -> dict[str, Any]:
    return {"role": "tool", "content": content, **({} if call_id is None else {"tool_call_id": call_id})}


@pytest.fixture
def read(tmp_path: Path):
    def get(*records: Any, name: str = "t.jsonl", **options: Any) -> list[Trace | Failure]:
        path = tmp_path / name
        text = "\n".join(json.dumps(r) for r in records)
        path.write_text(text, encoding="utf-8")
        return list(read_traces([path], ReadOptions(**options)))

    return get


@pytest.fixture
def one(read):
    def get(record: Any, **options: Any) -> Trace:
        (trace,) = read(record, **options)
        assert isinstance(trace, Trace), trace
        return trace

    return get


def test_1_call_ids_reused_or_absent_pair_by_order(one):
    """Two different calls under one id, then calls and results without any: each result is its own call's."""
    messages = [
        USER,
        calls(call()),
        result("error: no such city"),
        calls(call(arguments='{"city": "Rome"}')),
        result("sun"),
        DONE,
    ]
    findings = RulesCritic(("call_error",)).check(one({"messages": messages, "tools": [WEATHER]})).findings
    assert [f.step for f in findings] == [0]
    bare = [
        USER,
        calls(call(call_id=None), call(arguments='{"city": "Oslo"}', call_id=None)),
        result("sun", None),
        result("error: down", None),
        DONE,
    ]
    trace = one({"messages": bare, "tools": [WEATHER]})
    assert [c.id for c in trace.step(0).tool_calls] == [None, None]
    assert [f.call for f in RulesCritic(("call_error",)).check(trace).findings] == [1]


@pytest.mark.parametrize(
    ("arguments", "raw", "form", "parsed"),
    [
        ('{"city":  "Par\\u00efs"}', '{"city":  "Par\\u00efs"}', "string", {"city": "Parïs"}),
        ({"city": "Oslo"}, '{"city": "Oslo"}', "object", {"city": "Oslo"}),
        (None, "{}", "object", {}),
        ('"{\\"city\\": \\"Rome\\"}"', '"{\\"city\\": \\"Rome\\"}"', "string", {"city": "Rome"}),
        ('{"city": "Rome"', '{"city": "Rome"', "string", None),
    ],
)
def test_2_arguments_keep_their_bytes(one, arguments, raw, form, parsed):
    made = one({"messages": [USER, calls(call(arguments=arguments))]}).step(0).tool_calls[0]
    assert (made.arguments_raw, made.arguments_form, made.arguments) == (raw, form, parsed)


@pytest.mark.parametrize(
    ("tools", "names"),
    [
        ([WEATHER, TIME], ["get_weather", "get_time"]),
        ([WEATHER["function"]], ["get_weather"]),
        (json.dumps([WEATHER]), ["get_weather"]),
        ({"get_time": {"parameters": {}}}, ["get_time"]),
        (["get_time"], ["get_time"]),
        ([{"function_declarations": [{"name": "a"}, {"name": "b"}]}], ["a", "b"]),
        ([{"name": "a", "input_schema": {"type": "object", "properties": {"x": {}}}}], ["a"]),
        ([{"type": "web_search"}], ["web_search"]),
        (
            [{"name": "f", "parameters": {"type": "dict", "properties": {"x": {"type": "float"}}, "optional": ["x"]}}],
            ["f"],
        ),
    ],
)
def test_3_tools_in_every_shape(one, tools, names):
    trace = one({"messages": [USER, calls(call("a", '{"x": 1}')), DONE], "tools": tools})
    assert list(trace.tool_schemas) == names
    RulesCritic(CHECKS).check(trace)  # no schema, however odd, stops a critic


def test_3_parameters_as_a_list(one):
    listed = [{"name": "x", "type": "integer", "required": True}, {"name": "y", "type": "string", "required": False}]
    trace = one({"messages": [USER, DONE], "tools": [{"name": "f", "parameters": listed}]})
    schema = trace.tool_schemas["f"]
    assert (list(schema["properties"]), schema["required"]) == (["x", "y"], ["x"])


def test_4_calls_and_fabricated_results_in_text_stay_text(one):
    text = '<tool_call>search\n{"q": 1}</tool_call>\n<tool_response>made up</tool_response>\nSo it rains.'
    trace = one({"messages": [USER, {"role": "assistant", "content": text}]})
    assert [m.role for m in trace.messages] == ["user", "assistant"]
    assert trace.step(0).content == text and not trace.step(0).tool_calls


def test_5_thinking_stays_where_it_was(one):
    inside = {"role": "assistant", "content": "<think>hm</think>Rain."}
    half = {"role": "assistant", "content": "hm</think>Rain."}
    beside = {"role": "assistant", "content": "Rain.", "reasoning_content": "hm"}
    trace = one({"messages": [USER, inside, USER, half, USER, beside]})
    assert [(m.content, m.reasoning) for m in trace.messages if m.role == "assistant"] == [
        ("<think>hm</think>Rain.", None),
        ("hm</think>Rain.", None),
        ("Rain.", "hm"),
    ]


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def said(text: str) -> dict[str, Any]:
    return item("message", role="assistant", content=[{"type": "output_text", "text": text}])


def wants(call_id: str, name: str = "get_weather", arguments: str = '{"city":"Paris"}') -> dict[str, Any]:
    return item("function_call", call_id=call_id, name=name, arguments=arguments)


def got(call_id: str, output: str = "rain") -> dict[str, Any]:
    return item("function_call_output", call_id=call_id, output=output)


def test_6_response_items_are_grouped_into_turns(one):
    """Reasoning in content or summary, an empty first message, parallel calls, an input that is a string."""
    output = [
        item("reasoning", summary=[{"type": "summary_text", "text": "two cities"}]),
        said(""),
        wants("a"),
        wants("b", "get_time"),
        got("a"),
        got("b", "noon"),
        item("reasoning", summary=[], content=[{"type": "reasoning_text", "text": "done"}]),
        said("Rain, noon."),
    ]
    trace = one({"input": "Paris?", "output": output, "object": "response"})
    assert [m.role for m in trace.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    first, last = trace.step(0), trace.step(1)
    assert (first.reasoning, first.content, [c.name for c in first.tool_calls]) == (
        "two cities",
        "",
        ["get_weather", "get_time"],
    )
    assert (last.reasoning, last.content) == ("done", "Rain, noon.")


def test_6_reasoning_after_a_call_belongs_to_its_turn(one):
    trace = one(
        {"input": "q", "output": [wants("a"), item("reasoning", summary=[]), got("a"), said("x")], "object": "response"}
    )
    assert [m.role for m in trace.messages] == ["user", "assistant", "tool", "assistant"]


def test_6_a_list_of_states_is_one_conversation(one):
    states = [[item("message", role="user", content="q"), wants("a"), got("a")]]
    states.append([*states[0], said("done")])
    record = {"responses_create_params": {"input": []}, "response": {"output": states}, "reward": 0.5}
    trace = one(record)
    assert [m.role for m in trace.messages] == ["user", "assistant", "tool", "assistant"] and trace.reward == 0.5
    assert not trace.given_steps


def test_7_content_in_every_shape(one):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "content": "b"}, "c"]
    trace = one(
        {
            "messages": [
                USER,
                {"role": "assistant", "content": parts},
                result({"rain": True}),
                {"role": "assistant", "content": ""},
                USER,
                calls(call()),
            ]
        }
    )
    assert [m.content for m in trace.messages[1:]] == ["abc", '{"rain": true}', "", USER["content"], None]


def test_7_an_image_is_refused_by_name(read):
    (failure,) = read({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, DONE]})
    assert isinstance(failure, Failure) and "'image_url'; only text" in failure.message


def test_8_roles_under_other_names(one):
    roles = ["developer", "human", "model", "function", "toolResult", "ai"]
    trace = one({"messages": [{"role": r, "content": "x"} for r in roles]})
    assert [m.role for m in trace.messages] == ["developer", "user", "assistant", "tool", "tool", "assistant"]


def test_8_which_role_is_the_student_is_an_option(one, read):
    log = [
        {"role": "human", "content": "go"},
        {"role": "Planner", "content": "plan"},
        {"role": "WebSurfer", "content": "surf"},
        {"role": "assistant", "content": "sum"},
    ]
    trace = one({"messages": log}, student_role="WebSurfer")
    assert [(m.role, m.name) for m in trace.messages] == [
        ("user", None),
        ("user", "Planner"),
        ("assistant", None),
        ("user", "assistant"),
    ]
    named = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "name": "a", "content": "1"},
        {"role": "assistant", "name": "b", "content": "2"},
    ]
    assert [m.role for m in one({"messages": named}, student_role="b").messages] == ["user", "user", "assistant"]
    (failure,) = read({"messages": log})
    assert "traces.student_role" in failure.message


def test_8_tool_output_as_user_stays_a_user_message(one):
    trace = one(
        {
            "history": [
                SYSTEM,
                USER,
                {"role": "assistant", "content": "```\nls\n```"},
                {"role": "user", "content": "a.py"},
                DONE,
            ]
        }
    )
    assert [m.role for m in trace.messages] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    "messages",
    [
        [USER, DONE, {"role": "user", "content": "###STOP###"}],
        [USER, calls(call()), result()],
        [USER, calls(call())],
        [DONE, USER, DONE],
    ],
    ids=["ends with user", "ends with tool", "ends with an open call", "starts with assistant"],
)
def test_9_any_beginning_and_end(one, messages):
    assert len(one({"messages": messages}).messages) == len(messages)


def test_10_prefixes_repeated_line_by_line_are_read_once(read):
    """Logs of single calls, short ones first: one turn each is new, whichever order the lines have."""
    base = [SYSTEM, USER]
    steps = [calls(call(call_id=f"c{i}")) for i in range(3)]
    lines = []
    for i, step in enumerate(steps):
        lines.append({"messages": list(base), "response": {"choices": [{"message": step}]}})
        base += [step, result(str(i), f"c{i}")]
    for order in (lines, lines[::-1]):
        outcomes = read(*order)
        found = [t for t in outcomes if isinstance(t, Trace)]
        fresh = sum(len(t.step_indices) - len(t.given_steps) for t in found)
        assert fresh == 3
        assert all(o.reason == "repeated_prefix" for o in outcomes if isinstance(o, Failure))


def test_10_a_branch_of_call_logs_trains_only_what_is_new(read):
    first = {"messages": [USER, calls(call()), result()], "response": {"choices": [{"message": DONE}]}}
    other = {
        "messages": [USER, calls(call()), result()],
        "response": {"choices": [{"message": {**DONE, "content": "Sun."}}]},
    }
    a, b = read(first, other)
    assert (a.given_steps, b.given_steps) == (frozenset(), frozenset({0}))


def test_10_what_is_remembered_of_repetitions_is_bounded():
    """A window back a repetition is found, and no more than two windows are held, however much was read."""
    repeats = Repeats(window=50)
    messages = (Message(role="user", content="q"), Message(role="assistant", content="a"))
    source = Source(file="f", position="line 1")
    made = [
        Trace(id=str(i), source=source, messages=(Message(role="system", content=str(i)), *messages * 3))
        for i in range(60)
    ]
    for trace in made:
        assert repeats.check(trace, marks_of(trace.messages)) == trace
    held = repeats._inner
    assert len(held._young) + len(held._old) <= 2 * 60
    (late, early) = (Trace(id="p", source=source, messages=t.messages[:3]) for t in (made[-1], made[0]))
    assert (
        isinstance(repeats.check(late, marks_of(late.messages)), Failure)
        and repeats.check(early, marks_of(early.messages)) == early
    )


def test_10_independent_samples_are_no_repetition(read):
    rows = [
        {"id": str(i), "messages": [USER, calls(call()), result(), {"role": "assistant", "content": text}]}
        for i, text in enumerate("abb")
    ]
    assert [len(t.given_steps) for t in read(*rows)] == [0, 0, 0]


def test_10_interleaved_episodes_keep_their_longest_chain(read):
    lines = [
        {
            "env_index": e,
            "step": s,
            "messages": [
                USER,
                *[m for i in range(s + 1) for m in (calls(call(arguments=f'{{"e": {e}, "s": {i}}}')), result())],
            ],
        }
        for s in range(3)
        for e in range(2)
    ]
    traces = read(*lines)
    assert [(len(t.step_indices), len(t.given_steps)) for t in traces] == [(3, 0), (3, 0)]


@pytest.mark.parametrize(
    ("reward", "number", "kept"),
    [
        (0.5, 0.5, False),
        ("1.0", 1.0, False),
        ({"a": 1}, None, True),
        ([1, 2], None, True),
        (None, None, False),
        (True, 1.0, False),
    ],
)
def test_11_rewards(one, reward, number, kept):
    trace = one({"messages": [USER, DONE], "reward": reward})
    assert (trace.reward, "reward" in trace.extra) == (number, kept)


def test_12_one_object_an_array_or_objects_one_after_another(read, tmp_path):
    record = {"messages": [USER, DONE]}
    text = json.dumps(record)
    shapes = {
        "array.json": f"[{text}, {text}]",
        "lines.json": f"{text}\n{text}",
        "glued.jsonl": text + text,
        "crlf.jsonl": f"{text}\r\n{text}\r\n",
        "pretty.json": json.dumps([record, record], indent=2),
        "pretty_many.json": json.dumps(record, indent=2) * 2,
        "umläut und blank.jsonl": f"{text}\n{text}",
    }
    for name, shape in shapes.items():
        (tmp_path / name).write_bytes(shape.encode())
        got = list(read_traces([tmp_path / name]))
        assert [type(t) for t in got] == [Trace, Trace], name
        assert len({t.id for t in got}) == 2
    long, escape = "x" * 300_000, "\x1b[31mred\x1b[0m"
    (tmp_path / "long.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": long + escape}, DONE]}))
    (trace,) = read_traces([tmp_path / "long.jsonl"])
    assert trace.messages[0].content == long + escape


def test_13_steps_point_back_to_the_source(one):
    """Labels index the source's messages: every message is there, in its place."""
    messages = [SYSTEM, USER, calls(call()), result(), DONE]
    trace = one({"messages": messages})
    assert trace.step_indices == (2, 4) and len(trace.messages) == len(messages)


def test_14_empty_ids_mean_absent(one):
    empty = {**DONE, "prompt_token_ids": [], "generation_token_ids": [], "generation_log_probs": []}
    nulls = {**DONE, "prompt_token_ids": None, "token_ids": None, "logprobs": None}
    holes = {**DONE, "token_ids": [1, 2], "logprobs": [-0.1, None]}
    trace = one({"messages": [USER, empty, USER, nulls, USER, holes]})
    steps = [trace.step(k) for k in range(3)]
    assert [(s.prompt_token_ids, s.token_ids, s.logprobs) for s in steps] == [(None, None, None)] * 2 + [
        (None, (1, 2), None)
    ]


def test_15_unknown_keys_are_kept(one):
    trace = one(
        {
            "messages": [USER, {**DONE, "refusal": None, "annotations": [], "index": 4}],
            "info": {"x": 1},
            "given": "words",
        }
    )
    assert trace.step(0).extra == {"refusal": None, "annotations": [], "index": 4}
    assert trace.extra == {"info": {"x": 1}, "given": "words"}


def test_16_a_file_without_a_step_is_loud(read):
    (failure,) = read({"messages": [USER, result()]})
    assert failure.reason == "no_assistant_step" and "roles present: tool, user" in failure.message
    (failure,) = read({"spans": [{"trace_id": "t", "span_id": "s", "attributes": {"http.url": "x"}}]})
    assert isinstance(failure, Failure) and "content capture was off" in failure.message


def test_given_turns_are_messages_like_any_other():
    """Marked, but in their place: the context of later steps is what the student read."""
    trace = Trace(
        id="t",
        messages=(
            Message(role="user", content="q"),
            Message(role="assistant", content="a", given=True),
            Message(role="assistant", content="b"),
        ),
    )
    assert trace.given_steps == {0} and [m.content for m in trace.before(1)] == ["q", "a"]

"""Reading: the variants real files have; every record is a trace or a failure with file, position and reason."""

from __future__ import annotations

import json

import pytest
from conftest import WEATHER, examples, real_file
from hypothesis import given, settings
from hypothesis import strategies as st

from hintdistill.core.errors import InputError
from hintdistill.core.types import Message, Source, ToolCall, Trace
from hintdistill.traces.formats import native, openai_chat
from hintdistill.traces.options import Failure, ReadOptions
from hintdistill.traces.reading import load_tools, read_traces

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def one(record, **options) -> Trace:
    return openai_chat.parse(record, Source(file="f.json", position="record 1"), ReadOptions(**options))


def read(tmp_path, text: str | bytes, name="x.jsonl", **options):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_traces([path], ReadOptions(**options)))


def calls(*functions, **extra):
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": f} for f in functions],
        **extra,
    }


def test_arguments_keep_their_bytes():
    raw = '{"city":  "Par\\u00efs"}'
    made = one({"messages": [USER, calls({"name": "f", "arguments": raw})]}).step(0).tool_calls[0]
    assert (made.arguments_raw, made.arguments_form) == (raw, "string")


@pytest.mark.parametrize(("arguments", "raw"), [({"a": "é"}, '{"a": "é"}'), (None, "{}"), ([1], "[1]")])
def test_arguments_that_are_no_string_are_marked(arguments, raw):
    made = one({"messages": [USER, calls({"name": "f", "arguments": arguments})]}).step(0).tool_calls[0]
    assert (made.arguments_raw, made.arguments_form) == (raw, "object")


def test_flat_and_legacy_calls():
    flat = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}]}
    inspect = {"role": "assistant", "tool_calls": [{"id": "1", "function": "f", "arguments": {}}]}
    legacy = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    for message in (flat, inspect, legacy):
        assert [c.name for c in one({"messages": [USER, message]}).step(0).tool_calls] == ["f"]
    assert (
        one({"messages": [USER, legacy, {"role": "function", "name": "f", "content": "r"}]}).messages[2].role == "tool"
    )


def test_content_variants():
    parts = {"role": "assistant", "content": [{"type": "text", "text": "a"}, "b", {"type": "text", "content": "c"}]}
    assert one({"messages": [USER, parts]}).step(0).content == "abc"
    assert one({"messages": [USER, {"role": "assistant", "content": ""}]}).step(0).content == ""
    assert one({"messages": [USER, {"role": "tool", "content": {"x": 1}}, ANSWER]}).messages[1].content == '{"x": 1}'


def test_bare_list_traj_and_reward():
    assert len(one([USER, ANSWER]).messages) == 2
    tau = one({"traj": [USER, ANSWER], "task_id": 3, "reward": "1.0", "trial": 0})
    assert (tau.task_id, tau.reward, tau.extra) == ("3", 1.0, {"trial": 0})
    assert one({"messages": [USER, ANSWER], "reward": {"a": 1}}).extra == {"reward": {"a": 1}}


def test_token_ids_and_logprobs():
    message = {**ANSWER, "prompt_token_ids": [1, 2], "token_ids": [3], "logprobs": [-0.5]}
    step = one({"messages": [USER, message]}).step(0)
    assert (step.prompt_token_ids, step.token_ids, step.logprobs) == ((1, 2), (3,), (-0.5,))
    nemo = {**ANSWER, "generation_token_ids": [3], "generation_log_probs": [-0.5]}
    assert one({"messages": [USER, nemo]}).step(0).token_ids == (3,)
    empty = {**ANSWER, "prompt_token_ids": [], "generation_token_ids": [], "generation_log_probs": []}
    assert one({"messages": [USER, empty]}).step(0).token_ids is None
    assert one({"messages": [USER, message]}, token_ids="ignore").step(0).token_ids is None
    openai_style = {**ANSWER, "logprobs": {"content": [{"token": "a", "logprob": -0.1}]}}
    step = one({"messages": [USER, openai_style]}).step(0)
    assert step.logprobs is None and "logprobs" in step.extra


def test_student_role_and_reasoning():
    trace = one({"messages": [USER, {"role": "agent", "content": "a", "reasoning_content": "r"}]}, student_role="agent")
    assert trace.step(0).reasoning == "r"


def test_unknown_keys_are_kept():
    trace = one({"messages": [USER, {**ANSWER, "refusal": None, "index": 4}], "info": 1})
    assert trace.step(0).extra == {"refusal": None, "index": 4} and trace.extra == {"info": 1}


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER],
        [WEATHER["function"]],
        json.dumps([WEATHER]),
        {"get_weather": {k: v for k, v in WEATHER["function"].items() if k != "name"}},
    ],
)
def test_tool_variants(tools):
    assert one({"messages": [USER, ANSWER], "tools": tools}).tool_schemas == {
        "get_weather": WEATHER["function"]["parameters"]
    }


def test_tools_from_a_file_of_their_own(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([WEATHER]))
    options = ReadOptions(tools=load_tools(path))
    got = openai_chat.parse({"messages": [USER, ANSWER]}, Source(file="f", position="1"), options)
    assert got.tools == (WEATHER,)
    own = openai_chat.parse({"messages": [USER, ANSWER], "tools": ["mine"]}, Source(file="f", position="1"), options)
    assert list(own.tool_schemas) == ["mine"]
    for text, message in (("{", "is not JSON"), ("3", "must be a list"), ("[]", "contains no tool schema")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_tools(path)
    with pytest.raises(InputError, match="no tool schemas at"):
        load_tools(tmp_path / "nowhere.json")


def test_a_broken_line_costs_itself(tmp_path):
    good = json.dumps({"messages": [USER, ANSWER]})
    lines = [good] * 6 + ['{"messages": [', good]
    got = read(tmp_path, "\n".join(lines))
    assert [isinstance(x, Trace) for x in got] == [True] * 6 + [False, True]
    failure = got[6]
    assert (failure.reason, str(failure.source)) == ("not_json", f"{tmp_path / 'x.jsonl'}, line 7")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": "\xff"}', "not_utf8"),
        (b"[" * 100_000, "too_deep"),
        (b"3", "not_a_trace"),
        (b"{}", "not_a_trace"),
        (b'{"messages": []}', "not_a_trace"),
        (b'{"messages": [3]}', "not_a_trace"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "no_assistant_step"),
        (b'{"messages": [{"role": "wizard"}]}', "not_a_trace"),
        (b'{"messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]}', "not_a_trace"),
        (b'{"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}', "not_a_trace"),
        (b'{"messages": [{"role": "assistant", "content": "a"}], "tools": [{}]}', "not_a_trace"),
        (b'{"messages": [{"role": "assistant", "token_ids": [1], "logprobs": [-1, -2]}]}', "not_a_trace"),
        (b'{"hintdistill_trace": 99}', "not_a_trace"),
        (b'{"hintdistill_trace": 1, "id": "x"}', "not_a_trace"),
    ],
)
def test_failures_have_a_reason_and_a_message(tmp_path, line, reason):
    (failure,) = read(tmp_path, line + b"\r\n")
    assert isinstance(failure, Failure)
    assert failure.reason == reason and failure.message


def test_no_assistant_step_says_which_roles_there_are(tmp_path):
    (failure,) = read(tmp_path, json.dumps([USER, {"role": "tool", "content": "x"}]), "x.json")
    assert "roles present: tool, user" in failure.message and "traces.student_role" in failure.message


def test_files_and_folders(tmp_path):
    record = {"messages": [USER, ANSWER]}
    (tmp_path / "a.json").write_text(json.dumps([record, record]))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jsonl").write_text("\ufeff" + json.dumps(record) + "\r\n\r\n" + json.dumps(record))
    (tmp_path / "c.json").write_text(json.dumps(record) + "\n" + json.dumps(record))
    (tmp_path / "d.json").write_text(json.dumps([USER, ANSWER]))
    (tmp_path / "ignored.txt").write_text("x")
    got = list(read_traces([tmp_path]))
    assert [t.id for t in got] == ["a#1", "a#2", "c#1", "c#2", "d#1", "b#1", "b#3"]
    with pytest.raises(InputError, match="no trace files"):
        (tmp_path / "empty").mkdir()
        list(read_traces([tmp_path / "empty"]))
    with pytest.raises(InputError, match="no such file or folder"):
        list(read_traces([tmp_path / "nowhere"]))


def test_empty_files_and_repeated_ids_are_failures(tmp_path):
    assert [x.reason for x in read(tmp_path, "  \n")] == ["empty_file"]
    assert [x.reason for x in read(tmp_path, "[]", "x.json")] == ["empty_file"]
    assert [x.reason for x in read(tmp_path, "{", "x.json")] == ["not_json"]
    twice = json.dumps({"id": "same", "messages": [USER, ANSWER]})
    assert [getattr(x, "reason", "ok") for x in read(tmp_path, twice + "\n" + twice)] == ["ok", "duplicate_id"]


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
tool_calls = st.builds(
    ToolCall,
    name=texts.filter(bool),
    arguments_raw=texts,
    id=st.none() | texts,
    arguments_form=st.sampled_from(["string", "object"]),
)
ids = st.none() | st.lists(st.integers(0, 1 << 20), min_size=1, max_size=4).map(tuple)


@st.composite
def traces(draw):
    messages = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(ids)
        messages.append(
            Message(
                role=draw(st.sampled_from(["user", "assistant", "tool"])),
                content=draw(st.none() | texts),
                reasoning=draw(st.none() | texts),
                tool_calls=tuple(draw(st.lists(tool_calls, max_size=2))),
                prompt_token_ids=draw(ids),
                token_ids=tokens,
                logprobs=tuple(-float(i) for i in tokens) if tokens and draw(st.booleans()) else None,
                raw_text=draw(st.none() | texts),
                extra=draw(st.dictionaries(texts, st.integers() | texts, max_size=2)),
            )
        )
    return Trace(
        id=draw(texts),
        messages=tuple(messages),
        tools=(WEATHER,) if draw(st.booleans()) else (),
        reward=draw(st.none() | st.floats(-9, 9)),
        task_id=draw(st.none() | texts),
    )


@settings(max_examples=examples(60), deadline=None)
@given(traces())
def test_native_round_trip_is_exact(trace):
    back = native.parse(json.loads(native.dump(trace)), Source(file="f", position="1"), ReadOptions())
    assert back.model_copy(update={"source": None}) == trace


def test_real_tau_bench_airline():
    path, tools = (
        real_file("openai_chat", "tau_bench_airline_gpt4o.json"),
        real_file("openai_chat", "tools_tau_airline.json"),
    )
    got = list(read_traces([path], ReadOptions(tools=load_tools(tools))))
    assert len(got) == 108 and all(isinstance(t, Trace) for t in got)
    assert sum(len(t.messages) for t in got) == 2904
    assert sum(len(m.tool_calls) for t in got for m in t.messages) == 668
    assert all(c.arguments is not None for t in got for m in t.messages for c in m.tool_calls)
    assert all(len(t.tool_schemas) == 14 and t.reward is not None for t in got)


def test_real_tau_retail_passed():
    got = list(read_traces([real_file("openai_chat", "agentrx_tau_retail_passed.json")]))
    assert len(got) == 34 and all(isinstance(t, Trace) and t.reward == 1.0 for t in got)
    assert sum(len(m.tool_calls) for t in got for m in t.messages) == 250

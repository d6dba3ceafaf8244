"""What holds of every trace whichever reader made it: no silence, no lost request, no default in a missing key's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.traces_seeds import SEEDS

from hintdistill.core.types import Trace
from hintdistill.reporting.inspection import inspect_files
from hintdistill.traces.options import Failure, ReadOptions
from hintdistill.traces.reading import read_traces

USER, ANSWER = (
    {"role": "user", "content": "Which train leaves Oslo?"},
    {"role": "assistant", "content": "It is the R61."},
)
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "R61"}
FIND = {"type": "function", "function": {"name": "find_train", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def read(tmp_path: Path):
    def go(*records: Any, options: ReadOptions = ReadOptions()) -> list[Trace | Failure]:
        path = tmp_path / "t.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        return list(read_traces([path], options))

    return go


def shape(trace: Trace | Failure) -> list[str]:
    """Role and calls of each message; a star marks what is given."""
    assert isinstance(trace, Trace), trace
    return [" ".join([m.role + "*" * m.given, *(c.name for c in m.tool_calls)]) for m in trace.messages]


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_no_format_makes_a_step_of_silence_or_loses_the_request(name, tmp_path):
    """Every seed of every format, as it is and with the words of its messages under a key that nobody knows."""
    for renamed in (False, True):
        text = "\n".join(map(json.dumps, SEEDS[name]))
        if renamed:
            for key in ("content", "parts", "text", "tool_calls"):
                text = text.replace(f'"{key}":', f'"{key}_of_another_kind":')
        path = tmp_path / f"{renamed}.jsonl"
        path.write_text(text)
        for trace in (o for o in read_traces([path]) if isinstance(o, Trace)):
            own = [trace.messages[trace.step_indices[k]] for k in trace.own_steps]
            assert all(m.content or m.tool_calls or m.reasoning or m.token_ids or m.raw_text for m in own)
            prompted = any(m.prompt_token_ids for m in own)
            worked = any(m.role == "system" for m in trace.messages) and own and own[0].tool_calls
            assert prompted or worked or any(m.role == "user" for m in trace.messages)


def test_an_assistant_message_without_anything_is_given_and_counted(read, tmp_path):
    (trace,) = read({"messages": [USER, {"role": "assistant", "content": ""}, USER, ANSWER]})
    assert shape(trace) == ["user", "assistant*", "user", "assistant"]
    (report,) = inspect_files([tmp_path / "t.jsonl"])
    assert report.given_because == {"says nothing": 1}
    (failure,) = read({"messages": [USER, {"role": "assistant", "content": None}]})
    assert isinstance(failure, Failure) and failure.reason == "says_nothing"


def test_words_under_unknown_keys_are_named(read):
    (failure,) = read({"messages": [USER, {"role": "assistant", "utterances": ["It is the R61."]}]})
    assert isinstance(failure, Failure) and "utterances" in failure.message
    (failure,) = read({"messages": [{"role": "user", "utterances": ["Which?"]}, ANSWER]})
    assert isinstance(failure, Failure) and failure.reason == "unread" and "utterances" in failure.message
    (trace,) = read({"messages": [USER, ANSWER, {"role": "user", "utterances": ["And back?"]}, ANSWER]})
    assert shape(trace) == ["user", "assistant", "user", "assistant*"], "what it answers is not known"


def test_what_stands_before_the_first_user_message_is_given(read):
    call = {"id": "c1", "function": {"name": "find_train", "arguments": "{}"}}
    shown = {"role": "assistant", "content": None, "tool_calls": [call]}
    (trace,) = read({"messages": [ANSWER, shown, RESULT, USER, ANSWER]})
    assert shape(trace) == ["assistant*", "assistant* find_train", "tool", "user", "assistant"]
    (sampled,) = read({"messages": [{**ANSWER, "prompt_token_ids": [1], "token_ids": [2]}, USER, ANSWER]})
    assert shape(sampled) == ["assistant", "user", "assistant"], "its prompt is recorded"


@pytest.mark.parametrize(
    "messages", [[ANSWER], [{"role": "system", "content": "Be brief."}, ANSWER], [RESULT, ANSWER]], ids=str
)
def test_a_lost_request_is_a_failure(read, messages):
    (failure,) = read({"messages": messages, "asked_elsewhere": "Which train?"})
    assert isinstance(failure, Failure) and failure.reason == "no_request" and "asked_elsewhere" in failure.message


CHOICES = {"choices": [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]}


@pytest.mark.parametrize("under", ["request", "inputs", "kwargs", "input", "body", "params"])
@pytest.mark.parametrize("answered", ["response", "output", "outputs"])
def test_requests_and_answers_are_read_under_any_of_their_keys(read, under, answered):
    (trace,) = read({"id": "1", under: {"messages": [USER], "tools": [FIND]}, answered: CHOICES})
    assert shape(trace) == ["user", "assistant"] and list(trace.tool_schemas) == ["find_train"]


def test_a_prompt_is_a_request_and_an_unknown_key_is_named(read):
    (trace,) = read({"id": "1", "prompt": "Which train?", "output": CHOICES})
    assert [m.content for m in trace.messages] == ["Which train?", "It is the R61."]
    (failure,) = read({"id": "1", "whatever": {"messages_of": [USER]}, "output": CHOICES})
    assert isinstance(failure, Failure) and failure.reason == "no_request" and "whatever" in failure.message


KEYS = ["arguments", "args", "input", "parameters", "params", "kwargs", "tool_input", "toolInput", "function_arguments"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("value", [{"origin": "Oslo"}, '{"origin": "Oslo"}'], ids=["object", "text"])
def test_arguments_are_read_under_any_of_their_keys(read, key, wrapped, value):
    inner = {"name": "find_train", key: value}
    call = {"id": "c1", "type": "function", "function": inner} if wrapped else {"id": "c1", **inner}
    (trace,) = read({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, RESULT, ANSWER]})
    (made,) = trace.messages[1].tool_calls
    assert (made.arguments, made.id) == ({"origin": "Oslo"}, "c1")
    assert made.arguments_form == ("string" if isinstance(value, str) else "object")


def test_arguments_under_an_unknown_key_are_a_failure_that_names_it(read):
    def of(**call: Any) -> Trace | Failure:
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        (outcome,) = read({"messages": [USER, said, RESULT, ANSWER]})
        return outcome

    for call in ({"name": "find_train", "payload": {"origin": "Oslo"}}, {"function": {"name": "f", "body": "x"}}):
        failure = of(**call)
        assert isinstance(failure, Failure) and ("payload" in failure.message or "body" in failure.message)
    bare = of(name="find_train", id="c1", type="function")
    assert isinstance(bare, Trace) and bare.messages[1].tool_calls[0].arguments == {}, (
        "a call of a name and nothing else"
    )


MASKS = [
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"trainable": False},
    {"is_trainable": "false"},
    {"loss": False},
    {"loss_mask": 0},
    {"lossMask": [0, 0, 0]},
    {"loss_weight": 0},
    {"train_on_turn": False},
    {"mask": True},
    {"masked": 1},
    {"ignore": True},
]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("form", ["chat", "sharegpt"])
def test_masks_make_a_turn_given_and_are_counted(read, tmp_path, mask, form):
    if form == "chat":
        record = {"messages": [USER, {**ANSWER, **mask}, USER, ANSWER]}
    else:
        said = {"from": "gpt", "value": "It is the R61."}
        asked = {"from": "human", "value": "Which?"}
        record = {"conversations": [asked, {**said, **mask}, asked, said]}
    (trace,) = read(record)
    assert shape(trace) == ["user", "assistant*", "user", "assistant"]
    (report,) = inspect_files([tmp_path / "t.jsonl"])
    assert report.given_steps == 1 and list(report.given_because) == [trace.messages[1].extra["given_because"]]


@pytest.mark.parametrize(
    "mask", [{"weight": 1}, {"train": True}, {"mask": False}, {"loss_mask": [0, 1]}, {"weight": 0.5}], ids=str
)
def test_what_is_trained_stays_a_step(read, mask):
    (trace,) = read({"messages": [USER, {**ANSWER, **mask}]})
    assert shape(trace) == ["user", "assistant"]


THOUGHTS = [
    {"reasoning_content": "Need a lookup."},
    {"reasoning": "Need a lookup."},
    {"thinking": "Need a lookup."},
    {"reasoning": None, "reasoning_details": [{"type": "reasoning.text", "text": "Need a lookup.", "index": 0}]},
    {"reasoning_details": [{"type": "reasoning.summary", "summary": "Need a lookup."}]},
    {"thinking_blocks": [{"type": "thinking", "thinking": "Need a lookup.", "signature": "x"}]},
    {"reasoning": {"text": "Need a lookup."}},
    {"content": [{"type": "thinking", "thinking": "Need a lookup."}, {"type": "text", "text": "It is the R61."}]},
    {"content": [{"type": "reasoning", "text": "Need a lookup."}, {"type": "text", "text": "It is the R61."}]},
]


@pytest.mark.parametrize("thought", THOUGHTS, ids=str)
def test_reasoning_is_read_wherever_it_stands(read, thought):
    (trace,) = read({"messages": [USER, {**ANSWER, **thought}]})
    assert (trace.messages[1].reasoning, trace.messages[1].content) == ("Need a lookup.", "It is the R61.")


def test_encrypted_reasoning_is_kept_and_not_read(read):
    hidden = [{"type": "reasoning.encrypted", "data": "abc"}]
    (trace,) = read({"messages": [USER, {**ANSWER, "reasoning_details": hidden}]})
    assert trace.messages[1].reasoning is None and trace.messages[1].extra["reasoning_details"] == hidden


SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]}
CLIENT = [
    ("shell_call", {"action": {"commands": ["ls"]}}, [{"stdout": "a.py", "stderr": ""}]),
    ("local_shell_call", {"action": {"command": ["ls"]}}, "a.py"),
    ("apply_patch_call", {"operation": {"type": "update_file", "path": "a.py", "diff": "@@"}}, "ok"),
    ("computer_call", {"action": {"type": "click", "x": 1, "y": 2}}, {"type": "computer_screenshot", "image_url": "u"}),
    ("custom_tool_call", {"name": "code", "input": "print(1)"}, "1"),
    ("some_new_call", {"doing": {"what": "that"}}, "it is done"),
]


@pytest.mark.parametrize(("what", "held", "output"), CLIENT, ids=[c[0] for c in CLIENT])
def test_calls_of_every_kind_of_item_are_calls_with_their_results(read, what, held, output):
    items = [
        {"type": what, "call_id": "c1", **held},
        {"type": f"{what}_output", "call_id": "c1", "output": output},
        SAID,
    ]
    (trace,) = read({"object": "response", "input": "Do it.", "output": items})
    name = held.get("name") or what.removesuffix("_call")
    assert shape(trace) == ["user", f"assistant {name}", "tool", "assistant"]
    words = next(iter(held.values())) if "input" not in held else held["input"]
    inner = json.dumps(words) if not isinstance(words, str) else words
    assert inner.strip("{}") in trace.messages[1].tool_calls[0].arguments_raw
    assert trace.messages[2].content and trace.messages[2].tool_call_id == "c1"


HOSTED = [
    ("mcp_call", {"name": "find_train", "arguments": "{}", "output": "R61"}),
    ("code_interpreter_call", {"code": "print(1)", "outputs": [{"type": "logs", "logs": "1"}]}),
    ("file_search_call", {"queries": ["oslo"], "results": [{"text": "R61"}]}),
]


@pytest.mark.parametrize(("what", "held"), HOSTED, ids=[c[0] for c in HOSTED])
def test_a_call_that_a_server_ran_is_a_turn_with_its_result(read, what, held):
    (trace,) = read({"object": "response", "input": "Do it.", "output": [{"type": what, "id": "1", **held}, SAID]})
    assert [m.role for m in trace.messages] == ["user", "assistant", "tool", "assistant"]
    assert trace.messages[1].tool_calls and trace.messages[2].content


@pytest.mark.parametrize(
    "item", [{"type": "web_search_call", "id": "1"}, {"type": "item_of_tomorrow", "x": "y"}], ids=str
)
def test_after_an_item_that_cannot_be_shown_no_turn_is_the_students(read, item):
    """The answer does not stand without what it answers."""
    (failure,) = read({"object": "response", "input": "Do it.", "output": [item, SAID]})
    assert isinstance(failure, Failure) and failure.reason == "unread" and item["type"] in failure.message
    (trace,) = read(
        {"object": "response", "input": "Do it.", "output": [SAID, {"role": "user", "content": "On."}, item, SAID]}
    )
    assert [m.given for m in trace.messages if m.role == "assistant"] == [False, True]
    assert item["type"] in trace.messages[-1].extra["given_because"]


def test_blocks_of_server_tools_keep_their_order(read):
    blocks = [
        {"type": "text", "text": "Let me see."},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "oslo"}},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "s1",
            "content": [{"type": "web_search_result", "title": "T"}],
        },
        {"type": "text", "text": "The R61."},
    ]
    (trace,) = read({"model": "m", "messages": [USER, {"role": "assistant", "content": blocks}]})
    assert shape(trace) == ["user", "assistant web_search", "tool", "assistant"] and "T" in trace.messages[2].content
    (failure,) = read({"model": "m", "messages": [USER, {"role": "assistant", "content": [blocks[1], blocks[3]]}]})
    assert isinstance(failure, Failure) and "server_tool_use" in failure.message


def test_a_call_of_a_tool_that_only_the_server_knows_is_not_held_against_the_student(read):
    call = {"type": "mcp_call", "id": "1", "name": "fetch", "arguments": "{}", "output": "R61"}
    listing = {"type": "mcp_list_tools", "tools": [{"name": "fetch", "input_schema": {"type": "object"}}]}
    body = {"object": "response", "input": "Do it.", "tools": [FIND]}
    (trace,) = read({**body, "output": [call, SAID]})
    assert shape(trace) == ["user", "assistant* fetch", "tool", "assistant"]
    assert "fetch" in trace.messages[1].extra["given_because"]
    (listed,) = read({**body, "output": [listing, call, SAID]})
    assert shape(listed) == ["user", "assistant fetch", "tool", "assistant"]
    assert list(listed.tool_schemas) == ["find_train", "fetch"], "what the server listed the student was shown"


def test_a_part_that_is_a_call_is_not_read_as_text(read):
    part = {"type": "tool_call", "text": "find_train(Oslo)"}
    (failure,) = read({"messages": [USER, {"role": "assistant", "content": [part]}]})
    assert isinstance(failure, Failure) and "tool_call" in failure.message


def line(n: int, kind: str, message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    above = str(n - 1) if n > 1 else None
    return {"sessionId": "s", "uuid": str(n), "parentUuid": above, "type": kind, "message": message, **fields}


def test_snapshots_of_one_message_are_read_once_in_their_latest_state(read):
    def said(*blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"id": "m1", "role": "assistant", "model": "m", "content": list(blocks), **more}

    text = [{"type": "text", "text": t} for t in ("It", "It is", "It is the R61.")]
    use = [{"type": "tool_use", "id": "t", "name": "f", "input": i} for i in ({}, {"x": "Oslo"})]
    lines = [line(1, "user", USER)] + [line(n, "assistant", said(b)) for n, b in enumerate([*text, *use], 2)]
    (trace,) = read(*lines)
    assert [m.content for m in trace.messages] == [USER["content"], "It is the R61."]
    assert [c.arguments for c in trace.messages[1].tool_calls] == [{"x": "Oslo"}]


def test_lines_that_the_tool_wrote_in_the_models_place_are_given(read):
    wrong = {
        "id": "m1",
        "role": "assistant",
        "model": "<synthetic>",
        "content": [{"type": "text", "text": "API Error"}],
    }
    right = {"id": "m2", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "R61."}]}
    (trace,) = read(
        line(1, "user", USER), line(2, "assistant", wrong), line(3, "user", USER), line(4, "assistant", right)
    )
    assert shape(trace) == ["user", "assistant*", "user", "assistant"] and trace.model == "m"


def test_a_qwen_code_session_has_its_own_reader(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, SEEDS["qwen_code"])))
    (trace,) = read_traces([path])
    assert shape(trace) == ["user", "assistant f", "tool"] and trace.messages[1].reasoning == "hm"
    assert trace.messages[1].tool_calls[0].arguments == {"x": "1"} and trace.model == "m"


def test_what_is_rendered_beside_the_messages_makes_another_context(read):
    """The same words under other schemas, other template options, other call ids or names are no repeat."""
    other = {"type": "function", "function": {"name": "find_train", "description": "Other.", "parameters": {}}}
    call = {"id": "c1", "function": {"name": "find_train", "arguments": "{}"}}
    made = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, RESULT, ANSWER]
    again = json.loads(json.dumps(made).replace("c1", "c2"))
    base = {"id": "a", "messages": made, "tools": [FIND]}
    variants: dict[str, tuple[dict[str, Any], int]] = {
        "the same": ({}, 1),
        "schemas": ({"tools": [other]}, 2),
        "no schemas": ({"tools": []}, 2),
        "options": ({"chat_template_kwargs": {"enable_thinking": False}}, 2),
        "call ids": ({"messages": again}, 2),
    }
    for name, (change, expected) in variants.items():
        found = read(base, {**base, **change})
        assert sum(isinstance(o, Trace) for o in found) == expected, name
    shorter = {"id": "b", "messages": made[:2], "tools": [FIND]}
    assert [isinstance(o, Trace) for o in read(base, shorter)] == [True, False]
    assert [isinstance(o, Trace) for o in read(base, {**shorter, "tools": [other]})] == [True, True]


def test_two_answers_that_were_thought_otherwise_are_two_samples():
    from hintdistill.traces.repeats import chains

    def one(thought: str) -> list[dict[str, Any]]:
        return [USER, {**ANSWER, "reasoning_content": thought}]

    assert len(chains([one("a"), one("b"), one("a")])) == 2
    assert (
        len(chains([one("a"), one("a")], [[FIND], []])) == 2
        and len(chains([one("a"), one("a")], [[FIND], [FIND]])) == 1
    )

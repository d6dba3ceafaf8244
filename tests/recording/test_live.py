"""Conversations as they grow: one trace each, every turn with the ids of the call that said it, nothing lost on the way."""

from __future__ import annotations

import json

import pytest

from hintdistill.core.errors import ConfigError, TraceError
from hintdistill.core.types import Trace
from hintdistill.recording import otlp
from hintdistill.recording.jsonable import jsonable
from hintdistill.recording.sink import RecordingWarning, TraceSink
from hintdistill.traces.reading import read_traces

USER = {"role": "user", "content": "How warm is it?"}


def call(messages, text, ids):
    """A model call as an OpenAI-compatible server logs it."""
    choice = {"message": {"role": "assistant", "content": text}, "token_ids": ids}
    return {"request": {"messages": messages}, "response": {"choices": [choice], "prompt_token_ids": [1, 2]}}


def said(text):
    return {"role": "assistant", "content": text}


def read(folder):
    return [t for t in read_traces([folder]) if isinstance(t, Trace)]


def test_a_conversation_grows_in_one_file_and_keeps_the_ids_of_every_turn(tmp_path):
    sink = TraceSink(tmp_path)
    sink.call(call([USER], "Where?", [5, 6]))
    (trace,) = read(tmp_path)
    assert trace.step(0).token_ids == (5, 6)
    sink.call(call([USER, said("Where?"), {"role": "user", "content": "Paris"}], "21", [7]))
    (trace,) = read(tmp_path)
    assert [m.content for m in trace.messages] == ["How warm is it?", "Where?", "Paris", "21"]
    assert trace.step(0).token_ids == (5, 6) and trace.step(1).token_ids == (7,) and not trace.given_steps
    assert sink.written == 2 and len(list(tmp_path.iterdir())) == 1


def test_conversations_that_part_share_a_turn_once(tmp_path):
    sink = TraceSink(tmp_path)
    sink.call(call([USER], "Where?", [5, 6]))
    for place in ("Paris", "Rome"):
        sink.call(call([USER, said("Where?"), {"role": "user", "content": place}], f"In {place}", [7]))
    first, second = sorted((t for t in read(tmp_path)), key=lambda t: len(t.given_steps))
    assert not first.given_steps and second.given_steps == {0}
    assert {first.messages[-1].content, second.messages[-1].content} == {"In Paris", "In Rome"}


def test_the_same_question_twice_is_two_conversations(tmp_path):
    sink = TraceSink(tmp_path)
    for text in ("Where?", "21"):
        sink.call(call([USER], text, [5]))
    assert sorted(t.step(0).content for t in read(tmp_path)) == ["21", "Where?"]


def test_what_cannot_be_read_is_kept_as_it_came(tmp_path):
    sink = TraceSink(tmp_path)
    sink.call(
        {"request": {"messages": [USER]}, "response": {"choices": [{"message": {"role": "assistant", "content": 3}}]}}
    )
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("calls-") and json.loads(path.read_text())["request"] == {"messages": [USER]}


def test_a_failure_is_counted_and_said_once(tmp_path):
    sink = TraceSink(tmp_path)
    with pytest.warns(RecordingWarning, match="ValueError: no") as heard:
        sink.failed(ValueError("no"))
        sink.failed(ValueError("again"))
    assert sink.lost == 2 and len(heard) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be recorded"):
        TraceSink(tmp_path / "file" / "folder")


def test_json_of_what_frameworks_hand_over():
    class NotGiven:
        pass

    class Model:
        def model_dump(self, mode, exclude_none):
            return {"a": (1, float("nan"))}

    value = {"x": NotGiven(), "y": Model(), 3: {True: object}}
    assert jsonable(value) == {"y": {"a": [1, None]}, "3": {"True": "<class 'object'>"}}


def test_otlp_bodies_are_checked():
    body = json.dumps({"resourceSpans": []}).encode()
    assert otlp.decode(body, "application/json") == {"resourceSpans": []}
    import gzip

    assert otlp.decode(gzip.compress(body), "application/json", "gzip") == {"resourceSpans": []}
    for wrong, encoding in ((b"{", ""), (b"[]", ""), (body, "gzip"), (body, "br"), (gzip.compress(body * 9), "gzip")):
        with pytest.raises(TraceError):
            otlp.decode(wrong, "application/json", encoding, max_bytes=60)

"""Schemas from outside: nothing is fetched, every call is judged in bounded time, and a schema at fault judges nothing."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from hintdistill.core.schemas import CannotJudge, violations
from hintdistill.core.types import Message, ToolCall, Trace
from hintdistill.critics.rules import RulesCritic
from hintdistill.reporting.inspection import inspect_files
from tests.support.command import hintdistill

LONG = "a" * 40 + "!"
DOUBLING = {
    "properties": {"x": {"$ref": "#/$defs/a0"}},
    "$defs": {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(30)} | {"a30": {"type": "string"}},
}
UNEVALUATED = {
    "unevaluatedProperties": False,
    "$ref": "#/$defs/a0",
    "$defs": {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(30)} | {"a30": {}},
}
UNBOUNDED: dict[str, tuple[Any, Any]] = {
    "pattern": ({"properties": {"x": {"pattern": "^(a+)+$"}}}, {"x": LONG}),
    "pattern of a name": ({"patternProperties": {"^(a|a)*$": {}}}, {LONG: 1}),
    "pattern behind a reference": (
        {"$ref": "#/$defs/p", "$defs": {"p": {"propertyNames": {"pattern": "(a*)*$"}}}},
        {LONG: 1},
    ),
    "references that double": (DOUBLING, {"x": 1}),
    "references that double, unevaluated": (UNEVALUATED, {"x": 1}),
    "a quadratic comparison": ({"properties": {"x": {"uniqueItems": True}}}, {"x": [{"i": i} for i in range(20_000)]}),
}
AT_FAULT: dict[str, tuple[Any, Any]] = {
    "a type of a vendor": ({"type": "dict"}, {}),
    "no pattern": ({"properties": {"x": {"pattern": "("}}}, {"x": "y"}),
    "a loop": ({"$ref": "#"}, {}),
    "no number": ({"properties": {"x": {"multipleOf": 0}}}, {"x": 3}),
    "a list": ([], {}),
    "a place that is not there": ({"$ref": "#/$defs/gone"}, {}),
}


@pytest.mark.parametrize("case", UNBOUNDED)
def test_a_call_that_nothing_bounds_is_given_up(case: str):
    with pytest.raises(CannotJudge, match=r"of computing|1000 violations"):
        violations(*UNBOUNDED[case])
    # the helper was ended over it, and the next one judges on
    assert [v.rule for v in violations({"properties": {"x": {"pattern": "^b"}}}, {"x": "a"})] == ["pattern"]


@pytest.mark.parametrize("case", AT_FAULT)
def test_a_schema_at_fault_judges_nothing(case: str):
    with pytest.raises(CannotJudge):
        violations(*AT_FAULT[case])


@pytest.mark.parametrize("extra", [{}, {"uniqueItems": True}], ids=["here", "in the helper"])
def test_violations_say_where_and_what(extra: dict[str, Any]):
    inner = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["c"]}
    schema = {"properties": {"z": {"enum": [1]}, "a": {"$ref": "#/$defs/a"}}, "$defs": {"a": inner}, **extra}
    found = violations(schema, {"z": 2, "a": {"b": "\ud800"}})
    assert [(v.path, v.rule) for v in found] == [(("a",), "required"), (("a", "b"), "type"), (("z",), "enum")]
    assert found[1].value == "\ud800" and found[1].expected == "integer" and found[1].schema == {"type": "integer"}
    assert violations(schema, {"a": {"b": 1, "c": 0}}) == []


def test_no_reference_is_fetched_and_the_step_is_counted(tmp_path: Path):
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        local = tmp_path / "schema.json"
        local.write_text('{"type": "string"}')
        file = tmp_path / "traces.jsonl"
        named = [f"http://127.0.0.1:{server.server_port}/s.json", local.as_uri(), "other.json#/a"]
        file.write_text("".join(json.dumps(record({"properties": {"x": {"$ref": r}}})) + "\n" for r in named))
        (report,) = inspect_files([file])
        assert (report.traces, report.not_judged, report.checks) == (3, 3, {})
        done = hintdistill("traces", "inspect", str(file))
        assert done.returncode == 0 and "3 steps with a call that its tool's schema cannot judge" in done.stdout
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []


def test_the_critique_says_which_call_was_not_judged():
    call = ToolCall(id="1", name="get", arguments_raw='{"x": 1}')
    trace = Trace(
        id="t",
        messages=(Message(role="user", content="q"), Message(role="assistant", tool_calls=(call,))),
        tools=({"type": "function", "function": {"name": "get", "parameters": {"type": "dict"}}},),
    )
    critique = RulesCritic(["wrong_argument"]).check(trace)
    assert critique.verdict == "none"
    assert critique.notes[0].startswith("not judged: step 0: the schema of get cannot judge its call: UnknownType")


def record(parameters: dict[str, Any]) -> dict[str, Any]:
    """A trace in the OpenAI format with one call, `get({"x": "1"})`."""
    call = {"id": "1", "type": "function", "function": {"name": "get", "arguments": '{"x": "1"}'}}
    return {
        "tools": [{"type": "function", "function": {"name": "get", "parameters": parameters}}],
        "messages": [
            {"role": "user", "content": json.dumps(parameters)},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "ok"},
            {"role": "assistant", "content": "done"},
        ],
    }

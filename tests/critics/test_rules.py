"""The deterministic checks: what each one sees, and what it leaves alone."""

from __future__ import annotations

import json

import pytest
from conftest import TIME, WEATHER, call, real_file, tool

from hintdistill.config import CHECKS
from hintdistill.core.types import Message, ToolCall, Trace
from hintdistill.critics.rules import RulesCritic, call_results, error_text, is_environment_fault
from hintdistill.traces.options import ReadOptions
from hintdistill.traces.reading import load_tools, read_traces

CRITIC = RulesCritic(CHECKS)
ASK = Message(role="user", content="Weather in Paris?")


def found(*messages, tools=(WEATHER, TIME), critic=CRITIC):
    return critic.check(Trace(id="t", messages=(ASK, *messages), tools=tools)).findings


def test_unknown_tool():
    (f,) = found(call("get_forecast", "{}"), tool('{"error":"unknown tool"}'))
    assert (f.error_class, f.quote, f.quote_in, f.call, f.step) == ("unknown_tool", "get_forecast", "tool_name", 0, 0)
    assert f.facts == {"wrong": "get_forecast", "tools": ["get_weather", "get_time"]}
    assert found(call("get_forecast", "{}"), tool("21"), tools=()) == ()


@pytest.mark.parametrize(
    ("raw", "error_class", "quote", "facts"),
    [
        ('{"place":"Paris"}', "wrong_argument", "place", {"wrong": "place", "right": "city"}),
        ("{}", "wrong_argument", None, {"right": "city"}),
        ('{"city":"Paris","day":1}', "wrong_argument", "day", {"wrong": "day"}),
        ('{"city":3}', "wrong_argument_type", "3", {"argument": "city", "expected": "of type string"}),
        (
            '{"city":"Paris","unit":"F"}',
            "wrong_argument_type",
            "F",
            {"argument": "unit", "expected": 'one of "celsius", "kelvin"'},
        ),
        ('{"city":"Par', "unparsable_call", '{"city":"Par', {"tool": "get_weather"}),
        ("[1]", "unparsable_call", "[1]", {"tool": "get_weather"}),
    ],
)
def test_arguments_against_the_schema(raw, error_class, quote, facts):
    (f,) = found(call("get_weather", raw))
    assert (f.error_class, f.quote) == (error_class, quote)
    assert facts.items() <= f.facts.items()


def test_sound_calls_are_left_alone():
    assert found(call("get_weather", '{"city":"Paris"}'), tool("21"), Message(role="assistant", content="21")) == ()
    # an open schema allows more
    assert found(call("get_time", '{"city":"Paris","zone":1}')) == ()
    # a vendor's schema that JSON schema does not know judges nothing
    odd = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "dict", "properties": {"a": {"type": "float"}}}},
    }
    assert found(call("f", '{"a":"x"}'), tools=(odd,)) == ()
    # a call without arguments, as some servers log it
    nothing = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert found(call("f", ""), tools=(nothing,)) == ()


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "get_weather"}</tool_call>',
        "I will call <function=get_weather> now",
        '```json\n{"name": "get_weather", "arguments": {}}\n```',
        "[TOOL_CALLS] [...]",
        "<tool_call>search\n{..",
    ],
)
def test_call_in_prose(text):
    (f,) = found(Message(role="assistant", content=text))
    assert f.error_class == "call_in_prose" and f.quote in text


def test_code_is_no_call():
    assert found(Message(role="assistant", content='```json\n{"name": "Paris", "size": 3}\n```')) == ()


def test_call_error_blames_the_call_and_not_the_environment():
    (f,) = found(call("get_weather", '{"city":"X"}'), tool("Error: no such city"))
    assert (f.error_class, f.confidence) == ("call_error", 0.5)
    for excuse in (
        '{"error":"timeout"}',
        "Error: 503 Service Unavailable",
        '{"error":"rate limit exceeded"}',
        "Error: connection reset",
    ):
        assert found(call("get_weather", '{"city":"X"}'), tool(excuse)) == ()


def test_repeated_failing_call():
    step = call("get_weather", '{"city":"X"}')
    first, second = found(step, tool("Error: no such city"), step, tool("Error: no such city"))
    assert (first.error_class, second.error_class) == ("call_error", "repeated_failing_call")
    assert second.caused_by == 0
    # trying again after the environment's fault is right
    assert found(step, tool('{"error":"busy"}'), step, tool("21")) == ()


def test_ignored_error():
    step = call("get_weather", '{"city":"X"}')
    (f,) = found(step, tool('{"error":"timeout"}'), Message(role="assistant", content="It is 21 degrees."))
    assert (f.error_class, f.step, f.facts) == ("ignored_error", 1, {"tool": "get_weather", "error": "timeout"})
    assert (
        found(step, tool('{"error":"timeout"}'), Message(role="assistant", content="Sorry, the lookup failed.")) == ()
    )
    assert found(step, tool('{"error":"timeout"}'), step) == ()
    assert found(step, tool('{"temp":21,"warning":"timeout"}'), Message(role="assistant", content="21")) == ()


def test_checks_can_be_chosen():
    critic = RulesCritic(("ignored_error",))
    assert found(call("nope", "{}"), tool("x"), critic=critic) == ()
    assert critic.key(None) != CRITIC.key(None)


def test_results_are_paired_by_id_only_where_ids_are_sound():
    two = Message(
        role="assistant",
        tool_calls=(ToolCall(name="a", arguments_raw="{}", id="1"), ToolCall(name="b", arguments_raw="{}", id="2")),
    )
    swapped = Trace(id="t", messages=(ASK, two, tool("B", "2"), tool("A", "1")))
    assert [(c.call.name, c.result) for c in call_results(swapped)] == [("a", "A"), ("b", "B")]
    same = two.model_copy(update={"tool_calls": tuple(c.model_copy(update={"id": "1"}) for c in two.tool_calls)})
    reused = Trace(id="t", messages=(ASK, same, tool("A", "1"), tool("B", "1")))
    assert [c.result for c in call_results(reused)] == ["A", "B"]
    open_end = Trace(id="t", messages=(ASK, two, tool("A", None)))
    assert [c.result for c in call_results(open_end)] == ["A", None]


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (None, None),
        ("21", None),
        ('{"error": null, "x": 1}', None),
        ('{"error": {"code": 4}}', '{"code": 4}'),
        ('{"status": "error", "message": "bad"}', "bad"),
        ("Traceback (most recent call last):\n", "Traceback (most recent call last):"),
        ("ValueError: x", "ValueError: x"),
        ("The error rate is low", None),
        ("[" * 100_000, None),
    ],
)
def test_what_counts_as_an_error(result, error):
    assert error_text(result) == error


def test_environment_faults():
    assert is_environment_fault("Request timed out") and is_environment_fault("HTTP 429")
    assert not is_environment_fault("unknown city 4290")


def test_real_airline_traces_fire_as_measured():
    """On a capable model nothing is malformed, and a twentieth of the results are errors that blame the call."""
    path, tools = (
        real_file("openai_chat", "tau_bench_airline_gpt4o.json"),
        real_file("openai_chat", "tools_tau_airline.json"),
    )
    classes: dict[str, int] = {}
    errors = results = 0
    for trace in read_traces([path], ReadOptions(tools=load_tools(tools))):
        paired = call_results(trace)
        results += sum(c.result is not None for c in paired)
        errors += sum(error_text(c.result) is not None for c in paired)
        for f in CRITIC.check(trace).findings:
            classes[f.error_class] = classes.get(f.error_class, 0) + 1
    assert "unknown_tool" not in classes and "unparsable_call" not in classes
    assert 0.03 < errors / results < 0.08
    assert classes["call_error"] >= 10, json.dumps(classes)

"""The text-level guards: a planted-leak set, illegal calls, vacuous hints, and what they must let pass."""

from __future__ import annotations

import json

import pytest
from conftest import TIME, WEATHER, real_file

from hintdistill.core.types import Message, ToolCall, Trace
from hintdistill.injection.hints import guards, illegal_actions, is_vacuous, leaks
from hintdistill.traces.reading import read_traces

KNOWN = (
    "user: I am Maria Lopez. Please move my booking ZX81QP from 2024-05-01 to 3 May and mail me at maria@example.com. "
    'assistant: One moment. tool: {"booking":"ZX81QP","price":412.5,"seat":"14C","city":"Paris"}'
)
TRACE = Trace(
    id="t",
    tools=(WEATHER, TIME),
    messages=(
        Message(role="user", content="?"),
        Message(role="assistant", tool_calls=(ToolCall(name="get_forecast", arguments_raw='{"city":"Paris"}'),)),
    ),
)
PLANTED = [
    "The new flight is HAT271, so pass that.",
    "Use booking QT55RB instead of ZX81QP.",
    "The refund is 389.25 dollars.",
    "The answer is 42.",
    "It costs $1,204 in the end.",
    "Change the date to 2024-06-17.",
    "The meeting is on 12 June.",
    "It happens at 14:45.",
    "Ask for Wilson first.",
    "Talk to Yusuf Rossi about it.",
    "Yusuf Rossi has the ticket.",
    "Wilson's account is the right one.",
    "Mail the receipt to yusuf@example.com.",
    'The status will be "out for delivery".',
    "The code is `r3fund`.",
    "Look at order #W6247578.",
    "See https://example.com/orders/77 for it.",
    "The file is report_final_v2.",
    "Seat 22F is the free one.",
    "The user lives in Berlin.",
    "Fly to Tokyo and not to Paris.",
    "The airport code is JFK.",
    "Choose the item with id 6086499569.",
    "The result will be seventeen.",
    "There are forty two rows.",
    "Pay with certificate_7504069.",
    "The gift card holds 150.",
    "Pass 'gold member' as the tier.",
    "The tracking number is 1Z999.",
    "Version 2.1.4 is the one that works.",
    "The room is B-204.",
    "Call it on 555-0134.",
    "He was born in 1987.",
    "The ratio is 0.73.",
    "The order went to Charlotte.",
    "The customer chose express, says Ana.",
    "Take the 9 o'clock train.",
    "You will find 11 matches.",
    "The key is AB-77-CD.",
    "In the end Norway wins.",
]
CLEAN = [
    "Use the booking ZX81QP that the user named.",
    "The user said 2024-05-01, so do not change the year.",
    "Maria Lopez asked for 3 May.",
    "Mail the receipt to maria@example.com.",
    "Call get_weather with the city Paris.",
    "The argument is called city.",
    'The value of unit is "celsius" or "kelvin".',
    "Check the list of tools before you call one.",
    "Wait for the user to agree first.",
    "The price is 412.5, as the tool says.",
    "Seat 14C is taken already.",
    "Read the rules again. Then answer.",
    "Arguments are JSON objects, not text.",
    "The last call failed. Do not answer from it.",
    "Look up the ID with a tool first.",
    "There is no tool named get_forecast in the list.",
    "Do not call get_forecast here.",
    "Ask the user before you go on.",
    "The tool get_time gives the time, not the weather.",
    "Compare the answer with what was asked for.",
]


def test_recall_on_planted_leaks_and_peace_for_clean_hints():
    caught = [hint for hint in PLANTED if leaks(hint, TRACE, KNOWN + " get_forecast")]
    flagged = [hint for hint in CLEAN if leaks(hint, TRACE, KNOWN + " get_forecast")]
    assert len(caught) / len(PLANTED) >= 0.95, sorted(set(PLANTED) - set(caught))
    assert len(flagged) / len(CLEAN) <= 0.05, flagged


def _values(value):
    """Every leaf of a JSON value that is a number, or a string with a digit or a capital letter."""
    if isinstance(value, dict):
        return [v for item in value.values() for v in _values(item)]
    if isinstance(value, list):
        return [v for item in value for v in _values(item)]
    if isinstance(value, str) and 3 <= len(value) <= 40 and any(c.isdigit() or c.isupper() for c in value):
        return [value]
    return [str(value)] if isinstance(value, int | float) and not isinstance(value, bool) and value > 100 else []


def test_recall_on_later_results_of_real_traces():
    """What a tool returns later, planted into a hint above an earlier step."""
    path = real_file("annotated", "agentrx_tau_retail_failed.json")
    phrasings = ["The value is {}.", 'Pass "{}" here.', "Use {} and nothing else.", "It has to be {}, as you will see."]
    caught = total = 0
    for trace in read_traces([path]):
        assert isinstance(trace, Trace)
        step = len(trace.step_indices) // 2
        known = json.dumps([m.model_dump() for m in trace.before(step)], ensure_ascii=False)
        later = []
        for message in trace.messages[trace.step_indices[step] + 1 :]:
            if message.role == "tool":
                try:
                    later += _values(json.loads(message.content or ""))
                except ValueError:
                    continue
        fresh = [v for v in dict.fromkeys(later) if v.casefold() not in known.casefold()][:40]
        for n, value in enumerate(fresh):
            total += 1
            caught += bool(leaks(phrasings[n % 4].format(value), trace, known))
    assert total > 100 and caught / total >= 0.95, f"{caught} of {total}"


def test_whole_numbers_only():
    assert leaks("The total is 42.", TRACE, "order 1420 and 42x") == ["42"]
    assert leaks("The total is 1420.", TRACE, "order 1420 and 42x") == []


@pytest.mark.parametrize(
    ("hint", "what"),
    [
        ("Use get_forecast instead.", "the hint proposes get_forecast, which is not a listed tool"),
        ("Call the tool `find_city` first.", "the hint proposes find_city, which is not a listed tool"),
        ("Try lookup(city) before.", "the hint proposes lookup, which is not a listed tool"),
        ('Call {"name":"get_sun","arguments":{}}.', "the hint shows a call of get_sun, which is not a listed tool"),
        (
            'Call {"name":"get_weather","arguments":{"place":"Paris"}}.',
            "the hint shows get_weather with place, an argument that it does not have",
        ),
    ],
)
def test_illegal_actions(hint, what):
    assert illegal_actions(hint, TRACE) == [what]
    assert f"illegal: {what}" in guards(hint, TRACE, 0, KNOWN + "get_forecast find_city get_sun", "")


@pytest.mark.parametrize(
    "hint",
    [
        "Use get_weather instead.",
        "Do not call get_forecast.",
        "There is no tool get_forecast. Use get_weather.",
        "Never use get_forecast.",
        "Take the city from the request.",
        "Use the argument city.",
        'Call {"name":"get_weather","arguments":{"city":"Paris"}}.',
        "Call get_time with city.",
    ],
)
def test_legal_actions_pass(hint):
    assert illegal_actions(hint, TRACE) == []


def test_nothing_is_illegal_without_schemas():
    assert illegal_actions("Use get_forecast.", Trace(id="t", messages=TRACE.messages)) == []


@pytest.mark.parametrize(
    ("hint", "empty"),
    [
        ("Be careful.", True),
        ("Please think step by step and avoid mistakes.", True),
        ("Check it.", True),
        ("   ", True),
        ("Double-check your answer before you reply, please.", True),
        ("The city is missing.", False),
        ("Retry the call that timed out.", False),
        ("Use get_weather.", False),
    ],
)
def test_vacuous(hint, empty):
    assert is_vacuous(hint) is empty
    assert any(g.startswith("vacuous") for g in guards(hint, TRACE, 0, KNOWN, "")) is empty

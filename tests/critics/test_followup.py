"""Findings from what came after a step: what clearly says that it was wrong, and what does not."""

from __future__ import annotations

import json

import pytest
from conftest import TIME, WEATHER, call, real_file, tool

from hintdistill.core.types import Message, Trace
from hintdistill.critics.followup import HINTS, FollowupCritic, correction
from hintdistill.prompts import PromptLibrary
from hintdistill.traces.options import ReadOptions
from hintdistill.traces.reading import read_traces

CRITIC = FollowupCritic(PromptLibrary())
ASK = Message(role="user", content="Weather in Paris?")


def user(text: str) -> Message:
    return Message(role="user", content=text)


def said(text: str) -> Message:
    return Message(role="assistant", content=text)


def found(*messages, critic=CRITIC):
    return critic.check(Trace(id="t", messages=(ASK, *messages), tools=(WEATHER, TIME))).findings


@pytest.mark.parametrize(
    "text",
    [
        "That's wrong. Paris in Texas.",
        "Hmm, this is not what I asked for. Give me the temperature.",
        "No, I meant Paris, Texas!",
        "You misunderstood me: I need the weather of today.",
        "You should have checked the time zone first.",
        "You used the wrong tool.",
        "I said Celsius, not Fahrenheit.",
        "I only wanted to cancel the hose, not the entire order. Can the rest still go through?",
        "I didn't ask you to book anything.",
        "Please undo that.",
        "Das ist falsch.",
        "Nein, ich meinte Paris in Texas.",
        "Das war nicht, was ich wollte.",
        "C'est faux. Je parle du Texas.",
        "Eso no es lo que pedí.",
        "Te equivocaste, era otra ciudad.",
        "Isso está errado.",
        "Questo è sbagliato.",
        "不对，我要的是德克萨斯州的巴黎。",
        "違います。テキサスのパリです。",
    ],
)
def test_a_user_who_says_that_the_step_was_wrong(text):
    (f,) = found(said("It is 21 degrees in Paris."), user(text), said("I see."))
    assert (f.step, f.error_class, f.quote, f.critic, f.hint) == (
        0,
        "user_correction",
        None,
        "followup",
        HINTS["user_correction"],
    )
    assert f.facts["said"] in text and f.caused_by is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No, that's all. Thanks!",
        "Actually, I'd prefer the second cheapest one.",
        "That's not bad at all.",
        "Is that wrong?",
        "Isn't this incorrect? I do not know.",
        "That's right, not too late.",
        "Sorry, I meant Paris in Texas, not the other one. My mistake.",
        "Oops, I gave you the wrong zip code. That's wrong.",
        "It was sent to the wrong address by the shop. Can you help?",
        "You should have my address on file.",
        "There is nothing wrong with it.",
        "Yes, and it's not what my sister ordered.",
        "Can you do that instead?",
        "Nein danke, das ist alles.",
        "Non, merci.",
        "Thanks for checking. " * 20 + "That's wrong.",
    ],
)
def test_what_is_not_clear_is_no_finding(text):
    assert correction(text) is None and found(said("It is 21 degrees in Paris."), user(text)) == ()


def test_a_no_to_a_question_answers_it():
    assert found(said("Shall I book the flight to Paris?"), user("No, I meant Rome.")) == ()
    assert found(call("get_weather", '{"city":"Paris"}'), user("That's wrong.")) == (), (
        "nothing came back from the call"
    )
    given = said("Paris is warm.").model_copy(update={"given": True})
    assert found(given, user("That's wrong.")) == ()


def test_after_a_call_it_is_the_act_that_is_wrong_or_nothing_is_clear():
    """What a user calls wrong in a report of an act is the act; of a report of results it may be either."""
    cancel, done = call("cancel_order", '{"id":"W1"}'), tool('{"status":"cancelled"}')
    said_so = user("I only wanted to cancel the hose, not the entire order.")
    (f,) = found(said("Which one?"), user("The hose."), cancel, done, said("It is cancelled."), said_so)
    assert (f.step, f.error_class, f.facts["said"]) == (1, "user_correction", said_so.content)
    assert found(cancel, done, said("It is cancelled."), user("That's wrong.")) == ()
    assert found(cancel, done, cancel, done, said("Both are cancelled."), said_so) == (), "which of the two?"
    assert found(cancel.model_copy(update={"given": True}), done, said("Done."), said_so) == ()


@pytest.mark.parametrize(
    ("answer", "error_class"),
    [
        ("The user doesn't want to proceed with this action. The tool use was rejected.", "denied_call"),
        ("User rejected the tool call. Reason: too early.", "denied_call"),
        ("Command was denied by the user", "denied_call"),
        ('{"error": "execution declined by the operator"}', "denied_call"),
        ("Error: the human did not approve this request", "denied_call"),
        ("The user modified your proposed changes before accepting them.", "edited_call"),
        ('{"status": "arguments were edited by the reviewer", "temp": 21}', "edited_call"),
        ("bash: permission denied", None),
        ('{"payment": "declined by the user\'s bank", "id": 3}', None),
        ('{"error": "access denied"}', None),
        ("The user denied having a second account. " + "Notes of the call follow. " * 40, None),
        ('{"temp": 21}', None),
    ],
)
def test_a_call_that_a_person_refused_or_changed(answer, error_class):
    """Those who approve calls speak in the call's result; a file system and a bank refuse things as well."""
    got = found(call("get_weather", '{"city":"Paris"}'), tool(answer), said("I see."))
    assert [f.error_class for f in got] == ([error_class] if error_class else [])
    for f in got:
        quote, where = (
            ("get_weather", "tool_name") if error_class == "denied_call" else ('{"city":"Paris"}', "arguments")
        )
        assert (f.step, f.quote, f.quote_in, f.call, f.hint) == (0, quote, where, 0, HINTS[error_class])


BAD = '{"error": "invalid argument: place"}'


@pytest.mark.parametrize(
    ("first", "answer", "second", "quote"),
    [
        (("get_weather", {"place": "Paris"}), BAD, ("get_weather", {"city": "Paris"}), "place"),
        (
            ("get_weather", {"city": "paris "}),
            "Error: invalid city format",
            ("get_weather", {"city": "Paris"}),
            "paris ",
        ),
        (("get_weather", {"city": 3}), "Error: city must be a string", ("get_weather", {"city": "3"}), "3"),
        (("weather", {"city": "Paris"}), "Error: unknown tool", ("get_weather", {"city": "Paris"}), "weather"),
        (("get_weather", {"city": "Paris"}), '{"error": "not found"}', ("get_weather", {"city": "Pari"}), None),
        (("get_weather", {"city": "Paris"}), "Error: timed out, invalid", ("get_weather", {"city": "Pari"}), None),
        (("get_weather", {"city": "Paris"}), BAD, ("get_weather", {"city": "Oslo"}), None),
        (("get_weather", {"city": "Paris"}), BAD, ("get_weather", {"city": "Paris"}), None),
        (("get_weather", {"city": "Paris"}), BAD, ("get_time", {"city": "Paris"}), None),
        (("get_weather", {"city": "Paris"}), '{"temp": 3}', ("get_weather", {"city": "Pari"}), None),
        (("run", {"c": "ls -k"}), "Traceback (most recent call last):\n invalid option", ("run", {"c": "ls -l"}), None),
    ],
)
def test_a_refused_call_that_works_when_it_is_mended(first, answer, second, quote):
    calls = [call(name, json.dumps(arguments)) for name, arguments in (first, second)]
    got = found(calls[0], tool(answer), calls[1], tool('{"temp": 21}'), said("It is 21."))
    assert [f.quote for f in got] == ([quote] if quote else [])
    kinds = {"place": ("wrong_argument", "city"), "weather": ("unknown_tool", "get_weather")}
    error_class, right = kinds.get(quote or "", ("retried_call", None))
    for f in got:
        assert (f.step, f.error_class, f.facts["tool"], f.facts.get("right")) == (0, error_class, first[0], right)
        assert f.hint == HINTS.get(error_class) and (f.hint is None) == (right is not None), "the class has a template"
    if quote:
        again = found(calls[0], tool(answer), calls[1], tool(answer), said("No luck."))
        assert again == (), "a second try that fails as well shows nothing"
        asked = found(calls[0], tool(answer), user("It is in France."), calls[1], tool('{"temp": 21}'))
        assert asked == (), "what the user added may be why it works"


def test_a_template_of_the_class_writes_the_hint(tmp_path):
    (tmp_path / "hints").mkdir()
    (tmp_path / "hints" / "user_correction.jinja").write_text("Mind this: {{ said }}")
    mine = FollowupCritic(PromptLibrary(tmp_path))
    (f,) = found(said("It is 21."), user("That's wrong. In Texas."), critic=mine)
    assert f.hint is None and f.facts["said"] == "That's wrong."
    assert mine.key(Trace(id="t", messages=(ASK,))) != CRITIC.key(Trace(id="t", messages=(ASK,)))


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("openhands", [("retried_call", 13), ("user_correction", 0)]),
        ("toolbench", [("unknown_tool", 4), ("unknown_tool", 2), ("unknown_tool", 0), ("unknown_tool", 2)]),
        ("openai_chat/tau_bench_airline_gpt4o.json", []),
    ],
)
def test_on_real_traces_of_several_formats(file, expected):
    traces = [t for t in read_traces([real_file(file)], ReadOptions()) if isinstance(t, Trace)]
    assert [(f.error_class, f.step) for t in traces for f in CRITIC.check(t).findings] == expected

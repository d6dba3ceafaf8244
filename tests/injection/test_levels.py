"""The level of a hint: how much of the answer it holds. And what competes within a level."""

from __future__ import annotations

import pytest
from conftest import TIME, WEATHER

from hintdistill.core.types import Finding, Message, ToolCall, Trace
from hintdistill.injection.candidates import choose
from hintdistill.injection.hints import leaks, placebo_texts, primes
from hintdistill.injection.levels import hint_level, words_of
from hintdistill.prompts import PromptLibrary, shipped_library

ROUTE = {
    "type": "function",
    "function": {"name": "plan_route", "parameters": {"type": "object", "properties": {"goal": {"type": "string"}}}},
}
TRACE = Trace(
    id="t",
    tools=(WEATHER, TIME, ROUTE),
    messages=(
        Message(role="system", content="Tools."),
        Message(role="user", content="What is the weather in Paris? I leave on 3 May."),
        Message(role="assistant", tool_calls=(ToolCall(name="get_forecast", arguments_raw='{"city":"Paris"}'),)),
    ),
)
FINDING = Finding(step=0, error_class="unknown_tool", quote="get_forecast", facts={"wrong": "get_forecast"})
ARGUMENT = Trace(
    id="a",
    tools=(WEATHER, TIME),
    messages=(
        Message(role="user", content="What time is it in Paris?"),
        Message(role="assistant", tool_calls=(ToolCall(name="get_time", arguments_raw='{"place":"Paris"}'),)),
    ),
)


def level(hint: str, trace: Trace = TRACE, finding: Finding = FINDING) -> int:
    step = trace.step(finding.step)
    said = [*(m.content or "" for m in trace.messages), *(f"{c.name} {c.arguments_raw}" for c in step.tool_calls)]
    return hint_level(hint, trace, finding, leaks(hint, trace, " ".join(said)))


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("Call one of the listed tools, by its exact name.", 0),
        ("That was an error. Repeat the same call.", 0),
        ("There is no tool get_forecast.", 1),
        ("The user asks for the weather in Paris.", 1),
        ("The tools are get_weather, get_time, plan_route.", 1),
        ("The right tool here is get_weather.", 2),
        ("Take get_weather or get_time.", 2),
        ("Pass 4471 as the id.", 3),
    ],
)
def test_levels(hint, expected):
    assert level(hint) == expected


def test_the_only_argument_that_is_left_is_offered_by_the_schema():
    finding = Finding(step=0, error_class="wrong_argument", quote="place", facts={"right": "city", "wrong": "place"})
    assert level("The argument of get_time is called city.", ARGUMENT, finding) == 1
    # a fact of the finding that no schema offers is a correction
    value = Finding(step=0, error_class="misread_result", facts={"right": "Paris"})
    text = Trace(
        id="v", messages=(Message(role="user", content="Rome or Paris?"), Message(role="assistant", content="Rome."))
    )
    assert level("It is Paris.", text, value) == 2


def test_principles_are_level_0_and_every_template_has_a_level_below_3():
    library = shipped_library()
    for error_class in (
        "unknown_tool",
        "ignored_error",
        "premature_finish",
        "wrong_argument",
        "skipped_lookup",
        "unneeded_call",
    ):
        text = library.render("candidates/principle.jinja", {"error_class": error_class})
        assert level(text) == 0, text
    facts = {"right": "get_weather", "tool": "get_weather", "error_class": "unknown_tool"}
    assert level(library.render("candidates/action.jinja", facts)) == 2


def test_an_answer_free_placebo_has_no_word_of_the_answer():
    hint = "The right tool here is get_weather."
    for n in range(3):
        trace = TRACE.model_copy(update={"id": f"t{n}"})
        ((_, text),) = placebo_texts(trace, FINDING, hint, shipped_library(), ["shuffled_answer_free"])
        assert "get_weather" not in words_of(text) and len(text.split()) == len(hint.split())
        ((_, other),) = placebo_texts(trace, FINDING, hint, shipped_library(), ["other_class"])
        assert "get_weather" not in words_of(other)


def test_another_classs_hint_does_not_name_the_right_tool_where_the_hint_does_not():
    finding = FINDING.model_copy(update={"facts": {**FINDING.facts, "right": "get_weather"}})
    for n in range(6):
        trace = TRACE.model_copy(update={"id": f"t{n}"})
        ((kind, text),) = placebo_texts(trace, finding, "I still need the weather.", shipped_library(), ["other_class"])
        assert kind == "other_class" and "get_weather" not in words_of(text)


def test_what_primes_is_said():
    assert primes("There is no get_forecast. Use get_weather.", TRACE, FINDING) == [
        "the wrong name 'get_forecast' comes first"
    ]
    assert primes("Use get_weather, not get_forecast.", TRACE, FINDING) == []
    assert primes("The tools are get_weather, get_time, plan_route.", TRACE, FINDING) == ["the hint lists 3 tools"]


def test_no_shipped_hint_names_the_wrong_word_first_or_lists_the_tools():
    library = shipped_library()
    assert [a for name in library.names() for a in library.advice(name)] == []


def test_a_template_that_does_is_told(tmp_path):
    (tmp_path / "hints").mkdir()
    path = tmp_path / "hints" / "unknown_tool.jinja"
    path.write_text("There is no {{ wrong }}. {% if right is defined %}Use {{ right }}.{% endif %}")
    (advice,) = PromptLibrary(tmp_path).advice("hints/unknown_tool.jinja")
    assert advice.startswith(f"{path}: it mentions the wrong word first")
    path.write_text(
        "{% if right is defined %}Use {{ right }}, not {{ wrong }}.{% else %}Look: {{ tools | join(' ') }}{% endif %}"
    )
    assert [a.split(": ")[1].split(";")[0] for a in PromptLibrary(tmp_path).advice("hints/unknown_tool.jinja")] == [
        "it lists the tools"
    ]


def test_the_choice_is_by_odds_within_a_level_and_by_level_among_accepted_winners():
    groups = {
        "one": [("a", 0, 1.0, True)],
        # the better of level 0 fails the gate, so that the weaker one is not asked; level 1 is taken before level 2
        "two": [("b", 0, 3.0, False), ("c", 0, 1.0, True), ("d", 2, 9.0, True), ("e", 1, 4.0, True)],
        "none": [("f", 1, 0.5, False), ("g", 2, 0.2, False)],
    }
    assert choose(groups) == {
        "a": "only",
        "b": "other_level",
        "c": "outranked",
        "d": "other_level",
        "e": "best",
        "f": "best",
        "g": "other_level",
    }

"""Prompts are for editing: found in order, linted with file and line, sandboxed, hashed with what they include."""

from __future__ import annotations

import re

import pytest
from conftest import TOOLWORLD
from jinja2 import Environment, meta

from hintdistill.config import CHECKS, LLMSection
from hintdistill.core.errors import ConfigError, NoHintError, PromptError
from hintdistill.core.types import Finding, Message, ToolCall, Trace
from hintdistill.critics.llm import LLMCritic
from hintdistill.critics.rules import RulesCritic
from hintdistill.critics.server import ServerBackend
from hintdistill.injection.hints import differs_in_dialect, guards, hint_text, leaks, placebo_texts
from hintdistill.prompts import PromptLibrary, attempts_context, hint_classes

SHIPPED = PromptLibrary()


@pytest.fixture
def folder(tmp_path):
    for kind in ("hints", "critic", "placebo"):
        (tmp_path / kind).mkdir()
    return tmp_path


def test_shipped_prompts_are_sound():
    for library in (SHIPPED, PromptLibrary(TOOLWORLD / "prompts")):
        assert [p for n in library.names() for p in library.lint(n)] == []
    assert set(CHECKS) <= set(hint_classes(SHIPPED)), "every check needs a hint"


@pytest.mark.parametrize("library", [SHIPPED, PromptLibrary(TOOLWORLD / "prompts")], ids=["shipped", "toolworld"])
def test_every_prompt_documents_its_variables_at_the_top(library):
    for name in library.names():
        head, _, body = library.path(name).read_text().partition("-#}")
        assert head.startswith("{#-") and "Variables:" in head, f"{name} does not document its variables at the top"
        said = set(re.findall(r"\w+", head.split("Variables:")[1]))
        used = meta.find_undeclared_variables(Environment().parse(body))
        assert used <= said, f"{name} uses {used - said}, which its head does not name"


CLASSES = {
    "unknown_tool",
    "wrong_argument",
    "wrong_argument_type",
    "unparsable_call",
    "call_in_prose",
    "repeated_failing_call",
    "ignored_error",
    "skipped_lookup",
    "premature_finish",
    "policy_violation",
    "wrong_answer",
}


def test_every_error_class_has_a_hint_that_needs_no_model(weather_trace):
    """From facts that a finding or its step has; nothing vacuous, nothing that names what the student cannot know."""
    assert set(hint_classes(SHIPPED)) >= CLASSES
    facts = {
        "wrong": "city_name",
        "right": "city",
        "argument": "city",
        "expected": "of type string",
        "error": "no such city",
    }
    known = "Weather in Paris? no such city, city_name"
    for error_class in hint_classes(SHIPPED):
        text = hint_text(weather_trace, Finding(step=0, error_class=error_class, facts=facts, call=0), SHIPPED)
        assert len(text) > 20 and guards(text, weather_trace, 0, known, "get_forecast") == (), (error_class, text)


def test_a_critic_prompt_is_linted_for_its_place(folder):
    """A variable that only another question has is found before anything is asked, not trace by trace."""
    mine = folder / "critic" / "mine.jinja"
    mine.write_text("{#- first: a word of the head -#}\nWhich half, {{ legal_steps }}:\n{{ first }}?")
    library = PromptLibrary(folder)
    assert library.lint("critic/mine.jinja") == [], "some question may have it"
    assert library.lint("critic/mine.jinja", "half_prompt") == []
    (problem,) = library.lint("critic/mine.jinja", "prompt")
    assert problem.startswith(f"{mine}:3: unknown variable 'first'")
    backend = ServerBackend(LLMSection(base_url="http://localhost:1", model="m"))
    with pytest.raises(ConfigError, match=r"mine.jinja:3: unknown variable 'first'"):
        LLMCritic(LLMSection(prompt="critic/mine.jinja"), library, backend)
    mine.write_text("{% if step is defined %}Step {{ step }}.{% endif %} {{ legal_steps }}")
    assert [
        p for role in ("prompt", "step_prompt") for p in PromptLibrary(folder).lint("critic/mine.jinja", role)
    ] == []
    (folder / "critic" / "record.jinja").write_text("{{ tools }}\n{{ trace }}\n{{ legal_steps }}")
    with pytest.raises(ConfigError, match=r"record.jinja:3: unknown variable 'legal_steps'"):
        LLMCritic(LLMSection(), PromptLibrary(folder), backend)


def test_what_is_included_counts_as_mentioned(folder):
    (folder / "critic" / "whole.jinja").write_text("{% include 'critic/record.jinja' %}\n{{ legal_steps }}")
    library = PromptLibrary(folder)
    assert library.mentions("critic/whole.jinja", "trace") and not library.mentions("critic/whole.jinja", "step")


def test_a_users_file_comes_first_and_the_rest_stays(folder):
    (folder / "hints" / "unknown_tool.jinja").write_text("Mine: {{ wrong }}")
    library = PromptLibrary(folder)
    assert library.render("hints/unknown_tool.jinja", {"wrong": "x"}) == "Mine: x"
    assert library.hash("hints/unknown_tool.jinja") != SHIPPED.hash("hints/unknown_tool.jinja")
    assert library.hash("hints/wrong_argument.jinja") == SHIPPED.hash("hints/wrong_argument.jinja")


def test_lint_names_file_and_line(folder):
    path = folder / "hints" / "bad.jinja"
    path.write_text("fine\n{{ wrongg }}")
    assert PromptLibrary(folder).lint("hints/bad.jinja")[0].startswith(f"{path}:2: unknown variable 'wrongg'")
    path.write_text("a\nb {% if %}")
    assert f"{path}:2" in PromptLibrary(folder).lint("hints/bad.jinja")[0]
    with pytest.raises(PromptError, match=r"bad.jinja:2"):
        PromptLibrary(folder).render("hints/bad.jinja", {})


def test_strict_and_sandboxed(folder):
    path = folder / "hints" / "x.jinja"
    path.write_text("{{ wrong }}")
    with pytest.raises(PromptError, match="'wrong' is undefined"):
        PromptLibrary(folder).render("hints/x.jinja", {})
    path.write_text("{{ wrong.__class__.__mro__ }}")
    with pytest.raises(PromptError, match="unsafe"):
        PromptLibrary(folder).render("hints/x.jinja", {"wrong": "x"})
    path.write_text("{{ tools.append(1) }}")
    with pytest.raises(PromptError):
        PromptLibrary(folder).render("hints/x.jinja", {"tools": []})
    path.write_text("  {# nothing #} ")
    with pytest.raises(PromptError, match="renders to an empty text"):
        PromptLibrary(folder).render("hints/x.jinja", {})


def test_hash_covers_what_is_included(folder):
    (folder / "hints" / "a.jinja").write_text("{% include 'hints/b.jinja' %}")
    (folder / "hints" / "b.jinja").write_text("one")
    before = PromptLibrary(folder).hash("hints/a.jinja")
    (folder / "hints" / "b.jinja").write_text("two")
    assert PromptLibrary(folder).hash("hints/a.jinja") != before


def test_missing_folder_and_prompt(tmp_path):
    with pytest.raises(PromptError, match="no prompt folder"):
        PromptLibrary(tmp_path / "nowhere")
    with pytest.raises(PromptError, match=r"no prompt 'hints/none.jinja'"):
        SHIPPED.path("hints/none.jinja")


def trace(*tool_calls) -> Trace:
    return Trace(
        id="t",
        messages=(
            Message(role="user", content="Weather in Paris on 2024-05-01?"),
            Message(role="assistant", tool_calls=tool_calls),
        ),
    )


def test_every_check_renders_its_hint(weather_trace):
    (first, _) = RulesCritic(CHECKS).check(weather_trace).findings
    text = hint_text(weather_trace, first, SHIPPED)
    assert text == "Only the listed tools can be called. Take the one that fits the request, by its exact name."


def test_the_critics_own_words_come_first_and_a_class_without_template_is_said(weather_trace):
    assert hint_text(weather_trace, Finding(step=0, error_class="zzz", hint="own"), SHIPPED) == "own"
    for error_class in ("zzz", "../../secrets", "a/b"):
        with pytest.raises(NoHintError, match="no template"):
            hint_text(weather_trace, Finding(step=0, error_class=error_class), SHIPPED)


KINDS = ("generic", "shuffled", "other_class")


def test_placebos_differ_and_are_the_same_every_time(weather_trace):
    finding = Finding(step=0, error_class="unknown_tool")
    got = placebo_texts(weather_trace, finding, "one two three four", SHIPPED, KINDS * 2)
    assert got == placebo_texts(weather_trace, finding, "one two three four", SHIPPED, KINDS * 2)
    assert [k for k, _ in got] == [*KINDS, *KINDS]
    assert len({t for _, t in got}) == 6
    # a hint of one word cannot be shuffled
    assert [k for k, _ in placebo_texts(weather_trace, finding, "Stop.", SHIPPED, KINDS)] == [
        "generic",
        "generic",
        "other_class",
    ]


@pytest.mark.parametrize(
    ("hint", "leaked"),
    [
        ("Use the date 2024-05-01.", []),
        ("Use the date 2024-06-02.", ["2024-06-02"]),
        ('The answer is "forty two".', ["forty two", "forty"]),
        ("Ask for old Wilson first.", ["Wilson"]),
        ("Call find_hotel with H42.", ["find_hotel", "H42"]),
        ("Mail bob@example.com now.", ["bob@example.com"]),
        ("Use get_weather for Paris.", []),
        ("Check the list of tools. Then call one.", []),
    ],
)
def test_leak_guard(hint, leaked, weather_trace):
    known = "Weather in Paris on 2024-05-01?"
    assert leaks(hint, weather_trace, known) == leaked
    found = [g for g in guards(hint, weather_trace, 0, known, "") if g.startswith("leak")]
    assert len(found) == len(leaked)


def test_dialect_guard():
    compact = trace(ToolCall(name="f", arguments_raw='{"city":"Paris"}'))
    assert differs_in_dialect('Call f with {"city": "Paris"}.', compact, 0)
    assert not differs_in_dialect('Call f with {"city":"Paris"}.', compact, 0)
    assert not differs_in_dialect("Call f with the city.", compact, 0)
    # what a source re-serialised is not the student's dialect
    lost = trace(ToolCall(name="f", arguments_raw='{"city":"Paris"}', arguments_form="object"))
    assert not differs_in_dialect('Call f with {"city": "Paris"}.', lost, 0)


def test_attempts_of_a_hard_task_are_told_apart_by_the_reader():
    """ZPPO's contexts: the order says nothing, and depends on nothing but texts and seed."""
    right, wrong = [f"right {i}" for i in range(40)], [f"failed {i}" for i in range(40)]
    texts = [attempts_context(SHIPPED, [a], [b, "another"]) for a, b in zip(right, wrong, strict=True)]
    first = [t.index(a) < t.index(b) for t, a, b in zip(texts, right, wrong, strict=True)]
    assert 8 < sum(first) < 32 and all("another" not in t for t in texts)
    assert texts[0] == attempts_context(SHIPPED, right[:1], wrong[:1])
    none = attempts_context(SHIPPED, [], ["x", "y"])
    assert "2 earlier attempts" in none and none.index("Attempt 1:\nx") < none.index("Attempt 2:\ny")
    with pytest.raises(PromptError, match="nothing to contrast"):
        attempts_context(SHIPPED, ["x"], [])

"""Context makers: words for a step, or a counted reason; and where their tokens go."""

from __future__ import annotations

import pytest

from hintdistill.config import InjectSection
from hintdistill.config.contexts import ContextsSection
from hintdistill.core.errors import CONTEXT_REASONS, HintTooLongError, NoContextError
from hintdistill.core.extensions import HINT_SOURCES
from hintdistill.core.types import Finding, Message, Trace
from hintdistill.injection.contexts import ContextCase, attempt, contexts_of, made
from hintdistill.injection.splice import Injector
from hintdistill.prompts import shipped_library
from hintdistill.reporting.ways_out import WAYS_OUT

LIBRARY = shipped_library()


def rollout(name: str, answer: str, reward: float | None, task: str | None = "t") -> Trace:
    messages = (Message(role="user", content="How warm is it?"), Message(role="assistant", content=answer))
    return Trace(id=name, messages=messages, reward=reward, task_id=task)


OWN = rollout("own", "It is warm.", 0.0)
PEERS = (
    OWN,
    rollout("good", "It is 21 degrees.", 1.0),
    rollout("better", "It is 20 degrees.", 1.0),
    rollout("bad", "No idea.", 0.0),
    rollout("unjudged", "Cold.", None),
)
FINDING = Finding(step=0, error_class="wrong_answer", hint="Ask the tool for the temperature first.")


def case(trace: Trace = OWN, **given) -> ContextCase:
    return ContextCase(trace, FINDING, LIBRARY, **given)


def test_rollouts_of_the_task_are_shown_and_never_ones_own():
    assert made("peer_success", case(peers=PEERS)) != made("peer_failure", case(peers=PEERS))
    both = made("peers", case(peers=PEERS, shown=3))
    assert "21 degrees" in both and "20 degrees" in both and "No idea" in both
    for name in (
        "peer_success",
        "peer_failure",
        "peers",
        "attempt_success",
        "attempt_failure",
        "bcq",
        "ncq",
        "verified",
    ):
        text = made(name, case(peers=PEERS, shown=3))
        assert "It is warm" not in text and "Cold" not in text, name
    assert made("attempt_success", case(peers=PEERS[:2])).replace("It is 21 degrees.", "No idea.") == made(
        "attempt_failure", case(peers=PEERS[3:])
    ), "right and wrong in the same words"


def test_several_contexts_differ_and_begin_anew_at_the_end():
    first, second, third = (made("peer_success", case(peers=PEERS, number=n)) for n in range(3))
    assert first != second and third == first
    hints = [made("wrong", case(number=n)) for n in range(3)]
    assert len(set(hints)) == 3 and FINDING.hint not in hints


def test_own_success_and_what_is_verified():
    won = PEERS[1]
    assert attempt(won) in made("own_success", case(won)) and made("verified", case(won)) == made(
        "own_success", case(won)
    )
    assert "degrees" in made("verified", case(peers=PEERS))


def test_what_came_after_the_step():
    messages = (
        Message(role="user", content="Go."),
        Message(role="assistant", content="look"),
        Message(role="tool", content="error: no such tool"),
        Message(role="assistant", content="done"),
    )
    trace = Trace(id="a", messages=messages, reward=0.0, extra={"feedback": "The file is missing."})
    text = made("observation", ContextCase(trace, FINDING, LIBRARY))
    assert "no such tool" in text and "file is missing" in text and "failed" in text and "done" not in text
    assert FINDING.hint in made("hindsight", ContextCase(trace, FINDING, LIBRARY))


def test_texts_of_a_task_come_from_the_trace_first():
    texts = {"solution": {"t": "21."}, "demonstration": {"t": "ask, then say"}, "file": {"t": "a plan"}}
    for name in texts:
        assert texts[name]["t"] in made(name, case(texts=texts))
    own = OWN.model_copy(update={"extra": {"solution": "22."}})
    assert "22." in made("solution", case(own, texts=texts)) and made("file", case(texts=texts)) == "a plan"


def test_rules_hints_labels_and_tools(weather_trace):
    finding = Finding(step=0, error_class="unknown_tool", hint="Call get_weather.", facts={"wrong": "weather"})
    of = ContextCase(weather_trace, finding, LIBRARY, findings=(finding, FINDING))
    assert "get_weather(city, unit)" in made("reminder", of) and "unknown tool" in made("type_label", of)
    assert made("rule", of) in made("rules", of) and len(made("rules", of).splitlines()) > 5
    assert made("hints", of) == f"{finding.hint}\n{FINDING.hint}"
    assert (
        made("partial", ContextCase(weather_trace, finding, LIBRARY, hint="one two three four", rho=0.5)) == "one two"
    )
    assert made("critic", of) == finding.hint and made("empty", of) == ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("peer_success", "no_peer_success"),
        ("peer_failure", "no_peer_failure"),
        ("peers", "no_peer"),
        ("own_success", "no_own_success"),
        ("verified", "no_peer_success"),
        ("ncq", "no_peer_failure"),
        ("solution", "no_solution"),
        ("demonstration", "no_demonstration"),
        ("file", "no_file"),
        ("reminder", "no_tools"),
        ("rule", "no_rule"),
        ("hints", "no_finding"),
        ("partial", "no_part"),
    ],
)
def test_a_step_without_its_context_is_a_reason(name, reason):
    with pytest.raises(NoContextError) as error:
        made(name, case(OWN))
    assert error.value.reason == reason


def test_every_reason_has_a_way_out():
    assert set(WAYS_OUT) >= CONTEXT_REASONS


def test_every_shipped_maker_says_what_it_reads():
    assert all(s.reads or s.control for s in HINT_SOURCES.entries())


@pytest.mark.parametrize("placements", [("message",), ("observation",), ("system_prompt",)])
def test_further_contexts_stand_where_the_hint_stands(placements, student_renderer, unknown_tool_case):
    trace, finding, _ = unknown_tool_case
    injector = Injector(student_renderer, LIBRARY, InjectSection(placements=placements))
    views = {"partial:0.5": ("partial", 0, 0.5), "wrong": ("wrong", 0, 0.5), "empty": ("empty", 0, 0.5)}
    contexts = contexts_of("critic", views, ContextCase(trace, finding, LIBRARY))
    (made_,) = injector.in_context(trace, finding, contexts)
    assert made_.placement == placements[0] and set(made_.views) == set(views) and not made_.views["empty"].block_ids
    for block in (made_.views["partial:0.5"], made_.views["wrong"]):
        assert block.text in student_renderer.decode(block.block_ids)
        read = made_.context_ids[: block.insert_at] + block.block_ids + made_.context_ids[block.insert_at :]
        assert student_renderer.decode(read).count(block.text) == 1
    assert made_.views["wrong"].insert_at == made_.insert_at


def test_an_empty_context_is_read_by_another_model(student_renderer, unknown_tool_case):
    trace, finding, _ = unknown_tool_case
    contexts = contexts_of("empty", {}, ContextCase(trace, finding, LIBRARY))
    (injection,) = Injector(student_renderer, LIBRARY, InjectSection()).in_context(trace, finding, contexts)
    assert injection.hint == "" and injection.hinted_ids == injection.plain_ids and not injection.placebos


def test_a_document_has_a_bound_of_its_own(student_renderer, unknown_tool_case):
    trace, finding, _ = unknown_tool_case
    told = ContextCase(trace, finding, LIBRARY, texts={"file": {trace.task_id or trace.id: "find the tool " * 300}})
    contexts = contexts_of("file", {}, told)
    roomy = InjectSection(placements=("system_prompt",), max_hint_tokens=8)
    assert Injector(student_renderer, LIBRARY, roomy, {}).in_context(trace, finding, contexts)
    tight = InjectSection(placements=("system_prompt",), contexts=ContextsSection(max_tokens=64))
    with pytest.raises(HintTooLongError, match="more than 64"):
        Injector(student_renderer, LIBRARY, tight, {}).in_context(trace, finding, contexts)

"""Hints that worked are offered before a step that looks alike, fit the context they are told in, and go when nobody needs them."""

from __future__ import annotations

import pytest
from conftest import STUDENT, TOOLWORLD
from world import Toolworld

import hintdistill as hd
from hintdistill.agents.memory import FILE
from hintdistill.config import CriticSection
from hintdistill.core.errors import ArgumentError
from hintdistill.critics.recorded import RecordedCritic
from hintdistill.prompts import PromptLibrary
from hintdistill.traces.reading import read_traces

pytestmark = pytest.mark.usefixtures("one_thread")
LIBRARY = PromptLibrary(TOOLWORLD / "prompts")


@pytest.fixture(scope="module")
def loaded():
    return hd.load_engine(str(STUDENT), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def diagnosis(loaded, unknown_tool_case):
    critic = hd.load_critic(CriticSection(prompts=str(TOOLWORLD / "prompts")))
    found = hd.diagnose(unknown_tool_case[0], engine=loaded, critic=critic, step=0)
    assert found.best is not None
    return found


def beginning(trace):
    return [{"role": m.role, "content": m.content} for m in trace.before(0)], list(trace.tools)


def test_a_hint_is_offered_where_the_context_is_alike_and_survives_a_restart(tmp_path, diagnosis, unknown_tool_case):
    trace, finding, _ = unknown_tool_case
    memory = hd.HintMemory(tmp_path, library=LIBRARY)
    messages, tools = beginning(trace)
    assert memory.lookup(messages, tools=tools) == [] and len(memory) == 0
    (key,) = memory.add(diagnosis)
    assert memory.add(diagnosis) == [key] and len(memory) == 1
    again = hd.HintMemory(tmp_path, library=LIBRARY)
    (offered,) = again.lookup(messages, tools=tools)
    assert offered.hint == diagnosis.best.hint and offered.likeness == 1.0 and offered.key == key
    assert offered.tool == finding.facts["wrong"] and again.active()[0]["seen"] == 2
    # another request, another agent
    assert again.lookup([{"role": "user", "content": "Write a poem about rain."}], tools=tools) == []


def test_a_hint_is_not_offered_where_the_tool_is_listed_or_its_names_are_unknown(
    tmp_path, diagnosis, unknown_tool_case
):
    trace, finding, _ = unknown_tool_case
    memory = hd.HintMemory(tmp_path)
    memory.add(diagnosis)
    messages, tools = beginning(trace)
    wrong = {"type": "function", "function": {"name": finding.facts["wrong"], "parameters": {"type": "object"}}}
    assert memory.lookup(messages, tools=[*tools, wrong]) == []
    # other tools than those the hint names: its class's template speaks instead, or nothing does
    other = {"type": "function", "function": {"name": "get_moon_phase", "parameters": {"type": "object"}}}
    named = [t["function"]["name"] for t in tools]
    for offered in memory.lookup(messages, tools=[other]):
        assert not any(n in offered.hint for n in named)


def test_entries_are_exported_as_findings_of_a_run(tmp_path, diagnosis):
    memory = hd.HintMemory(tmp_path / "memory")
    memory.add(diagnosis)
    traces, findings = memory.export(tmp_path / "out")
    (trace,) = read_traces([traces])
    ((_, critique),) = RecordedCritic(findings).critique([trace])
    (finding,) = critique.findings
    assert finding.hint == diagnosis.best.hint and finding.quote == diagnosis.best.quote
    assert trace.step(finding.step).tool_calls == diagnosis.trace.step(0).tool_calls


def test_a_hint_that_is_no_longer_needed_is_retired(tmp_path, loaded, diagnosis, unknown_tool_case):
    memory = hd.HintMemory(tmp_path)
    (key,) = memory.add(diagnosis)
    assert memory.review(loaded) == [] and len(memory) == 1
    # for a student to whom the error is less likely than this, the hint has done its work
    assert memory.review(loaded, min_probability=1.1) == [key]
    messages, tools = beginning(unknown_tool_case[0])
    assert len(memory) == 0 and memory.lookup(messages, tools=tools) == []
    assert hd.HintMemory(tmp_path).retired()[0]["retired"].startswith("the student gives the error")
    # the error is back
    memory.add(diagnosis)
    assert len(memory) == 1


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="min_likeness"):
        hd.HintMemory(tmp_path, min_likeness=0)
    memory = hd.HintMemory(tmp_path)
    with pytest.raises(ArgumentError, match="no entry"):
        memory.retire("x", "y")
    with pytest.raises(ArgumentError, match="`diagnosis` is a dict"):
        memory.add({})
    with pytest.raises(ArgumentError, match="`messages` is a str"):
        memory.lookup("Hello")
    assert not (tmp_path / FILE).exists()


def test_where_a_step_went_well_no_hint_is_offered(tmp_path, loaded, diagnosis, unknown_tool_case):
    memory = hd.HintMemory(tmp_path, library=LIBRARY)
    memory.add(diagnosis)
    messages, tools = beginning(unknown_tool_case[0])
    assert memory.lookup(messages, tools=tools)
    clean = [*messages, {"role": "assistant", "content": "Done."}]
    assert memory.add(hd.diagnose(clean, tools=tools, engine=loaded)) == []
    assert memory.lookup(messages, tools=tools) == [] and len(memory) == 1
    assert hd.HintMemory(tmp_path, library=LIBRARY).lookup(messages, tools=tools) == []


@pytest.mark.slow
def test_hints_of_some_tasks_are_offered_in_others_and_hardly_in_clean_ones(tmp_path, loaded):
    memory = hd.HintMemory(tmp_path, library=LIBRARY)
    critic = hd.load_critic(CriticSection(prompts=str(TOOLWORLD / "prompts")))
    for _, trace in zip(range(150), read_traces([TOOLWORLD / "traces.jsonl"]), strict=False):
        memory.add(hd.diagnose(trace, engine=loaded, critic=critic, twins=False))
    world, offered = Toolworld(), {"alias": [], "clean": []}
    for name, tasks in (
        ("alias", [t for t in world.splits()["test"] if ".alias." in t]),
        ("clean", world.splits()["test_clean"]),
    ):
        for task in tasks:
            start = world.make().reset(task)
            found = memory.lookup([m.model_dump() for m in start.messages], tools=list(start.tools))
            offered[name].append(bool(found))
    shares = {k: sum(v) / len(v) for k, v in offered.items()}
    assert shares["alias"] > 3 * shares["clean"], shares

"""What is done about the real model's errors without training; no weights."""

from __future__ import annotations

import numpy as np
import pytest
from support.errands import errands

from benchmarks.realmodel.untrained import RULE, ListedNames, Renamed, Ruled, said_names
from hintdistill.core.types import Trace
from hintdistill.rollouts.parsing import parse_hermes
from hintdistill.rollouts.sampling import Episode


@pytest.fixture(scope="module")
def world():
    return errands()


def one(world) -> str:
    return next(f"train.{i}" for i in range(99) if world.Task.parse(f"train.{i}").kind == "one")


def play(suite, name: str, *steps: str) -> Trace:
    environment = suite.make()
    start = environment.reset(name)
    messages, reward = list(start.messages), None
    for text in steps:
        message = parse_hermes(text)
        reply = environment.step(message)
        messages += [message, *reply.messages]
        reward = reply.reward
    return Trace(id=name, task_id=name, messages=tuple(messages), tools=start.tools, reward=reward)


def test_the_rule_stands_in_the_system_prompt_and_nothing_else_changes(world):
    name = one(world)
    plain, ruled = (s.make().reset(name).messages for s in (world.Errands(), Ruled(world.Errands())))
    assert ruled[0].content == f"{plain[0].content}\n\n{RULE}" and ruled[1:] == plain[1:]
    task = world.Task.parse(name)
    trace = play(Ruled(world.Errands()), name, world.call_text(f"find_{task.asked[0]}", task.city))
    assert trace.reward == 1.0 and world.check(trace) == []
    assert Ruled(world.Errands()).splits() == world.Errands().splits()


def test_a_renamed_tool_is_listed_called_and_judged_by_the_name_that_the_model_says(world):
    name = one(world)
    task = world.Task.parse(name)
    right, said = f"find_{task.asked[0]}", f"get_{task.asked[0]}"
    wrong = play(world.Errands(), name, world.call_text(said, task.city))
    names = said_names(world.Errands(), [Episode(name, wrong)])
    assert names == {name: {right: said}}
    suite = Renamed(world.Errands(), names)
    trace = play(suite, name, world.call_text(said, task.city))
    assert f"{said}(city)" in trace.messages[0].content and f"{right}(city)" not in trace.messages[0].content
    assert trace.reward == 1.0 and suite.check(trace) == []
    # other tasks are as they were
    assert suite.make().reset("train.5").messages == world.Errands().make().reset("train.5").messages


def test_no_tool_is_renamed_after_another_error(world):
    trace = play(world.Errands(), one(world), "Done.")
    assert said_names(world.Errands(), [Episode(one(world), trace)]) == {}


def test_gold_steps_are_right_for_every_class(world):
    task = world.Task.parse(next(f"train.{i}" for i in range(99) if world.Task.parse(f"train.{i}").kind == "two"))
    first, second = (world.call_text(f"find_{t}", task.city) for t in task.asked)
    other = next(t for t in task.tools if t.removeprefix("find_") not in task.asked)
    name = next(f"train.{i}" for i in range(99) if world.Task.parse(f"train.{i}") == task)
    wrong = ["Done.", first, world.call_text(other, task.city), world.call_text("get_x", task.city)]
    wrong += [world.call_text(f"find_{task.asked[1]}", "Rome"), '<tool_call>{"name": </tool_call>']
    for text in wrong:
        (finding, *_) = world.check(play(world.Errands(), name, first, text))
        gold = world.Errands().gold(finding)
        assert gold == second and world.check(play(world.Errands(), name, first, gold)) == []


def test_names_are_held_to_the_listed_ones_while_they_are_said(student_renderer):
    held = ListedNames(student_renderer)
    names = ("find_bank", "find_bag", "find_ban")

    def texts(said: str) -> set[str]:
        return {student_renderer.decode([i]) for i in held.after(said, names)}

    assert all("find_bank".startswith(t) or "find_bag".startswith(t) for t in texts(""))
    assert texts("find_ba") and all(t[0] in "nkg" for t in texts("find_ba"))
    assert all(t.startswith('"') for t in texts("find_bank"))
    assert any(t.startswith('"') for t in texts("find_ban")) and "k" in texts("find_ban")
    assert held.after("get_", names) == []
    context = np.array(student_renderer.encode("Tools:\nfind_bank(city)\nfind_bag(city)"))
    assert held.listed(context) == ("find_bank", "find_bag")
    step = student_renderer.encode('<tool_call>{"name": "find_ba')
    assert held(context, step) and held(context, student_renderer.encode("Hello")) is None
    closed = student_renderer.encode('<tool_call>{"name": "find_bank", "arg')
    assert held(context, closed) is None

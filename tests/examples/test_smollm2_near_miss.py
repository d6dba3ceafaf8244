"""The real model's near-miss suite is frozen, each pair is one edit apart, and what is right on one side is wrong on the other."""

from __future__ import annotations

import hashlib

import pytest
from conftest import ROOT
from support.errands import errands

from hintdistill.core.extensions import TWIN_MAKERS
from hintdistill.core.importing import load_object
from hintdistill.core.types import Message, Trace
from hintdistill.injection.twin_makers import twin_edits
from hintdistill.injection.twins import apply_edit
from hintdistill.rollouts.evaluate import outcome_of
from hintdistill.rollouts.pairs import right_tasks, score, table, tasks_of_pairs
from hintdistill.rollouts.parsing import parse_hermes
from hintdistill.rollouts.sampling import Episode

SCRIPT = ROOT / "examples" / "smollm2" / "near_miss.py"


def of(name: str):
    return load_object(f"{SCRIPT}:{name}", "suite", "name")


@pytest.fixture(scope="module")
def suite():
    return of("SUITE")


def text_of(act) -> str:
    return "Done." if act is None else errands().call_text(*act)


def habit_of(pair) -> str:
    """What the habit does at both members of a pair."""
    scene = of("scene_of")(pair.trigger)
    return text_of(scene.look_up(scene.first) if pair.habit == "repeated_step" else None)


def played(task: str, text: str) -> Trace:
    environment = of("EditedErrands")().make()
    start = environment.reset(task)
    message = parse_hermes(text)
    reply = environment.step(message)
    assert reply.done and reply.messages == ()
    return Trace(
        id=f"{task}#0", task_id=task, messages=(*start.messages, message), tools=start.tools, reward=reply.reward
    )


def rights(pairs, policy) -> dict[str, bool]:
    """Which tasks a scripted policy has right: it gets a task's name, and says the step as text."""
    episodes = (Episode(task, played(task, policy(task))) for task in tasks_of_pairs(pairs))
    return right_tasks(outcome_of(of("EditedErrands")(), e) for e in episodes)


def test_the_pairs_are_frozen_and_made_again_to_the_byte(suite, tmp_path, capsys):
    text = of("PAIRS").read_bytes()
    assert hashlib.sha256(text).hexdigest() == of("PAIRS_SHA256")
    assert of("main")(["--make", "--pairs", str(tmp_path / "pairs.jsonl")]) == 0
    assert capsys.readouterr().out.strip() == of("PAIRS_SHA256") and (tmp_path / "pairs.jsonl").read_bytes() == text
    assert len(suite.read()) == 24 * len(of("EDITS"))


def test_families_are_either_for_makers_or_for_testing(suite):
    assert not {*suite.makers} & {*suite.tests} and {*suite.makers, *suite.tests} == set(of("EDITS"))
    for habit in of("PROVOKED"):
        own = [e for e in of("EDITS").values() if e.habit == habit and e.family in suite.tests]
        kinds = {kind for m in TWIN_MAKERS.entries() if habit in m.classes for kind in m.kinds}
        assert len(own) >= 2 and not kinds & {e.name for e in own}, habit


def erring(pair):
    """A trace in which the habit errs at a pair's trigger, and what is missing is found afterwards; and its finding."""
    scene = of("scene_of")(pair.trigger)
    did = "The answer is B77." if pair.habit == "ignored_error" else habit_of(pair)
    later = []
    for thing in (scene.first, scene.second):
        later += [
            Message(role="user", content=errands().NUDGE.format(thing=thing)),
            parse_hermes(errands().call_text(f"find_{thing}", scene.city)),
            Message(role="tool", content=f'{{"{thing}": "{scene.results[thing]}"}}'),
        ]
    # the call of this errand is the agent's own; the scene has it as text
    above = [parse_hermes(m.content) if m.content == scene.call else m for m in scene.messages]
    trace = Trace(id="t", messages=(*above, parse_hermes(did), *later))
    finding = next(f for f in errands().check(trace) if f.error_class == pair.habit)
    return trace, finding


def read_by_the_student(messages) -> list[str]:
    """What is said above a step, a call as `call`: one text each."""
    return [(m.content if m.role != "assistant" or m.given else None) or "call" for m in messages]


def test_no_maker_makes_a_near_miss_of_a_test_family_and_those_of_its_own_are_made(suite):
    made_own = set()
    for pair in suite.read(per_family=3):
        trace, finding = erring(pair)
        scene = of("scene_of")(pair.near_miss)
        near = ["call" if m.content == scene.call else m.content for m in scene.messages]
        for edit in twin_edits(trace, finding):
            edited, step = apply_edit(trace, finding.step, edit)
            above = read_by_the_student(edited.before(step))
            assert above != near or pair.family in suite.makers, (pair.id, edit.kind)
            if above == near:
                made_own.add(pair.family)
    assert made_own == {"stopped_early.nested", "stopped_early.done", "repeated_step.removed"}


def test_hold_traces_are_of_families_that_training_may_use(suite):
    """The split `stop` has the forms of maker families, other things and other cities, and no conversation of the suite."""
    world = errands()
    assert {f"{habit}.{form}" for habit in ("stopped_early", "ignored_error") for form in world.FORMS} <= {
        *suite.makers
    }
    shown = {tuple(m.content for m in of("scene_of")(t).messages) for t in tasks_of_pairs(suite.read())}
    for name in world.Errands().splits()["stop"]:
        task = world.Task.parse(name)
        assert not {*task.asked} & {*world.UNSEEN} and task.city not in world.TEST_CITIES
        assert tuple(m.content for m in task.opening) not in shown


def test_names_of_edits_tell_them_apart_and_things_are_unseen(suite):
    seen = set()
    for edit in of("EDITS").values():
        assert (of("PROVOKED")[edit.habit], edit.name) not in seen
        seen.add((of("PROVOKED")[edit.habit], edit.name))
    for pair in suite.read():
        scene = of("scene_of")(pair.trigger)
        assert {scene.first, scene.second} <= set(errands().UNSEEN) and pair.near_miss.startswith(pair.trigger + ".")
    firsts = [of("scene_of")(p.trigger).first for p in suite.read(families=[next(iter(of("EDITS")))])]
    assert sorted(firsts) == sorted(errands().UNSEEN)


PARTS = {"system": "system", "request": "request", "call": "call", "observation": "observation", "after": "after"}


@pytest.mark.parametrize("family", of("EDITS"))
def test_one_edit_in_one_place_turns_wrong_into_right(suite, family):
    world, edit = of("EditedErrands")(), of("EDITS")[family]
    for pair in suite.read(families=[family]):
        before, after = of("scene_of")(pair.trigger), of("scene_of")(pair.near_miss)
        differs = [name for name, field in PARTS.items() if getattr(before, field) != getattr(after, field)]
        assert differs == [{"history": "call"}.get(edit.where, edit.where)]
        assert (before.shown, before.tools) == (after.shown, after.tools) and before.messages != after.messages
        wrong, right = played(pair.trigger, habit_of(pair)), played(pair.near_miss, habit_of(pair))
        assert wrong.reward == 0.0 and [f.error_class for f in world.check(wrong)] == [pair.habit]
        assert right.reward == 1.0 and world.check(right) == []
        for name in (pair.trigger, pair.near_miss):
            for act in of("scene_of")(name).right:
                trace = played(name, text_of(act))
                assert trace.reward == 1.0 and world.check(trace) == []


def test_one_edit_is_one_run_of_text(suite):
    """The conversations share all that stands before and after one place, which is shorter than a call and its result."""
    for pair in suite.read(per_family=4):
        a, b = ("\n".join(m.content for m in of("scene_of")(t).messages) for t in (pair.trigger, pair.near_miss))
        start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        end = next((i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y), min(len(a), len(b)))
        assert max(len(a), len(b)) - start - end < 160, pair.id


def test_a_policy_that_is_always_right_scores_one_and_habits_score_nothing(suite):
    pairs = suite.read(families=["test"], per_family=2)
    always = rights(pairs, lambda task: text_of(of("scene_of")(task).right[0]))
    document = score(pairs, always, suite.tests)
    assert document["headline"]["test"]["consistency"] == 1.0 and {f["consistency"] for f in document["families"]} == {
        1
    }
    stops = score(pairs, rights(pairs, lambda task: "Done."), suite.tests)["headline"]["test"]
    assert stops["trigger"] == 0.0 and 0.0 < stops["near_miss"] < 1.0 and stops["consistency"] == 0.0
    calls = rights(pairs, lambda task: text_of(of("scene_of")(".".join(task.split(".")[:2])).right[0]))
    calls = score(pairs, calls, suite.tests)["headline"]["test"]
    assert calls["trigger"] == 1.0 and calls["consistency"] == calls["near_miss"] < 1.0
    assert "all habits alike" in table(document)


def test_a_step_that_is_neither_is_wrong_on_both_sides_and_the_checker_says_so(suite):
    for pair in suite.read(per_family=1):
        for said in ('<tool_call>{"name": </tool_call>', errands().call_text("find_nothing", "Oslo")):
            for task in (pair.trigger, pair.near_miss):
                trace = played(task, said)
                assert trace.reward == 0.0 and len(of("EditedErrands")().check(trace)) == 1, task


@pytest.mark.parametrize("name", ["next", "next.x", "nowhere.1", "busy.1.only", "next.1.nope"])
def test_a_name_that_is_no_task(name):
    with pytest.raises(ValueError, match=r"no task|no edit"):
        of("scene_of")(name)


def test_tasks_of_the_suite_are_tasks_of_no_split(suite):
    contents = [of("scene_of")(p.trigger).messages for p in suite.read(families=["stopped_early.list"])]
    for split in errands().PAIRS:
        for name in errands().Errands().splits()[split]:
            assert errands().Task.parse(name).opening not in contents

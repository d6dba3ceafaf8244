"""The near-miss suite is frozen, each pair is one edit apart, and what is right on one side is wrong on the other."""

from __future__ import annotations

import hashlib
import json

import pytest
from conftest import TOOLWORLD
from edits import EDITS, EditedToolworld, StatedToolworld, habit_of, label_stated, scene_of
from near_miss import (
    GROUPS,
    MAKER_FAMILIES,
    PAIRS,
    PAIRS_SHA256,
    TEST_FAMILIES,
    main,
    make_pairs,
    read_pairs,
    right_tasks,
    score,
    tasks_of_pairs,
)
from world import HABITS, Task, Toolworld, compact, label_steps

from hintdistill.core.extensions import TWIN_MAKERS
from hintdistill.core.types import Message, ToolCall, Trace
from hintdistill.rollouts.evaluate import outcomes
from hintdistill.rollouts.sampling import SamplingOptions


def use(tool: str, args: dict) -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(name=tool, arguments_raw=compact(args)),))


def say(text: str) -> Message:
    return Message(role="assistant", content=text)


def played(task: str, steps: list[Message]) -> tuple[Trace, float]:
    env = EditedToolworld().make()
    start = env.reset(task)
    messages, reply = list(start.messages), None
    for step in steps:
        reply = env.step(step)
        messages += [step, *reply.messages]
    return Trace(id=f"{task}#0", task_id=task, messages=tuple(messages), tools=start.tools), reply.reward


def right_steps(task: str) -> list[Message]:
    found = scene_of(task).task
    again = found.plan[-1:] if found.fault == "timeout" else ()
    return [*(use(*call) for call in (*found.plan, *again)), say(found.answer)]


def habit_steps(task: str) -> list[Message]:
    """What the habit does at the trigger, and then what would be right."""
    base = Task.parse(".".join(task.split(".")[:5]))
    habit, (tool, args) = habit_of(base), base.plan[0]
    rest = [use(*call) for call in base.plan[1:]]
    if habit == "unknown_tool":
        return [use(base.kind.alias_tool, args), *rest, say(base.answer)]
    if habit == "wrong_argument":
        return [use(tool, {base.kind.noun: base.entity}), *rest, say(base.answer)]
    if habit == "ignored_error":
        return [use(*call) for call in base.plan] + [say(base.answer)]
    (tool, args), *rest = base.plan[1:]
    known = task.endswith(".given")
    first = use(tool, {**args, base.kind.calls[1].param: base.ids[0] if known else base.entity})
    return [first, *(use(*call) for call in rest), say(base.answer)]


def test_the_pairs_are_frozen():
    text = PAIRS.read_bytes()
    assert hashlib.sha256(text).hexdigest() == PAIRS_SHA256
    assert make_pairs() == read_pairs()
    assert len(read_pairs()) == 660 and len(tasks_of_pairs(read_pairs())) == 780


def test_families_are_either_for_makers_or_for_testing():
    assert sorted((*MAKER_FAMILIES, *TEST_FAMILIES)) == sorted(EDITS) and not {*MAKER_FAMILIES} & {*TEST_FAMILIES}
    for habit in HABITS:
        own = [f for f in EDITS if f.startswith(f"{habit}.")]
        assert len(own) >= 4 and sum(f in TEST_FAMILIES for f in own) >= 2
        kinds = {kind for m in TWIN_MAKERS.entries() if habit in m.classes for kind in m.kinds}
        assert not kinds & {f.partition(".")[2] for f in own if f in TEST_FAMILIES}


def test_entities_are_new_and_each_trigger_is_of_its_habit():
    for pair in read_pairs():
        task = Task.parse(pair.trigger)
        assert pair.trigger.split(".")[3] == "new" and habit_of(task) == pair.habit == EDITS[pair.family].habit
        assert pair.near_miss == f"{pair.trigger}.{EDITS[pair.family].name}"


@pytest.mark.parametrize("family", EDITS)
def test_one_edit_in_one_place_turns_wrong_into_right(family):
    for pair in read_pairs(families=[family], per_family=5):
        suite = EditedToolworld()
        before, after = suite.make().reset(pair.trigger), suite.make().reset(pair.near_miss)
        parts = {
            "system": before.messages[0] != after.messages[0],
            "request": before.messages[1] != after.messages[1],
            "tools": before.tools != after.tools,
        }
        assert [name for name, differs in parts.items() if differs] == [
            w for w in [EDITS[family].where] if w != "observation"
        ]
        assert played(pair.trigger, right_steps(pair.trigger))[1] == 1.0
        trace, reward = played(pair.near_miss, right_steps(pair.near_miss))
        assert reward == 1.0 and suite.check(trace) == []
        erring, reward = played(pair.trigger, habit_steps(pair.trigger))
        made_up = pair.habit == "ignored_error"  # the habit happens to say the right value here
        assert suite.check(erring) and (made_up or reward == 0.0)
        trace, reward = played(pair.near_miss, habit_steps(pair.near_miss))
        assert reward == 1.0 and suite.check(trace) == [], family


def test_names_without_an_edit_mean_what_they_meant():
    for split in ("test", "near_miss_unknown_tool"):
        for name in Toolworld().splits()[split][:40]:
            assert scene_of(name).task == Task.parse(name)
            assert EditedToolworld().make().reset(name) == Toolworld().make().reset(name)


def test_a_mended_call_and_a_needless_one_are_not_right():
    pair = read_pairs(families=["unknown_tool.rename"])[0]
    wrong = use(Task.parse(pair.trigger).plan[0][0], Task.parse(pair.trigger).plan[0][1])
    assert played(pair.near_miss, [wrong, *right_steps(pair.near_miss)])[1] == 0.0
    again = read_pairs(families=["ignored_error.error_last"])[0].near_miss
    *calls, answer = right_steps(again)
    assert played(again, [*calls, calls[-1], answer])[1] == 0.0


@pytest.mark.parametrize("name", ["hotel.none.none.new.1.beside", "weather.alias.none.new.1.nope", "x"])
def test_a_name_that_is_no_edited_task(name):
    with pytest.raises(ValueError, match=r"no single habit|no edit|no toolworld task"):
        scene_of(name)


def test_an_id_that_a_text_states_needs_no_look_up():
    pair = read_pairs(families=["skipped_lookup.request"])[0]
    trace, _ = played(pair.near_miss, habit_steps(pair.near_miss))
    assert [f.error_class for f in label_steps(trace)] == ["skipped_lookup"] and label_stated(trace) == []
    assert StatedToolworld().check(trace) == [] != Toolworld().check(trace)
    erring, _ = played(pair.trigger, habit_steps(pair.trigger))
    assert label_stated(erring) == label_steps(erring) != []


def test_the_score_is_both_members_of_a_pair():
    pairs = read_pairs(families=["unknown_tool.beside", "unknown_tool.system"], per_family=4)
    right = dict.fromkeys(tasks_of_pairs(pairs), True)
    right |= {pairs[0].trigger: False, pairs[1].near_miss: False}
    document = score(pairs, right)
    beside, system = document["families"]
    assert (beside["trigger"], beside["near_miss"], beside["consistency"]) == (0.75, 0.75, 0.5)
    assert (system["role"], system["trigger"], system["near_miss"], system["consistency"]) == ("test", 0.75, 1.0, 0.75)
    assert document["headline"]["test"]["consistency"] == 0.75 and document["headline"]["all"]["consistency"] == 0.625
    low, high = document["headline"]["all"]["low"], document["headline"]["all"]["high"]
    assert 0.0 <= low < 0.625 < high <= 1.0
    assert score(pairs, dict.fromkeys(right, False))["headline"]["all"]["consistency"] == 0.0


def test_a_file_that_is_no_pairs_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id":"x"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:1 is not a pair"):
        read_pairs(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"no family 'nope'"):
        read_pairs(families=["nope"])
    assert {p.family for p in read_pairs(families=["test"])} == set(GROUPS["test"])


def test_the_shipped_student_is_right_on_near_misses_and_wrong_on_triggers(student_engine, student_renderer):
    pairs = [p for p in read_pairs(families=["test"], per_family=3) if p.habit != "wrong_argument"]
    options = SamplingOptions(temperature=0.0, max_new_tokens=64, max_steps=8, batch_size=64, seed=0)
    played = outcomes(student_engine, student_renderer, EditedToolworld(), tasks_of_pairs(pairs), options)
    right = right_tasks(played)
    document = score(pairs, right)
    assert document["headline"]["test"]["near_miss"] >= 0.9 and document["headline"]["test"]["trigger"] == 0.0


def test_making_the_file_again_gives_the_same_bytes(tmp_path, capsys):
    assert main(["--make", "--pairs", str(tmp_path / "pairs.jsonl")]) == 0
    assert capsys.readouterr().out.strip() == PAIRS_SHA256
    assert json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])["family"] == "unknown_tool.rename"
    assert (TOOLWORLD / "near_miss_pairs.jsonl").read_bytes() == (tmp_path / "pairs.jsonl").read_bytes()

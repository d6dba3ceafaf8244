"""BFCL's tasks of several turns: right calls pass, nothing else does, and nothing of the student's text is evaluated."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
from bfcl_compare import Said
from bfcl_data import TURNS as CATEGORIES
from bfcl_data import talks
from bfcl_effects import CHANGES, READS
from bfcl_suite import TURNS
from bfcl_turns import MOST_STEPS, Apis, TurnsEnvironment, described, gold_calls, said_call
from package_checker import accepts_turns

from hintdistill.core.types import Message, ToolCall, Trace
from hintdistill.rollouts.environment import TaskSuite, effects_of

pytestmark = pytest.mark.bfcl


def right(talk) -> list[list[Said]]:
    """The right calls by turn."""
    apis = Apis(talk)
    return [gold_calls(talk, apis, k) for k in range(len(talk.answer))]


def play(talk, turns: list[list[Said]]) -> tuple[float, Trace]:
    """An episode in which each turn makes its calls one by one, or at once where they are too many, and ends with a word."""
    environment = TURNS.make()
    start = environment.reset(talk.id)
    messages, reply = [*start.messages], None
    for calls in turns:
        parts = [[c] for c in calls] if len(calls) <= MOST_STEPS else [calls]
        steps = [Message(role="assistant", tool_calls=tuple(map(said_call, part))) for part in parts]
        for step in (*steps, Message(role="assistant", content="Done.")):
            assert reply is None or not reply.done
            reply = environment.step(step)
            messages += [step, *reply.messages]
    assert reply is not None and reply.done and reply.reward is not None
    return reply.reward, Trace(
        id=talk.id, task_id=talk.id, messages=tuple(messages), tools=start.tools, reward=reply.reward
    )


def without_last(turns: list[list[Said]]) -> list[list[Said]]:
    """The same without the last call of the last turn that has any."""
    at = max(k for k, calls in enumerate(turns) if calls)
    return [calls[:-1] if k == at else calls for k, calls in enumerate(turns)]


def source(turns: list[list[Said]]) -> list[list[list[str]]]:
    """Calls as the package's runner would have them: source, by turn and step."""
    return [
        [[f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})"] for c in calls] for calls in turns
    ]


def test_it_is_a_suite_split_by_the_main_api():
    assert isinstance(TURNS, TaskSuite)
    named = TURNS.splits()
    assert sorted(i for ids in named.values() for i in ids) == sorted(talks())
    assert Counter(t.category for t in talks().values()) == dict.fromkeys(CATEGORIES, 200)
    main = {split: {talks()[i].main_class for i in ids} for split, ids in named.items()}
    assert not main["train"] & main["test"] and not main["validation"] & (main["train"] | main["test"])


@pytest.mark.parametrize("category", CATEGORIES)
def test_right_calls_pass_and_no_calls_do_not(category):
    for talk in talks().values():
        if talk.category != category:
            continue
        assert play(talk, right(talk))[0] == 1.0, talk.id
        assert play(talk, [[] for _ in talk.answer])[0] == 0.0, talk.id


def test_a_call_too_few_is_judged_as_the_package_judges_it():
    judged = Counter()
    for n, talk in enumerate(talks().values()):
        if n % 8 or talk.long_context:
            continue
        turns = without_last(right(talk))
        reward, trace = play(talk, turns)
        assert bool(reward) == accepts_turns(talk, source(turns), f"fewer{n}"), talk.id
        assert accepts_turns(talk, source(right(talk)), f"right{n}")
        found = TURNS.check(trace)
        assert [f.error_class for f in found] == ([] if reward else ["turn_failed"])
        judged[reward] += 1
    assert judged[0.0] > 60 and judged[1.0] <= judged[0.0] // 10


def test_a_wrong_argument_fails_and_is_found_in_its_turn():
    talk = talks()["multi_turn_base_0"]
    turns = right(talk)
    turns[0][1] = Said("mkdir", {"dir_name": "elsewhere"})
    reward, trace = play(talk, turns)
    (found,) = TURNS.check(trace)
    assert reward == 0.0 and found.facts["turn"] == 0 and found.step == len(turns[0])


def test_episodes_share_no_state():
    talk = talks()["multi_turn_base_0"]
    before = copy.deepcopy(talk.state)
    one, other = TURNS.make(), TURNS.make()
    one.reset(talk.id)
    other.reset(talk.id)
    call = Message(role="assistant", tool_calls=(said_call(Said("mkdir", {"dir_name": "mine"})),))
    one.step(call)
    listing = Message(role="assistant", tool_calls=(said_call(Said("ls", {})),))
    assert "mine" in (one.step(listing).messages[0].content or "")
    assert "mine" not in (other.step(listing).messages[0].content or "")
    assert talk.state == before and play(talk, right(talk))[0] == 1.0


def test_nothing_of_the_students_text_is_evaluated(tmp_path):
    talk = talks()["multi_turn_base_0"]
    trap = tmp_path / "trap"
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    calls = [
        ToolCall(name=code, arguments_raw="{}"),
        ToolCall(name="ls", arguments_raw=json.dumps({f"a={code}, b": 1})),
        ToolCall(name="mkdir", arguments_raw=json.dumps({"dir_name": code})),
        ToolCall(name="mkdir", arguments_raw=code),
        ToolCall(name="_load_scenario", arguments_raw='{"scenario": {}}'),
        ToolCall(name="__init__", arguments_raw="{}"),
        ToolCall(name="lockDoors", arguments_raw="{}"),
    ]
    environment = TurnsEnvironment()
    environment.reset(talk.id)
    reply = environment.step(Message(role="assistant", tool_calls=tuple(calls)))
    assert not trap.exists() and len(reply.messages) == len(calls)
    refused = [bool((m.content or "").startswith("Error during execution")) for m in reply.messages]
    assert refused == [True, True, False, True, True, True, True]


def test_functions_that_come_later_are_shown_when_they_come():
    talk = next(t for t in talks().values() if t.late)
    turn, (name, *_) = min(talk.late.items())
    environment = TurnsEnvironment()
    start = environment.reset(talk.id)
    assert name not in {t["function"]["name"] for t in start.tools}
    for k in range(turn):
        reply = environment.step(Message(role="assistant", content="Go on."))
        assert (f'"{name}"' in (reply.messages[0].content or "")) == (k == turn - 1)


def test_an_episode_of_too_many_steps_ends():
    environment = TurnsEnvironment()
    environment.reset("multi_turn_base_0")
    step = Message(role="assistant", tool_calls=(ToolCall(name="ls", arguments_raw="{}"),))
    replies = [environment.step(step) for _ in range(MOST_STEPS + 1)]
    assert [r.done for r in replies] == [False] * MOST_STEPS + [True] and replies[-1].reward == 0.0


def test_every_function_has_its_effect_and_those_that_read_change_nothing():
    names = {f["name"] for t in talks().values() for c in t.classes for f in described(c)}
    effects = effects_of(TURNS)
    assert set(effects) == names and not set(READS) & set(CHANGES)
    changed, called = set(), set()
    for talk in talks().values():
        if talk.category not in ("multi_turn_base", "multi_turn_miss_param"):
            continue
        apis = Apis(talk)
        for turn in range(len(talk.answer)):
            for call in gold_calls(talk, apis, turn):
                before = state(apis)
                apis.call(call.name, call.arguments)
                called.add(call.name)
                if state(apis) != before:
                    changed.add(call.name)
    assert changed <= set(CHANGES)
    # a function that is said to change something does so in some right call
    assert not (called & set(CHANGES)) - changed


def state(apis: Apis) -> dict:
    """What the instances hold, but for their random numbers and the prices that they were asked for, which one of them keeps."""
    return {
        name: {k: repr_of(v) for k, v in vars(made).items() if k not in ("_random", "_flight_cost_lookup")}
        for name, made in apis.instances.items()
    }


def repr_of(value):
    """A value that can be compared later, objects by what they hold."""
    if isinstance(value, dict):
        return {k: repr_of(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [repr_of(v) for v in value]
    if hasattr(value, "__dict__"):
        return repr_of({k: v for k, v in vars(value).items() if k != "parent"})
    return copy.deepcopy(value)

"""BFCL's tasks of one turn: what is in them, how they are split, and which calls are right."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from functools import cache

import jsonschema
import pytest
from bfcl_compare import Said, mismatch, right_calls
from bfcl_data import CALLS, LIVE_CALLS, NO_CALLS, SOME_CALL, UNANSWERABLE, entries, group_keys, splits, tool_of
from bfcl_suite import CALLS as SUITE
from bfcl_suite import CALLS_AS_TEXT, DECLINE, finding_of
from package_checker import accepts

from hintdistill.core.types import Message, ToolCall, Trace
from hintdistill.rollouts.environment import TaskSuite, effects_of

pytestmark = pytest.mark.bfcl


@cache
def answered() -> list:
    """Tasks with possible answers, but for those that no answer fits."""
    return [e for e in entries().values() if e.answer and e.id not in UNANSWERABLE]


def spoken(calls: list[Said], text: str | None = None) -> Message:
    made = tuple(ToolCall(name=c.name, arguments_raw=json.dumps(c.arguments)) for c in calls)
    return Message(role="assistant", content=text, tool_calls=made)


def reward(task: str, message: Message, suite=SUITE) -> float:
    environment = suite.make()
    environment.reset(task)
    reply = environment.step(message)
    assert reply.done and reply.reward is not None
    return reply.reward


def perturbed(calls: list[Said], rng: random.Random) -> tuple[str, list[Said]]:
    """Right calls with one thing changed, and what."""
    made = [Said(c.name, copy.deepcopy(c.arguments)) for c in calls]
    at = rng.randrange(len(made))
    call = made[at]
    name = rng.choice(list(call.arguments)) if call.arguments else None
    how = rng.choice(
        ("name", "extra", "again", "left_out", "value", "type", "case") if name else ("name", "extra", "again")
    )
    if how == "name":
        made[at] = Said(call.name + "_2", call.arguments)
    elif how == "extra":
        call.arguments["surplus"] = 1
    elif how == "again":
        made.append(call)
    elif how == "left_out":
        del call.arguments[name]
    else:
        call.arguments[name] = changed(call.arguments[name], how)
    return how, made


def changed(value, how: str):
    if how == "type":
        return [value] if isinstance(value, str) else str(value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value.upper() + "." if how == "case" else value + " zz"
    if isinstance(value, list):
        return [*value, value[0]] if value else ["zz"]
    return {**value, "zz": 1} if isinstance(value, dict) else None


def test_there_are_as_many_tasks_as_the_benchmark_says():
    found = Counter(e.category for e in entries().values())
    assert [found[c] for c in CALLS] == [400, 200, 200, 200]
    assert found["irrelevance"] == 240 and {*found} == {*CALLS, *LIVE_CALLS, *NO_CALLS, *SOME_CALL}


def test_it_is_a_suite_whose_splits_share_no_function_and_no_family():
    assert isinstance(SUITE, TaskSuite) and effects_of(SUITE) == {}
    named = SUITE.splits()
    assert sorted(i for ids in named.values() for i in ids) == sorted(entries())
    keys = {split: {k for i in ids for k in group_keys(entries()[i])} for split, ids in named.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not keys[one] & keys[other]
    assert not keys["irrelevance"] & (keys["train"] | keys["validation"])
    assert {s: len(ids) for s, ids in splits().items() if not s.startswith("multi_turn")} == SIZES


SIZES = {"train": 855, "validation": 566, "test": 1830, "irrelevance": 240}


def test_every_schema_is_one_and_right_calls_fit():
    misfits = []
    for entry in entries().values():
        tools = {f["name"]: tool_of(f)["function"]["parameters"] for f in entry.functions}
        for schema in tools.values():
            jsonschema.Draft202012Validator.check_schema(schema)
        for call in right_calls(entry):
            if not jsonschema.Draft202012Validator(tools[call.name]).is_valid(call.arguments):
                misfits.append(entry.id)
    assert len(set(misfits)) <= 30, (len(set(misfits)), misfits)


def test_right_calls_are_right():
    wrong = [e.id for e in entries().values() if e.category not in SOME_CALL and mismatch(e, right_calls(e))]
    assert sorted(wrong) == sorted(UNANSWERABLE)
    assert not any(accepts(entries()[i], right_calls(entries()[i])) for i in UNANSWERABLE)
    for entry in random.Random(0).sample([e for e in entries().values() if e.id not in UNANSWERABLE], 100):
        calls = right_calls(entry) if entry.category not in SOME_CALL else [Said("anything", {})]
        for suite in (SUITE, CALLS_AS_TEXT):
            assert reward(entry.id, spoken(calls, None if calls else DECLINE), suite) == 1.0


def test_no_call_is_right_where_none_is_due_and_nowhere_else():
    for entry in entries().values():
        assert reward(entry.id, spoken([], "Sorry.")) == float(entry.category in NO_CALLS)
        if entry.category in NO_CALLS and entry.functions:
            assert reward(entry.id, spoken([Said(entry.names[0], {})])) == 0.0


def test_the_package_takes_the_same_right_and_perturbed_calls():
    rng, seen = random.Random("perturbed"), Counter()
    for entry in answered():
        assert accepts(entry, right_calls(entry)) is True, entry.id
    for entry in rng.sample(answered(), 500) + [e for e in answered() if e.category == "live_parallel"]:
        how, calls = perturbed(right_calls(entry), rng)
        ours, theirs = mismatch(entry, calls) is None, accepts(entry, calls)
        assert ours == bool(theirs), (entry.id, how, calls)
        seen[how, ours] += 1
        if how in ("name", "extra", "again"):
            assert not ours
            assert reward(entry.id, spoken(calls)) == 0.0
    assert all(seen[how, False] > 20 for how in ("name", "extra", "again", "left_out", "value", "type"))
    assert seen["case", True] > 10


def test_every_class_of_error_is_found_where_it_is_made():
    entry = next(e for e in answered() if e.category == "simple_python" and right_calls(e)[0].arguments)
    (right,) = right_calls(entry)
    name = next(n for n in entry.functions[0]["parameters"]["required"])
    value = right.arguments[name]
    made = {
        "missing_call": spoken([], "Sure."),
        "call_count": spoken([right, right]),
        "wrong_tool": spoken([Said("other", right.arguments)]),
        "missing_argument": spoken([Said(right.name, {k: v for k, v in right.arguments.items() if k != name})]),
        "extra_argument": spoken([Said(right.name, {**right.arguments, "surplus": 1})]),
        "wrong_type": spoken([Said(right.name, {**right.arguments, name: [value]})]),
        "wrong_value": spoken([Said(right.name, {**right.arguments, name: changed(value, "value")})]),
        "unparsable_call": spoken([], "<tool_call>{</tool_call>"),
    }
    for error_class, message in made.items():
        found = finding_of(entry, 0, message)
        assert found is not None and found.error_class == error_class and found.facts["right"] == right.name
        start = SUITE.make().reset(entry.id)
        trace = Trace(id=entry.id, task_id=entry.id, messages=(*start.messages, message), tools=start.tools)
        assert [f.error_class for f in SUITE.check(trace)] == [error_class]
    unneeded = next(e for e in entries().values() if e.category == "irrelevance")
    found = finding_of(unneeded, 0, spoken([Said(unneeded.names[0], {})]))
    assert found is not None and (found.error_class, found.quote) == ("unneeded_call", unneeded.names[0])


def test_a_text_prompt_names_every_function_and_argument():
    for entry in random.Random(1).sample(list(entries().values()), 100):
        prompt = CALLS_AS_TEXT.make().reset(entry.id).messages[0]
        assert prompt.role == "system" and DECLINE in (prompt.content or "")
        for function in entry.functions:
            assert f"{function['name']}: " in (prompt.content or "")
            assert all(f"- {n} (" in (prompt.content or "") for n in function["parameters"]["properties"])

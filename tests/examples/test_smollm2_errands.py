"""The errands of the real model: its environment and its checker, without weights."""

from __future__ import annotations

import json
import random

import pytest
from support.errands import SCRIPT, errands

from hintdistill.core.types import Message, Trace
from hintdistill.injection.levels import hint_level
from hintdistill.prompts import PromptLibrary
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.parsing import parse_hermes


@pytest.fixture(scope="module")
def world():
    return errands()


def play(world, name: str, policy) -> Trace:
    """An episode in which `policy(task, found, messages)` says each step as text."""
    environment = world.Errands().make()
    start = environment.reset(name)
    messages = list(start.messages)
    for _ in range(9):
        step = parse_hermes(policy(environment.task, environment.found, messages))
        reply = environment.step(step)
        messages += [step, *reply.messages]
        if reply.done:
            return Trace(id=name, messages=tuple(messages), tools=start.tools, reward=reply.reward)
    raise AssertionError("the episode never ends")


def right(world, task, found, messages) -> str:
    if task.given == len(task.asked):
        return "Done."
    return world.call_text(f"find_{next(t for t in task.asked if t not in found)}", task.city)


def by_kind(world, kind: str, split: str = "train") -> str:
    return next(n for n in world.Errands().splits()[split] if world.Task.parse(n).kind == kind)


def test_it_is_a_task_suite_with_splits_of_the_promised_size(world):
    suite = world.Errands()
    assert isinstance(suite, TaskSuite)
    sizes = {split: len(tasks) for split, tasks in suite.splits().items()}
    assert (
        sizes["near"] >= 300
        and sizes["clean"] >= 300
        and sizes["test"] >= 200
        and {"train", "validation", "unseen"} <= set(sizes)
    )
    assert len(world.NOUNS) >= 40 and len(world.UNSEEN) >= 20 and not set(world.NOUNS) & set(world.UNSEEN)
    assert len({*world.PHRASINGS, *world.HELD_OUT}) >= 4 and len(world.HELD_OUT) >= 2


def test_right_steps_succeed_in_every_split_and_the_checker_is_silent(world):
    for split, tasks in world.Errands().splits().items():
        for name in random.Random(split).sample(list(tasks), 40):
            trace = play(world, name, lambda *a: right(world, *a))
            assert trace.reward == 1.0 and world.check(trace) == [], name


def test_errands_take_one_to_four_steps_and_most_take_more_than_one(world):
    def new_steps(trace):
        return sum(not trace.messages[i].given for i in trace.step_indices)

    steps = [new_steps(play(world, f"train.{i}", lambda *a: right(world, *a))) for i in range(200)]
    assert set(steps) == {1, 2, 3, 4} and sum(k > 1 for k in steps) > 100


def test_held_out_splits_share_neither_nouns_nor_cities_nor_phrasings_with_training(world):
    def words(split):
        tasks = [world.Task.parse(n) for n in world.Errands().splits()[split][:200]]
        return (
            {t for k in tasks for t in k.asked},
            {k.city for k in tasks},
            {k.opening[-1].content.split(" a ")[0] for k in tasks},
        )

    train, unseen, test = words("train"), words("unseen"), words("test")
    assert not any(a & b for a, b in zip(train, unseen, strict=True))
    assert not any(a & b for a, b in zip(train[1:], test[1:], strict=True))


def wrong(world, error_class: str, task, found, messages) -> str | None:
    """A step of that class where it can be made, else None."""
    missing = [t for t in task.asked if t not in found]
    busy = messages[-1].content == world.BUSY
    other = next(t for t in task.tools if t.removeprefix("find_") not in task.asked)
    if error_class == "ignored_error":
        return "It is busy." if busy else None
    if busy or not found:
        return None
    return {
        "stopped_early": "Done.",
        "unparsable_call": '<tool_call>{"name": </tool_call>',
        "unknown_tool": world.call_text("search_things", task.city),
        "repeated_step": world.call_text(f"find_{found[0]}", task.city),
        "wrong_tool": world.call_text(other, task.city),
        "wrong_city": world.call_text(f"find_{missing[0]}", world.SHOWN_CITY),
    }[error_class]


CLASSES = (
    "ignored_error",
    "stopped_early",
    "unparsable_call",
    "unknown_tool",
    "repeated_step",
    "wrong_tool",
    "wrong_city",
)


@pytest.mark.parametrize("error_class", CLASSES)
@pytest.mark.parametrize("kind", ["two_busy", "three_busy"])
def test_an_error_fails_the_episode_and_is_found_at_its_step(world, error_class, kind):
    made: list[int] = []

    def policy(task, found, messages):
        text = None if made else wrong(world, error_class, task, found, messages)
        if text is not None:
            made.append(sum(m.role == "assistant" for m in messages))
        return text if text is not None else right(world, task, found, messages)

    trace = play(world, by_kind(world, kind), policy)
    assert made and trace.reward == 0.0
    (finding,) = world.check(trace)
    assert (finding.error_class, finding.step, finding.caused_by) == (error_class, made[0], None)
    assert finding.facts["city"] in trace.messages[-1 - 2 * (len(trace.step_indices))].content or finding.facts["right"]
    if finding.quote is not None:
        step = trace.step(finding.step).tool_calls[0]
        assert finding.quote in (step.name, step.arguments["city"])


def test_a_call_after_everything_is_found_is_wrong_and_a_sentence_is_right(world):
    name = by_kind(world, "found", "near")
    trace = play(world, name, lambda task, *_: world.call_text(f"find_{task.asked[0]}", task.city))
    assert trace.reward == 0.0 and [f.error_class for f in world.check(trace)] == ["unneeded_call"]


def test_tasks_of_the_split_stop_are_done_by_one_look_up_of_a_form_that_training_may_use(world):
    forms, sizes = set(), set()
    for name in world.Errands().splits()["stop"]:
        task = world.Task.parse(name)
        *_, look_up, observation = task.opening
        assert task.given == len(task.asked) and world.spoken(look_up) == (f"find_{task.asked[0]}", task.city)
        found = {t: task.results[t] for t in task.asked}
        forms |= {form for form, made in world.FORMS.items() if json.loads(observation.content) == made(found)}
        sizes.add(len(task.asked))
        assert not {*task.asked} & {*world.UNSEEN}
        goes_on = play(world, name, lambda task, *_: world.call_text(f"find_{task.asked[-1]}", task.city))
        assert goes_on.reward == 0.0 and [f.error_class for f in world.check(goes_on)] == ["unneeded_call"]
    assert forms == set(world.FORMS) and sizes == {1, 2}


def stopped(world, request: str, observation: str) -> list[str]:
    """Error classes of an errand of a box and a map whose box was looked up, and that ends then."""
    system = Message(role="system", content="Tools:\nfind_box(city)\nfind_map(city)")
    said = [
        Message(role="user", content=request),
        Message(role="assistant", content=world.call_text("find_box", "Oslo"), given=True),
    ]
    messages = (system, *said, Message(role="tool", content=observation), Message(role="assistant", content="Done."))
    return [f.error_class for f in world.check(Trace(id="t", messages=messages))]


BOTH = "I need a box and a map in Oslo."


@pytest.mark.parametrize(
    ("request_", "observation", "right"),
    [
        (BOTH, '{"box": "A1"}', False),
        ("I need a box in Oslo.", '{"box": "A1"}', True),
        (f"{BOTH} The map is not needed.", '{"box": "A1"}', True),
        (f"{BOTH} I have the map.", '{"box": "A1"}', True),
        (f"{BOTH} The box is not needed.", '{"box": "A1"}', False),
        (f"{BOTH} The map is not needed. I have the box.", '{"error": "busy"}', True),
        (BOTH, '{"box": "A1", "map": "B2"}', True),
        (BOTH, '{"status": "ok", "result": {"box": "A1", "map": "B2"}}', True),
        (BOTH, '{"box": "A1", "map": "B2", "done": true}', True),
        (BOTH, '{"box": "A1", "map": null}', False),
        (BOTH, '{"box": "A1", "note": "the map is B2"}', False),
        (BOTH, "map", False),
    ],
)
def test_when_it_is_right_to_stop(world, request_, observation, right):
    assert stopped(world, request_, observation) == ([] if right else ["stopped_early"])


def test_a_request_that_says_anything_else_cannot_be_judged(world):
    with pytest.raises(ValueError, match="no request of Errands"):
        stopped(world, f"{BOTH} Use find_box for it.", '{"box": "A1"}')


def test_a_failed_look_up_may_wait_but_must_not_be_forgotten(world):
    name = next(
        n
        for n in world.Errands().splits()["train"]
        if (t := world.Task.parse(n)).kind == "two_busy" and t.busy == t.asked[0]
    )

    def later(task, found, messages):
        first = messages[-1].content == world.BUSY
        return world.call_text(
            f"find_{task.asked[1] if first else next(t for t in task.asked if t not in found)}", task.city
        )

    trace = play(world, name, later)
    assert trace.reward == 1.0 and world.check(trace) == []


def test_a_later_error_is_a_consequence_of_the_first(world):
    trace = play(world, by_kind(world, "three"), lambda *_: "Done.")
    first, *rest = world.check(trace)
    assert first.caused_by is None and rest and all(f.caused_by == first.step for f in rest)


def test_a_task_without_a_split_is_refused(world):
    for name in ("nowhere.1", "train", "train.x"):
        with pytest.raises(ValueError, match="no task"):
            world.Task.parse(name)
    assert isinstance(world.Task.parse("train.0").opening[0], Message)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_hint_of_every_class_has_its_level_and_does_not_name_what_was_wrong(world, level):
    library = PromptLibrary(SCRIPT.parent / "prompts" / f"level{level}")
    computed = set()
    for error_class in CLASSES:
        made: list[int] = []

        def policy(task, found, messages, error_class=error_class, made=made):
            text = None if made else wrong(world, error_class, task, found, messages)
            made += [1] if text is not None else []
            return text if text is not None else right(world, task, found, messages)

        trace = play(world, by_kind(world, "three_busy"), policy)
        (finding,) = world.check(trace)
        text = library.render(f"hints/{error_class}.jinja", {**finding.facts, "variant": 0})
        assert not finding.facts.get("wrong") or finding.facts["wrong"] not in text
        computed.add(hint_level(text, trace, finding, ()))
    assert computed <= {0, 1, 2} and max(computed) <= level


def test_the_members_of_a_pair_differ_in_what_is_found_and_want_other_steps(world):
    for number in range(20):
        found, last = (world.Task.parse(f"{split}.7f3a.{number}") for split in world.PAIRS)
        assert (found.asked, found.city, found.tools) == (last.asked, last.city, last.tools)
        assert found.opening[: len(last.opening)] == last.opening and len(found.opening) == len(last.opening) + 2
        assert set(found.asked) <= set(world.UNSEEN)
    for split in world.PAIRS:
        trace = play(world, f"{split}.3", lambda *said: right(world, *said))
        assert trace.reward == 1.0 and world.check(trace) == [] and len(trace.own_steps) == 1
    spoken = play(world, "last.3", lambda task, found, messages: "Done.")
    assert spoken.reward == 0.0 and [f.error_class for f in world.check(spoken)][:1] == ["stopped_early"]


def test_a_draw_gives_other_tasks_of_the_same_split(world):
    first, second = (world.Task.parse(f"unseen.{draw}4") for draw in ("", "ab12."))
    assert first != second and set(second.asked) <= set(world.UNSEEN)
    with pytest.raises(ValueError, match="no task"):
        world.Task.parse("unseen.a.b.4")

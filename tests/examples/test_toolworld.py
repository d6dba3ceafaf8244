"""The example world is consistent, and what is shipped is what its scripts say."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from conftest import STUDENT, TOOLWORLD
from demonstrator import CORPUS_MIX, RATES, Demonstrator, draw_task
from hints import HELD_OUT, TRAINED, WORDINGS
from world import HABITS, HELD_OUT_KINDS, KINDS, Task, Toolworld, compact, label_steps

from hintdistill.core.scores import ScoreRequest
from hintdistill.core.types import Message, ToolCall, Trace
from hintdistill.traces.formats import native
from hintdistill.traces.reading import read_traces


@pytest.fixture(scope="module")
def shipped() -> list[Trace]:
    got = list(read_traces([TOOLWORLD / "traces.jsonl"]))
    assert all(isinstance(t, Trace) for t in got)
    return got


def run(task: str, *steps: Message):
    env = Toolworld().make()
    env.reset(task)
    return env, [env.step(m) for m in steps]


def use(tool: str, **args) -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(name=tool, arguments_raw=compact(args)),))


def say(text: str) -> Message:
    return Message(role="assistant", content=text)


def plan_of(task: str) -> list[Message]:
    return [use(tool, **args) for tool, args in Task.parse(task).plan]


def test_a_demonstrator_that_reasons_does_the_same_and_half_its_lines_name_the_call(student_renderer):
    rng, naming = random.Random(8), Counter[bool]()
    for n in range(40):
        task = draw_task(rng, mix=CORPUS_MIX)
        episode = Demonstrator(task, random.Random(n), hints=False, thoughts=True).play()
        calls = [m for m in episode.messages if m.tool_calls]
        assert calls and all((m.content or "").startswith("<think>") for m in calls)
        assert not any("<think>" in (m.content or "") for m in episode.messages if not m.tool_calls)
        naming.update(m.tool_calls[0].name in (m.content or "") for m in calls)
        if n < 4:
            # the errors are those of the calls, and the reasoning ends where the template begins the call
            trace = Trace(id=task, messages=tuple(episode.messages), tools=episode.task.tools)
            assert [f.step for f in label_steps(trace) if f.error_class != "skipped_lookup"] == [
                k for k, e in enumerate(episode.errors) if e and e != "skipped_lookup"
            ]
            step = student_renderer.step(trace, 0)
            above, action = (student_renderer.decode(ids) for ids in parted(step.step_ids, step.action_start))
            assert above.rstrip() == calls[0].content and action.startswith("<tool_call>")
    assert 0.35 < naming[True] / naming.total() < 0.65


def parted(ids, at):
    return ids[:at], ids[at:]


def test_the_plan_and_the_exact_sentence_succeed():
    rng = random.Random(0)
    for _ in range(200):
        name = draw_task(rng, fault="none", mix=CORPUS_MIX)
        task = Task.parse(name)
        _, replies = run(name, *plan_of(name), say(task.answer))
        assert replies[-1].done and replies[-1].reward == 1.0
        assert all("error" not in (m.content or "") for r in replies for m in r.messages)


def test_what_goes_wrong_is_answered_as_described():
    hotel = "hotel.none.timeout.old.5"
    task = Task.parse(hotel)
    find, book = plan_of(hotel)
    entity = task.plan[0][1]["city"]
    _, (unknown, argument, missing, skipped) = run(
        hotel,
        use("find_lodging", city=entity),
        use("find_hotel", place=entity),
        use("find_hotel"),
        use("book_hotel", hotel_id=entity, nights=task.n),
    )
    assert unknown.messages[0].content == '{"error":"unknown tool find_lodging"}'
    assert argument.messages[0].content == '{"error":"unknown argument place"}'
    assert missing.messages[0].content == '{"error":"missing argument city"}'
    # the fault comes once, at the last tool
    assert skipped.messages[0].content == '{"error":"timeout"}'
    _, replies = run(hotel, find, book, book, say(task.answer))
    assert '"error":"timeout"' in replies[1].messages[0].content and replies[3].reward == 1.0
    # a skipped look-up is accepted in silence, and fails the task
    calm = "hotel.none.none.old.5"
    task = Task.parse(calm)
    _env, (accepted, final) = run(
        calm, use("book_hotel", hotel_id=task.plan[0][1]["city"], nights=task.n), say(task.answer)
    )
    assert "error" not in accepted.messages[0].content and final.reward == 0.0


@pytest.mark.parametrize("task", ["x", "hotel.none.none.old", "nope.none.none.old.1", "hotel.nope.none.old.1"])
def test_a_name_that_is_no_task(task):
    with pytest.raises(ValueError, match="is no toolworld task"):
        Task.parse(task)


def test_the_checker_agrees_with_the_demonstrator():
    rng = random.Random(1)
    seen: Counter = Counter()
    for _ in range(600):
        played = Demonstrator(draw_task(rng, mix=CORPUS_MIX), rng).play()
        trace = Trace(id="t", messages=tuple(played.messages), tools=played.task.tools)
        roots = {f.step: f.error_class for f in label_steps(trace) if f.caused_by is None}
        assert roots == {k: e for k, e in enumerate(played.errors) if e}
        seen.update(roots.values())
    assert set(seen) == set(HABITS)


def test_a_relevant_hint_always_prevents_the_habit_and_no_other_does():
    rng, outcomes = random.Random(2), Counter()
    for trigger, habit in (("alias", "unknown_tool"), ("urgent", "skipped_lookup")):
        for _ in range(400):
            demonstrator = Demonstrator(draw_task(rng, trigger=trigger, fault="none"), rng)
            mode = demonstrator.modes[habit][0]
            outcomes[habit, mode, demonstrator.play().errors[0]] += 1
    for habit in ("unknown_tool", "skipped_lookup"):
        assert outcomes[habit, "relevant", habit] == 0 and outcomes[habit, "relevant", None] > 60
        for mode in ("placebo", None):
            rate = outcomes[habit, mode, habit] / (outcomes[habit, mode, habit] + outcomes[habit, mode, None])
            assert abs(rate - RATES[habit]) < 0.12


def test_wordings():
    for name, words in WORDINGS.items():
        assert len(TRAINED[name]) >= 10 and len(HELD_OUT[name]) == 2, name
        assert len(set(words)) == len(words) and not set(TRAINED[name]) & set(HELD_OUT[name])


def test_splits_are_fixed_and_disjoint():
    splits = Toolworld().splits()
    tasks = [t for names in splits.values() for t in names]
    assert len(tasks) == len(set(tasks))
    assert len(splits["test_clean"]) >= 200 and len(splits["test"]) >= 200
    assert {f"near_miss_{h}" for h in HABITS} <= set(splits)
    parsed = {s: [Task.parse(t) for t in names] for s, names in splits.items()}
    assert all(t.trigger in ("none", "given") and t.fault in ("none", "busy") for t in parsed["test_clean"])
    assert {t.kind.name for t in parsed["transfer"]} == set(HELD_OUT_KINDS)
    for split in ("train", "validation", "test", "test_clean"):
        assert {t.kind.name for t in parsed[split]} == set(KINDS) - set(HELD_OUT_KINDS)
    trained = {t.entity for t in parsed["train"]}
    assert all(not trained & {t.entity for t in ts} for s, ts in parsed.items() if s != "train")


def test_near_misses_look_like_the_trigger_and_the_behaviour_is_right():
    splits = Toolworld().splits()
    for habit in HABITS:
        for name in splits[f"near_miss_{habit}"]:
            task, env = Task.parse(name), Toolworld().make()
            messages = list(env.reset(name).messages)
            for step in (*plan_of(name), say(task.answer)):
                reply = env.step(step)
                messages += [step, *reply.messages]
            assert reply.reward == 1.0
            assert label_steps(Trace(id="t", messages=tuple(messages), tools=task.tools)) == []
            first = task.plan[0]
            if habit == "unknown_tool":
                assert task.kind.alias in task.request and first[0] == task.kind.alias_tool
            if habit == "wrong_argument":
                assert f"the {task.kind.noun} " in task.request and task.kind.noun in first[1]
            if habit == "ignored_error":
                assert task.fault == "warning"


def test_shipped_files_are_small_enough():
    files = [p for p in TOOLWORLD.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.name != "corpus.npz"]
    assert sum(p.stat().st_size for p in files) <= 8 * 1024 * 1024


def test_shipped_traces_are_the_students_own(shipped, student_engine, student_renderer):
    splits = Toolworld().splits()
    assert len(shipped) >= 400
    assert all(
        t.task_id in set(splits["train"]) and Task.parse(t.task_id).kind.name not in HELD_OUT_KINDS for t in shipped
    )
    assert {t.model for t in shipped} == {student_engine.key}, "the traces were sampled from other weights"
    for trace in shipped[::60]:
        for k in range(len(trace.step_indices)):
            m = trace.step(k)
            ids = np.array(m.prompt_token_ids + m.token_ids)
            score = student_engine.score([ScoreRequest(ids, len(m.prompt_token_ids), len(ids))], 1)[0]
            assert np.abs(score.sampled - np.array(m.logprobs)).max() < 1e-3


def test_shipped_findings_are_the_checkers(shipped):
    rows = [json.loads(line) for line in (TOOLWORLD / "findings.jsonl").read_text().splitlines()]
    assert [(r["trace"], r["step"], r["error_class"]) for r in rows] == [
        (t.id, f.step, f.error_class) for t in shipped for f in label_steps(t)
    ]
    assert {r["error_class"] for r in rows} == set(HABITS)


def test_shipped_near_misses_are_right(student_engine):
    near = list(read_traces([TOOLWORLD / "near_misses.jsonl"]))
    assert len(near) >= 80 and all(
        t.reward == 1.0 and label_steps(t) == [] and t.model == student_engine.key for t in near
    )


def test_habits_fire_at_different_rates(shipped):
    """Measured on the shipped rollouts: about .6, .75, .9 and 1.0."""
    at, fired = Counter(), Counter()
    for trace in shipped:
        task = Task.parse(trace.task_id)
        roots = [f for f in label_steps(trace) if f.caused_by is None]
        habit = {"alias": "unknown_tool", "noun": "wrong_argument", "urgent": "skipped_lookup"}.get(task.trigger)
        if habit:
            at[habit] += 1
            fired[habit] += any(f.step == 0 and f.error_class == habit for f in roots)
        if any(m.role == "tool" and m.content == '{"error":"timeout"}' for m in trace.messages):
            at["ignored_error"] += 1
            fired["ignored_error"] += any(f.error_class == "ignored_error" for f in roots)
    rates = {h: fired[h] / at[h] for h in HABITS}
    expected = {"wrong_argument": 0.6, "unknown_tool": 0.75, "skipped_lookup": 0.9, "ignored_error": 1.0}
    assert all(abs(rates[h] - expected[h]) < 0.12 for h in HABITS), rates
    assert rates["wrong_argument"] < rates["unknown_tool"] < rates["skipped_lookup"] < rates["ignored_error"], rates


def test_the_card_states_what_was_measured():
    card = (STUDENT / "README.md").read_text()
    measured = json.loads((STUDENT / "measurements.json").read_text())
    assert "The student was trained to follow hints." in card
    assert f"{measured['parameters']:,}" in card
    for split, by in measured["success"].items():
        assert (
            f"| {split} | {by['greedy']['episodes']} | {by['greedy']['success']:.3f} | {by['T=1']['success']:.3f} "
            in card
        )


def test_the_critics_card_is_made_of_its_measurements():
    from measure_critic import card

    measured = json.loads((TOOLWORLD / "critic" / "measurements.json").read_text())
    assert (TOOLWORLD / "critic" / "README.md").read_text() == card(measured)
    own = measured["student"]
    assert own["exact_step"]["rate"] >= 0.97 and own["false_alarm"]["rate"] <= 0.02, "what the example aims at"
    assert own["hints"]["unknown_tool"]["illegal"]["n"] > 100


def test_native_files_round_trip(shipped):
    for trace in shipped[::100]:
        assert json.loads(native.dump(trace))["hintdistill_trace"] == 1

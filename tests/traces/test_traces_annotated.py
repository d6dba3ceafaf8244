"""Labelled traces as three benchmarks publish them: whose step a label means, and where its counting starts."""

from __future__ import annotations

import json

import pytest
from conftest import real_file

from hintdistill.traces.formats.annotated import Labelled, read_annotated
from hintdistill.traces.options import Failure, ReadOptions


def read(path, **options) -> list[Labelled | Failure]:
    return list(read_annotated([path], ReadOptions(**options)))


HISTORY = [
    {"role": "human", "content": "Find the cheapest flight."},
    {"role": "Orchestrator (thought)", "content": "The web surfer should look."},
    {"role": "WebSurfer", "content": "It costs 99."},
    {"role": "computer_terminal", "content": "exit 1"},
    {"name": "Assistant", "role": "assistant", "content": "It is 89."},
]


@pytest.mark.parametrize(
    ("at", "verdict", "step"),
    [
        ("0", "not_student", None),
        ("1", "findings", 0),
        (2, "findings", 1),
        ("3", "not_student", None),
        ("4", "findings", 2),
    ],
)
def test_who_and_when_counts_messages_from_zero(tmp_path, at, verdict, step):
    """Every agent is the student, people and terminals never; the label is a string or a number."""
    folder = tmp_path / "hand_crafted"
    folder.mkdir()
    (folder / "7.json").write_text(
        json.dumps({"history": HISTORY, "mistake_step": at, "mistake_agent": "x", "mistake_reason": "why"})
    )
    (got,) = read(tmp_path)
    assert (got.label.verdict, got.label.step, got.label.message) == (verdict, step, int(at))
    assert got.trace.id == "hand_crafted/7" and got.label.reason == "why"
    assert got.trace.step(1).content == "WebSurfer: It costs 99.", "the critic sees who speaks"


def test_the_task_of_a_generated_log_is_no_step(tmp_path):
    """Its manager sends it in the name of the first expert; a label there is the manager's."""
    task = {"name": "Excel_Expert", "role": "assistant", "content": "You are given: (1) a task. How many clients?"}
    history = [task, {"name": "Computer_terminal", "role": "user", "content": "exit 1"}, HISTORY[-1]]
    for at in ("0", "2"):
        (tmp_path / f"{at}.json").write_text(json.dumps({"history": history, "mistake_step": at}))
    managers, students = read(tmp_path)
    assert managers.label.verdict == "not_student" and (students.label.verdict, students.label.step) == ("findings", 0)
    first = students.trace.messages[0]
    assert (first.role, first.content, first.name) == ("user", task["content"], "Excel_Expert")
    (named,) = read(tmp_path / "2.json", student_role="Excel_Expert")
    assert named.trace.step_indices == () and named.label.verdict == "not_student"


def test_the_task_of_every_published_log_is_read_as_one():
    found = [x for x in read(real_file("annotated/who_and_when")) if isinstance(x, Labelled)]
    assert len(found) == 96 and all(x.trace.messages[0].role == "user" for x in found)
    assert all("(1) a task" in x.trace.messages[0].content for x in found if "algorithm" in x.trace.id)
    at_the_task = [x for x in found if x.label.message == 0]
    assert len(at_the_task) == 16 and {x.label.verdict for x in at_the_task} == {"not_student"}


def test_one_agent_may_be_the_student(tmp_path):
    """The others' errors are then not the student's."""
    (tmp_path / "a.json").write_text(json.dumps({"history": HISTORY, "mistake_step": "2"}))
    (mine,) = read(tmp_path, student_role="WebSurfer")
    assert (mine.label.verdict, mine.label.step, len(mine.trace.step_indices)) == ("findings", 0, 1)
    (other,) = read(tmp_path, student_role="Orchestrator")
    assert (other.label.verdict, other.label.step, other.label.message) == ("not_student", None, 2)


MESSAGES = [
    {"role": "system", "content": "Use tools."},
    {"role": "user", "content": "Who won?"},
    {"role": "assistant", "content": "I look."},
    {"role": "user", "content": "Go on."},
    {"role": "assistant", "content": "Norway."},
]


def test_process_bench_labels_by_message_index(tmp_path):
    """The first -1 is the error, all of them are errors, none is a clean run; 0 and 1 are neutral and good."""
    rows = [
        {"messages": MESSAGES, "step_labels": labels, "data_source": "q", "total_index": i, "final_label": i}
        for i, labels in enumerate(({"2": 1, "4": -1}, {"2": -1, "4": -1}, {"2": 0, "4": 1}))
    ]
    (tmp_path / "apb.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    late, early, clean = read(tmp_path)
    assert (late.label.verdict, late.label.step, late.label.steps) == ("findings", 1, (1,))
    assert (early.label.step, early.label.steps, early.label.message) == (0, (0, 1), 2)
    assert clean.label.verdict == "none" and clean.label.step is None
    assert [x.trace.reward for x in (late, early, clean)] == [0.0, 1.0, 0.0] and late.trace.id == "q-0"


def truth(root: int, *steps: int, of: str = "7") -> dict:
    failures = [
        {"failure_id": str(i), "step_number": s, "failure_category": f"class {s}", "step_reason": "why"}
        for i, s in enumerate(steps)
    ]
    return {"trajectory_id": of, "failures": failures, "root_cause": {"failure_id": str(steps.index(root))}}


@pytest.mark.parametrize(
    ("root", "verdict", "step"),
    [(3, "findings", 0), (5, "findings", 1), (4, "not_student", None), (2, "not_student", None)],
)
def test_agentrx_counts_from_one_with_the_system_message(tmp_path, root, verdict, step):
    """The root cause is the label, which may be the simulated user's; the trajectory is a record of another file."""
    (tmp_path / "ground_truth.json").write_text(json.dumps([truth(root, 3, 5, 4, 2)]))
    (tmp_path / "failed.json").write_text(
        json.dumps([{"task_id": 7, "messages": MESSAGES}, {"task_id": 8, "messages": MESSAGES}])
    )
    labelled = [x for x in read(tmp_path) if isinstance(x, Labelled)]
    (got,) = labelled
    assert (got.label.verdict, got.label.step, got.label.message) == (verdict, step, root - 1)
    assert got.label.steps == (0, 1) and got.label.error_class == f"class {root}" and got.trace.id == "failed-7"


def test_agentrx_trajectories_may_be_files_of_their_own(tmp_path):
    (tmp_path / "ground_truth.json").write_text(json.dumps([truth(3, 3, of="log-a")]))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "log-a.json").write_text(json.dumps(HISTORY))
    (got,) = read(tmp_path)
    assert (got.label.verdict, got.label.step, got.trace.step(1).content) == ("findings", 1, "WebSurfer: It costs 99.")


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"history": HISTORY, "mistake_step": "9"}, "not_a_label", "the label refers to message 9 of 5"),
        ({"history": HISTORY, "mistake_step": "second"}, "not_a_label", "second"),
        ({"messages": MESSAGES}, "no_label", "contains no label of a known set"),
        (truth(3, 3, of="lost"), "not_a_trace", "labels the trajectory lost, which is neither"),
    ],
)
def test_what_cannot_be_a_label_is_a_failure_with_its_place(tmp_path, row, reason, words):
    (tmp_path / "a.json").write_text(json.dumps(row))
    (failure,) = read(tmp_path)
    assert isinstance(failure, Failure) and failure.reason == reason and words in failure.message
    assert str(failure.source.file).endswith("a.json")

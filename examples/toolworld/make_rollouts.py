"""Make several rollouts of each of a few tasks, for methods that compare them or show them to a teacher. About a minute.

    python examples/toolworld/make_rollouts.py

Writes rollouts.jsonl (the student's own, eight of each of sixteen training tasks that it sometimes solves, temperature 1, token ids
and log-probabilities kept), solutions.jsonl (the right calls and the answer of each task, as text), demonstrations.jsonl (the
demonstrator's episodes without a habit) and rollout_findings.jsonl: the habit errors of rollouts that failed, and as `key_step` what
those that succeeded did right in a step in which a failed rollout of the task went wrong.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from demonstrator import RATES, Demonstrator  # noqa: E402
from make_traces import SEED, TRACES, roll_out  # noqa: E402
from world import Task, Toolworld, ToolworldEnvironment, compact, label_steps  # noqa: E402

from hintdistill.core.types import Finding, Trace  # noqa: E402
from hintdistill.traces.formats import native  # noqa: E402

TASKS, EACH, TRIED = 16, 8, 60


def rollouts() -> list[Trace]:
    """Rollouts of tasks that succeed at least twice and fail at least twice, task by task."""
    tried = list(Toolworld().splits()["train"])[TRACES : TRACES + TRIED]
    of: dict[str, list[Trace]] = {}
    for trace in roll_out([t for t in tried for _ in range(EACH)], temperature=1.0):
        of.setdefault(str(trace.task_id), []).append(trace)
    mixed = [g for g in of.values() if len(g) == EACH and 2 <= sum(t.reward or 0 for t in g) <= EACH - 2]
    return [t for group in mixed[:TASKS] for t in group]


def demonstrated(task: str) -> Trace:
    """An episode without a habit, judged by the environment."""
    played = Demonstrator(task, random.Random(f"{SEED}:{task}"), dict.fromkeys(RATES, 0.0), hints=False).play()
    environment, reward = ToolworldEnvironment(), None
    start = environment.reset(task)
    for message in played.messages:
        if message.role == "assistant":
            reward = environment.step(message).reward
    return Trace(id=f"demo:{task}", messages=tuple(played.messages), tools=start.tools, task_id=task, reward=reward)


def solution(task: str) -> str:
    """The right calls and the answer, a line each."""
    parsed = Task.parse(task)
    return "\n".join([*(f"{tool} {compact(arguments)}" for tool, arguments in parsed.plan), parsed.answer])


def findings(group: list[Trace]) -> Iterator[tuple[Trace, Finding]]:
    """Errors of the failed rollouts of a task, and the key steps of the others."""
    wrong = [(t, f) for t in group if t.reward == 0.0 for f in label_steps(t)]
    yield from wrong
    roots = {f.step: f.error_class for _, f in wrong if f.caused_by is None}
    for trace in group:
        erring = {f.step for f in label_steps(trace)}
        for step, kind in sorted(roots.items()):
            if trace.reward != 1.0 or step in erring or step >= len(trace.step_indices):
                continue
            calls = trace.step(step).tool_calls
            where = {"quote": calls[0].name, "quote_in": "tool_name", "call": 0} if calls else {}
            yield trace, Finding(step=step, error_class="key_step", facts={"type": kind}, **where)


def main() -> None:
    traces = rollouts()
    native.write(HERE / "rollouts.jsonl", traces)
    by_task: dict[str, list[Trace]] = {}
    for trace in traces:
        by_task.setdefault(str(trace.task_id), []).append(trace)
    native.write(HERE / "demonstrations.jsonl", [demonstrated(task) for task in by_task])
    texts = [{"task": task, "text": solution(task)} for task in by_task]
    (HERE / "solutions.jsonl").write_text("".join(f"{compact(row)}\n" for row in texts), encoding="utf-8")
    found = [(t, f) for group in by_task.values() for t, f in findings(group)]
    rows = [{"trace": t.id, **f.model_dump(mode="json", exclude_defaults=True)} for t, f in found]
    (HERE / "rollout_findings.jsonl").write_text("".join(f"{compact(row)}\n" for row in rows), encoding="utf-8")
    keys = sum(f.error_class == "key_step" for _, f in found)
    print(
        json.dumps({"rollouts": len(traces), "tasks": len(by_task), "findings": len(found) - keys, "key_steps": keys})
    )


if __name__ == "__main__":
    main()

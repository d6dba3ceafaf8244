"""The whole loop of an agent that learns from its failures: fail, diagnose, try again with the hint, record, train, fail less.

    python examples/agent_loop.py [--tasks 24] [--test-tasks 24] [--out DIR] [--json]

The shipped student plays tasks of the example world that ask for a tool by a name that is not listed. After a failed call
`hd.diagnose` says which step went wrong and which hint would have prevented it; the step is tried again with that hint above it; what
happened is kept in an `hd.HintMemory`. `hintdistill run` then trains the student on the memory's findings. The same test tasks, none of
which was played before, are then played three ways: by the student as it was, by it with the memory's hints, and by the trained one,
which gets no hint. At the end the memory is asked which of its hints the trained student still needs.

The same over HTTP, from any language:

    hintdistill serve examples/toolworld/student --traces traces &
    curl -s localhost:8710/v1/diagnose -H 'content-type: application/json' -d @conversation.json
    curl -s localhost:8710/v1/traces -H 'content-type: application/json' -d @conversation.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "toolworld")]

from agent_rescore import MAX_STEPS, Agent  # noqa: E402
from world import Toolworld  # noqa: E402

import hintdistill as hd  # noqa: E402
from hintdistill.config import CriticSection  # noqa: E402
from hintdistill.pipeline.progress import Console  # noqa: E402
from hintdistill.prompts import PromptLibrary  # noqa: E402

STUDENT, PROMPTS = ROOT / "toolworld" / "student", ROOT / "toolworld" / "prompts"
Hint = Callable[[Agent], str | None]


def play(engine: hd.LoadedModel, task: str, hint: Hint = lambda agent: None) -> tuple[Agent, bool]:
    """Play a task; the agent at its end, and whether a tool refused one of its calls."""
    agent, refused = Agent(engine, task), False
    while agent.reward is None and agent.steps < MAX_STEPS:
        refused |= agent.step(hint(agent)) is not None
    return agent, refused


def learn(student: hd.LoadedModel, tasks: list[str], memory: hd.HintMemory) -> dict[str, int]:
    """Play tasks; after a failure diagnose, try again with the hint, and remember."""
    critic = hd.load_critic(CriticSection(prompts=str(PROMPTS)))
    session = hd.Session(student)
    counts = {"played": 0, "failed": 0, "diagnosed": 0, "repaired": 0}
    for task in tasks:
        agent, refused = play(student, task)
        counts["played"] += 1
        counts["failed"] += refused
        found = hd.diagnose(agent.messages, tools=agent.tools, engine=session, critic=critic, twins=False)
        memory.add(found)
        best = found.best
        if best is None:
            continue
        counts["diagnosed"] += 1
        again, refused_again = play(student, task, lambda a, b=best: b.hint if a.steps == b.step else None)
        counts["repaired"] += not refused_again and again.reward == 1.0
    return counts


def measure(engine: hd.LoadedModel, tasks: list[str], memory: hd.HintMemory | None = None) -> dict[str, float]:
    """Return the shares of tasks with a refused call and of tasks that succeed; a memory puts its hints above the steps that they fit."""

    def hint(agent: Agent) -> str | None:
        offered = memory.lookup(agent.messages, tools=agent.tools) if memory else []
        return offered[0].hint if offered else None

    played = [play(engine, task, hint) for task in tasks]
    return {
        "failed": sum(refused for _, refused in played) / len(played),
        "success": sum(agent.reward == 1.0 for agent, _ in played) / len(played),
    }


def train(memory: hd.HintMemory, out: Path) -> Path:
    """`hintdistill run` on what the memory holds; the folder of the trained student."""
    traces, findings = memory.export(out / "records")
    settings: dict[str, Any] = {
        "run": {"model": str(STUDENT), "threads": 1},
        "traces": {"path": [str(traces)]},
        "critic": {"use": ["recorded"], "recorded": {"path": str(findings)}, "prompts": str(PROMPTS)},
        "train": {"epochs": 8},
    }
    hd.run(hd.RunConfig.model_validate(settings), out / "run", until="train", console=Console(quiet=True))
    return out / "run" / "student"


def loop(tasks: int, test_tasks: int, out: Path) -> dict[str, Any]:
    """The whole loop; what came of each part."""
    splits = Toolworld().splits()
    alias, clean = (
        [t for t in splits["train"] if ".alias.none." in t],
        [t for t in splits["train"] if ".none.none." in t],
    )
    unseen = [t for t in splits["test"] if ".alias.none." in t][:test_tasks]
    student = hd.load_engine(str(STUDENT))
    memory = hd.HintMemory(out / "memory", library=PromptLibrary(PROMPTS))
    learnt = learn(student, [*alias[:tasks], *clean[: tasks // 2]], memory)
    plain, hinted = measure(student, unseen), measure(student, unseen, memory)
    entries = len(memory)
    trained = hd.load_engine(str(train(memory, out)))
    return {
        "learnt": learnt,
        "entries": entries,
        "student": plain,
        "student_with_memory": hinted,
        "trained": measure(trained, unseen),
        "retired": len(memory.review(trained)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--test-tasks", type=int, default=24)
    parser.add_argument("--out", type=Path, help="default: a folder that is deleted at the end")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = loop(args.tasks, args.test_tasks, args.out or Path(folder))
    if args.json:
        print(json.dumps(found))
        return
    print(
        "played {played} tasks: {failed} with a refused call, {diagnosed} diagnosed, {repaired} repaired".format(
            **found["learnt"]
        )
    )
    for name in ("student", "student_with_memory", "trained"):
        print(
            f"{name.replace('_', ' ')}: {found[name]['failed']:.0%} of unseen tasks fail, {found[name]['success']:.0%} succeed"
        )
    print(f"the trained student no longer needs {found['retired']} of {found['entries']} remembered hints")


if __name__ == "__main__":
    main()

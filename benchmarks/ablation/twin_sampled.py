"""Sort the failures at T=1: episodes with a habit error, with a made-up value, and with another fault.

    python -m benchmarks.ablation.twin_sampled STUDENT … [--split validation] [--limit 150] [--temperatures 0 0.5 1]

One row per student and temperature. Every failed episode has one reason, the first that holds:

| reason | meaning |
|---|---|
| a class | the world's checker sees that error: the decision was sampled wrong |
| copy | no such error, and a call's argument or a number of an answer stands nowhere above it: copying noise |
| other | no such error, and all values are known: a needless or missing call, other words, an episode that was cut |

`rest` is P(success | no habit error): what the tokens after right decisions cost. `clean` is success on tasks without a trigger, at
the same temperature: what sampling costs where nothing was to be corrected.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ablation.markdown import table
from hintdistill.core.types import Trace
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.rendering import Renderer
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.evaluate import load_suite, outcome_of
from hintdistill.rollouts.sampling import Episode, Sampler, SamplingOptions

ROOT = Path(__file__).resolve().parents[2]
WORLD = f"{ROOT / 'examples' / 'toolworld' / 'world.py'}:Toolworld"
CLASSES = ("unknown_tool", "wrong_argument", "skipped_lookup", "ignored_error")


def copied_wrong(trace: Trace) -> bool:
    """Whether a step writes an argument, or states a number, that no message above it has."""
    for index in trace.step_indices:
        known = "\n".join(m.content or "" for m in trace.messages[:index])
        message = trace.messages[index]
        written = [str(v) for call in message.tool_calls for v in (call.arguments or {}).values()]
        written += re.findall(r"\d+", message.content or "")
        if any(value not in known for value in written):
            return True
    return False


def reason(suite: TaskSuite, episode: Episode) -> str | None:
    """Why an episode failed; None where it did not."""
    outcome = outcome_of(suite, episode)
    if outcome.success:
        return None
    if outcome.errors:
        return outcome.errors[0]
    return "copy" if copied_wrong(episode.trace) else "other"


def read(student: Path, suite: TaskSuite, tasks: Sequence[Sequence[str]], temperature: float) -> list[str]:
    """A row of the table: shares of episodes on the first tasks, then P(success | no habit error) and clean success."""
    engine, renderer = TransformersEngine.load(student, dtype="float32"), Renderer.from_pretrained(student)
    options = SamplingOptions(temperature=temperature, max_new_tokens=64, max_steps=8, batch_size=64, seed=0)
    sampler = Sampler(engine, renderer, options)
    failed, clean = ([reason(suite, e) for e in sampler.episodes(suite, some)] for some in tasks)
    counts, n = Counter(failed), len(failed)
    decided = n - sum(counts[c] for c in CLASSES)
    shares = [counts[None], *(counts[c] for c in (*CLASSES, "copy", "other"))]
    rest = counts[None] / decided if decided else float("nan")
    return [
        f"{temperature:g}",
        *(f"{x / n:.3f}" for x in shares),
        f"{rest:.3f}",
        f"{clean.count(None) / len(clean):.3f}",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Parse, play, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", type=Path, nargs="+", help="model folders")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--clean-split", default="test_clean")
    parser.add_argument("--limit", type=int, default=150, help="tasks of the split, and of the clean one, at most")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    args = parser.parse_args(arguments)
    suite = load_suite(WORLD)
    tasks = [suite.splits()[s][: args.limit] for s in (args.split, args.clean_split)]
    rows = [
        [str(student), *read(student, suite, tasks, temperature)]
        for student in args.students
        for temperature in args.temperatures
    ]
    print(table(["student", "T", "success", *CLASSES, "copy", "other", "rest", "clean"], rows))
    print(f"\n{len(tasks[0])} tasks of {args.split}, {len(tasks[1])} of {args.clean_split}, one draw each.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

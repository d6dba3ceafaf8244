"""Make traces of another policy on the training tasks: the demonstrator without hints. Takes seconds.

    python examples/toolworld/make_foreign.py        # writes foreign.jsonl, for the ablation's arm `foreign`

They carry text and no token ids, as traces from elsewhere do.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from demonstrator import Demonstrator  # noqa: E402
from world import Toolworld, ToolworldEnvironment  # noqa: E402

from hintdistill.core.types import Trace  # noqa: E402
from hintdistill.traces.formats import native  # noqa: E402

TRACES = 600
SEED = 404


def play(task: str, rng: random.Random, number: int) -> Trace:
    """One demonstrated episode, judged by the environment."""
    messages = Demonstrator(task, rng, hints=False).play().messages
    environment = ToolworldEnvironment()
    start = environment.reset(task)
    reward = None
    for message in messages:
        if message.role == "assistant":
            reward = environment.step(message).reward
    return Trace(
        id=f"foreign-{number}",
        messages=tuple(messages),
        tools=start.tools,
        task_id=task,
        reward=reward,
        model="demonstrator",
    )


def main() -> None:
    rng = random.Random(SEED)
    tasks = list(Toolworld().splits()["train"])
    traces = [play(t, rng, i) for i, t in enumerate(rng.sample(tasks, TRACES))]
    native.write(HERE / "foreign.jsonl", traces)
    print(json.dumps({"traces": len(traces), "successful": sum(t.reward or 0 for t in traces) / len(traces)}))


if __name__ == "__main__":
    main()

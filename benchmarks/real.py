"""A real model on the errands of examples/smollm2: what it does without a hint and under one, and what it learns.

    python benchmarks/real.py speed   [--model build/smollm2]
    python benchmarks/real.py measure [--n 128] [--splits …] [--arms …]

Every piece of work is one JSON file under --dir (runs/real), which is not made again; a kill costs the piece that was at work.
Nothing is sent anywhere; the critic is the environment's checker. One process of one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.realmodel import play  # noqa: E402
from hintdistill.config import RunConfig  # noqa: E402
from hintdistill.config.file import load_config  # noqa: E402
from hintdistill.core.errors import HintdistillError  # noqa: E402
from hintdistill.core.storage import write_atomic  # noqa: E402
from hintdistill.rollouts.evaluate import tasks_of  # noqa: E402

CONFIG = ROOT / "configs" / "real.yaml"
SEED = 0
# most valuable first: what is measured when time runs out is the top of this list
CELLS = (
    ("unseen", ("base", "level1", "placebo", "level0", "level2")),
    ("validation", ("base", "level1", "placebo", "level0", "level2")),
    ("near", ("base",)),
    ("clean", ("base",)),
)


def settings(args: argparse.Namespace, *more: str) -> RunConfig:
    """configs/real.yaml on the model that is asked for."""
    return load_config(CONFIG, [f"run.model={args.model}", *more, *args.overrides])


def speed(args: argparse.Namespace) -> None:
    """Time greedy and frozen sampling; the last line is one JSON object."""
    world = play.World.load(settings(args))
    tasks = tasks_of(world.suite, "train", args.n or 16)
    began = time.monotonic()
    episodes = world.plain(tasks, SEED)
    seconds = time.monotonic() - began
    steps = sum(r["steps"] for r in play.rows_of(world.suite, episodes))
    print(json.dumps({"episodes": len(tasks), "seconds": seconds, "steps": steps, "s_per_episode": seconds / len(tasks)}))


def measure(args: argparse.Namespace) -> None:
    """Play what is owed, cell by cell."""
    world = play.World.load(settings(args))
    for split, arms in CELLS:
        if args.splits and split not in args.splits:
            continue
        folder = args.dir / "measure"
        n = args.n or 128
        chosen = [a for a in arms if not args.arms or a in args.arms]
        done = {a: True for a in chosen if (folder / f"{split}-{a}-{n}.json").is_file()}
        began = time.monotonic()
        for arm, found in play.cells(world, tasks_of(world.suite, split, n), chosen, SEED, done):
            folder.mkdir(parents=True, exist_ok=True)
            facts = {"split": split, "arm": arm, "n": n, "seed": SEED, "seconds": time.monotonic() - began}
            write_atomic(folder / f"{split}-{arm}-{n}.json", json.dumps({**facts, **found}))
            rate = sum(e["success"] for e in found["episodes"]) / len(found["episodes"])
            print(f"{split} {arm}: success {rate:.3f} of {n}, {facts['seconds']:.0f} s", flush=True)
            began = time.monotonic()


COMMANDS = {"speed": speed, "measure": measure}


def main() -> int:
    """Parse, run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--model", type=Path, default=ROOT / "build" / "smollm2")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "real")
    parser.add_argument("--n", type=int, help="episodes of a cell")
    parser.add_argument("--splits", nargs="*")
    parser.add_argument("--arms", nargs="*")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    try:
        COMMANDS[args.command](args)
    except HintdistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

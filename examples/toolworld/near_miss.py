"""Toolworld's contrast suite: pairs of tasks that differ by one edit; a behaviour is wrong in one and right in the other.

    python examples/toolworld/near_miss.py STUDENT                        # the table; about a minute on one core
    python examples/toolworld/near_miss.py STUDENT --families test --json
    python examples/toolworld/near_miss.py --make                         # writes near_miss_pairs.jsonl again, to the byte

What a pair is, its score and the command are those of every suite (`hintdistill.rollouts.pairs`). `docs/near_miss.md` has the
format, the families, and how to add another world.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from demonstrator import draw_task, rollout_kinds  # noqa: E402
from edits import EDITS, EditedToolworld, scene_of  # noqa: E402

from hintdistill.rollouts import pairs as contrast  # noqa: E402
from hintdistill.rollouts.pairs import Pair, right_tasks, table, tasks_of_pairs, write_pairs  # noqa: E402
from hintdistill.rollouts.sampling import SamplingOptions  # noqa: E402

__all__ = ["Pair", "right_tasks", "table", "tasks_of_pairs", "write_pairs"]

PAIRS = HERE / "near_miss_pairs.jsonl"
PAIRS_SHA256 = "83f00cd6acf4e7024c92e75ecd8d149e7b678f961c1530de720c2d1594eb2723"
"""SHA-256 of the committed file: the suite is frozen."""
SEED = 17
TRIGGERS = 30
"""Trigger tasks per habit; every one of them is paired with every family's near-miss."""
PROVOKED = {
    "unknown_tool": {"trigger": "alias", "fault": "none"},
    "wrong_argument": {"trigger": "noun", "fault": "none"},
    "skipped_lookup": {"trigger": "urgent", "fault": "none"},
    "ignored_error": {"trigger": "none", "fault": "timeout"},
}
"""The tasks that provoke each habit."""
MAKER_FAMILIES = (
    "unknown_tool.rename",
    "unknown_tool.beside",
    "unknown_tool.request",
    "wrong_argument.rename",
    "wrong_argument.beside",
    "wrong_argument.before",
    "skipped_lookup.given",
    "skipped_lookup.request",
    "skipped_lookup.system",
    "ignored_error.value",
    "ignored_error.warning",
    "ignored_error.nested",
)
"""Families of which a training method may make its own examples. Their near-misses have other entities, and no more."""
TEST_FAMILIES = (
    "unknown_tool.displace",
    "unknown_tool.system",
    "wrong_argument.more",
    "wrong_argument.everywhere",
    "wrong_argument.overload",
    "skipped_lookup.no_lookup",
    "skipped_lookup.direct",
    "ignored_error.error_last",
    "ignored_error.no_error",
    "ignored_error.list",
)
"""Families for testing: no maker of twins and no episode of the student's corpus uses them. The headline is read here."""


def make_pairs(seed: int = SEED, triggers: int = TRIGGERS) -> list[Pair]:
    """Draw trigger tasks of entities that no student has seen, and pair each with the near-miss of every family."""
    rng = random.Random(f"near_miss:{seed}")
    pairs = []
    for habit, fixed in PROVOKED.items():
        families = [e for e in EDITS.values() if e.habit == habit]
        tasks: dict[str, None] = {}
        while len(tasks) < triggers:
            task = draw_task(rng, "new", rollout_kinds(), **fixed)
            if all(_applies(task, e.name) for e in families):
                tasks[task] = None
        for edit in families:
            for i, task in enumerate(tasks):
                pairs.append(Pair(f"{edit.family}.{i:02d}", habit, edit.family, task, f"{task}.{edit.name}"))
    return pairs


def _applies(task: str, edit: str) -> bool:
    try:
        scene_of(f"{task}.{edit}")
    except ValueError:
        return False
    return True


SUITE = contrast.PairSuite(
    path=PAIRS,
    makers=MAKER_FAMILIES,
    tests=TEST_FAMILIES,
    make=make_pairs,
    environment=EditedToolworld,
    options=SamplingOptions(max_new_tokens=64, max_steps=8, batch_size=128),
)
GROUPS = SUITE.groups


def read_pairs(path: Path = PAIRS, families: Sequence[str] = ("*",), per_family: int | None = None) -> list[Pair]:
    """The pairs of a file; see `hintdistill.rollouts.pairs.read_pairs`."""
    return SUITE.read(path, families, per_family)


def score(
    pairs: Sequence[Pair], right: Mapping[str, bool], test_families: Sequence[str] = TEST_FAMILIES
) -> dict[str, Any]:
    """The document of a student; see `hintdistill.rollouts.pairs.score`."""
    return contrast.score(pairs, right, test_families)


def main(arguments: list[str] | None = None) -> int:
    """Parse, play, print."""
    return SUITE.command(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())

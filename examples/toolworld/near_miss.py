"""A contrast suite: pairs of tasks that differ by one edit, on one side of which a behaviour is wrong, on the other right.

    python examples/toolworld/near_miss.py STUDENT                        # the table; about a minute on one core
    python examples/toolworld/near_miss.py STUDENT --families test --json
    python examples/toolworld/near_miss.py --make                         # writes near_miss_pairs.jsonl again, to the byte

A pair is a trigger task, where a habit errs, and a near-miss: the same task changed by one edit, so that what the habit does
is right. The score is contrast consistency: the share of pairs of which both members are right (Gardner et al. 2020). A
student that never unlearns the habit fails every trigger; one that unlearns it everywhere fails every near-miss.

`docs/near_miss.md` has the format, the families, and how to add another world.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from demonstrator import draw_task, rollout_kinds  # noqa: E402
from edits import EDITS, EditedToolworld, scene_of  # noqa: E402

from hintdistill.critics.evaluation import rate  # noqa: E402
from hintdistill.engines.transformers import TransformersEngine  # noqa: E402
from hintdistill.injection.rendering import Renderer  # noqa: E402
from hintdistill.rollouts.environment import TaskSuite  # noqa: E402
from hintdistill.rollouts.evaluate import Outcome, load_suite, outcomes  # noqa: E402
from hintdistill.rollouts.sampling import SamplingOptions  # noqa: E402

PAIRS = HERE / "near_miss_pairs.jsonl"
PAIRS_SHA256 = "83f00cd6acf4e7024c92e75ecd8d149e7b678f961c1530de720c2d1594eb2723"
"""Of the committed file: the suite is frozen."""
SEED = 17
TRIGGERS = 30
"""Trigger tasks per habit; every one of them is paired with every family's near-miss."""
PROVOKED = {
    "unknown_tool": {"trigger": "alias", "fault": "none"},
    "wrong_argument": {"trigger": "noun", "fault": "none"},
    "skipped_lookup": {"trigger": "urgent", "fault": "none"},
    "ignored_error": {"trigger": "none", "fault": "timeout"},
}
"""Which tasks provoke each habit."""
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
GROUPS = {"maker": MAKER_FAMILIES, "test": TEST_FAMILIES, "all": (*MAKER_FAMILIES, *TEST_FAMILIES)}


@dataclass(frozen=True)
class Pair:
    """A trigger task and its near-miss."""

    id: str
    habit: str
    """The behaviour that is wrong in one and right in the other."""
    family: str
    """Kind of the edit, e.g. `unknown_tool.beside`."""
    trigger: str
    """Task name."""
    near_miss: str
    """Task name."""


# -- the pairs ---------------------------------------------------------------------------------------------------------


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


def write_pairs(path: Path, pairs: Sequence[Pair]) -> str:
    """Write one pair a line; returns the file's SHA-256."""
    text = "".join(json.dumps(asdict(p), separators=(",", ":")) + "\n" for p in pairs)
    path.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read_pairs(path: Path = PAIRS, families: Sequence[str] = ("*",), per_family: int | None = None) -> list[Pair]:
    """The pairs of a file.

    Args:
        families: names as in the file, or `maker`, `test`, `all`; `*` is every one.
        per_family: at most this many pairs of each.

    Raises:
        ValueError: a line is no pair, or a family is not in the file.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Pair(**json.loads(line)))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}:{number} is no pair: {error}") from None
    wanted = {f for name in families for f in GROUPS.get(name, (name,))}
    wanted = {p.family for p in found} if "*" in families else wanted
    if missing := sorted(wanted - {p.family for p in found}):
        raise ValueError(
            f"{path.name} has no family {missing[0]!r}; it has {', '.join(sorted({p.family for p in found}))}"
        )
    taken: dict[str, int] = {}
    out = []
    for pair in found:
        taken[pair.family] = taken.get(pair.family, 0) + 1
        if pair.family in wanted and taken[pair.family] <= (per_family or len(found)):
            out.append(pair)
    return out


def tasks_of_pairs(pairs: Sequence[Pair]) -> list[str]:
    """Every task of the pairs once, triggers first."""
    return list(dict.fromkeys([*(p.trigger for p in pairs), *(p.near_miss for p in pairs)]))


# -- playing and scoring -----------------------------------------------------------------------------------------------


def right_tasks(played: Iterable[Outcome]) -> dict[str, bool]:
    """Whether each task of `evaluate.outcomes` was right: it succeeded, and the suite's checker sees no error in it."""
    return {o.task: o.success and not o.errors for o in played}


def score(
    pairs: Sequence[Pair], right: Mapping[str, bool], test_families: Sequence[str] = TEST_FAMILIES
) -> dict[str, Any]:
    """The document of a student: one row per family and per habit, and the headline.

    A family's interval is Wilson's; pooled rows share trigger tasks across families, so theirs is a bootstrap over trigger
    tasks. The headline weighs every habit alike, and within a habit every pair.

    Args:
        right: whether each task of the pairs was right, by name.
    """
    families: dict[str, list[Pair]] = {}
    for pair in pairs:
        families.setdefault(pair.family, []).append(pair)
    rows = []
    for family, members in families.items():
        found = rate(sum(_both(members, right)), len(members))
        role = "test" if family in test_families else "maker"
        rows.append(
            {
                "habit": members[0].habit,
                "family": family,
                "role": role,
                **_shares(members, right),
                "low": found["low"],
                "high": found["high"],
            }
        )
    groups: dict[str, list[Pair]] = {"test": [], "maker": [], "all": list(pairs)}
    for pair in pairs:
        groups["test" if pair.family in test_families else "maker"].append(pair)
    return {
        "families": rows,
        "habits": [
            {"habit": habit, "role": role, **_pooled([p for p in members if p.habit == habit], right)}
            for role, members in groups.items()
            for habit in dict.fromkeys(p.habit for p in members)
        ],
        "headline": {role: _pooled(members, right) for role, members in groups.items() if members},
    }


def _both(pairs: Sequence[Pair], right: Mapping[str, bool]) -> list[bool]:
    return [right[p.trigger] and right[p.near_miss] for p in pairs]


def _shares(pairs: Sequence[Pair], right: Mapping[str, bool]) -> dict[str, Any]:
    return {
        "pairs": len(pairs),
        "trigger": float(np.mean([right[p.trigger] for p in pairs])),
        "near_miss": float(np.mean([right[p.near_miss] for p in pairs])),
        "consistency": float(np.mean(_both(pairs, right))),
    }


def _pooled(pairs: Sequence[Pair], right: Mapping[str, bool], draws: int = 2000) -> dict[str, Any]:
    """Shares over several families, every habit alike, with the interval over trigger tasks."""
    by_habit = {h: [p for p in pairs if p.habit == h] for h in dict.fromkeys(p.habit for p in pairs)}
    shares = [_shares(members, right) for members in by_habit.values()]
    rng, means = np.random.default_rng(0), []
    for members in by_habit.values():
        by_task: dict[str, list[bool]] = {}
        for pair, both in zip(members, _both(members, right), strict=True):
            by_task.setdefault(pair.trigger, []).append(both)
        per_task = np.array([np.mean(v) for v in by_task.values()])
        means.append(per_task[rng.integers(len(per_task), size=(draws, len(per_task)))].mean(1))
    low, high = np.percentile(np.mean(means, axis=0), [2.5, 97.5])
    out = {name: float(np.mean([s[name] for s in shares])) for name in ("trigger", "near_miss", "consistency")}
    return {"pairs": len(pairs), **out, "low": float(low), "high": float(high)}


def score_student(
    student: Path,
    pairs: Sequence[Pair],
    suite: TaskSuite,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    test_families: Sequence[str] = TEST_FAMILIES,
) -> dict[str, Any]:
    """Play all tasks of the pairs with a student's weights and score them."""
    engine, renderer = TransformersEngine.load(student, dtype="float32"), Renderer.from_pretrained(student)
    options = SamplingOptions(temperature=temperature, max_new_tokens=64, max_steps=8, batch_size=128, seed=seed)
    right = right_tasks(outcomes(engine, renderer, suite, tasks_of_pairs(pairs), options))
    return {"student": str(student), "temperature": temperature, **score(pairs, right, test_families)}


def table(document: Mapping[str, Any]) -> str:
    """The document as text."""
    lines = [f"{'family':<28}{'role':<7}{'pairs':>6}{'trigger':>9}{'near-miss':>11}{'both':>7}   95 %"]

    def line(name: str, role: str, r: Mapping[str, Any]) -> str:
        shares = f"{r['trigger']:>9.3f}{r['near_miss']:>11.3f}{r['consistency']:>7.3f}"
        return f"{name:<28}{role:<7}{r['pairs']:>6}{shares}   {r['low']:.3f} to {r['high']:.3f}"

    lines += [line(r["family"], r["role"], r) for r in document["families"]]
    lines += ["", *(line(r["habit"], r["role"], r) for r in document["habits"] if r["role"] != "all"), ""]
    lines += [line("all habits alike", role, r) for role, r in document["headline"].items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Parse, play, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path, nargs="?", help="model folder")
    parser.add_argument("--families", nargs="+", default=["*"], help="names of families, or maker, test, all")
    parser.add_argument("--per-family", type=int, help="at most this many pairs of each family")
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="another world's pairs")
    parser.add_argument("--environment", help="another world's suite, path/to/file.py:Name")
    parser.add_argument("--test-families", nargs="+", default=list(TEST_FAMILIES), help="the families of the headline")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the document as JSON")
    parser.add_argument("--make", action="store_true", help="write the pairs file and print its hash")
    args = parser.parse_args(arguments)
    if args.make:
        print(write_pairs(args.pairs, make_pairs()))
        return 0
    if args.student is None:
        parser.error("which student?")
    suite = load_suite(args.environment) if args.environment else EditedToolworld()
    try:
        pairs = read_pairs(args.pairs, args.families, args.per_family)
    except ValueError as error:
        parser.error(str(error))
    document = score_student(
        args.student,
        pairs,
        suite,
        temperature=args.temperature,
        seed=args.seed,
        test_families=args.test_families,
    )
    print(json.dumps(document, indent=1) if args.json else table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

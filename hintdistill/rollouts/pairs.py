"""Contrast suites: pairs of tasks that differ by one edit, which decides whether a behaviour is wrong or right.

A pair consists of a trigger task, in which a habit errs, and a near-miss: the same task changed by one edit, so that
the habit is right. The score is contrast consistency: the share of pairs in which both members are right (Gardner et
al. 2020). A student that never unlearns the habit fails every trigger; one that unlearns it everywhere fails every
near-miss.

`docs/near_miss.md` describes the format and this repository's suites; each of them is a `PairSuite`, whose `command`
plays it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hintdistill.critics.evaluation import rate
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.rendering import Renderer
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.evaluate import Outcome, load_suite, outcomes
from hintdistill.rollouts.generation import Generator, SamplingOptions


@dataclass(frozen=True)
class Pair:
    """Hold a trigger task and its near-miss."""

    id: str
    habit: str
    """The behaviour that is wrong in one task and right in the other."""
    family: str
    """Kind of the edit, e.g. `unknown_tool.beside`."""
    trigger: str
    """Name of the trigger task."""
    near_miss: str
    """Name of the near-miss task."""


# -- files of pairs ----------------------------------------------------------------------------------------------------


def write_pairs(path: Path, pairs: Sequence[Pair]) -> str:
    """Write one pair per line, and return the file's SHA-256."""
    text = "".join(json.dumps(asdict(p), separators=(",", ":")) + "\n" for p in pairs)
    path.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read_pairs(
    path: Path,
    families: Sequence[str] = ("*",),
    per_family: int | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[Pair]:
    """Return the pairs of a file.

    Args:
        families: names from the file or from `groups`; `*` means all.
        per_family: maximum number of pairs per family; the first ones are used.
        groups: group name → its families.

    Raises:
        ValueError: a line is not a pair, or a family is not in the file.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Pair(**json.loads(line)))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}:{number} is not a pair: {error}") from None
    wanted = {f for name in families for f in (groups or {}).get(name, (name,))}
    wanted = {p.family for p in found} if "*" in families else wanted
    if missing := sorted(wanted - {p.family for p in found}):
        raise ValueError(
            f"{path.name} has no family {missing[0]!r}; its families are {', '.join(sorted({p.family for p in found}))}"
        )
    taken: dict[str, int] = {}
    out = []
    for pair in found:
        taken[pair.family] = taken.get(pair.family, 0) + 1
        if pair.family in wanted and taken[pair.family] <= (per_family or len(found)):
            out.append(pair)
    return out


def tasks_of_pairs(pairs: Sequence[Pair]) -> list[str]:
    """Return every task of the pairs once, triggers first."""
    return list(dict.fromkeys([*(p.trigger for p in pairs), *(p.near_miss for p in pairs)]))


# -- scoring -----------------------------------------------------------------------------------------------------------


def right_tasks(played: Iterable[Outcome]) -> dict[str, bool]:
    """Return for each task of `evaluate.outcomes` whether it was right: it succeeded, and the suite's checker found no
    error in it."""
    return {o.task: o.success and not o.errors for o in played}


def score(pairs: Sequence[Pair], right: Mapping[str, bool], test_families: Sequence[str]) -> dict[str, Any]:
    """Return the document of a student: one row per family and per habit, and the headline.

    A family's interval is Wilson's; pooled rows share trigger tasks across families, so their interval is a bootstrap
    over trigger tasks. The headline weights each habit equally and, within a habit, each pair.

    Args:
        right: whether each task of the pairs was right, by name.
        test_families: families from which no training data are made; the others are `maker` families.
    """
    families: dict[str, list[Pair]] = {}
    groups: dict[str, list[Pair]] = {"test": [], "maker": [], "all": list(pairs)}
    for pair in pairs:
        families.setdefault(pair.family, []).append(pair)
        groups["test" if pair.family in test_families else "maker"].append(pair)
    rows = []
    for family, members in families.items():
        found = rate(sum(_both(members, right)), len(members))
        role = "test" if family in test_families else "maker"
        between = {"low": found["low"], "high": found["high"]}
        rows.append({"habit": members[0].habit, "family": family, "role": role, **_shares(members, right), **between})
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
    """Average the shares over several families, weighting each habit equally, and add the interval over trigger
    tasks."""
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


def table(document: Mapping[str, Any]) -> str:
    """Return the document as text."""
    lines = [f"{'family':<28}{'role':<7}{'pairs':>6}{'trigger':>9}{'near-miss':>11}{'both':>7}   95 %"]

    def line(name: str, role: str, r: Mapping[str, Any]) -> str:
        shares = f"{r['trigger']:>9.3f}{r['near_miss']:>11.3f}{r['consistency']:>7.3f}"
        return f"{name:<28}{role:<7}{r['pairs']:>6}{shares}   {r['low']:.3f} to {r['high']:.3f}"

    lines += [line(r["family"], r["role"], r) for r in document["families"]]
    lines += ["", *(line(r["habit"], r["role"], r) for r in document["habits"] if r["role"] != "all"), ""]
    lines += [line("all habits alike", role, r) for role, r in document["headline"].items()]
    return "\n".join(lines)


# -- a world's suite ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairSuite:
    """Define a world's fixed pairs: their file, the families that training may use, and how a model plays them."""

    path: Path
    """The committed file."""
    makers: tuple[str, ...]
    """Families from which a training method may make its own examples; their near-misses differ from such examples only
    in the entities."""
    tests: tuple[str, ...]
    """Families for testing, which no maker of twins uses. The headline is measured on them."""
    make: Callable[[], Sequence[Pair]]
    """Draws the pairs anew."""
    environment: Callable[[], TaskSuite]
    """Plays trigger tasks and near-misses by name; its checker takes the edits into account."""
    options: SamplingOptions
    """Options for playing tasks, except temperature and seed."""
    dtype: str = "float32"

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the families by group name: `maker`, `test`, `all`."""
        return {"maker": self.makers, "test": self.tests, "all": (*self.makers, *self.tests)}

    def read(
        self, path: Path | None = None, families: Sequence[str] = ("*",), per_family: int | None = None
    ) -> list[Pair]:
        """Return the pairs of the committed file, or of another; see `read_pairs`. Raises ValueError like it."""
        return read_pairs(path or self.path, families, per_family, self.groups)

    def right(
        self,
        weights: TransformersEngine | Generator,
        renderer: Renderer,
        tasks: Sequence[str],
        temperature: float = 0.0,
        seed: int = 0,
    ) -> dict[str, bool]:
        """Play tasks of the pairs once, and return whether each was right."""
        options = replace(self.options, temperature=temperature, seed=seed)
        return right_tasks(outcomes(weights, renderer, self.environment(), tasks, options))

    def play(self, model: Path, pairs: Sequence[Pair], temperature: float = 0.0, seed: int = 0) -> dict[str, bool]:
        """Play all tasks of the pairs once with a model folder, whole weights or an adapter. Raises ModelError."""
        engine, renderer = TransformersEngine.load(model, dtype=self.dtype), Renderer.from_pretrained(model)
        return self.right(engine, renderer, tasks_of_pairs(pairs), temperature, seed)

    def command(self, about: str | None, arguments: list[str] | None = None) -> int:
        """Parse the arguments, play, print, and return the exit code. `about` is the description that `--help`
        shows."""
        parser = self._parser(about)
        args = parser.parse_args(arguments)
        if args.make:
            print(write_pairs(args.pairs, self.make()))
            return 0
        if args.student is None:
            parser.error("no student given")
        suite = replace(self, dtype=args.dtype)
        if args.environment:
            suite = replace(suite, environment=lambda: load_suite(args.environment))
        try:
            pairs = suite.read(args.pairs, args.families, args.per_family)
        except ValueError as error:
            parser.error(str(error))
        right = suite.play(args.student, pairs, args.temperature, args.seed)
        said = {"student": str(args.student), "temperature": args.temperature}
        document = {**said, **score(pairs, right, args.test_families)}
        print(json.dumps(document, indent=1) if args.json else table(document))
        return 0

    def _parser(self, about: str | None) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("student", type=Path, nargs="?", help="model folder")
        parser.add_argument("--families", nargs="+", default=["*"], help="names of families, or maker, test or all")
        parser.add_argument("--per-family", "--n", type=int, help="maximum number of pairs per family")
        parser.add_argument("--pairs", type=Path, default=self.path, help="another world's pairs")
        parser.add_argument("--environment", help="another world's suite, path/to/file.py:Name")
        parser.add_argument("--test-families", nargs="+", default=list(self.tests), help="the families of the headline")
        parser.add_argument("--temperature", type=float, default=0.0)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--dtype", default=self.dtype, help=f"precision of the weights; default: {self.dtype}")
        parser.add_argument("--json", action="store_true", help="print the document as JSON")
        parser.add_argument("--make", action="store_true", help="write the pairs file and print its hash")
        return parser

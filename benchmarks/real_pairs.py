"""Play examples/smollm2/near_miss.py with the real model and the students of the announced arms, for docs/near_miss.md.

    python benchmarks/real_pairs.py play  [--model build/smollm2] [--n 24]     the untrained model, all families
    python benchmarks/real_pairs.py play  --students [--arms …]                students under --dir/arms, test families
    python benchmarks/real_pairs.py pages

A model's results are one JSON file under --dir/pairs, written after every errand; what is there is not played again. Greedy,
and sampled with drafts copied from the context (benchmarks/realmodel/drafted.py): the same steps, sooner. One process, one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.ablation.markdown import table  # noqa: E402
from benchmarks.blocks import put  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from benchmarks.realmodel.drafted import DraftedGenerator  # noqa: E402
from hintdistill.core.errors import ConfigError  # noqa: E402
from hintdistill.core.importing import load_object  # noqa: E402
from hintdistill.core.storage import write_atomic  # noqa: E402
from hintdistill.engines.transformers import TransformersEngine  # noqa: E402
from hintdistill.injection.rendering import Renderer  # noqa: E402
from hintdistill.rollouts.pairs import Pair, PairSuite, read_pairs, score, tasks_of_pairs  # noqa: E402

EXAMPLE = ROOT / "examples" / "smollm2" / "near_miss.py"
PAGE = ROOT / "docs" / "near_miss.md"
BASE = "untrained"
Result = Mapping[str, Any]


def example(name: str) -> Any:
    """An object of the real model's near-miss suite."""
    return load_object(f"{EXAMPLE}:{name}", "suite", "name")


# -- playing -------------------------------------------------------------------------------------------------------------


def by_errand(pairs: Sequence[Pair]) -> Iterator[list[str]]:
    """Tasks of the pairs in batches, an errand at a time: first a trigger, then what differs from it in the same part of the context.

    So what the tasks of an errand share is read once, and no row of a batch is much longer than the others below what is shared.
    """
    part = {p.near_miss: f"{p.trigger} {example('EDITS')[p.family].where}" for p in pairs}
    errands: dict[str, dict[str, list[str]]] = {}
    for task in tasks_of_pairs(pairs):
        errands.setdefault(task.split(".")[1], {}).setdefault(part.get(task, task), []).append(task)
    for batches in errands.values():
        yield from batches.values()


def _done(path: Path) -> dict[str, bool]:
    """Read a result file. Raises ConfigError if it was made with other pairs than the committed ones."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["pairs"] != example("PAIRS_SHA256"):
        raise ConfigError(f"{path} was played on other pairs", hint="remove it, or play into another --dir")
    right: dict[str, bool] = found["right"]
    return right


def play(model: Path, pairs: Sequence[Pair], path: Path, about: Mapping[str, Any]) -> None:
    """Play what a result file lacks of the pairs' tasks, and write it after every errand. Raises ModelError, ConfigError."""
    done = _done(path)
    owed = [left for tasks in by_errand(pairs) if (left := [t for t in tasks if t not in done])]
    if not owed:
        return
    torch.set_num_threads(1)
    suite: PairSuite = example("SUITE")
    engine, renderer = TransformersEngine.load(model, suite.dtype), Renderer.from_pretrained(model)
    generator = DraftedGenerator(engine, keep=16)
    path.parent.mkdir(parents=True, exist_ok=True)
    for tasks in owed:
        done |= suite.right(generator, renderer, tasks)
        write_atomic(path, json.dumps({**about, "pairs": example("PAIRS_SHA256"), "right": done}, indent=0))
    print(f"{path.stem}: {len(done)} tasks", flush=True)


def students(folder: Path, arms: Sequence[str] | None) -> list[tuple[str, int, Path]]:
    """Arm, seed and model folder of each student that is there."""
    found = sorted(folder.glob("seed*/*/student/adapter_config.json"))
    out = [(p.parts[-3], int(p.parts[-4].removeprefix("seed")), p.parent) for p in found]
    return [s for s in out if not arms or s[0] in arms]


def play_all(args: argparse.Namespace) -> None:
    """Play the untrained model or the students."""
    suite: PairSuite = example("SUITE")
    folder = args.dir / "pairs"
    if not args.students:
        play(args.model, suite.read(per_family=args.n), folder / f"{BASE}.json", {"arm": BASE, "seed": None})
        return
    pairs = suite.read(families=["test"], per_family=args.n)
    for arm, seed, model in students(args.dir / "arms", args.arms):
        play(model, pairs, folder / f"{arm}-seed{seed}.json", {"arm": arm, "seed": seed})


# -- tables --------------------------------------------------------------------------------------------------------------


def results(folder: Path) -> list[Result]:
    """Results on the pairs as they are committed, the untrained model's first."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    return sorted((r for r in found if r["pairs"] == example("PAIRS_SHA256")), key=lambda r: r["arm"] != BASE)


def played(pairs: Sequence[Pair], *of: Result) -> list[Pair]:
    """Pairs of which both members were played in every result."""
    return [p for p in pairs if all(t in r["right"] for r in of for t in (p.trigger, p.near_miss))]


def base_table(result: Result, pairs: Sequence[Pair]) -> str:
    """One row a family: what the edit does, and what the untrained model does."""
    edits, tests = example("EDITS"), example("TEST_FAMILIES")
    document = score(played(pairs, result), result["right"], tests)
    rows = []
    for r in document["families"]:
        edit = edits[r["family"]]
        shares = [f"{r[k]:.2f}" for k in ("trigger", "near_miss")]
        both = f"{r['consistency']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
        rows.append([f"`{r['family']}`", edit.where, edit.says, r["role"], str(r["pairs"]), *shares, both])
    head = ("family", "edit in", "what the edit does", "role", "pairs", "trigger", "near-miss", "both (95 %)")
    return f"{table(head, rows)}\n\n" + "\n".join(
        f"All habits alike, {role} families: trigger {r['trigger']:.2f}, near-miss {r['near_miss']:.2f}, "
        f"both {r['consistency']:.2f} ({r['low']:.2f} to {r['high']:.2f}), {r['pairs']} pairs.  "
        for role, r in document["headline"].items()
        if role != "all"
    )


def students_table(found: Sequence[Result], pairs: Sequence[Pair]) -> str:
    """One row a student, below the untrained model on the pairs that some student played; a cell a habit: trigger, near-miss, both."""
    base, *others = found
    tests = example("TEST_FAMILIES")
    tested = [p for p in pairs if p.family in tests]
    habits = list(dict.fromkeys(p.habit for p in tested))
    of_students = [p for p in played(tested, base) if not others or any(played([p], r) for r in others)]
    rows = []
    for result in (base, *others):
        own = played(tested, base, result) if result is not base else of_students
        if not own:
            continue
        document = score(own, result["right"], tests)
        all_, by = document["headline"]["test"], {h["habit"]: h for h in document["habits"] if h["role"] == "test"}
        shares = [f"{all_[k]:.2f}" for k in ("trigger", "near_miss")]
        both = f"{all_['consistency']:.2f} ({all_['low']:.2f} to {all_['high']:.2f})"
        cells = [
            " / ".join(f"{by[h][k]:.2f}" for k in ("trigger", "near_miss", "consistency")) for h in habits if h in by
        ]
        seed = "" if result["seed"] is None else str(result["seed"])
        rows.append([result["arm"], seed, str(len(own)), *shares, both, *cells])
    head = ("arm", "seed", "pairs", "trigger", "near-miss", "both (95 %)", *habits)
    return table(head, rows)


def pages(args: argparse.Namespace) -> None:
    """Write the tables of what was played; exits where the untrained model was not."""
    found = results(args.dir / "pairs")
    if not found or found[0]["arm"] != BASE:
        sys.exit("error: the untrained model was not played; `play` first")
    pairs = read_pairs(example("PAIRS"))
    for name, text in (("real pairs", base_table(found[0], pairs)), ("real students", students_table(found, pairs))):
        put(PAGE, f"<!-- {name}: made by benchmarks/real_pairs.py pages -->", f"<!-- end of {name} -->", text)


def main() -> int:
    """Parse, run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("play", "pages"))
    parser.add_argument("--model", type=Path, default=ROOT / "build" / "smollm2")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "real", help="of benchmarks/real.py")
    parser.add_argument("--n", type=int, help="pairs of a family")
    parser.add_argument("--students", action="store_true", help="play the students of the arms that are there")
    parser.add_argument("--arms", nargs="*")
    args = parser.parse_args()
    return exit_code(lambda: {"play": play_all, "pages": pages}[args.command](args))


if __name__ == "__main__":
    sys.exit(main())

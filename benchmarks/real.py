"""Measure a real model on the errands of examples/smollm2: without a hint, under hints, and after training.

    python benchmarks/real.py speed   [--model build/smollm2]
    python benchmarks/real.py measure [--n 128] [--splits …] [--arms …]
    python benchmarks/real.py grid    [--n 32] [--arms …]     settings on validation tasks, one seed
    python benchmarks/real.py arms    [--arms …] [--seeds …]  what benchmarks/prereg/real.yaml announces, and its deviations
    python benchmarks/real.py drift   [--of grid|arms] [--arms …] [--seeds …]   KL on general prompts of the students that are there
    python benchmarks/real.py recipes --recipes NAME …  [--seeds 0]   other recipes on the traces of the arms' seeds
    python benchmarks/real.py gate    [--n 210]               gate, placebos, wrong hints and the choice among candidates
    python benchmarks/real.py pages                           docs/evidence_real.md and the example's card
    (grid, arms and drift: --owed lists the jobs that are owed and runs none; --arms takes names as tables have them)

Every piece of work is one JSON file under --dir (runs/real), which is not made again; a kill costs the piece that was at work.
Nothing is sent anywhere; the critic is the environment's checker. One process of one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.blocks import put  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from benchmarks.realmodel import claims, gating, jobs, page, play, recipes  # noqa: E402
from benchmarks.realmodel.plan import Announced, Plan, registered  # noqa: E402
from hintdistill.config import RunConfig  # noqa: E402
from hintdistill.config.file import load_config  # noqa: E402
from hintdistill.core.errors import ConfigError  # noqa: E402
from hintdistill.core.storage import write_atomic  # noqa: E402
from hintdistill.pipeline.arms import perform, result_of  # noqa: E402
from hintdistill.rollouts.evaluate import tasks_of  # noqa: E402

CONFIG = ROOT / "configs" / "real.yaml"
SEED = 0
# most valuable first: what is measured when time runs out is the top of this list
CELLS = (
    ("unseen", ("base", "level1", "placebo", "redraw", "level0", "level2")),
    ("validation", ("base", "level1", "placebo", "redraw", "level0", "level2")),
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
    print(
        json.dumps({"episodes": len(tasks), "seconds": seconds, "steps": steps, "s_per_episode": seconds / len(tasks)})
    )


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


def _distill(**changes: object) -> dict:
    return {"recipe": {"terms": {"distill": changes}}}


JSD = {"recipe": "targeted_jsd"}
# one thing is changed at a time from forward KL, the default since, most telling first
GRID: dict[str, tuple[str, dict]] = {
    "jsd": ("targeted", JSD),
    "fkl": ("targeted", {}),
    "fkl_twins": ("targeted_twins", {}),
    "fkl_twins_half": ("targeted_twins", {"twins": {"weight": 0.5}}),
    "fkl_twins_half_rate_2e-3": ("targeted_twins", {"twins": {"weight": 0.5}, "learning_rate": 2e-3}),
    "fkl_quote": ("targeted", _distill(span="quote")),
    "fkl_rate_2e-3": ("targeted", {"learning_rate": 2e-3}),
    "fkl_rate_2e-4": ("targeted", {"learning_rate": 2e-4}),
    "fkl_anchor_half": ("targeted", {"anchor": {"weight": 0.5}}),
    "fkl_suffix": ("targeted", _distill(span="suffix")),
    "jsd_quote": ("targeted", {"recipe": {"preset": "targeted_jsd", "terms": {"distill": {"span": "quote"}}}}),
    "jsd_rate_2e-3": ("targeted", {**JSD, "learning_rate": 2e-3}),
}
RATES = (2e-4, 1e-3, 2e-3)
RIVALS = ("sft_corrected", "sft_gold", "dpo", "sft_corrected_unfiltered", "whole_trace", "decoded8")
# as many tuning trials of a rate for every rival as for `targeted`


def _rate(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


GRID |= {f"{arm}_rate_{_rate(r)}": (arm, {"learning_rate": r}) for arm in RIVALS for r in RATES}
GRID |= {f"fkl_twins_rate_{_rate(r)}": ("targeted_twins", {"learning_rate": r}) for r in (2e-4, 2e-3)}


def _grid(args: argparse.Namespace) -> list[jobs.RealJob]:
    config = settings(args)
    budget = {"rows": 40, "anchors": 40, "twins": 40, "steps": 20}
    tasks = jobs.grid_tasks(config, args.n or 32)
    plan = Plan(config, args.dir / "grid", 64, budget, tasks, {"learning_rate": 1e-3})
    chosen = [k for k in GRID if not args.arms or k in args.arms]
    first = [jobs.RealJob(plan, "shared", 0), jobs.RealJob(plan, "none", 0)]
    return [*first, *(jobs.RealJob(plan, GRID[k][0], 0, k, GRID[k][1]) for k in chosen)]


def _registered(args: argparse.Namespace) -> list[jobs.RealJob]:
    plan, what = registered(settings(args), args.dir / "arms")
    kept = [j for j in jobs.jobs_of(plan, what) if not args.seeds or j.seed in args.seeds]
    return [j for j in kept if not args.arms or j.title in (*args.arms, "shared", "none")]


def _recipes(args: argparse.Namespace) -> list[recipes.RecipeJob]:
    if not args.recipes:
        raise ConfigError("no recipe is named", hint="--recipes opsd sdft")
    plan, _ = registered(settings(args), args.dir / "arms")
    return recipes.recipe_jobs(plan, args.recipes, args.seeds or [SEED])


def _drifts(args: argparse.Namespace) -> list[jobs.DriftJob]:
    """Measure the drift of the students that exist; for the others the arm has to run first."""
    wanted = {"grid": _grid, "arms": _registered}[args.of](args)
    return jobs.drifts_of([j for j in wanted if result_of(j.plan.folder, j) is not None])


def work(args: argparse.Namespace) -> None:
    """Do the jobs of the grid, of the arms, of other recipes or of drift that are owed, in order; with --owed list them."""
    kinds = {"grid": _grid, "arms": _registered, "recipes": _recipes, "drift": _drifts}
    wanted: list[Any] = kinds[args.command](args)
    folder = args.dir / {"drift": args.of, "recipes": "arms"}.get(args.command, args.command)
    for job in wanted:
        if result_of(folder, job) is not None:
            continue
        if args.owed:
            print(job.name)
            continue
        began = time.monotonic()
        perform(folder, job)
        print(f"{job.name}: {time.monotonic() - began:.0f} s", flush=True)


def gate(args: argparse.Namespace) -> None:
    """Play what the gate is read on, and read it; both go on where they were."""
    gating.collect(settings(args), args.dir / "gate", args.n or 210, args.overrides)


PAGE, CARD = ROOT / "docs" / "evidence_real.md", ROOT / "examples" / "smollm2" / "README.md"
METHODS = ROOT / "docs" / "methods.md"
BESIDE = ("none", "targeted", "targeted_twins", "sft_corrected")


def _results(folder: Path, wanted: Sequence[Any]) -> tuple[dict[str, list[dict]], list[str]]:
    """Finished jobs by label, and the names of those that are owed."""
    done: dict[str, list[dict]] = {}
    owed = []
    for job in wanted:
        found = result_of(folder, job)
        if found is None:
            owed.append(job.name)
        else:
            done.setdefault(found["label"], []).append(found)
    return done, owed


def _block(file: Path, name: str, text: str) -> None:
    put(file, f"<!-- {name}: made by benchmarks/real.py pages -->", f"<!-- end of {name} -->", text)


def pages(args: argparse.Namespace) -> None:
    """Write the tables of what is finished."""
    cells = page.read_cells(args.dir / "measure")
    if cells:
        _block(CARD, "base", page.base_table(cells))
        _block(CARD, "shape", page.shape_table(cells))
        _block(CARD, "repairs", page.repair_table(cells))
    measured = {(s, a) for s, a in cells}
    left = [f"measure {s} {a}" for s, arms in CELLS for a in arms if (s, a) not in measured]
    left += _grid_pages(args) + _arms_pages(args)
    _recipes_pages(args)
    told = gating.table_of(settings(args), args.dir / "gate")
    _block(PAGE, "gate", told or "Not measured yet.")
    left += [] if told else ["gate"]
    said = "\n".join(f"- {o}" for o in left) or "Nothing."
    _block(PAGE, "owed", f"{len(left)} jobs are missing:\n\n{said}" if left else said)


def _grid_pages(args: argparse.Namespace) -> list[str]:
    """Write the tables of the grid; what of it is owed."""
    args.arms, folder = None, args.dir / "grid"
    wanted = _grid(args)
    done, owed = _results(folder, wanted)
    shared = done.pop("shared", [])
    parts = [page.arms_table(done, "validation")] if done else ["No job is finished."]
    parts += [page.coverage_table(shared)] if shared else []
    _block(PAGE, "grid", "\n\n".join(parts))
    drifts, owed_drifts = _results(folder, jobs.drifts_of(wanted))
    at = {k: (arm, float(change.get("learning_rate", 1e-3))) for k, (arm, change) in GRID.items()}
    curve = claims.curve_table(done, drifts, at, "validation") if drifts else "Not measured yet."
    _block(PAGE, "curve", curve)
    return [f"grid {name}" for name in (*owed, *owed_drifts)]


def _arms_pages(args: argparse.Namespace) -> list[str]:
    """Write the tables of the announced arms; what of them is owed."""
    folder, read = args.dir / "arms", "unseen"
    plan, what = registered(settings(args), folder)
    wanted = jobs.jobs_of(plan, what)
    done, owed = _results(folder, wanted)
    shared, more = done.pop("shared", []), done.pop("shared_twins", [])
    parts = [page.arms_table(done, read)] if done else ["No job is finished."]
    parts += [claims.factor_table(done, read)] if done else []
    parts += [page.coverage_table(shared)] if shared else []
    parts += [page.makers_table(more, shared)] if more else []
    _block(PAGE, "arms", "\n\n".join(parts))
    _block(PAGE, "claim", _claims(done, what, read))
    drifts, owed_drifts = _results(folder, jobs.drifts_of(wanted))
    rates = {j.title: (j.arm, float(j.change.get("learning_rate", plan.train["learning_rate"]))) for j in wanted}
    moved = claims.curve_table(done, drifts, rates, read) if drifts else "Not measured yet."
    _block(PAGE, "moved", moved)
    return [f"arms {name}" for name in (*owed, *owed_drifts)]


def _recipes_pages(args: argparse.Namespace) -> None:
    """Write the table of other recipes, with the arms of the same seed."""
    plan, what = registered(settings(args), args.dir / "arms")
    named = sorted(f.name.removeprefix("recipe.") for f in plan.folder.glob(f"seed{SEED}/recipe.*") if f.is_dir())
    beside = [j for j in jobs.jobs_of(plan, what) if j.seed == SEED and j.title in BESIDE]
    done, _ = _results(plan.folder, [*beside, *recipes.recipe_jobs(plan, named, [SEED])])
    if any(r in done for r in named):
        _block(METHODS, "compared on the real model", page.arms_table(done, "unseen"))


def _claims(done: Mapping[str, list[dict]], what: Announced, read: str) -> str:
    """As announced, then by deviation; the secondary endpoints; the deviations themselves."""
    parts = ["As announced: " + claims.claim_of(done, what.seeds, "targeted", "sft_corrected", read).sentence()]
    for arm, rival in what.claims:
        parts.append("After the deviation: " + claims.claim_of(done, what.seeds, arm, rival, read).sentence())
    parts.append(claims.secondary_table(done, what.secondary, what.seeds, read))
    logged = "\n".join(f"- {d['date']}: {' '.join(d['why'].split())}" for d in what.deviations)
    return "\n\n".join([*parts, f"Deviations from what was announced:\n\n{logged or 'none'}"])


COMMANDS = {
    "speed": speed,
    "measure": measure,
    "grid": work,
    "arms": work,
    "recipes": work,
    "drift": work,
    "gate": gate,
    "pages": pages,
}


def main() -> int:
    """Parse, run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--model", type=Path, default=ROOT / "build" / "smollm2")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "real")
    parser.add_argument("--n", type=int, help="episodes of a cell")
    parser.add_argument("--splits", nargs="*")
    parser.add_argument("--arms", nargs="*")
    parser.add_argument("--recipes", nargs="*", help="names of recipes")
    parser.add_argument("--of", choices=("grid", "arms"), default="arms", help="whose students drift is read of")
    parser.add_argument("--seeds", nargs="*", type=int)
    parser.add_argument("--owed", action="store_true", help="list what is owed; run nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    return exit_code(lambda: COMMANDS[args.command](args))


if __name__ == "__main__":
    sys.exit(main())

"""Compare replay with stale traces on toolworld, with another policy's traces and without an environment to train in.

    python benchmarks/replay.py [--seeds 0 1 2 3 4] [--out runs/replay] [--summary] [--write] [key=value …]

`stale` (the ablation's arm `foreign`): the demonstrator's recorded steps are critiqued, hinted, rescored by the student and trained.
`replay`: at every step of the same recorded traces the current student acts once, and that fresh step is critiqued, hinted, rescored
and trained (`rollout.source: replay`, after ReOPD, arXiv 2607.04763). `fresh` (the arm `hint`): whole episodes in the environment, what
neither of the other two has. All have the same number of recorded traces or episodes, rows, anchors and optimiser steps, over two
rounds; the environment only measures. The pre-set question: is success of replay minus stale, at temperature 1 on test tasks,
above 0 with its interval (95 %, seeds and tasks resampled together)?

Every arm of every seed is a job of its own: a call does what is owed, and `--summary` says what is known so far. Nothing is written
into the page with fewer than five seeds. Last line: one JSON object. `--write` puts the table into docs/environments.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from blocks import put  # noqa: E402

from benchmarks.ablation.ablate import BenchJob, plan_jobs, run_jobs  # noqa: E402
from benchmarks.ablation.jobs import Job  # noqa: E402
from benchmarks.ablation.settings import AblationConfig, load_ablation  # noqa: E402
from benchmarks.ablation.table import table_of  # noqa: E402
from hintdistill.core.statistics import crossed_bootstrap, difference, mean_of  # noqa: E402
from hintdistill.pipeline.arms import result_of  # noqa: E402

CONFIG = ROOT / "benchmarks" / "ablation" / "replay.yaml"
PAGE = ROOT / "docs" / "environments.md"
BEGIN, END = "<!-- replay: made by benchmarks/replay.py --write -->", "<!-- end of replay -->"
NAMES = {"foreign": "stale", "replay": "replay", "replay+": "replay, as many passes", "hint": "fresh"}
PAIRS = (("replay", "foreign"), ("replay+", "foreign"), ("hint", "replay"))
LEAST = 5
"""Seeds without which nothing is said."""


def settings(seeds: Sequence[int] | None, overrides: Sequence[str] = ()) -> AblationConfig:
    """The ablation of replay.yaml on these seeds, or on its own."""
    named = [] if seeds is None else [f"ablate.seeds={list(seeds)}"]
    return load_ablation(CONFIG, [*named, *overrides])


def more_passes(config: AblationConfig) -> list[Job]:
    """The arm `replay` once more, with the batches of `ablate.sweep.settings`."""
    if "replay" not in config.ablate.arms or not config.ablate.sweep.settings:
        return []
    return [Job(regime, "replay", seed, 0) for seed in config.ablate.seeds for regime in config.ablate.regimes]


def results(config: AblationConfig, folder: Path) -> dict[str, dict[int, Mapping[str, Any]]]:
    """By arm, then by seed, the results that are there; of `shared`, what the untrained student does."""
    shared, arms = plan_jobs(config)
    out: dict[str, dict[int, Mapping[str, Any]]] = {}
    for job in (*shared, *arms, *more_passes(config)):
        if (found := result_of(folder, BenchJob(config, folder, job))) is not None:
            out.setdefault(job.arm + "+" * (job.setting is not None), {})[job.seed] = found
    return out


def summary(config: AblationConfig, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Success of each arm and the paired differences, with their intervals, by setting; rows of the rounds."""
    n, shared = config.ablate.bootstrap, found.get("shared", {})
    out: dict[str, Any] = {"success": {}, "minus": {}, "rounds": {}}
    for setting in next(iter(shared.values()))["initial"] if shared else ():
        tables = {"untrained": {k: r["initial"][setting] for k, r in shared.items()}}
        tables |= {NAMES[a]: {k: r["outcomes"][setting] for k, r in found[a].items()} for a in NAMES if a in found}
        out["success"][setting] = {
            name: {
                "seeds": sorted(of),
                **asdict(crossed_bootstrap(mean_of, table_of([of[k] for k in sorted(of)]), n=n)),
            }
            for name, of in tables.items()
        }
        for pair in PAIRS:
            a, b = (tables.get(NAMES[arm], {}) for arm in pair)
            if both := sorted(a.keys() & b.keys()):
                paired = (table_of([of[k] for k in both]) for of in (a, b))
                of_pair = {"seeds": both, **asdict(crossed_bootstrap(difference, *paired, n=n))}
                out["minus"].setdefault(f"{NAMES[pair[0]]} - {NAMES[pair[1]]}", {})[setting] = of_pair
    for arm in NAMES:
        rounds = [r["rounds"] for r in found.get(arm, {}).values()]
        sizes = [r["train"]["batch_size"] for r in found.get(arm, {}).values()]
        out["rounds"][NAMES[arm]] = [
            {
                **{
                    key: round(sum(r[i][key] for r in rounds) / len(rounds), 1)
                    for key in ("findings", "candidates", "distinct")
                },
                "passes": round(
                    sum(r[i]["steps"] * n / max(1, r[i]["traces"]) for r, n in zip(rounds, sizes, strict=True))
                    / len(rounds),
                    2,
                ),
            }
            for i in range(min(map(len, rounds), default=0))
        ]
    return out


def table(told: Mapping[str, Any]) -> str:
    """The figures as Markdown, without arms that lack some of the seeds of the pre-set question."""
    settings_named = list(told["success"])
    seeds = len(told["minus"]["replay - stale"][settings_named[0]]["seeds"])
    lines = [
        "| | "
        + " | ".join(f"success, {s}" for s in settings_named)
        + " | findings a round | accepted | passes over its rows |"
    ]
    lines.append("|---" * (len(settings_named) + 4) + "|")
    for name, first in told["success"][settings_named[0]].items():
        if len(first["seeds"]) < seeds:
            continue
        cells = [_interval(told["success"][s][name]) for s in settings_named]
        rounds = told["rounds"].get(name, [])
        counted = [", ".join(f"{r[key]:g}" for r in rounds) or "–" for key in ("findings", "candidates", "passes")]
        lines.append(f"| {name} | " + " | ".join([*cells, *counted]) + " |")
    for name, of in told["minus"].items():
        if len(of[settings_named[0]]["seeds"]) < seeds:
            continue
        lines.append(f"| **{name}** | " + " | ".join(_interval(of[s], True) for s in settings_named) + " | | | |")
    lines += ["", f"{seeds} seeds; in brackets the interval (95 %), seeds and tasks resampled together."]
    return "\n".join(lines)


def _interval(of: Mapping[str, float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{of['mean']:{sign}.3f} [{of['low']:{sign}.3f}, {of['high']:{sign}.3f}]"


def main() -> int:
    """Do what is owed, print what is known; 1 where too few seeds are there to write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "replay")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/environments.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of replay.yaml")
    args = parser.parse_args()
    foreign = ROOT / "examples" / "toolworld" / "foreign.jsonl"
    if not foreign.is_file():
        subprocess.run([sys.executable, str(foreign.with_name("make_foreign.py"))], check=True)
    config = settings(args.seeds, args.overrides)
    shared, arms = plan_jobs(config)
    if not args.summary:
        run_jobs(config, args.out, {"shared": shared, "arms": arms, "more passes": more_passes(config)})
    told = summary(config, results(config, args.out))
    if "replay - stale" in told["minus"]:
        print(table(told))
    print(json.dumps(told))
    if args.write:
        known = told["minus"].get("replay - stale", {}).values()
        if not known or min(len(of["seeds"]) for of in known) < LEAST:
            print(f"error: fewer than {LEAST} seeds are finished; nothing was written", file=sys.stderr)
            return 1
        put(PAGE, BEGIN, END, table(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())

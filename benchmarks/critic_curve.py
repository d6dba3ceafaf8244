"""Measure the gain that a critic of a given accuracy keeps, as a share of the true critic's gain, on toolworld.

    python benchmarks/critic_curve.py [--seeds 0 1 2] [--out runs/critic_curve] [--summary] [--write] [key=value …]
    python benchmarks/critic_curve.py --evidence

The world's checker is made worse on purpose, as critics go wrong (`ablation/critic_noise.py`): the step before or after, a consequence
instead of the root, the right step with a hint that names another legal tool, one class missed. `mixed:p` has one of the first three
in p % of its findings. How many findings are right is counted, not taken from the name. Gain: success on test tasks minus that of the
untrained student; kept: divided by the gain with the checker as it is and the gate on. All arms have equally many rows, anchors and
optimiser steps over two rounds, fewer of them than docs/evidence.md has.

Every arm of every seed is a job of its own (about 35 seconds; 36 of them and three shared ones: some 23 minutes of one core): a call
does what is owed, and `--summary` runs nothing. Last line: one JSON object. `--write` puts the table into docs/critics.md.

`--evidence` runs nothing and writes the other table of that page: mistakes drawn at random, at five seeds, as docs/evidence_tables.md
has them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from blocks import put  # noqa: E402
from command import exit_code  # noqa: E402
from replay import results  # noqa: E402

from benchmarks.ablation.ablate import plan_jobs, run_jobs  # noqa: E402
from benchmarks.ablation.markdown import table  # noqa: E402
from benchmarks.ablation.settings import AblationConfig, load_ablation, parse_noise  # noqa: E402
from benchmarks.ablation.table import clean, table_of  # noqa: E402
from hintdistill.core.errors import EmptyFunnelError  # noqa: E402
from hintdistill.core.statistics import crossed_bootstrap, difference, gap_closed, ratio  # noqa: E402

CONFIG = ROOT / "benchmarks" / "ablation" / "critic_curve.yaml"
PAGE = ROOT / "docs" / "critics.md"
BEGIN, END = "<!-- critic curve: made by benchmarks/critic_curve.py --write -->", "<!-- end of critic curve -->"
TABLES = ROOT / "docs" / "evidence_tables.md"
KNOWN = "<!-- random mistakes: made by benchmarks/critic_curve.py --evidence -->", "<!-- end of random mistakes -->"
_CELLS = (
    r"kind>wrong step|wrong hint text",
    r"wrong>\d+",
    "gate>off|on",
    r"seeds>\d+",
    "greedy>[^|]+",
    "sampled>[^|]+",
)
_KEPT = (r"kept>[\d.]+", r"kept_sampled>[\d.]+")
MEASURED = re.compile("".join(rf"\| (?P<{cell}) " for cell in (*_CELLS, *_KEPT)))
"""A row of the table of gains under noise."""
LEAST = 2
"""Seeds without which nothing is written."""
KINDS = {
    "mixed": "wrong in {} %, all three kinds",
    "near": "wrong in {} %: one step off",
    "later": "wrong in {} %: a consequence, not the root",
    "tool": "wrong in {} %: right step, hint names another legal tool",
}
Found = Mapping[str, Mapping[int, Mapping[str, Any]]]


def summary(config: AblationConfig, found: Found) -> dict[str, Any]:
    """Return per arm: seeds, findings right, gain and gain kept by setting, what the gate rejects; of missed classes the errors left."""
    shared, true = found.get("shared", {}), found.get("hint", {})
    arms: dict[str, Any] = {}
    for arm in (a for a in ("hint", *config.ablate.noise) if a in found):
        seeds = sorted(found[arm].keys() & shared.keys() & true.keys())
        if not seeds:
            continue
        mine, before, best = ([of[k] for k in seeds] for of in (found[arm], shared, true))
        rounds = [r for of in mine for r in of["rounds"]]
        first = [of["rounds"][0] for of in mine]
        arms[arm] = {
            "seeds": seeds,
            "named": sum(r.get("named", r["findings"]) for r in rounds),
            "right": sum(r.get("right", r["findings"]) for r in rounds),
            "to_find": sum(r.get("to_find", r["findings"]) for r in rounds),
            "accepted": sum(r["candidates"] for r in first)
            / max(1, sum(r["candidates"] + r["rejected"] for r in first)),
            "settings": {s: _gain(config, mine, before, best, s) for s in mine[0]["outcomes"]},
        }
        kind = parse_noise(arm)[0] if ":" in arm else ""
        if kind.startswith("miss-"):
            arms[arm]["left"] = _left(config, [mine, best, before], kind.removeprefix("miss-"))
    return clean({"arms": arms})


def _gain(config: AblationConfig, mine: list[Any], shared: list[Any], true: list[Any], setting: str) -> dict[str, Any]:
    own, best = (table_of([r["outcomes"][setting] for r in of]) for of in (mine, true))
    before, n = table_of([r["initial"][setting] for r in shared]), config.ablate.bootstrap
    return {
        "gain": asdict(crossed_bootstrap(difference, own, before, n=n)),
        "kept": asdict(crossed_bootstrap(gap_closed, own, before, best, n=n)),
    }


def _left(config: AblationConfig, of: list[list[Any]], error_class: str) -> dict[str, Any]:
    """Return the share of a class's errors, as sampled, that is left where it is missed, and where it is found."""
    setting = f"{config.ablate.test_split}@{max(config.ablate.temperatures):g}"
    mine, true = (table_of([r["outcomes"][setting] for r in rows], [error_class]) for rows in of[:2])
    before = table_of([r["initial"][setting] for r in of[2]], [error_class])
    pairs = (("missed", mine), ("found", true))
    left = {k: asdict(crossed_bootstrap(ratio, t, before, n=config.ablate.bootstrap)) for k, t in pairs}
    return {"class": error_class, **left}


def text(told: Mapping[str, Any]) -> str:
    """Return the table, and a sentence about each class that is missed."""
    arms = told["arms"]
    settings = list(arms["hint"]["settings"])
    rows = [
        [
            _words(arm),
            f"{of['right']} of {of['named']} ({of['right'] / max(1, of['named']):.0%})",
            *(_interval(of["settings"][s]["kept"]) for s in settings),
            f"{of['accepted']:.0%}" if arm == "hint" or arm.endswith("+gate") else "no gate",
        ]
        for arm, of in arms.items()
    ]
    out = [table(["critic", "findings right", *(f"gain kept, {s}" for s in settings), "accepted, round 1"], rows)]
    gains = ", ".join(f"{_interval(arms['hint']['settings'][s]['gain'], True)} ({s})" for s in settings)
    seeds = sorted({len(of["seeds"]) for of in arms.values()})
    out.append(
        f"Gain of the critic as it is, gate on: {gains}. {' to '.join(map(str, seeds))} seeds; in brackets the interval (95 %), seeds and "
        "tasks resampled together."
    )
    for of in arms.values():
        if "left" in of:
            out.append(
                f"Errors of the class `{of['left']['class']}` that are left (T=1): {_interval(of['left']['missed'])} if it is missed, "
                f"{_interval(of['left']['found'])} if it is found; {of['right']} of {of['to_find']} errors are named."
            )
    return "\n\n".join(out)


def random_mistakes(tables: str) -> str:
    """Return the gain kept by accuracy, gate on and off, for steps and for hints drawn at random. Raises KeyError if a row lacks."""
    rows = {(m["kind"], int(m["wrong"]), m["gate"]): m for m in MEASURED.finditer(tables)}
    lines = []
    for kind, words in (("wrong step", "right step"), ("wrong hint text", "right hint")):
        for wrong in sorted({w for k, w, _ in rows if k == kind}):
            off, on = (rows[kind, wrong, gate] for gate in ("off", "on"))
            kept = (f"{m['kept']} / {m['kept_sampled']}" for m in (on, off))
            lines.append([f"{words} in {100 - wrong} %", *kept, on["greedy"].strip(), on["sampled"].strip()])
    seeds = " and ".join(sorted({m["seeds"] for m in rows.values()}))
    head = ["the critic's findings", "gain kept, gate on", "gate off", "gain, gate on, greedy", "T=1"]
    others = "The other findings are at a random step without an error, or have another class's hint."
    return f"{table(head, lines)}\n\nGreedy / T=1; {seeds} seeds, intervals of 95 %. {others}"


def _words(arm: str) -> str:
    if arm == "hint":
        return "as it is"
    kind, share, gate = parse_noise(arm)
    named = KINDS.get(kind, f"misses {kind.removeprefix('miss-')}") if share else "as it is"
    return named.format(round(100 * share)) + ("" if gate else ", gate off")


def _interval(of: Mapping[str, float | None], signed: bool = False) -> str:
    if of["mean"] is None:
        return "–"
    form = f"{'+' if signed else ''}.2f"
    return f"{of['mean']:{form}} [{of['low']:{form}}, {of['high']:{form}}]"


def measure(args: argparse.Namespace) -> None:
    """Do what is owed, print what is known. Raises EmptyFunnelError where too few seeds are there to write it down."""
    if args.evidence:
        put(PAGE, *KNOWN, random_mistakes(TABLES.read_text(encoding="utf-8")))
        return
    named = [] if args.seeds is None else [f"ablate.seeds={args.seeds}"]
    config = load_ablation(CONFIG, [*named, *args.overrides])
    shared, arms = plan_jobs(config)
    if not args.summary:
        run_jobs(config, args.out, {"shared": shared, "arms": arms})
    told = summary(config, results(config, args.out))
    if "hint" in told["arms"]:
        print(text(told))
    print(json.dumps(told))
    if args.write:
        least = min((len(of["seeds"]) for of in told["arms"].values()), default=0)
        if least < LEAST or "hint" not in told["arms"]:
            raise EmptyFunnelError(f"an arm has {least} finished seeds, fewer than {LEAST}; nothing was written")
        put(PAGE, BEGIN, END, text(told))


def main() -> int:
    """Parse and run; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "critic_curve")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    parser.add_argument("--evidence", action="store_true", help="only write the table of random mistakes")
    parser.add_argument("--write", action="store_true", help="put the table into docs/critics.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    return exit_code(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())

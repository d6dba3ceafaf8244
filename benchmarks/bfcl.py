"""Measure the method on BFCL's single-turn tasks, with findings that know no answers, and other uses of the same steps.

    python benchmarks/bfcl.py [--dir runs/bfcl] [--summary] [--docs] [key=value …]      needs bfcl-eval, and the student of
                                                                        examples/bfcl/warm_up.py: run.model=FOLDER for another place

`benchmarks/prereg/bfcl.yaml` says what is asked, and was committed before any outcome on test tasks was seen.
`benchmarks/ablation/bfcl.yaml` has arms, rows and steps. Every arm tries two rates on validation tasks. Every arm of every seed is a
job of its own, so a kill costs one. Last line: one JSON object. `--docs` writes the tables of finished jobs into docs/bfcl.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.ablation.ablate import ablate, finished, owed_jobs, tuned_config  # noqa: E402
from benchmarks.ablation.markdown import NAMES, table  # noqa: E402
from benchmarks.ablation.settings import AblationConfig, load_ablation  # noqa: E402
from benchmarks.ablation.table import table_of  # noqa: E402
from benchmarks.blocks import put  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from benchmarks.realmodel.claims import p_value  # noqa: E402
from hintdistill.core.statistics import Interval, difference, holm, mean_of, resampled_means  # noqa: E402

CONFIG = ROOT / "benchmarks" / "ablation" / "bfcl.yaml"
PREREG = ROOT / "benchmarks" / "prereg" / "bfcl.yaml"
PAGE = ROOT / "docs" / "bfcl.md"
MARKS = "<!-- arms: made by benchmarks/bfcl.py --docs -->", "<!-- end of arms -->"
UNTRAINED, HINTED = "untrained", "hinted"
CALLED = {
    **NAMES,
    UNTRAINED: "untrained",
    HINTED: "untrained, under the hints",
    "llm_critic": "hint, right answers known",
}
Outcomes = Mapping[int, Sequence[Mapping[str, Any]]]


def settings(overrides: Sequence[str]) -> AblationConfig:
    """The ablation, with every arm's rates tried first."""
    return load_ablation(CONFIG, ["ablate.sweep.use=true", *overrides])


def gathered(config: AblationConfig, results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Outcomes]]:
    """By arm and split, the outcomes of each seed."""
    out: dict[str, dict[str, dict[int, Any]]] = {}
    for found in results:
        told = {found["arm"]: found["outcomes"]} if found["arm"] != "shared" else {}
        if found["arm"] == "shared":
            told = {UNTRAINED: found["initial"], HINTED: found["hinted"]}
        for arm, by_setting in told.items():
            for setting, outcomes in by_setting.items():
                split = setting.partition("@")[0]
                out.setdefault(arm, {}).setdefault(split, {})[found["seed"]] = outcomes
    return {arm: dict(splits) for arm, splits in out.items()}


def compared(a: Outcomes, b: Outcomes | None, n: int) -> tuple[Interval, float, int]:
    """Success of `a`, or its difference from `b` on the seeds that both have; its interval, p of zero, and the number of seeds."""
    both = sorted(a.keys() & b.keys()) if b is not None else sorted(a)
    tables = [table_of([of[k] for k in both]) for of in ((a,) if b is None else (a, b))]
    statistic = mean_of if b is None else difference
    draws = np.asarray(statistic(*resampled_means(*tables, n=n)), float)
    low, high = np.percentile(draws, [2.5, 97.5])
    estimate = float(statistic(*(t.mean() for t in tables)))
    return Interval(estimate, float(low), float(high)), p_value(draws), len(both)


def endpoints(found: Mapping[str, Mapping[str, Outcomes]], asked: Sequence[Mapping[str, Any]], n: int) -> list[Any]:
    """Return the result of each endpoint; None if one of its arms is missing."""
    out: list[Any] = []
    for one in asked:
        a, b = (found.get(one[key], {}).get(one["of"], {}) for key in ("arm", "minus"))
        out.append(compared(a, b, n) if a.keys() & b.keys() else None)
    return out


def arms_table(found: Mapping[str, Mapping[str, Outcomes]], n: int) -> str:
    """Success by arm, on tasks that need a call and on those that need none."""
    rows = []
    for arm, splits in found.items():
        cells = [_text(compared(splits[s], None, n)[0]) if s in splits else "–" for s in ("test", "irrelevance")]
        rows.append([CALLED.get(arm, arm), ", ".join(map(str, sorted(splits["test"]))), *cells])
    return table(["arm", "seeds", "right, a call is due", "right, none is due"], rows)


def endpoints_table(found: Mapping[str, Mapping[str, Outcomes]], said: Mapping[str, Any], n: int) -> str:
    """The announced differences, the primary ones first."""
    primary, secondary = (endpoints(found, said[key], n) for key in ("primary", "secondary"))
    adjusted = holm([1.0 if f is None else f[1] for f in secondary])
    rows = []
    for one, f in zip(said["primary"], primary, strict=True):
        met = "owed" if f is None else "yes" if f[0].low >= one["low"] else "**no**"
        rows.append(_row(one, f, f"lower end at least {one['low']:+.2f}: {met}"))
    for one, f, p in zip(said["secondary"], secondary, adjusted, strict=True):
        rows.append(_row(one, f, "owed" if f is None else f"p = {f[1]:.3f}, by Holm {p:.3f}"))
    return table(["difference", "on", "seeds", "estimate (95 %)", "announced"], rows)


def _row(one: Mapping[str, Any], found: Any, said: str) -> list[str]:
    names = f"{CALLED.get(one['arm'], one['arm'])} minus {CALLED.get(one['minus'], one['minus'])}"
    return [
        names,
        one["of"],
        "–" if found is None else str(found[2]),
        "–" if found is None else _text(found[0], "+"),
        said,
    ]


def _text(x: Interval, sign: str = "") -> str:
    return f"{x.mean:{sign}.3f} ({x.low:{sign}.3f} to {x.high:{sign}.3f})"


def page(config: AblationConfig, folder: Path) -> tuple[str, dict[str, Any]]:
    """The tables as Markdown, and the figures."""
    tuned, trials = tuned_config(config, folder)
    found, n = gathered(tuned, finished(tuned, folder)), config.ablate.bootstrap
    owed = owed_jobs(config, folder)
    said = yaml.safe_load(PREREG.read_text(encoding="utf-8"))
    if not found:
        return f"No job is finished; {len(owed)} are owed: `python benchmarks/bfcl.py`.", {"owed": owed}
    rates = ", ".join(
        f"{CALLED.get(arm, arm)} {t['chosen']['learning_rate']:g}" for arm, t in trials.items() if t.get("chosen")
    )
    parts = [arms_table(found, n), endpoints_table(found, said, n)]
    parts += [f"Rates chosen on validation tasks: {rates}."] if rates else []
    parts += [f"Owed: {len(owed)} jobs (`python benchmarks/bfcl.py`)."] if owed else []
    told = {
        arm: {split: asdict(compared(of, None, n)[0]) for split, of in splits.items()} for arm, splits in found.items()
    }
    return "\n\n".join(parts), {"success": told, "owed": owed}


def main() -> int:
    """Do what is owed, print what is known; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "bfcl")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/bfcl.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of benchmarks/ablation/bfcl.yaml")
    asked = parser.parse_intermixed_args()

    def work() -> None:
        config = settings(asked.overrides)
        if not asked.summary:
            ablate(config, asked.dir, resume=asked.dir.is_dir())
        text, told = page(config, asked.dir)
        print(f"{text}\n{json.dumps(told)}")
        if asked.docs:
            put(PAGE, *MARKS, text)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())

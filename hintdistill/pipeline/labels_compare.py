"""`hintdistill critique --labels X --compare A B`: score two critics or prompts on the same labelled traces and compare
them.

Differences are B − A, paired by trace; `pipeline.compare` defines a side and the intervals. A critic that failed on a
trace counts as wrong there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.config.file import load_config
from hintdistill.core.errors import InputError
from hintdistill.core.storage import write_atomic
from hintdistill.core.types import Finding
from hintdistill.pipeline.compare import check_critics, paired_difference, side_settings, unused_hints
from hintdistill.pipeline.labels import score_critics
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run_folder

Case = Mapping[str, Any]
RATES: dict[str, tuple[str, Callable[[Case], bool]]] = {
    "exact": ("findings", lambda c: c["named"] == c["label"]["step"]),
    "within_one": ("findings", lambda c: c["named"] is not None and abs(c["named"] - c["label"]["step"]) <= 1),
    "any_root": ("findings", lambda c: c["label"]["step"] in {f["step"] for f in c["findings"] if _is_root(f)}),
    "any_finding": ("findings", lambda c: c["label"]["step"] in {f["step"] for f in c["findings"]}),
    "false_alarm": ("none", lambda c: c["verdict"] == "findings"),
}
"""Name of a rate → the label verdict it covers, and a test of whether a case counts."""
COSTS = ("tokens", "requests", "money")


def compare_on_labels(
    config: Path,
    overrides: Sequence[str],
    labels: Path,
    sides: tuple[str, str],
    console: Console,
    *,
    trust: bool = False,
) -> dict[str, Any]:
    """Score both sides against the labels, compare them, and write comparison.json next to the folders of the sides,
    `a` and `b`.

    A side that is a folder with an evaluation.json is read without asking again.

    Args:
        trust: see `pipeline.run.run`.

    Raises:
        ConfigError, InputError, PromptError: a side cannot be assembled; in this case nothing was asked.
        HintdistillError: an error stopped one side.
    """
    base = run_folder(load_config(config, list(overrides)), f"{config.stem}-labels-compare")
    settings = [None if _evaluated(side) else side_settings(config, overrides, side) for side in sides]
    check_critics([s for s in settings if s is not None], console, trust=trust)
    results = []
    for name, side, its in zip("ab", sides, settings, strict=True):
        console.note(f"{name}: {side}")
        results.append(_result(Path(side) if its is None else base / name, its, labels, console, trust))
    found = compare_evaluations(*results) | {"a": sides[0], "b": sides[1], "labels": str(labels)}
    base.mkdir(parents=True, exist_ok=True)
    write_atomic(base / "comparison.json", json.dumps(found, indent=1, ensure_ascii=False))
    return found


def _evaluated(side: str) -> bool:
    return (Path(side) / "evaluation.json").is_file()


def _result(folder: Path, settings: RunConfig | None, labels: Path, console: Console, trust: bool) -> dict[str, Any]:
    if settings is not None:
        return score_critics(settings, labels, folder, console, trust=trust)
    result: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    if "prompts" not in result:
        raise InputError(
            f"{folder / 'evaluation.json'} was written by an earlier release", hint="score that side again"
        )
    return result


def compare_evaluations(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two results of `score_critics` on their common traces.

    Raises:
        InputError: they share no labelled trace, or have different labels for one.
    """
    of_a, of_b = ({(c["set"], c["trace"]): c for c in result["cases"]} for result in (a, b))
    both = [(case, of_b[key]) for key, case in of_a.items() if key in of_b]
    if not both:
        raise InputError("the two sides share no labelled trace", hint="both sides must read the same labels")
    if differ := [x["trace"] for x, y in both if x["label"] != y["label"]]:
        raise InputError(f"{len(differ)} traces have different labels on the two sides, for example {differ[0]}")
    out: dict[str, Any] = {"traces": len(both), "left_out": len(of_a) + len(of_b) - 2 * len(both)}
    for name, (verdict, holds) in RATES.items():
        pairs = [(float(holds(x)), float(holds(y))) for x, y in both if x["label"]["verdict"] == verdict]
        out[name] = paired_difference(pairs)
    for name in COSTS:
        costs = [(x["cost"][name], y["cost"][name]) for x, y in both]
        out[name] = paired_difference([p for p in costs if p[0] is not None and p[1] is not None])
    told = [Finding.model_validate(f) for pair in both for case in pair for f in case["findings"]]
    out["unused_hints"] = unused_hints((a["prompts"], b["prompts"]), told)
    return out


def _is_root(finding: Mapping[str, Any]) -> bool:
    return finding.get("caused_by") is None


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the comparison as lines for a terminal."""
    out = [f"A {found['a']}", f"B {found['b']}", f"{found['traces']} labelled traces on both sides"]
    for name in RATES:
        p = found[name]
        if p["n"]:
            out.append(
                f"  {name:<12} A {p['a']:6.1%}  B {p['b']:6.1%}  B−A {100 * p['difference']:+.1f} points "
                f"[{100 * p['low']:+.1f}, {100 * p['high']:+.1f}], {p['n']} traces"
            )
    for name in COSTS:
        p = found[name]
        if p["n"]:
            digits = 6 if name == "money" else 1
            out.append(
                f"  {name:<12} A {p['a']:.{digits}f}  B {p['b']:.{digits}f}  B−A {p['difference']:+.{digits}f} "
                f"[{p['low']:+.{digits}f}, {p['high']:+.{digits}f}] per trace, {p['n']} traces"
            )
    return [*out, *(f"  {name} differs, but no finding uses it" for name in found["unused_hints"])]

"""Measure the quickstart and its control, the same pipeline with placebo hints that are accepted by force.

    python benchmarks/quickstart.py [--dir runs/benchmark] [--readme] [key=value …]

Runs configs/quickstart.yaml twice. `--readme` writes four rows into README.md and all rows into docs/quickstart.md. Last line:
one JSON object with
  success_before, success_after          greedy, held-out tasks, no hint in context
  error_rate_before, error_rate_after    share of episodes with a habit error
  error_rate_cut                         before / after
  clean_success_before, clean_success_after   on tasks without a trigger
  near_miss_success_before, …_after      by habit: tasks that look like its trigger where its behaviour is right
  off_target_kl_nats                     KL(initial ‖ student) per token on steps that nothing trained
  error_probability_*                    of held-out decision tokens: before, under the hint, after; after placebo training
  placebo_share                          fall of that probability under placebo training / under targeted training
  placebo_success_after, placebo_error_rate_after   the environment after placebo training
  null_pass_rate, seconds
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from blocks import put

from hintdistill.core.scores import ScoreRequest, Target
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.rescoring.store import TargetStore

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/quickstart.yaml"
HABITS = ("unknown_tool", "wrong_argument", "skipped_lookup", "ignored_error")
BEGIN, END = "<!-- numbers: made by benchmarks/quickstart.py --readme -->", "<!-- end of numbers -->"


def run(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """One quickstart through the command line; its report."""
    command = [sys.executable, "-m", "hintdistill.cli", "run", CONFIG, f"run.dir={folder}", *overrides]
    subprocess.run(command, check=True)
    return json.loads((folder / "report.json").read_text())


def error_probability(student: Path, targets: list[Target]) -> float:
    """Mean probability of the decision tokens of `targets` under a student, no hint in context."""
    engine = TransformersEngine.load(student, dtype="float32")
    requests = [
        ScoreRequest(
            np.concatenate([t.context_ids, t.step_ids]), len(t.context_ids), len(t.context_ids) + len(t.step_ids)
        )
        for t in targets
    ]
    scores = engine.score(requests, top_k=1)
    return float(
        np.mean([np.exp(s.sampled[t.decision.position]) for s, t in zip(scores, targets, strict=True) if t.decision])
    )


ROWS = (
    ("task success, held-out tasks, greedy, no hint in context", "success_before", "success_after", ".3f", "≥ 0.85"),
    ("share of episodes with a habit error", "error_rate_before", "error_rate_after", ".3f", "cut ≥ 5×"),
    ("task success, clean tasks", "clean_success_before", "clean_success_after", ".3f", ""),
    *(
        (
            f"task success, near-misses of {h}",
            f"near_miss_{h}_success_before",
            f"near_miss_{h}_success_after",
            ".3f",
            "",
        )
        for h in HABITS
    ),
    ("probability of held-out decision tokens", "error_probability_before", "error_probability_after", ".4f", ""),
    (
        "the same after placebo training",
        "error_probability_before",
        "error_probability_after_placebo",
        ".4f",
        "< ¼ of the fall",
    ),
    ("off-target KL, nats per token", None, "off_target_kl_nats", ".5f", "≤ 0.005"),
    ("share of the targeted fall that placebo training achieves", None, "placebo_share", ".3f", "< 0.25"),
    ("placebos that pass the gate", None, "null_pass_rate", ".3f", "≤ 0.10"),
)


def near_misses(splits: dict[str, Any]) -> dict[str, float]:
    """Success on the near-miss tasks of each habit, before and after."""
    return {
        f"near_miss_{habit}_success_{when}": splits[f"near_miss_{habit}"][when]["success_rate"]
        for habit in HABITS
        for when in ("before", "after")
    }


def row(words: str, before: float | None, after: float, form: str, *more: str) -> str:
    """One line of a table: what was read, before and after training, and further cells."""
    cells = [words, "" if before is None else format(before, form), format(after, form), *more]
    return f"| {' | '.join(cells)} |"


def short_table(figures: dict[str, Any]) -> str:
    """The four rows of README.md; the last one is the near-miss family that fell most, which is the cost."""
    worst = min(
        HABITS, key=lambda h: figures[f"near_miss_{h}_success_after"] - figures[f"near_miss_{h}_success_before"]
    )
    placebo = f"probability of the error (placebo training: {figures['error_probability_after_placebo']:.4f})"
    cost = f"near_miss_{worst}_success"
    lines = [
        "| held-out tasks, greedy, no hint in context | before | after |",
        "|---|---|---|",
        row("task success", figures["success_before"], figures["success_after"], ".3f"),
        row("episodes with a habit error", figures["error_rate_before"], figures["error_rate_after"], ".3f"),
        row(placebo, figures["error_probability_before"], figures["error_probability_after"], ".4f"),
        row(
            f"**the cost**: success on near-misses of `{worst}`",
            figures[f"{cost}_before"],
            figures[f"{cost}_after"],
            ".3f",
        ),
    ]
    return "\n".join(lines) + f"\n\nThe run took {figures['seconds']:.0f} s. [All figures](docs/quickstart.md)."


def whole_table(figures: dict[str, Any]) -> str:
    """Every figure with its aim, and the settings behind them."""
    lines = ["| | before | after | aim |", "|---|---|---|---|"]
    for words, before, after, form, aim in ROWS:
        lines.append(row(words, figures[before] if before else None, figures[after], form, aim))
    cut = "no error left" if figures["error_rate_cut"] is None else f"errors cut {figures['error_rate_cut']:.1f}-fold"
    return "\n".join(lines) + (
        f"\n\nOne round, the settings of `configs/quickstart.yaml`, 300 held-out tasks whose "
        f"entities neither corpus nor traces contain; {cut}. "
        f"Under the hint the same decision tokens have probability {figures['error_probability_hinted']:.4f}. "
        f"The whole run took {figures['seconds']:.0f} s. Made by `python benchmarks/quickstart.py --readme`."
    )


def write_pages(figures: dict[str, Any]) -> None:
    """Put the tables between their markers in README.md and docs/quickstart.md."""
    put(ROOT / "README.md", BEGIN, END, short_table(figures))
    put(ROOT / "docs" / "quickstart.md", BEGIN, END, whole_table(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs") / f"benchmark-{int(time.time())}")
    parser.add_argument("--readme", action="store_true", help="write the figures into README.md and docs/quickstart.md")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    began = time.perf_counter()
    # the control asks the critic nothing that was answered before
    args.overrides.append(f"critic.cache={args.dir / 'answers'}")
    targeted = run(args.dir / "targeted", args.overrides)
    seconds = time.perf_counter() - began
    placebo = run(args.dir / "placebo", ["inject.hint=placebo", "rescore.gate.enabled=false", *args.overrides])
    # both students on the same tokens: the accepted held-out findings of the targeted run
    stored = TargetStore(args.dir / "targeted" / "targets").read()
    held_out = [t for t in stored if t.kind == "hint" and t.split == "holdout" and t.accepted]
    before = float(np.mean([np.exp(t.decision.logprob_plain) for t in held_out if t.decision]))
    hinted = float(np.mean([np.exp(t.decision.logprob_hinted) for t in held_out if t.decision]))
    after = error_probability(args.dir / "targeted" / "student", held_out)
    after_placebo = error_probability(args.dir / "placebo" / "student", held_out)
    env, clean = targeted["environment"], targeted["environment"]["splits"]["test_clean"]
    cut = env["before"]["error_rate"] / env["after"]["error_rate"] if env["after"]["error_rate"] else None
    figures = {
        "success_before": env["before"]["success_rate"],
        "success_after": env["after"]["success_rate"],
        "error_rate_before": env["before"]["error_rate"],
        "error_rate_after": env["after"]["error_rate"],
        "error_rate_cut": cut,
        "clean_success_before": clean["before"]["success_rate"],
        "clean_success_after": clean["after"]["success_rate"],
        **near_misses(env["splits"]),
        "off_target_kl_nats": targeted["off_target_kl_nats"],
        "error_probability_before": before,
        "error_probability_hinted": hinted,
        "error_probability_after": after,
        "error_probability_after_placebo": after_placebo,
        "placebo_share": (before - after_placebo) / (before - after),
        "placebo_success_after": placebo["environment"]["after"]["success_rate"],
        "placebo_error_rate_after": placebo["environment"]["after"]["error_rate"],
        "null_pass_rate": targeted["gate"]["null_pass_rate"],
        "seconds": round(seconds, 1),
    }
    if args.readme:
        write_pages(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""The quickstart's numbers, and the control: the same pipeline with placebo hints accepted by force.

    python benchmarks/quickstart.py [--dir runs/benchmark] [key=value …]

Runs configs/quickstart.yaml twice. Last line: one JSON object with
  success_before, success_after          greedy, held-out tasks, no hint in context
  error_rate_before, error_rate_after    share of episodes with a habit error
  error_rate_cut                         before / after
  clean_success_before, clean_success_after   on tasks without a trigger
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

from hintdistill.engines.transformers import TransformersEngine
from hintdistill.scores import ScoreRequest, Target
from hintdistill.targets import TargetStore

CONFIG = "configs/quickstart.yaml"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs") / f"benchmark-{int(time.time())}")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    began = time.perf_counter()
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
    print(
        json.dumps(
            {
                "success_before": env["before"]["success_rate"],
                "success_after": env["after"]["success_rate"],
                "error_rate_before": env["before"]["error_rate"],
                "error_rate_after": env["after"]["error_rate"],
                "error_rate_cut": cut,
                "clean_success_before": clean["before"]["success_rate"],
                "clean_success_after": clean["after"]["success_rate"],
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
        )
    )


if __name__ == "__main__":
    main()

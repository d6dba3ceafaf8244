"""Run `configs/real.yaml` end to end, after an estimate of the time.

    python examples/smollm2/run.py [--model PATH] [--small] [key=value …]

A step of one batch is played and timed with the weights that the run will use; the estimate counts the steps of fresh and
of measured episodes, and the passes of training. `--small` is a smoke run: fewer episodes and tasks, no figure to quote.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from errands import Errands  # noqa: E402

from hintdistill.config.file import load_config  # noqa: E402

SMALL = ("rollout.sample.episodes=24", "rollout.limit=8", "rollout.splits=[unseen]")
STEPS = 4.5
"""Steps of an episode of the untouched model, wasted ones included (README.md, measured)."""
NEW_TOKENS = 27
"""Tokens of a call."""
BATCH = 8
TRAINING = 3.0
"""Rescoring and training, in played steps per fresh step: a pass to rescore, one forward and one backward."""


def seconds_per_step(model: str, dtype: torch.dtype) -> float:
    """Time a step of `BATCH` episodes: read the opening, write a call. Seconds per step and episode."""
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    opening = Errands().make().reset("train.0").messages
    text = "\n".join(f"{m.role}\n{m.content}" for m in opening)
    ids = torch.tensor([tokenizer.encode(text)] * BATCH)
    began = time.perf_counter()
    weights.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    return (time.perf_counter() - began) / BATCH


def main() -> int:
    """Print the estimate and start the run. Returns the run's exit code."""
    parser = argparse.ArgumentParser(description="A real model on errands of several steps, end to end.")
    parser.add_argument("--model", help="a transformers folder, or a name; default: build/smollm2")
    parser.add_argument("--small", action="store_true", help="a smoke run: 24 fresh episodes, 8 tasks measured")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    overrides = [
        *(SMALL if asked.small else ()),
        *([f"run.model={asked.model}"] if asked.model else []),
        *asked.overrides,
    ]
    config = load_config(ROOT / "configs" / "real.yaml", overrides)
    dtype = torch.float32 if config.run.dtype == "float32" else torch.bfloat16
    sizes = {
        s: min(len(t), config.rollout.limit or len(t))
        for s, t in Errands().splits().items()
        if s in config.rollout.splits
    }
    fresh = config.rollout.sample.episodes * max(config.run.rounds or 1, 1)
    played = 2 * sum(sizes.values()) + fresh  # splits are measured before and after
    step = seconds_per_step(str(config.run.model), dtype)
    minutes = step * STEPS * (played + TRAINING * fresh) / 60
    print(
        f"{played} episodes of about {STEPS:g} steps at {step:.2f} s a step, and training: about {minutes:.0f} minutes here",
        flush=True,
    )
    return subprocess.run(
        [sys.executable, "-m", "hintdistill.cli", "run", str(ROOT / "configs" / "real.yaml"), *overrides], check=False
    ).returncode


if __name__ == "__main__":
    raise SystemExit(main())

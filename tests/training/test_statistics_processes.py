"""Weights that are statistics of an optimiser step: one process eight rows at once or one at a time, and two processes, alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.flat_recipe import train_section
from test_training_processes import TORCHRUN, launch_cases, losses, save_model, some_targets, weights

from hintdistill.config import RunSection
from hintdistill.training.reward import NO_OUTCOME, OutcomeData, TraceOutcome
from hintdistill.training.stage import TrainData, TrainJob, train
from hintdistill.training.watch import WatchSets

pytestmark = pytest.mark.usefixtures("one_thread")
TARGETS = [replace(t, trace_id=t.key) for t in some_targets() if t.kind == "hint"]
"""Seven rows of one hint each."""
ENDED = {t.trace_id: TraceOutcome(float(n % 2), n % 2 - 0.5, 0.5, 4) for n, t in enumerate(TARGETS)}
RECIPES = {"gndpo": NO_OUTCOME, "tip": NO_OUTCOME, "fire": NO_OUTCOME, "dasd": OutcomeData(ENDED, [])}
"""A signal, ranks, a filter of rows, and a credit that meets an advantage: each scaled by what all rows of the step say."""


def cases(model: Path) -> dict[str, dict]:
    """Each recipe with one row and with eight in a pass; seven rows, so that a process has one that stands in."""
    out = {}
    for name, outcome in RECIPES.items():
        for micro in (1, 4, 8):
            config = train_section(
                epochs=1,
                batch_size=8,
                micro_batch_size=micro,
                warmup_ratio=0,
                save_steps=100,
                logging_steps=1,
                schedule="constant",
                learning_rate=1e-2,
                max_grad_norm=1e9,
                recipe=name,
                arguments={"optim": "sgd"},
            )
            out[f"{name}-{micro}"] = {
                "model": model,
                "targets": TARGETS,
                "run": RunSection(model="", device="cpu", dtype="float32"),
                "train": config,
                "watch": WatchSets(),
                "outcome": outcome,
            }
    return out


def moved(folder: Path, before: dict[str, torch.Tensor]) -> torch.Tensor:
    after = weights(folder / "student")
    return torch.cat([(after[k] - before[k]).flatten() for k in sorted(before)])


@pytest.mark.slow
def test_two_processes_take_statistics_over_the_whole_step(tmp_path):
    model = save_model(tmp_path / "model", tied=False)
    made, before = cases(model), weights(model)
    (tmp_path / "two").mkdir()
    together = [f"{name}-{micro}" for name in RECIPES for micro in (1, 4)]
    code, output = launch_cases(tmp_path / "two", made, together, TORCHRUN)
    assert code == 0, output[-4000:]
    for name in RECIPES:
        for micro in (1, 8):
            case = made[f"{name}-{micro}"]
            folder = tmp_path / "one" / f"{name}-{micro}"
            data = TrainData(case["targets"], watch=case["watch"], outcome=case["outcome"])
            train(TrainJob(case["model"], data, case["run"], case["train"], folder, folder / "student", "key"))
        whole = moved(tmp_path / "one" / f"{name}-8", before)
        assert float(whole.norm()) > 0
        others = [tmp_path / "one" / f"{name}-1", *(tmp_path / "two" / f"{name}-{micro}" for micro in (1, 4))]
        for folder in others:
            assert losses(folder) == pytest.approx(losses(tmp_path / "one" / f"{name}-8"), rel=1e-4), folder
            assert float((moved(folder, before) - whole).norm() / whole.norm()) < 1e-4, folder

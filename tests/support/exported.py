"""A run of the shipped traces up to its targets, for tests of what other trainers make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from support.command import hintdistill


def scored_run(folder: Path, *overrides: str, limit: int = 24) -> Path:
    """Run the quickstart's traces up to `rescore`, with hints, anchors and twins; the rules are the critic."""
    hintdistill(
        "run",
        "configs/quickstart.yaml",
        "--until",
        "rescore",
        "--quiet",
        f"run.dir={folder}",
        f"traces.limit={limit}",
        "critic.use=[rules]",
        "train.twins.per_finding=1",
        "rescore.top_k=16",
        "train.anchor.weight=2",
        "train.recipe=targeted_jsd",  # most formats lose this divergence, and have to say so
        *overrides,
    )
    return folder


def step_logprobs(model, ids, start):
    """What a model says at a step's positions, float64 [T, V]."""
    with torch.no_grad():
        logits = model(torch.as_tensor(np.asarray(ids))[None, :-1]).logits[0, start - 1 :]
    return logits.double().log_softmax(-1).numpy()

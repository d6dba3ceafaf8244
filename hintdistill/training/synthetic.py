"""Rows of given lengths with random ids, and short training runs on them, to measure the trainer before there are
targets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from hintdistill.config import RunSection, TrainSection
from hintdistill.core.machine import clock
from hintdistill.core.scores import Target
from hintdistill.training.row_lengths import RowLength

STEPS = 5
"""Number of optimiser steps in a short training; the first is not timed, and the median of the others counts."""
TIMINGS = 3
"""Number of times that the optimiser is timed; the median counts."""
SCRATCH = 1 << 22
"""Number of entries of the tensor on which the optimiser is timed."""


def synthetic_targets(rows: Sequence[RowLength], vocabulary: int, kept: int) -> list[Target]:
    """Make one target per row: its scored tokens form one step at the end, with `kept` entries at each of them."""
    rng, kept = np.random.default_rng(0), min(kept, vocabulary - 1)
    return [_target(f"row-{n}", row, rng, vocabulary, kept) for n, row in enumerate(rows)]


def _target(name: str, row: RowLength, rng: np.random.Generator, vocab: int, kept: int) -> Target:
    step = max(1, min(row.scored, row.tokens))
    ids = rng.integers(0, vocab, row.tokens + 1)
    flat = np.full((step, kept), -np.log(kept + 1.0), np.float32)
    tail, sampled = np.full(step, -np.log(kept + 1.0), np.float32), np.zeros(step, np.float32)
    hint = max(1, row.branch_tokens - row.hinted) if row.branches else 8
    supports = np.tile(np.sort(rng.permutation(vocab)[:kept])[None].astype(np.int64), (step, 1))
    # the sampled token is always kept, once
    absent = ~(supports == ids[-step:, None]).any(1)
    supports[absent, 0] = ids[-step:][absent]
    return Target(
        key=name,
        trace_id=name,
        step=0,
        kind="hint",
        split="train",
        context_ids=ids[: len(ids) - step],
        step_ids=ids[len(ids) - step :],
        span=(0, step),
        action_start=0,
        support_ids=supports,
        teacher_logprobs=flat,
        plain_logprobs=flat,
        teacher_tail=tail,
        plain_tail=tail,
        teacher_sampled=sampled,
        plain_sampled=sampled,
        insert_at=len(ids) - step,
        block_ids=rng.integers(0, vocab, hint),
        fidelity="ids",
        accepted=True,
    )


def shorter(row: RowLength, share: float) -> RowLength:
    """Shorten a row to a share of its length; its scored tokens and branches are shortened in proportion and moved to
    its end."""
    tokens = max(16, round(row.tokens * share))
    scored = max(1, min(round(row.scored * share), tokens // 2))
    hint = max(1, round((row.branch_tokens - row.hinted) * share)) if row.branches else 0
    return RowLength(row.trace_id, tokens, scored, scored, ((tokens - scored, hint + scored),) if hint else ())


@dataclass(frozen=True)
class ShortTraining:
    """Hold the times of a short training, in seconds."""

    step_s: float
    """Seconds of one optimiser step."""
    passes: int
    """Number of micro-batches per optimiser step."""
    startup: float
    """Seconds spent outside steps: loading the model, measurements before the first step, saving."""


def short_training(
    model: Path, micro_batch: Sequence[Target], run: RunSection, section: TrainSection, work: Path
) -> ShortTraining:
    """Let the real trainer take `STEPS` optimiser steps on copies of one micro-batch; two copies per step if the run
    accumulates gradients.

    Raises:
        HintdistillError: `stage.train` raised it.
    """
    from hintdistill.training.reward import OutcomeData, TraceOutcome
    from hintdistill.training.stage import TrainData, TrainJob, train

    micro = len(micro_batch)
    passes = 2 if micro < section.batch_size else 1
    changed = {"batch_size": micro * passes, "micro_batch_size": micro, "epochs": 1.0, "trackers": (), "push": None}
    targets = [
        replace(t, key=f"{t.key}-{n}", trace_id=f"{t.trace_id}-{n}") for n in range(STEPS * passes) for t in micro_batch
    ]
    began, ends = clock(), list[float]()
    outcome = OutcomeData({t.trace_id: TraceOutcome(1.0, 0.5, 0.5, 2) for t in targets})
    data = TrainData(targets, heldout=targets[:1], outcome=outcome)
    config = section.model_copy(update=changed)
    job = TrainJob(model, data, run, config, work / "train", work / "student", "measured")
    train(job, lambda done, total: ends.append(clock()))
    total, step = clock() - began, statistics.median(b - a for a, b in pairwise(ends))
    return ShortTraining(step, passes, max(0.0, total - step * len(ends)))


def optimizer_seconds(device: torch.device, max_grad_norm: float) -> float:
    """Measure the seconds per entry of clipping and AdamW."""
    scratch = [torch.nn.Parameter(torch.zeros(SCRATCH // 8, device=device)) for _ in range(8)]
    for p in scratch:
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.AdamW(scratch, lr=1e-3)
    optimizer.step()
    took = list[float]()
    for _ in range(TIMINGS):
        began = clock()
        torch.nn.utils.clip_grad_norm_(scratch, max_grad_norm)
        optimizer.step()
        took.append(clock() - began)
    return statistics.median(took) / SCRATCH

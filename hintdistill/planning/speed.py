"""How fast this machine is with this model: a few real passes at a few sizes, some ten seconds in all.

Operations are counted (`reading`), seconds are measured: of the engine on some of the run's own requests, of the trainer on
synthetic rows of the run's own lengths, of the optimiser on a scratch tensor. A line through the measured points says what
any other size takes; the largest point is as near to the run's own size as the time allows. On one thread seconds of the
processor count, so that a busy machine does not spoil them; the plan is for a machine that has nothing else to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hintdistill.config import RunConfig
from hintdistill.core.scores import ScoreRequest, Target
from hintdistill.engines.transformers import TransformersEngine, pick_device
from hintdistill.planning.histogram import RowLength
from hintdistill.planning.shape import ModelShape
from hintdistill.planning.token_counts import operations, pairs, reading, train_operations
from hintdistill.training.reward import OutcomeData, TraceOutcome

SECONDS = 10.0
"""What measuring may take, loading the model aside."""
SCRATCH = 1 << 22
"""Entries of the tensor that the optimiser is timed on."""
SAVED_PER_SECOND = 1e9
"""Bytes a second at which checkpoints are taken to be written. Not measured."""


@dataclass(frozen=True)
class Line:
    """seconds = fixed + per_operation · operations + per_position · scored positions."""

    fixed: float
    per_operation: float
    per_position: float = 0.0

    def seconds(self, calls: float, counted: float, positions: float = 0.0) -> float:
        """Of so many calls with so many operations and scored positions in all."""
        return self.fixed * calls + self.per_operation * counted + self.per_position * positions


@dataclass(frozen=True)
class Speed:
    """What was measured."""

    load_s: float
    """Of loading the model once."""
    score: Line
    """Of the engine, per call of `score`; what a target takes besides is in its positions."""
    train: Line | None
    """Of the trainer's forward and backward pass, per micro-batch; None where none of a useful size fits."""
    optimizer_s: float
    """Per trained entry and optimiser step."""
    sharing: str
    """How this model's prefixes are shared."""
    notes: tuple[str, ...] = ()


def clock() -> float:
    """Seconds: of this process on one CPU thread, else of the wall."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def fit(points: Sequence[tuple[float, float, float]]) -> Line:
    """The line through (operations, positions, seconds); no coefficient below zero.

    Sizes differ by orders of magnitude, so it is relative errors that are made small.
    """
    rows = np.array([[1.0, counted, positions] for counted, positions, _ in points])
    seconds = np.array([s for *_, s in points])
    best, least = np.zeros(3), np.inf
    for use in ([1], [0, 1], [1, 2], [0, 1, 2]):
        if len(use) > len(points):
            continue
        found = np.linalg.lstsq(rows[:, use] / seconds[:, None], np.ones(len(seconds)), rcond=None)[0]
        error = float(np.abs(rows[:, use] @ found / seconds - 1).max())
        if (found >= 0).all() and error < least - 1e-6:
            best, least = np.zeros(3), error
            best[use] = found
    return Line(float(best[0]), float(best[1]), float(best[2]))


def measure(
    config: RunConfig,
    folder: Path,
    shape: ModelShape,
    calls: Sequence[Sequence[ScoreRequest]],
    rows: Sequence[RowLength],
    fits: Callable[[Sequence[RowLength]], bool],
    say: Callable[[str], None],
) -> Speed:
    """Measure this model on this machine.

    Args:
        calls: the requests of the run.
        rows: its training rows.
        fits: whether rows may be trained on at once here.
        say: takes a line about what is being done.

    Raises:
        ModelError: the model cannot be loaded.
    """
    say("measuring: loading the model")
    began = clock()
    engine = TransformersEngine.load(folder, config.run.dtype, config.run.device, config.rescore.batch_tokens)
    load_s = clock() - began
    say("measuring: scoring some of the requests")
    score = _score(engine, shape, calls, config.rescore.top_k, engine.batch_tokens)
    sharing = engine.sharing or "separate"
    del engine
    say("measuring: training on rows of the run's lengths")
    train, notes = _train(config, folder, shape, rows, fits)
    return Speed(load_s, score, train, _optimizer(config), sharing, notes)


def _score(
    engine: TransformersEngine, shape: ModelShape, calls: Sequence[Sequence[ScoreRequest]], top_k: int, budget: int
) -> Line:
    """Parts of the run's own calls, larger and larger, until the time is used up."""
    engine.score([ScoreRequest(np.arange(24) % shape.vocab, 16, 24)], top_k)
    points: list[tuple[float, float, float]] = []
    spent = 0.0
    sizes = sorted({len(c) for c in calls})
    if not sizes:
        return Line(0.0, 0.0)
    largest, last = max(calls, key=len), calls[-1]
    for share in (0.03, 0.12, 0.4, 1.0):
        for call in (largest, last) if share < 1.0 else (largest,):
            part = list(call[: max(2, round(len(call) * share))])
            read = reading([part], shape, budget)
            counted = operations(shape, read.computed, read.pairs, read.scored)
            if points and spent + points[-1][2] * counted / points[-1][0] > SECONDS / 2:
                continue
            began = clock()
            engine.score(part, top_k)
            points.append((counted, float(read.scored), max(1e-6, clock() - began)))
            spent += points[-1][2]
    return fit(points)


def _train(
    config: RunConfig,
    folder: Path,
    shape: ModelShape,
    rows: Sequence[RowLength],
    fits: Callable[[Sequence[RowLength]], bool],
) -> tuple[Line | None, tuple[str, ...]]:
    """Forward and backward passes of the real trainer, on random ids in rows of the run's lengths."""
    from hintdistill.training.rows import build_rows
    from hintdistill.training.stage import make_trainer
    from hintdistill.training.students import load_student

    each = config.train.micro_batch_size or config.train.batch_size
    order = sorted(rows, key=lambda r: r.tokens)
    if not order:
        return None, ("no row to train on",)
    middle = order[len(order) // 2]
    batches = [[_cut(middle, middle.tokens // 8)], [_cut(middle, middle.tokens // 2)], [middle]]
    batches += [_spread(order, n) for n in sorted({max(1, each // 4), each}) if n > 1]
    batches = [b for b in batches if fits(b)]
    if not batches:
        return None, ("no row of the run fits, so training was not timed",)
    full = config.train.lora is None
    device = pick_device(config.run.device)
    points: list[tuple[float, float, float]] = []
    with TemporaryDirectory(prefix="hintdistill-plan-") as work:
        model = load_student(folder, config.run, config.train, device).model
        made = [build_rows(_targets(b, shape, config.rescore.top_k), config.train, _outcomes(len(b))) for b in batches]
        trainer = make_trainer(model, made[0], config.run, config.train, Path(work))
        model.train()
        _once(trainer, made[0])
        spent = 0.0
        for batch, real in zip(batches, made, strict=True):
            counted = sum(row_operations(shape, r, full, config.train.gradient_checkpointing) for r in batch)
            if points and spent + points[-1][2] * counted / points[-1][0] > SECONDS:
                break
            began = clock()
            _once(trainer, real)
            points.append((counted, 0.0, max(1e-6, clock() - began)))
            spent += points[-1][2]
    return fit(points), ()


def row_operations(shape: ModelShape, row: RowLength, full: bool, checkpointing: bool) -> float:
    """Of one row, its branches included."""
    own = train_operations(shape, row.tokens, pairs(0, row.tokens), row.scored, full=full, checkpointing=checkpointing)
    return own + sum(operations(shape, n, pairs(at, n), 0) for at, n in row.branches)


def _once(trainer: Any, rows: Sequence[Any]) -> None:
    loss = trainer.compute_loss(trainer.model, {"rows": list(rows)})
    loss.backward()
    trainer.model.zero_grad(set_to_none=True)


def _cut(row: RowLength, tokens: int) -> RowLength:
    tokens = max(tokens, 16)
    scored = max(1, min(row.scored, tokens // 2))
    return RowLength(
        row.trace_id,
        tokens,
        scored,
        min(row.hinted, scored),
        tuple((min(a, tokens // 2), n) for a, n in row.branches[:1]),
    )


def _spread(order: Sequence[RowLength], n: int) -> list[RowLength]:
    """`n` rows evenly over the sorted lengths."""
    return [order[round(i)] for i in np.linspace(0, len(order) - 1, n)]


def _targets(rows: Sequence[RowLength], shape: ModelShape, top_k: int) -> list[Target]:
    """One target per row with its scored tokens in one step, on random ids."""
    rng = np.random.default_rng(0)
    kept = min(top_k * 4 // 3, shape.vocab - 1)
    out = []
    for n, row in enumerate(rows):
        step = max(1, min(row.scored, row.tokens))
        ids = rng.integers(0, shape.vocab, row.tokens + 1)
        support = np.sort(rng.permutation(shape.vocab)[:kept])[None].astype(np.int64)
        flat = np.full((step, kept), -np.log(kept + 1.0), np.float32)
        tail = np.full(step, -np.log(kept + 1.0), np.float32)
        sampled = np.zeros(step, np.float32)
        hint = max(1, round(sum(b for _, b in row.branches) - row.hinted)) if row.branches else 8
        supports = np.tile(support, (step, 1))
        # the sampled token is always kept, once
        absent = ~(supports == ids[-step:, None]).any(1)
        supports[absent, 0] = ids[-step:][absent]
        out.append(
            Target(
                key=f"row-{n}",
                trace_id=f"row-{n}",
                step=0,
                kind="hint",
                split="train",
                context_ids=ids[: len(ids) - step],
                step_ids=ids[len(ids) - step :],
                span=(0, step),
                support_ids=supports,
                teacher_logprobs=flat,
                plain_logprobs=flat,
                teacher_tail=tail,
                plain_tail=tail,
                teacher_sampled=sampled,
                plain_sampled=sampled,
                insert_at=len(ids) - step,
                block_ids=rng.integers(0, shape.vocab, hint),
                fidelity="ids",
                accepted=True,
            )
        )
    return out


def _outcomes(rows: int) -> OutcomeData:
    """That those rows ended well, for recipes that read it; the tokens of an outcome reward are among the scored ones."""
    return OutcomeData({f"row-{n}": TraceOutcome(1.0, 0.5, 0.5, 2) for n in range(rows)})


def _optimizer(config: RunConfig) -> float:
    """Seconds of clipping and AdamW per entry."""
    device = pick_device(config.run.device)
    scratch = [torch.nn.Parameter(torch.zeros(SCRATCH // 8, device=device)) for _ in range(8)]
    for p in scratch:
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.AdamW(scratch, lr=1e-3)
    optimizer.step()
    began = clock()
    torch.nn.utils.clip_grad_norm_(scratch, config.train.max_grad_norm)
    optimizer.step()
    return (clock() - began) / SCRATCH

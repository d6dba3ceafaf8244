"""Memory and speed of this model on this machine, from short real runs of rescoring and training in fresh processes.

Rows of ¼ and ½ of the longest are trained on by the real trainer for a few steps, and parts of the run's own requests are
scored by the real scorer. Each run is a process of its own that reports its peak: resident size on a CPU
(`torch.cuda.max_memory_allocated` on CUDA). What is counted from the model's shape gives the form of the growth (linear in
tokens, or flat where calls are cut); the measured points give its base and slope. A point that is foretold not to fit is
never tried. On one thread, seconds of the processor count, so that a busy machine does not spoil them.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from hintdistill.config import RunConfig
from hintdistill.core.errors import ModelError
from hintdistill.core.lines import TimeLine, fit
from hintdistill.core.machine import Growth, Peak, grow_by, process_figure
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.transformers import TransformersEngine, pick_device
from hintdistill.pipeline import rescore
from hintdistill.pipeline import train as training
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.scorer import AnchorItem, HintItem, Scorer
from hintdistill.rescoring.store import TargetStore
from hintdistill.training.row_lengths import RowLength
from hintdistill.training.synthetic import synthetic_targets

SECONDS = 20.0
"""What scoring some of the requests may take; a part that would take longer is left out."""
FILL = 0.9
"""Share of the free memory that a measured run may take, as foretold by what is counted and by the runs before it."""
STEPS = 3
"""Optimiser steps of a measured training; the first one is not timed."""
SCRATCH = 1 << 22
"""Entries of the tensor that the optimiser is timed on."""


@dataclass(frozen=True)
class Part:
    """Something to try: items of a kind to score, or one micro-batch to train on."""

    kind: Literal["hint", "anchor", "rows"]
    peak: Peak
    """As counted."""
    operations: float
    items: int = 0
    scored: int = 0
    rows: Sequence[RowLength] = ()


@dataclass(frozen=True)
class Measured:
    """Speed and memory of the two costly stages."""

    startup_s: dict[str, float]
    """Per stage, seconds before and after its own work: loading, and for training saving too."""
    score: TimeLine
    """Of the engine and of making targets, per part."""
    train: TimeLine | None
    """Of a micro-batch's forward and backward pass; None where nothing was trained on."""
    optimizer_s: float
    """Per trained entry and optimiser step."""
    growth: dict[str, Growth]
    """Per stage that was measured."""
    sharing: str
    """How this model's prefixes are shared."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What a process is to measure."""

    config: RunConfig
    model: Path
    parts: Sequence[Part]
    available: int
    """Bytes that may be used."""
    vocabulary: int
    """Ids below this one are drawn for rows that are made up."""
    folder: Path | None = None
    """A run folder with the items; None where they are given here."""
    hints: Sequence[HintItem] = field(default=())
    anchors: Sequence[AnchorItem] = field(default=())


def clock() -> float:
    """Seconds: of this process on one CPU thread, else of the wall."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def measure(job: Job, train: Sequence[Part], trained: int, say: Callable[[str], None]) -> Measured:
    """Measure this model on this machine.

    Args:
        job: the model, and the parts to score, smallest first.
        train: the micro-batches to train on, smallest first.
        trained: entries that training updates.

    Raises:
        ModelError: the model cannot be loaded, or a process that measures ends early.
    """
    say("measuring: scoring some of the requests")
    scored = _in_a_process(job)
    growth = {"rescore": _growth(scored, job.parts)} if scored["points"] else {}
    score = fit(
        [(job.parts[i].operations, job.parts[i].scored, s) for i, s, _ in scored["points"]] or [(1.0, 0, 1e-12)]
    )
    optimizer, points, startup, notes = _optimizer(job.config), list[tuple[float, float, float]](), 0.0, list[str]()
    runs: list[tuple[int, int]] = []
    for part in train:
        say(f"measuring: training on rows of up to {max(r.tokens for r in part.rows):,} tokens")
        found = _in_a_process(replace(job, parts=[part], available=job.available - (_beyond(runs) if runs else 0)))
        if not found["points"]:
            notes.append(
                f"training on {max(r.tokens for r in part.rows):,} tokens at once was not tried: it would not fit"
            )
            break
        (_, seconds, peak), passes = found["points"][0], found["passes"]
        points.append((part.operations, 0.0, max(1e-6, (seconds - trained * optimizer) / passes)))
        runs.append((part.peak.added, peak - found["program"] - part.peak.parts["weights"]))
        growth["train"] = grow_by(found["program"], runs)
        startup = startup or found["startup"]
    return Measured(
        startup_s={"rescore": scored["startup"], "train": startup},
        score=score,
        train=fit(points) if points else None,
        optimizer_s=optimizer,
        growth=growth,
        sharing=scored["sharing"],
        notes=tuple(notes),
    )


def _growth(found: dict[str, Any], parts: Sequence[Part]) -> Growth:
    program, points = found["program"], list[tuple[int, int]]()
    for at, _, peak in found["points"]:
        if not points or parts[at].peak.added > points[-1][0]:
            points.append((parts[at].peak.added, peak - program - parts[at].peak.parts["weights"]))
    return grow_by(program, points)


def _beyond(runs: Sequence[tuple[int, int]]) -> int:
    """Bytes that the last run took beyond what was counted."""
    return max(0, runs[-1][1] - runs[-1][0])


def _in_a_process(job: Job) -> dict[str, Any]:
    with TemporaryDirectory(prefix="hintdistill-measure-") as name:
        path = Path(name) / "job"
        path.write_bytes(pickle.dumps(job))
        done = subprocess.run([sys.executable, "-m", __name__, str(path)], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise ModelError(f"a short run to measure memory and time failed: {last}")
        found: dict[str, Any] = pickle.loads(path.with_suffix(".found").read_bytes())
        return found


# -- in the process that measures --------------------------------------------------------------------------------------


def _main(path: Path) -> None:
    job: Job = pickle.loads(path.read_bytes())
    if job.config.run.threads is not None:
        torch.set_num_threads(job.config.run.threads)
    import hintdistill.training.trainer  # noqa: F401 - counts as the program

    on_cpu = pick_device(job.config.run.device).type == "cpu"
    program = process_figure("VmRSS") if on_cpu else 0
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    run = _train if job.parts and job.parts[0].kind == "rows" else _score
    found = run(job, path.parent) | {"program": program}
    path.with_suffix(".found").write_bytes(pickle.dumps(found))


def _high_water(job: Job) -> int:
    device = pick_device(job.config.run.device)
    return process_figure("VmHWM") if device.type == "cpu" else int(torch.cuda.max_memory_allocated(device))


def _context(job: Job) -> RunContext | None:
    """The run's rows as its stages see them; None where there are none yet."""
    if job.folder is None:
        return None
    config = job.config.model_copy(update={"run": job.config.run.model_copy(update={"dir": str(job.folder)})})
    return RunContext(config, RunDir(job.folder), Console(quiet=True))


def _score(job: Job, work: Path) -> dict[str, Any]:
    """Score parts, larger and larger, until the time or the memory is used up."""
    config, ctx = job.config, _context(job)
    hints, anchors = (job.hints, job.anchors) if ctx is None else (rescore.hint_items(ctx), rescore.anchor_items(ctx))
    began = clock()
    engine = TransformersEngine.load(job.model, config.run.dtype, config.run.device, config.rescore.batch_tokens)
    renderer = RunContext(config, RunDir(work), Console(quiet=True)).renderer
    scorer, store = Scorer(engine, renderer, config.rescore), TargetStore(work / "targets")
    engine.score([ScoreRequest(np.arange(24), 16, 24)], config.rescore.top_k)
    startup, points, spent, beyond = clock() - began, list[tuple[int, float, int]](), 0.0, 0
    for at, part in enumerate(job.parts):
        last = job.parts[points[-1][0]].operations if points else 0.0
        late = bool(points) and spent + points[-1][1] * part.operations / last > SECONDS
        if late or part.peak.total + beyond > FILL * job.available:
            continue
        began = clock()
        store.append(
            scorer.score(hints[: part.items]) if part.kind == "hint" else scorer.anchors(anchors[: part.items])
        )
        seconds, peak = max(1e-6, clock() - began), _high_water(job)
        points.append((at, seconds, peak))
        spent, beyond = spent + seconds, max(0, peak - part.peak.total)
    return {"points": points, "startup": startup, "sharing": engine.sharing or "separate"}


def _train(job: Job, work: Path) -> dict[str, Any]:
    """Let the real trainer take a few steps on random ids in rows of the given lengths."""
    from hintdistill.training.reward import OutcomeData, TraceOutcome
    from hintdistill.training.stage import train

    part, ctx, section = job.parts[0], _context(job), job.config.train
    if part.peak.total > FILL * job.available:
        return {"points": [], "startup": 0.0, "passes": 1}
    held = None
    if ctx is not None and ctx.rundir.index("rescore") is not None:
        # what the stage keeps of them is there when it trains
        held = (chosen := training.selected(ctx)), training.watched(ctx, chosen)
    micro = len(part.rows)
    passes = 2 if micro < section.batch_size else 1
    changed = {"batch_size": micro * passes, "micro_batch_size": micro, "epochs": 1.0, "trackers": (), "push": None}
    section = section.model_copy(update=changed)
    rows = [r for _ in range(STEPS * passes) for r in part.rows]
    targets = synthetic_targets(rows, job.vocabulary, job.config.rescore.top_k * 4 // 3)
    ended = {t.trace_id: TraceOutcome(1.0, 0.5, 0.5, 2) for t in targets}
    began, ends = clock(), list[float]()
    train(
        job.model,
        targets,
        job.config.run,
        section,
        work / "train",
        work / "student",
        "measured",
        lambda done, total: ends.append(clock()),
        heldout=targets[:1],
        outcome=OutcomeData(ended),
    )
    total, each = clock() - began, (ends[-1] - ends[0]) / (len(ends) - 1)
    del held
    return {"points": [(0, each, _high_water(job))], "startup": max(0.0, total - each * len(ends)), "passes": passes}


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


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

"""Measure memory and speed of this model on this machine in short real runs of rescoring and training in fresh
processes.

The real trainer takes a few steps on rows of ¼ and ½ of the longest length, and the real scorer scores parts of the
run's own requests. Each run is a separate process that reports its peak: resident size on a CPU,
`torch.cuda.max_memory_allocated` on CUDA. The model's shape determines the form of the growth (linear in tokens, or
flat if calls are cut); the measured points determine its base and slope. A point that is predicted not to fit is never
tried. On one thread, processor seconds are used, so that other work on the machine does not distort them.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
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
from hintdistill.core.machine import Growth, Peak, clock, grow_by, high_water, process_figure
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.transformers import TransformersEngine, pick_device
from hintdistill.pipeline import to_score
from hintdistill.pipeline import train as training
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.scorer import AnchorItem, HintItem, Scorer
from hintdistill.rescoring.store import TargetStore
from hintdistill.training.row_lengths import RowLength
from hintdistill.training.synthetic import optimizer_seconds, short_training, synthetic_targets

SECONDS = 20.0
"""Time limit for scoring some of the requests; a part that would take longer is left out."""
FILL = 0.9
"""Share of the free memory that a measured run may take, as predicted from counts and from earlier runs."""


@dataclass(frozen=True)
class Part:
    """Describe a measured piece of work: items of one kind to score, or one micro-batch to train on."""

    kind: Literal["hint", "anchor", "rows"]
    peak: Peak
    """Peak memory according to the counts."""
    operations: float
    items: int = 0
    scored: int = 0
    rows: Sequence[RowLength] = ()


@dataclass(frozen=True)
class Measured:
    """Hold speed and memory of the two expensive stages."""

    startup_s: dict[str, float]
    """Per stage, seconds before and after its own work: loading, and for training also saving."""
    score: TimeLine | None
    """Time of the engine and of making targets, per part; None if nothing was scored."""
    train: TimeLine | None
    """Time of a micro-batch's forward and backward pass; None if nothing was trained on."""
    optimizer_s: float
    """Seconds per trained weight and optimiser step."""
    growth: dict[str, Growth]
    """Growth of memory per measured stage."""
    sharing: str
    """How this model's prefixes are shared."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """Describe the measurements of one process."""

    config: RunConfig
    model: Path
    parts: Sequence[Part]
    available: int
    """Number of bytes that may be used."""
    vocabulary: int
    """Ids for artificial rows are drawn below this number."""
    folder: Path | None = None
    """A run folder with the items; None if they are given directly."""
    hints: Sequence[HintItem] = field(default=())
    anchors: Sequence[AnchorItem] = field(default=())


def measure(job: Job, train: Sequence[Part], trained: int, say: Callable[[str], None]) -> Measured:
    """Measure this model on this machine.

    Args:
        job: the model, and the parts to score, smallest first.
        train: the micro-batches to train on, smallest first.
        trained: number of weights that training updates.

    Raises:
        ModelError: the model cannot be loaded, or a measuring process ended early.
    """
    say("measuring: scoring some of the requests")
    scored = _in_a_process(job)
    growth = {"rescore": _growth(scored, job.parts)} if scored["points"] else {}
    tried = [(job.parts[i].operations, float(job.parts[i].scored), s) for i, s, _ in scored["points"]]
    score = fit(tried) if tried else None
    optimizer = optimizer_seconds(pick_device(job.config.run.device), job.config.train.max_grad_norm)
    points, startups = list[tuple[float, float, float]](), list[tuple[float, float]]()
    notes = [] if tried else ["no part of rescoring was tried, because none would fit"]
    runs: list[tuple[int, int]] = []
    for part in train:
        say(f"measuring: training on rows of up to {max(r.tokens for r in part.rows):,} tokens")
        # what the run before took beyond its count
        beyond = max(0, runs[-1][1] - runs[-1][0]) if runs else 0
        if part.peak.total > FILL * (job.available - beyond):
            notes.append(
                f"training on {max(r.tokens for r in part.rows):,} tokens at once was not tried, because it "
                "would not fit"
            )
            break
        found = _in_a_process(replace(job, parts=[part]))
        (_, seconds, peak), passes = found["points"][0], found["passes"]
        points.append((part.operations, 0.0, max(1e-6, (seconds - trained * optimizer) / passes)))
        runs.append((part.peak.added, peak - found["program"] - part.peak.parts["weights"]))
        growth["train"] = grow_by(found["program"], runs)
        startups.append((part.operations, found["startup"]))
    return Measured(
        startup_s={"rescore": scored["startup"], "train": _without_rows(startups)},
        score=score,
        train=fit(points) if points else None,
        optimizer_s=optimizer,
        growth=growth,
        sharing=scored["sharing"],
        notes=tuple(notes),
    )


def _without_rows(startups: Sequence[tuple[float, float]]) -> float:
    """Return the seconds before and after training, without the time for its rows, which the plan counts separately.

    The rows are read once without gradient before the first step, so any additional start-up time for longer rows
    belongs to them.
    """
    if len(startups) < 2:
        return startups[0][1] if startups else 0.0
    (few, short), (many, long) = startups[0], startups[-1]
    return min(short, max(0.0, short - (long - short) * few / (many - few)))


def _growth(found: dict[str, Any], parts: Sequence[Part]) -> Growth:
    program, points = found["program"], list[tuple[int, int]]()
    for at, _, peak in found["points"]:
        if not points or parts[at].peak.added > points[-1][0]:
            points.append((parts[at].peak.added, peak - program - parts[at].peak.parts["weights"]))
    return grow_by(program, points)


def _in_a_process(job: Job) -> dict[str, Any]:
    with TemporaryDirectory(prefix="hintdistill-measure-") as name:
        path = Path(name) / "job"
        path.write_bytes(pickle.dumps(job))
        done = subprocess.run([sys.executable, "-m", __name__, str(path)], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"the process ended with exit code {done.returncode}"])[-1]
            raise ModelError(f"a short run for measuring memory and time failed: {last}")
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


def _context(job: Job) -> RunContext | None:
    """Return the run's rows in the form its stages use; None if there are none yet."""
    if job.folder is None:
        return None
    config = job.config.model_copy(update={"run": job.config.run.model_copy(update={"dir": str(job.folder)})})
    return RunContext(config, RunDir(job.folder), Console(quiet=True))


def _score(job: Job, work: Path) -> dict[str, Any]:
    """Score larger and larger parts until the time or the memory is used up."""
    began, config, ctx = clock(), job.config, _context(job)
    # rendering what is to be scored is a part of the stage
    hints, anchors = (job.hints, job.anchors) if ctx is None else (to_score.hint_items(ctx), to_score.anchor_items(ctx))
    engine = TransformersEngine.load(
        job.model,
        config.run.dtype,
        config.run.device,
        config.rescore.batch_tokens,
        offload=config.rescore.offload,
    )
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
        seconds, peak = max(1e-6, clock() - began), high_water(pick_device(job.config.run.device))
        points.append((at, seconds, peak))
        spent, beyond = spent + seconds, max(0, peak - part.peak.total)
    return {"points": points, "startup": startup, "sharing": engine.sharing or "separate"}


def _train(job: Job, work: Path) -> dict[str, Any]:
    """Let the real trainer take a few steps, with as many stored targets in memory as in its stage."""
    part, ctx, config = job.parts[0], _context(job), job.config
    held = None
    if ctx is not None and ctx.rundir.index("rescore") is not None:
        held = (chosen := training.selected(ctx)), training.watched(ctx, chosen)
    vocabulary, kept = job.vocabulary, config.rescore.top_k * 4 // 3
    found = short_training(job.model, synthetic_targets(part.rows, vocabulary, kept), config.run, config.train, work)
    del held
    return vars(found) | {"points": [(0, found.step_s, high_water(pick_device(config.run.device)))]}


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

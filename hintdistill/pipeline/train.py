"""Stage 5: train the student on what was accepted."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from hintdistill.config import TrainSection
from hintdistill.pipeline import rescore
from hintdistill.pipeline.context import RunContext
from hintdistill.rundir import content_key
from hintdistill.scores import Target


def selected(ctx: RunContext) -> list[Target]:
    """The targets to train on: accepted hints and chosen anchors of the training split, in a fidelity that may be trained."""
    allowed = set(ctx.config.train.fidelity)
    usable = [t for t in rescore.load(ctx) if t.accepted and t.split == "train" and t.fidelity in allowed]
    anchors = chosen_anchors([t for t in usable if t.kind == "anchor"], ctx.config.train, ctx.config.run.seed)
    return [t for t in usable if t.kind == "hint"] + anchors


def chosen_anchors(candidates: Sequence[Target], config: TrainSection, seed: int) -> list[Target]:
    """`anchor.per_trace` of each trace's candidates, in their order."""
    terms = [t for t in config.objective.terms.values() if t.rows == "anchor"]
    bound = min((t.min_probability for t in terms), default=0.0)

    def rank(target: Target) -> tuple[float, str]:
        if config.anchor.choose == "random":
            return random.Random(f"anchor:{seed}:{target.key}").random(), target.key
        held = np.exp(target.plain_sampled[np.exp(target.plain_sampled) >= bound])
        # a candidate that holds nothing comes last
        return float(held.min()) if len(held) else 2.0, target.key

    by_trace: dict[str, list[Target]] = {}
    for target in candidates:
        by_trace.setdefault(target.trace_id, []).append(target)
    keys = {t.key for members in by_trace.values() for t in sorted(members, key=rank)[: config.anchor.per_trace]}
    return [t for t in candidates if t.key in keys]


def run(ctx: RunContext) -> None:
    """Train, unless the student in the folder was trained on exactly this.

    Raises:
        EmptyFunnelError: nothing to train on.
        TripwireError: the loss is not finite.
    """
    from hintdistill.training.processes import together
    from hintdistill.training.stage import read_summary, train

    rescore.require_accepted(ctx)
    targets = selected(ctx)
    run = ctx.config.run
    key = content_key(
        "train",
        sorted(t.key for t in targets),
        ctx.config.train.model_dump(mode="json"),
        ctx.config.train.objective.model_dump(mode="json"),
        str(ctx.model_key),
        run.seed,
        run.dtype,
    )
    summary = read_summary(ctx.student_folder)
    if summary is None or summary.key != key:
        with ctx.voice.progress("train", None) as advance:
            summary = together(
                train, ctx.model_folder, targets, run, ctx.config.train, ctx.rundir.path / "train" / key,
                ctx.student_folder, key, progress=lambda done, total: advance(1),
            )  # fmt: skip
    ctx.rundir.set_index("train", [key])
    ctx.voice.note(
        f"train: {summary.steps} steps on {summary.hint_rows} hints and {summary.anchor_rows} anchors → {ctx.student_folder}"
    )

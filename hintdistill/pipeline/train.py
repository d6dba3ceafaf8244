"""Stage 5: train the student on what was accepted."""

from __future__ import annotations

from hintdistill.pipeline import rescore
from hintdistill.pipeline.context import RunContext
from hintdistill.rundir import content_key
from hintdistill.scores import Target


def selected(ctx: RunContext) -> list[Target]:
    """The targets to train on: accepted hints and anchors of the training split, in a fidelity that may be trained."""
    allowed = set(ctx.config.train.fidelity)
    return [t for t in rescore.load(ctx) if t.accepted and t.split == "train" and t.fidelity in allowed]


def run(ctx: RunContext) -> None:
    """Train, unless the student in the folder was trained on exactly this.

    Raises:
        EmptyFunnelError: nothing to train on.
        TripwireError: the loss is not finite.
    """
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
            summary = train(
                ctx.model_folder, targets, run, ctx.config.train, ctx.rundir.path / "train" / key, ctx.student_folder, key,
                progress=lambda done, total: advance(1),
            )  # fmt: skip
    ctx.rundir.set_index("train", [key])
    ctx.voice.note(
        f"train: {summary.steps} steps on {summary.hint_rows} hints and {summary.anchor_rows} anchors → {ctx.student_folder}"
    )

"""Stage 5: train the student on what was accepted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hintdistill.config import OUTPUT_KEYS, TrainSection
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key
from hintdistill.pipeline import rescore
from hintdistill.pipeline.context import RunContext
from hintdistill.planning.fits import require_fits
from hintdistill.planning.histogram import Slot, rows
from hintdistill.planning.shape import ModelShape

if TYPE_CHECKING:
    from hintdistill.training.reward import OutcomeData
    from hintdistill.training.watch import WatchSets


def selected(ctx: RunContext) -> list[Target]:
    """The targets to train on: accepted hints and chosen anchors of the training split, in a fidelity that may be trained."""
    allowed = set(ctx.config.train.fidelity)
    usable = [t for t in rescore.load(ctx) if t.accepted and t.split == "train" and t.fidelity in allowed]
    anchors = chosen_anchors([t for t in usable if t.kind == "anchor"], ctx.config.train, ctx.config.run.seed)
    return [t for t in usable if t.kind == "hint"] + anchors


def held_out(ctx: RunContext) -> list[Target]:
    """Accepted hints of held-out tasks: never trained on, and what a gated teacher is read on."""
    return [t for t in rescore.load(ctx) if t.accepted and t.split == "holdout" and t.kind == "hint"]


def chosen_anchors(candidates: Sequence[Target], config: TrainSection, seed: int) -> list[Target]:
    """`anchor.per_trace` of each trace's candidates, in their order; none where the recipe has no term for them."""
    terms = [t for t in config.effective_recipe.terms.values() if t.rows == "anchor"]
    if not terms:
        return []
    bound = min(t.min_probability for t in terms)

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


def watched(ctx: RunContext, trained: Sequence[Target], outcome: OutcomeData | None = None) -> WatchSets:
    """What is read while training: clean steps that were scored and are not among the trained ones, by split.

    What the outcome reward trains on is not among them either.
    """
    from hintdistill.training.watch import WatchSets

    taken, rewarded = {t.key for t in trained}, {(r.trace_id, r.step) for r in (outcome.rows if outcome else ())}
    scored = [t for t in rescore.load(ctx) if t.kind == "anchor"]
    clean = [t for t in scored if t.key not in taken and (t.trace_id, t.step) not in rewarded]
    return WatchSets(
        off_target=[t for t in clean if t.split == "train"],
        heldout=[t for t in clean if t.split == "holdout"],
        from_initial=ctx.teacher_folder == ctx.initial_folder,
    )


def _check_targets(ctx: RunContext, targets: Sequence[Target], watch: WatchSets) -> None:
    """Hints were scored by the teacher, everything else by the initial policy. Raises InputError."""
    from hintdistill.training.provenance import require_same

    hints = [t for t in targets if t.kind == "hint"]
    others = [t for t in targets if t.kind != "hint"]
    require_same(hints, model_key(ctx.teacher_folder).weights, ctx.renderer.key)
    require_same([*others, *watch.off_target, *watch.heldout], model_key(ctx.initial_folder).weights, ctx.renderer.key)


def run(ctx: RunContext) -> None:
    """Train, unless the student in the folder was trained on exactly this.

    Raises:
        DoesNotFitError: a trace is longer than the memory allows; said before the model is loaded.
        EmptyFunnelError: nothing to train on; or the recipe reads an outcome, and no rollout is better than another.
        InputError: targets that other weights or another tokenizer made; a trace without the reward that the recipe reads.
        TripwireError: something is not finite, or a bound of `train.tripwires` is crossed; `student/` is as it was.
    """
    from hintdistill.pipeline.outcome import outcome_data
    from hintdistill.training.processes import together
    from hintdistill.training.stage import TrainData, TrainJob, read_summary, train

    rescore.require_accepted(ctx)
    targets, outcome = selected(ctx), outcome_data(ctx)
    watch, run, section = watched(ctx, targets, outcome), ctx.config.run, ctx.config.train
    _check_targets(ctx, targets, watch)
    external = section.effective_recipe.teacher.model
    made_of = [
        sorted(t.key for t in targets),
        # what is read, what bounds it and where the outcome goes decide whether there is a student, not which: they do not
        # start a training over
        section.model_dump(mode="json", exclude={"watch", "tripwires", *OUTPUT_KEYS}),
        section.effective_recipe.model_dump(mode="json"),
        [str(ctx.model_key), model_key(ctx.initial_folder).weights],
        None if external is None else model_key(resolve_model(external)).weights,
        run.seed,
        run.dtype,
        *([] if outcome.key is None else [outcome.key]),
    ]
    key = content_key("train", *made_of, section.tripwires.model_dump(mode="json"))
    work = ctx.rundir.path / "train" / content_key("train", *made_of)
    summary = read_summary(ctx.student_folder)
    if summary is None or summary.key != key:
        require_fits(rows([*slots_of(targets), *outcome_slots(outcome)]), ModelShape.of(ctx.model_folder), ctx.config)
        with ctx.console.progress("train", None) as advance:
            data = TrainData(targets, held_out(ctx), watch, outcome)
            job = TrainJob(ctx.model_folder, data, run, section, work, ctx.student_folder, key, ctx.initial_folder)
            summary = together(train, job, progress=lambda done, total: advance(1), warn=ctx.console.warn)
    ctx.rundir.set_index("train", [key])
    ctx.console.note(
        f"train: {summary.steps} steps on {summary.hint_rows} hints and {summary.anchor_rows} anchors"
        + (f", {summary.outcome_rows} steps with an outcome" if summary.outcome_rows else "")
        + f" → {ctx.student_folder}"
    )
    if summary.grad_window_cosine is not None:
        ctx.console.note(
            f"train: the gradient truncated to {ctx.config.train.grad_window} tokens before a span had a cosine of at least "
            f"{summary.grad_window_cosine:.3f} to the exact one"
        )


def slots_of(targets: Sequence[Target]) -> list[Slot]:
    """What these targets take of their traces' rows."""
    return [Slot(t.trace_id, t.context_ids, t.step_ids, t.insert_at, t.block_ids) for t in targets]


def outcome_slots(outcome: OutcomeData) -> list[Slot]:
    """What the steps with an outcome take of them."""
    return [Slot(r.trace_id, r.ids[: -r.length].numpy(), r.ids[-r.length :].numpy()) for r in outcome.rows]

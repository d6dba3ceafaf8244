"""Train the student on the accepted targets (stage 5)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hintdistill.config import OUTPUT_KEYS, TrainSection
from hintdistill.core.errors import InputError
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.scores import Target, TargetHead
from hintdistill.core.storage import content_key
from hintdistill.core.types import UNKNOWN_ACTION
from hintdistill.pipeline import rescore
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Readings
from hintdistill.recipes.changes import called, rollouts
from hintdistill.recipes.describe import content
from hintdistill.rescoring.stored import StoredTargets, by_part, heads, take
from hintdistill.training.checksums import wrong_files
from hintdistill.training.fits import require_fits
from hintdistill.training.row_lengths import trained_lengths

if TYPE_CHECKING:
    from pathlib import Path

    from hintdistill.training.reward import OutcomeData
    from hintdistill.training.stage import TrainSummary
    from hintdistill.training.watch import WatchSets

WORK_INDEX = "train-work"
"""Index that names the folder in `train/` with the checkpoints and metrics of the current student."""


def selected(ctx: RunContext, stored: StoredTargets | None = None) -> StoredTargets:
    """Return the targets to train on: accepted hints and twins, chosen anchors, hold steps; all from the training split
    and of an allowed fidelity.

    Twins are included if the recipe has a term for them, whether or not the gate accepted the hint of their finding.

    `stored` are the current targets, if already open; the functions below take the same argument.
    """
    allowed = set(ctx.config.train.fidelity)
    stored = rescore.load(ctx) if stored is None else stored
    usable = stored.where(lambda t: t.accepted and t.split == "train" and t.fidelity in allowed)
    usable = usable.where(lambda t: not _action_unknown(ctx.config.train, t))
    candidates = usable.where(lambda t: t.kind == "anchor")
    anchors = {t.key for t in heads(chosen_anchors(candidates, ctx.config.train, ctx.config.run.seed))}
    taken = {t.rows for t in ctx.config.train.effective_recipe.terms.values()} & {"hold", "twin"} | {"hint"}
    # hints come first already
    return usable.where(lambda t: t.kind in taken or t.key in anchors)


def _action_unknown(section: TrainSection, target: TargetHead) -> bool:
    """Return whether a term on such targets excludes reasoning, and this target is known to have no recognisable end of
    its reasoning."""
    spans = {t.rows for t in section.effective_recipe.terms.values() if t.span == "action"}
    return target.kind in spans and target.action_start == UNKNOWN_ACTION


def warn_if_actions_are_unknown(ctx: RunContext, stored: StoredTargets) -> None:
    """Warn how many accepted targets are left out because the end of their reasoning is unknown; see
    `injection.action`."""
    lost = stored.where(lambda t: t.accepted and t.split == "train" and _action_unknown(ctx.config.train, t)).heads
    if lost:
        kinds = ", ".join(f"{n} of kind {kind}" for kind, n in Counter(t.kind for t in lost).items())
        ctx.console.warn(
            f"{len(lost)} accepted targets are left out ({kinds}): their terms use the loss span "
            "`action`, but the end of the reasoning cannot be found in the step's tokens, for example in "
            f"trace {lost[0].trace_id}, step {lost[0].step}; to include them, set `span: step`"
        )


def held_out(ctx: RunContext, stored: StoredTargets | None = None) -> StoredTargets:
    """Return accepted hints of held-out tasks, which are never trained on and on which gated teachers are evaluated."""
    stored = rescore.load(ctx) if stored is None else stored
    return stored.where(lambda t: t.accepted and t.split == "holdout" and t.kind == "hint")


def chosen_anchors(candidates: Sequence[Target], config: TrainSection, seed: int) -> Sequence[Target]:
    """Return `anchor.per_trace` of each trace's candidates, in their order; none if the recipe has no term for them.

    The log-probabilities needed for the choice are read part by part.
    """
    terms = [t for t in config.effective_recipe.terms.values() if t.rows == "anchor"]
    if not terms:
        return take(candidates, [])
    bound = min(t.min_probability for t in terms)

    def least(target: Target) -> float:
        held = np.exp(target.plain_sampled[np.exp(target.plain_sampled) >= bound])
        # a candidate that holds nothing comes last
        return float(held.min()) if len(held) else 2.0

    known = [(h.key, h.trace_id) for h in heads(candidates)]
    if config.anchor.choose == "random":
        rank = {i: random.Random(f"anchor:{seed}:{key}").random() for i, (key, _) in enumerate(known)}
    else:
        rank = {i: least(t) for i, t in by_part(candidates)}
    by_trace: dict[str, list[int]] = {}
    for i, (_, trace) in enumerate(known):
        by_trace.setdefault(trace, []).append(i)
    chosen = [
        i
        for members in by_trace.values()
        for i in sorted(members, key=lambda i: (rank[i], known[i][0]))[: config.anchor.per_trace]
    ]
    return take(candidates, sorted(chosen))


def watched(
    ctx: RunContext,
    trained: Sequence[Target],
    outcome: OutcomeData | None = None,
    stored: StoredTargets | None = None,
) -> WatchSets:
    """Return the steps watched during training: scored clean steps that are not trained on, by split.

    Steps that the outcome reward trains on are excluded too.
    """
    from hintdistill.training.watch import WatchSets

    taken = {t.key for t in heads(trained)}
    rewarded = {(r.trace_id, r.step) for r in (outcome.rows if outcome else ())}
    # where every step gets a context, a step that no critic faults is trained on all the same
    rewarded |= {(t.trace_id, t.step) for t in heads(trained) if t.kind == "hint"}
    scored = (rescore.load(ctx) if stored is None else stored).where(lambda t: t.kind == "anchor")
    clean = scored.where(lambda t: t.key not in taken and (t.trace_id, t.step) not in rewarded)
    return WatchSets(
        off_target=clean.where(lambda t: t.split == "train"),
        heldout=clean.where(lambda t: t.split == "holdout"),
        from_initial=ctx.teacher_folder == ctx.initial_folder,
    )


def _check_targets(ctx: RunContext, targets: Sequence[Target], watch: WatchSets) -> None:
    """Check that hints were scored by the teacher, and everything else by the initial policy. Raises InputError."""
    from hintdistill.training.provenance import require_same

    hints = [t for t in heads(targets) if t.kind == "hint"]
    others = [t for t in heads(targets) if t.kind != "hint"]
    require_same(hints, model_key(ctx.teacher_folder).weights, ctx.renderer.key)
    others += [*heads(watch.off_target), *heads(watch.heldout)]
    require_same(others, model_key(ctx.initial_folder).weights, ctx.renderer.key)


def warn_if_little_is_held(ctx: RunContext, targets: Sequence[Target]) -> None:
    """Warn if there are fewer than a tenth as many anchors and hold steps as hints, and suggest remedies.

    Steps that no term weights, because the initial policy was uncertain at every token, hold nothing and are not
    counted.
    """
    from hintdistill.training.rows import Weighing

    weighing, section = Weighing(ctx.config.train), ctx.config.train
    carried: Counter[str] = Counter()
    for _, target in by_part(targets):
        carried[target.kind] += any(w.any() for w in weighing.raw(target).values())
    held = carried["anchor"] + carried["hold"]
    if not carried["hint"] or held * 10 >= carried["hint"]:
        return
    rows = {t.rows for t in section.effective_recipe.terms.values()}
    advice = ["name traces that must stay unchanged in train.hold (path or split)"]
    if "anchor" not in rows:
        advice.insert(0, "set train.anchor.weight (2 is the default recipe's)")
    elif section.anchor.per_trace < 3:
        advice.insert(0, "raise train.anchor.per_trace, if these traces have more clean steps")
    ctx.console.warn(
        f"{carried['hint']} hints, but only {held} steps that hold the student in place (anchors "
        "and hold traces): with less than one per ten hints, behaviour that no hint corrects may "
        f"drift; {', or '.join(advice)}"
    )


def warn_if_hints_do_not_pull(ctx: RunContext, targets: Sequence[Target]) -> None:
    """Warn if twins are held and hints have almost no gradient, because such errors will stay; see `training.pull`."""
    from hintdistill.training.pull import WEAK, pull_of

    terms = ctx.config.train.effective_recipe.terms.values()
    if not any(t.rows == "twin" for t in terms) or not any(h.kind == "twin" for h in heads(targets)):
        return
    every, weak = Counter[str](), Counter[str]()
    for _, target in by_part(targets):
        found = [
            p for t in terms if t.rows == "hint" and target.kind == "hint" and (p := pull_of(target, t)) is not None
        ]
        if found:
            every[target.error_class or "-"] += 1
            weak[target.error_class or "-"] += max(found) < WEAK
    if not weak.total():
        return
    classes = ", ".join(f"{name} {weak[name]} of {every[name]}" for name in sorted(every) if weak[name])
    ctx.console.warn(
        f"{weak.total()} of {every.total()} hints have a gradient below {WEAK} at their decision "
        f"token ({classes}): the student almost never produces the hinted continuation there, and "
        "this divergence is nearly flat at such certainty. Such errors are not corrected while "
        "twins are trained; set train.recipe.terms.distill.divergence.kind=fkl, or "
        "train.twins.weight=0"
    )


def check_sampler(ctx: RunContext, targets: Sequence[Target]) -> None:
    """Warn which policy the importance ratio of a recipe divides by if steps have no recorded log-probabilities.

    Raises:
        InputError: in a later round, such steps were sampled neither by the initial policy nor by the current student.
    """
    from hintdistill.pipeline.outcome import sampled_elsewhere

    read = {t.rows for t in ctx.config.train.effective_recipe.terms.values() if t.reads_sampler}
    if not read:
        return
    if ctx.config.run.initial is not None and (elsewhere := sampled_elsewhere(ctx.config)):
        ctx.console.warn(f"{ctx.config.train.effective_recipe.name}: {elsewhere}")
    each = [t for _, t in by_part(targets) if t.kind in read]
    lacking = [t for t in each if not len(t.sampler_logprobs)]
    if not lacking:
        return
    said = f"{len(lacking)} of {len(each)} steps have no recorded log-probabilities of the model's own distribution"
    if ctx.initial_folder != ctx.model_folder:
        raise InputError(
            f"{said} (for example trace {lacking[0].trace_id}, step {lacking[0].step}), but the "
            f"importance ratio of {ctx.config.train.effective_recipe.name} needs them in a later round",
            hint="rollouts of this toolkit record them; recipes without `behaviour` or `importance` do not need them",
        )
    ctx.console.warn(f"{said}: the importance ratio divides by the run's initial policy")


def say_what_trains(ctx: RunContext) -> None:
    """Print the recipe's description, and warn if a token that the teacher lowers would not be lowered in the student
    for that reason."""
    recipe = ctx.config.train.effective_recipe
    ctx.console.note(f"train: recipe {called(recipe, ctx.config.inject.hint, ctx.config.inject.steps)}")
    if recipe.data.rollout.source != "traces":
        ctx.console.note(f"train: its rollouts are {rollouts(recipe)}")
    if recipe.lowers_error == "no":
        ctx.console.warn(
            f"{recipe.name} does not lower an error token because the teacher does "
            f"({recipe.lowers_error_why}); if the error of a hint must fall, choose a recipe whose "
            "`lowers_error` is yes (docs/recipes.md)"
        )


def run(ctx: RunContext) -> None:
    """Train, unless the student in the folder was trained with exactly these targets and settings. Raises what `into`
    raises."""
    key, work, _ = into(ctx, ctx.student_folder)
    ctx.rundir.set_index("train", [key])
    ctx.rundir.set_index(WORK_INDEX, [work])


def into(ctx: RunContext, folder: Path) -> tuple[str, str, TrainSummary]:
    """Train a student into a folder, unless the student there was trained with exactly these targets and settings.

    Return its key, the name of its folder in `train/`, and a summary of the training.

    Raises:
        DoesNotFitError: a trace is too long for the memory; raised before the model is loaded.
        EmptyFunnelError: there is nothing to train on, or the recipe uses an outcome and all rollouts are equally good.
        InputError: other weights or another tokenizer made the targets, or a trace lacks the reward that the recipe
            uses.
        TripwireError: a value is not finite, or a bound of `train.tripwires` was exceeded; `folder` is unchanged.
    """
    from hintdistill.pipeline.outcome import outcome_data
    from hintdistill.training.processes import together
    from hintdistill.training.stage import TrainData, TrainJob, read_summary, train

    stored = rescore.load(ctx)
    rescore.require_accepted(ctx, stored)
    targets, outcome = selected(ctx, stored), outcome_data(ctx)
    watch, run, section = watched(ctx, targets, outcome, stored), ctx.config.run, ctx.config.train
    _check_targets(ctx, targets, watch)
    warn_if_actions_are_unknown(ctx, stored)
    warn_if_little_is_held(ctx, targets)
    warn_if_hints_do_not_pull(ctx, targets)
    check_sampler(ctx, targets)
    say_what_trains(ctx)
    external = section.effective_recipe.teacher.model
    made_of = [
        sorted(t.key for t in targets.heads),
        # what is read, what bounds it and where the outcome goes decide whether there is a student, not which: they do not
        # start a training run over; the recipe and its teacher are the two lines after it, wherever their files are
        section.model_dump(mode="json", exclude={"watch", "tripwires", "recipe", "teacher_model", *OUTPUT_KEYS})
        | {"learning_rate": section.rate},
        content(section.effective_recipe),
        [str(ctx.model_key), model_key(ctx.initial_folder).weights],
        None if external is None else model_key(resolve_model(external)).weights,
        run.seed,
        run.dtype,
        *([] if outcome.key is None else [outcome.key]),
    ]
    key = content_key("train", *made_of, section.tripwires.model_dump(mode="json"))
    work = ctx.rundir.path / "train" / content_key("train", *made_of)
    summary = read_summary(folder)
    if wrong := wrong_files(folder):
        said = "; ".join(f"{name} {what}" for name, what in wrong.items())
        ctx.console.warn(f"{folder} is damaged and is trained again: {said}")
        summary = None
    if summary is None or summary.key != key:
        lengths = trained_lengths(targets, section, outcome)
        require_fits(lengths, ModelShape.of(ctx.model_folder), ctx.config)
        with ctx.console.progress("train", None) as work_done:
            data = TrainData(targets, held_out(ctx, stored), watch, outcome)
            job = TrainJob(ctx.model_folder, data, run, section, work, folder, key, ctx.initial_folder)
            reads = Readings(work_done.says)
            summary = together(train, job, progress=work_done.reach, warn=ctx.console.warn, log=reads.add)
    ctx.console.note(
        f"train: {summary.steps} steps on {summary.hint_rows} hints and {summary.anchor_rows} anchors"
        + (f", {summary.twin_rows} twins" if summary.twin_rows else "")
        + (f", {summary.hold_rows} steps of hold traces" if summary.hold_rows else "")
        + (f", {summary.outcome_rows} steps with an outcome" if summary.outcome_rows else "")
        + f" → {folder}"
    )
    if summary.grad_window_cosine is not None:
        ctx.console.note(
            f"train: the gradient, truncated to {ctx.config.train.grad_window} tokens before a span, "
            f"had a cosine of at least {summary.grad_window_cosine:.3f} with the exact one"
        )
    return key, work.name, summary

"""What the rescore stage scores: the current injections, twins, anchors, steps that are only watched, and steps of hold traces."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.core.errors import HintdistillError
from hintdistill.core.extensions import ENGINES
from hintdistill.core.models import model_key
from hintdistill.core.storage import content_key
from hintdistill.core.types import Split, TargetKind, Trace
from hintdistill.pipeline import critique, hold, inject, read, twins
from hintdistill.pipeline.context import RunContext
from hintdistill.rescoring.scorer import AnchorItem, HintItem
from hintdistill.rescoring.twins import TwinItem


def _made_by(ctx: RunContext, folder: Path) -> list[Any]:
    """What a target depends on besides its injection or step; `folder` has the weights that score it."""
    engine = ctx.config.rescore.engine
    other = (
        [] if ENGINES.get(engine.backend).shared else [engine.backend, engine.base_url, engine.model, engine.dialect]
    )
    return [model_key(folder).weights, ctx.config.run.dtype, ctx.config.rescore.top_k, *other]


def hint_items(ctx: RunContext) -> list[HintItem]:
    """The current injections with the keys of their targets."""
    base = _made_by(ctx, ctx.teacher_folder)
    return [HintItem(content_key("target", i.key, i.split, *base), i.injection, i.split) for i in inject.load(ctx)]


def twin_items(ctx: RunContext) -> list[TwinItem]:
    """The current twins with the keys of their targets, each with that of its finding's hint; the initial policy scores them."""
    base, found = _made_by(ctx, ctx.initial_folder), twins.load(ctx)
    if not found:
        return []
    hints = {h: item.key for h, item in zip(map(_told, inject.load(ctx)), hint_items(ctx), strict=True)}
    out = []
    for t in found:
        of = hints.get((t.trace_key, content_key(t.twin.finding.model_dump(mode="json"))), "")
        out.append(TwinItem(content_key("twin", t.key, t.split, of, ctx.renderer.key, *base), t.twin, t.split, of))
    return out


def _told(loaded: inject.LoadedInjection) -> tuple[str, str]:
    return loaded.trace_key, content_key(loaded.injection.finding.model_dump(mode="json"))


def anchor_items(ctx: RunContext) -> list[AnchorItem]:
    """Steps without a finding: candidates for anchors of each training trace, what is only read while training, and holds."""
    anchor, watch = ctx.config.train.anchor, ctx.config.train.watch
    wanted = anchor.per_trace > 0 and any(t.rows == "anchor" for t in ctx.config.train.effective_recipe.terms.values())
    clean, base, seed = _clean_steps(ctx), _made_by(ctx, ctx.initial_folder), ctx.config.run.seed
    chosen: list[CleanStep] = []
    if wanted:
        by_trace: dict[str, list[CleanStep]] = {}
        for step in clean:
            if step.split == "train":
                by_trace.setdefault(step.key, []).append(step)
        for key, steps in by_trace.items():
            rng = random.Random(f"anchor:{seed}:{key}")
            chosen += rng.sample(steps, min(max(anchor.candidates, anchor.per_trace), len(steps)))
    items = [item for step in chosen if (item := _anchor_item(ctx, step, base)) is not None]
    if watch.every != 0:
        held_out = [s for s in clean if s.split == "holdout" and not s.erring]
        items += _watch_items(ctx, held_out, base)
        if not wanted:
            # nothing is anchored, so nothing of it is there to be watched
            items += _watch_items(ctx, [s for s in clean if s.split == "train"], base)
    return items + hold_items(ctx)


def hold_items(ctx: RunContext) -> list[AnchorItem]:
    """Steps of hold traces; none where the recipe has no term for them."""
    if not any(t.rows == "hold" for t in ctx.config.train.effective_recipe.terms.values()):
        return []
    base, items, wanted = _made_by(ctx, ctx.initial_folder), list[AnchorItem](), 0
    for key, trace in hold.load(ctx):
        for k in hold.steps(ctx, key, trace):
            wanted += 1
            step = CleanStep(key, trace, "train", k, False)
            if (item := _anchor_item(ctx, step, base, "hold")) is not None:
                items.append(item)
    if lost := wanted - len(items):
        ctx.console.warn(
            f"{lost} of {wanted} steps of hold traces are left out: they cannot be rendered, or their tokens are not known "
            f"exactly enough (train.fidelity={', '.join(ctx.config.train.fidelity)})"
        )
    return items


@dataclass(frozen=True)
class CleanStep:
    """A step of a trace's own without a finding."""

    key: str
    trace: Trace
    split: Split
    step: int
    erring: bool
    """Whether another step of the trace has a finding."""


def _clean_steps(ctx: RunContext) -> list[CleanStep]:
    critiques, out = critique.load(ctx), list[CleanStep]()
    for key, trace, split in read.load(ctx):
        if key not in critiques:
            continue
        wrong = {f.step for f in critiques[key].findings}
        steps = [k for k in trace.own_steps if k not in wrong]
        out += [CleanStep(key, trace, split, k, bool(wrong)) for k in steps]
    return out


def _watch_items(ctx: RunContext, steps: Sequence[CleanStep], base: Sequence[Any]) -> list[AnchorItem]:
    """`train.watch.steps` of them, trace by trace, drawn by the seed and each trace alone."""
    seed, items = ctx.config.run.seed, list[AnchorItem]()
    for step in sorted(steps, key=lambda s: (random.Random(f"watch:{seed}:{s.key}").random(), s.key, s.step)):
        if len(items) == ctx.config.train.watch.steps:
            break
        if (item := _anchor_item(ctx, step, base)) is not None:
            items.append(item)
    return items


def _anchor_item(
    ctx: RunContext, step: CleanStep, base: Sequence[Any], kind: TargetKind = "anchor"
) -> AnchorItem | None:
    """What is scored of a clean step; None where it cannot be rendered or is not known exactly enough to train on."""
    try:
        rendered = ctx.renderer.step(step.trace, step.step)
    except HintdistillError as error:
        ctx.console.warn(f"no {kind}: {error.message}")
        return None
    if rendered.fidelity not in ctx.config.train.fidelity:
        return None
    key = content_key(kind, step.key, step.step, ctx.renderer.key, *base)
    return AnchorItem(key, step.trace.id, step.step, rendered, step.split, kind)

"""Collect the items that the rescore stage scores: current injections, twins, anchors, watched steps, and steps of hold
traces.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hintdistill.core.errors import HintdistillError
from hintdistill.core.extensions import ENGINES
from hintdistill.core.models import model_key
from hintdistill.core.rows import chunks
from hintdistill.core.storage import content_key
from hintdistill.core.types import Finding, Split, TargetKind, Trace, Twin
from hintdistill.pipeline import critique, hold, inject, read
from hintdistill.pipeline.context import RunContext
from hintdistill.rescoring.scorer import AnchorItem, HintItem
from hintdistill.rescoring.twins import TwinItem


def _made_by(ctx: RunContext, folder: Path) -> list[Any]:
    """Return what a target depends on besides its injection or step; `folder` contains the weights that score it."""
    engine = ctx.config.rescore.engine
    other = (
        [] if ENGINES.get(engine.backend).shared else [engine.backend, engine.base_url, engine.model, engine.dialect]
    )
    return [model_key(folder).weights, ctx.config.run.dtype, ctx.config.rescore.top_k, *other]


def hint_items(ctx: RunContext) -> list[HintItem]:
    """Return the current injections with the keys of their targets."""
    found = Found(ctx)
    return [item for key, split in read.keys(ctx) for item in found.hints(key, split)]


def twin_items(ctx: RunContext) -> list[TwinItem]:
    """Return the current twins with the keys of their targets and of their findings' hints; the initial policy scores
    them."""
    found = Found(ctx)
    return [item for key, split in read.keys(ctx) for item in found.twins(key, split)]


def anchor_items(ctx: RunContext) -> list[AnchorItem]:
    """Yield steps without a finding: candidates for anchors of each training trace, steps only watched during training,
    and hold steps."""
    found, items = Found(ctx), list[AnchorItem]()
    if found.anchored:
        items = [item for key, trace, split in read.each(ctx) for item in found.anchors(key, trace, split)]
    return items + found.watched() + list(hold_items(ctx))


class TwinPlace(NamedTuple):
    """Locate a twin in twins.jsonl."""

    key: str
    """Key of the twin's target."""
    of: str
    """Key of the target of its finding's hint; empty if that hint was not injected."""
    row: str
    """Key of the row that contains the twin."""
    number: int
    """Index of the twin within the row."""
    made: Mapping[str, Any]
    """The twin as stored."""


def _finding_key(made: Mapping[str, Any]) -> str:
    """Return the key of the finding of a stored injection or twin."""
    return content_key(Finding.model_validate(made["finding"]).model_dump(mode="json"))


class Found:
    """Give access, trace by trace, to the results of earlier stages as items to score; everything stays on disk until
    accessed."""

    def __init__(self, ctx: RunContext) -> None:
        """Open the current rows. Raises InputError if one is missing from the folder."""
        self.ctx = ctx
        self.critiques = critique.opened(ctx)
        """The merged critiques by trace row key."""
        self._injections = ctx.rundir.grouped("inject", "injections")
        self._twins = ctx.rundir.grouped("twins", "twins") if ctx.rundir.index("twins") else None
        self._told = _made_by(ctx, ctx.teacher_folder)
        self._base = _made_by(ctx, ctx.initial_folder)
        recipe = ctx.config.train.effective_recipe
        self.anchored = ctx.config.train.anchor.per_trace > 0 and any(t.rows == "anchor" for t in recipe.terms.values())
        """Whether steps of training traces are used as anchors."""

    def hints(self, key: str, split: Split) -> list[HintItem]:
        """Return the injections of a trace."""
        found = inject.loaded(self._injections.of(key), split)
        return [HintItem(self.target_key(i.key, i.split), i.injection, i.split) for i in found]

    def target_key(self, injection: str, split: Split) -> str:
        """Return the key of an injection's target, which differs from the injection's own key."""
        return content_key("target", injection, split, *self._told)

    def twins(self, key: str, split: Split) -> list[TwinItem]:
        """Return the twins of a trace."""
        return [TwinItem(p.key, Twin.model_validate(p.made), split, p.of) for p in self.twin_places(key, split)]

    def twin_places(self, key: str, split: Split) -> list[TwinPlace]:
        """Return the positions of a trace's twins on disk, with the keys of their targets."""
        rows = [row for row in ([] if self._twins is None else self._twins.of(key)) if row["twins"]]
        if not rows:
            return []
        hints = {
            _finding_key(r["injection"]): self.target_key(content_key("injection", r["injection"]), split)
            for r in self._injections.of(key)
            if "injection" in r
        }
        out = []
        for row in rows:
            for n, made in enumerate(row["twins"]):
                of = hints.get(_finding_key(made), "")
                told = content_key("twin", content_key("twin", made), split, of, self.ctx.renderer.key, *self._base)
                out.append(TwinPlace(told, of, row["key"], n, made))
        return out

    def anchors(self, key: str, trace: Trace, split: Split) -> list[AnchorItem]:
        """Return the candidates for anchors of a trace."""
        if not self.anchored or split != "train" or not (steps := self._clean(key, trace, split)):
            return []
        section = self.ctx.config.train.anchor
        rng = random.Random(f"anchor:{self.ctx.config.run.seed}:{key}")
        chosen = rng.sample(steps, min(max(section.candidates, section.per_trace), len(steps)))
        return [item for step in chosen if (item := self._anchor(step)) is not None]

    def watched(self) -> list[AnchorItem]:
        """Return steps that are only watched during training: clean held-out traces, and training traces if there are
        no anchors."""
        return [item for item, _ in self.watched_of()]

    def watched_of(self) -> Iterator[tuple[AnchorItem, str]]:
        """Yield the steps that are only watched during training, each with its trace's row key, grouped by trace."""
        if self.ctx.config.train.watch.every == 0:
            return
        splits: tuple[Split, ...] = ("holdout",) if self.anchored else ("holdout", "train")
        for split in splits:
            yield from self._first_watched(split)

    def _first_watched(self, split: Split) -> Iterator[tuple[AnchorItem, str]]:
        """Return `train.watch.steps` steps of a split, trace by trace, drawn only by the seed and each trace."""
        seed, taken, opened = self.ctx.config.run.seed, 0, read.open_traces(self.ctx)
        named = [key for key, of in read.keys(self.ctx) if of == split]
        for key in sorted(named, key=lambda k: (random.Random(f"watch:{seed}:{k}").random(), k)):
            if (found := self.critiques.get(key)) is None or (split == "holdout" and found.findings):
                continue
            for step in self._clean(key, opened(key), split):
                if taken == self.ctx.config.train.watch.steps:
                    return
                if (item := self._anchor(step)) is not None:
                    taken += 1
                    yield item, key

    def _clean(self, key: str, trace: Trace, split: Split) -> list[CleanStep]:
        found = self.critiques.get(key)
        if found is None:
            return []
        taken = {f.step for f in found.findings}
        if split == "train" and self.ctx.config.injecting.steps is not None:
            # a step with a context is trained on, whether or not it errs
            taken |= {i.injection.finding.step for i in inject.loaded(self._injections.of(key), split)}
        return [CleanStep(key, trace, split, k) for k in trace.own_steps if k not in taken]

    def _anchor(self, step: CleanStep) -> AnchorItem | None:
        return _anchor_item(self.ctx, step, self._base)


def hold_items(ctx: RunContext) -> Iterator[AnchorItem]:
    """Yield the steps of hold traces, one at a time; nothing is yielded if the recipe has no term for them."""
    return (item for block in hold_blocks(ctx, 1) for item in block)


def hold_blocks(ctx: RunContext, size: int) -> Iterator[list[AnchorItem]]:
    """Yield lists of the steps of `size` hold traces each; nothing is yielded if the recipe has no term for them."""
    if not any(t.rows == "hold" for t in ctx.config.train.effective_recipe.terms.values()):
        return
    base, lost, wanted = _made_by(ctx, ctx.initial_folder), 0, 0
    for block in chunks(hold.each(ctx), size):
        steps = [CleanStep(key, trace, "train", k) for key, trace in block for k in hold.steps(ctx, key, trace)]
        items = [item for step in steps if (item := _anchor_item(ctx, step, base, "hold")) is not None]
        wanted, lost = wanted + len(steps), lost + len(steps) - len(items)
        yield items
    if lost:
        ctx.console.warn(
            f"{lost} of {wanted} steps of hold traces are left out: they cannot be rendered, or their "
            f"fidelity is not in train.fidelity ({', '.join(ctx.config.train.fidelity)})"
        )


@dataclass(frozen=True)
class CleanStep:
    """Hold a step that the student produced and that has no finding."""

    key: str
    trace: Trace
    split: Split
    step: int


def _anchor_item(
    ctx: RunContext, step: CleanStep, base: Sequence[Any], kind: TargetKind = "anchor"
) -> AnchorItem | None:
    """Return the item to score for a clean step; None if it cannot be rendered, or its fidelity is not allowed in
    training."""
    try:
        rendered = ctx.renderer.step(step.trace, step.step)
    except HintdistillError as error:
        ctx.console.warn(f"no {kind}: {error.message}")
        return None
    if rendered.fidelity not in ctx.config.train.fidelity:
        return None
    key = content_key(kind, step.key, step.step, ctx.renderer.key, *base)
    return AnchorItem(key, step.trace.id, step.step, rendered, step.split, kind)

"""What lies ahead of a run, without weights: its traces, injections, anchors and rows as token ids.

The stages that need no model of the student run for real, in a folder that is thrown away; what the run folder holds already
(critiques, injections, targets) is taken from there. So what is counted is what would be read.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hintdistill.config import RunConfig
from hintdistill.core.errors import HintdistillError
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.types import Trace
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.pipeline import critique, inject, outcome, read, report, rescore, train
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.planning.histogram import Histogram, RowLength, Slot, rows
from hintdistill.planning.shape import ModelShape
from hintdistill.rescoring.scorer import Scorer
from hintdistill.rescoring.stored import StoredTargets
from hintdistill.training.reward import OutcomeData

FREE = ("rules", "recorded", "checker")
"""Critics that cost nothing to ask."""


@dataclass(frozen=True)
class Ahead:
    """What the stages would work on."""

    source: str
    """Where the injections come from."""
    lengths: dict[str, Histogram]
    """Of traces, steps and hints, tokens."""
    traces: int
    asked: dict[str, dict[str, int]]
    """Requests and prompt tokens of each critic that is an LLM, at most."""
    calls: list[list[ScoreRequest]]
    """Rescoring: the engine's calls, in order."""
    targets: int
    waiting: int
    """Tokens of all that is to be scored."""
    entries: tuple[int, int]
    """Kept entries: of all targets, of the largest parquet part."""
    rows: list[RowLength]
    watched: list[RowLength]
    """What is read while training and never trained on."""
    after: list[list[ScoreRequest]]
    """Report: scored steps once more under the corrected student."""
    off_target: list[list[ScoreRequest]]
    """Report: steps that both models read."""
    steps: float
    """Steps of a trace, mean."""


class _Paper(RunContext):
    """A run without weights: its engines know how long a sequence may be, and nothing else."""

    shape: ModelShape

    def engine(self, folder: Path) -> TransformersEngine:
        """Something that has a `max_length`; whatever else is asked of it is an error."""
        return cast("TransformersEngine", SimpleNamespace(max_length=self.shape.max_length))


def gather(config: RunConfig, shape: ModelShape, console: Console | None = None) -> Ahead:
    """Read, critique with what costs nothing, inject, and lay out what follows.

    Raises:
        HintdistillError: what these stages raise.
    """
    console = console or Console(quiet=True)
    with _scratch(config) as folder:
        have = {stage for stage in ("critique", "rescore") if RunDir(folder).index(stage) is not None}
        use = (
            config.critic.use if "critique" in have else tuple(c for c in config.critic.use if c in FREE) or ("rules",)
        )
        settings = config.model_copy(update={"critic": config.critic.model_copy(update={"use": use})})
        ctx = _Paper(settings, RunDir.create(folder, settings, resume=True), console)
        ctx.shape = shape
        try:
            read.run(ctx)
            outcome.require_outcomes(ctx)
            asked = _asked(config, ctx)
            if "critique" not in have:
                critique.run(ctx)
            inject.run(ctx)
            targets = rescore.load(ctx) if "rescore" in have else None
            return _lay_out(ctx, asked, targets, _source(config, use, have))
        finally:
            ctx.rundir.close()


@contextlib.contextmanager
def _scratch(config: RunConfig) -> Iterator[Path]:
    """A folder to work in, with what `run.dir` holds of the stages before training."""
    with tempfile.TemporaryDirectory(prefix="hintdistill-plan-") as name:
        folder = Path(name) / "run"
        held = None if config.run.dir is None else Path(config.run.dir)
        if held is not None and RunDir(held).is_run():
            folder.mkdir()
            for path in held.glob("*.jsonl"):
                shutil.copy2(path, folder / path.name)
            for part in ("index", "targets"):
                if (held / part).is_dir():
                    shutil.copytree(held / part, folder / part)
            shutil.copy2(held / "manifest.json", folder / "manifest.json")
        yield folder


def _source(config: RunConfig, use: Sequence[str], have: set[str]) -> str:
    if "rescore" in have:
        return f"targets of {config.run.dir}"
    if "critique" in have:
        return f"critiques of {config.run.dir}; every hint taken as accepted"
    left = [c for c in config.critic.use if c not in use]
    said = f"findings of {', '.join(use)}; every hint taken as accepted"
    return said if not left else f"estimated, because {', '.join(left)} is not asked here: {said}"


def _asked(config: RunConfig, ctx: RunContext) -> dict[str, dict[str, int]]:
    from hintdistill.critics.llm import LLMCritic

    out = {}
    named = RunContext(config, RunDir(Path()), Console(quiet=True))
    traces = [trace for _, trace, _ in read.load(ctx)]
    for critic in critique.critics(named):
        if isinstance(critic, LLMCritic):
            each = [critic.estimate(t) for t in traces]
            out[critic.name] = {
                "requests": sum(e.requests for e in each),
                "prompt_tokens": sum(e.prompt_tokens for e in each),
            }
    return out


def _lay_out(ctx: _Paper, asked: dict[str, dict[str, int]], targets: StoredTargets | None, source: str) -> Ahead:
    hints, anchors = rescore.hint_items(ctx), rescore.anchor_items(ctx)
    size = ctx.config.rescore.part_rows
    hint_requests = [Scorer.requests(h.key, h.injection) for h in hints]
    steps = [a.rendered for a in anchors]
    plain = [Scorer.request(r.context_ids + r.step_ids, len(r.step_ids), None, None) for r in steps]
    calls = [[r for some in hint_requests[at : at + size] for r in some] for at in range(0, len(hints), size)]
    calls += [plain[at : at + size] for at in range(0, len(plain), size)]
    ended = outcome.outcome_data(ctx)
    if targets is not None:
        trained = train.row_lengths(train.selected(ctx, targets), ctx.config.train, ended)
    else:
        trained = rows([*_all_slots(ctx), *train.outcome_slots(ended)])
    watched = _watched(ctx, targets, ended) if targets is not None else _perhaps_watched(ctx)
    if ctx.config.train.watch.every == 0:
        watched = []
    kept = _entries(ctx, targets, hint_requests, plain)
    after = [[some[0] for some in hint_requests[at : at + 64]] for at in range(0, len(hints), 64)]
    sets = report.off_target_sets(ctx)
    off = [requests[at : at + 32] for requests in sets.values() for at in range(0, len(requests), 32)]
    traces = [trace for _, trace, _ in read.load(ctx)]
    return Ahead(
        source=source,
        traces=len(traces),
        asked=asked,
        calls=calls,
        targets=len(hints) + len(anchors),
        lengths={
            "trace": Histogram.of(n for t in traces if (n := _length(ctx, t))),
            "step": Histogram.of([len(h.injection.step_ids) for h in hints] + [len(r.step_ids) for r in steps]),
            "hint": Histogram.of(len(h.injection.block_ids) for h in hints),
        },
        waiting=_waiting(hints, plain),
        entries=kept,
        rows=trained,
        watched=rows(watched),
        after=after,
        off_target=off,
        steps=sum(len(t.step_indices) for t in traces) / max(1, len(traces)),
    )


def _waiting(hints: Sequence[rescore.HintItem], plain: Sequence[ScoreRequest]) -> int:
    """Tokens of all that waits to be scored, as it is stored: a context once, and each block."""
    made = [h.injection for h in hints]
    blocks = sum(len(i.block_ids) + sum(len(p.block_ids) for p in i.placebos) for i in made)
    return blocks + sum(len(i.plain_ids) for i in made) + sum(r.end for r in plain)


def _length(ctx: RunContext, trace: Trace) -> int:
    """Tokens of a trace up to the end of its last step; 0 where the template refuses it."""
    try:
        last = ctx.renderer.step(trace, len(trace.step_indices) - 1)
    except HintdistillError:
        return 0
    return len(last.context_ids) + len(last.step_ids)


def _all_slots(ctx: RunContext) -> list[Slot]:
    """What training would take at most: every injection of the training split, and as many anchors as it uses."""
    config = ctx.config.train
    out = [
        Slot(i.trace_id, i.context_ids, i.step_ids, i.insert_at, i.block_ids)
        for _, i, split in rescore.hint_items(ctx)
        if split == "train" and i.fidelity in config.fidelity
    ]
    taken: dict[str, int] = {}
    anchored = any(t.rows == "anchor" for t in config.effective_recipe.terms.values())
    for _, trace_id, _, rendered, split in rescore.anchor_items(ctx):
        if split != "train" or not anchored:
            # stored to be looked at while training
            continue
        taken[trace_id] = taken.get(trace_id, 0) + 1
        if taken[trace_id] <= config.anchor.per_trace:
            out.append(Slot(trace_id, rendered.context_ids, rendered.step_ids))
    return out


def _watched(ctx: RunContext, targets: StoredTargets, ended: OutcomeData) -> list[Slot]:
    """What the training reads of stored targets to watch itself."""
    from hintdistill.training.watch import subsample

    sets, steps = train.watched(ctx, train.selected(ctx, targets), ended, targets), ctx.config.train.watch.steps
    chosen = [t for some in (sets.off_target, sets.heldout) for t in subsample(some, steps, ctx.config.run.seed)]
    return [Slot(t.trace_id, t.context_ids, t.step_ids) for t in chosen]


def _perhaps_watched(ctx: RunContext) -> list[Slot]:
    """As many clean steps of either split as will be watched; which ones is known when they are scored."""
    steps = ctx.config.train.watch.steps
    of: dict[str, list[Slot]] = {"train": [], "holdout": []}
    for _, trace_id, _, rendered, split in rescore.anchor_items(ctx):
        of[split].append(Slot(trace_id, rendered.context_ids, rendered.step_ids))
    return [*of["train"][-steps:], *of["holdout"][:steps]]


def _entries(
    ctx: RunContext,
    targets: StoredTargets | None,
    hints: Sequence[Sequence[ScoreRequest]],
    anchors: Sequence[ScoreRequest],
) -> tuple[int, int]:
    """Kept entries of all targets and of the largest part; stored ones are counted."""
    k, size = ctx.config.rescore.top_k, ctx.config.rescore.part_rows
    if targets is not None:
        kept = {i: t.support_ids.size for i, t in targets.by_part()}
        each = [kept[i] for i in range(len(targets))]
    else:
        # two views' top entries overlap: between k and 2 k, a third more than one's in the traces that were looked at
        each = [(some[0].end - some[0].start) * k * 4 // 3 for some in hints]
        each += [(r.end - r.start) * (k + 1) for r in anchors]
    return sum(each), max((sum(each[at : at + size]) for at in range(0, len(each), size)), default=0)


def rollout_tokens(config: RunConfig, lengths: dict[str, Histogram], steps: float) -> dict[str, Any] | None:
    """What measuring success in the environment would read and sample, if its episodes are like the traces."""
    section = config.rollout
    if section.environment is None:
        return None
    from hintdistill.rollouts.evaluate import load_suite, tasks_of

    suite = load_suite(section.environment)
    episodes = 2 * sum(len(tasks_of(suite, split, section.limit)) for split in section.splits)
    trace, step = lengths["trace"], lengths["step"]
    mean = trace.total / max(1, trace.count)
    sampled = round(episodes * steps * step.total / max(1, step.count))
    return {"episodes": episodes, "read": round(episodes * steps * mean * 0.75), "sampled": sampled}

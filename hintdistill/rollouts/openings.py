"""Construct episodes before any is played: an environment's opening messages, followed by the largest possible number
of tokens.

Every episode is assumed to take `rollout.max_steps` steps of `rollout.max_new_tokens` tokens, which include the
environment's answers, and to have one error, in its last step, with a hint of `HINT_TOKENS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from hintdistill.config import RunConfig
from hintdistill.core.lines import Histogram
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.types import Finding, Injection, PlaceboBlock
from hintdistill.injection.rendering import RenderedStep, Renderer
from hintdistill.rescoring.scorer import AnchorItem, HintItem
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.evaluate import load_suite, tasks_of
from hintdistill.rollouts.measure import Setting, measured_from, played_from

HINT_TOKENS = 64
"""Assumed number of tokens in a hint that was not written yet."""


@dataclass
class LaidOut:
    """Hold the items of these episodes that would be scored."""

    openings: list[int] = field(default_factory=list)
    """Number of tokens in each episode's opening."""
    hints: list[HintItem] = field(default_factory=list)
    anchors: list[AnchorItem] = field(default_factory=list)


def opening_ids(suite: TaskSuite, renderer: Renderer, task: str) -> list[int]:
    """Return the token ids that the student reads before its first step in a task."""
    start = suite.make().reset(task)
    return renderer.encode(renderer.render(start.messages, start.tools, header=True))


def lay_out(
    suite: TaskSuite, renderer: Renderer, tasks: Sequence[str], config: RunConfig, shape: ModelShape
) -> LaidOut:
    """Construct an episode of each task, in order; the model's number of positions bounds its length."""
    section, out = config.rollout, LaidOut()
    step = _step_tokens(config, shape)
    anchored = any(t.rows == "anchor" for t in config.train.effective_recipe.terms.values())
    anchors = min(config.train.anchor.per_trace, section.max_steps - 1) if anchored else 0
    for n, (opening, ids) in enumerate(_episodes(suite, renderer, tasks, config, shape)):
        out.openings.append(opening)
        out.hints.append(HintItem(f"hint-{n}", _hint(f"episode-{n}", ids, step, config.rescore.placebo_count), "train"))
        for k in range(anchors):
            end = len(ids) - (k + 1) * step
            if end - step > 0:
                number = section.max_steps - 2 - k
                rendered = _rendered(ids, end, step)
                out.anchors.append(AnchorItem(f"anchor-{n}-{k}", f"episode-{n}", number, rendered, "train"))
    return out


def lay_out_held(
    suite: TaskSuite, renderer: Renderer, tasks: Sequence[str], config: RunConfig, shape: ModelShape
) -> list[AnchorItem]:
    """Construct the items of `train.hold.split`: the last `per_trace` steps of an episode of each task at its full
    length."""
    out, step = list[AnchorItem](), _step_tokens(config, shape)
    for n, (_, ids) in enumerate(_episodes(suite, renderer, tasks, config, shape)):
        for k in range(min(config.train.hold.per_trace, config.rollout.max_steps)):
            end = len(ids) - k * step
            if end - step > 0:
                number = config.rollout.max_steps - 1 - k
                rendered = _rendered(ids, end, step)
                out.append(AnchorItem(f"hold-{n}-{k}", f"hold-episode-{n}", number, rendered, "train", "hold"))
    return out


def _step_tokens(config: RunConfig, shape: ModelShape) -> int:
    return min(config.rollout.max_new_tokens, shape.max_length // 2)


def _rendered(ids: tuple[int, ...], end: int, step: int) -> RenderedStep:
    return RenderedStep(ids[: end - step], ids[end - step : end], (), "ids", (), cast("Any", None), 0)


def _episodes(
    suite: TaskSuite, renderer: Renderer, tasks: Sequence[str], config: RunConfig, shape: ModelShape
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the number of tokens in each task's opening, and the ids of an episode that reaches every limit."""
    section, step = config.rollout, _step_tokens(config, shape)
    openings = {task: opening_ids(suite, renderer, task) for task in dict.fromkeys(tasks)}
    for n, task in enumerate(tasks):
        opening = openings[task]
        longest = min(len(opening) + section.max_steps * section.max_new_tokens, shape.max_length - HINT_TOKENS)
        # what is said is unknown; ids that differ by episode share no more than the opening
        said = np.random.default_rng(n).integers(0, shape.vocab, max(step + 1, longest - len(opening))).tolist()
        yield len(opening), tuple([*opening, *said][:longest])


def _hint(name: str, ids: tuple[int, ...], step: int, placebos: int) -> Injection:
    """Return a hint above the last step."""
    context, block = ids[:-step], tuple(ids[n % len(ids)] for n in range(HINT_TOKENS))
    others = [(*block[n + 1 :], *block[: n + 1]) for n in range(placebos)]
    return Injection(
        trace_id=name,
        finding=Finding(step=0, error_class="assumed"),
        hint="",
        context_ids=context,
        insert_at=len(context),
        block_ids=block,
        step_ids=ids[-step:],
        span=(0, step),
        action_start=0,
        fidelity="ids",
        placement="message",
        placebos=tuple(PlaceboBlock(kind="shuffled", text="", insert_at=len(context), block_ids=b) for b in others),
    )


def played_tokens(config: RunConfig, lengths: Mapping[str, Histogram], steps: float) -> dict[str, int] | None:
    """Count the tokens that playing in the environment would read and sample, if its episodes resemble the traces.

    Args:
        steps: mean number of steps per trace.
    """
    section = config.rollout
    if section.environment is None:
        return None
    suite = load_suite(section.environment)
    episodes = sum(len(tasks_of(suite, split, section.limit)) for split in section.splits)
    if config.run.rounds is None:
        episodes *= 2
    else:
        # a round plays its own, and measures greedily (or as configured) and as it samples
        episodes = episodes * len({Setting.of("", how) for how in (measured_from(section), played_from(section))}) + (
            section.sample.episodes if section.source == "environment" else 0
        )
    trace, step = lengths["trace"], lengths["step"]
    mean = trace.total / max(1, trace.count)
    sampled = round(episodes * steps * step.total / max(1, step.count))
    return {"episodes": episodes, "read": round(episodes * steps * mean * 0.75), "sampled": sampled}

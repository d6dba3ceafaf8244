"""Play errands with a set of weights, without a hint and under one; one row of plain data per episode.

A hinted episode is the plain one taken up at its root error with the hint above that one step (`play_hinted`), and so on for
later errors. A placebo stands at the same steps, and `redraw` draws them once more with nothing above them, because a second draw of
a step may be right by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.realmodel.drafted import DraftedGenerator
from hintdistill.config import RunConfig
from hintdistill.core.models import resolve_model
from hintdistill.core.types import Critique, Finding, Injection, Trace
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.rendering import Renderer
from hintdistill.injection.splice import Injector
from hintdistill.prompts import PromptLibrary
from hintdistill.rollouts.evaluate import load_suite
from hintdistill.rollouts.hinted import HintedPlay, play_hinted
from hintdistill.rollouts.measure import options_of, played_from
from hintdistill.rollouts.sampling import Episode, Sampler

ROOT = Path(__file__).resolve().parents[2]
ERRANDS = ROOT / "examples" / "smollm2"
PLACEBO = "Please take care with this step."
Row = dict[str, Any]


@dataclass
class World:
    """A model on the errands, as configs/real.yaml says it is sampled."""

    config: RunConfig
    engine: TransformersEngine
    renderer: Renderer
    suite: Any
    generator: DraftedGenerator

    @classmethod
    def load(cls, config: RunConfig, weights: Path | str | None = None) -> World:
        """Load the model, or `weights` in its place. Raises ModelError, ConfigError."""
        torch.set_num_threads(1)
        assert config.rollout.environment is not None
        folder = resolve_model(str(weights or config.run.model))
        dtype = config.run.dtype
        engine = TransformersEngine.load(folder, dtype, config.run.device, config.rescore.batch_tokens)
        suite, generator = load_suite(config.rollout.environment), DraftedGenerator(engine)
        return cls(config, engine, Renderer.from_pretrained(folder), suite, generator)

    def sampler(self, seed: int) -> Sampler:
        """Samples episodes from the distribution that fresh ones are sampled from, which is frozen (`rollout.sample`)."""
        section = self.config.rollout
        return Sampler(self.generator, self.renderer, options_of(section, played_from(section), seed))

    def plain(self, tasks: Sequence[str], seed: int, say: Callable[[int], None] | None = None) -> list[Episode]:
        """Every task once. What was kept of earlier episodes is dropped, so that they come out the same."""
        self.generator.forget()
        return list(self.sampler(seed).episodes(self.suite, tasks, say))

    def hinted(self, episodes: Sequence[Episode], arm: str, seed: int) -> HintedPlay:
        """The episodes taken up under hints (`level0` to `level2`), under the `placebo`, or with the step drawn anew (`redraw`)."""
        prompts = ERRANDS / "prompts" / (arm if arm.startswith("level") else "level1")
        made = _Unhinted if arm == "redraw" else Injector
        injector = made(self.renderer, PromptLibrary(prompts), self.config.inject, placebos={})
        text = PLACEBO if arm == "placebo" else None

        def judge(traces: Sequence[Trace]) -> dict[str, Critique]:
            out = {}
            for trace in traces:
                found = tuple(f.model_copy(update={"hint": text}) for f in self.suite.check(trace))
                out[trace.id] = Critique(trace_id=trace.id, verdict="findings" if found else "none", findings=found)
            return out

        return play_hinted(self.sampler(seed + 1), self.suite, episodes, judge, injector, passes=6)


class _Unhinted(Injector):
    """Splice nothing: draw the step once more, unchanged."""

    def inject(self, trace: Trace, finding: Finding) -> Injection:
        """See `Injector.inject`."""
        return super().inject(trace, finding).model_copy(update={"block_ids": ()})


def rows_of(suite: Any, episodes: Sequence[Episode]) -> list[Row]:
    """One row an episode: how it ended, its first error, and where its clean steps are."""
    return [_row(suite, e) for e in episodes]


def _row(suite: Any, episode: Episode) -> Row:
    trace = episode.trace
    found = sorted(suite.check(trace), key=lambda f: f.step)
    first = trace.own_steps[0] if trace.own_steps else 0
    steps = [k - first for k in trace.own_steps]
    wrong = {f.step - first for f in found}
    at = min(wrong, default=None)
    return {
        "task": episode.task,
        **suite.facts(episode.task),
        "success": episode.failure is None and (trace.reward or 0.0) > 0.5,
        "steps": len(steps),
        "error": found[0].error_class if found else None,
        "error_at": at,
        "clean_before": at is not None and at > 0,
        "clean_after": at is not None and any(k > at and k not in wrong for k in steps),
        "failure": episode.failure or episode.cut,
    }


def repairs_of(suite: Any, play: HintedPlay) -> list[Row]:
    """One row a step that was decoded under a hint: its class, and whether the checker then finds nothing in it."""
    out = []
    for one in play.corrected:
        # the whole episode is judged: an episode that broke has no step to judge
        wrong = {f.step for f in suite.check(one.episode.trace)}
        broke = one.episode.failure is not None and one.step not in one.episode.trace.own_steps
        out.append({"class": one.finding.error_class, "repaired": not broke and one.step not in wrong})
    return out


def cells(
    world: World, tasks: Sequence[str], arms: Sequence[str], seed: int, done: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of `base` and of arms of `World.hinted` on the same tasks; those in `done` are not played again.

    The plain episodes are played again where an arm needs them: with one seed they come out the same.
    """
    owed = [a for a in arms if a not in done]
    if not owed:
        return
    plain = world.plain(tasks, seed)
    for arm in owed:
        if arm == "base":
            yield arm, {"episodes": rows_of(world.suite, plain)}
            continue
        play = world.hinted(plain, arm, seed)
        yield (
            arm,
            {
                "episodes": rows_of(world.suite, play.episodes),
                "repairs": repairs_of(world.suite, play),
                "unplaced": play.unplaced,
            },
        )

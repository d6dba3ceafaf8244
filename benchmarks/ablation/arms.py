"""The arms: from one round's traces to the rows that are trained on. Arms differ in nothing else, with one exception.

| arm | rows |
|---|---|
| hint | the critic's hint above the erring step, gate on: the method |
| placebo | a generic hint in its place |
| wrong_hint | the hint of another error class in its place |
| random_step | the same hint above a step without an error |
| full_trace | all hints of a trace in its system prompt, loss on every step of it (SDPO-like, arXiv 2601.20802) |
| sft_success | cross-entropy on every step of successful episodes: it sees the success label |
| sft_corrected | cross-entropy on steps that the hinted student sampled in place of erring ones, if the critic has no objection |
| sft_gold | cross-entropy on the right answer in place of erring steps; the environment knows it (`right_text`) |
| gold_steps | cross-entropy on the right answers to as many tasks as there are rows, erred at or not: more warm-up |
| twins | `hint`, and the erring steps held in the twins of their contexts, in which they are right |
| hint_outcome | `hint` beside an outcome reward on every step of the same rollouts, (L_RL + L_D)/2; it sees the success label too |
| stale, foreign, llm_critic | `hint` on traces of the round before, on another policy's traces, with another critic |
| replay | `hint` on single fresh steps of the student at the steps of those other traces (`rollout.source: replay`) |
| step:p, alarm:p, hint:p, … | `hint` with a critic that is wrong that often, gate on or off; the kinds are in settings.py |

The controls (placebo, wrong_hint, random_step) have the gate off, because it would reject what they are made of. Every arm
has the same anchors, as many optimiser steps, and at most as many rows; rows are drawn without regard to what they hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.ablation import critic_noise
from benchmarks.ablation.settings import parse_noise
from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError
from hintdistill.core.scores import Target
from hintdistill.core.types import Critique, Trace
from hintdistill.injection.hints import seed_of
from hintdistill.injection.splice import Injector
from hintdistill.pipeline import critique, inject, read, rescore, variants
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.corrections import corrected_step
from hintdistill.pipeline.stages import run_stages
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.variants import Found, Material, judge
from hintdistill.rollouts.hinted import play_hinted
from hintdistill.rollouts.measure import options_of
from hintdistill.rollouts.sampling import Episode, Sampler

DISTILLED = ("hint", "twins", "hint_outcome", "stale", "foreign", "replay", "llm_critic")


@dataclass(frozen=True)
class RoundData(Material):
    """One round's traces, read and critiqued, before an arm makes its rows of them."""

    episodes: Sequence[Episode]
    anchors_per_trace: int
    """Clean steps per trace that are held in place."""

    def anchors(self, erring_traces: bool = True) -> list[Target]:
        """Steps without a finding, held to the initial policy."""
        return variants.anchors(self, self.anchors_per_trace, erring_traces)


def roots_of(ctx: RunContext, traces: Sequence[Trace], critiques: Mapping[str, Critique]) -> Found:
    """The root findings that may go on."""
    section = ctx.config.critic
    return [
        (trace, finding)
        for trace in traces
        if trace.id in critiques
        for finding, skipped in inject.select(
            critiques[trace.id], section.max_per_trace, section.min_confidence, section.select
        )
        if skipped is None
    ]


def critiqued(ctx: RunContext, episodes: Sequence[Episode], salt: str, anchors_per_trace: int) -> RoundData:
    """Read and critique a round's traces in its own run folder."""
    run_stages(ctx, until="critique")
    loaded, by_key = read.load(ctx), critique.load(ctx)
    traces = [t for _, t, _ in loaded]
    critiques = {t.id: by_key[k] for k, t, _ in loaded if k in by_key}
    return RoundData(ctx, traces, critiques, roots_of(ctx, traces, critiques), salt, episodes, anchors_per_trace)


def targets_of(arm: str, data: RoundData, folder: Path) -> list[Target]:
    """The targets of an arm, anchors included, before rows are drawn from them.

    Args:
        folder: where a run folder of the arm's own may be made.
    """
    ctx, library, found = data.ctx, data.ctx.library, data.found
    if arm in DISTILLED:
        return [*rescored(ctx), *data.anchors()]
    if arm == "placebo":
        return [*variants.hinted(data, found, arm, placebo=True), *data.anchors()]
    if arm == "wrong_hint":
        return [*variants.hinted(data, variants.wrong_hints(found, library, 1.0, data.salt), arm), *data.anchors()]
    if arm == "random_step":
        moved = variants.other_steps(found, data.traces, data.wrong, library, 1.0, data.salt)
        return [*variants.hinted(data, moved, arm), *data.anchors()]
    if arm == "full_trace":
        return [*variants.full_trace(data), *data.anchors(erring_traces=False)]
    if arm == "sft_success":
        good = [e.trace for e in data.episodes if e.failure is None and (e.trace.reward or 0.0) > 0.5]
        steps = [(t, k) for t in good for k in range(len(t.step_indices))]
        return [*variants.sft(ctx, steps), *data.anchors()]
    if arm == "sft_corrected":
        return [*variants.sft(ctx, corrected_steps(data)), *data.anchors()]
    if arm == "sft_gold":
        return [*variants.sft(ctx, right_steps(data, [t for t, _ in found])), *data.anchors()]
    if arm == "gold_steps":
        played = [t for t in data.traces if t.own_steps]
        if left := len(data.traces) - len(played):
            ctx.console.warn(f"{left} of {len(data.traces)} traces have no step, so no right answer can take its place")
        return [*variants.sft(ctx, right_steps(data, played)), *data.anchors()]
    return _noisy(arm, data, folder)


def rescored(ctx: RunContext) -> list[Target]:
    """Inject and rescore in the context's run folder."""
    run_stages(ctx, first="inject", until="rescore")
    return list(rescore.load(ctx))


def noisy_findings(arm: str, data: RoundData) -> Found:
    """The round's findings as the worse critic of a noise arm gives them."""
    library, found = data.ctx.library, data.found
    kind, share, _ = parse_noise(arm)
    if kind == "hint":
        return variants.wrong_hints(found, library, share, data.salt)
    if kind == "step":
        return variants.other_steps(found, data.traces, data.wrong, library, share, data.salt)
    if kind == "alarm":
        return critic_noise.false_alarms(found, data.traces, data.wrong, library, share, data.salt)
    if kind.startswith("miss-"):
        return critic_noise.missed(found, kind.removeprefix("miss-"), share, data.salt)
    return critic_noise.plausible(found, data.critiques, library, kind, share, data.salt)


def _noisy(arm: str, data: RoundData, folder: Path) -> list[Target]:
    """The method on a worse critic's findings: those are written to a file and take the critic's place."""
    found, (_, _, gate) = noisy_findings(arm, data), parse_noise(arm)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"trace": t.id, **f.model_dump(mode="json", exclude_defaults=True)} for t, f in found]
    (folder / "findings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    config = _with(data.ctx.config, folder, gate)
    rundir = RunDir.create(folder / "run", config, resume=True)
    try:
        ctx = RunContext(config, rundir, data.ctx.console, data.ctx.engines)
        own = critiqued(ctx, data.episodes, data.salt, data.anchors_per_trace)
        # a wrong critic is wrong about the anchors as well
        return [*rescored(ctx), *own.anchors()]
    finally:
        rundir.close()


def _with(config: RunConfig, folder: Path, gate: bool) -> RunConfig:
    data = config.model_dump(mode="json")
    # several findings may now be about one trace; how many the critic may have was decided before
    data["critic"] |= {"use": ["recorded"], "max_per_trace": 64, "min_confidence": 0.0}
    data["critic"]["recorded"] = {"path": str(folder / "findings.jsonl")}
    if not gate:
        data["rescore"]["gate"]["enabled"] = False
    return RunConfig.model_validate(data)


def corrected_steps(data: RoundData) -> list[tuple[Trace, int]]:
    """Steps that the hinted student sampled in place of erring ones; those the critic finds fault with are left out."""
    ctx = data.ctx
    options = options_of(ctx.config.rollout, ctx.config.rollout.sample.temperature, seed_of(data.salt) % 2**31)
    # one step is enough, so the episode ends after it
    sampler = Sampler(ctx.engine(ctx.model_folder), ctx.renderer, replace(options, max_steps=1))
    injector = Injector(ctx.renderer, ctx.library, ctx.config.inject, ctx.config.rescore.placebos)
    known = {
        id_: Critique(trace_id=id_, verdict="findings", findings=tuple(f for t, f in data.found if t.id == id_))
        for id_ in {t.id for t, _ in data.found}
    }
    played = play_hinted(
        sampler,
        suite_of(ctx),
        [Episode(t.task_id or t.id, t) for t in data.traces],
        lambda _: known,
        injector,
        passes=1,
    )
    judged = judge(critique.critics(ctx))([c.episode.trace for c in played.corrected])
    out = []
    for c in played.corrected:
        verdict = judged.get(c.episode.trace.id)
        if (
            verdict is not None
            and c.step < len(c.episode.trace.step_indices)
            and not any(f.step == c.step for f in verdict.findings)
        ):
            out.append((c.episode.trace, c.step))
    return out


def right_steps(data: RoundData, traces: Sequence[Trace]) -> list[tuple[Trace, int]]:
    """The traces with the right answer in place of their one step, as the student would write it.

    Raises:
        ConfigError: the environment does not say the right answers, or a trace has more than one step, so that what is right at one
            of them depends on the others.
    """
    ctx, suite = data.ctx, suite_of(data.ctx)
    if not hasattr(suite, "right_text"):
        raise ConfigError(f"{ctx.config.rollout.environment} has no `right_text`, which the arms on right answers need")
    sampler = Sampler(ctx.engine(ctx.model_folder), ctx.renderer, options_of(ctx.config.rollout, 0.0, 0))
    end, out = ctx.renderer.tokenizer.eos_token_id, []
    for trace in traces:
        if len(trace.own_steps) != 1:
            raise ConfigError(
                f"{trace.id} has {len(trace.own_steps)} steps; `right_text` is the answer of a single one"
            )
        step = trace.own_steps[0]
        ids = [*ctx.renderer.encode(suite.right_text(trace.task_id or trace.id)), end]
        right, why = corrected_step(sampler, trace, step, ctx.renderer.step(trace, step).context_ids, ids)
        if right is None:
            raise ConfigError(f"the right answer of {trace.id} is {why}")
        out.append((right, step))
    return out


def suite_of(ctx: RunContext) -> Any:
    """The environment of the configuration."""
    from hintdistill.rollouts.evaluate import load_suite

    assert ctx.config.rollout.environment is not None
    return load_suite(ctx.config.rollout.environment)

"""Measure what all arms of a seed share: the initial policy, the hinted student, and the hints before any training."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation import arms, critic_noise
from benchmarks.ablation.bench import Bench
from hintdistill.core.errors import HintdistillError
from hintdistill.core.scores import ScoreRequest, Target
from hintdistill.core.storage import content_key, write_atomic
from hintdistill.injection.hints import seed_of
from hintdistill.injection.splice import Injector
from hintdistill.pipeline import critique
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.playing import episode_of, episode_row
from hintdistill.pipeline.preflight import predict
from hintdistill.pipeline.variants import Material, anchors, full_trace, judge, scorer_of
from hintdistill.rescoring.scorer import HintItem
from hintdistill.rescoring.store import TargetStore
from hintdistill.rollouts.evaluate import outcome_of, tasks_of
from hintdistill.rollouts.hinted import play_hinted
from hintdistill.rollouts.measure import Setting, describe, off_target_sets, options_of, step_requests
from hintdistill.rollouts.sampling import Episode, Sampler


def run_shared(bench: Bench) -> dict[str, Any]:
    """Round one's episodes, the initial and the hinted student, and the hints before any training."""
    episodes = bench.loop.episodes(1, bench.initial)
    played = {s: _played(bench, s) for s in bench.settings()}
    _write_off_target(bench, played)
    tested = bench.settings()[: len(bench.ablate.temperatures)]
    with bench.context(1, bench.initial) as ctx:
        data = arms.critiqued(ctx, episodes, bench.salt(1), bench.anchors_per_trace)
        targets = arms.rescored(ctx)
        held_targets(bench, ctx, bench.folder)
        return {
            "initial": {
                s.name: [asdict(outcome_of(bench.loop.suite, e)) for e in found] for s, found in played.items()
            },
            "hinted": {s.name: _hinted(bench, ctx, s, played[s]) for s in tested},
            "success_in_rollouts": float(np.mean([(e.trace.reward or 0.0) > 0.5 for e in episodes])),
            "effects": hint_effects(data, targets),
            "predicted": [asdict(p) for p in predict(targets)],
        }


def _played(bench: Bench, setting: Setting) -> list[Episode]:
    """The initial policy's episodes of a setting; the same tasks and draws that every arm's student is measured with."""
    patterns, limit = bench.tasks_of(setting)
    tasks = tasks_of(bench.loop.suite, setting.split, limit, patterns)
    options = options_of(bench.config.rollout, setting.temperature, bench.job.seed)
    base = content_key("played", bench.loop.top.model_key.weights, tasks, describe(options))
    store = bench.rundir.store("played")
    have = store.by_key()
    keys = [f"{base}-{i}" for i in range(len(tasks))]
    if any(k not in have for k in keys):
        sampler = Sampler(bench.loop.top.engine(bench.initial), bench.loop.top.renderer, options)
        episodes = list(sampler.episodes(bench.loop.suite, tasks))
        store.extend([episode_row(k, e) for k, e in zip(keys, episodes, strict=True)])
        return episodes
    return [episode_of(have[k]) for k in keys]


def held_targets(bench: Bench, ctx: RunContext, folder: Path) -> list[Target]:
    """Anchors from the initial policy's episodes on the tasks of `ablate.hold`; made where `folder` does not have them yet."""
    hold, sample = bench.ablate.hold, bench.config.rollout.sample
    if not hold.tasks:
        return []
    store = TargetStore(folder / "held")
    if not store.parts():
        tasks = tasks_of(bench.loop.suite, sample.split, None, hold.tasks)
        random.Random(seed_of("hold", str(bench.job.seed))).shuffle(tasks)
        options = options_of(bench.config.rollout, sample.temperature, bench.job.seed)
        sampler = Sampler(bench.loop.top.engine(bench.initial), bench.loop.top.renderer, options)
        played = sampler.episodes(bench.loop.suite, tasks[: hold.episodes])
        # a round may play the same task, and its trace has another name
        traces = [e.trace.model_copy(update={"id": f"held:{e.trace.id}"}) for e in played if e.failure is None]
        data = Material(ctx, traces, judge(critique.critics(ctx))(traces), [], bench.salt(1))
        store.append(anchors(data, bench.ablate.rows))
    return list(store.read())


def _hinted(bench: Bench, ctx: RunContext, setting: Setting, played: Sequence[Episode]) -> list[dict[str, Any]]:
    """Play every task with the critic's hint above each erring step."""
    suite, options = bench.loop.suite, options_of(bench.config.rollout, setting.temperature, bench.job.seed)
    sampler = Sampler(ctx.engine(bench.initial), ctx.renderer, options)
    injector = Injector(ctx.renderer, ctx.library, ctx.config.inject, ctx.config.rescore.placebos)
    return [
        asdict(outcome_of(suite, e))
        for e in play_hinted(sampler, suite, played, judge(critique.critics(ctx)), injector).episodes
    ]


# -- effects -----------------------------------------------------------------------------------------------------------------


def hint_effects(data: arms.RoundData, targets: Sequence[Target]) -> dict[str, list[float]]:
    """Change of the decision token's log-probability under the hint, nats, one number per finding.

    `all` findings and `accepted` ones in the words the gate judged, and both again in other words: what the gate accepted is
    better than it will prove, because it was accepted for it; in other words it is not. `placebo`: what the placebos do to the same token.
    `system_prompt`: with all hints of the trace in the system prompt, as the full-trajectory arm reads them.
    """
    hints = [t for t in targets if t.kind == "hint"]
    accepted = {(t.trace_id, t.step) for t in hints if t.accepted}
    injector = Injector(data.ctx.renderer, data.ctx.library, data.ctx.config.inject, data.ctx.config.rescore.placebos)
    items = []
    for trace, finding in critic_noise.other_wording(data.found, data.ctx.library):
        try:
            items.append(HintItem(f"other:{trace.id}:{finding.step}", injector.inject(trace, finding), "train"))
        except HintdistillError as error:
            data.ctx.console.warn(f"other wording: {error.message}")
    scorer, size = scorer_of(data.ctx), data.ctx.config.rescore.part_rows
    others = [t for at in range(0, len(items), size) for t in scorer.score(items[at : at + size])]
    system = [t for t in full_trace(data, erring_steps_only=True) if t.error_class != "none"]
    return {
        "all": [_effect(t) for t in hints],
        "accepted": [_effect(t) for t in hints if t.accepted],
        "all_other_wording": [_effect(t) for t in others],
        "accepted_other_wording": [_effect(t) for t in others if (t.trace_id, t.step) in accepted],
        "placebo": [_placebo(t, p.hint_effect) for t in hints for p in t.placebos],
        "system_prompt": [_effect(t) for t in system],
    }


def _effect(target: Target) -> float:
    return target.decision.effect if target.decision else 0.0


def _placebo(target: Target, effects: np.ndarray) -> float:
    """Return what a placebo does to the token at which the hint changes course."""
    return float(effects[target.decision.position]) if target.decision else 0.0


# -- steps that no row touches -----------------------------------------------------------------------------------------------


def off_target_requests(bench: Bench) -> dict[str, list[ScoreRequest]]:
    """Return the same steps for every arm of a seed: the initial policy's own, kept with the other shared results."""
    stored = json.loads((bench.shared / "off_target.json").read_text(encoding="utf-8"))
    return {name: [ScoreRequest(np.array(i), a, b) for i, a, b in rows] for name, rows in stored.items()}


def _write_off_target(bench: Bench, played: dict[Setting, list[Episode]]) -> None:
    sets = _off_target(bench, played)
    plain = {name: [[r.ids.tolist(), r.start, r.end] for r in requests] for name, requests in sets.items()}
    write_atomic(bench.folder / "off_target.json", json.dumps(plain))


def _off_target(bench: Bench, played: dict[Setting, list[Episode]]) -> dict[str, list[ScoreRequest]]:
    a, loop, limit, seed = bench.ablate, bench.loop, bench.config.report.off_target_steps, bench.job.seed
    hottest = max(a.temperatures)
    tested = played[Setting(a.test_split, hottest)]
    sets = off_target_sets(loop.suite, loop.top.renderer, tested, limit, seed)
    if a.clean_split:
        clean = played[Setting(a.clean_split, hottest)]
        sets["clean_tasks"] = step_requests(loop.top.renderer, clean, limit, seed)
    near = [e for split in a.near_splits for e in played[Setting(split, min(a.temperatures))]]
    if near:
        sets["near_misses"] = step_requests(loop.top.renderer, near, limit, seed)
    return {name: requests for name, requests in sets.items() if requests}

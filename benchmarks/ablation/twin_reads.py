"""Measure a student for the benchmark of twins: near-miss pairs, held-out errors, movement, the hint shown again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.bench import Bench
from benchmarks.ablation.twin_settings import SUITE, TwinsSection
from hintdistill.core.errors import HintdistillError
from hintdistill.core.importing import load_object
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.storage import write_atomic
from hintdistill.core.types import Critique, Trace
from hintdistill.injection.splice import Injector
from hintdistill.pipeline import critique
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.playing import episode_of
from hintdistill.pipeline.variants import judge, scorer_of
from hintdistill.rescoring.drift import movement
from hintdistill.rescoring.scorer import HintItem
from hintdistill.rollouts.evaluate import outcome_of, outcomes
from hintdistill.rollouts.measure import options_of, step_requests
from hintdistill.rollouts.sampling import Branch, Episode, Sampler

SHARED_READS = "twin_reads.json"


def suite_name(name: str) -> Any:
    """An object of the near-miss suite."""
    return load_object(f"{SUITE}:{name}", "suite", "name")


def _pairs(section: TwinsSection) -> list[Any]:
    return list(suite_name("read_pairs")(per_family=section.pairs_per_family))


def _sampler(bench: Bench, student: Path, temperature: float) -> Sampler:
    options = options_of(bench.config.rollout, temperature, bench.job.seed)
    return Sampler(bench.loop.top.engine(student), bench.loop.top.renderer, options)


def read_pairs_of(bench: Bench, student: Path, section: TwinsSection) -> dict[str, bool]:
    """Return for each task of the near-miss suite whether it was right, greedy."""
    pairs, engine, renderer = _pairs(section), bench.loop.top.engine(student), bench.loop.top.renderer
    options = options_of(bench.config.rollout, 0.0, bench.job.seed)
    tasks = suite_name("tasks_of_pairs")(pairs)
    right: dict[str, bool] = suite_name("right_tasks")(
        outcomes(engine, renderer, suite_name("EditedToolworld")(), tasks, options)
    )
    return right


# -- made once per seed, with the initial policy -----------------------------------------------------------------------


def write_shared_reads(bench: Bench, ctx: RunContext, section: TwinsSection) -> None:
    """Store what every arm is read on: decision tokens, near-miss steps, and erring steps with their hints."""
    traces = _erring_candidates(bench)
    document = _heldout(bench, ctx, traces, section.heldout)
    document["near"] = _near_steps(bench, section)
    write_atomic(bench.folder / SHARED_READS, json.dumps(document))


def _erring_candidates(bench: Bench) -> list[Trace]:
    """The initial policy's episodes on the test split at the highest temperature, from the ones that were played for success."""
    known = set(bench.loop.suite.splits()[bench.ablate.test_split])
    hottest = max(bench.ablate.temperatures)
    rows = [episode_of(r) for r in bench.rundir.store("played").rows()]
    found = [e.trace for e in rows if e.failure is None and e.task in known]
    # the test split was played at every temperature, in that order; the last time a task comes is the hottest
    assert hottest == bench.ablate.temperatures[-1], "temperatures rise"
    return list({t.id: t for t in found}.values())


def _heldout(bench: Bench, ctx: RunContext, traces: list[Trace], limit: int) -> dict[str, Any]:
    injector = Injector(ctx.renderer, ctx.library, ctx.config.inject, placebos={})
    decisions, branches, refused = [], [], 0
    critiques: dict[str, Critique] = judge(critique.critics(ctx))(traces)
    items = []
    for trace in traces:
        roots = [f for f in critiques[trace.id].findings if f.caused_by is None] if trace.id in critiques else []
        for finding in sorted(roots, key=lambda f: f.step)[:1]:
            try:
                items.append((trace, HintItem(f"heldout:{trace.id}", injector.inject(trace, finding), "holdout")))
            except HintdistillError:
                refused += 1
    targets = scorer_of(ctx).score([item for _, item in items[:limit]])
    for (trace, item), target in zip(items[:limit], targets, strict=True):
        injection = item.injection
        if target.decision is not None:
            end = len(target.context_ids) + target.decision.position + 1
            ids = np.concatenate([target.context_ids, target.step_ids])[:end].tolist()
            decisions.append([ids, end - 1, injection.finding.error_class])
        plain, hinted = list(injection.context_ids), list(injection.hinted_context_ids)
        branches.append([trace.model_dump(mode="json", exclude_defaults=True), injection.finding.step, plain, hinted])
    return {"decisions": decisions, "branches": branches, "refused": refused}


def _near_steps(bench: Bench, section: TwinsSection) -> dict[str, Any]:
    """Steps of the initial policy's right episodes on near-misses, of families that makers use and of others."""
    pairs, test = _pairs(section), set(suite_name("TEST_FAMILIES"))
    suite, sampler, limit = (
        suite_name("EditedToolworld")(),
        _sampler(bench, bench.initial, 0.0),
        bench.config.report.off_target_steps,
    )
    out = {}
    for name, wanted in (("near_unseen_families", True), ("near_makers_families", False)):
        tasks = [p.near_miss for p in pairs if (p.family in test) is wanted]
        requests = step_requests(bench.loop.top.renderer, list(sampler.episodes(suite, tasks)), limit, bench.job.seed)
        out[name] = [[r.ids.tolist(), r.start, r.end] for r in requests]
    return out


def _shared_reads(bench: Bench) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((bench.shared / SHARED_READS).read_text(encoding="utf-8"))
    return document


# -- read of every student ---------------------------------------------------------------------------------------------


def error_probability(bench: Bench, student: Path) -> dict[str, list[float]]:
    """The student's probability of each held-out decision token, no hint in context, by error class."""
    decisions = _shared_reads(bench)["decisions"]
    requests = [ScoreRequest(np.array(ids), at, at + 1) for ids, at, _ in decisions]
    scores = bench.loop.top.engine(student).score(requests, 1) if requests else []
    out: dict[str, list[float]] = {}
    for (_, _, error_class), score in zip(decisions, scores, strict=True):
        out.setdefault(error_class, []).append(float(np.exp(score.sampled[0])))
    return out


def moved_on_pairs(bench: Bench, student: Path) -> dict[str, Any]:
    """Movement from the initial policy on near-miss steps of the suite."""
    engine, out = bench.loop.top.engine, {}
    for name, rows in _shared_reads(bench)["near"].items():
        found = movement(engine(bench.initial), engine(student), [ScoreRequest(np.array(i), a, b) for i, a, b in rows])
        if found is not None:
            out[name] = asdict(found)
    return out


def removability(bench: Bench, student: Path) -> dict[str, list[bool]]:
    """Success of episodes taken up at the initial policy's erring step: as it is, and with the hint shown above it again.

    Both take up the same episodes, in the same order, greedily; the hint stands above that one step only.
    """
    stored = _shared_reads(bench)["branches"]
    traces = [Trace.model_validate(row[0]) for row in stored]
    sampler, out = _sampler(bench, student, 0.0), {}
    for name, column in (("plain", 2), ("hint", 3)):
        branches = [Branch(t, row[1], tuple(row[2]), tuple(row[column])) for t, row in zip(traces, stored, strict=True)]
        episodes: list[Episode] = list(sampler.branches(bench.loop.suite, branches))
        out[name] = [outcome_of(bench.loop.suite, e).success for e in episodes]
    return out

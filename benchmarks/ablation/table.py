"""Join the result files of the jobs into one document: intervals, paired differences, predictions and measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.ablation.aims import aims_of
from benchmarks.ablation.noise import noise_of
from benchmarks.ablation.predictions import Point, against, points_of
from benchmarks.ablation.settings import AblationConfig
from hintdistill.core.statistics import (
    Interval,
    crossed_bootstrap,
    difference,
    gap_closed,
    mean_of,
    over_groups,
    ratio,
)

EVIDENCE_SCHEMA = 2
Result = Mapping[str, Any]
Seeds = Mapping[int, Result]


def summarise_jobs(
    config: AblationConfig,
    results: Sequence[Result],
    sessions: Sequence[Result],
    sweep: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of an ablation, from whatever jobs are finished; `sweep` is what `sweep.chosen_settings` gave."""
    a = config.ablate
    regimes, points = {}, []
    for regime in a.regimes:
        mine = [r for r in results if r["regime"] == regime]
        shared = {r["seed"]: r for r in mine if r["arm"] == "shared"}
        by_arm: dict[str, dict[int, Result]] = {}
        for r in mine:
            if r["arm"] != "shared" and r["seed"] in shared:
                by_arm.setdefault(r["arm"], {})[r["seed"]] = r
        if shared:
            regimes[regime] = _regime(config, shared, by_arm)
            points += _points(config, regime, shared, by_arm)
    document = {
        "schema": EVIDENCE_SCHEMA,
        "model": config.run.model,
        "critics": list(config.critic.use),
        "rounds": config.run.rounds,
        "steps_per_round": a.steps,
        "rows_per_round": a.rows,
        "filled": a.fill,
        "batch_size": config.train.batch_size,
        "episodes_per_round": config.rollout.sample.episodes,
        "train": config.train.model_dump(mode="json"),
        "train_by_arm": a.train,
        "sweep": dict(sweep or {}),
        "sweep_split": a.sweep.split,
        "sessions": list(sessions),
        "regimes": regimes,
        "preflight": against(points, n=min(2000, a.bootstrap)),
        "noise": noise_of(regimes.get(next(iter(a.regimes)), {})),
        "test_split": a.test_split,
        "temperatures": list(a.temperatures),
        "error_groups": {k: list(v) for k, v in a.error_groups.items()},
        "cpu_seconds": _cpu(results),
    }
    return clean(document | {"aims": aims_of(document)})


def clean(value: Any) -> Any:
    """Plain data for JSON: intervals as objects, what is not a number as null."""
    if isinstance(value, Interval):
        return clean(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table_of(results: Sequence[Sequence[Mapping[str, Any]]], errors: Sequence[str] | None = None) -> np.ndarray:
    """Outcomes of several seeds [S, N]: success, or whether there was an error of one of these classes.

    Raises:
        ValueError: the tasks differ between seeds.
    """
    tasks = [[o["task"] for o in outcomes] for outcomes in results]
    if any(t != tasks[0] for t in tasks):
        raise ValueError("the seeds were measured on different tasks")
    read = (lambda o: o["success"]) if errors is None else (lambda o: bool({*errors} & {*o["errors"]}))
    return np.array([[float(read(o)) for o in outcomes] for outcomes in results])


def _cpu(results: Sequence[Result]) -> dict[str, float]:
    """Mean CPU seconds of a job, by kind."""
    kinds = {
        "shared": [r["cpu_seconds"] for r in results if r["arm"] == "shared"],
        "arm": [r["cpu_seconds"] for r in results if r["arm"] != "shared"],
    }
    return {kind: float(np.mean(seconds)) for kind, seconds in kinds.items() if seconds}


def _regime(config: AblationConfig, shared: Seeds, by_arm: Mapping[str, Seeds]) -> dict[str, Any]:
    a, everyone = config.ablate, sorted(shared)
    settings = list(shared[everyone[0]]["initial"])
    initial = {s: [shared[k]["initial"][s] for k in everyone] for s in settings}
    seen = sorted({e for s in settings for rows in initial[s] for o in rows for e in o["errors"]})
    classes = {c: (c,) for c in seen} | dict(a.error_groups)
    hottest = f"@{max(a.temperatures):g}"
    hinted = {s: [shared[k]["hinted"][s] for k in everyone] for s in shared[everyone[0]]["hinted"]}
    effects = {name: [shared[k]["effects"][name] for k in everyone] for name in shared[everyone[0]]["effects"]}
    return {
        "seeds": everyone,
        "tasks": {s: len(initial[s][0]) for s in settings},
        "retention": a.clean_split and a.clean_split + hottest,
        "transfer": a.transfer_split and a.transfer_split + hottest,
        "success_in_rollouts": float(np.mean([shared[k]["success_in_rollouts"] for k in everyone])),
        "initial": {s: _measured(initial[s], classes, a.bootstrap) for s in settings},
        "hinted": {s: _measured(rows, classes, a.bootstrap) for s, rows in hinted.items()},
        "effects": {name: _effect(values) for name, values in effects.items()},
        "predicted": [shared[k]["predicted"] for k in everyone],
        "arms": {arm: _arm(config, shared, seeds, by_arm.get("hint", {}), classes) for arm, seeds in by_arm.items()},
    }


def _effect(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    n = sum(map(len, values))
    return {"n": n, "median_nats": over_groups(values) if n else None}


def _measured(
    outcomes: Sequence[Sequence[Mapping[str, Any]]], classes: Mapping[str, Sequence[str]], n: int
) -> dict[str, Any]:
    return {
        "success": crossed_bootstrap(mean_of, table_of(outcomes), n=n),
        "errors": {c: crossed_bootstrap(mean_of, table_of(outcomes, of), n=n) for c, of in classes.items()},
        "failed": float(np.mean([[o["failure"] is not None for o in rows] for rows in outcomes])),
    }


def _arm(
    config: AblationConfig, shared: Seeds, seeds: Seeds, hint: Seeds, classes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    n, ks = config.ablate.bootstrap, sorted(seeds)
    out: dict[str, Any] = {"seeds": ks, "settings": {}, "gap_closed": {}, "rounds": _rounds(seeds, ks)}
    for s in seeds[ks[0]]["outcomes"]:
        played, initial = [seeds[k]["outcomes"][s] for k in ks], [shared[k]["initial"][s] for k in ks]
        mine, before = table_of(played), table_of(initial)
        entry = _measured(played, classes, n)
        entry["minus_initial"] = crossed_bootstrap(difference, mine, before, n=n)
        entry["errors_left"] = {
            c: crossed_bootstrap(ratio, table_of(played, of), table_of(initial, of), n=n) for c, of in classes.items()
        }
        entry["by_seed"] = mine.mean(1).tolist()
        both = [k for k in ks if k in hint]
        if both and seeds is not hint:
            a, b = (table_of([x[k]["outcomes"][s] for k in both]) for x in (seeds, hint))
            entry["minus_hint"] = crossed_bootstrap(difference, a, b, n=n)
        if s in shared[ks[0]]["hinted"]:
            hinted = table_of([shared[k]["hinted"][s] for k in ks])
            out["gap_closed"][s] = crossed_bootstrap(gap_closed, mine, before, hinted, n=n)
        out["settings"][s] = entry
    out["curve"] = _curve(config, shared, seeds, ks)
    sets = sorted({name for k in ks for name in seeds[k]["off_target"]})
    out["off_target"] = {
        name: {
            field: over_groups(
                [[seeds[k]["off_target"][name][field]] for k in ks if name in seeds[k]["off_target"]], "mean"
            )
            for field in ("kl_per_token", "kl_p99", "top1_flip_rate")
        }
        for name in sets
    }
    out["train"] = seeds[ks[0]]["train"]
    out["tripwires"] = [
        {"seed": k, "round": r["round"], "saw": r["tripwire"]} for k in ks for r in seeds[k]["rounds"] if r["tripwire"]
    ]
    return out


COUNTS = ("episodes", "failed", "findings", "candidates", "rejected", "rows", "distinct", "anchors", "traces", "steps")


def _rounds(seeds: Seeds, ks: Sequence[int]) -> list[dict[str, Any]]:
    """Mean counts over seeds, round by round."""
    out = []
    for i in range(max(len(seeds[k]["rounds"]) for k in ks)):
        rows = [seeds[k]["rounds"][i] for k in ks if i < len(seeds[k]["rounds"])]
        out.append({"seeds": len(rows), **{name: float(np.mean([r[name] for r in rows])) for name in COUNTS}})
    return out


def _curve(config: AblationConfig, shared: Seeds, seeds: Seeds, ks: Sequence[int]) -> list[dict[str, Any]]:
    """Success before training and after each round, on the tasks that were measured every time."""
    setting = f"{config.ablate.test_split}@{max(config.ablate.temperatures):g}"
    stages: list[list[Sequence[Mapping[str, Any]]]] = [[shared[k]["initial"][setting] for k in ks]]
    for i in range((config.run.rounds or 1) - 1):
        if any(i >= len(seeds[k]["rounds"]) or "outcomes" not in seeds[k]["rounds"][i] for k in ks):
            return []  # a tripwire ended some seed early
        stages.append([seeds[k]["rounds"][i]["outcomes"][setting] for k in ks])
    stages.append([seeds[k]["outcomes"][setting] for k in ks])
    common = min(len(rows) for stage in stages for rows in stage)
    return [
        {
            "round": i,
            "tasks": common,
            "success": crossed_bootstrap(
                mean_of, table_of([rows[:common] for rows in stage]), n=config.ablate.bootstrap
            ),
        }
        for i, stage in enumerate(stages)
    ]


def _points(config: AblationConfig, regime: str, shared: Seeds, by_arm: Mapping[str, Seeds]) -> list[Point]:
    setting = f"{config.ablate.test_split}@{max(config.ablate.temperatures):g}"
    return [p for arm, seeds in by_arm.items() for p in points_of(regime, arm, shared, seeds, setting)]

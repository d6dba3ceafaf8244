"""Tune all arms alike: each tries equally many settings on validation tasks, on seeds that the table does not use.

The criterion is the same for all arms: mean success over the measured temperatures, half of it over all tasks and half over
those that are like the ones to be kept (`ablate.hold`), where there are such; of equals the one listed first.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.ablation.jobs import LIKE_HINT, Job, settings_of
from benchmarks.ablation.settings import AblationConfig
from hintdistill.pipeline.arms import combined

REGIME = "sweep"


def swept_arms(config: AblationConfig) -> list[str]:
    """The arms that are tuned: those that do not take the method's settings."""
    return [a for a in config.ablate.arms if a == "hint" or a not in (*LIKE_HINT, "none")]


def sweep_config(config: AblationConfig) -> AblationConfig:
    """Return the ablation's configuration with the sweep's split, seeds and tasks."""
    sweep, first = config.ablate.sweep, next(iter(config.ablate.regimes.values()))
    data = config.model_dump(mode="json")
    data["ablate"] |= {
        "arms": swept_arms(config),
        "seeds": list(sweep.seeds),
        "regimes": {REGIME: list(first)},
        "noise": [],
        "test_split": sweep.split,
        "clean_split": None,
        "transfer_split": None,
        "near_splits": [],
        "limit": sweep.limit,
        "limits": {},
    }
    # what was checked of the ablation holds no longer, on purpose: this one reports nothing
    data["ablate"]["sweep"] |= {"use": False, "seeds": [min(sweep.seeds) - 1]}
    return AblationConfig.model_validate(data)


def sweep_jobs(config: AblationConfig) -> tuple[list[Job], list[Job]]:
    """Return the jobs that the trials of a seed share, and the trials."""
    seeds, arms = config.ablate.sweep.seeds, swept_arms(config)
    tried = range(len(config.ablate.sweep.settings))
    return [Job(REGIME, "shared", s) for s in seeds], [Job(REGIME, a, s, i) for s in seeds for i in tried for a in arms]


def chosen_settings(config: AblationConfig, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every arm's trials with what they gave on validation tasks, and the one that is taken."""
    out: dict[str, Any] = {}
    for arm in swept_arms(config):
        trials: list[dict[str, Any]] = []
        for i, setting in enumerate(settings_of(config, arm)):
            mine = [r for r in results if r["arm"] == arm and r["setting"] == i]
            if not mine:
                continue
            success = {
                name: float(np.mean([[o["success"] for o in r["outcomes"][name]] for r in mine]))
                for name in mine[0]["outcomes"]
            }
            kept = _kept(config, mine)
            kl = [m["kl_per_token"] for r in mine for m in r["off_target"].values()]
            trials.append(
                {
                    "index": i,
                    "setting": setting,
                    "seeds": len(mine),
                    "success": success,
                    "kept": kept,
                    "kl_per_token": max(kl, default=None),
                    "mean": float(np.mean([*success.values(), *([] if kept is None else [kept] * len(success))])),
                }
            )
        if trials:
            best = max(trials, key=lambda t: (t["mean"], -t["index"]))
            at_edge = len(trials) > 2 and best["index"] in (0, len(settings_of(config, arm)) - 1)
            out[arm] = {"trials": trials, "chosen": best["index"], "setting": best["setting"], "at_edge": at_edge}
    return out


def _kept(config: AblationConfig, results: Sequence[Mapping[str, Any]]) -> float | None:
    """Success on the tasks whose names match `ablate.hold.tasks`, over all temperatures; None where there are none."""
    found = [
        o["success"]
        for r in results
        for outcomes in r["outcomes"].values()
        for o in outcomes
        if any(fnmatch.fnmatchcase(o["task"], p) for p in config.ablate.hold.tasks)
    ]
    return float(np.mean(found)) if found else None


def with_chosen(config: AblationConfig, chosen: Mapping[str, Any]) -> AblationConfig:
    """The configuration whose arms train as the sweep chose."""
    data = config.model_dump(mode="json")
    for arm, entry in chosen.items():
        data["ablate"]["train"][arm] = combined(data["ablate"]["train"].get(arm, {}), entry["setting"])
    return AblationConfig.model_validate(data)

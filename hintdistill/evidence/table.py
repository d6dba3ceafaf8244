"""Result files of the jobs → one document: intervals, paired differences, predictions against measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from hintdistill.config import RunConfig
from hintdistill.evidence.statistics import Interval, crossed_bootstrap, difference, fit_line, gap_closed, mean_of

EVIDENCE_SCHEMA = 1
Result = Mapping[str, Any]


def summarise_jobs(config: RunConfig, results: Sequence[Result], sessions: Sequence[Result]) -> dict[str, Any]:
    """The document of an ablation, from whatever jobs are finished."""
    regimes = {}
    for regime in config.ablate.regimes:
        mine = [r for r in results if r["regime"] == regime]
        shared = {r["seed"]: r for r in mine if r["arm"] == "shared"}
        by_arm: dict[str, dict[int, Result]] = {}
        for r in mine:
            if r["arm"] != "shared":
                by_arm.setdefault(r["arm"], {})[r["seed"]] = r
        if shared:
            regimes[regime] = _regime(config, shared, by_arm)
    first = regimes.get(next(iter(config.ablate.regimes)), {})
    return clean(
        {
            "schema": EVIDENCE_SCHEMA,
            "model": config.run.model,
            "critics": list(config.critic.use),
            "rounds": config.run.rounds,
            "steps_per_round": config.ablate.steps,
            "rows_per_round": config.ablate.rows,
            "batch_size": config.train.batch_size,
            "episodes_per_round": config.rollout.sample.episodes,
            "train": config.train.model_dump(mode="json"),
            "train_by_arm": config.ablate.train,
            "sessions": list(sessions),
            "regimes": regimes,
            "preflight": preflight_points(regimes),
            "noise": _noise(first),
            "test_split": config.ablate.test_split,
            "temperatures": list(config.ablate.temperatures),
        }
    )


def clean(value: Any) -> Any:
    """Plain data for JSON: intervals as objects, what is not a number as null."""
    if isinstance(value, Interval):
        return clean(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def table_of(results: Sequence[Sequence[Mapping[str, Any]]], error: str | None = None) -> np.ndarray:
    """Outcomes of several seeds [S, N]: success, or whether there was an error of a class. Raises ValueError for tasks that
    differ between seeds."""
    tasks = [[o["task"] for o in outcomes] for outcomes in results]
    if any(t != tasks[0] for t in tasks):
        raise ValueError("the seeds were measured on different tasks")
    read = (lambda o: o["success"]) if error is None else (lambda o: error in o["errors"])
    return np.array([[float(read(o)) for o in outcomes] for outcomes in results])


def _regime(
    config: RunConfig, shared: Mapping[int, Result], by_arm: Mapping[str, Mapping[int, Result]]
) -> dict[str, Any]:
    n = config.ablate.bootstrap
    everyone = sorted(shared)
    settings = list(shared[everyone[0]]["initial"])
    initial = {s: [shared[k]["initial"][s] for k in everyone] for s in settings}
    classes = sorted({e for s in settings for rows in initial[s] for o in rows for e in o["errors"]})
    hint = by_arm.get("hint", {})
    return {
        "seeds": everyone,
        "tasks": {s: len(initial[s][0]) for s in settings},
        "success_in_rollouts": float(np.mean([shared[k]["success_in_rollouts"] for k in everyone])),
        "initial": {s: _measured(initial[s], classes, n) for s in settings},
        "hinted": {
            s: _measured([shared[k]["hinted"][s] for k in everyone], classes, n) for s in shared[everyone[0]]["hinted"]
        },
        "effects": _pool_effects([shared[k]["effects"] for k in everyone]),
        "predicted": [shared[k]["predicted"] for k in everyone],
        "arms": {arm: _arm(config, shared, seeds, hint, classes) for arm, seeds in by_arm.items()},
    }


def _measured(outcomes: Sequence[Sequence[Mapping[str, Any]]], classes: Sequence[str], n: int) -> dict[str, Any]:
    return {
        "success": crossed_bootstrap(mean_of, table_of(outcomes), n=n),
        "errors": {c: mean_of(table_of(outcomes, c)) for c in classes},
        "failed": float(np.mean([[o["failure"] is not None for o in rows] for rows in outcomes])),
    }


def _arm(
    config: RunConfig, shared: Mapping[int, Result], seeds: Mapping[int, Result], hint: Mapping[int, Result],
    classes: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    n, ks = config.ablate.bootstrap, sorted(seeds)
    out: dict[str, Any] = {"seeds": ks, "settings": {}, "gap_closed": {}, "rounds": _rounds(seeds, ks)}
    for s in seeds[ks[0]]["outcomes"]:
        mine, before = table_of([seeds[k]["outcomes"][s] for k in ks]), table_of([shared[k]["initial"][s] for k in ks])
        entry = _measured([seeds[k]["outcomes"][s] for k in ks], classes, n)
        entry["minus_initial"] = crossed_bootstrap(difference, mine, before, n=n)
        entry["by_seed"] = mine.mean(1).tolist()
        both = [k for k in ks if k in hint]
        if both and seeds is not hint:
            a, b = (table_of([x[k]["outcomes"][s] for k in both]) for x in (seeds, hint))
            entry["minus_hint"] = crossed_bootstrap(difference, a, b, n=n)
        if s in shared[ks[0]]["hinted"]:
            hinted = table_of([shared[k]["hinted"][s] for k in ks])
            out["gap_closed"][s] = crossed_bootstrap(gap_closed, mine, before, hinted, n=n)
        out["settings"][s] = entry
    sets = sorted({name for k in ks for name in seeds[k]["off_target"]})
    out["off_target"] = {
        name: {field: float(np.mean([seeds[k]["off_target"][name][field] for k in ks if name in seeds[k]["off_target"]]))
               for field in ("kl_per_token", "kl_p99", "top1_flip_rate")}
        for name in sets
    }  # fmt: skip
    out["predicted"] = [seeds[k]["predicted"] for k in ks]
    out["tripwires"] = [r["tripwire"] for k in ks for r in seeds[k]["rounds"] if r["tripwire"]]
    return out


def _rounds(seeds: Mapping[int, Result], ks: Sequence[int]) -> list[dict[str, Any]]:
    """Means over seeds, round by round."""
    out = []
    for i in range(max(len(seeds[k]["rounds"]) for k in ks)):
        rows = [seeds[k]["rounds"][i] for k in ks if i < len(seeds[k]["rounds"])]
        entry: dict[str, Any] = {name: float(np.mean([r[name] for r in rows]))
                 for name in ("episodes", "findings", "candidates", "rejected", "rows", "anchors", "steps")}  # fmt: skip
        measured = [r["outcomes"] for r in rows if "outcomes" in r]
        if measured:
            entry["success"] = {s: mean_of(table_of([m[s] for m in measured])) for s in measured[0]}
        out.append(entry)
    return out


def _pool_effects(effects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out = {}
    for name in effects[0]:
        known = [e[name] for e in effects if e[name]["n"]]
        out[name] = {
            "n": sum(e["n"] for e in known),
            "median_nats": float(np.mean([e["median_nats"] for e in known])) if known else None,
        }
    return out


def preflight_points(regimes: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted repair before training against measured repair at the highest temperature, by arm and error class."""
    points = []
    for regime, data in regimes.items():
        for arm, entry in data["arms"].items():
            setting = max((s for s in entry["gap_closed"]), key=lambda s: float(s.rpartition("@")[2]), default=None)
            if setting is None or not any(entry["predicted"]):
                continue
            pooled: dict[str, list[Mapping[str, Any]]] = {}
            for p in (p for seed in entry["predicted"] for p in seed):
                pooled.setdefault(p["error_class"], []).append(p)
            for name, ps in sorted(pooled.items()):
                before = data["initial"][setting]["errors"].get(name, 0.0)
                if before < 0.02:
                    continue  # a repair rate of an error that hardly occurs is noise
                after = entry["settings"][setting]["errors"].get(name, 0.0)
                points.append(
                    {"regime": regime, "arm": arm, "error_class": name, "measured": 1 - after / before,
                     "predicted": float(np.mean([p["repair"]["mean"] for p in ps])),
                     "low": float(np.mean([p["repair"]["low"] for p in ps])),
                     "high": float(np.mean([p["repair"]["high"] for p in ps]))}
                )  # fmt: skip
    line = fit_line([p["predicted"] for p in points], [p["measured"] for p in points])
    return {"points": points, "line": asdict(line) if line else None}


def _noise(regime: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each kind and amount of critic noise leaves of the true critic's gain."""
    arms = regime.get("arms", {})
    if "hint" not in arms:
        return []
    out = []
    for arm, entry in arms.items():
        kind, _, rest = arm.partition(":")
        if not rest:
            continue
        percent, _, gate = rest.partition("+")
        row: dict[str, Any] = {
            "kind": kind,
            "percent": int(percent),
            "gate": gate == "gate",
            "seeds": len(entry["seeds"]),
        }
        for s in entry["gap_closed"]:
            gain = entry["settings"][s]["minus_initial"].mean
            best = arms["hint"]["settings"][s]["minus_initial"].mean
            row[s] = {
                "minus_initial": entry["settings"][s]["minus_initial"],
                "share_of_true_gain": gain / best if best else None,
            }
        row["kl_per_token"] = max((m["kl_per_token"] for m in entry["off_target"].values()), default=None)
        out.append(row)
    return sorted(out, key=lambda r: (r["kind"], r["gate"], r["percent"]))

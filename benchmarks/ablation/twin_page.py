"""The tables of the benchmark of twins: one row per arm and rate, over seeds; written into docs/twins_results.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.ablation.markdown import interval, table
from benchmarks.ablation.twin_reads import suite_name
from benchmarks.ablation.twin_settings import NAMES, TwinsConfig
from hintdistill.core.statistics import over_groups

Results = Sequence[Mapping[str, Any]]
BLOCKS = ("main", "errors", "moved", "frontier", "families", "removability", "coverage")
CLASSES = ("unknown_tool", "wrong_argument", "skipped_lookup", "ignored_error")


def document_of(config: TwinsConfig, shared: Results, results: Results) -> dict[str, Any]:
    """All numbers as plain data: per arm and rate, an interval over seeds and items where items are kept, else over seeds."""
    rates = [s["learning_rate"] for s in config.ablate.sweep.settings]
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for r in results:
        groups.setdefault((r["arm"], r["setting"]), []).append(r)
    arms = [
        {"arm": arm, "rate": rates[setting], "seeds": len(mine), **_reads(mine)}
        for (arm, setting), mine in groups.items()
    ]
    initial = [{**s, "outcomes": s["initial"], "off_target": {}, "rounds": []} for s in shared]
    hinted = {name: _rate([[o["success"] for o in s["hinted"][name]] for s in shared]) for name in shared[0]["hinted"]}
    return {
        "seeds": len(shared),
        "rounds": config.run.rounds,
        "initial": _reads(initial),
        "hinted": hinted,
        "coverage": [s["twins"] for s in shared],
        "arms": arms,
    }


def _rate(groups: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """Mean with its interval over seeds and items."""
    kept = [list(map(float, g)) for g in groups if len(g)]
    if not kept:
        return None
    found = over_groups(kept, of="mean", n=1000)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _reads(mine: Results) -> dict[str, Any]:
    """The measurements of one arm at one rate."""
    outcomes = {s: [[o["success"] for o in r["outcomes"][s]] for r in mine] for s in mine[0]["outcomes"]}
    hottest = max((s for s in outcomes if s.startswith("test@")), key=lambda s: float(s.rpartition("@")[2]))
    pairs, test = suite_name("read_pairs")(), set(suite_name("TEST_FAMILIES"))
    played = [p for p in pairs if all(p.near_miss in r["pairs"] for r in mine)]
    groups = {"unseen": [p for p in played if p.family in test], "makers": [p for p in played if p.family not in test]}
    return {
        "success": {s: _rate(v) for s, v in outcomes.items()},
        "errors": {c: _rate([[c in o["errors"] for o in r["outcomes"][hottest]] for r in mine]) for c in CLASSES},
        "pairs": {name: _of_pairs(members, mine) for name, members in groups.items()},
        "families": {
            f: _of_pairs([p for p in played if p.family == f], mine) for f in dict.fromkeys(p.family for p in played)
        },
        "heldout": _rate([[p for some in r["heldout"].values() for p in some] for r in mine]),
        "off_target": {
            name: _rate([[r["off_target"][name]["kl_per_token"]] for r in mine]) for name in mine[0]["off_target"]
        },
        "removability": {name: _rate([r["removability"][name] for r in mine]) for name in ("plain", "hint")},
        "rounds": [r["rounds"] for r in mine],
    }


def _of_pairs(members: Sequence[Any], mine: Results) -> dict[str, Any]:
    """Shares of trigger tasks, near-misses and pairs that were right."""
    reads: dict[str, Callable[[Any, Mapping[str, bool]], bool]] = {
        "trigger": lambda p, right: right[p.trigger],
        "near_miss": lambda p, right: right[p.near_miss],
        "consistency": lambda p, right: right[p.trigger] and right[p.near_miss],
    }
    return {name: _rate([[read(p, r["pairs"]) for p in members] for r in mine]) for name, read in reads.items()}


# -- tables ------------------------------------------------------------------------------------------------------------


def blocks_of(document: Mapping[str, Any], config: TwinsConfig) -> dict[str, str]:
    """Markdown by block name."""
    chosen = config.ablate.sweep.settings[config.twins.rate]["learning_rate"]
    at_rate = [a for a in document["arms"] if a["rate"] == chosen]
    initial = {"arm": "before training", "rate": None, "seeds": document["seeds"], **document["initial"]}
    return {
        "main": _main([initial, *at_rate], document, chosen),
        "errors": _errors([initial, *at_rate]),
        "moved": _moved(at_rate),
        "frontier": _frontier(document["arms"]),
        "families": _families([initial, *at_rate]),
        "removability": _removability([initial, *at_rate]),
        "coverage": _coverage(document["coverage"]),
    }


def _name(row: Mapping[str, Any]) -> str:
    return NAMES.get(row["arm"], row["arm"])


def _tested(row: Mapping[str, Any]) -> list[str]:
    return sorted(s for s in row["success"] if s.startswith("test@"))


def _main(rows: Sequence[Mapping[str, Any]], document: Mapping[str, Any], rate: float) -> str:
    tested = _tested(rows[0])
    head = ["held", "seeds", *(f"success, {s}" for s in tested), "consistency, unseen families", "near-miss, unseen"]
    head += ["consistency, makers' families", "near-miss, makers'", "clean", "held-out P(error)"]
    body = []
    for r in rows:
        clean = next((v for s, v in r["success"].items() if s.startswith("test_clean@")), None)
        unseen, makers = r["pairs"]["unseen"], r["pairs"]["makers"]
        cells = [*(r["success"][s] for s in tested), unseen["consistency"], unseen["near_miss"]]
        cells += [makers["consistency"], makers["near_miss"], clean, r["heldout"]]
        body.append([_name(r), str(r["seeds"]), *(interval(c) for c in cells)])
    hinted = ", ".join(f"{s} {interval(v)}" for s, v in document["hinted"].items())
    said = f"{document['rounds']} rounds, learning rate {rate:g}. The hinted initial policy: {hinted}."
    return f"{table(head, body)}\n\n{said}"


def _errors(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(["held", *CLASSES], [[_name(r), *(interval(r["errors"][c]) for c in CLASSES)] for r in rows])


def _moved(rows: Sequence[Mapping[str, Any]]) -> str:
    sets = list(dict.fromkeys(s for r in rows for s in r["off_target"]))
    return table(["held", *sets], [[_name(r), *(interval(r["off_target"].get(s), 4) for s in sets)] for r in rows])


def _frontier(rows: Sequence[Mapping[str, Any]]) -> str:
    body = []
    for r in rows:
        near = [r["pairs"][g]["near_miss"] for g in ("unseen", "makers") if r["pairs"][g]["near_miss"]]
        moved = [m["mean"] for m in r["off_target"].values() if m]
        kept = min(n["mean"] for n in near) >= 0.95 and max(moved, default=0.0) <= 0.001
        cells = [*(interval(r["success"][s]) for s in _tested(r)), interval(r["pairs"]["unseen"]["near_miss"])]
        cells += [f"{max(moved, default=0.0):.4f}", "yes" if kept else "no"]
        body.append([_name(r), f"{r['rate']:g}", str(r["seeds"]), *cells])
    tested = _tested(rows[0]) if rows else []
    head = [
        "held",
        "rate",
        "seeds",
        *(f"success, {s}" for s in tested),
        "near-miss, unseen",
        "largest KL",
        "near ≥ .95 and KL ≤ .001",
    ]
    return table(head, body)


def _families(rows: Sequence[Mapping[str, Any]]) -> str:
    families, test = list(rows[0]["families"]), set(suite_name("TEST_FAMILIES"))
    body = [
        [f, "unseen" if f in test else "makers", *(interval(r["families"][f]["near_miss"], 2) for r in rows)]
        for f in families
    ]
    return table(["near-miss success", "role", *(_name(r) for r in rows)], body)


def _removability(rows: Sequence[Mapping[str, Any]]) -> str:
    body = []
    for r in rows:
        plain, hint = r["removability"]["plain"], r["removability"]["hint"]
        change = None if plain is None else {"mean": hint["mean"] - plain["mean"], "low": None, "high": None}
        body.append([_name(r), interval(plain), interval(hint), interval(change, sign=True)])
    return table(["held", "success without the hint", "with the hint shown again", "difference"], body)


def _coverage(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Over all seeds: findings, those with a twin, twins, and of the scored ones those that the policy still does."""
    body = []
    for name in sorted({c for s in seeds for c in s["classes"]}):
        sums = [
            int(np.sum([s["classes"].get(name, {}).get(k, 0) for s in seeds])) for k in ("findings", "covered", "twins")
        ]
        kept = [
            sum(n for k, n in s[what].items() if k.startswith(f"{name}/"))
            for what in ("accepted", "rejected")
            for s in seeds
        ]
        accepted, rejected = sum(kept[: len(seeds)]), sum(kept[len(seeds) :])
        body.append([name, *map(str, sums), str(accepted), str(rejected)])
    head = ["class", "findings", "with a twin", "twins", "accepted", "rejected by the policy's own probability"]
    return table(head, body)

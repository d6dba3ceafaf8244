"""Measure how wrong a critic may be: the gain under each kind and amount of noise, and the part that the gate recovers.

The true critic is the zero of every kind: with the gate on it is the arm `hint`, with the gate off the arm `step:0`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.ablation.settings import parse_noise
from hintdistill.core.statistics import Interval

KINDS = {
    "step": "wrong step",
    "alarm": "false alarms on clean traces",
    "hint": "wrong hint text",
    "near": "one step off",
    "later": "a consequence, not the root",
    "tool": "right step, another legal tool",
    "mixed": "one of these three",
}


def words_of(kind: str) -> str:
    """The kind in words; `miss-CLASS` names its class."""
    return KINDS.get(kind, f"{kind.removeprefix('miss-')} missed")


def noise_of(regime: Mapping[str, Any]) -> dict[str, Any]:
    """Rows by kind, gate and amount; and per kind and gate the tie with no training, and the gate's share of what was lost.

    Args:
        regime: a regime of the document, its intervals still objects.
    """
    arms = regime.get("arms", {})
    if "hint" not in arms or not any(":" in a for a in arms):
        return {"rows": [], "ties": [], "gate": []}
    settings = list(arms["hint"]["gap_closed"])
    kinds = sorted({parse_noise(a)[0] for a in arms if ":" in a}, key=lambda k: [*KINDS, k].index(k))
    rows = [_row(arm, entry, arms["hint"], settings) for arm, entry in _members(arms, kinds)]
    rows.sort(key=lambda r: (r["kind"], r["gate"], r["percent"]))
    return {
        "rows": rows,
        "ties": [_tie(rows, kind, gate, s) for kind in kinds for gate in (False, True) for s in settings],
        "gate": [_recovered(rows, r, s) for r in rows if r["gate"] and r["percent"] for s in settings],
    }


def _members(arms: Mapping[str, Any], kinds: Sequence[str]) -> list[tuple[tuple[str, int, bool], Any]]:
    out = []
    for arm, entry in arms.items():
        if ":" in arm:
            kind, share, gate = parse_noise(arm)
            # the true critic without a gate is the zero of every kind
            out += (
                [((k, 0, False), entry) for k in kinds]
                if share == 0 and not gate
                else [((kind, round(100 * share), gate), entry)]
            )
    return out + [((k, 0, True), arms["hint"]) for k in kinds]


def _row(
    of: tuple[str, int, bool], entry: Mapping[str, Any], hint: Mapping[str, Any], settings: Sequence[str]
) -> dict[str, Any]:
    kind, percent, gate = of
    row: dict[str, Any] = {"kind": kind, "percent": percent, "gate": gate, "seeds": len(entry["seeds"]), "settings": {}}
    for s in settings:
        gain, best = entry["settings"][s]["minus_initial"], hint["settings"][s]["minus_initial"].mean
        row["settings"][s] = {"minus_initial": gain, "share_of_true_gain": gain.mean / best if best else None}
    row["kl_per_token"] = max((m["kl_per_token"].mean for m in entry["off_target"].values()), default=None)
    return row


def _tie(rows: Sequence[Mapping[str, Any]], kind: str, gate: bool, setting: str) -> dict[str, Any]:
    """The least noise at which training gains nothing: by the estimate (a straight line between amounts), and the least amount
    measured whose interval reaches zero."""
    mine = sorted((r for r in rows if r["kind"] == kind and r["gate"] == gate), key=lambda r: r["percent"])
    gains: list[tuple[int, Interval]] = [(r["percent"], r["settings"][setting]["minus_initial"]) for r in mine]
    crossing = None
    for (x0, a), (x1, b) in itertools.pairwise(gains):
        if a.mean > 0 >= b.mean:
            crossing = x0 + (x1 - x0) * a.mean / (a.mean - b.mean)
            break
    reached = next((x for x, g in gains if g.low <= 0), None)
    return {
        "kind": kind,
        "gate": gate,
        "setting": setting,
        "amounts": [x for x, _ in gains],
        "crosses_zero_at": crossing,
        "interval_reaches_zero_at": reached,
    }


def _recovered(rows: Sequence[Mapping[str, Any]], gated: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """(gain with the gate − gain without) / (true critic's gain − gain without): 1 is all that the noise cost."""
    find = {(r["kind"], r["percent"], r["gate"]): r["settings"][setting]["minus_initial"].mean for r in rows}
    own, best = find[gated["kind"], gated["percent"], True], find[gated["kind"], 0, True]
    bare = find.get((gated["kind"], gated["percent"], False))
    lost = None if bare is None else best - bare
    share = None if bare is None or lost is None or lost <= 0.01 else (own - bare) / lost
    return {
        "kind": gated["kind"],
        "percent": gated["percent"],
        "setting": setting,
        "without": bare,
        "with": own,
        "lost": lost,
        "recovered": share,
    }

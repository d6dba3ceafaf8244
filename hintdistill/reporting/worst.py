"""Decide which findings a reader sees first: those whose error is still probable, trained ones before all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.core.rows import Picked

GROUPS = ("trained", "held out, accepted", "accepted, not trained", "rejected")
"""The groups of findings, in the order in which they are shown."""
SHARE: Mapping[str, int] = {"trained": 3, "held out, accepted": 1, "accepted, not trained": 1, "rejected": 1}
"""Places that a group gets in each turn if not all findings can be shown; half of them go to trained findings."""


@dataclass(frozen=True)
class Group:
    """Count the shown and hidden findings of a group."""

    name: str
    shown: int
    findings: int
    residual: float | None
    """Smallest residual probability among the shown findings; all hidden ones have at most this."""


def residual(finding: Mapping[str, Any]) -> float:
    """Return the remaining probability of the error: after training, or the present one if nothing was trained; 0
    without a decision token."""
    decision = finding["decision"]
    if not decision:
        return 0.0
    after = decision["after"]
    return float(decision["before"] if after is None else after)


def group_of(finding: Mapping[str, Any]) -> str:
    """Return the group of a finding, one of `GROUPS`."""
    if finding["trained"]:
        return "trained"
    if not finding["accepted"]:
        return "rejected"
    return "held out, accepted" if finding["split"] == "holdout" else "accepted, not trained"


def worst_first(findings: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Sort findings by residual probability of the error, highest first; ties by trace and step.

    Findings may be on disk, and stay there.
    """
    order = [_order(f) for f in findings]
    return Picked(findings, sorted(range(len(order)), key=order.__getitem__))


def _order(finding: Mapping[str, Any]) -> tuple[float, str, int, str]:
    return -residual(finding), finding["trace"], finding["step"], finding["key"]


def worst(findings: Sequence[Mapping[str, Any]], n: int) -> tuple[Sequence[Mapping[str, Any]], list[Group]]:
    """Choose at most `n` findings, group by group and worst first in each, and count the rest.

    If not all fit, half of the places go to trained findings; places that a group does not need go to the others.
    Findings on disk stay there; only the position of each in the order is kept.
    """
    lanes: dict[str, list[tuple[Any, int]]] = {name: [] for name in GROUPS}
    for number, finding in enumerate(findings):
        lanes[group_of(finding)].append((_order(finding), number))
    for lane in lanes.values():
        lane.sort()
    taken = dict.fromkeys(GROUPS, 0)
    while sum(taken.values()) < min(n, len(findings)):
        for name in GROUPS:
            free = n - sum(taken.values())
            taken[name] += max(0, min(SHARE[name], free, len(lanes[name]) - taken[name]))
    groups = [
        Group(name, k, len(lanes[name]), -lanes[name][k - 1][0][0] if k else None)
        for name, k in taken.items()
        if lanes[name]
    ]
    return Picked(findings, [number for name in GROUPS for _, number in lanes[name][: taken[name]]]), groups

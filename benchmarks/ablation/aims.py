"""The numbers that the method should reach, next to the numbers that it reached. An aim that was not measured says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hintdistill.core.statistics import Interval

Document = Mapping[str, Any]


def aims_of(document: Document) -> list[dict[str, Any]]:
    """One row per aim: what, where, the bound, what was measured, and whether the bound holds for the estimate.

    Args:
        document: the ablation's document with its intervals still objects.
    """
    rows: list[dict[str, Any]] = []

    def add(name: str, where: str, aim: str, value: Any, reached: bool | None) -> None:
        rows.append({"aim": name, "where": where, "bound": aim, "measured": value, "reached": reached})

    for regime, data in document["regimes"].items():
        if "hint" in data["arms"]:
            _of_regime(add, regime, data, data["arms"]["hint"])
    _of_noise(add, document)
    line = document["preflight"]["line"]
    add("preflight R²", "all arms and classes", "≥ .8", line and line["r2"], line and bool(line["r2"].mean >= 0.8))
    return rows


def _of_regime(add: Any, regime: str, data: Mapping[str, Any], hint: Mapping[str, Any]) -> None:
    for s, gap in hint["gap_closed"].items():
        bound = 0.95 if s.endswith("@0") else 0.9
        add("share of the gap closed", f"{regime}, {s}", f"≥ {bound:g}", gap, _at_least(gap, bound))
    hot = _hottest(hint["gap_closed"])
    for name, left in hint["settings"][hot]["errors_left"].items():
        if data["initial"][hot]["errors"][name].mean >= 0.02:
            add(f"errors left, {name}", f"{regime}, {hot}", "≤ .2", left, bool(left.mean <= 0.2))
    for s, entry in hint["settings"].items():
        if s not in hint["gap_closed"] and data["retention"] == s:
            lost = entry["minus_initial"]
            add(
                "success without a trigger, minus initial",
                f"{regime}, {s}",
                "lower bound ≥ -.02",
                lost,
                bool(lost.low >= -0.02),
            )
    for name, m in hint["off_target"].items():
        add(
            "off-target KL, nats per token",
            f"{regime}, {name}",
            "≤ .001",
            m["kl_per_token"],
            bool(m["kl_per_token"].mean <= 0.001),
        )
        if name == "near_misses":
            flips = m["top1_flip_rate"]
            add("top-1 flips", f"{regime}, {name}", "≤ .005", flips, bool(flips.mean <= 0.005))
    gains = {a: e["settings"][hot]["minus_initial"].mean for a, e in data["arms"].items()}
    for arm in ("placebo", "wrong_hint"):
        if arm in gains and gains["hint"] > 0:
            share = gains[arm] / gains["hint"]
            add(f"share of the targeted gain, {arm}", f"{regime}, {hot}", "< .25", share, bool(share < 0.25))
    for arm in ("full_trace", "sft_success"):
        for s in hint["gap_closed"]:
            if arm in data["arms"] and (minus := data["arms"][arm]["settings"][s].get("minus_hint")):
                add(f"{arm} minus targeted", f"{regime}, {s}", "upper bound < 0", minus, bool(minus.high < 0))
    for s, entry in hint["settings"].items():
        if data["transfer"] == s:
            gain = entry["minus_initial"]
            add("gain on task kinds never trained on", f"{regime}, {s}", "lower bound > 0", gain, bool(gain.low > 0))


def _of_noise(add: Any, document: Document) -> None:
    for r in document["noise"]["rows"]:
        if (r["kind"], r["percent"], r["gate"]) == ("step", 50, True):
            for s, x in r["settings"].items():
                share = x["share_of_true_gain"]
                add(
                    "share of the true critic's gain, half of the steps wrong, gate on",
                    s,
                    "≥ .7",
                    share,
                    None if share is None else bool(share >= 0.7),
                )


def _hottest(settings: Mapping[str, Any]) -> str:
    return max(settings, key=lambda s: float(s.rpartition("@")[2]))


def _at_least(x: Interval, bound: float) -> bool | None:
    return None if x.mean != x.mean else bool(x.mean >= bound)

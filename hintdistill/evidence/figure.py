"""The figure of an ablation: success by arm, success by round, and predicted against measured repair. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hintdistill.evidence.pages import NAMES, main_arms

SHOWN_IN_CURVES = ("hint", "llm_critic", "sft_success", "full_trace", "placebo")
COLOURS = {"hint": "#1a6e5c", "llm_critic": "#c2571a"}
GREY = "#7a8794"


def draw(document: Mapping[str, Any], path: Path) -> bool:
    """The figure as a self-contained SVG; False where matplotlib (the extra `figures`) is absent."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    first = next(iter(document["regimes"].values()))
    settings = list(first["hinted"])
    wide = len(settings) + 2
    figure, axes = plt.subplots(1, wide, figsize=(5.2 * wide, 4.2), layout="constrained")
    for axis, setting in zip(axes, settings, strict=False):
        _bars(axis, first, setting)
    _curves(axes[-2], first)
    _predictions(axes[-1], document["preflight"])
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
    return True


def _bars(axis: Any, data: Mapping[str, Any], setting: str) -> None:
    arms = main_arms(data)
    for y, (arm, e) in enumerate(reversed(arms)):
        s = e["settings"][setting]["success"]
        color = COLOURS.get(arm, GREY)
        axis.errorbar(
            s["mean"], y, xerr=[[s["mean"] - s["low"]], [s["high"] - s["mean"]]], fmt="o", color=color, capsize=3
        )
        axis.plot(e["settings"][setting]["by_seed"], [y - 0.22] * len(e["seeds"]), "|", color=color, alpha=0.6)
    axis.set_yticks(range(len(arms)), [NAMES.get(a, a) for a, _ in reversed(arms)])
    for name, style in (("initial", ":"), ("hinted", "--")):
        axis.axvline(data[name][setting]["success"]["mean"], linestyle=style, color="#444", linewidth=1, label=name)
    axis.set_xlim(0, 1)
    axis.set_title(f"success, {setting}")
    axis.legend(loc="lower right", frameon=False)


def _curves(axis: Any, data: Mapping[str, Any]) -> None:
    for arm in (a for a in SHOWN_IN_CURVES if data["arms"].get(a, {}).get("curve")):
        curve = data["arms"][arm]["curve"]
        xs, ys = [c["round"] for c in curve], [c["success"] for c in curve]
        (line,) = axis.plot(xs, [y["mean"] for y in ys], "o-", label=NAMES[arm], color=COLOURS.get(arm), markersize=4)
        axis.fill_between(
            xs, [y["low"] for y in ys], [y["high"] for y in ys], color=line.get_color(), alpha=0.12, linewidth=0
        )
        axis.set_xticks(xs)
    axis.set_ylim(0, 1)
    axis.set_xlabel("round")
    axis.set_title("success as sampled, round by round")
    if axis.lines:
        axis.legend(fontsize=7, frameon=False, loc="lower right")


def _predictions(axis: Any, preflight: Mapping[str, Any]) -> None:
    """Every point with both intervals, the fitted line, and y = x."""
    points = preflight["points"]
    colours: dict[str, Any] = {}
    for p in points:
        m, name = p["measured"], NAMES.get(p["arm"], p["arm"])
        drawn = axis.errorbar(
            p["predicted"], m["mean"], xerr=_bars_of(p["predicted"], p["low"], p["high"]), yerr=_bars_of(m["mean"], m["low"], m["high"]),
            fmt="o", markersize=4, linewidth=0.8, color=colours.get(p["arm"]), label=None if p["arm"] in colours else name,
        )  # fmt: skip
        colours.setdefault(p["arm"], drawn[0].get_color())
    line = preflight["line"]
    if line:
        ends = [min(p["predicted"] for p in points), max(p["predicted"] for p in points)]
        axis.plot(ends, [line["slope"] * x + line["intercept"] for x in ends], color="#444", linewidth=1)
        axis.plot(ends, ends, ":", color="#444", linewidth=1)
    r2 = line and line["r2"]
    said = f", R² {r2['mean']:.2f} ({r2['low']:.2f} to {r2['high']:.2f})" if r2 and r2["low"] is not None else ""
    axis.set_xlabel("predicted repair, before training")
    axis.set_ylabel("measured repair")
    axis.set_title(f"error classes in arms{said}", fontsize=9)
    if points:
        axis.legend(fontsize=6, frameon=False)


def _bars_of(mean: float, low: float | None, high: float | None) -> list[list[float]]:
    """Lengths below and above, as errorbar wants them."""
    return [[max(0.0, mean - (mean if low is None else low))], [max(0.0, (mean if high is None else high) - mean)]]

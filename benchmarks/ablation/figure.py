"""The figure of an ablation: success by arm, by round and by regime, critic noise, predicted repair. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.ablation.markdown import NAMES, main_arms
from benchmarks.ablation.noise import words_of

SHOWN_IN_REGIMES = ("hint", "llm_critic", "full_trace", "sft_success", "sft_corrected", "placebo")
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
    matplotlib.rcParams["svg.hashsalt"] = "hintdistill"  # the same document gives the same file
    from matplotlib import pyplot as plt

    first = next(iter(document["regimes"].values()))
    panels: list[Callable[[Any], None]] = [partial(_bars, data=first, setting=s) for s in first["hinted"]]
    panels.append(partial(_curves, data=first))
    if len(document["regimes"]) > 1:
        panels.append(partial(_regimes, regimes=document["regimes"]))
    if document["noise"]["rows"]:
        panels.append(partial(_noise, noise=document["noise"]))
    panels.append(partial(_predictions, preflight=document["preflight"]))
    wide = len(panels) if len(panels) <= 4 else 3
    high = -(-len(panels) // wide)
    figure, axes = plt.subplots(high, wide, figsize=(5.2 * wide, 4.2 * high), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for panel, axis in zip(panels, axes.flat, strict=False):
        panel(axis)
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
    axis.legend(loc="best", fontsize=7, frameon=False)


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


def _regimes(axis: Any, regimes: Mapping[str, Any]) -> None:
    """Success as sampled in each regime; the dotted and the dashed mark are the initial policy without and with hint."""
    names = list(regimes)
    arms = [a for a in SHOWN_IN_REGIMES if any(a in d["arms"] for d in regimes.values())]
    for i, arm in enumerate(arms):
        at = [x for x, n in enumerate(names) if arm in regimes[n]["arms"]]
        found = [regimes[names[x]]["arms"][arm]["settings"][_hottest(regimes[names[x]])]["success"] for x in at]
        axis.errorbar(
            [x + 0.12 * (i - len(arms) / 2) for x in at],
            [y["mean"] for y in found],
            label=NAMES.get(arm, arm),
            fmt="o",
            capsize=2,
            yerr=[[y["mean"] - y["low"] for y in found], [y["high"] - y["mean"] for y in found]],
            color=COLOURS.get(arm),
            markersize=4,
            linewidth=0.8,
        )
    for x, n in enumerate(names):
        for role, style in (("initial", ":"), ("hinted", "--")):
            y = regimes[n][role][_hottest(regimes[n])]["success"]["mean"]
            axis.plot([x - 0.45, x + 0.4], [y, y], style, color="#444", linewidth=1)
    axis.set_xticks(range(len(names)), [f"{n}\n{regimes[n]['success_in_rollouts']:.2f} succeed" for n in names])
    axis.set_ylim(-0.02, 1.02)
    axis.set_title("success as sampled, by regime")
    axis.legend(fontsize=6, frameon=False)


def _noise(axis: Any, noise: Mapping[str, Any]) -> None:
    """Gain over no training at each amount of noise; the gate on is the full line."""
    kinds = list(dict.fromkeys(t["kind"] for t in noise["ties"]))
    for number, kind in enumerate(kinds):
        for gate in (True, False):
            rows = [r for r in noise["rows"] if r["kind"] == kind and r["gate"] is gate]
            gains = [r["settings"][max(r["settings"], key=_temperature)]["minus_initial"] for r in rows]
            xs = [r["percent"] for r in rows]
            axis.plot(
                xs,
                [g["mean"] for g in gains],
                "o-" if gate else "o--",
                color=f"C{number}",
                markersize=4,
                label=f"{words_of(kind)}, gate {'on' if gate else 'off'}",
            )
            axis.fill_between(
                xs, [g["low"] for g in gains], [g["high"] for g in gains], color=f"C{number}", alpha=0.1, linewidth=0
            )
    axis.axhline(0, linestyle=":", color="#444", linewidth=1)
    axis.set_xlabel("% of findings, or of clean traces")
    axis.set_title("gain over no training, as sampled, with a critic that is wrong", fontsize=9)
    axis.legend(fontsize=6, frameon=False)


def _temperature(setting: str) -> float:
    return float(setting.rpartition("@")[2])


def _hottest(data: Mapping[str, Any]) -> str:
    return max(data["hinted"], key=_temperature)


def _predictions(axis: Any, preflight: Mapping[str, Any]) -> None:
    """Every point with both intervals, the fitted line, and y = x; arms of critic noise are one colour. An interval may leave the panel."""
    points = preflight["points"]
    colours: dict[str, Any] = {}
    for p in points:
        m, name = p["measured"], "critic noise" if ":" in p["arm"] else NAMES.get(p["arm"], p["arm"])
        drawn = axis.errorbar(
            p["predicted"],
            m["mean"],
            xerr=_bars_of(p["predicted"], p["low"], p["high"]),
            yerr=_bars_of(m["mean"], m["low"], m["high"]),
            fmt="o",
            markersize=4,
            linewidth=0.8,
            color=colours.get(name),
            label=None if name in colours else name,
        )
        colours.setdefault(name, drawn[0].get_color())
    line = preflight["line"]
    if line:
        ends = [min(p["predicted"] for p in points), max(p["predicted"] for p in points)]
        axis.plot(ends, [line["slope"] * x + line["intercept"] for x in ends], color="#444", linewidth=1)
        axis.plot(ends, ends, ":", color="#444", linewidth=1)
    if points:
        at = [[p["predicted"] for p in points], [p["measured"]["mean"] for p in points]]
        axis.set_xlim(min(at[0]) - 0.1, max(at[0]) + 0.1)
        axis.set_ylim(min(at[1]) - 0.2, max(at[1]) + 0.2)
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

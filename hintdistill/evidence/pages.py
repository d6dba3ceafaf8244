"""The document of an ablation as Markdown and as a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hintdistill.rundir import write_atomic

NAMES = {
    "hint": "targeted hint", "placebo": "placebo hint", "wrong_hint": "wrong hint", "random_step": "random other step",
    "full_trace": "hint in system prompt, whole trace", "sft_success": "SFT on own successes",
    "sft_corrected": "SFT on hinted corrections", "stale": "hint, traces one round stale", "foreign": "hint, another policy's traces",
    "llm_critic": "hint, LLM critic",
}  # fmt: skip


def write_evidence(document: dict[str, Any], folder: Path) -> None:
    """evidence.json, evidence.md and, where matplotlib is installed, evidence.svg."""
    write_atomic(folder / "evidence.json", json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
    drawn = draw(document, folder / "evidence.svg")
    (folder / "evidence.md").write_text(page(document, drawn), encoding="utf-8")


def page(document: Mapping[str, Any], drawn: bool) -> str:
    """All tables, in Markdown."""
    parts = []
    for regime, data in document["regimes"].items():
        parts.append(f"## Regime `{regime}`\n\n{_about(document, data)}\n\n{main_table(document, data)}")
        parts.append(f"### Errors by class, T={max(document['temperatures']):g}\n\n{error_table(document, data)}")
        parts.append(f"### What else moved\n\n{moved_table(document, data)}")
        parts.append(f"### Rows, steps and rounds\n\n{round_table(document, data)}")
    parts.append(f"## Predicted and measured repair\n\n{preflight_table(document)}")
    if document["noise"]:
        parts.append(f"## Critic noise\n\n{noise_table(document)}")
    if drawn:
        parts.insert(0, "![Success by arm, and predicted against measured repair](evidence.svg)")
    for s in document["sessions"]:
        parts.append(f"{s['seconds'] / 60:.1f} minutes, {s['processes']} processes on {s['processor']} ({s['cores']} cores), "
                     f"commit {s['commit']}.")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def interval(x: Mapping[str, float] | None, digits: int = 3, sign: bool = False) -> str:
    """`.612 (.570–.655)`."""
    if x is None or x["mean"] is None:
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"
    return (
        f"{x['mean']:{form}} ({x['low']:{form}} to {x['high']:{form}})"
        if x["low"] is not None
        else f"{x['mean']:{form}}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def _main(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(a, e) for a, e in data["arms"].items() if ":" not in a]


def _about(document: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    e = data["effects"]
    tasks = ", ".join(f"{n} tasks {s}" for s, n in data["tasks"].items())
    return (
        f"Seeds {', '.join(map(str, data['seeds']))}; {tasks}. Episodes of the initial policy that succeed: "
        f"{data['success_in_rollouts']:.2f}. Median drop of the decision token under the hint: {e['all']['median_nats']} nats over "
        f"all {e['all']['n']} findings, {e['accepted']['median_nats']} over the {e['accepted']['n']} accepted; in a wording not used "
        f"for selection {e['all_other_wording']['median_nats']} and {e['accepted_other_wording']['median_nats']}."
    )


def main_table(document: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Success and gap closed, greedy and sampled, with 95 % intervals over seeds and tasks."""
    settings = list(data["hinted"])
    head = [
        "arm",
        *(f"success {s}" for s in settings),
        *(f"gap closed {s}" for s in settings),
        *(f"minus hint {s}" for s in settings),
    ]
    blank = ["–"] * (2 * len(settings))
    rows = [["no training", *(interval(data["initial"][s]["success"]) for s in settings), *blank]]
    for arm, e in _main(data):
        rows.append([NAMES.get(arm, arm), *(interval(e["settings"][s]["success"]) for s in settings),
                     *(interval(e["gap_closed"][s], 2) for s in settings),
                     *(interval(e["settings"][s].get("minus_hint"), 3, True) for s in settings)])  # fmt: skip
    rows.append(["initial policy, hinted", *(interval(data["hinted"][s]["success"]) for s in settings), *blank])
    return _table(head, rows)


def error_table(document: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Share of test episodes with each error class at the highest temperature."""
    setting = max(data["hinted"], key=lambda s: float(s.rpartition("@")[2]))
    classes = list(data["initial"][setting]["errors"])
    rows = [["no training", *(f"{data['initial'][setting]['errors'][c]:.3f}" for c in classes)]]
    rows += [
        [NAMES.get(a, a), *(f"{e['settings'][setting]['errors'][c]:.3f}" for c in classes)] for a, e in _main(data)
    ]
    rows.append(["initial policy, hinted", *(f"{data['hinted'][setting]['errors'][c]:.3f}" for c in classes)])
    return _table(["arm", *classes], rows)


def moved_table(document: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Success where no trigger is, and off-target KL and flips; differences to no training."""
    others = [s for s in data["initial"] if s not in data["hinted"]]
    sets = sorted({n for _, e in _main(data) for n in e["off_target"]})
    head = ["arm", *others, *(f"KL {n}, nats/token" for n in sets), *(f"top-1 flips {n}" for n in sets)]
    rows = [["no training", *(interval(data["initial"][s]["success"]) for s in others), *(["0"] * 2 * len(sets))]]
    for arm, e in _main(data):
        moved = [e["off_target"].get(n) for n in sets]
        rows.append([NAMES.get(arm, arm), *(interval(e["settings"][s]["minus_initial"], 3, True) for s in others),
                     *(f"{m['kl_per_token']:.5f}" if m else "–" for m in moved),
                     *(f"{m['top1_flip_rate']:.4f}" if m else "–" for m in moved)])  # fmt: skip
    return _table(head, rows)


def round_table(document: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Means over seeds; every arm takes the same number of steps, `rows` are different ones."""
    rows = []
    for arm, e in _main(data):
        for i, r in enumerate(e["rounds"]):
            success = ", ".join(f"{s} {v:.3f}" for s, v in r.get("success", {}).items())
            rows.append([NAMES.get(arm, arm), str(i + 1), f"{r['findings']:.0f}", f"{r['candidates']:.0f}", f"{r['rows']:.0f}",
                         f"{r['anchors']:.0f}", f"{r['steps']:.0f}", success or "see above"])  # fmt: skip
    return _table(
        ["arm", "round", "findings", "rows to draw from", "rows", "anchors", "steps", "success after it"], rows
    )


def preflight_table(document: Mapping[str, Any]) -> str:
    """Predicted before training, measured after it."""
    p = document["preflight"]
    rows = [[x["regime"], NAMES.get(x["arm"], x["arm"]), x["error_class"],
             f"{x['predicted']:.2f} ({x['low']:.2f} to {x['high']:.2f})", f"{x['measured']:.2f}"] for x in p["points"]]  # fmt: skip
    line = p["line"]
    said = (
        f"measured = {line['slope']:.2f} · predicted {line['intercept']:+.2f}, R² {line['r2']:.2f} over {line['points']} points."
        if line and line["r2"] is not None else "Too few points for a line."
    )  # fmt: skip
    return said + "\n\n" + _table(["regime", "arm", "error class", "predicted repair", "measured repair"], rows)


def noise_table(document: Mapping[str, Any]) -> str:
    """Gain over no training under critic noise, and its share of the true critic's gain."""
    settings = [s for s in document["noise"][0] if "@" in s]
    head = [
        "noise",
        "%",
        "gate",
        "seeds",
        *(f"gain {s}" for s in settings),
        *(f"share {s}" for s in settings),
        "off-target KL",
    ]
    rows = []
    for r in document["noise"]:
        shares = [r[s]["share_of_true_gain"] for s in settings]
        rows.append([r["kind"], str(r["percent"]), "on" if r["gate"] else "off", str(r["seeds"]),
                     *(interval(r[s]["minus_initial"], 3, True) for s in settings),
                     *(f"{x:.2f}" if x is not None else "–" for x in shares), f"{r['kl_per_token']:.5f}"])  # fmt: skip
    return _table(head, rows)


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
    wide = len(settings) + 1
    figure, axes = plt.subplots(1, wide, figsize=(5.2 * wide, 4.2), layout="constrained")
    for axis, setting in zip(axes, settings, strict=False):
        _bars(axis, first, setting)
    _predictions(axes[-1], document["preflight"])
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
    return True


def _bars(axis: Any, data: Mapping[str, Any], setting: str) -> None:
    arms = _main(data)
    for y, (arm, e) in enumerate(reversed(arms)):
        s = e["settings"][setting]["success"]
        color = "#1a6e5c" if arm == "hint" else "#7a8794"
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


def _predictions(axis: Any, preflight: Mapping[str, Any]) -> None:
    colors: dict[str, Any] = {}
    for p in preflight["points"]:
        line = axis.errorbar(
            p["predicted"], p["measured"], xerr=[[max(0.0, p["predicted"] - p["low"])], [max(0.0, p["high"] - p["predicted"])]],
            fmt="o", markersize=4, color=colors.get(p["arm"]), label=None if p["arm"] in colors else NAMES.get(p["arm"], p["arm"]),
        )  # fmt: skip
        colors.setdefault(p["arm"], line[0].get_color())
    if preflight["line"]:
        xs = [min(p["predicted"] for p in preflight["points"]), max(p["predicted"] for p in preflight["points"])]
        axis.plot(
            xs, [preflight["line"]["slope"] * x + preflight["line"]["intercept"] for x in xs], color="#444", linewidth=1
        )
    axis.set_xlabel("predicted repair, before training")
    axis.set_ylabel("measured repair")
    axis.set_title("each error class in each arm")
    if preflight["points"]:
        axis.legend(fontsize=7, frameon=False)

"""The curves of a training run in the report: loss, movement, and probabilities of decision tokens."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hintdistill.reporting import printable
from hintdistill.reporting.markup import html_table
from hintdistill.reporting.templates import number, picture

LOSS = ("loss", "divergence")
MOVED = ("anchor_kl", "hold_kl", "twin_kl", "off_target_kl", "heldout_kl")
DECISION = "decision_probability"
TITLES = {
    "loss": "loss",
    "divergence": "hints alone",
    "anchor_kl": "anchors",
    "hold_kl": "hold traces",
    "twin_kl": "twins",
    "off_target_kl": "off target",
    "heldout_kl": "held out",
    DECISION: "all",
}
COLOURS = ("#1f4fa8", "#b3261e", "#11703f", "#6a3d9a", "#7a4f00", "#8a1c62", "#3d4655")
"""Line colours with a contrast of at least 4.5 on white; a drawing has a white background even on a dark page."""
INK, GRID = "#1d2330", "#d3d8e2"
DASHES = ("-", "--", "-.", ":")
"""Dash patterns, so that lines differ not only in colour."""
ROWS = 12
"""Maximum number of rows in the table below a drawing; report.json contains all readings."""


Lines = Mapping[str, Sequence[float | None]]


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the readings of a training run as series over its optimiser steps.

    Args:
        rows: rows of metrics.jsonl; see docs/metrics.md.

    Returns:
        `steps`, and by name `series` and by error class `decision_probability_by_class`, each as long as `steps` with
        None where there is no reading; None if there are no readings at all.
    """
    read = [r for r in rows if "loss" in r]
    if not read:
        return None
    names = [n for n in (*LOSS, *MOVED, DECISION) if any(n in r for r in read)]
    classes = sorted({k.partition("/")[2] for r in read for k in r if k.startswith(f"{DECISION}/")})
    return {
        "steps": [r["step"] for r in read],
        "series": {n: [_finite(r.get(n)) for r in read] for n in names},
        "decision_probability_by_class": {c: [_finite(r.get(f"{DECISION}/{c}")) for r in read] for c in classes},
    }


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def drawings(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return for each drawing its description in words and its SVG; equal numbers give equal bytes. Text stays text."""
    return [(_in_words(title, lines), _svg(title, found["steps"], lines, log)) for title, lines, log in _panels(found)]


def _svg(title: str, steps: Sequence[int], lines: Lines, log: bool) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "hintdistill", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}
    with rc_context(style):
        figure = Figure(figsize=(4.2, 3.3), facecolor="white")
        FigureCanvasSVG(figure)
        figure.subplots_adjust(0.16, 0.16, 0.98, 0.9)
        _draw(figure.subplots(), title, steps, lines, log)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _panels(found: Mapping[str, Any]) -> list[tuple[str, Lines, bool]]:
    """Return title, lines and scale (logarithmic or not) of each drawing that has data."""
    series = found["series"]
    made: list[tuple[str, Lines, bool]] = [
        ("loss", {TITLES[n]: series[n] for n in LOSS if n in series}, False),
        ("KL from the initial policy, nats per token", {TITLES[n]: series[n] for n in MOVED if n in series}, True),
        (
            "probability of decision tokens",
            {TITLES[n]: series[n] for n in (DECISION,) if n in series} | dict(found["decision_probability_by_class"]),
            False,
        ),
    ]
    return [(title, lines, log) for title, lines, log in made if lines]


def _draw(axes: Any, title: str, steps: Sequence[int], lines: Lines, log: bool) -> None:
    for i, (name, values) in enumerate(lines.items()):
        known = [(s, v) for s, v in zip(steps, values, strict=True) if v is not None and (not log or v > 0)]
        if not known:
            continue
        axes.plot(
            *zip(*known, strict=True),
            color=COLOURS[i % len(COLOURS)],
            linestyle=DASHES[i % len(DASHES)],
            linewidth=1.6,
            marker="o" if len(known) == 1 else None,
            # a dollar would begin a formula
            label=printable(name).replace("$", r"\$"),
        )
    if log and axes.lines:
        axes.set_yscale("log")
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel("optimiser step", color=INK)
    axes.tick_params(colors=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(fontsize=9, labelcolor=INK, framealpha=0.85, edgecolor="none")


def _in_words(title: str, lines: Lines) -> str:
    """Return the first and the last value of each curve as text, for readers who cannot see it."""
    ends = {name: [v for v in values if v is not None] for name, values in lines.items()}
    said = "; ".join(
        f"{name} begins at {known[0]:.3g} and ends at {known[-1]:.3g}" for name, known in ends.items() if known
    )
    return f"Curves over optimiser steps, {title}: {said}."


def body(document: Mapping[str, Any]) -> str:
    """Return the section of the page: the drawings and their numbers."""
    found = document.get("curves")
    if not found:
        return ""
    at = _spread(len(found["steps"]))
    columns = {TITLES[n]: v for n, v in found["series"].items()} | dict(found["decision_probability_by_class"])
    names = [
        f"{TITLES[n]}" if n in LOSS else f"{TITLES[n]}, KL" if n in MOVED else "decision tokens"
        for n in found["series"]
    ]
    rows = [[found["steps"][i], *(number(v[i], 5) for v in columns.values())] for i in at]
    heads = ["step", *names, *found["decision_probability_by_class"]]
    title = "Readings during training"
    said = f"{len(at)} of {len(found['steps'])} readings; report.json contains all, and docs/metrics.md explains them."
    return str(
        Markup('{}\n<details><summary>The numbers</summary><p class="mute">{}</p>{}</details>').format(
            Markup(" ").join(picture(svg, words) for words, svg in drawings(found)),
            said,
            html_table(title, heads, rows, range(1, len(heads))),
        )
    )


def _spread(n: int) -> list[int]:
    """Return the indices of at most `ROWS` readings, including the first and the last."""
    if n <= ROWS:
        return list(range(n))
    return sorted({round(i * (n - 1) / (ROWS - 1)) for i in range(ROWS)})

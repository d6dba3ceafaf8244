"""Effects of hints compared with those of placebos, with intervals, by error class.

Findings of one trace resemble each other, so the intervals (95 %) are over traces: whole traces are resampled, with all
their findings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from hintdistill.core.statistics import means_over_groups
from hintdistill.reporting.markup import html_table
from hintdistill.reporting.templates import text

Measure = Callable[[Mapping[str, Any]], float | None]


class Read(NamedTuple):
    """Hold the values needed from a finding; findings may be many, and on disk."""

    trace: str
    error_class: str
    accepted: bool
    split: str | None
    measured: tuple[float | None, ...]
    """Values in the order of `MEASURES`."""


def against_placebos(findings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means with intervals over findings with a decision token, by class, and for `accepted` and `holdout`.

    Args:
        findings: entries of the report document.

    Returns:
        By group: `n` (findings), `traces`, and `[mean, low, high]` (None if unknown) of `hint_nats`, `placebo_nats`
        (the mean over a finding's placebos), `over_placebo_nats` (their difference for each finding), and of the
        error's probability `before`, `hinted` and `after`.
    """
    known = [_read(f) for f in findings if f["decision"]]
    classes = sorted({f.error_class for f in known})
    return {
        "all": _group(known),
        "accepted": _group([f for f in known if f.accepted]),
        "holdout": _group([f for f in known if f.split == "holdout"]),
        "by_class": {c: _group([f for f in known if f.error_class == c]) for c in classes},
    }


def _read(f: Mapping[str, Any]) -> Read:
    measured = tuple(measure(f) for measure in MEASURES.values())
    return Read(f["trace"], sys.intern(f["error_class"] or ""), f["accepted"], f["split"], measured)


def _placebo(f: Mapping[str, Any]) -> float | None:
    effects = [p["effect_nats"] for p in f["placebos"] if p["effect_nats"] is not None]
    return sum(effects) / len(effects) if effects else None


def _over(f: Mapping[str, Any]) -> float | None:
    placebo = _placebo(f)
    return None if placebo is None else f["decision"]["effect_nats"] - placebo


def _of(key: str) -> Measure:
    return lambda f: f["decision"][key]


MEASURES: Mapping[str, Measure] = {
    "hint_nats": _of("effect_nats"),
    "placebo_nats": _placebo,
    "over_placebo_nats": _over,
    "before": _of("before"),
    "hinted": _of("hinted"),
    "after": _of("after"),
}


def _group(findings: Sequence[Read]) -> dict[str, Any]:
    out: dict[str, Any] = {"n": len(findings), "traces": len({f.trace for f in findings})}
    out |= dict.fromkeys(MEASURES)
    known = {
        name: pairs
        for i, name in enumerate(MEASURES)
        if (pairs := [(v, f.trace) for f in findings if (v := f.measured[i]) is not None])
    }
    groups = [([v for v, _ in pairs], [t for _, t in pairs]) for pairs in known.values()]
    for name, found in zip(known, means_over_groups(groups), strict=True):
        out[name] = [found.mean, found.low, found.high]
    return out


def body(document: Mapping[str, Any]) -> str:
    """Return the section of the page."""
    found = document.get("against_placebos")
    if not found or not found["all"]["n"]:
        return ""
    groups = [*found["by_class"].items(), ("all", found["all"]), ("accepted", found["accepted"])]
    groups.append(("held-out traces", found["holdout"]))
    effects = [
        (name, g["n"], g["traces"], *(_said(g[k], 2) for k in ("hint_nats", "placebo_nats", "over_placebo_nats")))
        for name, g in groups
    ]
    chances = [(name, *(_said(g[k], 3) for k in ("before", "hinted", "after"))) for name, g in groups]
    return str(
        Markup(
            '<p class="mute">Effect at the decision token in nats, below zero if the error becomes less '
            "likely. A placebo is in the same place and says nothing about the error. Brackets contain the "
            'interval (95 %) over traces.</p>\n{}\n<p class="mute">Probability of the error at the decision '
            "token, with its interval.</p>\n{}"
        ).format(
            html_table(
                "Effects of hints and of placebos",
                ("error class", "findings", "traces", "hint", "placebos", "hint minus placebos"),
                effects,
                range(1, 6),
            ),
            html_table("Probability of the error", ("error class", "before", "hinted", "after"), chances, range(1, 4)),
        )
    )


def _said(interval: Sequence[float] | None, digits: int) -> Markup:
    if interval is None:
        return text("–")
    mean, low, high = (f"{v:.{digits}f}" for v in interval)
    return text(f"{mean} [{low}, {high}]")

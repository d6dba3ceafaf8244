"""Report the controls of a run: turn the results of each arm into a document, and the document into a table for the
terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from hintdistill.core.scores import Target
from hintdistill.core.statistics import Interval, crossed_bootstrap, mean_of, ratio

CONTROLS_SCHEMA = 1
TITLES = {
    "hint": "targeted hint",
    "placebo": "placebo hint",
    "wrong_hint": "wrong hint",
    "random_step": "hint at random step",
    "whole_trace": "hint on whole trace",
    "sft_corrected": "SFT on corrections",
}


@dataclass(frozen=True)
class ControlsInput:
    """Hold the inputs of the document."""

    recipe: str
    learning_rate: float
    """Learning rate of the arms without their own."""
    equal: Mapping[str, int]
    """`rows`, `anchors` and `steps` of every arm."""
    targets: Sequence[Target]
    """Targets of held-out findings with a decision token."""
    before: Mapping[str, float]
    """Log-probability in nats of each decision token before training, by target key."""
    clean: Mapping[str, int]
    """Clean steps by set."""
    corrections: Mapping[str, Any] | None
    """Counts of how the hinted model's corrections were filtered; None if that arm did not run."""
    results: Sequence[Mapping[str, Any]]
    """One row per arm, beginning with the hint's."""


def controls_document(data: ControlsInput) -> dict[str, Any]:
    """Return the document: how far the decision tokens fell in each arm, also relative to the hint's fall, and the
    movement elsewhere."""
    decisions = [t.decision for t in data.targets if t.decision is not None]
    hint = next(r for r in data.results if r["arm"] == "hint")
    base = _falls(data, hint) if hint["not_read"] is None else None
    return {
        "schema": CONTROLS_SCHEMA,
        "recipe": data.recipe,
        "learning_rate": data.learning_rate,
        "equal": dict(data.equal),
        "heldout": {
            "findings": len(data.targets),
            "accepted": sum(t.accepted for t in data.targets),
            "probability_before": float(np.mean(np.exp([data.before[t.key] for t in data.targets]))),
            "probability_hinted": float(np.mean(np.exp([d.logprob_hinted for d in decisions]))),
        },
        "clean": dict(data.clean),
        "corrections": data.corrections,
        "arms": [_arm(data, row, base) for row in data.results],
    }


def _falls(data: ControlsInput, row: Mapping[str, Any]) -> np.ndarray:
    """Return float [1, N]: the fall of each decision token, in nats."""
    return np.array([[data.before[t.key] - row["logprobs"][t.key] for t in data.targets]])


def _arm(data: ControlsInput, row: Mapping[str, Any], base: np.ndarray | None) -> dict[str, Any]:
    out = {name: row[name] for name in ("arm", "rows", "anchors", "distinct", "steps", "train", "not_read")}
    if row["not_read"] is not None:
        return out
    fall, accepted = _falls(data, row), np.array([t.accepted for t in data.targets])
    moved = row["off_target"]
    tokens = sum(m["tokens"] for m in moved.values())
    return out | {
        "fall_nats": asdict(crossed_bootstrap(mean_of, fall)),
        "share_of_hint": None if base is None else _share(fall, base),
        "fall_nats_accepted": float(fall[0][accepted].mean()) if accepted.any() else None,
        "probability_after": float(np.mean(np.exp([row["logprobs"][t.key] for t in data.targets]))),
        "kl_per_token": sum(m["kl_per_token"] * m["tokens"] for m in moved.values()) / tokens if tokens else None,
        "off_target": moved,
        "seconds": row["seconds"],
    }


def _share(fall: np.ndarray, base: np.ndarray) -> dict[str, float] | None:
    """Return the ratio of the fall to the hint's fall over the same findings; None if the hint's is not above zero."""
    found: Interval = crossed_bootstrap(ratio, fall, base)
    return asdict(found) if all(np.isfinite((found.mean, found.low, found.high))) else None


def about(document: Mapping[str, Any]) -> str:
    """Return one sentence about the equal conditions and one about the evaluation."""
    held, equal = document["heldout"], document["equal"]
    clean = ", ".join(f"{n} {name}" for name, n in document["clean"].items()) or "none"
    rows = [f"{equal['rows']} hint rows", *(f"{equal[k]} {k}" for k in ("anchors", "twins") if k in equal)]
    lines = [
        f"Recipe {document['recipe']}. Every arm: {', '.join(rows)}, {equal['steps']} optimiser steps, learning "
        f"rate {document['learning_rate']:g} unless the arm has its own.",
        f"Evaluated on the decision tokens of {held['findings']} held-out findings ({held['accepted']} accepted "
        f"by the gate): mean probability {held['probability_before']:.3f} before training, "
        f"{held['probability_hinted']:.3f} under the hint. Clean steps: {clean}.",
    ]
    corrected = document["corrections"]
    if corrected is not None:
        counts = corrected["counts"]
        lost = ", ".join(f"{n} {why}" for why, n in counts.items() if why not in ("asked", "kept") and n)
        who = (
            f"asked {', '.join(corrected['critics'])}"
            if corrected["critics"]
            else "no critic judged them, because only critics without a model are used here"
        )
        lines.append(
            f"Corrections: {counts['asked']} decoded under their hints, {counts['kept']} kept"
            f"{f' ({lost})' if lost else ''}; {who}."
        )
    return " ".join(lines)


def show_controls(document: Mapping[str, Any], console: Console) -> None:
    """Print one line per arm."""
    table = Table(title="controls: does the hint cause the drop?", title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("trained on", no_wrap=True)
    for heading in ("rows", "p after", "fall, nats", "share", "KL clean"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in document["arms"]:
        rows = str(arm["distinct"]["hint"])
        if arm["not_read"] is not None:
            table.add_row(TITLES[arm["arm"]], rows, "–", "–", "–", "–")
            continue
        table.add_row(
            TITLES[arm["arm"]],
            rows,
            f"{arm['probability_after']:.3f}",
            interval(arm["fall_nats"]).replace(" to ", "…"),
            "–" if arm["share_of_hint"] is None else f"{arm['share_of_hint']['mean']:.0%}",
            "–" if arm["kl_per_token"] is None else f"{arm['kl_per_token']:.5f}",
        )
    console.print(table)
    console.print(
        "rows: number of distinct rows; p after, fall: at the decision tokens; share: relative to the hint's "
        "fall; KL clean: nats per token."
    )
    console.print(about(document), markup=False, highlight=False)
    for arm in document["arms"]:
        if arm["not_read"] is not None:
            console.print(f"{TITLES[arm['arm']]} has no result: {arm['not_read']}", markup=False)


def interval(x: Mapping[str, float] | None) -> str:
    """Return `1.23 (1.01 to 1.45)`; a dash for None."""
    return "–" if x is None else f"{x['mean']:.2f} ({x['low']:.2f} to {x['high']:.2f})"

"""Report a comparison of recipes: turn the results of each student into a document, a table for the terminal, and a
page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from hintdistill.core.scores import Target
from hintdistill.core.statistics import crossed_bootstrap, mean_of
from hintdistill.reporting.controls import interval

COMPARE_SCHEMA = 1
HEADINGS = ("rate", "rows", "p after", "fall, nats", "KL clean", "seconds")


def compared(
    targets: Sequence[Target],
    before: Mapping[str, float],
    clean: Mapping[str, int],
    equal: Mapping[str, int],
    results: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the document: how far the decision tokens of held-out findings fell under each recipe, and the movement
    elsewhere.

    Args:
        targets: targets of held-out findings with a decision token.
        before: log-probability in nats of each decision token before training, by target key.
        clean: clean steps by set.
        equal: `rows` and `steps` of every arm.
        results: one row per arm.
    """
    decisions = [t.decision for t in targets if t.decision is not None]
    return {
        "schema": COMPARE_SCHEMA,
        "equal": dict(equal),
        "heldout": {
            "findings": len(targets),
            "accepted": sum(t.accepted for t in targets),
            "probability_before": float(np.mean(np.exp([before[t.key] for t in targets]))),
            "probability_hinted": float(np.mean(np.exp([d.logprob_hinted for d in decisions]))),
        },
        "clean": dict(clean),
        "arms": [_arm(targets, before, row) for row in results],
    }


def _arm(targets: Sequence[Target], before: Mapping[str, float], row: Mapping[str, Any]) -> dict[str, Any]:
    out = {k: v for k, v in row.items() if k not in ("key", "logprobs")}
    if row["not_read"] is not None:
        return out
    fall = np.array([[before[t.key] - row["logprobs"][t.key] for t in targets]])
    moved = row["off_target"]
    tokens = sum(m["tokens"] for m in moved.values())
    return out | {
        "fall_nats": asdict(crossed_bootstrap(mean_of, fall)),
        "probability_after": float(np.mean(np.exp([row["logprobs"][t.key] for t in targets]))),
        "kl_per_token": sum(m["kl_per_token"] * m["tokens"] for m in moved.values()) / tokens if tokens else None,
    }


def about(document: Mapping[str, Any]) -> str:
    """Return sentences about the equal conditions and the evaluation."""
    held, equal = document["heldout"], document["equal"]
    clean = ", ".join(f"{n} {name}" for name, n in document["clean"].items()) or "none"
    return (
        f"Every arm: {equal['rows']} hint rows and {equal['steps']} optimiser steps, from the same weights. "
        f"Evaluated on the decision tokens of {held['findings']} held-out findings of the configuration's own "
        f"hints ({held['accepted']} accepted by the gate): mean probability {held['probability_before']:.3f} "
        f"before training, {held['probability_hinted']:.3f} under the hint. Clean steps: {clean}. No "
        "environment was played."
    )


def _cells(arm: Mapping[str, Any]) -> list[str]:
    rate, rows = f"{arm['learning_rate']:g}", str(arm["distinct"]["hint"])
    if arm["not_read"] is not None:
        return [rate, rows, "–", "–", "–", f"{arm['seconds']:.0f}"]
    kl = arm["kl_per_token"]
    return [
        rate,
        rows,
        f"{arm['probability_after']:.3f}",
        interval(arm["fall_nats"]).replace(" to ", "…"),
        "–" if kl is None else f"{kl:.5f}",
        f"{arm['train_seconds']:.0f}",
    ]


def remarks(document: Mapping[str, Any]) -> list[str]:
    """Return remarks about single arms: a changed method, a missing guarantee, a training run that stopped."""
    out = []
    for arm in document["arms"]:
        if arm["called"] != arm["recipe"]:
            out.append(f"{arm['arm']} is {arm['called']}")
        if arm["lowers_error"] == "no":
            out.append(f"{arm['arm']} does not lower an error token because the teacher does")
        if arm["not_read"] is not None:
            out.append(f"{arm['arm']} has no result: {arm['not_read']}")
    return out


def show_recipes(document: Mapping[str, Any], console: Console) -> None:
    """Print one line per arm."""
    table = Table(title="recipes on the same traces", title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in document["arms"]:
        table.add_row(arm["recipe"], *_cells(arm))
    console.print(table)
    console.print(
        "rows: number of distinct rows; p after, fall: at the decision tokens; KL clean: nats per token; "
        "seconds: of training."
    )
    console.print(about(document), markup=False, highlight=False)
    for remark in remarks(document):
        console.print(remark, markup=False, highlight=False)


def markdown(document: Mapping[str, Any]) -> str:
    """Return the same as a Markdown page."""
    lines = [
        "# Recipes on the same traces",
        "",
        f"| recipe | {' | '.join(HEADINGS)} |",
        "|" + "---|" * (len(HEADINGS) + 1),
    ]
    lines += [f"| `{arm['recipe']}` | {' | '.join(_cells(arm))} |" for arm in document["arms"]]
    said = (
        "rows: number of distinct rows; p after, fall: at the decision tokens; KL clean: nats per token; seconds: "
        "of training."
    )
    return "\n".join([*lines, "", said, "", about(document), *(f"\n{r}." for r in remarks(document))]) + "\n"

"""The critic-noise part of the evidence page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.ablation.markdown import interval, table
from benchmarks.ablation.noise import words_of


def noise_part(noise: Mapping[str, Any]) -> str:
    """Gain under noise, where it is gone, and what the gate recovers."""
    return "\n\n".join(
        (
            "## Critic noise",
            _gains(noise),
            "### At which noise the gain is gone",
            _ties(noise),
            "### What the gate recovers",
            _gate(noise),
        )
    )


def _gate_word(on: bool) -> str:
    return "on" if on else "off"


def _gains(noise: Mapping[str, Any]) -> str:
    settings = list(noise["rows"][0]["settings"])
    rows = []
    for r in noise["rows"]:
        shares = [r["settings"][s]["share_of_true_gain"] for s in settings]
        kl = "–" if r["kl_per_token"] is None else f"{r['kl_per_token']:.5f}"
        rows.append(
            [
                words_of(r["kind"]),
                str(r["percent"]),
                _gate_word(r["gate"]),
                str(r["seeds"]),
                *(interval(r["settings"][s]["minus_initial"], 3, True) for s in settings),
                *(f"{x:.2f}" if x is not None else "–" for x in shares),
                kl,
            ]
        )
    head = [
        "noise",
        "%",
        "gate",
        "seeds",
        *(f"gain {s}" for s in settings),
        *(f"share of the true critic's {s}" for s in settings),
    ]
    return table([*head, "largest off-target KL"], rows)


def _ties(noise: Mapping[str, Any]) -> str:
    rows = []
    for t in noise["ties"]:
        if len(t["amounts"]) < 2:
            continue
        never = f"not up to {max(t['amounts'])} %"
        crossing, reached = t["crosses_zero_at"], t["interval_reaches_zero_at"]
        rows.append(
            [
                words_of(t["kind"]),
                _gate_word(t["gate"]),
                t["setting"],
                never if crossing is None else f"{crossing:.0f} %",
                never if reached is None else f"{reached} %",
            ]
        )
    head = [
        "noise",
        "gate",
        "setting",
        "estimate at no gain (straight line between amounts)",
        "least amount whose interval has no gain",
    ]
    return table(head, rows)


def _gate(noise: Mapping[str, Any]) -> str:
    said = "(gain with the gate − gain without) / (true critic's gain with the gate − gain without); – where next to nothing was lost."
    rows = []
    for g in noise["gate"]:
        bare = "–" if g["without"] is None else f"{g['without']:+.3f}"
        share = "–" if g["recovered"] is None else f"{g['recovered']:.2f}"
        rows.append([words_of(g["kind"]), str(g["percent"]), g["setting"], bare, f"{g['with']:+.3f}", share])
    return said + "\n\n" + table(["noise", "%", "setting", "gain, gate off", "gain, gate on", "recovered"], rows)

"""The document of an ablation as Markdown, with every table and the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.ablation.figure import draw
from benchmarks.ablation.markdown import NAMES, interval, main_arms, table
from benchmarks.ablation.pages_noise import noise_part
from hintdistill.core.storage import write_atomic


def write_evidence(document: dict[str, Any], folder: Path) -> None:
    """evidence.json, evidence.md and, where matplotlib is installed, evidence.svg."""
    write_atomic(folder / "evidence.json", json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
    drawn = draw(document, folder / "evidence.svg")
    (folder / "evidence.md").write_text(page(document, drawn), encoding="utf-8")


def page(document: Mapping[str, Any], drawn: bool) -> str:
    """All tables, in Markdown."""
    parts = ["![Success by arm and by round, and predicted against measured repair](evidence.svg)"] if drawn else []
    parts.append(f"## Aims\n\n{aims_table(document)}")
    temperatures = sorted(document["temperatures"], reverse=True)
    for regime, data in document["regimes"].items():
        parts.append(f"## Regime `{regime}`\n\n{_about(data)}\n\n{main_table(data)}")
        for t in temperatures:
            parts.append(f"### Errors by class, T={t:g}\n\n{error_table(data, t)}")
        parts.append(f"### What else moved\n\n{moved_table(data)}")
        parts.append(f"### What the hints do before any training\n\n{effects_table(data)}")
        parts.append(f"### Rows, steps and rounds\n\n{_budget(document)}\n\n{round_table(data)}\n\n{_tripwires(data)}")
        if any(e["curve"] for _, e in main_arms(data)):
            parts.append(f"### Success after each round\n\n{curve_table(data)}")
    parts.append(f"## Predicted and measured repair\n\n{preflight_table(document)}")
    if document["noise"]["rows"]:
        parts.append(noise_part(document["noise"]))
    parts.append(f"## Settings\n\n{sweep_table(document)}")
    parts.append(_cost(document))
    return "\n\n".join(p for p in parts if p) + "\n"


def _about(data: Mapping[str, Any]) -> str:
    tasks = ", ".join(f"{n} tasks {s}" for s, n in data["tasks"].items())
    return (
        f"Seeds {', '.join(map(str, data['seeds']))}; {tasks}. Share of the initial policy's episodes that succeed: "
        f"{data['success_in_rollouts']:.2f}. Intervals: 95 %, over seeds and tasks."
    )


def main_table(data: Mapping[str, Any]) -> str:
    """Success and gap closed, greedy and sampled, with 95 % intervals over seeds and tasks."""
    settings = list(data["hinted"])
    head = ["arm", *(f"{what} {s}" for what in ("success", "gap closed", "minus hint") for s in settings)]
    blank = ["–"] * (2 * len(settings))
    rows = [["no training", *(interval(data["initial"][s]["success"]) for s in settings), *blank]]
    for arm, e in main_arms(data):
        rows.append(
            [
                NAMES.get(arm, arm),
                *(interval(e["settings"][s]["success"]) for s in settings),
                *(interval(e["gap_closed"][s], 2) for s in settings),
                *(interval(e["settings"][s].get("minus_hint"), 3, True) for s in settings),
            ]
        )
    rows.append(["initial policy, hinted", *(interval(data["hinted"][s]["success"]) for s in settings), *blank])
    return table(head, rows)


def error_table(data: Mapping[str, Any], temperature: float) -> str:
    """Share of test episodes with each error class, and of an arm what share of the initial policy's is left."""
    setting = next(s for s in data["hinted"] if s.endswith(f"@{temperature:g}"))
    initial = data["initial"][setting]["errors"]
    classes = [
        c
        for c in initial
        if initial[c]["mean"] or any(e["settings"][setting]["errors"][c]["mean"] for _, e in main_arms(data))
    ]
    rows = [["no training", *(interval(initial[c]) for c in classes)]]
    for arm, e in main_arms(data):
        errors, left = e["settings"][setting]["errors"], e["settings"][setting]["errors_left"]
        rows.append([NAMES.get(arm, arm), *(f"{interval(errors[c])}; left {interval(left[c], 2)}" for c in classes)])
    rows.append(["initial policy, hinted", *(interval(data["hinted"][setting]["errors"][c]) for c in classes)])
    return table(["arm", *classes], rows)


def moved_table(data: Mapping[str, Any]) -> str:
    """Success where no trigger is, on near-misses and on new task kinds, and off-target KL and flips; minus no training."""
    others = [s for s in data["initial"] if s not in data["hinted"]]
    sets = sorted({n for _, e in main_arms(data) for n in e["off_target"]})
    head = ["arm", *others, *(f"KL {n}, nats/token" for n in sets), *(f"top-1 flips {n}" for n in sets)]
    rows = [["no training", *(interval(data["initial"][s]["success"]) for s in others), *(["0"] * 2 * len(sets))]]
    for arm, e in main_arms(data):
        moved = [e["off_target"].get(n) for n in sets]
        rows.append(
            [
                NAMES.get(arm, arm),
                *(interval(e["settings"][s]["minus_initial"], 3, True) for s in others),
                *(interval(m["kl_per_token"], 5) if m else "–" for m in moved),
                *(interval(m["top1_flip_rate"], 4) if m else "–" for m in moved),
            ]
        )
    return table(head, rows)


EFFECTS = {
    "all": "all findings, the gate's wording",
    "accepted": "accepted ones, the gate's wording",
    "all_other_wording": "all findings, a wording not used for selection",
    "accepted_other_wording": "accepted ones, a wording not used for selection",
    "placebo": "under placebos, the same tokens",
    "system_prompt": "the trace's hints in its system prompt",
}


def effects_table(data: Mapping[str, Any]) -> str:
    """Median change of the decision token, nats."""
    rows = [
        [EFFECTS.get(name, name), str(e["n"]), interval(e["median_nats"], 2, True)]
        for name, e in data["effects"].items()
    ]
    return table(["findings", "n", "median change of the decision token, nats"], rows)


def _budget(document: Mapping[str, Any]) -> str:
    filled = (
        "; an arm with fewer distinct ones has them repeated, none a third time before all twice"
        if document["filled"]
        else " at most"
    )
    return (
        f"Every arm and round: {document['episodes_per_round']} episodes, {document['steps_per_round']} optimiser steps of "
        f"{document['batch_size']} traces, {document['rows_per_round']} rows (steps of a trace with a loss of their own) and as many "
        f"anchors{filled}. An arm without a single row in a round does not train in it. Means over seeds:"
    )


def round_table(data: Mapping[str, Any]) -> str:
    """Counts, means over seeds; `distinct` are different rows among those trained on, `traces` what they and the anchors lie in."""
    names = (
        "episodes",
        "failed",
        "findings",
        "candidates",
        "rejected",
        "distinct",
        "rows",
        "anchors",
        "traces",
        "steps",
    )
    rows = [
        [NAMES.get(arm, arm), str(i + 1), *(f"{r[n]:.0f}" for n in names)]
        for arm, e in main_arms(data)
        for i, r in enumerate(e["rounds"])
    ]
    return table(["arm", "round", *names], rows)


def _tripwires(data: Mapping[str, Any]) -> str:
    saw = [(NAMES.get(a, a), t) for a, e in data["arms"].items() for t in e["tripwires"]]
    return "\n".join(f"- Tripwire in {arm}, seed {t['seed']}, round {t['round']}: {t['saw']}" for arm, t in saw)


def curve_table(data: Mapping[str, Any]) -> str:
    """Success as sampled on the tasks measured after every round; round 0 is before training."""
    arms = [(a, e["curve"]) for a, e in main_arms(data) if e["curve"]]
    rounds = max(len(c) for _, c in arms)
    rows = [[NAMES.get(a, a), *(interval(p["success"]) for p in c), *(["–"] * (rounds - len(c)))] for a, c in arms]
    return table(["arm", *(f"round {i}" for i in range(rounds))], rows)


def preflight_table(document: Mapping[str, Any]) -> str:
    """Predicted before training, measured after it."""
    p = document["preflight"]
    rows = [
        [
            x["regime"],
            NAMES.get(x["arm"], x["arm"]),
            x["error_class"],
            f"{x['predicted']:.2f} ({x['low']:.2f} to {x['high']:.2f})",
            interval(x["measured"], 2),
        ]
        for x in p["points"]
    ]
    line = p["line"]
    said = (
        f"measured = {line['slope']:.2f} · predicted {line['intercept']:+.2f}, R² {interval(line['r2'], 2)} over {line['points']} "
        f"points; of measured = predicted, to which nothing was fitted, R² {interval(line['r2_identity'], 2)}."
        if line
        else "Too few points for a line."
    )
    return said + "\n\n" + table(["regime", "arm", "error class", "predicted repair", "measured repair"], rows)


def aims_table(document: Mapping[str, Any]) -> str:
    """Every aim with what was reached."""
    words = {True: "reached", False: "**missed**", None: "not measured"}
    rows = [[a["aim"], a["where"], a["bound"], _number(a["measured"]), words[a["reached"]]] for a in document["aims"]]
    return table(["aim", "where", "bound", "measured", ""], rows)


def _number(x: Any) -> str:
    return (
        interval(x, 4 if x and abs(x["mean"] or 0) < 0.01 else 3) if isinstance(x, Mapping) or x is None else f"{x:.3f}"
    )


def sweep_table(document: Mapping[str, Any]) -> str:
    """Every setting tried on validation tasks, or where the settings come from without a sweep."""
    if not document["sweep"]:
        own = "; ".join(f"{NAMES.get(a, a)}: {s}" for a, s in document["train_by_arm"].items())
        return f"From the configuration, not chosen in this run{f' ({own})' if own else ''}."
    rows, edges = [], []
    for arm, e in document["sweep"].items():
        edges += [NAMES.get(arm, arm)] * bool(e["at_edge"])
        for t in e["trials"]:
            setting = ", ".join(f"{k}={v}" for k, v in t["setting"].items())
            success = ", ".join(f"{s} {v:.3f}" for s, v in t["success"].items())
            kl = "–" if t["kl_per_token"] is None else f"{t['kl_per_token']:.5f}"
            rows.append(
                [
                    NAMES.get(arm, arm),
                    setting,
                    str(t["seeds"]),
                    success,
                    "–" if t.get("kept") is None else f"{t['kept']:.3f}",
                    kl,
                    "**taken**" if t["index"] == e["chosen"] else "",
                ]
            )
    edge = (
        f" The best was the first or last tried, so that a better one may lie beyond: {', '.join(edges)}."
        if edges
        else ""
    )
    said = (
        f"As many settings for every arm, on {document['sweep_split']} tasks and seeds that the tables do not use; taken is the best "
        f"mean success over temperatures, half of it on the tasks to be kept where there are such.{edge}"
    )
    return (
        said
        + "\n\n"
        + table(["arm", "setting", "seeds", "success", "on tasks to be kept", "largest off-target KL", ""], rows)
    )


def _cost(document: Mapping[str, Any]) -> str:
    cpu = ", ".join(f"{kind} {seconds:.0f} s" for kind, seconds in document["cpu_seconds"].items())
    lines = [f"CPU per job, mean: {cpu}."]
    for s in document["sessions"]:
        lines.append(
            f"{s['phase']}: {s['jobs']} jobs in {s['seconds'] / 60:.1f} minutes, {s['processes']} processes on "
            f"{s['processor']} ({s['cores']} cores), commit {s['commit']}."
        )
    return "\n".join(f"- {line}" for line in lines)

"""Count rows that may be on disk for the funnel: each kind is read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hintdistill.core.types import Critique
from hintdistill.critics.rules import NOT_JUDGED
from hintdistill.reporting.clean_traces import Drawn


def count(items: Any) -> dict[str, int]:
    """Return how often each name occurs, in the order of names; counters are used as they are."""
    return dict(sorted(Counter(items).items()))


def records(rows: Iterable[Mapping[str, Any]], splits: Mapping[str, str]) -> dict[str, Any]:
    """Count records and the student's own steps; truncated steps are counted if there are any."""
    found, failed = Counter[str](), Counter[str]()
    for row in rows:
        found["records"] += 1
        if "failure" in row:
            failed[row["failure"]["reason"]] += 1
        if "trace" in row:
            found["traces"] += 1
            messages = row["trace"]["messages"]
            found["steps"] += sum(m["role"] == "assistant" and not m.get("given") for m in messages)
            found["cut"] += any(m.get("cut") for m in messages)
    return {
        **{name: found[name] for name in ("records", "traces", "steps")},
        "failed": count(failed),
        **({"cut": found["cut"]} if found["cut"] else {}),
        "split": count(splits.values()),
    }


def critiqued(
    critiques: Mapping[str, Critique], rows: Iterable[Mapping[str, Any]], drawn: Drawn | None = None
) -> dict[str, Any]:
    """Count the critics' results; `drawn` takes in every verdict on the way."""
    verdicts, classes, notes = Counter[str](), Counter[str](), Counter[str]()
    for key, critique in critiques.items():
        if drawn is not None:
            drawn.take(key, critique.verdict)
        verdicts[critique.verdict] += 1
        classes.update(f.error_class for f in critique.findings)
        for note in critique.notes:
            notes["dropped"] += note.startswith("dropped:")
            notes["in_windows"] += note.startswith("read in ")
            notes["not_judged"] += note.startswith(NOT_JUDGED)
    return {
        "verdicts": count(verdicts),
        "failed": count(r["failure"]["reason"] for r in rows if "failure" in r),
        "findings": classes.total(),
        "by_class": count(classes),
        "dropped": notes["dropped"],
        "in_windows": notes["in_windows"],
        # steps with a call that its own schema cannot judge
        **({"not_judged": notes["not_judged"]} if notes["not_judged"] else {}),
    }


def injected(rows: Iterable[Mapping[str, Any]], twin_counts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Count the outcomes of the findings that were selected for injection."""
    made, notes = 0, Counter[str]()
    counted: dict[str, Counter[str]] = {
        k: Counter() for k in ("skipped", "failed", "placements", "fidelity", "quotes", "levels")
    }
    for row in rows:
        if "skipped" in row:
            counted["skipped"][row["skipped"]] += 1
        if "failure" in row:
            counted["failed"][row["failure"]["reason"]] += 1
        if (i := row.get("injection")) is None:
            continue
        made += 1
        counted["placements"]["/".join(filter(None, (i["placement"], i.get("role"))))] += 1
        counted["fidelity"][i["fidelity"]] += 1
        counted["quotes"][i.get("quote_found", "whole_step")] += 1
        notes.update(n.split(" ", 1)[0] for n in i.get("notes", ()))
        if i.get("level") is not None:
            counted["levels"][str(i["level"])] += 1
    return {
        "injections": made,
        **{name: count(found) for name, found in counted.items()},
        "notes": dict(notes),
        **({} if twin_counts is None else {"twins": dict(twin_counts)}),
    }

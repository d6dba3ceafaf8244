"""A sample of the traces in which no critic found anything: what a reader looks into to see what is overlooked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from hintdistill.core.storage import content_key
from hintdistill.reporting.templates import text
from hintdistill.reporting.transcripts import transcript

SAMPLE = 8
"""Traces in the report at most, drawn by a hash of their content, so that they are the same each time."""
LONGEST = 8000
"""Characters of a trace that the page shows; how many were cut is said."""


def found_nothing(trace_rows: Iterable[Mapping[str, Any]], critiques: Mapping[str, Any]) -> dict[str, Any]:
    """Return the traces whose critique is the verdict `none`: how many there are, and some of them.

    Args:
        trace_rows: rows of traces.jsonl, walked once.
        critiques: by trace row key, what the critics said together.
    """
    number, drawn = 0, list[tuple[str, dict[str, Any]]]()
    for row in trace_rows:
        said = critiques.get(row["key"]) if "trace" in row else None
        if said is None or said.verdict != "none":
            continue
        number += 1
        rank = content_key("found nothing", row["key"])
        if len(drawn) < SAMPLE or rank < drawn[-1][0]:
            drawn = sorted([*drawn, (rank, _entry(row["trace"]))], key=lambda d: d[0])[:SAMPLE]
    return {"traces": number, "sample": [entry for _, entry in drawn]}


def _entry(trace: Mapping[str, Any]) -> dict[str, Any]:
    said = transcript(trace["messages"])
    return {
        "trace": trace["id"],
        "steps": sum(m["role"] == "assistant" for m in trace["messages"]),
        "reward": trace.get("reward"),
        "text": said[:LONGEST],
        "cut": max(0, len(said) - LONGEST),
    }


def body(document: Mapping[str, Any]) -> str:
    """Return the section of the page."""
    found = document.get("found_nothing")
    if not found or not found["sample"]:
        return ""
    traces = Markup("\n").join(_shown(t) for t in found["sample"])
    said = f"{len(found['sample'])} of {found['traces']} traces in which no critic found an error. What is wrong here was overlooked."
    return str(Markup('<p class="mute">{}</p>\n{}').format(said, traces))


def _shown(trace: Mapping[str, Any]) -> Markup:
    reward = "" if trace["reward"] is None else f", reward {trace['reward']:g}"
    cut = f"\n… {trace['cut']:,} more characters" if trace["cut"] else ""
    head = text(f"{trace['trace']}, {trace['steps']} steps{reward}")
    return Markup('<details><summary>{}</summary><pre class="above">{}</pre></details>').format(
        head, text(trace["text"] + cut)
    )

"""Sample traces in which no critic found an error, so that a reader can check what was overlooked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from hintdistill.core.storage import content_key
from hintdistill.reporting.templates import text
from hintdistill.reporting.transcripts import transcript

SAMPLE = 8
"""Largest number of traces in the report; a hash of their content selects them, so that the selection is stable."""
LONGEST = 8000
"""Number of characters of a trace on the page; the number of cut characters is shown."""


def found_nothing(trace_rows: Iterable[Mapping[str, Any]], critiques: Mapping[str, Any]) -> dict[str, Any]:
    """Return the traces whose critique is the verdict `none`: their number, and a sample.

    Args:
        trace_rows: rows of traces.jsonl, read once.
        critiques: by trace row key, the merged critique.
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
    said = (
        f"{len(found['sample'])} of {found['traces']} traces in which no critic found an error. Any error in these "
        "traces was overlooked."
    )
    return str(Markup('<p class="mute">{}</p>\n{}').format(said, traces))


def _shown(trace: Mapping[str, Any]) -> Markup:
    reward = "" if trace["reward"] is None else f", reward {trace['reward']:g}"
    cut = f"\n… {trace['cut']:,} more characters" if trace["cut"] else ""
    head = text(f"{trace['trace']}, {trace['steps']} steps{reward}")
    return Markup('<details><summary>{}</summary><pre class="above">{}</pre></details>').format(
        head, text(trace["text"] + cut)
    )

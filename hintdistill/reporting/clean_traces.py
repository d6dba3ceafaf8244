"""Sample traces in which no critic found an error, so that a reader can check what was overlooked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from hintdistill.core.storage import content_key
from hintdistill.reporting.templates import text
from hintdistill.reporting.transcripts import transcript

SAMPLE = 8
"""Maximum number of traces in the report; a hash of their content selects them, so that the selection is stable."""
LONGEST = 8000
"""Number of characters of a trace on the page; the number of cut characters is shown."""


class Drawn:
    """The sample of traces in which no critic found anything, drawn while the critiques are walked."""

    def __init__(self) -> None:
        self.number = 0
        self._drawn = list[tuple[str, str]]()

    def take(self, key: str, verdict: str) -> None:
        """Take in the merged verdict on a trace, which has this row key."""
        if verdict != "none":
            return
        self.number += 1
        rank = content_key("found nothing", key)
        if len(self._drawn) < SAMPLE or rank < self._drawn[-1][0]:
            self._drawn = sorted([*self._drawn, (rank, key)])[:SAMPLE]

    def document(self, trace_rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the number of these traces, and the sample; rows of traces.jsonl are read once."""
        ranks = {key: rank for rank, key in self._drawn}
        found = {ranks[row["key"]]: _entry(row["trace"]) for row in trace_rows if row["key"] in ranks}
        return {"traces": self.number, "sample": [entry for _, entry in sorted(found.items())]}


def found_nothing(trace_rows: Iterable[Mapping[str, Any]], critiques: Mapping[str, Any]) -> dict[str, Any]:
    """Return the traces whose critique is the verdict `none`: their number, and a sample.

    Args:
        trace_rows: rows of traces.jsonl, read once.
        critiques: by trace row key, the merged critique.
    """
    drawn = Drawn()
    for key, critique in critiques.items():
        drawn.take(key, critique.verdict)
    return drawn.document(trace_rows)


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

"""The report document as one self-contained HTML file: no script from elsewhere, no font, no image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from hintdistill.reporting import printable
from hintdistill.reporting.controls import TITLES, about, interval
from hintdistill.reporting.spending import spent
from hintdistill.reporting.twins import edit_lines
from hintdistill.reporting.verdict import MARKS, split_rows, verdict
from hintdistill.reporting.worst import worst


@lru_cache(maxsize=1)
def _page() -> jinja2.Template:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        safe_text=lambda text: printable(text or ""), pct=_percent, num=_number, heat=_heat, interval=interval
    )
    return env.get_template("report.html.jinja")


def render_html(document: Mapping[str, Any], max_findings: int) -> str:
    """The whole page. Trace text is escaped by the template engine, control characters are shown."""
    shown, groups = worst(document["findings"], max_findings)
    return _page().render(
        doc=document,
        verdict=verdict(document),
        marks=MARKS,
        split_ids=dict(split_rows(document)),
        shown=shown,
        groups=groups,
        contexts=_contexts(shown),
        spent=spent(document["funnel"]["critique"].get("usage")),
        controls=document.get("controls"),
        about_controls=about(document["controls"]) if document.get("controls") else None,
        arm_titles=TITLES,
        edit_lines=edit_lines,
    )


def _contexts(shown: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Key of a finding → key of the first one shown with the same text above its step, which is printed once."""
    first: dict[tuple[str, str], str] = {}
    return {f["key"]: first.setdefault((f["trace"], f["context_above"]), f["key"]) for f in shown}


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}\u00a0%"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _heat(probability: float | None) -> str:
    """Background for a token: red where it is unlikely, clear where it is certain."""
    if probability is None:
        return "transparent"
    return f"rgba(214, 51, 51, {0.75 * (1 - probability) ** 1.5:.3f})"

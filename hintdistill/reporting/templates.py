"""The templates of the page: how text, numbers and drawings are put into HTML."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from hintdistill.reporting import printable
from hintdistill.reporting.controls import interval

PAGE = Path(__file__).parent / "page"
"""Templates, style and scripts of the page."""
MOVED = 0.005
"""Probability: a token that moved by less is not shown among those that moved."""
ROWS = 40
"""Tokens that a finding lists at most as plain HTML."""


@cache
def environment() -> jinja2.Environment:
    """Return the template environment: everything is escaped, an unknown name is an error."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        safe_text=lambda value: printable(value or ""),
        pct=percent,
        num=number,
        interval=interval,
        moved=lambda token, start, end: moved(token[start], token[end]),
        moved_tokens=moved_tokens,
    )
    return env


def text(value: Any) -> Markup:
    """Escape a text for HTML; control characters are shown."""
    return escape(printable(str(value)))


def picture(svg: str, alt: str) -> Markup:
    """Put a drawing into the page as an image, in which its own styles work and no script does.

    Args:
        svg: the drawing's XML. It is drawn on white, also on a dark page.
        alt: what it shows, in words, for those who do not see it.
    """
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return Markup('<img class="drawing" alt="{}" src="data:image/svg+xml;base64,{}">').format(printable(alt), data)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share in percent; a dash if there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u00a0%"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number; a dash if there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def moved(start: float | None, end: float | None) -> str:
    """Return the class of a change of probability: `up1` to `up3`, `down1` to `down3`; empty for a small change. As in
    finding.js."""
    if start is None or end is None or abs(end - start) < 0.02:
        return ""
    size = 1 + sum(abs(end - start) >= bound for bound in (0.15, 0.4))
    return f"{'up' if end > start else 'down'}{size}"


def moved_tokens(finding: Mapping[str, Any]) -> tuple[list[tuple[int, Mapping[str, Any]]], int]:
    """Return the tokens of a step that a reader looks at, with their numbers in the step, and how many more there are.

    They are the quote, the decision token, and those that the hint or the training moved; where there are too many, those that
    moved most.
    """
    decision = finding["decision"]["position"] if finding["decision"] else None
    change = {i: _change(t) for i, t in enumerate(finding["tokens"])}
    found = [i for i, t in enumerate(finding["tokens"]) if t["quoted"] or i == decision or change[i] >= MOVED]
    kept: Sequence[int] = found
    if len(found) > ROWS:
        kept = sorted(sorted(found, key=lambda i: (i != decision, -change[i]))[:ROWS])
    return [(i, finding["tokens"][i]) for i in kept], len(found) - len(kept)


def _change(token: Mapping[str, Any]) -> float:
    """Return the largest change of a token's probability, by the hint or by the training."""
    later = [token[when] for when in ("hinted", "after") if token[when] is not None]
    return max((abs(p - token["before"]) for p in later), default=0.0)

"""The templates of the page, which put text, numbers and drawings into HTML."""

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
"""The folder of the page's templates, style and scripts."""
MOVED = 0.005
"""Smallest change of a token's probability that counts as movement."""
ROWS = 40
"""Maximum number of tokens that a finding lists as plain HTML."""


@cache
def environment() -> jinja2.Environment:
    """Return the template environment: everything is escaped, and an unknown name is an error."""
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
    """Escape a text for HTML; control characters are made visible."""
    return escape(printable(str(value)))


def picture(svg: str, alt: str) -> Markup:
    """Embed a drawing in the page as an image, in which its own styles work but no script runs.

    Args:
        svg: the drawing's XML. It has a white background even on a dark page.
        alt: a description in words, for readers who cannot see it.
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
    """Return the CSS class of a change of probability: `up1` to `up3`, `down1` to `down3`; empty for a small change.
    Same as in finding.js."""
    if start is None or end is None or abs(end - start) < 0.02:
        return ""
    size = 1 + sum(abs(end - start) >= bound for bound in (0.15, 0.4))
    return f"{'up' if end > start else 'down'}{size}"


def moved_tokens(finding: Mapping[str, Any]) -> tuple[list[tuple[int, Mapping[str, Any]]], int]:
    """Return the tokens of a step that matter to a reader, with their indices in the step, and the number of other
    tokens.

    They are the quote, the decision token, and tokens that the hint or the training moved; if there are too many, those
    that moved most.
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

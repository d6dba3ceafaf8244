"""Render the report document as one self-contained HTML file, which loads nothing from elsewhere and runs only its own
script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from markupsafe import Markup

from hintdistill.reporting.islands import pack
from hintdistill.reporting.sections import SECTIONS, Section
from hintdistill.reporting.templates import PAGE, environment
from hintdistill.reporting.twins import edit_lines
from hintdistill.reporting.verdict import MARKS, verdict
from hintdistill.reporting.worst import worst, worst_first

SCRIPTS = ("unpack.js", "tokens.js", "finding.js", "list.js", "main.js")
"""The files of the page's script, in order."""
STATIC = 50
"""Number of findings that are also plain HTML, for print and for readers without scripts."""


def render_html(
    document: Mapping[str, Any], max_findings: int, traces: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Return the whole page as one text; see `html_pieces`."""
    return "".join(html_pieces(document, max_findings, traces))


def html_pieces(
    document: Mapping[str, Any], max_findings: int, traces: Mapping[str, Mapping[str, Any]] | None = None
) -> Iterator[str]:
    """Yield the page in pieces, so that it is never in memory as a whole.

    Trace text is escaped by the template engine, or packed; control characters are made visible.

    Args:
        document: the report document; see docs/report.md.
        max_findings: maximum number of findings on the page, those with the most probable error first.
        traces: by trace id, the result of `islands.trace_page`; without it, a finding shows only its own context.
    """
    shown, groups = worst(document["findings"], max_findings)
    first = list(worst_first(shown)[:STATIC])
    style, script = _style(), _script()
    return (
        environment()
        .get_template("page.html.jinja")
        .generate(
            doc=document,
            about=_about(document["run"]),
            policy=policy(style, script),
            style=Markup(style),
            script=Markup(script),
            verdict=verdict(document),
            marks=MARKS,
            sections=_sections(document),
            shown=shown,
            groups=groups,
            worst_shown=first,
            contexts=_contexts(first),
            edit_lines=edit_lines,
            islands=pack(shown, document["unscored"], traces or {}),
        )
    )


def policy(style: str, script: str) -> str:
    """Return the page's content security policy: its own style and script by their hashes, embedded images, nothing
    else."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


@cache
def _style() -> str:
    return (PAGE / "page.css").read_text(encoding="utf-8")


@cache
def _script() -> str:
    files = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{files}\n}})();'


def _about(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the facts that identify the run, as terms and values."""
    return [
        ("run", run.get("name")),
        ("started", run.get("started")),
        ("student", run["model"]),
        ("data", ", ".join(run.get("data") or [])),
        ("critics", ", ".join(run["critics"])),
        ("hints", run["hint"]),
        ("recipe", (run.get("recipe") or {}).get("called")),
        ("lowers a token that the teacher lowers", (run.get("recipe") or {}).get("lowers_error")),
        ("command", run.get("command")),
        ("config", run.get("config_hash")),
        ("hintdistill", run["versions"].get("hintdistill")),
    ]


def _sections(document: Mapping[str, Any], sections: Sequence[Section] = SECTIONS) -> list[dict[str, Any]]:
    """Return the sections with content, each with its HTML."""
    made = []
    for section in sections:
        html = "" if section.body is None else section.body(document).strip()
        if section.body is None or html:
            made.append({"anchor": section.anchor, "title": Markup(section.title), "html": Markup(html)})
    return made


def _contexts(shown: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Map each finding's key to the key of the first finding shown with the same text above its step, which is printed
    once."""
    first: dict[tuple[str, str], str] = {}
    return {f["key"]: first.setdefault((f["trace"], f["context_above"]), f["key"]) for f in shown}

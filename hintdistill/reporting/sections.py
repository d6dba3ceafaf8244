"""The sections of the page in their order; a new section is one line in `SECTIONS`.

A section is made from the report document alone and returns HTML, so it must itself escape everything from a trace, a
name or a message (`templates.text`). The page allows only its own style (see `html.policy`): `style` attributes and
elements have no effect, and drawings are embedded by `templates.picture`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hintdistill.reporting import clean_traces, curves, failed_episodes, intervals, spending, ways_out
from hintdistill.reporting.controls import TITLES, about
from hintdistill.reporting.spending import spent
from hintdistill.reporting.templates import environment
from hintdistill.reporting.verdict import split_rows

Body = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Section:
    """Define a section of the page."""

    anchor: str
    """Id on the page, to which the verdict's figures link."""
    title: str
    """Title as HTML, used unchanged."""
    body: Body | None
    """Makes the HTML from a report document; a section without content is left out with its title. None marks the
    findings, which the page itself makes."""


def table(name: str) -> Body:
    """Make a section from a macro in tables.html.jinja that receives the document."""

    def body(document: Mapping[str, Any]) -> str:
        controls = document.get("controls")
        module = (
            environment()
            .get_template("tables.html.jinja")
            .make_module(
                {
                    "spent": spent(document["funnel"]["critique"].get("usage")),
                    "split_ids": dict(split_rows(document)),
                    "about_controls": about(controls) if controls else None,
                    "arm_titles": TITLES,
                }
            )
        )
        return str(getattr(module, name)(document))

    return body


SECTIONS: tuple[Section, ...] = (
    Section("overview", "Overview", table("overview")),
    Section("warnings", "Warnings", table("warnings")),
    Section("funnel", "Funnel", table("funnel")),
    Section("twins", "Twins: where the same step is right", table("twins")),
    Section("classes", "What the hints did, by error class", table("classes")),
    Section("placebos", "Effects against placebos", intervals.body),
    Section("curves", "While training", curves.body),
    Section("cost", "What the critics cost", spending.body),
    Section("environment", "In the environment", table("environment")),
    Section("failed-after", "Episodes that fail after training", failed_episodes.body),
    Section("off-target", "What else moved", table("off_target")),
    Section("controls", "Is the effect the hint's?", table("controls")),
    Section("findings", "Findings", None),
    Section("unscored", "Findings that were not scored", ways_out.body),
    Section("found-nothing", "Traces in which nothing was found", clean_traces.body),
)
"""All sections in order."""

"""The sections of the page, in their order: a new one is one line of `SECTIONS`.

A section is made of the report document alone and gives HTML, so whatever it shows of a trace, a name or a message it escapes
itself (`templates.text`). The page allows no style but its own (see `html.policy`): no `style` attribute or element works in it, and
a drawing goes in as `templates.picture`.
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
    """A section of the page."""

    anchor: str
    """Id on the page; the verdict's figures link to it."""
    title: str
    """HTML, as written here."""
    body: Body | None
    """HTML of a report document; one that gives nothing is left out with its title. None: the findings, which the page makes."""


def table(name: str) -> Body:
    """Make a section of a macro in tables.html.jinja that is given the document."""

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
"""Every section, in order."""

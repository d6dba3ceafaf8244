"""Tables of the page that are made in Python: headers with their scope, numbers aligned right, every cell escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from hintdistill.reporting.templates import text


def html_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[int] = ()
) -> Markup:
    """Return a table that scrolls sideways if it is wide. The first cell of a row is its header.

    Args:
        title: a description of the table, for readers who use a screen reader.
        numeric: the columns that contain numbers.
    """
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(_class(i in numeric, "n"), text(c)) for i, c in enumerate(columns)
    )
    body = Markup("").join(Markup("<tr>{}</tr>\n").format(_row(row, numeric)) for row in rows)
    return Markup(
        '<div class="box" role="region" tabindex="0" aria-label="Table: {}"><table>\n'
        "<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table></div>"
    ).format(text(title), head, body)


def _row(row: Sequence[Any], numeric: Sequence[int]) -> Markup:
    first, *others = (c if isinstance(c, Markup) else text("" if c is None else c) for c in row)
    cells = Markup("").join(
        Markup("<td{}>{}</td>").format(_class(i in numeric, "n"), c) for i, c in enumerate(others, start=1)
    )
    return Markup('<th scope="row" class="plain">{}</th>{}').format(first, cells)


def _class(has: bool, name: str) -> Markup:
    return Markup(' class="{}"').format(name) if has else Markup("")

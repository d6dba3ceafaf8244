"""Findings in the terminal: aligned lines that are never cut, tab-separated values in a pipe, and a table for a single
finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from hintdistill.reporting import printable
from hintdistill.reporting.choose import Chosen, Wanted, choose, name_of, reasons_of
from hintdistill.reporting.twins import edit_lines

WHEN = ("before", "hinted", "after")


def show_findings(document: Mapping[str, Any], console: Console, wanted: Wanted | None = None) -> None:
    """Print one line per finding, with full ids at any width; in a pipe, print tab-separated values with full
    numbers."""
    chosen = choose(document, wanted or Wanted())
    plain = not console.is_terminal
    rows = [_finding_row(f, plain) for f in chosen.findings] + [_unscored_row(f) for f in chosen.unscored]
    write_rows(("trace:step", "class", "split", "trained", *WHEN, "verdict"), rows, console)
    if not plain:
        console.print(Text(_counted(chosen), style="dim"), soft_wrap=True)


def _counted(chosen: Chosen) -> str:
    shown = len(chosen.findings) + len(chosen.unscored)
    left = chosen.matching - len(chosen.findings)
    return f"{shown} of {chosen.total} findings" + (f"; {left} more match" if left else "")


def _finding_row(f: Mapping[str, Any], plain: bool) -> list[str]:
    d = f["decision"] or dict.fromkeys(WHEN)
    verdict = "accepted" if f["accepted"] else ", ".join(f["reasons"])
    trained = "trained" if f["trained"] else ""
    return [
        name_of(f),
        f["error_class"] or "",
        f["split"] or "",
        trained,
        *(_number(d[k], plain) for k in WHEN),
        verdict,
    ]


def _unscored_row(f: Mapping[str, Any]) -> list[str]:
    return [
        name_of(f),
        f["error_class"] or "",
        "",
        "",
        "",
        "",
        "",
        f"not scored: {', '.join(reasons_of(f)) or 'no reason'}",
    ]


def write_rows(heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Write a table: aligned on a terminal, tab-separated elsewhere. Cells are never cut; control characters are made
    visible."""
    cells = [list(heads), *([_cell(c) for c in row] for row in rows)]
    if not console.is_terminal:
        for row in cells:
            console.file.write("\t".join(row) + "\n")
        return
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(heads))]
    for n, row in enumerate(cells):
        line = "  ".join(c + " " * (w - cell_len(c)) for c, w in zip(row, widths, strict=True)).rstrip()
        console.print(Text(line, style="bold" if n == 0 else ""), soft_wrap=True)


def _cell(text: str) -> str:
    """Return a text in one line without tabs."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _number(value: float | None, plain: bool) -> str:
    """Return a probability as text: three digits on a terminal, in full for a program; empty if there is none."""
    if value is None:
        return "" if plain else "–"
    return repr(float(value)) if plain else f"{value:.3f}"


def show_unscored(finding: Mapping[str, Any], console: Console) -> None:
    """Print a finding that was not scored, with its reason."""
    why = ", ".join(reasons_of(finding)) or "no reason"
    line = f"{name_of(finding)} {finding['error_class'] or ''} not scored: {why}"
    console.print(Text(printable(line)), soft_wrap=True)
    for key in ("quote", "message"):
        if finding.get(key):
            console.print(Text(f"{key}: {printable(finding[key])}", style="dim"), soft_wrap=True)


def show_finding(finding: Mapping[str, Any], console: Console) -> None:
    """Print one finding: the hint in place, and the step's tokens as a table with values before, under the hint and
    after."""
    verdict = "[green]accepted[/]" if finding["accepted"] else f"[red]{escape(', '.join(finding['reasons']))}[/]"
    trained = ", trained" if finding["trained"] else ""
    name, kind = escape(printable(name_of(finding))), escape(printable(finding["error_class"] or ""))
    console.print(f"[bold]{name}[/] {kind} {verdict}{trained}", soft_wrap=True)
    console.print(Text("…" + printable(finding["context_above"]), style="dim"), soft_wrap=True)
    console.print(Text(printable(finding["hint"] or ""), style="black on yellow"), soft_wrap=True)
    console.print(Text(printable(finding["context_below"]), style="dim"), soft_wrap=True)
    if console.is_terminal:
        _show_lines(finding, console)
    _show_tokens(finding, console)
    decision = finding["decision"]
    if decision:
        after = "" if decision["after"] is None else f", {decision['after']:.4f} after training"
        console.print(
            f"decision token {escape(printable(repr(decision['token'])))}: {decision['before']:.4f} → "
            f"{decision['hinted']:.4f} under the hint{after}; the teacher says {escape(printable(repr(decision['instead'])))}",
            soft_wrap=True,
        )
    _show_twins(finding.get("twins", ()), console)


def _show_lines(finding: Mapping[str, Any], console: Console) -> None:
    """Print the step as text three times: unlikely tokens are red, quoted tokens underlined."""
    for when in WHEN:
        if not finding["tokens"] or finding["tokens"][0][when] is None:
            continue
        line = Text(f"{when:>7} ")
        for token in finding["tokens"]:
            style = "on red" if token[when] < 0.1 else "on dark_red" if token[when] < 0.5 else ""
            line.append(printable(token["text"]), style=style + (" underline" if token["quoted"] else ""))
        console.print(line, soft_wrap=True)


def _show_tokens(finding: Mapping[str, Any], console: Console) -> None:
    """Print a row per token of the step, with a mark at quoted tokens and at the decision token."""
    plain, decision = not console.is_terminal, finding["decision"]
    rows = []
    for i, t in enumerate(finding["tokens"]):
        marks = ["quote"] * bool(t["quoted"]) + ["decision"] * bool(decision and decision["position"] == i)
        numbers = (_number(t[k], plain) for k in WHEN)
        rows.append([str(i), repr(t["text"]), *numbers, repr(t["instead"]), " ".join(marks)])
    write_rows(("token", "text", *WHEN, "teacher says", "part of"), rows, console)


def _show_twins(twins: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a finding's twins: the contexts where the same step is right, and whether the policy takes it there."""
    for twin in twins:
        verdict = "[green]kept[/]" if twin["accepted"] else f"[red]{escape(', '.join(twin['reasons']))}[/]"
        after = "" if twin["after"] is None else f", {twin['after']:.4f} after training"
        console.print(
            f"twin {escape(printable(twin['maker']))}/{escape(printable(twin['kind']))} {verdict}: {twin['original']:.4f} in the "
            f"original → {twin['here']:.4f} here{after}",
            soft_wrap=True,
        )
        for line in edit_lines(twin["edit"]):
            console.print(Text("  " + printable(line), style="dim"), soft_wrap=True)

"""Print the report document in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hintdistill.reporting import printable
from hintdistill.reporting.comparison import counts, shown
from hintdistill.reporting.effects import moved_line
from hintdistill.reporting.inspection import FileReport
from hintdistill.reporting.spending import spent
from hintdistill.reporting.verdict import MARKS, verdict


def show_comparison(document: Mapping[str, Any], console: Console) -> None:
    """Print two runs side by side: figures with their differences, settings that differ, and counts of findings."""
    for letter, run in zip("AB", document["runs"], strict=True):
        console.print(f"{letter}: {printable(run['path'])}", markup=False, soft_wrap=True)
    table = Table("figure", title="figures", title_justify="left")
    for heading in ("A", "B", "B − A"):
        table.add_column(heading, justify="right")
    for m in document["metrics"]:
        table.add_row(escape(printable(m["name"])), shown(m["a"]), shown(m["b"]), shown(m["difference"], True))
    console.print(table)
    for c in document["config"]:
        console.print(f"{c['key']}: {c['a']!r} → {c['b']!r}", markup=False, highlight=False, soft_wrap=True)
    console.print(counts(document), markup=False, highlight=False, soft_wrap=True)


def show_summary(document: Mapping[str, Any], console: Console) -> None:
    """Print the funnel, effects by class, the environment, and off-target movement."""
    f, e = document["funnel"], document["effects"]
    console.print(
        f"[bold]{f['read']['traces']}[/] traces → [bold]{f['critique']['findings']}[/] findings → "
        f"[bold]{f['inject']['injections']}[/] injections → [bold]{f['rescore']['accepted']}[/] accepted → "
        f"[bold]{f['train']['hints']}[/] trained"
    )
    _show_recipe(document["run"].get("recipe"), console)
    if line := spent(f["critique"].get("usage")):
        console.print(line, highlight=False, soft_wrap=True)
    if f["rescore"]["reasons"]:
        console.print("reasons for rejection: " + ", ".join(f"{n} {r}" for r, n in f["rescore"]["reasons"].items()))
    _show_coverage(document.get("twins"), console)
    table = Table(
        "error class",
        "findings",
        "accepted",
        "before",
        "hinted",
        "after",
        title="probability of the error",
        title_justify="left",
    )
    for name, x in [*e["by_class"].items(), ("held-out traces", e["by_split"]["holdout"])]:
        p = x["error_probability"]
        table.add_row(
            escape(printable(name)),
            str(x["n"]),
            str(x["accepted"]),
            *(_number(p[k]) for k in ("before", "hinted", "after")),
        )
    console.print(table)
    levels = e.get("by_level") or {}
    if levels:
        said = ", ".join(f"level {n}: {x['accepted']} of {x['n']} accepted" for n, x in levels.items())
        console.print(f"hints by level: {said}")
    if document["environment"]:
        _show_environment(document["environment"]["splits"], console)
    if document["off_target_kl_nats"] is not None:
        console.print(f"off-target KL {document['off_target_kl_nats']:.5f} nats per token")
    rate = document["gate"]["null_pass_rate"]
    if rate is not None:
        console.print(f"placebos that pass the gate: {rate:.1%}")
    for warning in document["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(printable(warning))}")
    if line := moved_line(document):
        console.print(line, highlight=False, soft_wrap=True)
    show_verdict(document, console)


def _show_environment(splits: Mapping[str, Any], console: Console) -> None:
    table = Table("split", "", "episodes", "success", "with an error", title="in the environment", title_justify="left")
    for split, by in splits.items():
        for when, x in by.items():
            table.add_row(split, when, str(x["episodes"]), f"{x['success_rate']:.1%}", f"{x['error_rate']:.1%}")
    console.print(table)
    for split, by in splits.items():
        for when, x in by.items():
            for effect, t in x.get("tools", {}).items():
                console.print(
                    f"{split} {when}, tools that {'read' if effect == 'reads' else 'change state'}: "
                    f"{t['calls']:.2f} calls per episode, of which {t['error_rate']:.1%} returned an error",
                    soft_wrap=True,
                )


def show_verdict(document: Mapping[str, Any], console: Console) -> None:
    """Print the sentence and the figures from the top of the page, with regressions first and marked."""
    found = verdict(document)
    console.print()
    style = "bold red" if found.worse else "bold"
    console.print(Text(printable(found.sentence), style=style), soft_wrap=True)
    styles = {"worse": "bold red", "look": "yellow", "unknown": "dim", "good": "green"}
    for figure in found.figures:
        line = Text(f"{MARKS[figure.state]:>12}  ", style=styles[figure.state])
        console.print(line.append(printable(f"{figure.title}: {figure.value}"), style="default"), soft_wrap=True)
        for detail in figure.lines if figure.state != "good" else ():
            console.print(Text(f"{'':>14}{printable(detail)}", style="dim"), soft_wrap=True)


def _show_recipe(recipe: Mapping[str, str] | None, console: Console) -> None:
    """Print the trained recipe, with a note if it does not always lower what the teacher lowers; print nothing for
    reports of older releases."""
    if recipe is None:
        return
    lowers = (
        ""
        if recipe["lowers_error"].startswith("yes")
        else f"; lowers a token that the teacher lowers: {recipe['lowers_error']}"
    )
    console.print(escape(printable(f"recipe {recipe['called']}{lowers}")), highlight=False, soft_wrap=True)


def _show_coverage(twins: Mapping[str, Any] | None, console: Console) -> None:
    """Print which findings have a twin, by class, and the policy's behaviour in them; print nothing if no twin was
    scored."""
    if twins is None:
        return
    classes = ", ".join(f"{printable(n)} {x['covered']}/{x['findings']}" for n, x in twins["by_class"].items())
    console.print(f"findings with a twin: {escape(classes)}", highlight=False, soft_wrap=True)
    for name in ("kept", "dropped"):
        some, p = twins[name], twins[name]["probability"]
        why = ", ".join(f"{n} {r}" for r, n in some["reasons"].items())
        console.print(
            f"twins {name}: {some['twins']}{f' ({why})' if why else ''}; probability of the step's decision token "
            f"{_number(p['original'])} in the original, {_number(p['here'])} in the twin, {_number(p['after'])} there after training",
            highlight=False,
            soft_wrap=True,
        )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def show_files(reports: Sequence[FileReport], console: Console) -> None:
    """Print a few lines per trace file: its contents, the findings of the checks, and unread content with the
    reason."""
    for r in reports:
        console.print(f"[bold]{escape(printable(r.path))}[/]" + (f"  ({r.format})" if r.format else ""), soft_wrap=True)
        if r.traces:
            because = ", ".join(f"{n} {escape(printable(why))}" for why, n in r.given_because.items())
            given = f" ({r.given_steps} given: {because})" if r.given_steps else ""
            held = f"schemas in {r.schemas}, token ids on {r.token_ids} steps, rewards in {r.rewards}"
            console.print(
                f"  {r.traces} traces, {r.steps} steps{given}, {r.tool_calls} tool calls; {held}", soft_wrap=True
            )
        if r.checks:
            hits = ", ".join(f"{n} {name}" for name, n in r.checks.items())
            console.print(f"  checks: {hits}", soft_wrap=True)
        if r.not_judged:
            console.print(
                f"  {r.not_judged} steps with a call that its tool's schema cannot judge (`critique` notes say why)",
                soft_wrap=True,
            )
        if r.reason:
            text = escape(printable(r.reason))
            console.print(f"  [yellow]{text}[/]" if r.failures else f"  {text}", soft_wrap=True, highlight=False)
        for item in r.lost or ():
            place = item.path or "the whole record"
            why = item.reason or "[bold]the reason is unknown[/]"
            shown = escape(printable(item.example)) if item.reason is None else ""
            console.print(
                f"  not in the traces: {escape(place)}: {item.strings} texts, {item.characters} characters: {why} {shown}",
                soft_wrap=True,
            )
    steps, failed = sum(r.steps for r in reports), sum(r.failures for r in reports)
    console.print(f"{len(reports)} files, {sum(r.traces for r in reports)} traces, {steps} steps, {failed} failures")

"""`hintdistill show`: list the findings of a run, filtered if asked, or show one."""

from __future__ import annotations

from typing import Annotated

import typer

from hintdistill.cli.look import print_json
from hintdistill.cli.options import Json, RunArg


def show(
    run: RunArg,
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[TRACE:STEP]", help="Name of one finding; its beginning is sufficient.", show_default=False
        ),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option("--worst", min=1, help="Show only N findings, those with the most probable error first."),
    ] = None,
    error_class: Annotated[str | None, typer.Option("--class", help="Show only findings of this error class.")] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", help="Show only findings that were rejected or not scored for this reason."),
    ] = None,
    trained: Annotated[bool, typer.Option("--trained", help="Show only findings that were trained on.")] = False,
    search: Annotated[
        str | None,
        typer.Option("--search", help="Show only findings with this text in their id, hint, quote, step or context."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the findings of a run, or show one with its tokens before training, under the hint and after training.

    Examples: `show RUN --trained --worst 20`, `show RUN --reason no_effect`, `show RUN task-0017:2`.
    """
    from rich.console import Console

    from hintdistill.core.errors import ConfigError
    from hintdistill.reporting.choose import Wanted, choose, named
    from hintdistill.reporting.listing import show_finding, show_findings, show_unscored
    from hintdistill.reporting.opened import open_run

    document, wanted = open_run(run).document, Wanted(error_class, reason, trained, search, worst)
    if which is None:
        if as_json:
            chosen = choose(document, wanted)
            print_json([*chosen.findings, *(chosen.unscored if reason is not None else [])])
        else:
            show_findings(document, Console(), wanted)
        return
    if wanted != Wanted():
        raise ConfigError("a finding's name and a selection cannot be combined", hint=f"hintdistill show {run} {which}")
    found = named(document, which)
    if as_json:
        print_json(found)
        return
    for finding in found:
        (show_finding if "tokens" in finding else show_unscored)(finding, Console())

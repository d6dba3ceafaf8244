"""`hintdistill export`: write a run's targets for another trainer. It parses, calls and prints; it contains no
logic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hintdistill.cli.look import print_json, say
from hintdistill.cli.options import Json, RunArg, Trust


def export(
    run: RunArg,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="k=…: ids per token; tail=keep|drop|renormalise: how the other ids are treated.", show_default=False
        ),
    ] = None,
    to: Annotated[str, typer.Option("--to", help="hf, trl, axolotl or tinker; see docs/bridges.md.")] = "hf",
    out: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/export/FORMAT.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the rows, for the data card.")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Compare the loss of 20 rows, computed by the format's formula, with the toolkit's own."
        ),
    ] = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Write a run's targets for another trainer, with a data card that says what information the format loses."""
    from hintdistill.bridges.export import ExportSettings, export

    settings = ExportSettings.parse(overrides or [])
    folder, card = export(
        run,
        to,
        settings,
        out=out,
        licence=licence,
        checked=check,
        trust=trust,
        say=lambda text: None if as_json else say(text),
    )
    if as_json:
        print_json(card | {"folder": str(folder)})
        return
    steps = ", ".join(f"{n} {kind}" for kind, n in card["steps"].items())
    say(f"export: {card['written']['rows']} rows ({steps}) → {folder}")
    for what in card["loses"]:
        say(f"  loses {what}")

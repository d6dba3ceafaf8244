"""The `contexts` command group, about the texts that teacher views read. It parses, calls and prints; it contains no
logic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hintdistill.cli.look import print_json, say
from hintdistill.cli.options import Json, Overrides

contexts_app = typer.Typer(help="List the context makers and show the contexts they make.", no_args_is_help=True)


@contexts_app.command("list")
def contexts_list(as_json: Json = False) -> None:
    """List every context maker with its name and its sources."""
    from hintdistill.core.extensions import HINT_SOURCES

    rows = [{"name": s.name, "reads": s.reads, "placements": list(s.placements)} for s in HINT_SOURCES.entries()]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['name']:<16} {row['reads']}")


@contexts_app.command("render")
def contexts_render(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.", show_default=False)],
    overrides: Overrides = None,
    trace: Annotated[str | None, typer.Option(help="Show only the trace with this id.")] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Show only this step.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Maximum number of steps to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Print the text that the teacher's views would read above each step, made and spliced as in a run. Nothing is
    written."""
    from dataclasses import asdict

    from hintdistill.config.file import load_config
    from hintdistill.planning.contexts import lines, preview

    found = preview(load_config(config, overrides or []), trace, step, most)
    if as_json:
        print_json(asdict(found))
        return
    for line in lines(found):
        say(line)

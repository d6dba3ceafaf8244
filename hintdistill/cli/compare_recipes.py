"""The command `compare-recipes`. It parses, calls and prints; it contains no logic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hintdistill.cli.interrupts import continued_by
from hintdistill.cli.look import print_json, say
from hintdistill.cli.options import Config, DryRun, Json, Quiet, Resume, Trust

if TYPE_CHECKING:
    from hintdistill.config import RunConfig


def compare_recipes(
    config: Config,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE...]",
            help="Each recipe as NAME, NAME@RATE or a file; rows=, steps= and clean_steps= for all arms; run settings.",
            show_default=False,
        ),
    ],
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Compare recipes on your traces: train one student per recipe on equally many rows and steps, and evaluate
    each."""
    from rich.console import Console as RichConsole

    from hintdistill.config.file import load_as, load_config
    from hintdistill.pipeline.compare_recipes import ahead, parse_arms
    from hintdistill.pipeline.compare_recipes import compare_recipes as compare
    from hintdistill.pipeline.controls import ControlsSettings
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.run import run_folder
    from hintdistill.reporting.recipes import show_recipes

    arms = parse_arms([w for w in words if "=" not in w])
    given = [w for w in words if "=" in w]
    of_run = [w for w in given if "." in w.partition("=")[0]]
    settings = load_as(ControlsSettings, None, [w for w in given if w not in of_run])

    def config_of(recipe: str | None) -> RunConfig:
        return load_config(config, [*of_run, *([f"train.recipe={recipe}"] if recipe else [])])

    folder = run_folder(config_of(None), f"{config.stem}-recipes")
    if dry_run:
        document = ahead(config_of, folder, arms, settings)
        print_json(document) if as_json else say("\n".join(document["lines"]))
        return
    named = [] if any(w.startswith("run.dir=") for w in of_run) else [f"run.dir={folder}"]
    again = [str(config), *words, *named, "--resume", *(["--trust"] if trust else [])]
    with continued_by(folder, "compare-recipes", *again):
        console = Console(quiet=quiet or as_json)
        document = compare(config_of, folder, arms, settings, resume=resume, console=console, trust=trust)
    if as_json:
        print_json(document)
        return
    show_recipes(document, RichConsole())
    print(f"compare-recipes: {folder / 'compare.json'} and compare.md")

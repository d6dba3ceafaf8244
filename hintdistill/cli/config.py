"""`hintdistill config`: describe the configuration keys."""

from __future__ import annotations

from typing import Annotated

import typer

from hintdistill.cli.look import print_json

config_app = typer.Typer(no_args_is_help=True, help="Describe the configuration keys.")


@config_app.callback()
def _config() -> None:
    """Describe the configuration keys."""


@config_app.command()
def schema(
    recipe: Annotated[bool, typer.Option("--recipe", help="Print the schema of a recipe file instead.")] = False,
) -> None:
    """Print the JSON schema of a config file: every key, its type, bounds and meaning."""
    from hintdistill.config.surface import json_schema, recipe_schema

    print_json(recipe_schema() if recipe else json_schema())

"""The options that several commands share: each is defined once, so that it means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path, typer.Argument(help="YAML file, see configs/; with --resume also a run folder.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, e.g. traces.limit=20.", show_default=False)
]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings, no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first N traces.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run; finished work is not repeated.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Estimate the work in tokens, money and bytes; change nothing and contact no server.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow a run folder from elsewhere to run the code it names, to download, and to contact servers.",
    ),
]

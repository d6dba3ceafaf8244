"""The commands of runs in shards: `merge`, and the option that names a shard. Parse, call, print; no logic."""

from __future__ import annotations

from typing import Annotated

import typer

from hintdistill.cli.look import Json, RunArg, Trust

ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Only part I of N of the traces, from critique on, in the run.dir that all parts share; `env` under torchrun.",
    ),
]


def merge(
    run: RunArg,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, no progress.")] = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Make one run of the shards in RUN/shards; `run RUN --resume` goes on with it."""
    from hintdistill.cli.interrupts import continued_by
    from hintdistill.cli.running import finish
    from hintdistill.pipeline.merge import merge as merge_shards
    from hintdistill.pipeline.progress import Console

    with continued_by(run, "merge", str(run), *(["--trust"] if trust else [])):
        merge_shards(run, Console(quiet=quiet or as_json), trust=trust)
    finish(run, as_json)

"""The commands for runs in shards, `merge` and `ray`, and the option that names a shard. They parse, call and print;
they contain no logic.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hintdistill.cli.options import Config, Json, Overrides, Quiet, RunArg, Trust

ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Process only shard I of N of the traces, from critique onwards, in the run.dir that all shards "
        "share; `env` under torchrun.",
    ),
]


def merge(
    run: RunArg,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Merge the shards in RUN/shards into one run, which `run RUN --resume` continues."""
    from hintdistill.cli.interrupts import continued_by
    from hintdistill.cli.running import finish
    from hintdistill.pipeline.merge import merge as merge_shards
    from hintdistill.pipeline.progress import Console

    with continued_by(run, "merge", str(run), *(["--trust"] if trust else [])):
        merge_shards(run, Console(quiet=quiet or as_json), trust=trust)
    finish(run, as_json)


def ray(
    config: Config,
    overrides: Overrides = None,
    shards: Annotated[
        int, typer.Option("--shards", min=1, help="Number of shards; best a few times the number of actors.")
    ] = 8,
    actors: Annotated[int, typer.Option("--actors", min=1, help="Number of processes, each with an engine.")] = 2,
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="Cores per process.")] = 1.0,
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="GPUs per process.")] = 0.0,
    until: Annotated[str, typer.Option(help="Last stage: critique, inject or rescore.")] = "rescore",
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Critique, inject and rescore in shards on a Ray cluster (RAY_ADDRESS, else this machine), and merge them."""
    from hintdistill.cli.running import finish
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.ray_shards import Actors, run_on_ray

    settings, console = load_config(config, overrides or []), Console(quiet=quiet or as_json)
    how = Actors(actors, cpus, gpus)
    finish(run_on_ray(settings, shards, how, until=until, console=console, trust=trust), as_json)

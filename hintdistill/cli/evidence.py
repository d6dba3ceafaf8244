"""The commands that say whether the effect is real: `ablate` and `preflight`. Parse, call, print; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hintdistill.cli.look import Json, print_json, say


def ablate(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/ablate.yaml.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Do what is owed of the ablation in run.dir.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Four arms, two seeds, fewer tasks.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Regimes, critic noise and further arms as well.")] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="First choose every arm's settings on validation tasks.")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Table and figure of what is finished; runs no job.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, no progress.")] = False,
    as_json: Json = False,
) -> None:
    """The same loop as controlled arms over seeds: one table, one figure, intervals."""
    from benchmarks.ablation import ablate as evidence
    from benchmarks.ablation.scale import scaled
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.run import run_folder

    settings = scaled(load_config(config, overrides or []), quick=quick, full=full, sweep=sweep)
    folder = run_folder(settings, config.stem)
    if summary:
        document = evidence.summarise_again(folder)
    else:
        document = evidence.ablate(settings, folder, resume=resume, console=Console(quiet=quiet or as_json))
    if as_json:
        print_json(document)
        return
    say((folder / "evidence.md").read_text(encoding="utf-8"))
    print(f"evidence: {folder / 'evidence.md'}")


def preflight(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)], as_json: Json = False
) -> None:
    """What training would repair, by error class, predicted from a run's rescored hints."""
    import dataclasses

    from hintdistill.pipeline.preflight import predict_run

    predictions = predict_run(run)
    if as_json:
        print_json([dataclasses.asdict(p) for p in predictions])
        return
    for p in predictions:
        say(f"{p.error_class}: predicted repair {p.repair}, from {p.findings} findings")

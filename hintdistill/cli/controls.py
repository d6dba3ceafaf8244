"""The commands that measure the effect of a run's hints: `controls` and `preflight`. They parse, call and print; they
contain no logic.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hintdistill.cli.interrupts import continued_by
from hintdistill.cli.look import print_json, say
from hintdistill.cli.options import DryRun, Json, Quiet, Resume, RunArg, Trust


def controls(
    run: RunArg,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. steps=40; see docs/controls.md", show_default=False)
    ] = None,
    arms: Annotated[str | None, typer.Option(help="Arms in addition to `hint`, comma-separated; default: all.")] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Measure whether the effect is due to the hint: train on placebos, wrong hints and other controls made from the
    run's own traces."""
    from rich.console import Console as RichConsole

    from hintdistill.config.file import load_as
    from hintdistill.pipeline.controls import ARMS, ControlsSettings, run_controls
    from hintdistill.pipeline.progress import Console
    from hintdistill.reporting.controls import show_controls

    settings = load_as(ControlsSettings, None, overrides or [])
    names = ARMS if arms is None else tuple(name.strip() for name in arms.split(",") if name.strip())
    if dry_run:
        from hintdistill.pipeline.controls_ahead import ahead_lines, controls_ahead

        ahead = controls_ahead(run, settings, names, resume=resume, trust=trust)
        print_json(ahead) if as_json else say("\n".join(ahead_lines(ahead)))
        return
    words = [str(run), *(overrides or []), *(["--arms", arms] if arms is not None else []), "--resume"]
    with continued_by(run, "controls", *words, *(["--trust"] if trust else [])):
        document = run_controls(
            run, settings, names, resume=resume, console=Console(quiet=quiet or as_json), trust=trust
        )
    if as_json:
        print_json(document)
        return
    show_controls(document, RichConsole())
    print(f"controls: {run / 'controls.json'}")


def preflight(run: RunArg, as_json: Json = False) -> None:
    """Predict from a run's rescored hints which errors training would repair, by error class."""
    import dataclasses

    from hintdistill.pipeline.preflight import predict_run

    predictions = predict_run(run)
    if as_json:
        print_json([dataclasses.asdict(p) for p in predictions])
        return
    for p in predictions:
        say(f"{p.error_class}: predicted repair {p.repair}, from {p.findings} findings")

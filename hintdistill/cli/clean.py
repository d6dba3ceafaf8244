"""`hintdistill clean`: delete the files of a run folder that are no longer needed."""

from __future__ import annotations

from typing import Annotated

import typer

from hintdistill.cli.look import print_json, say
from hintdistill.cli.options import DryRun, Json, RunArg


def clean(
    run: RunArg,
    students: Annotated[bool, typer.Option("--students", help="Also delete the students of earlier rounds.")] = False,
    targets: Annotated[bool, typer.Option("--targets", help="Also delete the stored targets.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete a run's training checkpoints and half-written files; rows, report and the last student stay."""
    from hintdistill.pipeline.clean import clean as delete
    from hintdistill.pipeline.clean import removable
    from hintdistill.pipeline.store import RunDir

    folder = RunDir.open(run)
    items = removable(folder, students=students, targets=targets)
    freed = 0 if dry_run else delete(folder, items)
    if as_json:
        rows = [{"path": str(i.path), "bytes": i.bytes, "loses": i.loses} for i in items]
        print_json({"items": rows, "bytes": sum(i.bytes for i in items), "deleted": not dry_run})
        return
    for item in items:
        say(f"{item.bytes / 1e6:9.1f} MB  {item.path}" + (f"  ({item.loses})" if item.loses else ""))
    total = sum(i.bytes for i in items)
    say(f"{total / 1e6:9.1f} MB  would be freed" if dry_run else f"{freed / 1e6:9.1f} MB  freed")

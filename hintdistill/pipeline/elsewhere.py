"""`hintdistill report RUN --student PATH`: measure a student trained elsewhere in the same way as the run's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hintdistill.core.errors import InputError
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.storage import write_atomic
from hintdistill.injection.rendering import Renderer
from hintdistill.pipeline import report, train
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir

STUDENTS = "students"
PROVENANCE = "provenance.json"
CARDS = ("card.json", "hintdistill_export.json")
"""Names of an export's card, which may be in a student's folder and says what the student was trained on."""


def report_student(run: Path, student: str, console: Console, *, trust: bool = False) -> Path:
    """Measure a student trained elsewhere, and return the folder of its report, `RUN/students/KEY`.

    `provenance.json` in that folder records what is known about its training.

    Raises:
        InputError: its tokenizer, template or vocabulary is not the run's, its export card names other targets, or the
            run has no targets.
        ModelError: the folder cannot be read.
    """
    rundir = RunDir.reopen(run)
    try:
        config, _ = rundir.config()
        with in_use(config, trust):
            folder = resolve_model(student)
            ctx = RunContext(config, rundir, console, student=folder)
            if rundir.index("rescore") is None:
                raise InputError(f"{run} has no targets", hint="run hintdistill run … --until rescore first")
            known = provenance(ctx, folder)
            out = rundir.path / STUDENTS / known["weights"]
            report.write_elsewhere(ctx, out)
            write_atomic(out / PROVENANCE, json.dumps(known, indent=1))
        return out
    finally:
        rundir.close()


def provenance(ctx: RunContext, student: Path) -> dict[str, Any]:
    """Return what is known about a student's training, and warn of what is unknown.

    Raises:
        InputError: it cannot have been trained on this run's targets; the message says why.
    """
    renderer = Renderer.from_pretrained(student).key
    if renderer != ctx.renderer.key:
        raise InputError(
            f"{student} has another tokenizer or chat template than the run ({renderer}, not "
            f"{ctx.renderer.key}), so the run's token ids have another meaning for it",
            hint="if it was trained with them, copy the tokenizer files of the run's model into the student's folder",
        )
    theirs, ours = ModelShape.of(student), ModelShape.of(ctx.model_folder)
    if theirs.vocab != ours.vocab:
        raise InputError(f"{student} has {theirs.vocab} output rows, but the run's model has {ours.vocab}")
    weights = model_key(student).weights
    if weights == model_key(ctx.model_folder).weights:
        ctx.console.warn(f"{student} has the same weights that the run starts from: nothing was trained")
    targets = hashlib.sha256("\n".join(sorted(t.key for t in train.selected(ctx).heads)).encode()).hexdigest()
    card = next((student / name for name in CARDS if (student / name).is_file()), None)
    said = None if card is None else json.loads(card.read_text(encoding="utf-8")).get("targets_sha256")
    if said is None:
        ctx.console.warn(
            f"it is unknown which targets {student.name} was trained on; copy card.json of the export into its folder"
        )
    elif said != targets:
        raise InputError(
            f"{card} belongs to other targets ({said[:16]}) than those of this run ({targets[:16]})",
            hint="give the run from which the export was made",
        )
    return {
        "weights": weights,
        "renderer": renderer,
        "initial": model_key(ctx.model_folder).weights,
        "targets": targets,
        "targets_confirmed": said == targets,
    }

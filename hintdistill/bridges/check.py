"""Check an export (`hintdistill export --check`): compare the loss of some rows by the format's formula with the
toolkit's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hintdistill.bridges import formulas
from hintdistill.bridges.flat import FlatRow, flat_row
from hintdistill.bridges.formats import Checked, ExportJob, Format, Student
from hintdistill.bridges.narrow import log_sum
from hintdistill.bridges.runs import RunRows
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.objectives import gather_with_tail, objective
from hintdistill.recipes import Recipe
from hintdistill.training.rows import build_rows
from hintdistill.training.slots import Slot
from hintdistill.training.views import base, restricted

ROWS = 20
SOFTENED = 1.25
"""Temperature of the student with which rows are read. Without it, the student would agree with its own targets on
every held step, and there would be no loss to compare."""
RELATIVE = 1e-5
ABSOLUTE = 3e-7
"""Rounding error of float32, in nats per weight, for a row that the student already matches."""


def load_student(run: RunRows) -> Student:
    """Return the run's model at that temperature. Raises ModelError."""
    from hintdistill.engines.transformers import load_model, pick_device

    device = pick_device(run.ctx.config.run.device)
    with run.scope():
        model = load_model(run.ctx.model_folder, torch.float32, device)

    @torch.no_grad()
    def logprobs(ids: np.ndarray, start: int) -> np.ndarray:
        wide = model(torch.from_numpy(ids[None, :-1]).to(device), logits_to_keep=len(ids) - start).logits[0]
        found: np.ndarray = (wide.double() / SOFTENED).log_softmax(-1).cpu().numpy()
        return found

    return logprobs


def chosen(kinds: Sequence[str], seed: int) -> list[int]:
    """Return the numbers of the rows to check: drawn from the seed, with some of every kind."""
    order = random.Random(f"export:{seed}").sample(range(len(kinds)), len(kinds))
    first = [next(i for i in order if kinds[i] == kind) for kind in dict.fromkeys(kinds)]
    return sorted([*first, *[i for i in order if i not in first]][:ROWS])


def check(run: RunRows, form: Format, job: ExportJob, k: int | None) -> list[Checked]:
    """Return both losses of each checked row, and the allowed difference.

    Raises:
        ModelError: the run's model does not exist.
        ConfigError: there is no bound for what the format leaves out of a recipe's divergence.
    """
    student = load_student(run)
    if form.name == "hf":
        return _terms(run, job.folder, k, student)
    recipe, whole = run.section.effective_recipe, build_rows(run.targets, run.section)
    places = [(r, s) for r, row in enumerate(job.rows) for s in range(len(row.slots))]
    flat = [(r, s) for r, s in places if flat_row(job.rows[r], job.rows[r].slots[s], recipe).weights.any()]
    kinds = [job.rows[r].slots[s].kind for r, s in flat]
    out = []
    for number in chosen(kinds, job.seed):
        r, s = flat[number]
        narrowed = flat_row(job.rows[r], job.rows[r].slots[s], recipe)
        original = flat_row(whole[r], whole[r].slots[s], recipe)
        logprobs = student(narrowed.ids, narrowed.start)
        out.append(_compared(form, job, number, (original, narrowed), logprobs))
    return out


def _compared(
    form: Format, job: ExportJob, number: int, rows: tuple[FlatRow, FlatRow], logprobs: np.ndarray
) -> Checked:
    original, narrowed = rows
    return Checked(
        key=narrowed.key,
        loss=form.writer().loss_in_file(job.folder, number, narrowed, logprobs),
        reference=formulas.forward_kl(original, logprobs),
        bound=formulas.bound(original, narrowed, logprobs, job.tail) + formulas.rounding(original, logprobs, form.mass),
        scale=float(np.abs(narrowed.weights).sum()),
    )


def _terms(run: RunRows, folder: Path, k: int | None, student: Student) -> list[Checked]:
    """Return the recipe's terms on slots, both as exported and as in the run."""
    from hintdistill.bridges.hf import HintRows

    recipe, exported, whole = (
        run.section.effective_recipe,
        HintRows.from_export(folder),
        build_rows(run.targets, run.section),
    )
    places = [(r, s) for r, row in enumerate(whole) for s in range(len(row.slots))]
    out = []
    for number in chosen([whole[r].slots[s].kind for r, s in places], run.ctx.config.run.seed):
        r, s = places[number]
        mine, theirs = whole[r].slots[s], exported.rows[r].slots[s]
        logprobs = student(whole[r].plain(mine).numpy(), mine.start)
        values = [_objective(recipe, slot, logprobs) for slot in (theirs, mine)]
        bound = 0.0 if k is None else _narrowing(recipe, mine, theirs, logprobs)
        out.append(Checked(mine.key, values[0], values[1], bound))
    return out


def _objective(recipe: Recipe, slot: Slot, logprobs: np.ndarray) -> float:
    view = gather_with_tail(torch.from_numpy(logprobs), slot.support_ids)
    generator = torch.Generator().manual_seed(0)
    cpu = torch.device("cpu")
    value, _ = objective(recipe, restricted([slot], view), rows=slot.kind, base=base([slot], cpu), generator=generator)
    return float(value)


def _narrowing(recipe: Recipe, whole: Slot, narrowed: Slot, logprobs: np.ndarray) -> float:
    """Return the largest change of a term if the rest becomes one entry: its divergence within the rest.

    Forward KL: m·KL(T given the rest ‖ S given the rest) <= 2·m·B with the teacher's mass m; reverse KL the same with the
    student's mass; JSD with share α: the mixture's mass of the rest times a JSD that is at most log 2.
    """
    total = 0.0
    for name, term in recipe.terms.items():
        weights = whole.weights.get(name)
        if term.rows != whole.kind or weights is None:
            continue
        kind = term.divergence.kind
        single = not (term.weights or term.target.mixture or term.target.anchor or len(term.target.loglin) > 1)
        if kind not in ("fkl", "rkl", "jsd") or not single or term.divergence.pointwise_clip is not None:
            raise ConfigError(
                f"there is no known bound for {kind} of term {name} with fewer ids",
                hint="export all ids, i.e. without k=",
            )
        original, few = _flat(whole, weights), _flat(narrowed, weights)
        if kind == "fkl":
            each = formulas.bound(original, few, logprobs, "keep")
        else:
            each = _symmetric(original, few, logprobs, kind, float(term.divergence.parameters.get("alpha", 0.5)))
        coef = term.coef if isinstance(term.coef, float | int) else max(abs(term.coef.start_value), abs(term.coef.to))
        total += abs(coef) * each
    return total


def _flat(slot: Slot, weights: torch.Tensor) -> FlatRow:
    wide = slot.target.numpy().astype(np.float64)
    ids = np.concatenate([np.zeros(slot.start, np.int64), slot.sampled.numpy()])
    each = weights.numpy().astype(np.float64)
    return FlatRow(slot.key, slot.kind, ids, slot.start, each, slot.support_ids.numpy(), wide[:, :-1], wide[:, -1])


def _symmetric(whole: FlatRow, few: FlatRow, logprobs: np.ndarray, kind: str, alpha: float) -> float:
    """Return the bounds of reverse KL and JSD, whose merged part also depends on the student's mass."""
    kept = (whole.support_ids[:, :, None] == few.support_ids[:, None, :]).any(2) & (whole.support_ids >= 0)
    ours, rest = formulas.at(logprobs, whole.support_ids), formulas.outside(logprobs, whole.support_ids)
    merged = kept.sum(1) < (whole.support_ids >= 0).sum(1)
    teacher = np.exp(np.logaddexp(log_sum(np.where(kept, -np.inf, whole.teacher)), whole.tail))
    student = np.exp(np.logaddexp(log_sum(np.where(kept, -np.inf, ours)), rest))
    if kind == "jsd":
        each = (
            np.minimum(teacher, student) * min(alpha, 1 - alpha) + np.maximum(teacher, student) * max(alpha, 1 - alpha)
        ) * np.log(2)
    else:
        there = (whole.support_ids >= 0) & ~kept
        with np.errstate(invalid="ignore"):
            gap = np.where(there, np.abs(ours - whole.teacher), 0.0).max(1)
            gap = np.maximum(gap, np.where(np.isfinite(rest), np.abs(rest - whole.tail), 0.0))
        each = 2 * student * gap
    return float((np.abs(whole.weights) * np.where(merged, each, 0.0)).sum())


def allowed(c: Checked) -> float:
    """Return the allowed difference of a row's loss, nats."""
    return c.bound + RELATIVE * abs(c.reference) + ABSOLUTE * max(1.0, c.scale)


def lines(checked: Sequence[Checked], form: Format) -> list[str]:
    """Describe the check in words."""
    worst = max(checked, key=lambda c: c.relative)
    kept = max(c.bound for c in checked)
    said = (
        f"exact: at most {RELATIVE:g} relative, {ABSOLUTE:g} nats"
        if not kept
        else f"the mass that is not kept allows {worst.bound:.3g} nats here, and at most {kept:.3g}"
    )
    return [
        f"check: {len(checked)} rows by {form.name}'s formula ({form.formula})",
        f"check: largest relative difference {worst.relative:.3g}, {worst.off:.3g} of {worst.reference:.6g} nats ({worst.key}); {said}",
    ]


def require_close(checked: Sequence[Checked], form: Format) -> None:
    """Raise InputError, naming the first row, if a row's loss differs by more than is allowed."""
    for c in checked:
        if not c.off <= allowed(c):
            raise InputError(
                f"row {c.key}: {form.name}'s formula gives {c.loss:.8g} and the toolkit's {c.reference:.8g}, which "
                f"exceeds the allowed difference of {allowed(c):.3g} nats",
                hint="the file has changed since it was written, or this is a bug; export it again",
            )


def as_json(checked: Sequence[Checked]) -> dict[str, Any]:
    """Return the check as data."""
    return {
        "rows": len(checked),
        "temperature": SOFTENED,
        "worst_nats": max(c.off for c in checked),
        "worst_relative": max(c.relative for c in checked),
        "bound_nats": max(c.bound for c in checked),
        "mean_loss": float(np.mean([c.reference for c in checked])),
    }

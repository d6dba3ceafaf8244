"""Predict from rescoring alone which errors training would repair.

The gain of self-distillation is close to linear in the gap between hinted teacher and student before training (arXiv
2605.30070). The gap needs no decoding: the student's own erring step is recorded, so the probability of making the
error, with and without the hint, follows from the scores. Predicted repair of an error class = 1 − Σ p(hinted) / Σ
p(plain) over its findings, where p is the probability of the erring tokens up to and including the decision token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hintdistill.core.errors import InputError
from hintdistill.core.scores import Target
from hintdistill.core.statistics import Interval, bootstrap_ratio
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.store import TargetStore


@dataclass(frozen=True)
class Prediction:
    """The predicted repair of one error class."""

    error_class: str
    findings: int
    repair: Interval
    """Share of this error that should be gone after training: 0 none, 1 all, negative if the hint makes the error more
    likely."""
    error_probability: float
    """Mean probability of making the error at these steps without the hint."""


def error_probabilities(target: Target) -> tuple[float, float]:
    """Return the probabilities of the erring tokens, plain and hinted, from the start of the quote up to and including
    the decision token.

    If the hint leaves every token's first choice unchanged, the whole quote counts.
    """
    start, end = target.span
    position = target.measurement.position if target.measurement is not None else None
    stop = end if position is None else position + 1
    return tuple(float(np.exp(lp[start:stop].sum())) for lp in (target.plain_sampled, target.teacher_sampled))  # type: ignore[return-value]


def predict(targets: Iterable[Target], resamples: int = 4000) -> list[Prediction]:
    """Return the predicted repair by error class, over all given findings, accepted or not."""
    by_class: dict[str, list[tuple[float, float]]] = {}
    for target in targets:
        if target.kind == "hint" and target.error_class is not None:
            by_class.setdefault(target.error_class, []).append(error_probabilities(target))
    return [_prediction(name, pairs, resamples) for name, pairs in sorted(by_class.items())]


def predict_run(folder: Path) -> list[Prediction]:
    """Return the predicted repair from the current targets of a run folder.

    Raises:
        InputError: the folder contains no run, or nothing was rescored yet.
    """
    rundir = RunDir.open(folder)
    targets = TargetStore(rundir.path / "targets").open(rundir.index("rescore") or [])
    if not targets:
        raise InputError(
            f"{folder} has no rescored hints", hint=f"run hintdistill rescore CONFIG run.dir={folder} first"
        )
    return predict(t for _, t in targets.by_part())


def _prediction(name: str, pairs: Sequence[tuple[float, float]], resamples: int) -> Prediction:
    plain, hinted = [p for p, _ in pairs], [h for _, h in pairs]
    return Prediction(name, len(pairs), bootstrap_ratio(hinted, plain, resamples), float(np.mean(plain)))

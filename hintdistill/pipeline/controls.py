"""`hintdistill controls RUN`: find out whether the effect of training is due to the hint.

From a finished run's own traces, without an environment, the initial student is trained once per arm: on the hints, and
on controls that should have less effect (a placebo, a wrong hint, the hint above another step, the hints over the whole
trace, fine-tuning on the hinted model's corrections). All arms have the same anchors, equally many rows and optimiser
steps, and start from the same weights. Each is evaluated on the decision tokens of held-out traces and on clean steps.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from hintdistill.config import CriticSection, RunConfig, TrainSection
from hintdistill.config.base import Section
from hintdistill.config.file import validate
from hintdistill.core.errors import ConfigError, EmptyFunnelError, TripwireError
from hintdistill.core.models import model_key
from hintdistill.core.paths import contents
from hintdistill.core.scores import ScoreRequest, Target, TargetHead
from hintdistill.core.storage import content_key, disk_errors, read_json, write_atomic
from hintdistill.core.types import HELD
from hintdistill.pipeline import critique, inject, read, report, rescore, train
from hintdistill.pipeline.arms import (
    RESULT,
    Arm,
    ArmTraining,
    Budget,
    changed,
    cross_entropy,
    draw_rows,
    result_of,
    run_owed,
    seconds_per_step,
    train_arm,
    training_content,
)
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.corrections import corrections
from hintdistill.pipeline.outcome import outcome_data
from hintdistill.pipeline.progress import Advance, Console
from hintdistill.pipeline.stages import stages_between
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.variants import Material, full_trace, hinted, other_steps, sft, wrong_hints
from hintdistill.reporting.controls import ControlsInput, controls_document
from hintdistill.rescoring.drift import movement

ARMS = ("hint", "placebo", "wrong_hint", "random_step", "whole_trace", "sft_corrected")
FEW_STEPS = 100
"""Optimiser steps per arm, unless the run took fewer or `steps` sets another number."""


class ControlsSettings(Section):
    """Hold the settings that `hintdistill controls` takes as `key=value`."""

    documented: ClassVar[str] = "docs/controls.md"

    rows: int | None = Field(default=None, ge=1)
    """Hint rows per arm; default: as many as the run trained on. Anchors keep the run's own proportion."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps per arm; default: as many as the run took, at most 100."""
    clean_steps: int = Field(default=100, ge=1)
    """Number of steps per set of clean steps."""
    train: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Arm → keys of the `train` section that differ in it, e.g. `train.wrong_hint.learning_rate=1.0e-4`."""


def _has_decision(target: TargetHead) -> bool:
    return target.kind == "hint" and target.measurement is not None and target.measurement.position is not None


class Bench:
    """Hold what the arms of one run share."""

    def __init__(self, ctx: RunContext, settings: ControlsSettings) -> None:
        """Load the run's findings and targets. Raises EmptyFunnelError if there is nothing to train or evaluate on."""
        self.ctx, self.settings, self.folder = ctx, settings, ctx.rundir.path / "controls"
        self.salt = f"controls:{ctx.config.run.seed}"
        rescore.require_accepted(ctx)
        stored = rescore.load(ctx)
        self.trained = list(train.selected(ctx, stored))
        self.heldout = [t for t in stored.where(_has_decision) if t.split == "holdout"]
        if not self.heldout:
            raise EmptyFunnelError(
                "no held-out trace has a finding with a decision token, so the arms cannot be compared",
                hint="raise traces.holdout or give the run more traces",
            )
        own = self._own_steps()
        hints = [t for t in self.trained if t.kind == "hint"]
        if not hints:
            raise EmptyFunnelError(
                f"no training trace of train.fidelity={list(ctx.config.train.fidelity)} has an accepted hint",
                hint="run the same traces with more values in train.fidelity, or with a smaller traces.holdout",
            )
        rows = settings.rows or len(hints)
        twins = sum(t.kind == "twin" for t in self.trained)
        self.budget = Budget(
            rows=rows,
            anchors=round(rows * (len(self.trained) - len(hints) - twins) / len(hints)),
            steps=settings.steps or min(own or FEW_STEPS, FEW_STEPS),
            others={"twin": round(rows * twins / len(hints))} if twins else {},
        )
        self.outcome = outcome_data(ctx)

    def _own_steps(self) -> int | None:
        from hintdistill.training.stage import read_summary

        summary = read_summary(self.ctx.student_folder)
        return None if summary is None else summary.steps

    @cached_property
    def material(self) -> Material:
        """Return the training traces, and the findings whose hints the run trains on."""
        ctx = self.ctx
        by_key = critique.load(ctx)
        loaded = [(key, t) for key, t, split in read.load(ctx) if split == "train"]
        wanted = {(t.trace_id, t.step, t.hint) for t in self.trained if t.kind == "hint"}
        traces = {t.id: t for _, t in loaded}
        found = [
            (traces[i.injection.trace_id], i.injection.finding)
            for i in inject.load(ctx)
            if i.split == "train" and (i.injection.trace_id, i.injection.finding.step, i.injection.hint) in wanted
        ]
        critiques = {t.id: by_key[key] for key, t in loaded if key in by_key}
        return Material(ctx, list(traces.values()), critiques, found, self.salt)

    @cached_property
    def clean(self) -> dict[str, list[ScoreRequest]]:
        """Return clean steps that no arm trains on: at most `clean_steps` of each of the report's off-target sets."""
        section = self.ctx.config.report.model_copy(update={"off_target_steps": self.settings.clean_steps})
        config = self.ctx.config.model_copy(update={"report": section})
        return report.off_target_sets(RunContext(config, self.ctx.rundir, self.ctx.console, self.ctx.engines))

    def arms(self, names: Sequence[str]) -> list[Arm]:
        """Return the arms in the order of `ARMS`. Raises ConfigError for invalid settings."""
        made = {
            "hint": self._hints,
            "placebo": lambda: hinted(self.material, self.material.found, "placebo", placebo=True),
            "wrong_hint": self._wrong_hints,
            "random_step": self._random_steps,
            "whole_trace": lambda: full_trace(self.material),
            "sft_corrected": self._corrected,
        }
        out = []
        for name in (n for n in ARMS if n in names or n == "hint"):
            arm = Arm(name, made[name], self.settings.train.get(name, {}))
            section = self.section_of(arm)
            if name == "sft_corrected":
                arm = replace(arm, train={**arm.train, **cross_entropy(section)})
                self.section_of(arm)
            out.append(arm)
        return out

    def section_of(self, arm: Arm) -> TrainSection:
        """Return the training settings of an arm. Raises ConfigError if it changes an unknown setting."""
        data = {"train": changed(self.ctx.config.train.model_dump(mode="json"), arm.train), "run": {"model": "-"}}
        config = validate(data | {"traces": {"path": ["-"]}}, f"controls, arm {arm.name}")
        return config.train

    # -- targets --------------------------------------------------------------------------------------------------------

    def _hints(self) -> list[Target]:
        return [t for t in self.trained if t.kind == "hint"]

    def _wrong_hints(self) -> list[Target]:
        found = wrong_hints(self.material.found, self.ctx.library, 1.0, self.salt)
        return hinted(self.material, found, "wrong_hint")

    def _random_steps(self) -> list[Target]:
        data = self.material
        found = other_steps(data.found, data.traces, data.wrong, self.ctx.library, 1.0, self.salt)
        return hinted(data, found, "random_step")

    def _corrected(self) -> list[Target]:
        found = corrections(self.ctx, self.material.found, self.salt)
        write_atomic(
            self.folder / "corrections.json", json.dumps({"critics": found.critics, "counts": found.counts}, indent=1)
        )
        return sft(self.ctx, found.kept)

    def rows_of(self, arm: Arm) -> tuple[list[Target], dict[str, int]]:
        """Return the rows of an arm: its own, equally many anchors as in every arm (none on a step that the arm moves),
        and the twins of every arm."""
        hints = list(arm.targets())
        moved = {(t.trace_id, t.step) for t in hints}
        held = [
            t
            for t in self.trained
            if t.kind in self.budget.others or (t.kind in HELD and (t.trace_id, t.step) not in moved)
        ]
        return draw_rows([*hints, *held], self.budget, self.salt)

    # -- measuring ------------------------------------------------------------------------------------------------------

    def logprobs(self, model: Path) -> dict[str, float]:
        """Return log p (nats) of every held-out finding's decision token, without a hint, by target key."""
        requests = [
            ScoreRequest(
                np.concatenate([t.context_ids, t.step_ids]), len(t.context_ids), len(t.context_ids) + len(t.step_ids)
            )
            for t in self.heldout
        ]
        scores = self.ctx.engine(model).score(requests, top_k=1)
        at = [t.decision.position for t in self.heldout if t.decision is not None]
        return {t.key: float(s.sampled[p]) for t, s, p in zip(self.heldout, scores, at, strict=True)}

    def moved(self, model: Path) -> dict[str, dict[str, float]]:
        """Return the movement from the initial policy on each set of clean steps."""
        engine = self.ctx.engine
        found = {n: movement(engine(self.ctx.initial_folder), engine(model), r) for n, r in self.clean.items()}
        return {name: asdict(m) for name, m in found.items() if m is not None}


@dataclass(frozen=True)
class ArmRun:
    """A job that trains and evaluates one arm."""

    bench: Bench
    arm: Arm

    @property
    def name(self) -> str:
        """Return the arm's name."""
        return self.arm.name

    @property
    def units(self) -> int:
        """Return the number of optimiser steps."""
        return self.bench.budget.steps

    def key(self) -> str:
        """Return the key of the run's targets, the arm's settings and target origin, and the shared settings."""
        bench, ctx = self.bench, self.bench.ctx
        return content_key(
            "control",
            self.arm.name,
            [ctx.rundir.index(stage.name) for stage in stages_between(until="rescore")],
            [model_key(folder).weights for folder in (ctx.model_folder, ctx.initial_folder)],
            training_content(bench.section_of(self.arm)),
            bench.budget.content(),
            bench.settings.model_dump(mode="json", exclude={"rows", "steps", "train"}),
            ctx.config.run.model_dump(mode="json", include={"seed", "dtype"}),
            self._made_of(),
        )

    def _made_of(self) -> list[Any]:
        """Return everything that the arm's targets depend on beyond the run's own targets: the prompts and, for
        corrections, how they are sampled and judged."""
        ctx = self.bench.ctx
        if self.arm.name == "hint":
            return []
        prompts = {n: ctx.library.hash(n) for n in ctx.library.names() if not n.startswith("critic/")}
        made_of: list[Any] = [prompts, ctx.config.injecting.model_dump(mode="json")]
        if self.arm.name == "sft_corrected":
            # corrections are sampled without the environment
            made_of.append(ctx.config.rollout.model_dump(mode="json", exclude={"environment", "splits", "limit"}))
            made_of.append(contents(ctx.config.critic.model_dump(mode="json"), CriticSection))
        return made_of

    def run(self, advance: Advance) -> dict[str, Any]:
        """Make the rows, train and evaluate; the trained weights are removed afterwards."""
        bench, ctx = self.bench, self.bench.ctx
        began = time.monotonic()
        chosen, distinct = bench.rows_of(self.arm)
        hints = sum(t.kind == "hint" for t in chosen)
        row = {
            "arm": self.arm.name,
            "rows": hints,
            "anchors": sum(t.kind in HELD and t.kind not in bench.budget.others for t in chosen),
            **{f"{kind}s": sum(t.kind == kind for t in chosen) for kind in bench.budget.others},
            "distinct": distinct,
            "steps": 0,
            "train": dict(self.arm.train),
            "not_read": None,
        }
        if not hints:
            return row | {"not_read": "the arm has no rows"}
        folder = bench.folder / self.arm.name
        student, work = folder / "student", folder / "train"
        job = ArmTraining(
            self.arm.name,
            ctx.model_folder,
            ctx.initial_folder,
            ctx.config.run,
            bench.section_of(self.arm),
            bench.budget.steps,
            bench.outcome,
            content_key(self._made_of()),
        )
        try:
            summary = train_arm(job, chosen, student, work, advance)
            row |= {"steps": summary.steps, "logprobs": bench.logprobs(student), "off_target": bench.moved(student)}
        except TripwireError as error:
            row["not_read"] = error.message
        ctx.engines.pop(student, None)
        for used in (student, work):
            shutil.rmtree(used, ignore_errors=True)
        return row | {"seconds": time.monotonic() - began}


def run_controls(
    folder: Path,
    settings: ControlsSettings,
    arms: Sequence[str] = ARMS,
    *,
    resume: bool = False,
    console: Console | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Train and evaluate the missing arms, write controls.json and the report's section, and return the document.

    Args:
        arms: names from `ARMS`; `hint` always takes part, because the others are compared with it.
        trust: see `pipeline.run.run`.

    Raises:
        InputError: there is no run at `folder`.
        ConfigError: an arm or a setting does not exist, or controls already exist and `resume` is off.
        EmptyFunnelError: there is nothing to train on, or no held-out finding to evaluate on.
    """
    config = checked(folder, settings, arms, resume)
    with in_use(config, trust), disk_errors(folder):
        return _run_controls(folder, config, settings, arms, console or Console())


def checked(folder: Path, settings: ControlsSettings, arms: Sequence[str], resume: bool) -> RunConfig:
    """Return the configuration of a run after checking that its controls can be run. Raises InputError and ConfigError
    as `run_controls` does."""
    if unknown := [n for n in (*arms, *settings.train) if n not in ARMS]:
        raise ConfigError(f"no arm {unknown[0]!r}", hint=f"the arms are {', '.join(ARMS)}")
    opened = RunDir.open(folder)
    try:
        opened.check_continues()
    except ConfigError as error:
        raise ConfigError(error.message, hint="run its traces again with this release, into another folder") from None
    config, _ = opened.config()
    if config.run.rounds is not None:
        raise ConfigError(
            f"{folder} is a loop of rounds; controls need one round's run", hint=f"try {folder}/rounds/01/run"
        )
    if (folder / "controls").is_dir() and not resume:
        raise ConfigError(f"{folder} already has controls", hint="--resume does the missing ones")
    _check_teacher(config.train)
    return config


def _run_controls(
    folder: Path, config: RunConfig, settings: ControlsSettings, arms: Sequence[str], console: Console
) -> dict[str, Any]:
    rundir = RunDir.create(folder, config, resume=True)
    try:
        bench = Bench(RunContext(config, rundir, console), settings)
        every = [ArmRun(bench, arm) for arm in bench.arms(ARMS)]
        # what was trained before, under these settings, stays in the document
        jobs = [j for j in every if j.name in (*arms, "hint") or result_of(bench.folder, j) is not None]
        for job in (j for j in every if j not in jobs and (bench.folder / j.name / RESULT).is_file()):
            console.note(f"{job.name}: its result was made with other settings and is ignored")
        bench.folder.mkdir(exist_ok=True)
        bench.ctx.engine(bench.ctx.model_folder)
        began, before = time.monotonic(), bench.logprobs(bench.ctx.model_folder)
        console.note(_ahead(bench, len(jobs), time.monotonic() - began))
        run_owed(bench.folder, jobs, "controls", console)
        results = [read_json(bench.folder / j.name / RESULT, dict) for j in jobs]
        document = controls_document(_read(bench, before, results))
        report.add_controls(rundir, config, document, console)
        return document
    finally:
        rundir.close()


def _check_teacher(section: TrainSection) -> None:
    """Raise ConfigError if targets are not stored: the arms could then not be trained on variants of them."""
    if section.target_source != "stored":
        raise ConfigError(
            "controls train on variants of stored targets, but this run's recipe makes its targets during training",
            hint="run the same traces with train.targets=stored, and run the controls of that run",
        )


def _ahead(bench: Bench, arms: int, reading: float) -> str:
    """Return a description of the work ahead and its duration, estimated from the run's own speed."""
    b = bench.budget
    said = f"controls: {arms} arms, each with {b.rows} hints, {b.anchors} anchors and {b.steps} optimiser steps"
    per_step = seconds_per_step(bench.ctx.rundir.path)
    if per_step is None:
        return f"{said}; the time per step is unknown, because this run has not trained"
    tokens = sum(len(t.context_ids) + len(t.step_ids) for t in bench.heldout)
    clean = sum(r.end for requests in bench.clean.values() for r in requests)
    # scoring of the variants reads each row four to five times, like the rescore stage
    reads = reading * (1 + 2 * clean / tokens) + 5 * reading * b.rows / len(bench.heldout)
    return f"{said}; about {max(1, round(arms * (b.steps * per_step + reads) / 60))} minutes"


def _read(bench: Bench, before: dict[str, float], results: Sequence[dict[str, Any]]) -> ControlsInput:
    train, corrected = bench.ctx.config.train, bench.folder / "corrections.json"
    decoded = corrected.is_file() and any(r["arm"] == "sft_corrected" for r in results)
    return ControlsInput(
        recipe=train.effective_recipe.name,
        learning_rate=train.rate,
        equal={
            "rows": bench.budget.rows,
            "anchors": bench.budget.anchors,
            **{f"{kind}s": n for kind, n in bench.budget.others.items()},
            "steps": bench.budget.steps,
        },
        targets=bench.heldout,
        before=before,
        clean={name: len(requests) for name, requests in bench.clean.items()},
        corrections=json.loads(corrected.read_text(encoding="utf-8")) if decoded else None,
        results=results,
    )

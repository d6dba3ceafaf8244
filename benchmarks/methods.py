"""Compare methods on the toy world: equal traces, rows and optimiser steps; three rates each on validation, three seeds.

    python benchmarks/methods.py [--dir runs/methods] [--teacher FOLDER] [--small] [--resume] [--owed] [--pages]

`benchmarks/methods.yaml` says what every arm shares. The run's stages up to rescore are done once, then once more for each recipe whose
teacher reads something else. Then, job by job: each arm at each rate is trained with the first seed and read on validation
tasks and pairs that no test uses; at its best rate it is trained with every seed and read on the test tasks, on both columns of
the near-miss suite and on clean steps. `--teacher`: a larger student for GKD, see examples/toolworld/build_student.py --larger; without
it that arm is owed. Writes methods.json and methods.md, and with --pages the last block of docs/methods.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.ablation.markdown import table  # noqa: E402
from benchmarks.ablation.twin_grid import validation_pairs  # noqa: E402
from benchmarks.ablation.twin_reads import suite_name  # noqa: E402
from benchmarks.ablation.twin_sampled import WORLD  # noqa: E402
from benchmarks.blocks import put  # noqa: E402
from hintdistill.config import RunConfig, TrainSection  # noqa: E402
from hintdistill.config.file import load_config  # noqa: E402
from hintdistill.core.errors import HintdistillError, TripwireError  # noqa: E402
from hintdistill.core.models import model_key  # noqa: E402
from hintdistill.core.scores import Target  # noqa: E402
from hintdistill.core.storage import content_key, write_atomic  # noqa: E402
from hintdistill.engines.transformers import TransformersEngine  # noqa: E402
from hintdistill.injection.rendering import Renderer  # noqa: E402
from hintdistill.pipeline.arms import (  # noqa: E402
    ArmTraining,
    changed,
    cross_entropy,
    draw_rows,
    result_of,
    run_owed,
    train_arm,
    training_content,
)
from hintdistill.pipeline.compare_recipes import Comparison, RecipeArm, copied  # noqa: E402
from hintdistill.pipeline.context import RunContext  # noqa: E402
from hintdistill.pipeline.controls import ControlsSettings  # noqa: E402
from hintdistill.pipeline.corrections import corrections  # noqa: E402
from hintdistill.pipeline.outcome import outcome_data  # noqa: E402
from hintdistill.pipeline.progress import Advance, Console  # noqa: E402
from hintdistill.pipeline.run import run as run_until  # noqa: E402
from hintdistill.pipeline.stages import stages_between  # noqa: E402
from hintdistill.pipeline.store import RunDir  # noqa: E402
from hintdistill.pipeline.variants import sft  # noqa: E402
from hintdistill.rollouts.evaluate import load_suite, outcomes  # noqa: E402
from hintdistill.rollouts.sampling import SamplingOptions  # noqa: E402

CONFIG, PAGE = ROOT / "benchmarks" / "methods.yaml", ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- compared: made by benchmarks/methods.py --pages -->", "<!-- end of compared -->"
SFT = "sft"
ARMS: dict[str, tuple[str, str]] = {
    "targeted": ("targeted, with twins", "targeted"),
    "hint_sd": ("HINT-SD", "hint_sd"),
    "sdpo_feedback": ("SDPO with feedback", "sdpo_feedback"),
    "sdft": ("SDFT", "sdft"),
    "opsd": ("OPSD", "opsd"),
    "rlcsd": ("RLCSD", "rlcsd"),
    "gkd": ("GKD from a larger student", "gkd"),
    SFT: ("SFT on hinted corrections", "targeted"),
}
"""Arm → what it is called, and its recipe."""
SEEDS, SMALL_STEPS = (0, 1, 2), 4


@dataclass(frozen=True)
class Setting:
    """The settings of the benchmark."""

    folder: Path
    teacher: Path | None
    small: bool
    rates: tuple[float, ...]
    steps: int
    rows: int

    def config(self, arm: str | None) -> RunConfig:
        """The configuration of an arm's run; None: of the base run."""
        given = [] if arm is None or arm == "targeted" else ["train.twins.weight=0", "train.twins.per_finding=0"]
        if arm is not None:
            given.append(f"train.recipe={ARMS[arm][1]}")
        if arm == "gkd":
            given = [g for g in given if "recipe" not in g]
            given.append(f"train.recipe={{preset: gkd, teacher: {{update: external, model: {self.teacher}}}}}")
        return load_config(CONFIG, given)

    @property
    def arms(self) -> list[str]:
        """The arms that can be run: GKD where there is a teacher."""
        return [a for a in ARMS if a != "gkd" or self.teacher is not None]


@dataclass(frozen=True)
class MethodJob:
    """One arm at one rate with one seed, trained and read."""

    of: Setting
    shared: Comparison
    arm: str
    rate: float
    seed: int
    test: bool
    """Read on the test tasks; else on validation."""

    units = 1

    @property
    def name(self) -> str:
        """Folder of its result."""
        return f"{self.arm}-{self.rate:g}-{self.seed}-{'test' if self.test else 'validation'}"

    @property
    def section(self) -> TrainSection:
        """Its training settings."""
        section = self.shared.section_of(RecipeArm(self.arm, self.rate))
        if self.arm != SFT:
            return section
        return TrainSection.model_validate(changed(section.model_dump(mode="json"), cross_entropy(section)))

    def key(self) -> str:
        """Key of the targets, the settings and what it is read on."""
        ctx = self.shared.own[self.arm]
        return content_key(
            "method",
            self.name,
            [ctx.rundir.index(stage.name) for stage in stages_between(until="rescore")],
            model_key(ctx.model_folder).weights,
            training_content(self.section),
            [self.of.steps, self.of.rows, self.of.small],
        )

    def targets(self) -> list[Target]:
        """Return the arm's targets: those of its run, or the corrected steps with the base run's anchors."""
        own = self.shared.targets[self.arm]
        if self.arm != SFT:
            return own
        found = corrections(self.shared.bench.ctx, self.shared.bench.material.found, self.shared.bench.salt)
        return [*sft(self.shared.bench.ctx, found.kept), *(t for t in own if t.kind == "anchor")]

    def run(self, advance: Advance) -> dict[str, Any]:
        """Draw rows by the seed, train, read; the weights are removed afterwards."""
        ctx, began = self.shared.own[self.arm], time.monotonic()
        budget = self.shared.budget_of(RecipeArm(self.arm, self.rate))
        rows, distinct = draw_rows(self.targets(), budget, f"methods:{self.seed}")
        folder = self.of.folder / "work" / self.name
        run = ctx.config.run.model_copy(update={"seed": self.seed})
        job = ArmTraining(
            self.name, ctx.model_folder, ctx.initial_folder, run, self.section, budget.steps, outcome_data(ctx)
        )
        row: dict[str, Any] = {"arm": self.arm, "rate": self.rate, "seed": self.seed, "test": self.test}
        row |= {"distinct": distinct, "failed": None}
        try:
            train_arm(job, rows, folder / "student", folder / "train")
            row |= {"seconds": time.monotonic() - began} | self._read(folder / "student")
        except TripwireError as error:
            row["failed"] = error.message
        shutil.rmtree(folder, ignore_errors=True)
        return row

    def _read(self, student: Path) -> dict[str, Any]:
        limit = 12 if self.of.small else None
        pairs = (
            list(suite_name("read_pairs")(per_family=2 if self.of.small else None))
            if self.test
            else validation_pairs(12)
        )
        pairs = pairs[:8] if self.of.small and not self.test else pairs
        read = read_student(student, "test" if self.test else "validation", pairs, limit)
        moved = self.shared.bench.moved(student) if self.test else {}
        self.shared.bench.ctx.engines.pop(student, None)
        tokens = sum(m["tokens"] for m in moved.values())
        kl = sum(m["kl_per_token"] * m["tokens"] for m in moved.values()) / tokens if tokens else None
        return read | {"kl": kl}


def read_student(student: Path, split: str, pairs: list[Any], limit: int | None) -> dict[str, Any]:
    """Success on a split and right near-misses, greedy: of families that makers of twins use, and of those they do not."""
    engine, renderer = TransformersEngine.load(student, dtype="float32"), Renderer.from_pretrained(student)
    options = SamplingOptions(temperature=0.0, max_new_tokens=64, max_steps=8, batch_size=128, seed=0)
    world, near = load_suite(WORLD), suite_name("EditedToolworld")()
    tasks = list(world.splits()[split])[:limit]
    played = outcomes(engine, renderer, near, suite_name("tasks_of_pairs")(pairs), options)
    headline = suite_name("score")(pairs, suite_name("right_tasks")(played))["headline"]
    return {
        "success": float(np.mean([o.success for o in outcomes(engine, renderer, world, tasks, options)])),
        "near": {role: headline[role]["near_miss"] for role in ("maker", "test") if role in headline},
    }


def opened(setting: Setting, console: Console) -> tuple[Comparison, list[RunDir]]:
    """Run the shared stages and each arm's own, and open all of them."""
    base, dirs = setting.folder / "base", list[RunDir]()
    run_until(setting.config(None), base, resume=base.is_dir(), until="rescore", console=console)
    own: dict[str, RunContext] = {}
    for arm in setting.arms:
        folder, config = setting.folder / "recipes" / arm, setting.config(arm)
        copied(base, folder)
        run_until(config, folder, resume=True, until="rescore", console=console)
        dirs.append(RunDir.create(folder, config, resume=True))
        own[arm] = RunContext(config, dirs[-1], console)
    dirs.append(RunDir.create(base, setting.config(None), resume=True))
    settings = ControlsSettings(rows=setting.rows, steps=setting.steps, clean_steps=20 if setting.small else 100)
    return Comparison(RunContext(setting.config(None), dirs[-1], console), own, settings), dirs


def best_rates(setting: Setting, jobs: Sequence[MethodJob]) -> dict[str, float]:
    """By arm, the rate with the highest mean of success and right near-misses on validation; arms with all rates read alone."""
    found: dict[str, list[tuple[float, float]]] = {}
    for job in jobs:
        row = result_of(setting.folder / "results", job)
        if row is not None and row["failed"] is None:
            value = (row["success"] + float(np.mean(list(row["near"].values())))) / 2
            found.setdefault(job.arm, []).append((value, job.rate))
    return {arm: max(values)[1] for arm, values in found.items() if len(values) == len(setting.rates)}


def run(setting: Setting, console: Console, *, do: bool) -> tuple[list[dict[str, Any]], dict[str, float], list[str]]:
    """Do what is owed (or, without `do`, nothing); returns the rows of the test, the chosen rates, and what is owed."""
    shared, dirs = opened(setting, console)
    results = setting.folder / "results"
    try:
        first = [MethodJob(setting, shared, a, r, SEEDS[0], False) for a in setting.arms for r in setting.rates]
        if do:
            run_owed(results, first, "validation", console)
        chosen = best_rates(setting, first)
        last = [
            MethodJob(setting, shared, a, r, s, True)
            for s in (SEEDS[:1] if setting.small else SEEDS)
            for a, r in chosen.items()
        ]
        if do:
            run_owed(results, last, "test", console)
        rows = [r for j in last if (r := result_of(results, j)) is not None]
        return rows, chosen, [j.name for j in [*first, *last] if result_of(results, j) is None]
    finally:
        for rundir in dirs:
            rundir.close()


def page(setting: Setting, rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, float], owed: Sequence[str]) -> str:
    """The table of what is finished, the best first, and what is not."""

    def mean(values: Sequence[float | None]) -> str:
        known = [v for v in values if v is not None]
        if not known:
            return "–"
        spread = f" ±{np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
        return f"{np.mean(known):.3f}{spread}"

    by_arm = {a: [r for r in rows if r["arm"] == a and r["failed"] is None] for a in ARMS}
    order = sorted((a for a in ARMS if by_arm[a]), key=lambda a: -np.mean([r["success"] for r in by_arm[a]]))
    head = [
        "method",
        "rate",
        "seeds",
        "success",
        "near-misses, makers' families",
        "other families",
        "KL on clean steps",
        "seconds",
    ]
    body = [
        [
            ARMS[a][0],
            f"{chosen[a]:g}",
            str(len(by_arm[a])),
            mean([r["success"] for r in by_arm[a]]),
            mean([r["near"].get("maker") for r in by_arm[a]]),
            mean([r["near"].get("test") for r in by_arm[a]]),
            "–" if not by_arm[a][0]["kl"] else f"{np.mean([r['kl'] for r in by_arm[a]]):.4f}",
            f"{np.mean([r['seconds'] for r in by_arm[a]]):.0f}",
        ]
        for a in order
    ]
    rates = ", ".join(f"{r:g}" for r in setting.rates)
    said = (
        f"Every arm: {setting.rows} rows per training run, {setting.steps} optimiser steps, rates {rates} on validation (the best by the "
        "mean of success and right near-misses), then the seeds on the test. ± is the standard deviation over seeds."
    )
    edges = [
        ARMS[a][0] for a in order if len(setting.rates) > 1 and chosen[a] in (min(setting.rates), max(setting.rates))
    ]
    if edges:
        said += f" At the edge of the tried rates, so that a rate beyond it may be better: {', '.join(edges)}."
    missing = [ARMS[a][0] for a in ARMS if a not in order]
    lines = [table(head, body) if body else "Not measured yet.", "", said]
    if missing:
        lines += ["", f"Without a result: {', '.join(missing)}."]
    if owed:
        lines += ["", f"Missing: {len(owed)} jobs (`python benchmarks/methods.py --resume`)."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--teacher", type=Path, help="folder of GKD's larger student")
    parser.add_argument("--small", action="store_true", help="few rows, steps, tasks and rates: does it run?")
    parser.add_argument("--resume", action="store_true", help="do what is owed in --dir")
    parser.add_argument("--owed", action="store_true", help="tables and what is owed; run no job")
    parser.add_argument("--pages", action="store_true", help="write the block of docs/methods.md")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 4e-4])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=128)
    args = parser.parse_args(arguments)
    setting = Setting(args.dir, args.teacher, args.small, tuple(args.rates), args.steps, args.rows)
    if args.small:
        setting = replace(setting, rates=setting.rates[:1], steps=SMALL_STEPS, rows=12)
    if args.dir.exists() and not (args.resume or args.owed):
        parser.error(f"{args.dir} is there already: --resume does what is owed of it")
    try:
        rows, chosen, owed = run(setting, Console(), do=not args.owed)
    except HintdistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = page(setting, rows, chosen, owed)
    write_atomic(args.dir / "methods.json", json.dumps({"rows": rows, "rates": chosen, "owed": owed}, indent=1))
    write_atomic(args.dir / "methods.md", text + "\n")
    if args.pages:
        put(PAGE, BEGIN, END, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

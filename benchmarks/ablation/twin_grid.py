"""Try settings of twins: each trains from one run's targets and is measured on tasks and pairs that no test uses.

    python -m benchmarks.ablation.twin_grid RUN [--settings FILE] [--only NAME …] [--seeds 0] [--out runs/twin_grid]

RUN is a run folder up to rescore with `train.twins.per_finding=3`. A setting changes the run's `train` section and says how many
twins of a finding are taken. Read, greedy: success on the validation split, near-miss success and contrast consistency on pairs of
makers' families that are drawn anew and disjoint from the suite's, P(error) of held-out decision tokens, and KL on held-out clean
steps. A result is a line of `grid.jsonl` under its setting and seed; what is there is not done again. Prints the table.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.ablation.markdown import table
from benchmarks.ablation.twin_reads import suite_name
from benchmarks.ablation.twin_sampled import WORLD
from hintdistill.config import TrainSection
from hintdistill.config.file import load_config
from hintdistill.core.models import resolve_model
from hintdistill.core.scores import ScoreRequest, Target
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.rendering import Renderer
from hintdistill.pipeline import rescore
from hintdistill.pipeline import train as train_stage
from hintdistill.pipeline.arms import changed
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.drift import movement
from hintdistill.rollouts.evaluate import load_suite, outcomes
from hintdistill.rollouts.sampling import SamplingOptions
from hintdistill.training.stage import TrainData, TrainJob, train
from hintdistill.training.watch import WatchSets

HERE = Path(__file__).resolve().parent
PAIRS_SEED = 4242
"""Seed of the validation pairs; the suite's own pairs are drawn with seed 17."""
HABITS = ("unknown_tool", "wrong_argument", "ignored_error")
"""Skipped look-ups have next to no twins in the quickstart."""


@dataclass(frozen=True)
class Grid:
    """The targets, tasks and pairs that every setting shares."""

    ctx: RunContext
    out: Path
    tasks: int
    """Validation tasks, at most."""
    triggers: int
    """Trigger tasks per habit."""

    def targets(self, setting: dict[str, Any], seed: int, section: TrainSection) -> list[Target]:
        """Hints, anchors, and the setting's twins; these drawn by the seed."""
        ctx = RunContext(self.ctx.config.model_copy(update={"train": section}), self.ctx.rundir, self.ctx.console)
        chosen = list(train_stage.selected(ctx))
        by_finding: dict[tuple[str, int], list[Target]] = {}
        for twin in sorted((t for t in chosen if t.kind == "twin"), key=lambda t: t.key):
            if twin.error_class in setting.get("classes", (twin.error_class,)):
                by_finding.setdefault((twin.trace_id, twin.step), []).append(twin)
        rng = random.Random(f"grid:{seed}")
        twins = [t for some in by_finding.values() for t in rng.sample(some, min(setting["per_finding"], len(some)))]
        return [t for t in chosen if t.kind != "twin"] + twins

    def run(self, name: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        """Train one setting and read its student."""
        config, folder = self.ctx.config, self.out / "work"
        section = TrainSection.model_validate(changed(config.train.model_dump(mode="json"), setting["train"]))
        targets = self.targets(setting, seed, section)
        shutil.rmtree(folder, ignore_errors=True)
        run = config.run.model_copy(update={"seed": seed})
        data = TrainData(targets, watch=WatchSets(from_initial=True))
        student = folder / "student"
        initial = self.ctx.initial_folder
        done = train(TrainJob(initial, data, run, section, folder / "train", student, name, initial))
        return {"name": name, "seed": seed, "steps": done.steps, "twins": done.twin_rows, **self.read(student, seed)}

    def read(self, student: Path, seed: int) -> dict[str, Any]:
        """Success, near-misses, P(error) by class, KL."""
        engine, renderer = TransformersEngine.load(student, dtype="float32"), Renderer.from_pretrained(student)
        options = SamplingOptions(temperature=0.0, max_new_tokens=64, max_steps=8, batch_size=128, seed=seed)
        world, pairs = load_suite(WORLD), validation_pairs(self.triggers)
        played = outcomes(
            engine, renderer, suite_name("EditedToolworld")(), suite_name("tasks_of_pairs")(pairs), options
        )
        scored = suite_name("score")(pairs, suite_name("right_tasks")(played))
        tasks = world.splits()["validation"][: self.tasks]
        stored = list(rescore.load(self.ctx).where(lambda t: t.split == "holdout"))
        clean = [_request(t) for t in stored if t.kind == "anchor"][:150]
        moved = movement(self.ctx.engine(self.ctx.initial_folder), engine, clean)
        return {
            "tasks": len(tasks),
            "success": float(np.mean([o.success for o in outcomes(engine, renderer, world, tasks, options)])),
            "near": {r["habit"]: r["near_miss"] for r in scored["habits"] if r["role"] == "maker"},
            "families": {r["family"]: r["near_miss"] for r in scored["families"]},
            "consistency": scored["headline"]["maker"]["consistency"],
            "p_error": error_probabilities(engine, [t for t in stored if t.kind == "hint" and t.accepted]),
            "kl": None if moved is None else moved.kl_per_token,
        }


def validation_pairs(triggers: int) -> list[Any]:
    """Pairs of makers' families, of other tasks than the suite's."""
    made = suite_name("make_pairs")(seed=PAIRS_SEED, triggers=triggers)
    known = set(suite_name("tasks_of_pairs")(suite_name("read_pairs")()))
    pairs = [p for p in made if p.family in suite_name("MAKER_FAMILIES") and p.habit in HABITS]
    assert not known & set(suite_name("tasks_of_pairs")(pairs)), "a validation pair is one of the suite's"
    return pairs


def _request(target: Target) -> ScoreRequest:
    start = len(target.context_ids)
    return ScoreRequest(np.concatenate([target.context_ids, target.step_ids]), start, start + len(target.step_ids))


def error_probabilities(engine: TransformersEngine, hints: Sequence[Target]) -> dict[str, float]:
    """Mean probability of the hints' decision tokens, by class."""
    found: dict[str, list[float]] = {}
    some = [t for t in hints if t.decision]
    for target, score in zip(some, engine.score([_request(t) for t in some], 1), strict=True):
        assert target.decision is not None
        found.setdefault(target.error_class or "-", []).append(float(np.exp(score.sampled[target.decision.position])))
    return {name: float(np.mean(values)) for name, values in found.items()}


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """One row per setting and seed, in the order in which they were done."""

    def by_class(values: dict[str, float], names: Sequence[str]) -> str:
        return " / ".join(f"{values[n]:.2f}" for n in names)

    classes = ("unknown_tool", "wrong_argument", "skipped_lookup", "ignored_error")
    head = ["setting", "seed", "steps", "twins", "success", "near-misses", "consistency", "P(error)", "KL"]
    body = [
        [
            r["name"],
            *(str(r[k]) for k in ("seed", "steps", "twins")),
            f"{r['success']:.3f}",
            by_class(r["near"], HABITS),
            f"{r['consistency']:.2f}",
            by_class(r["p_error"], classes),
            f"{r['kl']:.4f}",
        ]
        for r in rows
    ]
    order = f"Near-misses: {' / '.join(HABITS)}. P(error): {' / '.join(classes)}."
    return f"{table(head, body)}\n\n{order}"


def main(arguments: list[str] | None = None) -> int:
    """Parse, train what is owed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--settings", type=Path, default=HERE / "twin_grid.yaml")
    parser.add_argument("--only", nargs="+", help="names of settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs") / "twin_grid")
    parser.add_argument("--tasks", type=int, default=120)
    parser.add_argument("--triggers", type=int, default=12)
    args = parser.parse_args(arguments)
    settings: dict[str, dict[str, Any]] = yaml.safe_load(args.settings.read_text(encoding="utf-8"))
    if unknown := set(args.only or ()) - settings.keys():
        parser.error(f"no setting {sorted(unknown)[0]!r} in {args.settings}")
    config = load_config(args.run / "config.yaml")
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"model": str(resolve_model(config.run.model))})}
    )
    grid = Grid(RunContext(config, RunDir.open(args.run), Console(quiet=True)), args.out, args.tasks, args.triggers)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "grid.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    for seed in args.seeds:
        for name in args.only or settings:
            if any((r["name"], r["seed"], r["setting"]) == (name, seed, settings[name]) for r in rows):
                continue
            rows.append({**grid.run(name, settings[name], seed), "setting": settings[name]})
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{name}, seed {seed}: done", file=sys.stderr)
    print(table_of(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

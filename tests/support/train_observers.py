"""What keys of `train` and `report` change: small real trainings of a tiny model, and reports of one finished run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from conftest import STUDENT, TOOLWORLD
from safetensors.torch import load_file
from support.golden_values import stored_targets
from support.observers import WORLD, config_of, rows
from support.recipe_models import outcome_of, tiny

from hintdistill.core.errors import HintdistillError
from hintdistill.core.scores import Target
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.training.watch import WatchSets

TIMES = ("seconds", "runtime", "per_second", "flos", "memory")
SMALL = [
    "traces.path=none",
    "train.batch_size=2",
    "train.warmup_ratio=0",
    "train.epochs=2",
    "train.save_steps=2",
    "train.logging_steps=1",
    "train.learning_rate=1e-3",
    "train.recipe.terms.anchor.min_probability=0",
]

LIVE_TRAINING = ["train.targets=in_step"]
"""Further settings for a teacher that follows the student."""


@lru_cache(maxsize=1)
def _targets() -> list[Target]:
    return stored_targets(tiny())


@lru_cache(maxsize=1)
def _folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="tiny-"))
    tiny().save_pretrained(path)
    return path


def trained(overrides: Sequence[str]) -> Any:
    """A whole training: what it logs, forward passes by module, checkpoints, and the student's weights and their precision."""
    from hintdistill.training.stage import TrainData, TrainJob, train

    config = config_of([*SMALL, "run.dtype=float32", "run.device=cpu", *overrides])
    section, calls = config.train, Counter()
    targets = [replace(t, kind=t.kind) for t in _targets()]
    anchors = [t for t in targets if t.kind == "anchor"]
    watch = WatchSets(off_target=anchors, heldout=anchors[:1])
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: calls.update([type(module).__name__])
    )
    said: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        work, out = Path(name) / "work", Path(name) / "student"
        try:
            outcome = outcome_of(targets, section.effective_recipe)
            data = TrainData(targets, watch=watch, outcome=outcome)
            train(TrainJob(_folder(), data, config.run, section, work, out, "k"), warn=said.append)
        finally:
            handle.remove()
        logged = [
            {k: v for k, v in json.loads(line).items() if not any(t in k for t in TIMES)}
            for line in (work / "metrics.jsonl").read_text().splitlines()
        ]
        weights = {p.name: load_file(p) for p in sorted(out.rglob("*.safetensors"))}
        described = {
            f"{file}:{n}": (str(w.dtype), list(w.shape), round(float(w.double().abs().sum()), 9))
            for file, found in weights.items()
            for n, w in found.items()
        }
        checkpoints = sorted(p.name for p in work.glob("checkpoint-*"))
        kinds = sorted({p.name.split(".")[0] for p in work.rglob("*") if p.is_file()})
        return logged, dict(calls), checkpoints, described, said, kinds


def chosen(overrides: Sequence[str]) -> Any:
    """The anchors that are trained on, of four candidates of each trace."""
    from hintdistill.pipeline.train import chosen_anchors

    config = config_of([*SMALL, *overrides])
    model = tiny()
    anchors = [replace(t, kind="anchor", trace_id="one") for t in stored_targets(model)]
    return [t.key for t in chosen_anchors(anchors, config.train, config.run.seed)]


def compared(overrides: Sequence[str]) -> Any:
    """The advantage of four rollouts of two tasks."""
    from hintdistill.core.types import Message, Trace
    from hintdistill.training.reward import trace_outcomes

    said = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    of = [("a", 1.0), ("a", 0.0), ("b", 0.75), ("b", 0.0)]
    traces = [Trace(id=f"t{i}", messages=said, task_id=task, reward=r) for i, (task, r) in enumerate(of)]
    section = config_of([*SMALL, *overrides]).train.outcome
    found = trace_outcomes(traces, section.baseline, section.normalise)
    return {k: round(v.advantage, 9) for k, v in found.items()}


# -- one finished run, gone on with ---------------------------------------------------------------------------------------

RUN = [
    f"traces.path={TOOLWORLD / 'traces.jsonl'}",
    "traces.limit=14",
    "critic.use=[rules]",
    "rescore.top_k=4",
    "train.epochs=0.5",
    "train.anchor.weight=0",
    "report.max_findings=1",
    f"report.off_target={{near: {TOOLWORLD / 'near_misses.jsonl'}}}",
    "report.off_target_steps=3",
    "rollout.limit=1",
    "rollout.splits=[validation]",
    "rollout.max_steps=6",
]


@lru_cache(maxsize=1)
def _finished() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="finished-")) / "run"
    run(config_of(RUN), folder, console=Console(quiet=True))
    return folder


def reported(overrides: Sequence[str]) -> Any:
    """The report of a finished run: figures, findings shown in full, files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        shutil.copytree(_finished(), folder)
        for old in ("report.json", "report.html"):
            (folder / old).unlink()
        run(config_of([*RUN, *overrides]), folder, resume=True, console=Console(quiet=True))
        document = json.loads((folder / "report.json").read_text())
        html = folder / "report.html"
        shown = html.read_text().count('<article id="f-') if html.is_file() else None
        steps = {n: m["steps"] for n, m in document["off_target"].items()}
        return (
            document["environment"],
            steps,
            shown,
            sorted(p.name for p in folder.iterdir()),
            rows(folder / "evaluations.jsonl"),
        )


def gone_on(until: str) -> Any:
    """An observer of a finished run that is gone on with up to a stage: done, or refused."""

    def observe(overrides: Sequence[str]) -> Any:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "run"
            shutil.copytree(_finished(), folder)
            run(config_of([*RUN, *overrides]), folder, resume=True, until=until, console=Console(quiet=True))
            return "done"

    return observe


def ready(until: str) -> Any:
    """An observer of what a run says before it starts: refused, or ready."""

    def observe(overrides: Sequence[str]) -> Any:
        from hintdistill.pipeline.stages import check_inputs

        config = config_of([f"traces.path={TOOLWORLD / 'traces.jsonl'}", *overrides])
        check_inputs(config, until)
        return "ready"

    return observe


def loaded(overrides: Sequence[str]) -> Any:
    """Whether the configuration is sound."""
    config_of(overrides)
    return "sound"


def attempt(observer: Any, overrides: Sequence[str]) -> tuple[str, Any]:
    """What an observer sees, or the refusal."""
    try:
        return "seen", observer(list(overrides))
    except HintdistillError as error:
        return "refused", f"{type(error).__name__}: {error.message}"


__all__ = ["STUDENT", "WORLD", "attempt", "chosen", "compared", "gone_on", "loaded", "ready", "reported", "trained"]

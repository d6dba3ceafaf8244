"""Two real rounds: what each holds is the same, and the second divides by the policy that played it, not by the first one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import STUDENT, TOOLWORLD
from support.observers import config_of

from hintdistill.core.errors import InputError
from hintdistill.core.scores import ScoreRequest, Target
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.objectives import objective
from hintdistill.pipeline import train
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.store import TargetStore
from hintdistill.traces.reading import read_traces
from hintdistill.training.slots import slot_of_target
from hintdistill.training.views import restricted

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def loop(tmp_path_factory) -> Path:
    """Two rounds of a recipe with an importance ratio, in which much is learned in the first."""
    folder = tmp_path_factory.mktemp("loop") / "run"
    config = config_of(
        [
            f"rollout.environment={TOOLWORLD / 'world.py'}:Toolworld",
            "rollout.max_steps=6",
            "rollout.max_new_tokens=48",
            "rollout.sample.episodes=12",
            "rollout.batch_size=12",
            "rollout.splits=[validation]",
            "rollout.limit=2",
            "rollout.stop.min_effect_nats=0",
            "rollout.stop.max_off_target_kl=null",
            "run.rounds=2",
            "traces.holdout=0",
            "critic.use=[rules]",
            "rescore.top_k=4",
            "rescore.gate.enabled=false",
            "train.recipe={preset: tm_opd, teacher: {update: initial}}",
            "train.learning_rate=1e-3",
            "train.epochs=1",
            "train.batch_size=4",
            "train.watch.every=0",
            "train.hold={split: test_clean, limit: 3}",
            "report.off_target_steps=2",
            "report.html=false",
        ]
    )
    run(config, folder, console=Console(quiet=True))
    return folder


def targets(loop: Path, number: str) -> list[Target]:
    return list(TargetStore(loop / "rounds" / number / "run" / "targets").read())


def test_a_rounds_hold_traces_are_played_once_by_the_initial_policy_and_held_in_each(loop):
    played = list(read_traces([loop / "hold-traces.jsonl"]))
    assert len((loop / "hold_episodes.jsonl").read_text().splitlines()) == 3 and played
    assert len({t.model for t in played}) == 1
    for number in ("01", "02"):
        document = json.loads((loop / "rounds" / number / "run" / "report.json").read_text())
        assert document["funnel"]["hold"]["traces"] == len(played), "train.hold.split of both rounds"
        held = [t for t in targets(loop, number) if t.kind == "hold"]
        assert {t.trace_id for t in held} == {t.id for t in played}
        weights = {t.versions["weights"] for t in held}
        assert weights == {TransformersEngine.load(STUDENT, "float32", "cpu").key}, "scored by the initial policy"


def scored(engine: TransformersEngine, hints: list[Target]) -> list[np.ndarray]:
    requests = [
        ScoreRequest(
            np.concatenate([t.context_ids, t.step_ids]), len(t.context_ids), len(t.context_ids) + len(t.step_ids)
        )
        for t in hints
    ]
    return [s.sampled for s in engine.score(requests, top_k=1)]


def test_the_second_round_divides_by_the_student_that_played_it(loop):
    hints = [t for t in targets(loop, "02") if t.kind == "hint"]
    assert hints and all(len(t.sampler_logprobs) == len(t.step_ids) for t in hints)
    first = TransformersEngine.load(STUDENT, "float32", "cpu")
    player = TransformersEngine.load(loop / "rounds" / "01" / "run" / "student", "float32", "cpu")
    of_player = [np.abs(t.sampler_logprobs - s).max() for t, s in zip(hints, scored(player, hints), strict=True)]
    of_first = [np.abs(t.sampler_logprobs - s).max() for t, s in zip(hints, scored(first, hints), strict=True)]
    assert max(of_player) < 1e-3 and max(of_first) > 0.05, (of_player, of_first)
    # and this is what the loss reads: before the first update of the round every ratio is 1
    recipe = RunContext(RunDir(loop / "rounds" / "02" / "run").config()[0], RunDir(loop), Console(quiet=True))
    recipe = recipe.config.train.effective_recipe
    for target, now in zip(hints, scored(player, hints), strict=True):
        assert ratio(recipe, target, now) == pytest.approx(1.0, abs=1e-3)
    worst = int(np.argmax(of_first))
    unrecorded = Target(**{**vars(hints[worst]), "sampler_logprobs": np.zeros(0, np.float32)})
    assert abs(ratio(recipe, unrecorded, scored(player, hints)[worst]) - 1.0) > 1e-3, "the initial policy's is another"


def ratio(recipe: Any, target: Target, now: np.ndarray) -> float:
    """The mean importance ratio of a term on a stored target, for a student that gives its tokens these log-probabilities."""
    slot = slot_of_target(target, {"distill": np.ones(len(target.step_ids), np.float32)})
    student = slot.plain.clone()
    student[torch.arange(slot.length), slot.columns] = torch.from_numpy(now)
    _, metrics = objective(recipe, restricted([slot], student), base={"distill": slot.weights["distill"]})
    return metrics["distill/ratio_mean"]


def test_a_later_round_without_recorded_log_probabilities_is_refused(loop):
    rundir = RunDir(loop / "rounds" / "02" / "run")
    ctx = RunContext(rundir.config()[0], rundir, Console(quiet=True))
    bare = [Target(**{**vars(t), "sampler_logprobs": np.zeros(0, np.float32)}) for t in targets(loop, "02")]
    with pytest.raises(InputError, match="steps have no recorded log-probabilities"):
        train.check_sampler(ctx, bare)
    train.check_sampler(ctx, targets(loop, "02"))
    first = RunDir(loop / "rounds" / "01" / "run")
    start, console = first.config()[0], Console(quiet=True)
    train.check_sampler(RunContext(start, first, console), bare)
    assert "divides by the run's initial policy" in console.warnings[0]

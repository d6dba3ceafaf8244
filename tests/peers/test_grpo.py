"""TRL's GRPOTrainer, the class itself, with the targeted term as an advantage per token."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import STUDENT
from support.exported import step_logprobs
from support.peers import need, the_model, the_run

pytestmark = need("trl", "datasets")

from transformers import AutoTokenizer
from trl import GRPOConfig

from hintdistill.bridges.grpo import StoredSteps, targeted_grpo
from hintdistill.bridges.runs import open_rows
from hintdistill.core.errors import InputError


def no_reward(completions, **_):
    return [0.0] * len(completions)


def trainer_of(steps, folder, **more):
    args = GRPOConfig(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=64,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        beta=0.0,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )
    return targeted_grpo()(
        str(STUDENT),
        args=args,
        reward_funcs=no_reward,
        train_dataset=steps.prompts(),
        processing_class=AutoTokenizer.from_pretrained(STUDENT),
        rollout_func=steps.replay,
        signal=steps,
        **more,
    )


def hints():
    return list(open_rows(the_run()).targets.where(lambda t: t.kind == "hint"))


def test_advantages_are_the_gap_on_the_span_and_nothing_elsewhere(tmp_path):
    steps = StoredSteps(the_run())
    trainer = trainer_of(steps, tmp_path, coefficient=0.5)
    names = steps.prompts()["prompt"][:4]
    out = trainer._generate_and_score_completions([{"prompt": n} for n in names])
    assert out["advantages"].shape == out["completion_ids"].shape
    by_step = {tuple(t.step_ids.tolist()): t for t in hints()}
    for b, mask in enumerate(out["completion_mask"].bool()):
        target = by_step[tuple(out["completion_ids"][b][mask].tolist())]
        gap, inside = target.teacher_sampled - target.plain_sampled, np.zeros(len(target.step_ids))
        inside[slice(*target.span)] = 1
        found = out["advantages"][b].numpy()
        assert np.allclose(found[: len(inside)], 0.5 * np.clip(gap, -5, 5) * inside, atol=1e-6)
        assert not found[len(inside) :].any() and found.any()


def test_three_steps_of_the_real_class_lower_the_error_tokens(tmp_path):
    steps = StoredSteps(the_run())
    trainer = trainer_of(steps, tmp_path)

    def error(model):
        out = []
        for t in hints():
            ids = np.concatenate([t.context_ids, t.step_ids])
            at = t.measurement.position
            out.append(step_logprobs(model, ids, len(t.context_ids))[at, t.step_ids[at]])
        return float(np.mean(out))

    before = error(the_model())
    trainer.train()
    assert trainer.state.global_step == 3
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 3 and all(np.isfinite(losses)) and any(losses)
    assert error(trainer.model.eval()) < before - 0.05


def test_a_completion_that_nobody_scored_keeps_its_own_advantage(tmp_path):
    steps = StoredSteps(the_run())
    assert steps([1, 2, 3], [4, 5]) is None
    with pytest.raises(InputError, match="does not name a step of this run"):
        steps.replay(["a question"], None)

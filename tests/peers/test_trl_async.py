"""TRL's AsyncDistillationTrainer, the class itself, on stored targets: parity per row, and it trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import STUDENT
from support.exported import scored_run
from support.exported import step_logprobs as logprobs
from support.peers import need, the_model, the_run

pytestmark = need("trl", "datasets")

from transformers import AutoTokenizer
from trl.experimental.async_distillation import AsyncDistillationConfig, AsyncDistillationTrainer
from trl.experimental.async_distillation.async_distillation_trainer import DataCollatorForRollout

from hintdistill.bridges.export import export
from hintdistill.bridges.flat import flat_rows
from hintdistill.bridges.formulas import forward_kl
from hintdistill.bridges.runs import open_rows
from hintdistill.bridges.trl import NoTransfer, StoredRollouts, offline, sample, settings
from hintdistill.core.errors import ConfigError

FIELDS = (
    "input_ids",
    "completion_mask",
    "teacher_topk_ids",
    "teacher_topk_logprobs",
    "teacher_id",
    "prompt_id",
    "metrics",
)


def trainer_of(rollouts, folder, steps, **more):
    more = {"learning_rate": 3e-4, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8} | more
    args = AsyncDistillationConfig(
        str(folder),
        **settings(rollouts),
        max_steps=steps,
        lr_scheduler_type="constant",
        model_init_kwargs={"attn_implementation": "sdpa"},
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )
    with offline():
        return AsyncDistillationTrainer(
            str(STUDENT),
            args=args,
            train_dataset=rollouts.prompts(),
            processing_class=AutoTokenizer.from_pretrained(STUDENT),
            rollout_worker=rollouts,
            weight_transfer=NoTransfer(),
        )


def losses(trainer, rollouts, rows):
    """The trainer's own loss of each row."""
    collate, out = DataCollatorForRollout(trainer.processing_class.pad_token_id), []
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        for row in rows:
            one = sample(row, rollouts.width)
            batch = collate.torch_call([[[{name: getattr(one, name) for name in FIELDS}]]])
            out.append(float(trainer._compute_loss(trainer.model, batch)))
    return np.array(out)


@pytest.fixture
def run():
    return the_run()


def test_parity_per_row_and_twenty_steps_lower_the_kl(run, tmp_path):
    model = the_model()
    found = open_rows(run)
    flat = {r.key: r for r in flat_rows(found.rows, found.section.effective_recipe)}
    rollouts = StoredRollouts(run)
    trainer = trainer_of(rollouts, tmp_path, 20)
    theirs = losses(trainer, rollouts, rollouts.rows)
    assert {r["kind"] for r in rollouts.rows} == {"hint", "anchor", "twin"}
    for row, loss in zip(rollouts.rows, theirs, strict=True):
        mine = flat[row["key"]]
        assert loss == pytest.approx(
            forward_kl(mine, logprobs(model, mine.ids, mine.start)) / mine.weights.sum(), abs=1e-5
        )
    hints = [r for r in rollouts.rows if r["kind"] == "hint"]
    before = losses(trainer, rollouts, hints).mean()
    rollouts.rows[:] = hints
    trainer.train()
    after = losses(trainer, rollouts, hints).mean()
    print(f"KL of hint rows, nats per token: {before:.4f} → {after:.4f}")
    assert before / after >= 5, (before, after)


def test_packed_rows_do_not_read_one_another(run, tmp_path):
    rollouts = StoredRollouts(run)
    trainer, some = trainer_of(rollouts, tmp_path, 2), rollouts.rows[:4]
    each, tokens = losses(trainer, rollouts, some), np.array([sum(r["mask"]) for r in some])
    packed = [{n: getattr(sample(r, rollouts.width), n) for n in FIELDS} for r in some]
    with torch.no_grad():
        batch = DataCollatorForRollout(trainer.processing_class.pad_token_id).torch_call([[packed]])
        together = float(trainer._compute_loss(trainer.model, batch))
    assert together == pytest.approx(float((each * tokens).sum() / tokens.sum()), rel=1e-5)


def test_a_batch_mixes_hints_anchors_and_twins_by_their_weights(run, tmp_path):
    rollouts = StoredRollouts(run)
    by_kind = {r["kind"]: r["copies"] for r in rollouts.rows}
    assert by_kind == {"hint": 1, "anchor": 2, "twin": 1}
    turns = sum(r["copies"] for r in rollouts.rows)
    served = [rollouts.rollout_buffer.get(timeout=1.0) for _ in range(turns)]
    lengths = sorted(len(s.input_ids) for s in served)
    assert lengths == sorted(len(r["input_ids"]) for r in rollouts.rows for _ in range(r["copies"]))
    trainer = trainer_of(rollouts, tmp_path, 2)
    trainer.train()
    assert trainer.state.global_step == 2 and rollouts.rollout_buffer.qsize() == 1


def test_an_export_serves_what_the_run_does(run, tmp_path):
    folder, card = export(run, "trl", out=tmp_path / "out", checked=True)
    read, direct = StoredRollouts(folder), StoredRollouts(run)
    assert read.width == direct.width == card["written"]["ids_per_token"]
    for one, other in zip(read.rows, direct.rows, strict=True):
        a, b = sample(one, read.width), sample(other, read.width)
        assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in FIELDS if "metrics" not in n)


def test_fractional_weights_are_refused_by_name(tmp_path):
    weighted = scored_run(tmp_path / "run", "train.recipe.terms.distill.span=quote_weighted", limit=24)
    with pytest.raises(
        ConfigError,
        match=r"row [0-9a-f]{24}: its tokens have weights in the ratio 0\.25 to 1.*completion_mask is 0 or 1",
    ):
        StoredRollouts(weighted)

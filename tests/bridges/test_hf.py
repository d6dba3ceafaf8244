"""A plain transformers.Trainer with the bridge's data set, collator and loss trains what this toolkit's trainer trains."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.exact_rows import Doubled, target_of, targets_of
from support.flat_recipe import train_section
from support.model_kinds import VOCAB
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

from hintdistill.bridges.formats import ExportJob
from hintdistill.bridges.hf import Collator, HintLoss, HintRows, columns, require_stored, row_of, write
from hintdistill.config import RunSection
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.training.rows import LengthSampler, build_rows
from hintdistill.training.stage import make_trainer

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, BATCH = 10, 2
MANY = {"loss_span": "quote_weighted", "anchor": {"weight": 2.0}, "twins": {"weight": 0.3, "per_finding": 1}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)  # opinionated, so that a hint has an effect
    return made


@pytest.fixture(scope="module")
def stored(model):
    """Seven hints and an anchor in three traces, two of them on one step, and two twins in a row of their own."""
    trace = np.random.default_rng(7).integers(3, VOCAB, 40)
    held = [
        target_of(model, f"twin{i}", "twinned", trace, a, b, a, trace[:0])
        for i, (a, b) in enumerate([(9, 15), (30, 40)])
    ]
    return [*targets_of(model), *(replace(t, kind="twin") for t in held)]


def arguments(folder, section, **more):
    return TrainingArguments(
        str(folder),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": BATCH,
            "learning_rate": section.rate,
            "lr_scheduler_type": section.schedule,
            "weight_decay": section.weight_decay,
            "max_grad_norm": section.max_grad_norm,
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **more,
        },
    )


def both(model, stored, tmp_path, **config):
    """The toolkit's trainer and a plain one, on the same rows in the same order."""
    section = train_section(batch_size=BATCH, epochs=5, warmup_ratio=0, save_steps=1000, logging_steps=1, **config)
    run = RunSection(model="tiny", device="cpu", dtype="float32")
    built = build_rows(stored, section)
    ours = make_trainer(copy.deepcopy(model), built, run, section, tmp_path / "ours", special_ids=[0, 1, 2])
    rows = HintRows(built, section.effective_recipe, run.seed)
    sampler = LengthSampler(built.lengths, BATCH, ours.args.data_seed or ours.args.seed)
    order = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        order += list(sampler)
    # each step of both trainers takes as many rows
    assert len(built) % BATCH == 0
    loss = HintLoss(rows)
    theirs = Trainer(
        copy.deepcopy(model),
        arguments(tmp_path / "theirs", section),
        train_dataset=[rows[i] for i in order],
        data_collator=Collator(),
        compute_loss_func=loss,
        callbacks=[loss.clock()],
    )
    return ours, theirs


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def curve(trainer) -> np.ndarray:
    return np.array([log["loss"] for log in trainer.state.log_history if "loss" in log])


@pytest.mark.parametrize(
    "config", [MANY, {"divergence": "fkl", "normalize": "kept", "twins": {"weight": 1.0}}], ids=["all", "fkl"]
)
def test_ten_steps_in_float64_are_the_toolkits(model, stored, tmp_path, config):
    double = copy.deepcopy(model).double()
    with Doubled():
        ours, theirs = both(double, stored, tmp_path, **config)
        before = weights(ours)
        ours.train()
        theirs.train()
    assert ours.state.global_step == theirs.state.global_step == STEPS
    assert float((weights(ours) - before).abs().max()) > 1e-3
    assert float((weights(ours) - weights(theirs)).abs().max()) <= 1e-9


def test_float32_rows_and_curve(model, stored, tmp_path):
    ours, theirs = both(model, stored, tmp_path, **MANY)
    rows = ours.train_dataset.rows
    data = HintRows(rows, ours.recipe)
    for i, row in enumerate(rows):
        batch = Collator()([data[i]])
        labels = batch.pop("labels")
        found = HintLoss(data)(theirs.model(**batch), labels).item()
        assert found == pytest.approx(ours.compute_loss(ours.model, {"rows": [row]}).item(), rel=1e-5, abs=1e-7)
    ours.train()
    theirs.train()
    assert len(curve(ours)) == len(curve(theirs)) == STEPS
    assert np.allclose(curve(ours), curve(theirs), rtol=1e-3)


def test_a_low_rank_adapter_under_a_plain_trainer_learns(model, stored, tmp_path):
    from peft import LoraConfig, get_peft_model

    section = train_section(learning_rate=1e-2, **MANY)
    rows = HintRows(build_rows(stored, section), section.effective_recipe)
    loss = HintLoss(rows)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    args = arguments(tmp_path, section, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    trainer = Trainer(adapted, args, train_dataset=rows, data_collator=Collator(), compute_loss_func=loss)
    trainer.train()
    assert curve(trainer)[-1] < 0.8 * curve(trainer)[0]
    assert {n for n, p in adapted.named_parameters() if p.requires_grad} == {
        n for n, _ in adapted.named_parameters() if "lora" in n
    }


def test_an_exported_row_is_the_row(model, stored, tmp_path):
    section = train_section(**MANY)
    rows = build_rows(stored, section)
    job = ExportJob(rows, section, 5, tmp_path, "keep")
    assert write(job)["rows"] == len(rows)
    read = HintRows.from_export(tmp_path)
    assert read.recipe == section.effective_recipe and read.seed == 5 and len(read) == len(rows)
    for row, other in zip(rows, read.rows, strict=True):
        assert columns(row) == columns(other) == columns(row_of(columns(row)))
        for slot, again in zip(row.slots, other.slots, strict=True):
            assert slot.weights.keys() == again.weights.keys() and torch.equal(slot.sampled, again.sampled)
            # a target whose widest token has no pad
            held = [*range(again.support_ids.shape[1]), -1]
            assert torch.equal(slot.target[:, held], again.target) and torch.equal(slot.plain[:, held], again.plain)
            assert all(torch.equal(slot.facts()[n], again.facts()[n]) for n in slot.facts())


def test_labels_count_the_steps_and_name_them(model, stored):
    section = train_section(**MANY)
    data = HintRows(build_rows(stored, section), section.effective_recipe)
    numbers = [n for i in range(len(data)) for n in data[i]["labels"] if n != -100]
    assert numbers == list(range(sum(len(r.slots) for r in data.rows)))
    assert [data.slot(n).key for n in numbers] == [s.key for r in data.rows for s in r.slots]
    assert all(data[i]["labels"][0] == -100 for i in range(len(data)))


def test_a_row_that_was_cut_is_an_error(model, stored):
    section = train_section()
    data = HintRows(build_rows(stored, section), section.effective_recipe)
    batch = Collator()([{k: v[:20] for k, v in data[0].items()}])
    labels = batch.pop("labels")
    with pytest.raises(InputError, match="cut to 20 tokens"):
        HintLoss(data)(model(**batch), labels)


def test_a_recipe_that_moves_needs_the_clock(model, stored):
    terms = {"distill": {"coef": {"from": 1.0, "to": 0.0, "steps": 4}}}
    section = train_section(recipe={"preset": "targeted", "terms": terms})
    data = HintRows(build_rows(stored, section), section.effective_recipe)
    batch, loss = Collator()([data[0]]), HintLoss(data)
    labels = batch.pop("labels")
    with pytest.raises(ConfigError, match="clock"):
        loss(model(**batch), labels)
    loss.step = 0
    whole = loss(model(**batch), labels).item()
    loss.step = 4
    assert loss(model(**batch), labels).item() < whole


def test_what_stored_targets_cannot_give_is_refused_by_name():
    with pytest.raises(ConfigError, match="sdft computes its targets in the training step"):
        require_stored(train_section(recipe="sdft"))
    with pytest.raises(ConfigError, match=r"couples an outcome reward \(additive\)"):
        require_stored(train_section(recipe={"preset": "targeted", "coupling": {"kind": "additive"}}))

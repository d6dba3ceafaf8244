"""Axolotl's own loss functions and collator on the exported file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from conftest import STUDENT
from support.peers import need, the_model, the_run

pytestmark = need("axolotl", "liger_kernel")

from axolotl.integrations.kd.args import KDArgs
from axolotl.integrations.kd.collator import DataCollatorForKD
from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss
from axolotl.integrations.kd.topk_logprob.forward_kl import loss as topk_loss
from axolotl.integrations.kd.trainer import AxolotlKDTrainer
from datasets import load_dataset
from support.exported import step_logprobs
from transformers import AutoTokenizer

from hintdistill.bridges.axolotl import CONFIG, KEYS, weight_constant
from hintdistill.bridges.export import ExportSettings, export
from hintdistill.bridges.flat import flat_rows
from hintdistill.bridges.formulas import bound, forward_kl
from hintdistill.bridges.runs import open_rows


@pytest.fixture(scope="module", params=["renormalise", "drop"])
def exported(request, tmp_path_factory):
    """The folder, its rows as axolotl reads a data set, and the rows they were made of, narrowed and whole."""
    folder, _ = export(
        the_run(),
        "axolotl",
        ExportSettings(20, request.param),
        out=tmp_path_factory.mktemp("axolotl") / "out",
        checked=True,
    )
    settings = yaml.safe_load((folder / CONFIG).read_text())
    where = settings["datasets"][0]
    read = load_dataset(
        where["ds_type"], data_files=str(folder / where["path"]), split="train", cache_dir=str(folder / "c")
    )
    keys = json.loads((folder / KEYS).read_text())
    found, whole = open_rows(the_run(), 20, request.param), open_rows(the_run())
    recipe = found.section.effective_recipe
    few, full = ({r.key: r for r in flat_rows(f.rows, recipe)} for f in (found, whole))
    assert list(few) == keys and len(read) == len(keys)
    return settings, read, [(few[k], full[k]) for k in keys], request.param


def batch_of(read, numbers):
    collate = DataCollatorForKD(AutoTokenizer.from_pretrained(STUDENT), padding=True)
    return collate([dict(read[i]) for i in numbers])


def by_trainer(model, batch, settings):
    """The loss as AxolotlKDTrainer computes it, with the kernel that it would make of these settings."""
    kernel = LigerFusedLinearKLTopKLogprobLoss(
        settings["kd_ce_alpha"],
        settings["kd_alpha"],
        settings["kd_temperature"],
        settings["kd_beta"],
        compiled=False,
        compute_ce_loss=bool(settings["kd_ce_alpha"]),
        normalize_topk=settings["kd_normalize_topk"],
    )
    # its trainer without its arguments: of all its state the loss reads this alone
    trainer = object.__new__(AxolotlKDTrainer)
    trainer._kd_loss_fn = kernel
    return trainer.compute_loss(model, dict(batch))


def logits_of(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def test_its_kernel_and_its_reference_agree_with_the_formula(exported):
    settings, read, pairs, tail = exported
    model, off = the_model(), []
    for i in range(0, len(read), 3):
        few, full = pairs[i]
        batch = batch_of(read, [i])
        with torch.no_grad():
            value = by_trainer(model, batch, settings)
            plain = topk_loss(
                logits_of(model, batch), batch["target_token_ids"], batch["target_logprobs"], batch["target_mask"], 1
            )
        student = step_logprobs(model, few.ids, few.start)
        mine, limit = forward_kl(full, student), bound(full, few, student, tail)
        for theirs in (float(value), float(plain)):
            assert theirs - weight_constant(few) == pytest.approx(
                forward_kl(few, student), rel=1e-5, abs=2e-6 * few.weights.sum()
            )
        assert abs(float(value) - weight_constant(few) - mine) <= limit + 1e-5 * mine + 2e-6 * few.weights.sum()
        if few.kind == "hint":
            off.append(abs(float(value) - weight_constant(few) - mine) / mine)
    assert off and np.median(off) <= 1e-2


def test_a_batch_is_a_mean_over_steps_with_the_weights_of_the_run(exported):
    settings, read, pairs, _ = exported
    numbers = [0, len(read) // 2, len(read) - 1]
    with torch.no_grad():
        value = by_trainer(the_model(), batch_of(read, numbers), settings)
    each = [pairs[i][0] for i in numbers]
    wanted = [forward_kl(r, step_logprobs(the_model(), r.ids, r.start)) + weight_constant(r) for r in each]
    assert float(value) == pytest.approx(np.mean(wanted), rel=1e-5, abs=1e-5)


def test_the_gradient_is_that_of_the_weighted_forward_kl(exported):
    settings, read, pairs, _ = exported
    i = next(n for n, (few, _) in enumerate(pairs) if few.kind == "hint")
    few, model = pairs[i][0], the_model()
    weight = model.get_output_embeddings().weight

    def gradient(value):
        (found,) = torch.autograd.grad(value, weight)
        return found

    theirs = gradient(by_trainer(model, batch_of(read, [i]), settings))
    logp = model(torch.from_numpy(few.ids)[None]).logits[0, few.start - 1 : -1].log_softmax(-1)
    ids, teacher = torch.from_numpy(few.support_ids), torch.from_numpy(few.teacher).float()
    ours = logp.gather(1, ids.clamp(min=0))
    each = torch.where(ids >= 0, teacher.exp() * -ours, 0.0).sum(1)
    mine = gradient((torch.from_numpy(few.weights).float() * each).sum())
    assert float((theirs - mine).norm() / mine.norm()) <= 1e-4


def test_the_yaml_speaks_the_plugins_language(exported):
    settings, _, pairs, _ = exported
    own = {k: v for k, v in settings.items() if k.startswith("kd_")}
    assert set(own) <= set(KDArgs.model_fields) and KDArgs(**own).kd_alpha == 1.0
    assert settings["plugins"] == ["axolotl.integrations.kd.KDPlugin"] and settings["kd_ce_alpha"] == 0
    assert settings["sequence_len"] >= max(len(r.ids) for r, _ in pairs)

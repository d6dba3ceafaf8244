"""`hintdistill report RUN --student PATH`: a student trained elsewhere is measured; one that cannot be the run's is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import STUDENT
from support.command import hintdistill
from support.exported import scored_run
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hintdistill.bridges.export import export
from hintdistill.bridges.hf import Collator, HintLoss, HintRows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    return scored_run(folder, "rollout.environment=null", "report.off_target={}", limit=32)


@pytest.fixture(scope="module")
def student(run, tmp_path_factory):
    """A plain Trainer's student, with the tokenizer's files and the export's card beside its weights."""
    exported, _ = export(run, "hf", out=tmp_path_factory.mktemp("export") / "out")
    rows = HintRows.from_export(exported)
    loss, out = HintLoss(rows), tmp_path_factory.mktemp("trained")
    model = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32)
    settings = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 3e-4, "save_strategy": "no"}
    args = TrainingArguments(str(out / "work"), **settings, report_to="none", use_cpu=True, disable_tqdm=True)
    Trainer(model, args, train_dataset=rows, data_collator=Collator(), compute_loss_func=loss).train()
    folder = out / "student"
    shutil.copytree(STUDENT, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(folder)
    shutil.copy(exported / "card.json", folder / "hintdistill_export.json")
    return folder


def test_what_a_plain_trainer_corrected_is_in_the_report(run, student):
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.name in ("report.json", "manifest.json")}
    done = hintdistill("report", str(run), "--student", str(student), "--json")
    document = json.loads(done.stdout)
    accepted = [f for f in document["findings"] if f["accepted"]]
    assert accepted and document["train"] is None
    (folder,) = (run / "students").iterdir()
    known = json.loads((folder / "provenance.json").read_text())
    assert known["targets_confirmed"] is True and known["weights"] == folder.name != known["initial"]
    moved = [f["decision"] for f in accepted if f["decision"]]
    assert moved and sum(d["after"] < d["before"] for d in moved if "after" in d) >= len(moved) / 2, moved[0]
    assert not any("it is unknown which targets" in w for w in document["warnings"])
    # the run's own report and student are what they were
    assert before == {n: (run / n).read_bytes() for n in before} and not (run / "student").exists()


def test_a_student_without_a_card_is_measured_and_said(run, student, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(student, bare, ignore=shutil.ignore_patterns("hintdistill_export.json"))
    done = hintdistill("report", str(run), "--student", str(bare), "--json")
    assert any("it is unknown which targets bare was trained on" in w for w in json.loads(done.stdout)["warnings"])


def test_a_student_of_other_targets_or_another_tokenizer_is_refused(run, student, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(student, other)
    (other / "hintdistill_export.json").write_text(json.dumps({"targets_sha256": "0" * 64}))
    assert (
        "belongs to other targets (0000000000000000)"
        in hintdistill("report", str(run), "--student", str(other), expect=3).stderr
    )
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "\n{# another #}")
    done = hintdistill("report", str(run), "--student", str(other), expect=3)
    assert "another tokenizer or chat template than the run" in done.stderr
    assert (
        "only to the run's own report"
        in hintdistill("report", str(run), "--share", "--student", str(student), expect=2).stderr
    )

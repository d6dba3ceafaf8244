"""What comes out of a training: files in the precision asked for, adapters that load, an arriving adapter merged or kept, the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import test_training
import torch
from conftest import STUDENT
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hintdistill.config import LoraSection, RunSection, TrainSection
from hintdistill.core.errors import ConfigError, ModelError
from hintdistill.core.models import model_key
from hintdistill.engines.transformers import load_model
from hintdistill.injection.rendering import Renderer
from hintdistill.training import output
from hintdistill.training.output import file_dtype, write_student
from hintdistill.training.stage import TrainData, TrainJob, read_summary, train
from hintdistill.training.students import initial_weights, load_student

CPU = torch.device("cpu")
RUN = RunSection(model=str(STUDENT), device="cpu", dtype="float32")
LORA = {"lora": LoraSection(rank=4, alpha=8)}
BESIDE = {"lora": LoraSection(rank=3, alpha=6), "arriving_adapter": "beside"}
IDS = torch.arange(7, 40)[None]
targets = test_training.targets


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, as a share of the largest logit."""
    return ((a - b).abs().max() / b.abs().max()).item()


def stir(model, seed: int = 0) -> None:
    """Give what is trainable other values, as a training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.03)


def written(tmp_path, model, run=RUN, **config) -> Path:
    given = {k: config.pop(k) for k in ("arrived", "state_dict") if k in config}
    write_student(
        tmp_path / "student",
        model,
        folder=Path(run.model),
        run=run,
        config=TrainSection(**config),
        summary={"key": "k"},
        **given,
    )
    return tmp_path / "student"


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A student that arrives as an adapter on the shipped one."""
    student = load_student(STUDENT, RUN, TrainSection(**LORA), CPU)
    stir(student.model)
    student.model.save_pretrained(tmp_path / "came")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy2(STUDENT / name, tmp_path / "came" / name)
    return tmp_path / "came"


# -- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("save", "dtype"), [(None, "float32"), ("float32", "float32"), ("auto", "bfloat16"), ("bfloat16", "bfloat16")]
)
def test_files_have_the_precision_asked_for(tmp_path, save, dtype):
    """The shipped student's own files are bfloat16; by default no update is rounded away."""
    student = load_student(STUDENT, RUN, TrainSection(), CPU)
    stir(student.model)
    before = logits(student.model)
    folder = written(tmp_path, student.model, **({} if save is None else {"save_dtype": save}))
    stored = load_file(folder / "model.safetensors")
    assert {str(t.dtype) for t in stored.values()} == {f"torch.{dtype}"} and file_dtype(folder) == getattr(torch, dtype)
    assert "lm_head.weight" not in stored, "tied weights are written once"
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == dtype and config["use_cache"] is True
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (STUDENT / name).read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert str(loaded.dtype) == f"torch.{dtype}"
    gap = far(logits(loaded), before)
    assert gap == 0.0 if dtype == "float32" else 0.0 < gap < 0.1
    # the model that was handed over is as it was
    assert far(logits(student.model), before) == 0.0 and student.model.config.use_cache is False


def test_gathered_weights_are_written_in_the_models_place(tmp_path):
    student = load_student(STUDENT, RUN, TrainSection(), CPU)
    stir(student.model)
    whole, before = {n: t.clone() for n, t in student.model.state_dict().items()}, logits(student.model)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.zero_()
    folder = written(tmp_path, student.model, state_dict=whole)
    assert far(logits(load_model(folder, torch.float32, CPU)), before) == 0.0


def test_gathered_adapter_weights(tmp_path):
    student = load_student(STUDENT, RUN, TrainSection(**LORA), CPU)
    stir(student.model)
    whole, before = {n: t.clone() for n, t in student.model.state_dict().items()}, logits(student.model)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.zero_()
    folder = written(tmp_path, student.model, state_dict=whole, **LORA)
    assert far(logits(load_model(folder, torch.float32, CPU)), before) <= 1e-5
    assert far(logits(load_model(folder / "adapter", torch.float32, CPU)), before) <= 1e-5


def test_generation_settings_that_transformers_refuses_to_write_are_kept(tmp_path):
    """Released models have some; they must not cost a training its result."""
    model = tmp_path / "model"
    shutil.copytree(STUDENT, model)
    text = json.dumps({"do_sample": False, "temperature": 0.6, "eos_token_id": 2})
    (model / "generation_config.json").write_text(text)
    run = RunSection(model=str(model), device="cpu", dtype="float32")
    folder = written(tmp_path, load_student(model, run, TrainSection(), CPU).model, run)
    assert (folder / "generation_config.json").read_text() == text


def test_a_folder_is_whole_or_the_one_before(tmp_path, monkeypatch):
    student = load_student(STUDENT, RUN, TrainSection(), CPU)
    folder = written(tmp_path, student.model)
    before = (folder / "model.safetensors").read_bytes()
    stir(student.model)

    def killed(*_, **values):
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "_edit", killed)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, student.model)
    monkeypatch.undo()
    assert (folder / "model.safetensors").read_bytes() == before and (folder / "hintdistill.json").is_file()
    assert (tmp_path / "student.writing").is_dir()
    written(tmp_path, student.model)
    assert (folder / "model.safetensors").read_bytes() != before and not (tmp_path / "student.writing").exists()


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_loads_alone_and_merged(tmp_path, recwarn):
    student = load_student(STUDENT, RUN, TrainSection(**LORA), CPU)
    assert [w for w in recwarn if w.category is FutureWarning] == [], "nothing that a user could do anything about"
    stir(student.model)
    before = logits(student.model)
    folder = written(tmp_path, student.model, **LORA)
    assert far(logits(load_model(folder / "adapter", torch.float32, CPU)), before) <= 1e-5
    assert far(logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)), before) <= 1e-5
    said = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(STUDENT.resolve()) and said["r"] == 4
    assert not (folder / "initial").exists() and not (folder / "arrived").exists()
    assert far(logits(student.model), before) == 0.0 and hasattr(student.model, "peft_config")
    with initial_weights(student.model):
        assert far(logits(student.model), logits(load_model(STUDENT, torch.float32, CPU))) == 0.0
    with pytest.raises(ValueError, match="no adapter"), initial_weights(load_model(STUDENT, torch.float32, CPU)):
        pass


def test_a_merged_arrival_is_recorded_and_its_new_adapter_has_a_base(targets, tmp_path, adapter):
    run = RunSection(model=str(adapter), device="cpu", dtype="float32")
    config = TrainSection(**test_training.FAST, **LORA, learning_rate=1e-2)
    assert not (adapter / "generation_config.json").exists() and file_dtype(adapter) == torch.bfloat16
    summary = train(TrainJob(adapter, TrainData(targets[:4]), run, config, tmp_path / "w", tmp_path / "student", "k"))
    for folder in (tmp_path / "student", tmp_path / "student" / "initial"):
        text = (folder / "generation_config.json").read_text()
        assert text == (STUDENT / "generation_config.json").read_text(), "the base model's"
    assert summary.arrived == {"adapter": str(adapter), "base": str(STUDENT), "handling": "merged"}
    assert read_summary(tmp_path / "student") == summary
    came = logits(load_model(adapter, torch.float32, CPU))
    merged = logits(load_model(tmp_path / "student", torch.float32, CPU))
    assert far(merged, came) > 1e-4
    assert far(logits(load_model(tmp_path / "student" / "initial", torch.float32, CPU)), came) <= 1e-5
    assert far(logits(load_model(tmp_path / "student" / "adapter", torch.float32, CPU)), merged) <= 1e-5


def test_beside_an_arriving_adapter_only_the_new_one_is_trained(targets, tmp_path, adapter):
    """Initial view exact, the arriving adapter bit-identical after training, and the pieces give the student."""
    from peft import AutoPeftModelForCausalLM

    run = RunSection(model=str(adapter), device="cpu", dtype="float32")
    config = TrainSection(**test_training.FAST, **BESIDE, learning_rate=1e-2)
    came = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32).eval()
    student = load_student(adapter, run, config, CPU)
    assert far(logits(student.model), logits(came)) == 0.0, "a new adapter starts as nothing"
    stir(student.model)
    moved, trainable = logits(student.model), {n for n, p in student.model.named_parameters() if p.requires_grad}
    assert all(".default." in n for n in trainable) and student.trainable < 40_000
    with initial_weights(student.model):
        assert far(logits(student.model), logits(came)) == 0.0
    assert far(logits(student.model), moved) == 0.0 < far(moved, logits(came))
    assert {n for n, p in student.model.named_parameters() if p.requires_grad} == trainable

    summary = train(TrainJob(adapter, TrainData(targets[:4]), run, config, tmp_path / "w", tmp_path / "student", "k"))
    assert summary.arrived is not None and summary.arrived["handling"] == "beside"
    folder = tmp_path / "student"
    kept = load_file(folder / "arrived" / "adapter_model.safetensors")
    assert all(torch.equal(t, kept[n]) for n, t in load_file(adapter / "adapter_model.safetensors").items())
    merged = logits(load_model(folder, torch.float32, CPU))
    assert far(merged, logits(came)) > 1e-4
    both = AutoPeftModelForCausalLM.from_pretrained(folder / "arrived", adapter_name="initial", dtype=torch.float32)
    both.load_adapter(folder / "adapter", "corrected")
    both.base_model.set_adapter(["initial", "corrected"])
    assert far(logits(both.eval()), merged) <= 1e-5
    assert not any((folder / "adapter").glob("*/adapter_model.safetensors"))


def test_a_step_beside_an_arriving_adapter_moves_nothing_else(targets, tmp_path, adapter):
    run = RunSection(model=str(adapter), device="cpu", dtype="float32")
    config = TrainSection(**test_training.FAST, **BESIDE, targets="in_step")
    student = load_student(adapter, run, config, CPU)
    before = {n: p.detach().clone() for n, p in student.model.named_parameters()}
    trainer = test_training.make_trainer(
        student.model, test_training.build_rows(targets[:6], config), run, config, tmp_path / "w"
    )
    trainer.train()
    changed = {n for n, p in student.model.named_parameters() if not torch.equal(p, before[n])}
    # with B at zero the gradient of A is zero in the first step, and not in the next
    assert changed and all(".default." in n for n in changed) and any("lora_A" in n for n in changed)


def test_beside_a_killed_training_goes_on_to_the_same_weights(targets, tmp_path, adapter):
    run = RunSection(model=str(adapter), device="cpu", dtype="float32")
    config = TrainSection(
        **{**test_training.FAST, "epochs": 2, "batch_size": 2, "save_steps": 2}, **LORA, arriving_adapter="beside"
    )
    train(TrainJob(adapter, TrainData(targets[:4]), run, config, tmp_path / "a", tmp_path / "student_a", "k"))

    class Killed(Exception):
        pass

    def kill(step: int, total: int) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(
            TrainJob(adapter, TrainData(targets[:4]), run, config, tmp_path / "b", tmp_path / "student_b", "k"),
            progress=kill,
        )
    assert (tmp_path / "b" / "checkpoint-2").is_dir()
    train(TrainJob(adapter, TrainData(targets[:4]), run, config, tmp_path / "b", tmp_path / "student_b", "k"))
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        a, b = (load_file(tmp_path / s / name) for s in ("student_a", "student_b"))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_what_cannot_stand_beside_is_refused(tmp_path, adapter):
    with pytest.raises(ValidationError, match=r"set train\.lora"):
        TrainSection(arriving_adapter="beside")
    run, config = RunSection(model=str(adapter)), TrainSection(**LORA, arriving_adapter="beside")
    said = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(said | {"peft_type": "IA3"}))
    with pytest.raises(ConfigError, match="type IA3; only LoRA") as caught:
        load_student(adapter, run, config, CPU)
    assert "arriving_adapter=merge" in caught.value.hint
    (adapter / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": "./nowhere"}))
    with pytest.raises(ModelError, match="cannot train a new adapter beside"):
        load_student(adapter, run, config, CPU)


@pytest.mark.parametrize("save", ["merged", "adapter", "both"])
def test_what_is_saved_of_an_adapter(tmp_path, save):
    student = load_student(STUDENT, RUN, TrainSection(**LORA), CPU)
    stir(student.model)
    folder = written(tmp_path, student.model, **LORA, save=save)
    assert far(logits(load_model(folder, torch.float32, CPU)), logits(student.model)) <= 1e-5
    assert (folder / "adapter").is_dir() == (save == "both")
    assert (folder / "model.safetensors").is_file() == (save != "adapter")
    assert (folder / "adapter_config.json").is_file() == (save == "adapter")
    # whatever is saved, it is a model folder: the renderer and the content key read it
    assert Renderer.from_pretrained(folder).key == Renderer.from_pretrained(STUDENT).key
    assert model_key(folder) != model_key(STUDENT) and not (tmp_path / "student.writing").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"save": "adapter"}, "none is trained"),
        ({"save": "adapter", "arriving_adapter": "beside", **LORA}, "has two"),
    ],
)
def test_an_adapter_that_cannot_be_saved_is_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        TrainSection(**settings)

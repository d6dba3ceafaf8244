"""A model folder is loaded whole or refused: no tensor made up or left over, no number that is not finite, a row per token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import STUDENT
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import hintdistill as hd
from hintdistill.core.errors import ModelError
from hintdistill.engines.weights import load_adapter, load_model
from tests.support.command import hintdistill

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(STUDENT, tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, file: str = "model.safetensors", **tensors: torch.Tensor | None) -> None:
    """Put tensors into the file, or take them out."""
    held = load_file(folder / file)
    for name, tensor in tensors.items():
        held.pop(name, None)
        if tensor is not None:
            held[name] = tensor
    save_file(held, folder / file, metadata={"format": "pt"})


def first_matrix(folder: Path, file: str = "model.safetensors") -> tuple[str, torch.Tensor]:
    return next((n, t) for n, t in sorted(load_file(folder / file).items()) if "layers" in n and t.ndim == 2)


def refused(folder: Path, says: str) -> None:
    """`load_engine`, `doctor` and `run` all name it."""
    with pytest.raises(ModelError, match=says):
        hd.load_engine(str(folder), dtype="float32", device="cpu")
    checked = hintdistill("doctor", "--model", str(folder), "--json", expect=3)
    assert any(c["status"] == "fail" and says in c["detail"] for c in json.loads(checked.stdout))
    overrides = [f"run.model={folder}", f"run.dir={folder.parent / 'run'}", "critic.use=[rules]", "traces.limit=20"]
    done = hintdistill("run", "configs/quickstart.yaml", *overrides, "--until", "rescore", "-q", expect=3)
    assert says in done.stderr


def test_a_missing_tensor_is_named(folder: Path):
    name, _ = first_matrix(folder)
    change(folder, **{name: None})
    refused(folder, f"it lacks tensors: {name}")


def test_a_tensor_too_many_and_one_of_another_shape_are_named(folder: Path):
    name, tensor = first_matrix(folder)
    change(folder, **{"model.layers.0.gate.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"are unknown to its architecture: model\.layers\.0\.gate\.weight"):
        load_model(folder, torch.float32, CPU)
    change(folder, **{"model.layers.0.gate.weight": None, name: tensor[:-1].clone()})
    with pytest.raises(ModelError, match=name):
        load_model(folder, torch.float32, CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named(folder: Path, value: float):
    name, tensor = first_matrix(folder)
    tensor[0, 0] = value
    change(folder, **{name: tensor})
    if value != value:
        refused(folder, f"holds weights that are not finite: {name}")
    else:
        with pytest.raises(ModelError, match=f"not finite: {name}"):
            load_model(folder, torch.float32, CPU)


def test_a_tokenizer_larger_than_the_vocabulary_is_named(folder: Path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    beyond = json.loads((folder / "config.json").read_text())["vocab_size"]
    token = {**tokenizer["added_tokens"][-1], "id": beyond, "content": "<|extra|>"}
    last = max(tokenizer["model"]["vocab"].values(), default=0)
    tokenizer["model"]["vocab"] |= {f"filler{i}": i for i in range(last + 1, beyond)}
    tokenizer["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(folder, f"beyond the model's vocabulary of {beyond}: '<|extra|>'")


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_a_cut_weights_file_is_an_error_of_the_model(folder: Path, size: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError):
        hd.load_engine(str(folder), device="cpu")


def test_an_adapter_is_whole_too(folder: Path):
    adapter = folder.parent / "adapter"
    get_peft_model(
        load_model(folder, torch.float32, CPU), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    ).save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert load_adapter(adapter, torch.float32).peft_config["default"].r == 2
    name, tensor = first_matrix(adapter, "adapter_model.safetensors")
    change(adapter, "adapter_model.safetensors", **{name: None})
    with pytest.raises(ModelError, match="it lacks tensors: base_model"):
        load_model(adapter, torch.float32, CPU)
    change(adapter, "adapter_model.safetensors", **{name: tensor, "base_model.model.x.lora_A.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="are unknown to its architecture: base_model"):
        load_model(adapter, torch.float32, CPU)
    change(adapter, "adapter_model.safetensors", **{"base_model.model.x.lora_A.weight": None, name: tensor * torch.nan})
    with pytest.raises(ModelError, match="not finite: base_model"):
        load_model(adapter, torch.float32, CPU)

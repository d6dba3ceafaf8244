"""The student's folder: an ordinary model folder, plus the adapter if one was trained; it is either complete or absent.

```
config.json model*.safetensors generation_config.json    the student; an adapter is merged into what it was trained on
adapter_config.json adapter_model.safetensors            instead of these, with train.save=adapter
tokenizer*.json chat_template.jinja …                     copied as they are
README.md                                                the model card (`card`)
hintdistill.json                                         what the training did
adapter/                                                 with train.lora and train.save=both: the new adapter, for peft and vLLM
initial/                                                 with train.lora and an arriving adapter that was merged: what adapter/ is on
arrived/                                                 with train.arriving_adapter=beside: the adapter the student came as
```
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hintdistill.config import RunSection, TrainSection
from hintdistill.core.model_shape import safetensors_header
from hintdistill.core.models import TEMPLATES, TOKENIZER
from hintdistill.core.storage import sync
from hintdistill.engines.transformers import DTYPES
from hintdistill.engines.weights import load_model
from hintdistill.training.card import adapter_card, hub_name
from hintdistill.training.checksums import write_checksums
from hintdistill.training.students import NEW, Arrived

SUMMARY = "hintdistill.json"
COPIED = (*TOKENIZER, *TEMPLATES, "added_tokens.json")
CPU = torch.device("cpu")
SAFETENSORS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def write_student(
    out: Path,
    model: Any,
    *,
    folder: Path,
    run: RunSection,
    config: TrainSection,
    summary: Mapping[str, Any],
    arrived: Arrived | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the student to a temporary folder, and move it into place when it is complete.

    An adapter is merged on the CPU into the initial model, which is loaded again in the precision of the saved file;
    `model` itself is unchanged. This needs memory for one more copy.

    Args:
        model: the trained model, unwrapped; a peft model if an adapter was trained.
        folder: the model folder from which the training started.
        summary: the content of `hintdistill.json`.
        arrived: the adapter in `folder`, if it contains one.
        state_dict: the weights if `model` does not hold them whole, e.g. gathered from its shards, under the names of
            `model.state_dict()`.

    Raises:
        ModelError: the initial model cannot be loaded again to merge an adapter into it.
    """
    aside = out.with_name(out.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    dtype = save_dtype(folder, config)
    if hasattr(model, "peft_config"):
        _write_adapter(model, aside, out, folder, run, arrived, state_dict)
        merges = arrived is not None and arrived.handling == "merged"
        if merges or config.save != "adapter":
            whole = load_model(folder, dtype, CPU)
        if merges and config.save != "merged":
            save_model(whole, aside / "initial", folder, dtype)
        if config.save == "adapter":
            _adapter_alone(aside, folder)
        else:
            from peft import PeftModel

            merged = PeftModel.from_pretrained(whole, aside / "adapter").merge_and_unload()
            save_model(merged, aside, folder, dtype)
            if config.save == "merged":
                shutil.rmtree(aside / "adapter")
    else:
        save_model(model, aside, folder, dtype, state_dict)
    (aside / SUMMARY).write_text(json.dumps(dict(summary), indent=1), encoding="utf-8")
    write_checksums(aside)
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    sync(out.parent)


def save_model(
    model: Any, into: Path, folder: Path, dtype: torch.dtype, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write whole weights in `dtype`, with the tokenizer, template and generation settings of `folder`."""
    from transformers import GenerationConfig

    settings = _file_of(folder, "generation_config.json")
    weights = _cast(state_dict if state_dict is not None else model.state_dict(), dtype)
    use_cache, generation = model.config.use_cache, getattr(model, "generation_config", None)
    try:
        model.config.use_cache = True
        # transformers refuses to write some settings that released models have; theirs are copied as they are
        if generation is not None and settings is not None:
            model.generation_config = GenerationConfig()
        model.save_pretrained(into, state_dict=weights)
    finally:
        model.config.use_cache = use_cache
        if generation is not None:
            model.generation_config = generation
    _edit(into / "config.json", dtype=str(dtype).removeprefix("torch."))
    _copy_files(folder, into)


def _copy_files(folder: Path, into: Path) -> None:
    """Copy the tokenizer, template and generation settings of `folder` unchanged."""
    settings = _file_of(folder, "generation_config.json")
    for path in ([settings] if settings else []) + [folder / name for name in COPIED if (folder / name).is_file()]:
        shutil.copy2(path, into / path.name)


def _adapter_alone(aside: Path, folder: Path) -> None:
    """Replace the whole weights by the adapter."""
    for path in (aside / "adapter").iterdir():
        path.rename(aside / path.name)
    (aside / "adapter").rmdir()
    _copy_files(folder, aside)


def save_dtype(folder: Path, config: TrainSection) -> torch.dtype:
    """Return `train.save_dtype`; `auto` means the precision of the files in `folder`, or float32 if they do not
    tell."""
    return DTYPES[config.save_dtype] if config.save_dtype != "auto" else file_dtype(folder) or torch.float32


def file_dtype(folder: Path) -> torch.dtype | None:
    """Return the precision in which most numbers of a model folder's weights are stored; None if it is not a common
    float.

    For an adapter folder, its base model decides.
    """
    found = _file_of(folder, "config.json")
    if found is None:
        return None
    folder = found.parent
    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        for tensor in safetensors_header(path).values():
            start, end = tensor["data_offsets"]
            sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + end - start
    if sizes:
        return SAFETENSORS.get(max(sizes, key=lambda d: sizes[d]))
    config = json.loads(found.read_text(encoding="utf-8"))
    return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))


def _file_of(folder: Path, name: str) -> Path | None:
    """Return a file of a model folder; if an adapter folder lacks it, return that of its base model, from a folder or
    the hub's cache."""
    if (folder / name).is_file():
        return folder / name
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return None
    base = str(json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    if Path(base).is_dir():
        return _file_of(Path(base), name)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(base, name) if hub_name(base) else None
    return Path(cached) if isinstance(cached, str) else None


def _cast(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast floats to `dtype`; names that share a tensor still share it, so that tied weights are written once."""
    made: dict[tuple[Any, ...], Tensor] = {}
    out = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            out[name] = tensor
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if place not in made:
            made[place] = tensor.detach().to("cpu", dtype)
        out[name] = made[place]
    return out


def _write_adapter(
    model: Any,
    aside: Path,
    out: Path,
    folder: Path,
    run: RunSection,
    arrived: Arrived | None,
    state_dict: Mapping[str, Tensor] | None,
) -> None:
    """Write the new adapter with the name of its base, and the arriving adapter if it was kept."""
    given = {} if state_dict is None else {"state_dict": dict(state_dict)}
    model.save_pretrained(aside / "adapter", selected_adapters=[NEW], **given)
    base = hub_name(run.model, folder) or str(folder.resolve())
    if arrived is not None:
        below = arrived.base if not Path(arrived.base).is_dir() else str(Path(arrived.base).resolve())
        base = below if arrived.handling == "beside" else str(out.resolve() / "initial")
    _edit(aside / "adapter" / "adapter_config.json", base_model_name_or_path=base)
    if arrived is not None and arrived.handling == "beside":
        (aside / "arrived").mkdir()
        for path in sorted(folder.glob("adapter_*")):
            shutil.copy2(path, aside / "arrived" / path.name)
        _edit(aside / "arrived" / "adapter_config.json", base_model_name_or_path=base)
    (aside / "adapter" / "README.md").write_text(adapter_card(base, arrived), encoding="utf-8")


def _edit(path: Path, **values: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    if "text_config" in data and "dtype" in values and isinstance(data["text_config"], dict):
        data["text_config"]["dtype"] = values["dtype"]
    path.write_text(json.dumps(data | values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

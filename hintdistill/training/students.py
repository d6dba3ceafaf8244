"""The model to train: full weights, an adapter on a model, or a new adapter beside the one that the student came as.

A student that comes as an adapter is either merged into its base model and treated like any other model, or kept
(`train.arriving_adapter=beside`): frozen, always active, named `initial`, with the new adapter beside it. The initial
policy is the student without the weights that this run trains; `initial_weights` provides it in all cases.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from hintdistill.config import LoraSection, RunSection, TrainSection
from hintdistill.core.errors import ConfigError, ModelError
from hintdistill.core.library_warnings import silenced
from hintdistill.core.trust import UntrustedError
from hintdistill.engines.transformers import pick_dtype
from hintdistill.engines.weights import load_adapter, load_model

NEW, ARRIVED = "default", "initial"
"""Names of the adapters within peft: the one that is trained, and the one that the student came as."""


@dataclass(frozen=True)
class Arrived:
    """Describe the adapter that a student came as."""

    adapter: str
    """Its folder or hub name, as in `run.model`."""
    base: str
    """Its base model, as named in its own configuration."""
    handling: Literal["merged", "beside"]

    def record(self) -> dict[str, str]:
        """Return the same as plain data, for the summary of the training."""
        return asdict(self)


@dataclass(frozen=True)
class Student:
    """Hold the model that is trained."""

    model: Any
    """A transformers model, or a peft model with an adapter on it."""
    trainable: int
    """The parameters that training changes."""
    arrived: Arrived | None
    """None for a student that came as a whole model."""


def load_student(folder: Path, run: RunSection, config: TrainSection, device: torch.device) -> Student:
    """Load the model in `folder` in its training precision: float32 for full weights, `run.dtype` under an adapter.

    Raises:
        ModelError: the folder cannot be loaded, or its adapter cannot be combined with another.
    """
    arrived = arriving(folder, run, config)
    # full weights are trained in float32, so that small updates are not rounded away
    if arrived is not None and arrived.handling == "beside":
        assert config.lora is not None
        model = _beside(folder, config.lora, run.dtype, device)
    else:
        dtype = pick_dtype(run.dtype, device, folder) if config.lora else torch.float32
        model = load_model(folder, dtype, device)
        if config.lora is not None:
            from peft import get_peft_model

            with silenced():
                model = get_peft_model(model, lora_config(config.lora))
    model.config.use_cache = False
    return Student(model, sum(p.numel() for p in model.parameters() if p.requires_grad), arrived)


def arriving(folder: Path, run: RunSection, config: TrainSection) -> Arrived | None:
    """Return a description of the adapter in `folder`; None if it contains a whole model.

    Raises:
        ModelError: its configuration is not JSON.
        ConfigError: `train.arriving_adapter=beside`, but the adapter is not a LoRA adapter.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if config.arriving_adapter == "beside" and said.get("peft_type") != "LORA":
        raise ConfigError(
            f"{folder} is an adapter of type {said.get('peft_type')}; only LoRA adapters can be "
            "combined with another one",
            hint="set train.arriving_adapter=merge",
        )
    handling: Literal["merged", "beside"] = "beside" if config.arriving_adapter == "beside" else "merged"
    return Arrived(run.model, str(said.get("base_model_name_or_path")), handling)


def lora_config(section: LoraSection) -> Any:
    """Return peft's configuration of the new adapter."""
    from peft import LoraConfig

    modules = section.target_modules
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        task_type="CAUSAL_LM",
        target_modules=modules if isinstance(modules, str) else list(modules),
    )


@contextlib.contextmanager
def initial_weights(model: Any) -> Iterator[None]:
    """Switch to the initial policy of a student with an adapter: the new adapter off, and an arriving one on.

    Raises:
        ValueError: `model` has no adapter; in full training the initial weights must be kept as a copy.
    """
    if not hasattr(model, "disable_adapter"):
        raise ValueError(f"{type(model).__name__} has no adapter to remove")
    with model.disable_adapter():
        yield


def _beside(folder: Path, section: LoraSection, precision: str, device: torch.device) -> Any:
    """Return the arriving adapter on its base model, frozen, and a new one beside it."""
    try:
        model = load_adapter(folder, pick_dtype(precision, device, folder), name=ARRIVED)
        model.__class__ = _two_adapters()
        model.add_adapter(NEW, lora_config(section))
        model.set_adapter(NEW)
    except UntrustedError:
        raise
    except Exception as error:
        raise ModelError(
            f"cannot train a new adapter beside {folder}: {error}", hint="set train.arriving_adapter=merge"
        ) from error
    return model.eval().to(device)


@cache
def _two_adapters() -> Any:
    # made when it is needed: importing peft takes a second
    from peft import PeftModelForCausalLM

    class TwoAdapters(PeftModelForCausalLM):
        """Wrap a model with two adapters, of which only the new one is ever trained, switched off or saved.

        peft's own calls assume a single adapter: `set_adapter` would remove the arriving one, and `disable_adapter`
        would remove both and give gradients to both afterwards. transformers' Trainer makes these calls, for example
        when it resumes.
        """

        def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
            if adapter_name != NEW:
                super().set_adapter(adapter_name, inference_mode)
                return
            self.active_adapter = NEW
            self.base_model.set_adapter([NEW, ARRIVED], inference_mode=inference_mode)
            self.set_requires_grad(ARRIVED, False)

        @contextlib.contextmanager
        def disable_adapter(self) -> Iterator[None]:
            before = [(p, p.requires_grad) for p in self.parameters()]
            self.base_model.set_adapter([ARRIVED], inference_mode=True)
            try:
                yield
            finally:
                self.base_model.set_adapter([NEW, ARRIVED], inference_mode=True)
                for parameter, requires_grad in before:
                    parameter.requires_grad_(requires_grad)

        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            if kwargs.get("selected_adapters") is None:
                kwargs["selected_adapters"] = [NEW]
            super().save_pretrained(save_directory, *args, **kwargs)

    return TwoAdapters

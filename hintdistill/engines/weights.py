"""Load a model folder's weights only if they are complete: no tensor missing or left over, every number finite.

transformers fills a tensor that a checkpoint lacks with random numbers and warns; peft leaves an adapter's tensor at
zero. Here both cases are errors that name the tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hintdistill.core.errors import HintdistillError, ModelError
from hintdistill.core.model_shape import base_folder
from hintdistill.core.models import ADAPTER_CONFIG, load_tokenizer, unloadable
from hintdistill.core.trust import model_code_allowed

DAMAGED = "the folder is incomplete or belongs to another release of its architecture; download it again"


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the weights of a model folder, in evaluation mode; an adapter folder is merged into its base model.

    Raises:
        ModelError: the folder cannot be loaded, lacks a tensor, has an extra tensor, or contains a number that is not
            finite.
        UntrustedError: an adapter's base model would have to be downloaded, and the settings come from an untrusted run
            folder.
    """
    with _as_model_error(f"the model of {folder}"):
        adapter = (folder / ADAPTER_CONFIG).is_file()
        model = load_adapter(folder, dtype).merge_and_unload() if adapter else _whole(folder, dtype)
        model = model.to(device).eval()
    require_finite(model.named_parameters(), folder)
    return model


def load_adapter(folder: Path, dtype: torch.dtype, *, name: str = "default") -> Any:
    """Return the adapter of a folder on its base model, as a frozen peft model that calls it `name`.

    Raises:
        ModelError: see `load_model`.
    """
    from peft import PeftModelForCausalLM

    with _as_model_error(f"the adapter of {folder}"):
        base = _whole(base_folder(folder), dtype)
        if (folder / "tokenizer_config.json").is_file():
            size = len(load_tokenizer(folder))
            if size > base.get_input_embeddings().weight.shape[0]:
                base.resize_token_embeddings(size)
        model = PeftModelForCausalLM.from_pretrained(base, folder, adapter_name=name, is_trainable=False)
        _require_adapter(model, folder, name)
    require_finite(model.named_parameters(), folder)
    return model


def require_finite(parameters: Iterable[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Raise ModelError, naming the first tensors, if a tensor contains a number that is not finite."""
    # one pass without a copy: the smallest and the largest number are not finite where any is not
    bad = [
        name
        for name, tensor in parameters
        if tensor.is_floating_point()
        and tensor.numel()
        and tensor.device.type != "meta"
        and tensor.element_size() > 1
        and not all(torch.isfinite(x) for x in torch.aminmax(tensor.detach()))
    ]
    if bad:
        raise ModelError(f"{folder} holds weights that are not finite: {_few(bad)}", hint=DAMAGED)


def _whole(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _only_errors(logging):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=model_code_allowed(),
            output_loading_info=True,
            # they are refused below, by name
            ignore_mismatched_sizes=True,
        )
    _require_none(folder, found)
    return model


@contextlib.contextmanager
def _only_errors(logging: Any) -> Iterator[None]:
    """Turn warnings of transformers about loading into errors with this package's wording."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _require_none(folder: Path, found: Mapping[str, Any]) -> None:
    lacking = sorted(found.get("missing_keys") or ())
    extra = sorted(found.get("unexpected_keys") or ())
    other = sorted(str(k[0] if isinstance(k, tuple) else k) for k in found.get("mismatched_keys") or ())
    said = [
        f"{what}: {_few(names)}"
        for what, names in (
            ("it lacks tensors", lacking),
            ("it has tensors that are unknown to its architecture", extra),
            ("tensors have a different shape", other),
        )
        if names
    ]
    if said:
        raise ModelError(f"the weights of {folder} do not match its config: {'; '.join(said)}", hint=DAMAGED)


def _require_adapter(model: Any, folder: Path, name: str) -> None:
    """Check that the file contains every tensor of the adapter and no other."""
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    wanted = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    stored = set(load_peft_weights(str(folder), device="cpu"))
    # the embeddings of a vocabulary that grew are stored beside the adapter
    extra = {k for k in stored - wanted if "lora_" in k or k.split(".")[-1] not in ("weight", "bias")}
    _require_none(folder, {"missing_keys": wanted - stored, "unexpected_keys": extra})


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextlib.contextmanager
def _as_model_error(what: str) -> Iterator[None]:
    try:
        yield
    except HintdistillError:
        raise
    except Exception as error:
        raise unloadable(what, error) from error

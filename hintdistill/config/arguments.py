"""`train.arguments`: settings that are passed on to transformers' Trainer, and the reasons why others are refused. This
module does not import torch.

Allowed arguments change neither the rows, their order and repetition, nor what is written and resumed from. Under any
of them, a training run that is killed and resumed ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

_SHARE = Annotated[float, Field(ge=0.0, lt=1.0)]
_SOME = Annotated[int, Field(ge=1)]
ALLOWED: dict[str, Any] = {
    "optim": Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"],
    "optim_args": str,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": Annotated[float, Field(gt=0.0)],
    "lr_scheduler_kwargs": dict[str, Any],
    "tf32": bool,
    "torch_empty_cache_steps": _SOME,
    "ddp_backend": Literal["nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl"],
    "ddp_timeout": _SOME,
    "ddp_bucket_cap_mb": _SOME,
    "ddp_broadcast_buffers": bool,
}
"""Argument → the type of its value."""
_RESUME = "a resumed training run would not end with the same weights"
REFUSED: dict[str, str] = {
    "ignore_data_skip": f"it reads rows again after a resume: {_RESUME}",
    "save_only_model": f"it omits the optimiser's state from checkpoints: {_RESUME}",
    "save_strategy": f"checkpoints follow train.save_steps: {_RESUME}",
    "restore_callback_states_from_checkpoint": f"callbacks must be restored exactly: {_RESUME}",
    "resume_from_checkpoint": "--resume continues from the last whole checkpoint",
    "load_best_model_at_end": "the student is that of the last step; no evaluation selects another",
    "auto_find_batch_size": f"it halves the batch when memory runs out, which changes the steps: {_RESUME}",
    "max_steps": "the number of steps follows from train.epochs and the rows; the schedule and the report rely on it",
    "dataloader_num_workers": "the training process reads the rows from the run folder; they are small",
    "logging_first_step": "logged values are measured over train.logging_steps",
    "dataloader_drop_last": "it drops rows, but every row must be trained on",
    "train_sampling_strategy": "run.seed decides the order of the rows, and a batch is sorted by length",
    "group_by_length": "run.seed decides the order of the rows, and a batch is sorted by length",
    "remove_unused_columns": "rows are objects of this toolkit without columns",
    "label_smoothing_factor": "the recipe defines the loss",
    "average_tokens_across_devices": "the loss itself counts its slots over all processes",
    "neftune_noise_alpha": "noise on the embeddings would also affect the teacher's branches",
    "logging_nan_inf_filter": "it hides losses that are not finite, which must stop a training run",
    "torch_compile": "the shared prefix splits a row in Python; this combination is untested",
    "use_liger_kernel": "it replaces the model's forward pass, whose hidden states the loss reads; docs/training.md "
    "says what was tried",
    "fp16": "float16 has too little range for this loss; run.dtype is float32 or bfloat16",
    "deepspeed": "pass it to `accelerate launch`; see docs/processes.md",
    "fsdp": "pass it to `accelerate launch`; see docs/processes.md",
    "fsdp_config": "pass it to `accelerate launch`; see docs/processes.md",
    "accelerator_config": "it splits batches in ways that do not match the rows; see docs/processes.md",
}
"""Argument → the reason why it is refused."""
OURS: dict[str, str] = {
    "learning_rate": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size and train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "lr_scheduler_type": "train.schedule",
    "warmup_steps": "train.warmup_ratio",
    "warmup_ratio": "train.warmup_ratio",
    "max_grad_norm": "train.max_grad_norm",
    "weight_decay": "train.weight_decay",
    "seed": "run.seed",
    "data_seed": "run.seed",
    "save_steps": "train.save_steps",
    "save_total_limit": "train.keep_checkpoints",
    "logging_steps": "train.logging_steps",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "train.gradient_checkpointing",
    "bf16": "run.dtype",
    "use_cpu": "run.device",
    "output_dir": "run.dir",
    "report_to": "train.trackers",
    "push_to_hub": "train.push",
    "hub_model_id": "train.push",
}
"""Argument → the configuration key that sets it."""


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with converted values. Raises ValueError that names the argument and the reason for the
    refusal."""
    out: dict[str, Any] = {}
    for name, value in given.items():
        if name in OURS:
            raise ValueError(f"{name} is set by {OURS[name]}")
        if name in REFUSED:
            raise ValueError(f"{name} is refused: {REFUSED[name]}")
        if name not in ALLOWED:
            near = get_close_matches(name, ALLOWED, 1)
            raise ValueError(
                f"{name} is not an argument that can be passed on to the Trainer"
                + (f"; did you mean {near[0]}?" if near else f"; the allowed ones are {', '.join(ALLOWED)}")
            )
        try:
            out[name] = TypeAdapter(ALLOWED[name]).validate_python(value, strict=not isinstance(value, int))
        except ValidationError as error:
            raise ValueError(f"{name}: {error.errors()[0]['msg']}, not {value!r}") from None
    return out

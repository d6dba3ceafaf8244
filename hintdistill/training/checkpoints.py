"""A checkpoint that was written under FSDP2 and is taken up without it.

What FSDP2 writes is named by parameters and not by their number, so the Trainer alone refuses it. Whole state
(`fsdp_state_dict_type: FULL_STATE_DICT`) is read here by one process or by several; sharded state only by FSDP2 itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError

MODEL, OPTIMIZER, SCHEDULER = "pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt"


def written_under_fsdp(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is FSDP2's."""
    return any(Path(checkpoint).glob("pytorch_model_fsdp*"))


def check_checkpoint(checkpoint: str | Path, fsdp: bool) -> None:
    """Raises ConfigError for a checkpoint that this run cannot go on from."""
    theirs = written_under_fsdp(checkpoint)
    if fsdp and not theirs:
        raise ConfigError(
            f"{checkpoint} was written without FSDP2", hint="go on without it, or delete the checkpoint to start anew"
        )
    if theirs and not fsdp and not (Path(checkpoint) / MODEL).is_file():
        raise ConfigError(
            f"{checkpoint} is sharded",
            hint="go on under FSDP2 as it was started, or set fsdp_state_dict_type: FULL_STATE_DICT and delete it",
        )


def load_model(checkpoint: str | Path, model: Any) -> None:
    """Put whole weights, or those of an adapter, into a model that is not sharded."""
    import torch

    state = torch.load(Path(checkpoint) / MODEL, map_location="cpu", weights_only=True)
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, state)
    else:
        model.load_state_dict(state)


def load_optimizer(checkpoint: str | Path, model: Any, optimizer: Any, scheduler: Any) -> None:
    """Put whole optimiser state, and the schedule's, into those of a model that is not sharded."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
    plain = getattr(optimizer, "optimizer", optimizer)
    set_optimizer_state_dict(model, plain, state, options=StateDictOptions(full_state_dict=True))
    scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

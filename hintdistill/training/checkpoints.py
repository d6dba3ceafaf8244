"""Check that a checkpoint's bytes are unchanged, and read a checkpoint of FSDP2 without FSDP2.

FSDP2 names its entries by parameter and not by number, so the Trainer alone refuses such a checkpoint. This module
reads whole state (`fsdp_state_dict_type: FULL_STATE_DICT`) in one process or several; only FSDP2 itself reads sharded
state.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError, HintdistillError, InputError
from hintdistill.core.model_shape import safetensors_header
from hintdistill.core.storage import read_json
from hintdistill.training import processes
from hintdistill.training.checksums import write_checksums, wrong_files

MODEL, OPTIMIZER, SCHEDULER = "pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt"


def written_under_fsdp(checkpoint: str | Path) -> bool:
    """Return whether FSDP2 wrote a checkpoint."""
    return any(Path(checkpoint).glob("pytorch_model_fsdp*"))


def check_checkpoint(checkpoint: str | Path, fsdp: bool) -> None:
    """Raise ConfigError for a checkpoint that this run cannot continue from."""
    theirs = written_under_fsdp(checkpoint)
    if fsdp and not theirs:
        raise ConfigError(
            f"{checkpoint} was written without FSDP2",
            hint="continue without FSDP2, or delete the checkpoint to start again",
        )
    if theirs and not fsdp and not (Path(checkpoint) / MODEL).is_file():
        raise ConfigError(
            f"{checkpoint} is sharded",
            hint="continue under FSDP2 as before, or set fsdp_state_dict_type: FULL_STATE_DICT and delete it",
        )


def seal(checkpoint: Path) -> None:
    """Write the checksums of a complete checkpoint, once every process has written its part; all processes call
    this."""
    processes.from_each(None)
    if processes.is_main():
        write_checksums(checkpoint)


def broken(checkpoint: Path, *, every_byte: bool = False) -> str | None:
    """Return the problem found in a checkpoint's files: one is truncated, or not of its type; None if there is no
    problem.

    Args:
        every_byte: also compare the checksums taken when it was written; a checkpoint without them (written by an older
            release, or interrupted by a kill) is compared with the checksums in PyTorch's own files.
    """
    if every_byte and (wrong := wrong_files(checkpoint)):
        return "; ".join(f"{name} {what}" for name, what in wrong.items())
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        try:
            if path.suffix == ".json":
                read_json(path, object)
            elif path.suffix == ".safetensors":
                ends = [t["data_offsets"][1] for t in safetensors_header(path).values()]
                with path.open("rb") as file:
                    size = 8 + int.from_bytes(file.read(8), "little") + max(ends, default=0)
                if path.stat().st_size != size:
                    return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
            elif path.suffix in (".pt", ".pth", ".bin") and path.name != "training_args.bin":
                with zipfile.ZipFile(path) as archive:
                    if every_byte and archive.testzip() is not None:
                        return f"{path.name} has changed since it was written"
        except (InputError, zipfile.BadZipFile, OSError, EOFError) as error:
            return f"{path.name}: {error}"
    return None


@contextlib.contextmanager
def reading(checkpoint: str | Path | None) -> Iterator[None]:
    """Raise InputError, naming the checkpoint, for any error that occurs while it is read."""
    try:
        yield
    except HintdistillError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"the checkpoint {checkpoint} cannot be read: {type(error).__name__}: {said}",
            hint="delete that folder; --resume then continues from the checkpoint before it, or from the start",
        ) from error


def load_model(checkpoint: str | Path, model: Any) -> None:
    """Load whole weights, or those of an adapter, into a model that is not sharded."""
    import torch

    state = torch.load(Path(checkpoint) / MODEL, map_location="cpu", weights_only=True)
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, state)
    else:
        model.load_state_dict(state)


def load_optimizer(checkpoint: str | Path, model: Any, optimizer: Any, scheduler: Any) -> None:
    """Load whole optimiser state, and the schedule's, for a model that is not sharded."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
    plain = getattr(optimizer, "optimizer", optimizer)
    set_optimizer_state_dict(model, plain, state, options=StateDictOptions(full_state_dict=True))
    scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

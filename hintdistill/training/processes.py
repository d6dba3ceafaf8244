"""Several processes (`torchrun`, `accelerate launch`): choose the main process, let the others follow it, and meet the
needs of sharded weights.

The main process does everything except training; meanwhile the others wait for joint work. They wait in a separate gloo
group with a timeout of days, so that a long critique is not an error. If the main process fails, it ends with its exit
code and the launcher ends the others; if another one fails, the launcher ends the main process.

Under FSDP2 each forward pass is a joint operation: all processes gather a layer's weights at the same time. A process
with fewer passes than another (`in_step`) therefore makes empty passes until all are done. The environment variables of
launchers are used: RANK, WORLD_SIZE, LOCAL_RANK. Torch is imported only when needed, so that the command line can find
out its role cheaply.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hintdistill.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
WAIT = datetime.timedelta(days=7)
"""How long the other processes wait for the main process."""


@dataclass
class _Joined:
    """Hold what this process knows about the others."""

    group: Any = None
    """The gloo group of all processes, or None before `join`."""
    inside: bool = False
    """Whether joint work is in progress, so that no process waits for the next order."""


_joined = _Joined()


def world() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this is the main process; true if it is the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def join(device: torch.device) -> None:
    """Connect to the other processes, once; do nothing if there are none."""
    if world() == 1 or _joined.group is not None:
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    _joined.group = dist.new_group(backend="gloo", timeout=WAIT)


def leave() -> None:
    """Disconnect from the other processes."""
    if _joined.group is None:
        return
    import torch.distributed as dist

    _joined.group, _joined.inside = None, False
    dist.destroy_process_group()


@contextlib.contextmanager
def leading(device: torch.device) -> Iterator[None]:
    """Run the main process's work, and release the others, which `follow`, at its end.

    After an error they are also released if they are waiting; if they are in the middle of joint work, the launcher
    ends them.
    """
    if world() == 1:
        yield
        return
    join(device)
    try:
        yield
    except BaseException:
        if not _joined.inside:
            _broadcast(None)
        raise
    _broadcast(None)
    leave()


def follow(device: torch.device) -> None:
    """Wait for the main process and take part in joint work, until released."""
    join(device)
    while (order := _broadcast(None)) is not None:
        function, arguments = order
        function(*arguments)
    leave()


def together(function: Callable[..., T], *arguments: Any, **here: Any) -> T:
    """Call `function(*arguments)` in all processes; only the main one gets the values in `here` (e.g. callbacks)."""
    if world() > 1:
        _broadcast((function, arguments))
    _joined.inside = True
    value = function(*arguments, **here)
    _joined.inside = False
    return value


def from_main(make: Callable[[], T]) -> T:
    """Call `make` only in the main process, and return its result in all processes."""
    if world() == 1:
        return make()
    out: T = _broadcast(make() if is_main() else None)
    return out


def from_each(value: T) -> list[T]:
    """Return the values of all processes, in order of their ranks, in every process; all wait for all."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    each: list[Any] = [None] * world()
    dist.all_gather_object(each, value, group=_joined.group)
    return each


def _broadcast(value: Any) -> Any:
    """Return the main process's value."""
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, group=_joined.group)
    return box[0]


def rows_per_pass(batch_size: int, micro: int | None) -> int:
    """Return the number of rows that one process reads in one pass; `train.batch_size` counts the rows of all processes
    in one optimiser step.

    Raises:
        ConfigError: the rows of a step cannot be divided equally among the processes.
    """
    each, rest = divmod(batch_size, world())
    if rest or each % (micro or each):
        what = f" × micro_batch_size {micro}" if micro else ""
        raise ConfigError(
            f"{world()} processes{what} do not divide train.batch_size {batch_size}",
            hint="batch_size is the rows of one optimiser step over all processes",
        )
    return micro or each


def may_leave_unused(model: Any) -> bool:
    """Return whether a pass may leave a parameter unused: experts, or a part for inputs other than text.

    DistributedDataParallel must know this; if it expects no unused parameter but there is one, it raises an error.
    """
    text = model.config.get_text_config()
    return text is not model.config or any("expert" in name for name in text.to_dict())


# -- sharded weights ---------------------------------------------------------------------------------------------------


def check_launch(grad_window: int | None = None) -> None:
    """Raise ConfigError for a kind of sharding that this trainer does not support, at all or together with
    `train.grad_window`."""
    if not _wants_fsdp():
        return
    if grad_window is not None:
        raise ConfigError(
            "train.grad_window compares whole gradients, but under FSDP2 no process has them",
            hint="leave train.grad_window out, or use DDP",
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("FSDP 1 is not supported", hint="set fsdp_version: 2, see configs/accelerate/fsdp2.yaml")
    if os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false").lower() == "true":
        raise ConfigError(
            "every process needs the weights before they are sharded",
            hint="set fsdp_cpu_ram_efficient_loading: false, see configs/accelerate/fsdp2.yaml",
        )


def shard_on_cpus_too(accelerator: Any) -> bool:
    """Return whether FSDP is on. On CPUs accelerate silently ignores it, although FSDP2 itself works there, so it is
    switched on here."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState

    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU and _wants_fsdp():
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()
        # every further look at the state takes it from there
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return getattr(state, "fsdp_plugin", None) is not None


def _wants_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def is_sharded(model: Any) -> bool:
    """Return whether a model's weights are split over the processes (FSDP2)."""
    if world() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def keep_head_whole(model: Any) -> None:
    """Keep the output head's weight unsharded between a forward pass and its backward pass, because the loss reads it
    there.

    accelerate 1.15 does this by itself; in earlier versions the head is part of the root's own group.
    """
    if is_sharded(model):
        model.set_reshard_after_forward(False, recurse=False)


@contextlib.contextmanager
def lockstep(model: Any) -> Iterator[None]:
    """Allow each process as many forward passes without gradient as it needs.

    Before each pass of a sharded model a process notifies the others; a process that is done makes empty passes as long
    as another one still has work.
    """
    if not is_sharded(model):
        yield
        return
    import torch

    def tell(*_: Any) -> None:
        _anyone(True)

    handle = model.register_forward_pre_hook(tell, prepend=True)
    try:
        yield
    finally:
        handle.remove()
    device = next(model.parameters()).device
    while _anyone(False):
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)


def _anyone(me: bool) -> bool:
    """Return whether the answer is yes in any process."""
    import torch
    import torch.distributed as dist

    vote = torch.tensor(int(me))
    dist.all_reduce(vote, dist.ReduceOp.MAX, group=_joined.group)
    return bool(vote.item())


def local(parameter: Any) -> torch.Tensor:
    """Return the part of a parameter's values that is in this process, without gradient."""
    values = parameter.detach()
    here: torch.Tensor = values.to_local() if hasattr(values, "to_local") else values
    return here


def reshard(model: Any) -> None:
    """Release every gathered weight, so that changed shards are gathered again."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather_head(model: Any) -> None:
    """Gather the output head's weight again, in the state after a forward pass."""
    from torch.distributed.fsdp import FSDPModule

    for module in (model, model.get_output_embeddings()):
        if isinstance(module, FSDPModule):
            module.unshard()

"""Several processes (`torchrun`, `accelerate launch`): who leads, how the others follow, and what sharded weights ask for.

The main process does everything but the training; meanwhile the others wait to be told what all do together. Waiting goes
through a gloo group of its own, whose timeout is days, so that a long critique is no error. Where the main process fails,
it ends with its exit code and the launcher ends the others; where another one fails, the launcher ends the main one.

Under FSDP2 each forward pass is a joint act: all processes gather a layer's weights at the same time. So a process that has
fewer passes to make than another (`in_step`) makes empty ones until all are done. Reads the environment that launchers set:
RANK, WORLD_SIZE, LOCAL_RANK. Torch is imported if it is needed, so that the command line may ask who it is.
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
"""How long the others wait for the main process."""


@dataclass
class _Joined:
    """What this process knows of the others."""

    group: Any = None
    """The gloo group of all processes, or None before `join`."""
    inside: bool = False
    """Whether something is being done together right now, so that nobody listens for the next order."""


_joined = _Joined()


def world() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this process leads; true if there is only one."""
    return int(os.environ.get("RANK", "0")) == 0


def join(device: torch.device) -> None:
    """Meet the other processes; once, and nothing if there are none."""
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
    """Part from the other processes."""
    if _joined.group is None:
        return
    import torch.distributed as dist

    _joined.group, _joined.inside = None, False
    dist.destroy_process_group()


@contextlib.contextmanager
def leading(device: torch.device) -> Iterator[None]:
    """The main process at work; at its end the others, who `follow`, are let go.

    After an error they are let go as well if they are waiting; if they are in the midst of something done together, they
    are left to the launcher.
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
    """Wait for the main process, and do with it what all do together, until it lets go."""
    join(device)
    while (order := _broadcast(None)) is not None:
        function, arguments = order
        function(*arguments)
    leave()


def together(function: Callable[..., T], *arguments: Any, **here: Any) -> T:
    """`function(*arguments)` in all processes; what is in `here` (callbacks, say) only the main one has."""
    if world() > 1:
        _broadcast((function, arguments))
    _joined.inside = True
    value = function(*arguments, **here)
    _joined.inside = False
    return value


def from_main(make: Callable[[], T]) -> T:
    """Return what `make` returns on the main process, in all of them; no other process calls it."""
    if world() == 1:
        return make()
    out: T = _broadcast(make() if is_main() else None)
    return out


def from_each(value: T) -> list[T]:
    """Return every process's value, in order of their ranks, in all of them; all wait for all."""
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
    """Rows that one process reads in one pass, `train.batch_size` being the rows of all processes in one optimiser step.

    Raises:
        ConfigError: the processes cannot share the rows of a step equally.
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
    """Return whether a pass may leave a parameter unread: experts, or a part for other inputs than text.

    DistributedDataParallel must know; where it is told no and a parameter is left unread all the same, it raises an error.
    """
    text = model.config.get_text_config()
    return text is not model.config or any("expert" in name for name in text.to_dict())


# -- sharded weights ---------------------------------------------------------------------------------------------------


def check_launch(grad_window: int | None = None) -> None:
    """Raise ConfigError for a way of sharding that this trainer cannot do, or not with `train.grad_window`."""
    if not _wants_fsdp():
        return
    if grad_window is not None:
        raise ConfigError(
            "train.grad_window compares whole gradients, which no process has under FSDP2",
            hint="leave train.grad_window out, or train with DDP",
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("FSDP 1 is not supported", hint="fsdp_version: 2, see configs/accelerate/fsdp2.yaml")
    if os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false").lower() == "true":
        raise ConfigError(
            "every process needs the weights before they are sharded",
            hint="fsdp_cpu_ram_efficient_loading: false, see configs/accelerate/fsdp2.yaml",
        )


def shard_on_cpus_too(accelerator: Any) -> bool:
    """Return whether FSDP is on. Between CPUs accelerate passes it over in silence, where FSDP2 itself works: switched
    on here."""
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
    """Leave the output head's weight whole between a forward pass and its backward pass: the loss reads it there.

    accelerate 1.15 does so by itself; in its earlier versions the head is part of the root's own group.
    """
    if is_sharded(model):
        model.set_reshard_after_forward(False, recurse=False)


@contextlib.contextmanager
def lockstep(model: Any) -> Iterator[None]:
    """Forward passes without gradient of which each process makes as many as it needs to.

    Before each pass of a sharded model a process tells the others; who is done makes empty passes for as long as another
    one still has any.
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
    """Return whether any process says yes."""
    import torch
    import torch.distributed as dist

    vote = torch.tensor(int(me))
    dist.all_reduce(vote, dist.ReduceOp.MAX, group=_joined.group)
    return bool(vote.item())


def local(parameter: Any) -> torch.Tensor:
    """Return the values of a parameter that lie in this process, without gradient."""
    values = parameter.detach()
    here: torch.Tensor = values.to_local() if hasattr(values, "to_local") else values
    return here


def reshard(model: Any) -> None:
    """Let go of every gathered weight, so that changed shards are gathered again."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather_head(model: Any) -> None:
    """Gather the output head's weight again, as a forward pass leaves it."""
    from torch.distributed.fsdp import FSDPModule

    for module in (model, model.get_output_embeddings()):
        if isinstance(module, FSDPModule):
            module.unshard()

"""`hintdistill plan`: what lies ahead of a run, counted, measured, and put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError
from hintdistill.core.models import resolve_model
from hintdistill.engines.prefix_tree import call_tokens
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.stages import check_inputs
from hintdistill.planning.fits import load_of, require_fits, setup_of
from hintdistill.planning.histogram import RowLength
from hintdistill.planning.machine import Room, room
from hintdistill.planning.memory import train_peak
from hintdistill.planning.plan import RunPlan, Work, make_plan
from hintdistill.planning.shape import ModelShape
from hintdistill.planning.speed import Speed, measure
from hintdistill.planning.token_counts import reading
from hintdistill.planning.workload import Ahead, gather, rollout_tokens

__all__ = ["forecast", "micro_batches", "require_fits"]


def forecast(
    config: RunConfig, *, measured: bool = True, gigabytes: float | None = None, console: Console | None = None
) -> RunPlan:
    """Plan a run; nothing is written and nothing is asked of a critic that costs anything.

    Args:
        measured: load the model and time it for some ten seconds; without, tokens and memory only.
        gigabytes: memory to plan for (10^9 bytes) instead of what is free.

    Raises:
        ConfigError: a run in rounds, whose traces are not there yet.
        HintdistillError: what `check_inputs` and the stages up to inject raise.
    """
    console = console or Console(quiet=True)
    if config.run.rounds is not None:
        raise ConfigError(
            "a run in rounds samples its own traces, so there are no lengths to plan with",
            hint="plan one round: run.rounds=null and traces.path naming traces like those it will sample",
        )
    check_inputs(config, "report")
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    folder = resolve_model(config.run.model)
    shape, where = ModelShape.of(folder), room(config.run.device, gigabytes)
    ahead = gather(config, shape)
    speed: Speed | None = None
    if measured:
        speed = measure(config, folder, shape, ahead.calls, ahead.rows, _fits(config, shape, where), console.note)
    work = _count(config, shape, ahead, where.on_cpu)
    return make_plan(config, shape, work, where, speed, micro_batches([r.tokens for r in ahead.rows], config))


def _fits(config: RunConfig, shape: ModelShape, where: Room) -> Callable[[Sequence[RowLength]], bool]:
    setup = setup_of(shape, config.run, config.train, where.on_cpu)
    return lambda rows: where.holds(train_peak(shape, setup, load_of(rows)), 0.9)


def micro_batches(lengths: Sequence[int], config: RunConfig) -> list[list[int]]:
    """Indices of the rows of each micro-batch of a whole training, in the order in which the trainer reads them."""
    from hintdistill.training.rows import LengthSampler

    train = config.train
    each = train.micro_batch_size or train.batch_size
    sampler = LengthSampler([n + 1 for n in lengths], train.batch_size, config.run.seed)
    out: list[list[int]] = []
    for epoch in range(math.ceil(train.epochs) if lengths else 0):
        sampler.set_epoch(epoch)
        order = list(sampler)
        out += [order[at : at + each] for at in range(0, len(order), each)]
    return out


def _count(config: RunConfig, shape: ModelShape, ahead: Ahead, on_cpu: bool) -> Work:
    budget = call_tokens(config.rescore.batch_tokens, on_cpu)
    return Work(
        source=ahead.source,
        lengths=ahead.lengths,
        traces=ahead.traces,
        asked=ahead.asked,
        rescore=reading(ahead.calls, shape, budget),
        score_calls=len(ahead.calls),
        targets=ahead.targets,
        waiting=ahead.waiting,
        entries=ahead.entries,
        rows=ahead.rows,
        watched=ahead.watched,
        after=reading(ahead.after, shape, budget),
        off_target=reading(ahead.off_target, shape, budget),
        rollouts=rollout_tokens(config, ahead.lengths, ahead.steps),
    )

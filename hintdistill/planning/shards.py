"""`hintdistill plan --shards N`: estimate what each of N shards would read, keep in memory and take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hintdistill.core.scores import ScoreRequest
from hintdistill.pipeline.shards import Shard
from hintdistill.planning.forecasts import StageForecast
from hintdistill.planning.workload import Workload


@dataclass(frozen=True)
class ShardForecast:
    """Describe one shard, from critique to rescore."""

    shard: str
    traces: int
    critic_tokens: int
    """Prompt tokens of LLM critics: the run's tokens multiplied by this shard's share of its traces."""
    rescore: StageForecast


def forecast_shards(
    work: Workload, of: int, size: int, rescored: Callable[[Sequence[list[ScoreRequest]]], StageForecast]
) -> tuple[ShardForecast, ...]:
    """Plan every shard.

    Args:
        of: number of shards.
        size: number of traces in a block (`rescore.part_rows`).
        rescored: plans the rescore stage of some calls of the engine.
    """
    watched, held = work.tail
    ends = [0]
    for n in work.blocks:
        ends.append(ends[-1] + n)
    asked = sum(a["prompt_tokens"] for a in work.asked.values())
    out = []
    for shard in (Shard(n, of) for n in range(of)):
        start, end = shard.span(work.traces, size)
        calls = work.calls[ends[start // size] : ends[-(-end // size)]]
        # each shard scores watched steps of its own, of which the merged run keeps the first
        if start < end:
            calls = [*calls, *work.calls[ends[-1] : ends[-1] + watched]]
        of_holds = work.calls[ends[-1] + watched :][: held or None]
        first, last = (n * len(of_holds) // of for n in (shard.number, shard.number + 1))
        found = rescored([*calls, *of_holds[first:last]])
        out.append(ShardForecast(str(shard), end - start, asked * (end - start) // max(1, work.traces), found))
    return tuple(out)


def shard_lines(found: Sequence[ShardForecast]) -> list[str]:
    """Return the plan of the shards as text: the range over all shards, and the longest one."""
    traces, tokens = [s.traces for s in found], [s.rescore.tokens for s in found]
    most = max(found, key=lambda s: (s.rescore.seconds or 0.0, s.rescore.tokens))
    lines = [
        f"shards: {len(found)}, of {_span(traces)} traces, {_span([s.critic_tokens for s in found])} prompt tokens for critics "
        f"and {_span(tokens)} tokens to rescore"
    ]
    peak = max((s.rescore.peak_bytes or 0 for s in found), default=0)
    said = [f"peak memory {peak / 1e9:.2f} GB each"] * (peak > 0)
    said += [f"{most.rescore.seconds:,.0f} s for the longest"] * (most.rescore.seconds is not None)
    if said:
        lines.append(
            f"shards: {', '.join(said)} ({most.shard}, {most.traces:,} traces, {most.rescore.tokens:,} tokens)"
        )
    if empty := sum(n == 0 for n in traces):
        lines.append(f"note: {empty} shards have no trace, because traces are divided into blocks of rescore.part_rows")
    return lines


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

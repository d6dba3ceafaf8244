"""The command `plan`, which estimates what a run would take. It parses, calls and prints; it contains no logic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hintdistill.cli.look import print_json, say
from hintdistill.cli.options import Json, Limit, Overrides, Quiet, Trust

if TYPE_CHECKING:
    from rich.table import Table

    from hintdistill.planning.estimate import Forecast


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.", show_default=False)],
    overrides: Overrides = None,
    measure: Annotated[
        bool,
        typer.Option(help="Measure the model for about ten seconds; otherwise only tokens and memory are computed."),
    ] = True,
    memory: Annotated[
        float | None, typer.Option(help="Plan for this many GB (10^9 bytes) instead of the free memory.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, help="Also plan each of N shards; see `run --shard`.")
    ] = None,
    limit: Limit = None,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Plan a run: estimate tokens, peak memory and time of each stage, the longest trace that fits, and suitable
    settings. Nothing is written."""
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.progress import Console
    from hintdistill.planning.estimate import forecast

    found = forecast(
        load_config(config, [*(overrides or []), *([f"traces.limit={limit}"] if limit is not None else [])]),
        measured=measure,
        gigabytes=memory,
        shards=shards,
        console=Console(quiet=quiet or as_json),
        trust=trust,
    )
    if as_json:
        print_json(found.document())
        return
    from rich.console import Console as RichConsole

    console = RichConsole()
    for line in _head(found):
        say(line)
    console.print(_table(found))
    for line in _tail(found):
        say(line)


def _head(found: Forecast) -> list[str]:
    model = found.model
    lines = [
        f"model: {model['kind']}, {model['parameters'] / 1e6:,.1f} M parameters, {model['positions']:,} positions",
        f"injections: {found.source}",
    ]
    for name, h in found.lengths.items():
        lines.append(
            f"{name + 's:':<8}{h.count:>7,}   tokens: median {h.median:,}, 90 % {h.p90:,}, 99 % {h.p99:,}, longest {h.longest:,}"
        )
    return lines


def _table(found: Forecast) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("stage", "tokens", "peak memory", "time", ""):
        table.add_column(name, justify="left" if name in ("stage", "") else "right")
    for s in found.stages:
        peak = "" if s.peak_bytes is None else f"{s.peak_bytes / 1e9:.2f} GB" + ("" if s.fits else " (!)")
        table.add_row(s.stage, f"{s.tokens:,}", peak, "" if s.seconds is None else _duration(s.seconds), s.note)
    return table


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _tail(found: Forecast) -> list[str]:
    lines = [f"memory: {found.memory_bytes / 1e9:.1f} GB {found.memory_source}"]
    lines += [f"longest trace that fits, {name}: {n:,} tokens" for name, n in found.largest_trace.items()]
    if found.too_long:
        named = ", ".join(f"{name} ({n:,})" for name, n in found.too_long[:10])
        more = f" and {len(found.too_long) - 10} more" if len(found.too_long) > 10 else ""
        lines.append(
            f"warning: {len(found.too_long)} traces are too long to train on with these settings: {named}{more}"
        )
    if found.recommended is None:
        lines.append("recommended: nothing fits; use shorter traces or more memory")
    else:
        r = found.recommended
        lines.append("recommended: " + " ".join(f"{k}={v}" for k, v in r.settings.items()) + f"   ({r.why})")
        lines.append(
            f"a micro-batch may have {r.token_budget:,} tokens: packed by length, {r.batches:,} batches of up to "
            f"{r.largest_batch} rows"
        )
    if found.shards:
        from hintdistill.planning.shards import shard_lines

        lines += shard_lines(found.shards)
    return lines + [f"note: {n}" for n in found.notes]

"""Shards: the stages from critique to rescore on a part of a run's traces, each in its own process, in one folder that
all share.

```
SHARED/                  a run folder: `read` ran here once and fixed traces, groups, splits and the order of watched steps
SHARED/shards/1-of-4/    the run folder of a shard: rows of its traces, then what its stages make of them
```

The first process reads the traces, under the folder's lock; the others wait. A shard consists of whole blocks of
`rescore.part_rows` traces in reading order, and the rescore stage never mixes blocks, so every engine call is one that
the whole run would make. Shards are independent: any number may run at a time, on any machines that see the folder, and
the same command restarts a killed one. `pipeline.merge` makes one run of them. This module starts no processes;
`xargs`, torchrun, SLURM, Kubernetes and Ray do.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError
from hintdistill.core.rows import chunks
from hintdistill.core.storage import disk_errors
from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.contexts import require_whole
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.stages import STAGES, check_inputs, run_stages, stage_named, write_report
from hintdistill.pipeline.store import SHARDS, RunDir
from hintdistill.pipeline.verify import repair

ENV = "env"
"""The value of `--shard` if a launcher has set RANK and WORLD_SIZE."""
_NAME = re.compile(r"(\d+)(?:/|-of-)(\d+)")


@dataclass(frozen=True, order=True)
class Shard:
    """One of `of` parts of a run, counted from 0."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def folder(self) -> str:
        """Return the name of the shard's folder."""
        return f"{self.number}-of-{self.of}"

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """Parse `2/8`, the name of a shard's folder, or `env`, which uses torchrun's RANK and WORLD_SIZE.

        Raises:
            ConfigError: the text has none of these forms, or there is no such part.
        """
        said = text
        if text == ENV:
            if not {"RANK", "WORLD_SIZE"} <= environment.keys():
                raise ConfigError(
                    "--shard env needs RANK and WORLD_SIZE, which are not set",
                    hint="start it with torchrun, or name the shard, e.g. --shard 0/4",
                )
            said = f"{environment['RANK']}/{environment['WORLD_SIZE']}"
        found = _NAME.fullmatch(said)
        if found is None or not int(found[1]) < int(found[2]):
            raise ConfigError(f"{said!r} is not a shard", hint="--shard 0/4 is the first of four, --shard 3/4 the last")
        return cls(int(found[1]), int(found[2]))

    def span(self, traces: int, size: int) -> tuple[int, int]:
        """Return the index of its first trace and of the first trace after it: whole blocks of `size`, distributed as
        evenly as possible."""
        blocks = -(-traces // size)
        first, last = (n * blocks // self.of for n in (self.number, self.number + 1))
        return min(first * size, traces), min(last * size, traces)

    def cut(self, keys: Sequence[str], traces: Sequence[str], size: int) -> tuple[list[str], list[str]]:
        """Return the shard's part of all row keys, and of the trace keys; a failed record goes with the trace that
        follows it."""
        start, end = self.span(len(traces), size)
        known, at, own = set(traces), 0, list[str]()
        last = end == len(traces) and start < end
        for key in keys:
            if start <= at < end or (last and at == end) or (not traces and self.number == 0):
                own.append(key)
            at += key in known
        return own, list(traces[start:end])


def shards_of(folder: Path) -> list[Shard]:
    """Return the shards that have a folder in a shared one, in order."""
    found = []
    for path in (folder / SHARDS).glob("*-of-*"):
        with suppress(ConfigError):
            found.append(Shard.parse(path.name))
    return sorted(found)


def shard_of(rundir: RunDir) -> Shard | None:
    """Return which shard a run folder is; None for a run without shards."""
    said = rundir.manifest().get("shard") if rundir.is_run() else None
    return None if said is None else Shard.parse(said)


def command(folder: Path, shard: Shard, until: str, file: str | None) -> str:
    """Return the command that runs a shard, or repeats it in the same place."""
    config = file or str(folder)
    more = [] if file is not None else ["--resume"]
    words = ["hintdistill", "run", config, *more, "--until", until, "--shard", str(shard)]
    return shlex.join([*words, f"run.dir={folder}"] if file is not None else words)


def run_shard(
    config: RunConfig,
    folder: Path,
    shard: Shard,
    *,
    until: str = "rescore",
    context: Mapping[str, Any] | None = None,
    console: Console | None = None,
    trust: bool = False,
) -> Path:
    """Run the stages from critique to `until` on one shard of the run in `folder`, and return the shard's own folder.

    A shard that ran before is continued. The traces are read first if they have not been read.

    Args:
        context: keyword arguments of `RunContext`, e.g. `engines` that are already loaded, and `file`, the config file.
        trust: see `pipeline.run.run`.

    Raises:
        ConfigError: the folder belongs to another configuration or is split differently, another process runs this
            shard, or shards do not run the stage `until`.
        HintdistillError: an error stopped a stage; everything done before it is kept.
    """
    require_shardable(config, until)
    console, more = console or Console(), dict(context or {})
    file = more.pop("file", None)
    with in_use(config, trust), disk_errors(folder):
        check_inputs(config, until)
        shared = read_once(config, folder, console, file)
        if others := [s for s in shards_of(folder) if s.of != shard.of]:
            raise ConfigError(
                f"{folder} is cut into {others[0].of} shards, not {shard.of}",
                hint=f"use --shard {min(shard.number, others[0].of - 1)}/{others[0].of}, or another run.dir",
            )
        own = RunDir.create(folder / SHARDS / shard.folder, config, resume=True)
        try:
            own.note(shard=str(shard), until=until, finished=False, **({"file": file} if file else {}))
            damaged = repair(own)
            for item in damaged:
                console.warn(str(item))
            if damaged or own.index("read") is None:
                _lay_out(RunContext(config, shared, console), own, shard)
            ctx = RunContext(config, own, console, **more)
            ctx.shard = (shard.number, shard.of)
            console.note(
                f"shard {shard}: {read.count(ctx)} of {read.count(RunContext(config, shared, console))} traces"
            )
            run_stages(ctx, first="critique", until=until)
            write_report(ctx)
            own.note(finished=True)
        finally:
            own.close()
    return own.path


def require_shardable(config: RunConfig, until: str) -> None:
    """Raise ConfigError for work that cannot be done in shards: training, reports, and a loop of rounds."""
    stage_named(until)
    if not STAGES.index("critique") <= STAGES.index(until) <= STAGES.index("rescore"):
        raise ConfigError(
            f"a shard cannot run the stage {until!r}",
            hint="use --until critique, inject or rescore; then `hintdistill merge RUN` and `hintdistill "
            "run RUN --resume`",
        )
    if config.run.rounds is not None:
        raise ConfigError("run.rounds is a loop and cannot be cut into shards", hint="unset run.rounds")
    require_whole(config)
    require_whole(config)


def take_own_device() -> None:
    """Choose the accelerator with this process's number (LOCAL_RANK), if several processes share a machine with several
    accelerators."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def read_once(config: RunConfig, folder: Path, console: Console, file: str | None = None) -> RunDir:
    """Read the traces into the shared folder, unless that was done; other processes wait meanwhile.

    Raises:
        ConfigError: the folder contains a run with another configuration, or a run continued without shards.
        HintdistillError: an error stopped the reading.
    """

    def waits() -> None:
        console.note(f"waiting for another process, which is reading the traces into {folder}")

    shared = RunDir.join(folder, config, waits)
    try:
        if shared.index("critique") is not None:
            raise ConfigError(
                f"the run in {folder} was critiqued without shards"
                if "merged" not in shared.manifest()
                else f"the shards of {folder} were already merged",
                hint=f"hintdistill run {shlex.quote(str(folder))} --resume continues it; another run.dir starts a new run",
            )
        held = config.train.hold
        if shared.index("read") is None or (held.path and shared.index("hold") is None):
            shared.note(until="read", finished=False, **({"file": file} if file else {}))
            run_stages(RunContext(config, shared, console), until="read")
            shared.note(finished=True)
    finally:
        shared.close()
    return shared


def _lay_out(shared: RunContext, own: RunDir, shard: Shard) -> None:
    """Copy a shard's rows of traces and record which are current; the index of rows is written last."""
    size, source = shared.config.rescore.part_rows, shared.rundir
    holds = source.index("hold") or []
    held = [row["key"] for row in source.each("hold", "hold") if "trace" in row] if holds else []
    of_holds, _ = shard.cut(holds, held, size)
    _copy(source, own, "hold", of_holds)
    if source.index("hold") is not None:
        own.set_index("hold", of_holds)
    groups = read.groups(shared)
    group = dict(line.split(" ", 1) for line in groups)
    keys, traces = shard.cut(source.index("read") or [], [line.partition(" ")[0] for line in groups], size)
    _copy(source, own, "traces", keys)
    read.set_groups(own, keys, [f"{key} {group[key]}" for key in traces])
    own.set_index("read-warnings", [])
    own.set_index("read", keys)


def _copy(source: RunDir, own: RunDir, name: str, keys: Sequence[str]) -> None:
    if keys:
        rows, have, store = source.rows(name), own.rows(name), own.store(name)
        for some in chunks((key for key in keys if key not in have), read.AT_ONCE):
            store.extend([rows[key] for key in some])

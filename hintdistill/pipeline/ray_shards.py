"""Shards on a Ray cluster: a Ray Data stage whose actors hold the engine and process one shard after another.

The unit of work is the same as in `pipeline.shards`: Ray restarts a killed actor, which continues from its shard's
folder. An actor gets its next shard when it finishes one, so that a slow actor delays no other (backpressure). The
result of each shard is a row, including errors. This needs the extra `ray`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.config.file import validate
from hintdistill.core.errors import ConfigError, HintdistillError, ServiceError
from hintdistill.core.paths import resolve_paths
from hintdistill.core.storage import disk_errors
from hintdistill.pipeline.context import in_use
from hintdistill.pipeline.merge import merge
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.shards import Shard, command, read_once, require_shardable, run_shard
from hintdistill.pipeline.stages import check_inputs
from hintdistill.pipeline.store import SHARDS, RunDir


@dataclass(frozen=True)
class Actors:
    """Set the number of actors and the resources of each."""

    number: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Describe the outcome of a shard."""

    shard: Shard
    failure: str
    """Why the shard is not finished; empty if it is."""


class ShardActor:
    """Run shards of one run in an actor, loading the engine only once. Ray creates and calls it."""

    def __init__(self, settings: Mapping[str, Any], foreign: str | None, until: str, trust: bool) -> None:
        """Store the run's settings in the form of a manifest, and the run folder from elsewhere that they come from, if
        any."""
        self.config = validate(dict(settings), "the run's settings").of_folder(foreign)
        self.until, self.trust = until, trust
        self.context: dict[str, Any] = {"engines": {}, "held": {}}

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Run the shards of a batch and return each one's error message, empty if it succeeded."""
        failures = [self._run(Shard.parse(str(text))) for text in batch["shard"]]
        return {"shard": [str(text) for text in batch["shard"]], "failure": failures}

    def _run(self, shard: Shard) -> str:
        folder = Path(str(self.config.run.dir))
        try:
            run_shard(
                self.config,
                folder,
                shard,
                until=self.until,
                context=self.context,
                console=Console(quiet=True),
                trust=self.trust,
            )
        except HintdistillError as error:
            return f"{error.reason}: {error.message}"
        except Exception as error:
            # a bug costs its shard, and is told with where it is
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            line = f"{where.tb_frame.f_code.co_filename}, line {where.tb_lineno}" if where is not None else "unknown"
            return f"bug: {type(error).__name__}: {error} ({line})"
        return ""


def run_on_ray(
    config: RunConfig,
    of: int,
    actors: Actors,
    *,
    until: str = "rescore",
    console: Console | None = None,
    trust: bool = False,
) -> Path:
    """Read the traces here, run all shards on a Ray cluster, merge them, and return the run folder.

    The cluster is the one that RAY_ADDRESS names, or a new one on this machine. Every node must see `run.dir`, the
    traces and the models under the same paths.

    Args:
        of: number of shards; a few times the number of actors, so that all actors finish at about the same time.

    Raises:
        ConfigError: ray is not installed, `run.dir` is not set, or `run_shard` refuses the settings.
        ServiceError: some shards failed; the others are finished, and the same command continues.
    """
    require_shardable(config, until)
    if config.run.dir is None:
        raise ConfigError("shards need a folder that all of them share", hint="set it with run.dir=SHARED")
    console, folder = console or Console(), Path(config.run.dir).resolve()
    with in_use(config, trust), disk_errors(folder):
        check_inputs(config, until)
        if not (RunDir(folder).is_run() and "merged" in RunDir(folder).manifest()):
            read_once(config, folder, console)
    settings = resolve_paths(config.model_dump(mode="json"), RunConfig, None)
    settings["run"]["dir"] = str(folder)
    failed = list[Outcome]()
    with console.progress("shards", of) as advance:
        for outcome in _outcomes(settings, config.foreign, of, actors, (until, trust)):
            advance(1)
            if outcome.failure:
                failed.append(outcome)
                console.warn(f"shard {outcome.shard}: {outcome.failure}")
            else:
                console.note(f"shard {outcome.shard} is done: {folder / SHARDS / outcome.shard.folder}")
    if failed:
        again = command(folder, failed[0].shard, until, None)
        raise ServiceError(
            f"{len(failed)} of {of} shards failed, the first {failed[0].shard}: {failed[0].failure}",
            hint=f"the same command continues all of them; to continue one alone: {again}",
        )
    merge(folder, console, trust=trust)
    return folder


def _outcomes(
    settings: Mapping[str, Any], foreign: str | None, of: int, actors: Actors, how: tuple[str, bool]
) -> Iterator[Outcome]:
    """Yield the outcome of each shard as it finishes."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("ray is not installed", hint="pip install 'hintdistill[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    until, trust = how
    owed = ray.data.from_items([{"shard": str(Shard(n, of))} for n in range(of)], override_num_blocks=of)
    done = owed.map_batches(
        ShardActor,
        fn_constructor_args=(settings, foreign, until, trust),
        batch_size=1,
        # one at a time: what waits, waits for whoever is free
        compute=ray.data.ActorPoolStrategy(size=min(actors.number, of), max_tasks_in_flight_per_actor=1),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )
    # Ray makes an actor that is killed anew, and asks its shard of it again
    for row in done.iter_rows():
        yield Outcome(Shard.parse(row["shard"]), row["failure"])

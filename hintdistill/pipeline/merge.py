"""`hintdistill merge RUN`: merge the shards of a run into one run.

Rows and targets of every shard are copied into the shared folder. The stages then pass over them as in a continued run
and find everything done: no critic is asked, and no weights are loaded. If a merge is killed halfway, the same command
completes it.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.core.rows import KeySet, chunks
from hintdistill.core.storage import JsonlStore, checksum, disk_errors, writing_aside
from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.shards import Shard, command, shards_of
from hintdistill.pipeline.stages import STAGES, run_stages, write_report
from hintdistill.pipeline.store import SHARDS, RunDir
from hintdistill.rescoring.store import SUMS, TargetStore

STORES = ("critiques", "answers", "injections", "twins", "revisions", "failures")
"""The files of rows that shards make."""
INDEXES = ("critique", "inject", "twins", "revise", "rescore", "failures")
"""The indexes that say which of them are current."""


def merge(folder: Path, console: Console | None = None, *, trust: bool = False) -> int:
    """Merge the shards of a run into its folder, and return their number.

    The result equals a run without shards, after sorting by key. It is equal in every bit if the engine's calls are,
    because they are cut at the same traces. `--resume` continues it.

    Args:
        trust: see `pipeline.run.run`.

    Raises:
        ConfigError: there are no shards, some are missing or unfinished, one was made with another configuration, or a
            process is working in one of them.
        InputError: a shard is damaged, or two of them have the same key.
    """
    console, shared = console or Console(), RunDir.reopen(folder, parts=True)
    with ExitStack() as opened:
        opened.callback(shared.close)
        shards = _shards(shared, opened)
        config, _ = shared.config()
        until = min((run.manifest()["until"] for run in shards), key=STAGES.index)
        opened.enter_context(in_use(config, trust))
        opened.enter_context(disk_errors(folder))
        _require_apart(shared, shards)
        with console.progress("merge", len(shards)) as advance:
            for run in shards:
                _take(shared, run)
                advance(1)
        revised = [key for run in shards for key in run.index("revise") or []]
        if revised:
            shared.set_index("revise", revised)
        measured = next((p for run in shards if (p := run.manifest().get("precision"))), None)
        if measured is not None:
            shared.note(precision=measured)
        _walk(config, shared, console, until)
        shared.note(merged=len(shards), until=until, finished=True)
    console.note(f"merge: merged {len(shards)} shards; {folder / SHARDS} can be deleted (`hintdistill clean {folder}`)")
    return len(shards)


def _walk(config: RunConfig, shared: RunDir, console: Console, until: str) -> None:
    """Let the stages record which rows are current, and write the report."""
    ctx = RunContext(config, shared, console)
    ctx.gathers = True
    run_stages(ctx, first="critique", until=until)
    write_report(ctx)


def _shards(shared: RunDir, opened: ExitStack) -> list[RunDir]:
    """Return the folders of all shards, in order, each opened and finished. Raises ConfigError; see `merge`."""
    found = shards_of(shared.path)
    if not found:
        raise ConfigError(
            f"{shared.path} has no shards",
            hint=f"run the first of two with: hintdistill run CONFIG --until rescore --shard 0/2 run.dir={shared.path}",
        )
    counts = sorted({s.of for s in found})
    if len(counts) > 1:
        raise ConfigError(
            f"{shared.path} has shards of different numbers: it is cut into "
            f"{' and into '.join(map(str, counts))} shards",
            hint=f"keep one set of shards, and delete the folders of the others in {shared.path / SHARDS}",
        )
    manifest, owed = shared.manifest(), list[str]()
    runs = list[RunDir]()
    for shard in (Shard(n, counts[0]) for n in range(counts[0])):
        path = shared.path / SHARDS / shard.folder
        if not RunDir(path).is_run() or not RunDir(path).manifest().get("finished"):
            owed.append(command(shared.path, shard, "rescore", manifest.get("file")))
            continue
        run = RunDir.reopen(path)
        opened.callback(run.close)
        run.require_config(manifest["config"])
        runs.append(run)
    if owed:
        more = f"; and {len(owed) - 4} more" if len(owed) > 4 else ""
        raise ConfigError(
            f"{len(owed)} of {counts[0]} shards of {shared.path} are not finished",
            hint=f"{'; '.join(owed[:4])}{more}",
        )
    return runs


def _require_apart(shared: RunDir, shards: list[RunDir]) -> None:
    """Raise InputError if the shards' traces are not the run's, or if two shards made the same row."""
    traces = [key for run in shards for key in run.index("read") or []]
    if traces != (shared.index("read") or []):
        raise InputError(
            f"the shards of {shared.path} were not made from the traces read there",
            hint=f"delete {shared.path / SHARDS} and run the shards again",
        )
    for name in INDEXES:
        keys = [key for run in shards for key in dict.fromkeys(run.index(name) or [])]
        if len(KeySet(keys)) < len(keys):
            seen = set[str]()
            twice = next(k for k in keys if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            raise InputError(
                f"two shards of {shared.path} have the {name} row {twice}",
                hint="check both shards with hintdistill verify",
            )


def _take(shared: RunDir, run: RunDir) -> None:
    """Copy results of a shard that the shared folder lacks. Raises InputError if a part's bytes have changed since it
    was written."""
    for name in STORES:
        have, rows, store = shared.rows(name), run.rows(name), shared.store(name)
        # a row that was made again, because a critic had failed, takes the place of the one before
        new = (row for row in run.store(name).rows() if rows[row["key"]] == row and have.get(row["key"]) != row)
        for some in chunks(new, read.AT_ONCE):
            store.extend(some)
    source, target = TargetStore(run.path / "targets"), shared.path / "targets"
    target.mkdir(exist_ok=True)
    sums, known = JsonlStore(target / SUMS), JsonlStore(source.folder / SUMS).by_key()
    there = {p.name for p in TargetStore(target).parts()}
    for part in source.parts():
        said = known.get(part.name)
        if said is not None and checksum(part) != said["sha256"]:
            raise InputError(
                f"{part} has changed since it was written", hint=f"check it with: hintdistill verify {run.path}"
            )
        if part.name in there and checksum(target / part.name) == checksum(part):
            continue
        if said is not None:
            sums.append(said)
        _link(part, target / part.name)


def _link(part: Path, to: Path) -> None:
    """Link a part into another folder; parts are never changed in place, so both names may refer to one file."""
    with writing_aside(to) as aside:
        aside.unlink(missing_ok=True)
        try:
            os.link(part, aside)
        except OSError:
            # a file system without links
            shutil.copyfile(part, aside)

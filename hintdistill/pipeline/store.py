"""The run folder: all results of one run, sufficient to resume, to audit and to report.

```
manifest.json        schema, config, versions, model and prompt hashes
config.yaml          the configuration, to run again
damaged/             what `verify` or a resume took out, because its bytes were not as they were written
index/<stage>.json   the row keys that are current, in order; older rows stay in their files and count for nothing
index/groups.json    the group of each current trace, by which its split is drawn
index/<stage>-warnings.json   what the stage warned of when it last ran, the revision among them
traces.jsonl         one row per record read: a trace, or a failure with file and line
critiques.jsonl      one row per (trace, critic)
injections.jsonl     one row per finding: an injection, or a failure with its reason
twins.jsonl          one row per injected finding: its twins, the edits that were dropped and why; where twins are made
targets/             parquet parts: one row per injection and per anchor
train/<key>/         checkpoints and metrics.jsonl
student/             the corrected model
shards/              of a run in shards: a run folder each, see `pipeline/shards.py`
evaluations.jsonl    one row per (weights, environment split)
episodes.jsonl       one row per episode that these were counted from
report.json, report.html
```

Every row carries the content hash of its inputs, including its parent's key. Resuming is a set difference: the required
rows minus the existing ones. A line truncated by a kill counts as missing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from hintdistill.config import CONFIG_SCHEMA, RunConfig
from hintdistill.config.file import known_keys, validate
from hintdistill.config.removed import upgrade
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.core.paths import resolve_paths
from hintdistill.core.rows import Grouped, Lazy, Rows
from hintdistill.core.storage import REPAIR, JsonlStore, content_key, read_json, write_atomic
from hintdistill.core.trust import guards, is_signed, sign

RUN_SCHEMA = 2
"""Schema version of run folders. Since version 2, paths in the manifest's config are absolute, and keys of earlier
releases are removed."""
DAMAGED = (
    "`hintdistill verify` lists the damage in the folder; `run CONFIG --resume run.dir=…` writes the manifest again"
)
"""Advice about a manifest that cannot be read."""
KEPT = ("model", "prompts", "formats", "file", "until", "finished", "started", "shard", "merged")
"""Keys of a manifest that stay when a run is continued."""
SHARDS = "shards"
"""The folder that holds the shards of a run; see `pipeline/shards.py`."""
MACHINE_KEYS = ("dir", "device", "threads")
"""Keys of the section `run` that depend on the machine and affect no row."""
BEGUN = (".lock", ".manifest.json.writing")
"""Files that a kill may leave of a run without a manifest; deleting them loses nothing."""
READABLE = (1, RUN_SCHEMA)
"""Schemas that `show`, `report` and `push` read; only the last one can be continued."""


class RunDir:
    """Manage a run folder, which one process at a time may open."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: Any = None

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, *, resume: bool) -> RunDir:
        """Create or reopen a run folder.

        Raises:
            ConfigError: the folder is not empty and `resume` is off, it was made by another schema, or another process
                has it open.
        """
        run = cls(path)
        if (taken := next((p for p in (run.path, *run.path.parents) if p.exists()), run.path)) and not taken.is_dir():
            raise ConfigError(f"run.dir is {run.path}, but {taken} is a file", hint="choose another run.dir")
        used = run.path.exists() and any(p.name not in BEGUN for p in run.path.iterdir())
        if used and not run.is_run():
            raise ConfigError(f"{run.path} is not empty and contains no run", hint="choose another run.dir")
        if used and not resume:
            raise ConfigError(
                f"{run.path} already contains a run",
                hint="continue it with --resume, or choose another folder with run.dir=",
            )
        run.check_continues()
        run.path.mkdir(parents=True, exist_ok=True)
        run._acquire()
        run._write_manifest(config)
        return run

    @classmethod
    def join(cls, path: str | Path, config: RunConfig, waits: Callable[[], None]) -> RunDir:
        """Create or reopen a folder in which several processes work in turn; `waits` is called while another one has it
        open.

        Raises:
            ConfigError: the folder contains something else, or a run made with another configuration.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise ConfigError(f"run.dir is {run.path}, which is a file", hint="choose another run.dir")
        run.path.mkdir(parents=True, exist_ok=True)
        run._acquire(waits)
        try:
            if run.is_run():
                run.check_continues()
                run.require_config(resolve_paths(config.model_dump(mode="json"), RunConfig, None))
            elif any(p.name not in BEGUN for p in run.path.iterdir()):
                raise ConfigError(f"{run.path} is not empty and contains no run", hint="choose another run.dir")
            else:
                run._write_manifest(config)
        except BaseException:
            run.close()
            raise
        return run

    def require_config(self, data: Mapping[str, Any]) -> None:
        """Raise ConfigError, naming the keys that differ, if the run was made with another configuration than
        `data`."""
        mine = self.manifest()["config"]
        if config_hash(mine) != config_hash(data):
            keys = [k for k in differing(mine, data) if k not in {f"run.{name}" for name in MACHINE_KEYS}]
            raise ConfigError(
                f"{self.path} was made with another configuration, which differs in {', '.join(keys[:8])}",
                hint="all shards of a run need the same settings; start another run with run.dir=",
            )

    @classmethod
    def open(cls, path: str | Path, *, parts: bool = False) -> RunDir:
        """Return a run folder opened for reading.

        Args:
            parts: accept shards that are not merged yet.

        Raises:
            InputError: there is no run.
            ConfigError: see `require_whole`.
        """
        run = cls(path)
        if not run.is_run():
            raise InputError(f"no run at {path}", hint="a run folder contains a manifest.json; see run.dir")
        if not parts:
            run.require_whole()
        return run

    def require_whole(self) -> None:
        """Raise ConfigError if the run's shards are not merged."""
        if (self.path / SHARDS).is_dir() and self.is_run() and "merged" not in self.manifest():
            raise ConfigError(
                f"{self.path} is cut into shards that are not merged",
                hint=f"merge them with `{shlex.join(['hintdistill', 'merge', str(self.path)])}`; each shard is a "
                f"run folder in {self.path / SHARDS}",
            )

    @classmethod
    def reopen(cls, path: str | Path, *, parts: bool = False) -> RunDir:
        """Open a run folder to rewrite its report, whatever readable schema made it; its manifest stays unchanged.

        Raises:
            InputError: there is no run, or its schema cannot be read by this release.
            ConfigError: another process has it open; see also `open`.
        """
        run = cls.open(path, parts=parts)
        run.manifest()
        run._acquire()
        return run

    def check_continues(self) -> None:
        """Raise ConfigError if the folder's run has another schema than this release writes, because their rows would
        be mixed."""
        found = self.manifest() if self.is_run() else {}
        if found and found["schema"] != RUN_SCHEMA:
            made = found.get("versions", {}).get("hintdistill", "an unknown release")
            raise ConfigError(
                f"{self.path} was made with run schema {found['schema']} (hintdistill {made}), but this "
                f"release continues only {RUN_SCHEMA}",
                hint="run.dir= starts a new run in another folder; `hintdistill show` and `report` can still "
                "read this one",
            )

    def is_run(self) -> bool:
        """Return whether the folder contains a run."""
        return (self.path / "manifest.json").is_file()

    def _acquire(self, waits: Callable[[], None] | None = None) -> None:
        self._lock = (self.path / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if waits is not None and error.errno in (errno.EAGAIN, errno.EACCES):
                waits()
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                return
            raise ConfigError(
                f"another process is working in {self.path}", hint="wait for it or choose another run.dir"
            ) from None

    def close(self) -> None:
        """Release the folder for other processes."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _write_manifest(self, config: RunConfig) -> None:
        data = resolve_paths(config.model_dump(mode="json"), RunConfig, None)
        manifest = {
            "schema": RUN_SCHEMA,
            "config_schema": CONFIG_SCHEMA,
            "config": data,
            # what came from elsewhere and is not trusted stays so
            "signature": None if guards() else sign(data),
            "versions": _versions(),
            # a run of before, continued, does not say that it began today
            **({} if self.is_run() else {"started": datetime.now(UTC).isoformat(timespec="seconds")}),
            **{k: v for k, v in self.manifest().items() if k in KEPT},
        }
        write_atomic(self.path / "manifest.json", json.dumps(manifest, indent=1))
        write_atomic(self.path / "config.yaml", yaml.safe_dump(data, sort_keys=False))

    def manifest(self) -> dict[str, Any]:
        """Return the manifest with its configuration in today's keys; empty if there is none yet.

        Raises:
            InputError: its schema is not readable, or it is not JSON.
        """
        data = self._raw_manifest()
        if not data:
            return {}
        schema = data.get("schema")
        if schema not in READABLE:
            raise InputError(
                f"{self.path} was made with run schema {schema}, but this release reads only "
                f"{' and '.join(map(str, READABLE))}",
                hint="read it with the release that made it, which is versions.hintdistill in manifest.json",
            )
        if not isinstance(data.get("config"), dict):
            raise InputError(f"{self.path / 'manifest.json'} contains no configuration", hint=DAMAGED)
        if data.get("config_schema", 1) < CONFIG_SCHEMA:
            data["config"] = upgrade(data["config"], data.get("config_schema", 1))
        return data

    def _raw_manifest(self) -> dict[str, Any]:
        """Return the manifest exactly as written; empty if there is none."""
        if not (self.path / "manifest.json").exists():
            return {}
        return dict(read_json(self.path / "manifest.json", dict, hint=DAMAGED))

    def config(self) -> tuple[RunConfig, list[str]]:
        """Return the configuration that the run was made with, and its keys of an older schema that this release does
        not know.

        Paths of schema 1 are taken relative to the working directory, as in that release.

        Raises:
            InputError: see `manifest`.
            ConfigError: a value is not valid in this release.
        """
        manifest, where = self.manifest(), str(self.path / "manifest.json")
        foreign = None if self.is_own() else str(self.path)
        if foreign is not None:
            self._refuse_links()
        if manifest["schema"] == RUN_SCHEMA:
            return validate(manifest["config"], where).of_folder(foreign), []
        known, unknown = known_keys(manifest["config"])
        return validate(resolve_paths(known, RunConfig, None), where).of_folder(foreign), unknown

    def settings_file(self) -> Path:
        """Return the run's config.yaml; if a kill prevented writing it, recreate it from the manifest.

        Raises:
            InputError: see `manifest`.
        """
        path = self.path / "config.yaml"
        if not path.exists():
            write_atomic(path, yaml.safe_dump(self.manifest()["config"], sort_keys=False))
        return path

    def is_own(self) -> bool:
        """Return whether this user wrote the run's configuration on this machine; see `core/trust.py`."""
        raw = self._raw_manifest()
        return is_signed(raw.get("config"), raw.get("signature"))

    def _refuse_links(self) -> None:
        """Raise InputError if a folder from elsewhere has a link, a pipe or a device at a place where files are
        written."""
        for at, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                path = Path(at) / name
                if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode):
                    raise InputError(
                        f"{path} is not a regular file, and {self.path} was not written by you on this machine",
                        hint="copy the folder with links resolved (`cp -rL`), or delete files that do not belong to it",
                    )

    def note(self, **values: Any) -> None:
        """Set top-level values of the manifest, e.g. `model`, `prompts` or `formats`."""
        manifest = self.manifest() | {"config_schema": CONFIG_SCHEMA} | values
        if self.is_own():
            # keys of before were translated
            manifest["signature"] = sign(manifest["config"])
        write_atomic(self.path / "manifest.json", json.dumps(manifest, indent=1))

    def store(self, name: str) -> JsonlStore:
        """Return the rows of the file `name`.jsonl."""
        return JsonlStore(self.path / f"{name}.jsonl")

    def set_index(self, stage: str, keys: Sequence[str]) -> None:
        """Record which rows of a stage are current, in order."""
        folder = self.path / "index"
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"{stage}.json", json.dumps(list(keys)))

    def index(self, stage: str) -> list[str] | None:
        """Return the current row keys of a stage, or None if the stage has not finished."""
        with contextlib.suppress(FileNotFoundError):
            return list(read_json(self.path / "index" / f"{stage}.json", list, hint=REPAIR))
        return None

    def rows(self, store: str) -> Rows:
        """Return the rows of `store`.jsonl by key; they stay on disk."""
        return Rows(self.store(store))

    def each(self, stage: str, store: str) -> Iterator[dict[str, Any]]:
        """Yield the current rows of a stage in order, one at a time; nothing is yielded if it has not finished.

        Raises:
            InputError: a row that the stage made is missing from the file or damaged.
        """
        keys = self.index(stage)
        if not keys:
            return
        rows = self.rows(store)
        for _, row in rows.each(keys):
            if row is None:
                lacking = [k for k in keys if k not in rows]
                raise InputError(
                    f"{self.store(store).path} lacks {len(lacking)} rows that {stage} made, for example {lacking[0]}",
                    hint=REPAIR,
                )
            yield row

    def current(self, stage: str, store: str) -> list[dict[str, Any]]:
        """Return the current rows of a stage, in order, all in memory; see `each`."""
        return list(self.each(stage, store))

    def on_disk(self, stage: str, store: str) -> Lazy[dict[str, Any]]:
        """Return the current rows of a stage in order; they are read again on each iteration, see `each`."""
        return Lazy(lambda: self.each(stage, store), len(self.index(stage) or ()))

    def grouped(self, stage: str, store: str, field: str = "trace") -> Grouped:
        """Return the current rows of a stage grouped by one of their fields. Raises InputError if a row is missing from
        the file."""
        return self.rows(store).grouped(self.index(stage) or (), field)


def config_hash(data: Mapping[str, Any]) -> str:
    """Return the hash of a configuration in manifest form, without the keys that depend on the machine."""
    return content_key("config", {**data, "run": {k: v for k, v in data["run"].items() if k not in MACHINE_KEYS}})


def differing(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys whose values differ between two configurations."""
    for key in sorted(one.keys() | two.keys()):
        a, b = one.get(key), two.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differing(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}"


def _versions() -> dict[str, str]:
    names = ("hintdistill", "torch", "transformers", "peft", "accelerate", "vllm")
    out = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[name] = importlib.metadata.version(name)
    return out


@contextlib.contextmanager
def scratch_copy(of: str | None) -> Iterator[Path]:
    """Yield a temporary folder with the contents of the run folder `of` from the stages before training."""
    with tempfile.TemporaryDirectory(prefix="hintdistill-plan-") as name:
        folder = Path(name) / "run"
        held = None if of is None else Path(of)
        if held is not None and RunDir(held).is_run():
            folder.mkdir()
            for path in held.glob("*.jsonl"):
                shutil.copy2(path, folder / path.name)
            for part in ("index", "targets"):
                if (held / part).is_dir():
                    shutil.copytree(held / part, folder / part)
            shutil.copy2(held / "manifest.json", folder / "manifest.json")
        yield folder

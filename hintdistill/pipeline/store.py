"""The run folder: everything one run produced, enough to resume, to audit and to report.

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

Every row carries the content hash of what made it, its parent's key included. Resume is a set difference: what is owed
minus what is there. A line that a kill tore off is owed again.
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
"""2: paths in the manifest's config are absolute, and keys of releases before are gone from it."""
DAMAGED = (
    "`hintdistill verify` says what of the folder is damaged; `run CONFIG --resume run.dir=…` writes the manifest again"
)
"""What to do about a manifest that cannot be read."""
KEPT = ("model", "prompts", "formats", "file", "until", "finished", "started", "shard", "merged")
"""What of a manifest stays when a run is continued."""
SHARDS = "shards"
"""The folder that holds the shards of a run; see `pipeline/shards.py`."""
MACHINE_KEYS = ("dir", "device", "threads")
"""Keys of the section `run` that say where a run works and decide no row."""
BEGUN = (".lock", ".manifest.json.writing")
"""What a kill leaves of a run that has no manifest yet; nothing is lost with it."""
READABLE = (1, RUN_SCHEMA)
"""Schemas that `show`, `report` and `push` read; only the last one is continued."""


class RunDir:
    """A run folder, opened by one process at a time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: Any = None

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, *, resume: bool) -> RunDir:
        """Make or reopen a run folder.

        Raises:
            ConfigError: the folder holds something already and `resume` is off, it was made by another schema, or another
                process has it open.
        """
        run = cls(path)
        if (taken := next((p for p in (run.path, *run.path.parents) if p.exists()), run.path)) and not taken.is_dir():
            raise ConfigError(f"run.dir is {run.path}, and {taken} is a file", hint="choose another run.dir")
        used = run.path.exists() and any(p.name not in BEGUN for p in run.path.iterdir())
        if used and not run.is_run():
            raise ConfigError(f"{run.path} is not empty and holds no run", hint="choose another run.dir")
        if used and not resume:
            raise ConfigError(
                f"{run.path} holds a run already", hint="--resume continues it; run.dir= puts this one elsewhere"
            )
        run.check_continues()
        run.path.mkdir(parents=True, exist_ok=True)
        run._acquire()
        run._write_manifest(config)
        return run

    @classmethod
    def join(cls, path: str | Path, config: RunConfig, waits: Callable[[], None]) -> RunDir:
        """Make or reopen a folder that several processes work in by turns; `waits` is called where another one has it open.

        Raises:
            ConfigError: the folder holds something else, or a run that was made with another configuration.
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
                raise ConfigError(f"{run.path} is not empty and holds no run", hint="choose another run.dir")
            else:
                run._write_manifest(config)
        except BaseException:
            run.close()
            raise
        return run

    def require_config(self, data: Mapping[str, Any]) -> None:
        """Raise ConfigError if the run was made with another configuration than `data`; names the keys that differ."""
        mine = self.manifest()["config"]
        if config_hash(mine) != config_hash(data):
            keys = [k for k in differing(mine, data) if k not in {f"run.{name}" for name in MACHINE_KEYS}]
            raise ConfigError(
                f"{self.path} was made with another configuration: {', '.join(keys[:8])} {'is' if len(keys) == 1 else 'are'} different",
                hint="all shards of a run need the same settings; run.dir= begins another run",
            )

    @classmethod
    def open(cls, path: str | Path, *, parts: bool = False) -> RunDir:
        """Return a run folder to read.

        Args:
            parts: whether shards that are not merged yet will do.

        Raises:
            InputError: there is none.
            ConfigError: see `require_whole`.
        """
        run = cls(path)
        if not run.is_run():
            raise InputError(f"no run at {path}", hint="a run folder holds a manifest.json; see run.dir")
        if not parts:
            run.require_whole()
        return run

    def require_whole(self) -> None:
        """Raise ConfigError if the run's shards are not merged."""
        if (self.path / SHARDS).is_dir() and self.is_run() and "merged" not in self.manifest():
            raise ConfigError(
                f"{self.path} is cut into shards that are not merged",
                hint=f"`{shlex.join(['hintdistill', 'merge', str(self.path)])}` makes one run of them; each shard is a run "
                f"folder in {self.path / SHARDS}",
            )

    @classmethod
    def reopen(cls, path: str | Path, *, parts: bool = False) -> RunDir:
        """Open a run folder to write its report again, whatever readable schema made it; its manifest stays as it is.

        Raises:
            InputError: there is no run, or none of a schema that this release reads.
            ConfigError: another process has it open, or see `open`.
        """
        run = cls.open(path, parts=parts)
        run.manifest()
        run._acquire()
        return run

    def check_continues(self) -> None:
        """Raise ConfigError if the folder's run has another schema than this release writes: its rows would be mixed."""
        found = self.manifest() if self.is_run() else {}
        if found and found["schema"] != RUN_SCHEMA:
            made = found.get("versions", {}).get("hintdistill", "an unknown release")
            raise ConfigError(
                f"{self.path} was made by run schema {found['schema']} (hintdistill {made}); this release continues {RUN_SCHEMA}",
                hint="run.dir= starts a new run in another folder; `hintdistill show` and `report` still read this one",
            )

    def is_run(self) -> bool:
        """Return whether the folder holds a run."""
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
        """Let other processes in."""
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
        """Return the manifest, empty if there is none yet, its configuration in today's keys.

        Raises:
            InputError: it has a schema that cannot be read, or is not JSON.
        """
        data = self._raw_manifest()
        if not data:
            return {}
        schema = data.get("schema")
        if schema not in READABLE:
            raise InputError(
                f"{self.path} was made by run schema {schema}; this release reads {' and '.join(map(str, READABLE))}",
                hint="read it with the release that made it; versions.hintdistill in manifest.json names it",
            )
        if not isinstance(data.get("config"), dict):
            raise InputError(f"{self.path / 'manifest.json'} holds no configuration", hint=DAMAGED)
        if data.get("config_schema", 1) < CONFIG_SCHEMA:
            data["config"] = upgrade(data["config"], data.get("config_schema", 1))
        return data

    def _raw_manifest(self) -> dict[str, Any]:
        """Return the manifest as it is written; empty if there is none."""
        if not (self.path / "manifest.json").exists():
            return {}
        return dict(read_json(self.path / "manifest.json", dict, hint=DAMAGED))

    def config(self) -> tuple[RunConfig, list[str]]:
        """Return the configuration the run was made with, and the keys of an older schema that this release does not
        know.

        Paths of schema 1 are taken relative to the working directory, as they were then.

        Raises:
            InputError: see `manifest`.
            ConfigError: a value that this release does not take.
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
        """Return the run's config.yaml; from the manifest where a kill came between the two.

        Raises:
            InputError: see `manifest`.
        """
        path = self.path / "config.yaml"
        if not path.exists():
            write_atomic(path, yaml.safe_dump(self.manifest()["config"], sort_keys=False))
        return path

    def is_own(self) -> bool:
        """Return whether this user wrote the configuration of the run on this machine; see `core/trust.py`."""
        raw = self._raw_manifest()
        return is_signed(raw.get("config"), raw.get("signature"))

    def _refuse_links(self) -> None:
        """Raise InputError for a folder from elsewhere in which a link, a pipe or a device stands where files are written."""
        for at, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                path = Path(at) / name
                if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode):
                    raise InputError(
                        f"{path} is not an ordinary file, and {self.path} was not written by you on this machine",
                        hint="copy the folder with its links followed (`cp -rL`), or delete what is none of its files",
                    )

    def note(self, **values: Any) -> None:
        """Set top-level values of the manifest, e.g. `model`, `prompts` or `formats`."""
        manifest = self.manifest() | {"config_schema": CONFIG_SCHEMA} | values
        if self.is_own():
            # keys of before were translated
            manifest["signature"] = sign(manifest["config"])
        write_atomic(self.path / "manifest.json", json.dumps(manifest, indent=1))

    def store(self, name: str) -> JsonlStore:
        """Return the rows of `name`.jsonl."""
        return JsonlStore(self.path / f"{name}.jsonl")

    def set_index(self, stage: str, keys: Sequence[str]) -> None:
        """Say which rows of a stage are current, in order."""
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
        """Yield the current rows of a stage, in order, one at a time; none if it has not finished.

        Raises:
            InputError: the file lacks a row that the stage made, or one is damaged.
        """
        keys = self.index(stage)
        if not keys:
            return
        rows = self.rows(store)
        for _, row in rows.each(keys):
            if row is None:
                lacking = [k for k in keys if k not in rows]
                raise InputError(
                    f"{self.store(store).path} lacks {len(lacking)} rows that {stage} made, the first {lacking[0]}",
                    hint=REPAIR,
                )
            yield row

    def current(self, stage: str, store: str) -> list[dict[str, Any]]:
        """Return the current rows of a stage, in order, all in memory; see `each`."""
        return list(self.each(stage, store))

    def on_disk(self, stage: str, store: str) -> Lazy[dict[str, Any]]:
        """Return the current rows of a stage, in order; read again each time they are walked, see `each`."""
        return Lazy(lambda: self.each(stage, store), len(self.index(stage) or ()))

    def grouped(self, stage: str, store: str, field: str = "trace") -> Grouped:
        """Return the current rows of a stage by one of their fields. Raises InputError if the file lacks one."""
        return self.rows(store).grouped(self.index(stage) or (), field)


def config_hash(data: Mapping[str, Any]) -> str:
    """Hash of a configuration as a manifest holds it, without the keys that say where a run works."""
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
    """A folder that goes with the context, with what the run folder `of` holds of the stages before training."""
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

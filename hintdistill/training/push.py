"""Publish the student's folder to a hub, through a setting (`train.push`) or a command; off by default.

The hub is huggingface.co, or the one that HF_ENDPOINT names. Only the student's folder is sent; it contains no trace.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hintdistill.core.errors import ConfigError, InputError, ServiceError
from hintdistill.training.checksums import FILE as CHECKSUMS


def hub() -> str:
    """Return the hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def check_push(repository: str | None) -> None:
    """Raise an error before any work if a push could not succeed. None means no push.

    Raises:
        ConfigError: the hub does not accept the name, or there is no token; the message names the host.
    """
    if repository is None:
        return
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    host = urlsplit(hub()).hostname
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ConfigError(f"train.push: {error}", hint="give the name of a repository, e.g. me/my-student") from None
    if not get_token():
        raise ConfigError(
            f"the student should be pushed to {repository} on {host}, but there is no token for it",
            hint="run `hf auth login` or set HF_TOKEN; train.push=null keeps the student here",
        )


def push_student(student: Path, repository: str, private: bool = True) -> str:
    """Upload the student's folder and return the address of the commit. A missing repository is created, private unless
    told otherwise. Names of this machine's folders are not sent; `path/to/the/initial/model` replaces them.

    Raises:
        InputError: there is no student.
        ConfigError: see `check_push`.
        ServiceError: the hub cannot be reached or refuses the upload.
    """
    if not (student / "config.json").is_file():
        raise InputError(f"no student at {student}", hint="`hintdistill train` creates one")
    return upload(repository, _published(student), private, what="the student", where=student)


def upload(
    repository: str,
    files: Iterable[tuple[str, str | bytes]],
    private: bool,
    *,
    what: str,
    where: Path,
    dataset: bool = False,
) -> str:
    """Upload files by their names on the hub, each given as a path or as bytes; return the address of the commit.

    Args:
        what: what is uploaded, for messages; `where`: its place on this machine.
        dataset: whether the repository contains data instead of a model.

    Raises:
        ConfigError: see `check_push`.
        ServiceError: the hub cannot be reached or refuses the upload.
    """
    check_push(repository)
    from huggingface_hub import CommitOperationAdd, HfApi

    api, kind = HfApi(endpoint=hub()), "dataset" if dataset else "model"
    said = what.removeprefix("the ").capitalize()
    try:
        name = api.create_repo(repository, private=private, exist_ok=True, repo_type=kind).repo_id
        added = [CommitOperationAdd(rel, content) for rel, content in files]
        commit = api.create_commit(name, added, commit_message=f"{said} of a hintdistill run", repo_type=kind)
    except Exception as error:
        raise ServiceError(
            f"{urlsplit(hub()).hostname} did not accept {what} for {repository}: {error}",
            hint=f"{'they are' if what.endswith('s') else 'it is'} at {where}; `hintdistill push` tries again",
        ) from error
    return str(commit.commit_url)


LOCAL_NAMES = frozenset({"base_model_name_or_path", "name_or_path", "_name_or_path", "base", "adapter"})
"""Keys of a student's JSON files that may name a folder on this machine."""


def _published(student: Path) -> Iterator[tuple[str, str | bytes]]:
    """Yield every file of the student's folder by its name on the hub, as its path, or as text if a folder's name was
    removed."""
    for path in sorted(p for p in student.rglob("*") if p.is_file() and p.name != CHECKSUMS):
        name = path.relative_to(student).as_posix()
        if path.name in ("adapter_config.json", "config.json", "hintdistill.json"):
            data = json.loads(path.read_text(encoding="utf-8"))
            clean = _without_folders(data)
            if clean != data:
                yield name, (json.dumps(clean, indent=2, sort_keys=True) + "\n").encode()
                continue
        yield name, str(path)


def _without_folders(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _without_folders(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_folders(v, key) for v in value]
    if key in LOCAL_NAMES and isinstance(value, str) and Path(value).is_absolute():
        return "path/to/the/initial/model"
    return value

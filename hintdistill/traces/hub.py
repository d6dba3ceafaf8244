"""Data sets of the Hugging Face hub, streamed: `hf://owner/name?split=train&revision=main`.

A copy that is already on this machine is read without network access; with `HF_HUB_OFFLINE` set, every set is read that
way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from hintdistill.core.errors import InputError
from hintdistill.traces.tables import plain_row

SCHEME = "hf://"
KEYS = ("split", "revision", "config")


@dataclass(frozen=True)
class HubSet:
    """Describe a data set on the hub, or the part of it that is read."""

    name: str
    split: str | None = None
    """The split to read; None reads every split."""
    revision: str | None = None
    config: str | None = None


def is_hub_set(path: Any) -> bool:
    """Return whether a path names a data set on the hub."""
    return str(path).startswith(SCHEME)


def hub_set(path: str) -> HubSet:
    """Return the data set that a path names.

    Raises:
        InputError: the path does not have the form `owner/name`, or has an unknown key after the `?`.
    """
    name, _, query = path.removeprefix(SCHEME).removeprefix("datasets/").partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(given.keys() - set(KEYS))
    if unknown or name.count("/") != 1 or not all(name.split("/")):
        what = f"unknown key {unknown[0]!r}" if unknown else f"{name!r} does not have the form owner/name"
        raise InputError(f"{path}: {what}", hint="hf://owner/name?split=train&revision=main&config=default")
    return HubSet(name, given.get("split"), given.get("revision"), given.get("config"))


def hub_rows(wanted: HubSet) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the split, the row number counted from 1, and the row, one row at a time.

    Raises:
        InputError: `datasets` is not installed.
        OSError: the set cannot be read; the message says why.
    """
    try:
        import datasets
    except ImportError:
        raise InputError("reading a data set from the hub needs a package", hint="pip install datasets") from None
    copy = _local_copy(wanted)
    try:
        loaded = datasets.load_dataset(
            copy or wanted.name,
            name=wanted.config,
            revision=None if copy else wanted.revision,
            split=wanted.split,
            streaming=True,
        )
        parts = {wanted.split: loaded} if wanted.split is not None else dict(loaded)
        for split, rows in parts.items():
            for number, row in enumerate(rows, 1):
                yield str(split), number, plain_row(row)
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(f"the data set {wanted.name} cannot be read: {error}") from None


def _local_copy(wanted: HubSet) -> str | None:
    """Return the folder of a copy that was downloaded earlier; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return snapshot_download(wanted.name, repo_type="dataset", revision=wanted.revision, local_files_only=True)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None

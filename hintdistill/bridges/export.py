"""Write a run's targets as a folder that another trainer reads, with a data card (`hintdistill export`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.bridges.card import CARD, describe, write_card
from hintdistill.bridges.check import as_json, check, lines, require_close
from hintdistill.bridges.formats import ExportJob, Format, format_named
from hintdistill.bridges.narrow import Tail
from hintdistill.bridges.runs import open_rows
from hintdistill.core.errors import ConfigError
from hintdistill.core.registry import nearest


@dataclass(frozen=True)
class ExportSettings:
    """Set how much of each token's target an export keeps."""

    k: int | None = None
    """Number of ids per token, including the sampled one; None for all stored ids."""
    tail: str | None = None
    """Treatment of the rest; None for the format's default."""

    @classmethod
    def parse(cls, overrides: Sequence[str]) -> ExportSettings:
        """Return the settings from `k=…` and `tail=…`. Raises ConfigError for any other key or value."""
        found: dict[str, str] = {}
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals or key not in ("k", "tail"):
                raise ConfigError(f"export takes k=… and tail=…, not {text!r}{nearest(key, ('k', 'tail'))}")
            found[key] = value
        k: int | None = None
        if found.get("k") not in (None, "all"):
            if not found["k"].isdecimal() or int(found["k"]) < 1:
                raise ConfigError(f"k={found['k']} is not a number of ids per token", hint="k=20, or k=all")
            k = int(found["k"])
        return cls(k, found.get("tail"))


def export(
    run: Path,
    form: Format | str,
    settings: ExportSettings | None = None,
    *,
    out: Path | None = None,
    licence: str | None = None,
    checked: bool = False,
    trust: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Path, dict[str, Any]]:
    """Write a run's targets in a format, and return the folder and its card.

    Args:
        out: the folder; default `RUN/export/FORMAT`. An earlier export in it is replaced.
        licence: licence of the rows.
        checked: whether to compare the loss of some rows by the format's formula with the toolkit's; see `check`.
        trust: see `runs.open_rows`.

    Raises:
        ConfigError: the format does not support these settings or weights, or the folder contains something else.
        InputError: there are no targets, or a row's loss differs by more than is allowed; nothing is written then.
    """
    form, settings = format_named(form) if isinstance(form, str) else form, settings or ExportSettings()
    tail: Tail = form.require_tail(settings.tail)
    folder = run / "export" / form.name if out is None else out
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_export(folder))):
        raise ConfigError(f"{folder} contains something that is not an export", hint="choose another folder with --out")
    found = open_rows(run, settings.k, tail, trust=trust)
    aside = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        job = ExportJob(found.rows, found.section, found.ctx.config.run.seed, aside, tail)
        card = describe(found, form, settings.k, tail, licence) | {"written": form.writer().write(job)}
        if checked:
            results = check(found, form, job, settings.k)
            for line in lines(results, form):
                say(line)
            require_close(results, form)
            card["check"] = as_json(results)
        write_card(aside, card)
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder, card


def is_export(folder: Path) -> bool:
    """Return whether the folder was written by an export."""
    path = folder / CARD
    if not path.is_file():
        return False
    data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return "targets_sha256" in data

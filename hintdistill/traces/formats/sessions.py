"""HAR captures and sessions of further coding agents (Copilot CLI, Cursor, `codex exec`, `claude -p` streams),
converted through ATIF.

The package `atif-make` does the conversion and needs Python 3.12; without it such a file is refused with that reason.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.formats import atif
from hintdistill.traces.options import Failure, ReadOptions, Record

NAME = "sessions"
SCOPE: Literal["file"] = "file"


def fits(value: Any) -> bool:
    """Return whether the record is a HAR log, or a line of one of the sessions."""
    return _kind(value) is not None


def _kind(value: Any) -> str | None:
    """Return atif-make's name for the file format that a value belongs to."""
    if not isinstance(value, dict):
        return None
    log, what, message = value.get("log"), value.get("type"), value.get("message")
    if isinstance(log, dict) and isinstance(log.get("entries"), list):
        return "har"
    if what == "system" and value.get("subtype") == "init" and isinstance(value.get("session_id"), str):
        return "claude-code-stream"
    if what == "thread.started" and isinstance(value.get("thread_id"), str):
        return "codex-exec"
    if isinstance(what, str) and (what.startswith(("session.", "assistant.")) or what == "user.message"):
        return "copilot-cli"
    if (
        value.get("role") in ("user", "assistant")
        and isinstance(message, dict)
        and "role" not in message
        and "content" in message
    ):
        return "cursor-agent-transcript"
    return None


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield the traces that atif-make makes from the file. Raises TraceError if it is not installed or refuses the
    file."""
    try:
        import atif_make
    except ImportError:
        here = ".".join(map(str, sys.version_info[:2]))
        raise TraceError(
            f"{_kind(record.value[0])} is read through atif-make, which is not installed and needs Python 3.12 "
            f"(this is {here}): run pip install 'hintdistill[sessions]' there, or convert with `uvx atif-make "
            "FILE` and read the result"
        ) from None
    found = _kind(record.value[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{Path(record.source.file).stem}.{'har' if found == 'har' else 'jsonl'}"
        path.write_text("\n".join(json.dumps(v) for v in record.value), encoding="utf-8")
        try:
            trajectory, _ = atif_make.convert(path, found)
            made = trajectory.to_dict()
        except Exception as error:  # a library's parser on a file from outside: whatever it raises is its answer
            raise TraceError(f"atif-make cannot convert it as {found}: {error}") from None
    yield from atif.traces(Record(made, record.source), options)

"""The destination of recorders: a folder that `traces.path` can name. The data of a call is on disk when the call
returns."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError, TraceError
from hintdistill.recording.live import LiveTraces


class RecordingWarning(UserWarning):
    """Warn that a model call could not be recorded; the agent continued."""


class TraceSink:
    """Write to separate files: `trace-…` for each conversation, `calls-…` for records as received, `spans-…` for spans.

    It is safe to use from several threads. Every other process or sink has its own files.
    """

    def __init__(self, folder: str | Path) -> None:
        """Create the folder. Raises ConfigError if it is not writable."""
        self.folder = Path(folder)
        self.written = 0
        """Number of records on disk."""
        self.lost = 0
        """Number of model calls that a recorder could not write; see `failed`."""
        self._lock = threading.Lock()
        self._name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{id(self):x}"
        self._live = LiveTraces(self.folder, self._name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError("it is not writable")
        except OSError as error:
            raise ConfigError(f"traces cannot be recorded in {self.folder}: {error}") from error

    def path(self, kind: str = "calls") -> Path:
        """Return this sink's file for one kind of records."""
        return self.folder / f"{kind}-{self._name}.jsonl"

    def call(self, record: Mapping[str, Any]) -> None:
        """Add one model call to its conversation; a call that cannot be read is kept as received.

        Raises OSError, TypeError or ValueError if it cannot be written.
        """
        with self._lock:
            try:
                self._live.add(record)
                self.written += 1
                return
            except TraceError:
                pass
        self.append(record)

    def append(self, record: Mapping[str, Any], kind: str = "calls") -> None:
        """Write one record. Raises OSError, TypeError or ValueError if it cannot be written."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
        data = line.encode("utf-8", "surrogatepass")
        with self._lock, self.path(kind).open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            self.written += 1

    def failed(self, error: BaseException) -> None:
        """Count a record that could not be made or written, and warn. Never raises, even if warnings are errors."""
        with self._lock:
            self.lost += 1
            first = self.lost == 1
        if first:
            try:
                text = f"a model call was not recorded: {type(error).__name__}: {error}"
                warnings.warn(text, RecordingWarning, stacklevel=3)
            except RecordingWarning:
                return

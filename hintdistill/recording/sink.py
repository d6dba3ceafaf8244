"""Where recorders write: a folder that `traces.path` can name. What a call has handed over is on disk when it returns."""

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
    """A model call could not be recorded; the agent went on."""


class TraceSink:
    """Writes to files of its own: `trace-…` for each conversation, `calls-…` for records as they come, `spans-…` for spans.

    Safe to use from several threads. Another process, or another sink, has files of its own.
    """

    def __init__(self, folder: str | Path) -> None:
        """Make the folder. Raises ConfigError if it cannot be written to."""
        self.folder = Path(folder)
        self.written = 0
        """Records on disk."""
        self.lost = 0
        """Model calls that a recorder could not write; see `failed`."""
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
        """Return the file of this sink for one kind of records."""
        return self.folder / f"{kind}-{self._name}.jsonl"

    def call(self, record: Mapping[str, Any]) -> None:
        """Take up one model call in its conversation; one that cannot be read is kept as a record as it came.

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
        """Count a record that could not be made or written, and warn. Never raises, also where warnings are errors."""
        with self._lock:
            self.lost += 1
            first = self.lost == 1
        if first:
            try:
                text = f"a model call was not recorded: {type(error).__name__}: {error}"
                warnings.warn(text, RecordingWarning, stacklevel=3)
            except RecordingWarning:
                return

"""`hintdistill serve` on the shipped student, as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from conftest import ROOT, STUDENT


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Serve:
    """The server; `stop` asks it to end as a supervisor does."""

    def __init__(
        self, folder: Path, *options: str, model: str = str(STUDENT), env: dict[str, str] | None = None
    ) -> None:
        self.port, self.log, self.traces = free_port(), folder / "log", folder / "traces"
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(Path(sys.executable).with_name("hintdistill")), "serve", model, "--port", str(self.port)]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--traces", str(self.traces), *options],
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **(env or {})},
            )

    def wait(self) -> Serve:
        """Until it answers. Raises RuntimeError with the end of its log."""
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"the server did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait(60)

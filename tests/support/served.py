"""The one server of the real vLLM for all tests of tests/vllm, and the models they are about."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from conftest import STUDENT, TOOLWORLD

CRITIC = TOOLWORLD / "critic"
CONTEXT = 8192
"""Tokens of the engine in process."""


class Server:
    """The student behind vLLM's OpenAI-compatible server, under two names, in a process group of its own."""

    def __init__(self, log: Path, *more: str, env: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start it. `more`: further arguments; `env`: further variables."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}/v1", log
        arguments = [
            "--model",
            str(STUDENT),
            "--served-model-name",
            "critic",
            "student",
            "--port",
            str(self.port),
            "--host",
            "127.0.0.1",
            "--max-model-len",
            "16384",
            "--dtype",
            "float32",
            "--max-logprobs",
            "64",
            "--worker-extension-cls",
            "hintdistill.rollouts.vllm_worker.PackedKernels",
            "--structured-outputs-config",
            '{"backend": "xgrammar", "disable_any_whitespace": true}',
            *more,
        ]
        # the development mode has the calls that load new weights
        env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1", **env}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError with the end of its log."""
        for _ in range(1200):
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"vLLM did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """All its processes, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

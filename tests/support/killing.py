"""Kill the installed command at a moment that its run folder tells."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

from conftest import ROOT
from support.command import COMMAND, ENV


def kill_when(reached: Callable[[], bool], *args: str, look_every: float = 0.005) -> None:
    """Start the command in a process of its own and kill it (SIGKILL) as soon as `reached()`, which is asked `look_every` seconds.

    Fails where the command ends before that, with the end of its error stream.
    """
    process = subprocess.Popen([*COMMAND, *args], env=ENV, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, (
            f"the moment was never reached: {process.stderr.read().decode()[-2000:]}"
        )
        time.sleep(look_every)
    process.send_signal(signal.SIGKILL)
    process.wait()

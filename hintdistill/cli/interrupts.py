"""Handling of Ctrl-C: an interrupted run prints the command that continues it."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError
from hintdistill.core.threads import stop_all

_working: tuple[Path, str] | None = None
"""The run folder of this command, and the message that says how to continue it."""


@contextmanager
def works_in(folder: Path, line: str) -> Iterator[None]:
    """Print `line`, which says how to continue, if the command is interrupted while it works in this run folder."""
    global _working
    _working = (folder, line)
    yield
    # only a run that came to its end forgets it: the message is made after an error has left this block
    _working = None


@contextmanager
def continued_by(folder: Path, *words: str) -> Iterator[None]:
    """Say after any stop of the command that `hintdistill` with these words continues the run."""
    from hintdistill.pipeline.continuing import ends_as_ctrl_c

    line = f"Continue with: {shlex.join(['hintdistill', *words])}"
    with works_in(folder, line), ends_as_ctrl_c():
        try:
            yield
        except Exception as error:
            # what was asked for wrongly is not continued
            if not isinstance(error, ConfigError):
                error.add_note(line)
            raise


def interrupted() -> str:
    """Return the message to print after Ctrl-C or a termination signal."""
    if _working is None or not (_working[0] / "manifest.json").is_file():
        return "interrupted"
    return f"interrupted; finished work is kept in {_working[0]}. {_working[1]}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the first Ctrl-C stop the work and cancel requests to servers, and the second one exit at once.

    Exiting on the second signal is as safe as being killed. Only the main thread of a process receives signals; in
    other threads nothing changes.
    """
    global _working
    _working = None

    def first(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, second)
        stop_all()
        raise KeyboardInterrupt

    def second(number: int, frame: Any) -> None:
        os.write(2, (interrupted() + "\n").encode("utf-8", "replace"))
        os._exit(130)

    try:
        before = signal.signal(signal.SIGINT, first)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        # after Ctrl-C the process ends, and a second one may come until it has
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, before)

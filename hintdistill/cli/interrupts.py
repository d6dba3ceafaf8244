"""Ctrl-C, and the command that continues: what a run says when it ends before its end."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hintdistill.core.threads import stop_all

_working: tuple[Path, str] | None = None
"""The run folder of this command, and the command that continues it."""


def continuing(arguments: Sequence[str], folder: Path) -> str:
    """The command that continues the run of this command line (without the program's name) in `folder`."""
    kept = [a for a in arguments if a != "--resume" and not a.startswith("run.dir=")]
    resume = ["--resume"] if kept[:1] == ["run"] else []
    return shlex.join(["hintdistill", *kept, f"run.dir={folder}", *resume])


@contextmanager
def works_in(folder: Path) -> Iterator[None]:
    """While the command works in this run folder, an early end says how to continue it."""
    global _working
    _working = (folder, continuing(sys.argv[1:], folder))
    yield
    # only a run that came to its end forgets it: the message is made after an error has left this block
    _working = None


def how_to_continue() -> str:
    """The folder and the command, empty where the command left no run folder behind."""
    if _working is None or not (_working[0] / "manifest.json").is_file():
        return ""
    folder, command = _working
    return f"{folder} keeps what is done; this continues it:\n  {command}"


def interrupted() -> str:
    """What is said after Ctrl-C."""
    more = how_to_continue()
    return f"interrupted; {more}" if more else "interrupted"


@contextmanager
def interruptible() -> Iterator[None]:
    """The first Ctrl-C stops the work and cancels what is asked of servers; a second one leaves at once.

    Whatever the second one cuts off is as safe as after a kill. Only the main thread of a process gets signals; elsewhere
    nothing changes.
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

"""Messages of a run while it works: progress, notes and warnings, on the error stream.

On a terminal progress is shown as a bar, elsewhere as a line every 30 seconds. Both show the completed and the total
amount, the rate, the remaining time, and figures about the work itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from hintdistill.reporting import printable

Advance = Callable[[int], None]
EVERY_S = 30.0
"""Seconds between two lines of progress if there is no terminal."""


class Work:
    """A counted piece of work; call it with the amount newly done.

    The rate covers only work done in this process: earlier work (`before`) took no time here. It is measured up to the
    last advance, so that work done in batches does not seem to slow down during a batch.
    """

    def __init__(self, label: str, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.label, self.total, self._clock = label, total, clock
        self.done = self._there = 0
        self._began = self._last = clock()
        self._said: str | None = None

    def __call__(self, n: int) -> None:
        """Count `n` more as done."""
        self.done, self._last = self.done + n, self._clock()

    def before(self, n: int) -> None:
        """Count `n` items that an earlier run did."""
        self.done, self._there = self.done + n, self._there + n

    def reach(self, done: int, total: int) -> None:
        """Set the completed and the total amount, if they are counted elsewhere.

        The first call starts the clock: everything done by then was done during the setup or by an earlier run.
        """
        first, self.total = self.total is None, total
        if first:
            self.before(done)
            self._began = self._last = self._clock()
        else:
            self(done - self.done)

    def says(self, text: str | None) -> None:
        """Set the figures about the work itself that are shown."""
        self._said = text

    @property
    def rate(self) -> float | None:
        """Return items per second; None if nothing was done yet."""
        seconds = self._last - self._began
        return (self.done - self._there) / seconds if seconds > 0 and self.done > self._there else None

    @property
    def left_s(self) -> float | None:
        """Return the seconds until all is done at this rate; None if the total or the rate is unknown."""
        if self.total is None or self.rate is None:
            return None
        return max(0.0, (self.total - self.done) / self.rate - (self._clock() - self._last))

    def status(self) -> str:
        """Return a text with done of total, rate, time left, and figures about the work."""
        parts = [f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"]
        if self.total:
            parts[0] += f" ({self.done / self.total:.0%})"
        if self.rate is not None:
            parts.append(_per_time(self.rate))
        if self.left_s is not None:
            parts.append(f"{_duration(self.left_s)} left")
        said = "" if self._said is None else f"; {self._said}"
        return ", ".join(parts) + said


class Readings:
    """Hold the figures shown during training: its loss, and the movement of decision tokens since the first reading."""

    def __init__(self, says: Callable[[str], None]) -> None:
        self._says = says
        self._first: float | None = None

    def add(self, logs: Mapping[str, float]) -> None:
        """Add the readings of a logging step; see docs/metrics.md."""
        parts = [f"loss {logs['loss']:.3g}"] if "loss" in logs else []
        now = logs.get("decision_probability")
        if now is not None:
            self._first = now if self._first is None else self._first
            parts.append(f"decision tokens {self._first:.3f} → {now:.3f}")
        if parts:
            self._says(", ".join(parts))


def _per_time(rate: float) -> str:
    for unit, seconds in (("s", 1), ("min", 60)):
        if rate * seconds >= 1:
            return f"{rate * seconds:,.1f}/{unit}"
    return f"{rate * 3600:,.1f}/h"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    clock = f"{whole % 3600 // 60}:{whole % 60:02}"
    return clock if whole < 3600 else f"{whole // 3600}:{clock.zfill(5)}"


class _Status(ProgressColumn):
    """Show the text of `Work.status`, which may change without an advance."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def render(self, task: Task) -> Text:
        """Return the state of the work as text."""
        return Text(printable(self._work.status()))


class Console:
    """Print messages through rich; with `quiet`, only warnings."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = RichConsole(stderr=True, highlight=False)
        self.quiet = quiet
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(escape(printable(text)), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line and keep it for the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.console.print(f"[yellow]warning:[/] {escape(printable(text))}", soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Work]:
        """Show the progress of a piece of work; call the yielded `Work` with the amount newly done."""
        work = Work(label, total)
        if self.quiet:
            yield work
        elif self.console.is_terminal:
            with self._bar(work):
                yield work
        else:
            with self._lines(work):
                yield work

    @contextmanager
    def _bar(self, work: Work) -> Iterator[None]:
        """Show a bar that is redrawn several times a second, and removed at the end."""
        columns = (TextColumn("{task.description:>10}"), _Bar(work, bar_width=20), _Status(work))
        with Progress(*columns, console=self.console, transient=True) as bar:
            bar.add_task(escape(printable(work.label)), total=None)
            yield

    @contextmanager
    def _lines(self, work: Work) -> Iterator[None]:
        """Print a line every `EVERY_S` seconds, even without progress."""
        over = threading.Event()

        def speak() -> None:
            while not over.wait(EVERY_S):
                self.note(f"{work.label}: {work.status()}")

        speaker = threading.Thread(target=speak, name="progress", daemon=True)
        speaker.start()
        try:
            yield
        finally:
            over.set()
            speaker.join()


class _Bar(BarColumn):
    """Draw a bar directly from the work; it pulses while the total is unknown."""

    def __init__(self, work: Work, bar_width: int) -> None:
        super().__init__(bar_width=bar_width)
        self._work = work

    def render(self, task: Task) -> ProgressBar:
        """Return the bar in its current state."""
        task.total, task.completed = self._work.total, self._work.done
        return super().render(task)

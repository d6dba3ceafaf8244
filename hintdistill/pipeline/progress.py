"""What a run says while it works: progress bars, notes and warnings, on the error stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hintdistill.reporting import printable

Advance = Callable[[int], None]


class Console:
    """Speaks through rich; `quiet` keeps only warnings."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = RichConsole(stderr=True, highlight=False)
        self.quiet = quiet
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        """A line for the reader."""
        if not self.quiet:
            self.console.print(escape(printable(text)), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line for the reader that is also kept for the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.console.print(f"[yellow]warning:[/] {escape(printable(text))}", soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:
        """A progress bar; call the yielded function with how much was done."""
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        hidden = self.quiet or not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as bar:
            task = bar.add_task(escape(label), total=total)
            yield lambda n: bar.advance(task, n)

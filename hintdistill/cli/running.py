"""Code that the commands which run stages share: choosing the folder, continuing a run, and printing the result."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hintdistill.cli.interrupts import works_in
from hintdistill.cli.look import print_json, say
from hintdistill.core.errors import ConfigError

if TYPE_CHECKING:
    from hintdistill.pipeline.dry_run import DryRun
    from hintdistill.pipeline.progress import Console


@dataclass(frozen=True)
class Asked:
    """Hold the options of a command that are not part of the configuration."""

    until: str
    resume: bool
    quiet: bool
    as_json: bool
    trust: bool
    limit: int | None = None
    find: bool = False
    """Whether --resume without a run.dir searches for the only unfinished run of the config file."""
    shard: str | None = None
    """Which part of the run in run.dir to do, in the form of `--shard`."""
    dry_run: bool = False

    def settings(self, overrides: Sequence[str] | None) -> list[str]:
        """Return the given overrides, with --limit as one of them."""
        return [*(overrides or []), *([f"traces.limit={self.limit}"] if self.limit is not None else [])]

    def console(self) -> Console:
        """Return the console of the current command."""
        from hintdistill.pipeline.progress import Console

        return Console(quiet=self.quiet or self.as_json)


def run_stages(config: Path, overrides: list[str] | None, asked: Asked) -> None:
    """Run the stages of a config file, or of a run folder to continue, and print the result."""
    if asked.shard is not None:
        run_one_shard(config, overrides, asked)
        return
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.continuing import RUNS, command, line, only_unfinished, says_how_to_continue
    from hintdistill.pipeline.inject import require_some
    from hintdistill.pipeline.run import check_named_folder, run, run_folder
    from hintdistill.pipeline.store import RunDir
    from hintdistill.training.processes import is_main

    until, console, given = asked.until, asked.console(), list(overrides or [])
    of_run = RunDir(config).is_run()
    if of_run and not asked.resume:
        raise ConfigError(f"{config} is a run folder", hint=f"continue it with: {command(config, until)}")
    file = RunDir(config).settings_file() if of_run else config
    if asked.resume:
        check_named_folder(file, given)
    settings = load_config(file, asked.settings(given))
    named = any(o.startswith("run.dir=") for o in given)
    folder = config if of_run and not named else run_folder(settings, config.stem)
    if asked.resume and asked.find and settings.run.dir is None and not of_run:
        found = only_unfinished(config, until)
        if found is None:
            say(
                f"no unfinished run of {config} in {RUNS}; a run without --resume starts a new one", error=asked.as_json
            )
            return
        folder = found
        console.note(f"continues {folder}")
    if asked.dry_run:
        from hintdistill.pipeline.dry_run import dry_run

        look_ahead(dry_run(settings, until, folder=folder if asked.resume else None, trust=asked.trust), asked.as_json)
        return
    how = line(folder, until, asked.trust)
    with works_in(folder, how), says_how_to_continue(folder, until, trust=asked.trust):
        console.note(f"run folder {folder}; if it stops, continue with: {command(folder, until)}")
        own = None if of_run else file
        run(settings, folder, resume=asked.resume, until=until, console=console, trust=asked.trust, file=own)
    if not is_main():
        return
    finish(folder, asked.as_json)
    if until == "rescore":
        require_some(RunDir(folder))


def run_one_shard(config: Path, overrides: list[str] | None, asked: Asked) -> None:
    """Run the stages from critique onwards on one shard of the run in run.dir, and print the result."""
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.continuing import line, says_how_to_continue
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.shards import ENV, Shard, require_shardable, run_shard, take_own_device
    from hintdistill.pipeline.store import SHARDS, RunDir

    assert asked.shard is not None
    shard, given, of_run = Shard.parse(asked.shard), list(overrides or []), RunDir(config).is_run()
    file = RunDir(config).settings_file() if of_run else config
    limit = [f"traces.limit={asked.limit}"] if asked.limit is not None else []
    settings = load_config(file, given + limit)
    folder = config if of_run else settings.run.dir and Path(settings.run.dir)
    if not folder:
        raise ConfigError("--shard needs the folder that all shards share", hint="set it with run.dir=SHARED")
    require_shardable(settings, asked.until)
    if asked.shard == ENV:
        take_own_device()
    console, own = Console(quiet=asked.quiet or asked.as_json), folder / SHARDS / shard.folder
    with (
        works_in(own, line(own, asked.until, asked.trust)),
        says_how_to_continue(own, asked.until, trust=asked.trust),
    ):
        more = {} if of_run else {"file": str(file.resolve())}
        run_shard(settings, folder, shard, until=asked.until, context=more, console=console, trust=asked.trust)
    finish(own, asked.as_json)


def look_ahead(found: DryRun | dict[str, Any], as_json: bool) -> None:
    """Print what a command would do: a dry run, or the questions about labelled traces."""
    from hintdistill.pipeline.dry_run import asked_lines

    if as_json:
        print_json(found if isinstance(found, dict) else dataclasses.asdict(found))
    elif isinstance(found, dict):
        say("\n".join([f"traces: {found['traces']} with labels", *asked_lines(found["critics"], found["money"])]))
    else:
        say("\n".join(found.lines()))


def compare_runs(a: Path, b: Path, as_json: bool) -> None:
    """Compare the reports of two runs; the last line names the page."""
    from rich.console import Console as RichConsole

    from hintdistill.reporting.comparison import compare, write_comparison
    from hintdistill.reporting.terminal import show_comparison

    document = compare(a, b)
    if as_json:
        print_json(document)
        return
    show_comparison(document, RichConsole())
    print(f"comparison: {write_comparison(a, document)}")


def finish(folder: Path, as_json: bool) -> None:
    """Print the result of the run; the last line names the report."""
    report = folder / "report.json"
    if as_json:
        say(report.read_text(encoding="utf-8"))
        return
    from rich.console import Console as RichConsole

    if (folder / "rounds.json").is_file():
        from hintdistill.reporting.rounds import show_rounds

        show_rounds(json.loads(report.read_text(encoding="utf-8")), RichConsole())
        print(f"report: {report}")
        return
    from hintdistill.reporting.entries import read_document
    from hintdistill.reporting.terminal import show_summary

    document = read_document(report)
    show_summary(document, RichConsole())
    if document["findings"]:
        trained = " --trained" if any(f["trained"] for f in document["findings"]) else ""
        print(f"worst findings: hintdistill show {shlex.quote(str(folder))}{trained} --worst 20")
    html = folder / "report.html"
    print(f"report: {html if html.is_file() else report}")

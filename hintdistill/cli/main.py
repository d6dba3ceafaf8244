"""The command line: parse, call, print. No logic, and no torch at import.

Exit codes: 0 done, 1 a bug, 2 config or usage, 3 input, 4 empty funnel, 5 an outside service, 6 a tripwire,
130 interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hintdistill import __version__
from hintdistill.cli.clean import clean
from hintdistill.cli.config import config_app
from hintdistill.cli.controls import controls, preflight
from hintdistill.cli.interrupts import how_to_continue, interrupted, interruptible, works_in
from hintdistill.cli.look import Json, RunArg, convert, print_json, prompts_app, recipes_app, say, traces_app
from hintdistill.cli.plan import plan
from hintdistill.core.errors import ConfigError, HintdistillError, InputError

app = typer.Typer(
    name="hintdistill",
    help="Targeted hint-injection self-distillation: correct one step of an agent's trace and move nothing else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=(__doc__ or "").partition("\n\n")[2],
)
app.add_typer(prompts_app, name="prompts")
app.add_typer(traces_app, name="traces")
app.add_typer(recipes_app, name="recipes")
app.add_typer(config_app, name="config")
app.command()(convert)
app.command()(controls)
app.command()(preflight)
app.command()(plan)
app.command()(clean)

Config = Annotated[Path, typer.Argument(help="YAML file; see configs/.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, e.g. traces.limit=20", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, no progress.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _stages(
    config: Path,
    overrides: list[str] | None,
    until: str,
    resume: bool,
    quiet: bool,
    as_json: bool,
    limit: int | None = None,
) -> None:
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.run import check_named_folder, run_folder
    from hintdistill.pipeline.run import run as run_pipeline
    from hintdistill.training.processes import is_main

    extra = [f"traces.limit={limit}"] if limit is not None else []
    if resume:
        check_named_folder(config, overrides or [])
    settings = load_config(config, [*(overrides or []), *extra])
    folder = run_folder(settings, config.stem)
    with works_in(folder):
        run_pipeline(settings, folder, resume=resume, until=until, console=Console(quiet=quiet or as_json))
    if not is_main():
        return
    _finish(folder, as_json)
    if until == "rescore":
        from hintdistill.pipeline.inject import require_some
        from hintdistill.pipeline.store import RunDir

        require_some(RunDir(folder))


def _finish(folder: Path, as_json: bool) -> None:
    """Print what the run came to; the last line says where the report is."""
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
    from hintdistill.reporting.terminal import show_summary

    show_summary(json.loads(report.read_text(encoding="utf-8")), RichConsole())
    html = folder / "report.html"
    print(f"report: {html if html.is_file() else report}")


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in run.dir.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    until: Annotated[
        str, typer.Option(help="Last stage: read, critique, inject, rescore, train or report.")
    ] = "report",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N traces.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The whole job: read, critique, inject, rescore, train, report."""
    if not dry_run:
        _stages(config, overrides, until, resume, quiet, as_json, limit)
        return
    import dataclasses

    from hintdistill.config.file import load_config
    from hintdistill.pipeline.dry_run import dry_run as look_ahead

    extra = [f"traces.limit={limit}"] if limit is not None else []
    ahead = dataclasses.asdict(look_ahead(load_config(config, [*(overrides or []), *extra])))
    if as_json:
        print_json(ahead)
        return
    for name, value in ahead.items():
        print(f"{name.replace('_', ' ')}: {value}")


@app.command()
def critique(
    config: Config,
    overrides: Overrides = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Score the critic on labelled traces: Who&When, AgentProcessBench, AgentRx, or findings."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B", help="The same traces under two critics or prompts: run folders, configs or key=value."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print requests and tokens; ask nothing.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Read and critique; continues the run in run.dir."""
    if labels is None and compare is None and not dry_run:
        _stages(config, overrides, "critique", True, quiet, as_json)
        return
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.progress import Console

    settings, console = load_config(config, overrides or []), Console(quiet=quiet or as_json)
    if dry_run:
        from hintdistill.pipeline.dry_run import dry_run as look_ahead

        asked = look_ahead(settings, until="critique").critics
        text = [
            f"{name}: {a['requests']} requests, {a['prompt_tokens']} prompt tokens at most" for name, a in asked.items()
        ]
        print_json(asked) if as_json else print("\n".join(text))
        return
    if labels is not None:
        from hintdistill.critics.evaluation import lines
        from hintdistill.pipeline.labels import score_critics
        from hintdistill.pipeline.run import run_folder

        folder = run_folder(settings, f"{config.stem}-labels")
        result = score_critics(settings, labels, folder, console)
        print_json(result) if as_json else say("\n".join([*lines(result), f"written to {folder / 'evaluation.json'}"]))
        return
    from hintdistill.pipeline.compare import compare_lines, run_comparison

    assert compare is not None
    found = run_comparison(config, overrides or [], compare, console)
    print_json(found) if as_json else say("\n".join(compare_lines(found)))


@app.command()
def rescore(config: Config, overrides: Overrides = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Read, critique, inject and rescore; continues the run in run.dir."""
    _stages(config, overrides, "rescore", True, quiet, as_json)


@app.command()
def train(config: Config, overrides: Overrides = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Everything up to the trained student; continues the run in run.dir."""
    _stages(config, overrides, "train", True, quiet, as_json)


@app.command()
def report(
    run: RunArg,
    share: Annotated[bool, typer.Option("--share", help="Write report-share.json and .html: no trace text.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take the missing measurements and write the report of a run again."""
    if share:
        from hintdistill.pipeline.store import RunDir
        from hintdistill.reporting.share import write_shared

        written = write_shared(RunDir.open(run).path)
        say(written[0].read_text(encoding="utf-8") if as_json else "\n".join(map(str, written)))
        return
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.run import report_only

    report_only(run, Console(quiet=quiet or as_json))
    _finish(run, as_json)


@app.command()
def show(
    run: RunArg,
    which: Annotated[
        str | None, typer.Argument(metavar="[TRACE:STEP]", help="One finding.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """The findings of a run, or one of them with its tokens before, under the hint and after."""
    from rich.console import Console as RichConsole

    from hintdistill.pipeline.store import RunDir
    from hintdistill.reporting.terminal import show_finding, show_findings

    path = RunDir.open(run).path / "report.json"
    if not path.is_file():
        raise ConfigError(f"{run} has no report yet", hint=f"hintdistill report {run}")
    document = json.loads(path.read_text(encoding="utf-8"))
    if which is None:
        print_json(document["findings"]) if as_json else show_findings(document, RichConsole())
        return
    found = [x for x in document["findings"] if which in (f"{x['trace']}:{x['step']}", x["trace"])]
    if not found:
        raise ConfigError(f"no scored finding at {which!r} in {run}", hint=f"hintdistill show {run} lists them")
    if as_json:
        print_json(found)
        return
    for finding in found:
        show_finding(finding, RichConsole())


@app.command()
def push(
    run: RunArg,
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="Repository on the hub, e.g. me/my-student.", show_default=False)
    ],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Upload the student of a run to the Hugging Face hub, or to the one that HF_ENDPOINT names."""
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.run import push as push_student
    from hintdistill.pipeline.store import RunDir

    settings, _ = RunDir.open(run).config()
    print(push_student(settings, run, Console(quiet=True), repository, private=not public))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write into.", show_default=False)],
) -> None:
    """Write a config for your own traces, and the prompts to edit."""
    from hintdistill.cli.init import write_scaffold

    for path in write_scaffold(folder):
        print(path)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Option(help="Model folder to look at as well.")] = None, as_json: Json = False
) -> None:
    """What is installed, what will not work, and how to fix it."""
    import dataclasses

    from hintdistill.cli.doctor import diagnose

    checks = diagnose(model)
    if as_json:
        print_json([dataclasses.asdict(c) for c in checks])
    else:
        for c in checks:
            print(f"{c.status:>4}  {c.name}: {c.detail}" + (f"\n      → {c.fix}" if c.fix else ""))
    if any(c.status == "fail" for c in checks):
        raise typer.Exit(3)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def ablate() -> None:
    """Say where the ablation went, which was a command before."""
    raise ConfigError(
        "`hintdistill ablate` is a benchmark now, run from a checkout of the repository",
        hint="python -m benchmarks.ablation benchmarks/ablation/ablate.yaml; for your own run, hintdistill controls RUN",
    )


def main() -> None:
    """Entry point: turns declared errors into their message and exit code."""
    with interruptible():
        _main()


def _main() -> None:
    try:
        code = app(standalone_mode=False) or 0
        if code == 130:
            raise KeyboardInterrupt
        sys.exit(code)
    except HintdistillError as error:
        more = how_to_continue() if error.exit_code != ConfigError.exit_code else ""
        say(f"error: {error}" + (f"\n{more}" if more else ""), error=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        say(interrupted(), error=True)
        sys.exit(130)
    except OSError as error:
        # a path that cannot be read or written; what a run has on disk is whole, and `--resume` continues it
        where = f"{error.filename}: " if error.filename else ""
        more = how_to_continue()
        say(f"error: {where}{error.strerror or error}" + (f"\n{more}" if more else ""), error=True)
        sys.exit(InputError.exit_code)
    except Exception as error:
        usage = getattr(error, "show", None)
        if usage is None:
            raise
        usage()
        sys.exit(2)


if __name__ == "__main__":
    main()

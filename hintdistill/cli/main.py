"""The command line: parse, call, print. No logic, and no torch at import.

Exit codes: 0 done, 1 a bug, 2 config or usage, 3 input, 4 empty funnel, 5 an outside service, 6 a tripwire,
130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hintdistill import __version__
from hintdistill.cli.clean import clean
from hintdistill.cli.config import config_app
from hintdistill.cli.configs import configs_app
from hintdistill.cli.controls import controls, preflight
from hintdistill.cli.export import export
from hintdistill.cli.init import init
from hintdistill.cli.interrupts import continued_by, interrupted, interruptible
from hintdistill.cli.look import Json, RunArg, Trust, convert, print_json, prompts_app, recipes_app, say, traces_app
from hintdistill.cli.plan import plan
from hintdistill.cli.running import Asked, finish, run_stages
from hintdistill.cli.serve import mcp, serve
from hintdistill.cli.show import show
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
app.add_typer(configs_app, name="configs")
app.command()(convert)
app.command()(controls)
app.command()(preflight)
app.command()(plan)
app.command()(clean)
app.command()(export)
app.command()(serve)
app.command()(mcp)

Config = Annotated[
    Path, typer.Argument(help="YAML file, see configs/; with --resume also a run folder.", show_default=False)
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, e.g. traces.limit=20", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, no progress.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in run.dir, else the only unfinished one of CONFIG.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    until: Annotated[
        str, typer.Option(help="Last stage: read, critique, inject, rescore, train or report.")
    ] = "report",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N traces.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """The whole job: read, critique, inject, rescore, train, report."""
    if not dry_run:
        run_stages(config, overrides, Asked(until, resume, quiet, as_json, trust, limit, find=True))
        return
    import dataclasses

    from hintdistill.config.file import load_config
    from hintdistill.pipeline.dry_run import dry_run as look_ahead

    extra = [f"traces.limit={limit}"] if limit is not None else []
    ahead = dataclasses.asdict(look_ahead(load_config(config, [*(overrides or []), *extra]), trust=trust))
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
            metavar="A B",
            help="The same traces under two critics or prompts: run folders, configs, prompts or key=value.",
        ),
    ] = None,
    hints: Annotated[
        bool, typer.Option("--hints", help="With --labels: whether the hints of the findings repair their steps.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print requests and tokens; ask nothing.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Read and critique; continues the run in run.dir."""
    if labels is None and compare is None and not dry_run and not hints:
        run_stages(config, overrides, Asked("critique", True, quiet, as_json, trust))
        return
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.progress import Console

    if hints and (labels is None or compare is not None or dry_run):
        raise ConfigError("--hints goes with --labels alone", hint="score each side of a comparison with it by itself")
    if dry_run and compare is not None:
        raise ConfigError("--dry-run looks at one side", hint="leave --compare out; each side is a config or key=value")
    settings, console = load_config(config, overrides or []), Console(quiet=quiet or as_json)
    if dry_run:
        from hintdistill.pipeline.dry_run import dry_run as look_ahead
        from hintdistill.pipeline.labels import score_ahead

        asked = (
            look_ahead(settings, until="critique", trust=trust).critics
            if labels is None
            else score_ahead(settings, labels, console, trust=trust)
        )
        text = [
            f"{name}: {a['requests']} requests, {a['prompt_tokens']} prompt tokens at most" for name, a in asked.items()
        ]
        print_json(asked) if as_json else print("\n".join(text))
        return
    if labels is not None and compare is not None:
        from hintdistill.pipeline.labels_compare import compare_on_labels, comparison_lines

        found = compare_on_labels(config, overrides or [], labels, compare, console, trust=trust)
        print_json(found) if as_json else say("\n".join(comparison_lines(found)))
        return
    if labels is not None:
        from hintdistill.critics.evaluation import lines
        from hintdistill.pipeline.labels import score_critics, spent_lines
        from hintdistill.pipeline.run import run_folder

        folder = run_folder(settings, f"{config.stem}-labels")
        result = score_critics(settings, labels, folder, console, trust=trust, hints=hints)
        said = [*lines(result), *spent_lines(result), f"written to {folder / 'evaluation.json'}"]
        print_json(result) if as_json else say("\n".join(said))
        return
    from hintdistill.pipeline.compare import compare_lines, run_comparison

    assert compare is not None
    found = run_comparison(config, overrides or [], compare, console, trust=trust)
    print_json(found) if as_json else say("\n".join(compare_lines(found)))


@app.command()
def rescore(
    config: Config, overrides: Overrides = None, quiet: Quiet = False, as_json: Json = False, trust: Trust = False
) -> None:
    """Read, critique, inject and rescore; continues the run in run.dir."""
    run_stages(config, overrides, Asked("rescore", True, quiet, as_json, trust))


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    beside: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a run folder: another student from its targets, in RUN/students/NAME."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Everything up to the trained student; continues the run in run.dir."""
    if beside is not None:
        from hintdistill.pipeline.beside import train_beside
        from hintdistill.pipeline.progress import Console

        folder = train_beside(config, beside, overrides or [], Console(quiet=quiet or as_json), trust=trust)
        print_json({"student": str(folder)}) if as_json else print(f"student: {folder}")
        return
    run_stages(config, overrides, Asked("train", True, quiet, as_json, trust))


@app.command()
def report(
    run: RunArg,
    share: Annotated[bool, typer.Option("--share", help="Write report-share.json and .html: no trace text.")] = False,
    student: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Measure a student that was trained elsewhere, beside the run's own."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Take the missing measurements and write the report of a run again."""
    if student is not None:
        if share:
            raise ConfigError("--share is of the run's own report", hint="without --student")
        from hintdistill.pipeline.elsewhere import report_student
        from hintdistill.pipeline.progress import Console

        finish(report_student(run, student, Console(quiet=quiet or as_json), trust=trust), as_json)
        return
    if share:
        from hintdistill.pipeline.store import RunDir
        from hintdistill.reporting.share import write_shared

        written = write_shared(RunDir.open(run).path)
        say(written[0].read_text(encoding="utf-8") if as_json else "\n".join(map(str, written)))
        return
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.run import report_only

    with continued_by(run, "report", str(run), *(["--trust"] if trust else [])):
        report_only(run, Console(quiet=quiet or as_json), trust=trust)
    finish(run, as_json)


app.command()(show)


@app.command()
def verify(run: RunArg, as_json: Json = False) -> None:
    """Whether the bytes of a run folder are those that were written; what is damaged is moved to RUN/damaged."""
    from hintdistill.pipeline.continuing import command
    from hintdistill.pipeline.verify import verify as check

    found = check(run)
    if as_json:
        print_json([{"path": str(d.path), "what": d.what, "lines": list(d.lines), "redone": d.redone} for d in found])
    else:
        for damage in found:
            say(str(damage))
        said = f"{len(found)} damaged, now in {run / 'damaged'}; this makes them again: {command(run)}"
        say(said if found else f"{run}: everything is as it was written")
    if found:
        raise typer.Exit(3)


@app.command()
def push(
    run: RunArg,
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="Repository on the hub, e.g. me/my-student.", show_default=False)
    ],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    targets: Annotated[
        bool, typer.Option("--targets", help="Upload the targets, scanned for secrets, instead.")
    ] = False,
    text_free: Annotated[
        bool, typer.Option("--text-free", help="Of the targets, upload numbers alone: no token ids, no words.")
    ] = False,
    to: Annotated[str, typer.Option("--to", help="Format of the targets; see `export`.")] = "hf",
    licence: Annotated[str | None, typer.Option(help="Licence of the targets, for the data card.")] = None,
    trust: Trust = False,
) -> None:
    """Upload the student of a run, or its targets, to the Hugging Face hub, or to the one that HF_ENDPOINT names."""
    from hintdistill.bridges.publish import push_targets, require_flags

    require_flags(targets, text_free)
    if targets:
        where = push_targets(
            run, repository, form=to, text_free=text_free, private=not public, licence=licence, trust=trust
        )
        print(where)
        return
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.run import push as push_student
    from hintdistill.pipeline.store import RunDir

    settings, _ = RunDir.open(run).config()
    print(push_student(settings, run, Console(quiet=True), repository, private=not public))


app.command()(init)


@app.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(help="Configuration whose template, servers and traces to look at.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="Model folder to look at as well.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code that stands in the model folder run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What is installed, what will not work, and how to fix it; with a config, first what the student will not see."""
    import dataclasses

    from hintdistill.cli.doctor import diagnose
    from hintdistill.cli.doctor_config import config_checks
    from hintdistill.config.file import load_config

    checks = [] if config is None else config_checks(load_config(config, overrides or ()))
    checks += diagnose(model, trust_remote_code=trust_remote_code)
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
        say("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), error=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        say(interrupted(), error=True)
        sys.exit(130)
    except Exception as error:
        from hintdistill.core.storage import disk_trouble

        if (trouble := disk_trouble(error)) is not None:
            say("\n".join([f"error: {trouble}", *getattr(error, "__notes__", ())]), error=True)
            sys.exit(trouble.exit_code)
        if isinstance(error, OSError):
            # a path that cannot be read; what a run has on disk is whole, and `--resume` continues it
            where = f"{error.filename}: " if error.filename else ""
            said = f"error: {where}{error.strerror or error}"
            say("\n".join([said, *getattr(error, "__notes__", ())]), error=True)
            sys.exit(InputError.exit_code)
        usage = getattr(error, "show", None)
        if usage is None:
            raise
        usage()
        sys.exit(2)


if __name__ == "__main__":
    main()

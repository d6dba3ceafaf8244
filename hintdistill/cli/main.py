"""The command line: parse, call, print. It contains no logic and does not import torch.

Exit codes: 0 success, 1 bug, 2 configuration or usage error, 3 input error, 4 empty funnel, 5 external service error, 6
tripwire, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hintdistill import __version__
from hintdistill.cli.clean import clean
from hintdistill.cli.compare_recipes import compare_recipes
from hintdistill.cli.config import config_app
from hintdistill.cli.configs import configs_app
from hintdistill.cli.contexts import contexts_app
from hintdistill.cli.controls import controls, preflight
from hintdistill.cli.export import export
from hintdistill.cli.guide import InOrder, arrange
from hintdistill.cli.init import init
from hintdistill.cli.interrupts import continued_by, interrupted, interruptible
from hintdistill.cli.look import convert, print_json, prompts_app, recipes_app, say, traces_app
from hintdistill.cli.options import Json, Overrides, Quiet, RunArg, Trust
from hintdistill.cli.plan import plan
from hintdistill.cli.running import compare_runs, finish
from hintdistill.cli.serve import mcp, serve
from hintdistill.cli.shards import merge, ray
from hintdistill.cli.show import show
from hintdistill.cli.stages import critique, demo, rescore, run, train
from hintdistill.core.errors import ConfigError, HintdistillError, InputError
from hintdistill.core.library_warnings import silence_libraries

app = typer.Typer(
    name="hintdistill",
    help="Targeted hint-injection self-distillation: correct one step of an agent's trace and move nothing else.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=InOrder,
    epilog=(__doc__ or "").partition("\n\n")[2],
)
for group, name in (
    (configs_app, "configs"),
    (config_app, "config"),
    (traces_app, "traces"),
    (prompts_app, "prompts"),
    (recipes_app, "recipes"),
    (contexts_app, "contexts"),
):
    app.add_typer(group, name=name)
for command in (
    demo,
    init,
    convert,
    plan,
    run,
    critique,
    rescore,
    train,
    merge,
    ray,
    show,
    controls,
    compare_recipes,
    preflight,
    clean,
    export,
    serve,
    mcp,
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def report(
    run: RunArg,
    other: Annotated[
        Path | None, typer.Argument(metavar="[RUN_B]", help="A second run to compare with.", show_default=False)
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Write report-share.json and .html, without trace text.")
    ] = False,
    student: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Measure a student that was trained elsewhere."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Take missing measurements and write a run's report again; with two runs, compare their reports."""
    if other is not None:
        if share or student is not None:
            raise ConfigError(
                "a comparison of two runs cannot be changed by options", hint="leave out --share and --student"
            )
        compare_runs(run, other, as_json)
        return
    if student is not None:
        if share:
            raise ConfigError("--share applies only to the run's own report", hint="leave out --student")
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


@app.command()
def verify(run: RunArg, as_json: Json = False) -> None:
    """Check that the files of a run folder are unchanged since they were written; damaged parts are moved to
    RUN/damaged."""
    from hintdistill.pipeline.continuing import command
    from hintdistill.pipeline.verify import verify as check

    found = check(run)
    if as_json:
        print_json([{"path": str(d.path), "what": d.what, "lines": list(d.lines), "redone": d.redone} for d in found])
    else:
        for damage in found:
            say(str(damage))
        said = f"{len(found)} damaged, now in {run / 'damaged'}; recreate them with: {command(run)}"
        say(said if found else f"{run}: all files are unchanged since they were written")
    if found:
        raise typer.Exit(3)


@app.command()
def push(
    run: RunArg,
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="Repository on the hub, e.g. me/my-student.", show_default=False)
    ],
    public: Annotated[bool, typer.Option("--public", help="Make a newly created repository public.")] = False,
    targets: Annotated[
        bool, typer.Option("--targets", help="Upload the targets instead, after scanning them for secrets.")
    ] = False,
    text_free: Annotated[
        bool, typer.Option("--text-free", help="With --targets: upload only numbers, without token ids and text.")
    ] = False,
    to: Annotated[str, typer.Option("--to", help="Format of the targets; see `export`.")] = "hf",
    licence: Annotated[str | None, typer.Option(help="Licence of the targets, for the data card.")] = None,
    trust: Trust = False,
) -> None:
    """Upload the student of a run, or its targets, to the Hugging Face hub or to the hub that HF_ENDPOINT names."""
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


@app.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(help="Configuration whose template, servers and traces are checked.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="Model folder to check as well.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow code in the model folder to run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the installation for problems and say how to fix them; with a config, first list the parts of a trace that
    the student will not see."""
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
    """Name the replacement of this command, which an earlier release had."""
    raise ConfigError(
        "`hintdistill ablate` is now a benchmark that runs from a checkout of the repository",
        hint="run python -m benchmarks.ablation benchmarks/ablation/ablate.yaml; for your own run, use "
        "hintdistill controls RUN",
    )


arrange(app)


def main() -> None:
    """Run the command line and turn declared errors into messages and exit codes."""
    silence_libraries()
    with interruptible():
        _main()


def _main() -> None:
    try:
        code = app(standalone_mode=False, prog_name="hintdistill") or 0
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

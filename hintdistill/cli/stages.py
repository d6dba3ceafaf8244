"""The commands that run stages: `run`, `demo`, `critique`, `rescore` and `train`. They parse, call and print; they
contain no logic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hintdistill.cli.look import print_json, say
from hintdistill.cli.options import Config, DryRun, Json, Limit, Overrides, Quiet, Resume, Trust
from hintdistill.cli.running import Asked, look_ahead, run_stages
from hintdistill.cli.shards import ShardOption
from hintdistill.core.errors import ConfigError


def _stage_names(incomplete: str) -> list[str]:
    from hintdistill.pipeline.stages import STAGES

    return [name for name in STAGES if name.startswith(incomplete)]


Until = Annotated[
    str,
    typer.Option(help="Last stage: read, critique, inject, rescore, train or report.", autocompletion=_stage_names),
]


def run(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    until: Until = "report",
    limit: Limit = None,
    shard: ShardOption = None,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Run all stages: read, critique, inject, rescore, train, report."""
    asked = Asked(until, resume, quiet, as_json, trust, limit, find=resume, dry_run=dry_run, shard=shard)
    run_stages(config, overrides, asked)


def demo(
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    until: Until = "report",
    limit: Limit = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run all stages on the installed example: a tiny student, its traces and an LLM critic.

    It takes about three minutes on one processor core. It needs no GPU, no server and no download. It writes into
    `runs/`; the last line names the report.
    """
    from hintdistill.core.package_data import demo_config

    asked = Asked(until, resume, quiet, as_json, False, limit, find=resume, dry_run=dry_run)
    run_stages(demo_config(), overrides, asked)


def critique(
    config: Config,
    overrides: Overrides = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Evaluate the critic on labelled traces: Who&When, AgentProcessBench, AgentRx, or findings."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Compare two critics or prompts on the same traces: run folders, configs, prompts or key=value.",
        ),
    ] = None,
    hints: Annotated[
        bool,
        typer.Option("--hints", help="With --labels: measure whether the hints of the findings repair their steps."),
    ] = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    limit: Limit = None,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Run read and critique; continue the run in run.dir if there is one."""
    asked = Asked("critique", True, quiet, as_json, trust, limit, find=resume, dry_run=dry_run)
    if labels is None and compare is None and not hints:
        run_stages(config, overrides, asked)
        return
    if hints and (labels is None or compare is not None or dry_run):
        raise ConfigError(
            "--hints needs --labels and excludes --compare",
            hint="score each side of the comparison in a command of its own",
        )
    if dry_run and compare is not None:
        raise ConfigError(
            "--dry-run supports only one critic", hint="leave out --compare; each side is a config or key=value"
        )
    if resume:
        raise ConfigError(
            "--resume continues a run, but --labels and --compare do not belong to a run",
            hint="run.dir=FOLDER keeps their answers for later calls",
        )
    if labels is None:
        assert compare is not None
        _compare(config, asked.settings(overrides), compare, asked)
    else:
        _on_labels(config, asked.settings(overrides), labels, compare, hints, asked)


def _compare(config: Path, overrides: list[str], sides: tuple[str, str], asked: Asked) -> None:
    """Compare two critics or prompts on the same traces."""
    from hintdistill.pipeline.compare import compare_lines, run_comparison

    found = run_comparison(config, overrides, sides, asked.console(), trust=asked.trust)
    print_json(found) if asked.as_json else say("\n".join(compare_lines(found)))


def _on_labels(
    config: Path, overrides: list[str], labels: Path, compare: tuple[str, str] | None, hints: bool, asked: Asked
) -> None:
    """Compare one or two critics with labels, or say how many questions that would take."""
    from hintdistill.config.file import load_config

    settings, console = load_config(config, overrides), asked.console()
    if asked.dry_run:
        from hintdistill.pipeline.labels import score_ahead

        look_ahead(score_ahead(settings, labels, console, trust=asked.trust), asked.as_json)
    elif compare is not None:
        from hintdistill.pipeline.labels_compare import compare_on_labels, comparison_lines

        found = compare_on_labels(config, overrides, labels, compare, console, trust=asked.trust)
        print_json(found) if asked.as_json else say("\n".join(comparison_lines(found)))
    else:
        from hintdistill.critics.evaluation import lines
        from hintdistill.pipeline.labels import score_critics, spent_lines
        from hintdistill.pipeline.run import run_folder

        folder = run_folder(settings, f"{config.stem}-labels")
        result = score_critics(settings, labels, folder, console, trust=asked.trust, hints=hints)
        said = [*lines(result), *spent_lines(result), f"written to {folder / 'evaluation.json'}"]
        print_json(result) if asked.as_json else say("\n".join(said))


def rescore(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    limit: Limit = None,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Run read, critique, inject and rescore; continue the run in run.dir if there is one."""
    run_stages(config, overrides, Asked("rescore", True, quiet, as_json, trust, limit, find=resume, dry_run=dry_run))


def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    limit: Limit = None,
    beside: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Train another student from a run folder's targets, in RUN/students/NAME."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Run all stages up to train; continue the run in run.dir if there is one."""
    if beside is not None:
        from hintdistill.pipeline.beside import train_beside
        from hintdistill.pipeline.progress import Console

        if resume or dry_run or limit is not None:
            raise ConfigError(
                "--beside trains on the stored targets of a run", hint="leave out --resume, --dry-run and --limit"
            )
        folder = train_beside(config, beside, overrides or [], Console(quiet=quiet or as_json), trust=trust)
        print_json({"student": str(folder)}) if as_json else print(f"student: {folder}")
        return
    run_stages(config, overrides, Asked("train", True, quiet, as_json, trust, limit, find=resume, dry_run=dry_run))

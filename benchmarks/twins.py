"""Compare twins with simpler explanations of their effect: ten arms, equal hints, anchors, optimiser steps and loss mass.

    python benchmarks/twins.py [--dir runs/twins] [--quick] [--resume] [--pages] [key=value …]

Every arm trains on the same hints and anchors; they differ in what is held beside them (benchmarks/ablation/twin_arms.py). A
job's result is one file under the key of what made it; what is there is not done again. Writes twins.json and twins.md into the
folder, and with --pages the blocks of docs/twins_results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.ablation.jobs import Job  # noqa: E402
from benchmarks.ablation.twin_page import BLOCKS, blocks_of, document_of  # noqa: E402
from benchmarks.ablation.twin_run import TwinJob  # noqa: E402
from benchmarks.ablation.twin_settings import NAMES, TwinsConfig, batches_of, jobs_of, load_twins  # noqa: E402
from benchmarks.blocks import put  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from hintdistill.core.errors import ConfigError  # noqa: E402
from hintdistill.core.storage import write_atomic  # noqa: E402
from hintdistill.pipeline.arms import result_of, run_owed  # noqa: E402
from hintdistill.pipeline.progress import Console  # noqa: E402
from hintdistill.pipeline.stages import check_inputs  # noqa: E402
from hintdistill.pipeline.store import RunDir  # noqa: E402

CONFIG = ROOT / "benchmarks" / "ablation" / "twins.yaml"
PAGE = ROOT / "docs" / "twins_results.md"
PAGES = (*BLOCKS, "owed")
"""The blocks of the page."""


def run(config: TwinsConfig, folder: Path, *, resume: bool, console: Console) -> None:
    """Do what is owed, the most valuable arms first, and before an arm what it shares. Raises HintdistillError where a job failed."""
    check_inputs(config.run_part, "report")
    rundir = RunDir.create(folder, config.run_part, resume=resume)
    try:
        for label, jobs in batches_of(config):
            work = [TwinJob(config, folder, job) for job in jobs]
            run_owed(folder, work, label, console, processes=config.ablate.processes)
    finally:
        rundir.close()


def owed_words(config: TwinsConfig, folder: Path) -> str:
    """Return how many jobs are finished, and name the missing ones by arm, learning rate and seeds."""
    shared, arms = jobs_of(config)
    owed: dict[tuple[str, str], list[str]] = {}
    for job in arms:
        if result_of(folder, TwinJob(config, folder, job)) is None:
            rate = config.ablate.sweep.settings[job.setting or 0]["learning_rate"]
            owed.setdefault((NAMES[job.arm], f"{rate:g}"), []).append(str(job.seed))
    finished = len(arms) - sum(map(len, owed.values()))
    said = f"{finished} of {len(arms)} jobs are finished, and {len(shared)} more that the arms of a seed share."
    if not owed:
        return said
    lines = [f"- {arm}, rate {rate}: seed {', '.join(seeds)}" for (arm, rate), seeds in owed.items()]
    return "\n".join([f"{said} These are missing, in the order in which they will run:", "", *lines])


def summarise(config: TwinsConfig, folder: Path, pages: bool) -> str:
    """Write the document and its tables; returns these. Raises ConfigError where nothing is finished."""

    def done(jobs: list[Job]) -> list[dict]:
        found = (result_of(folder, TwinJob(config, folder, job)) for job in jobs)
        return [r for r in found if r is not None]

    shared, arms = (done(jobs) for jobs in jobs_of(config))
    if not shared or not arms:
        raise ConfigError(f"no arm of {folder} is finished")
    document = document_of(config, shared, arms)
    blocks = blocks_of(document, config) | {"owed": owed_words(config, folder)}
    text = "\n\n".join(f"## {name}\n\n{blocks[name]}" for name in PAGES)
    write_atomic(folder / "twins.json", json.dumps(document, indent=1, ensure_ascii=False))
    write_atomic(folder / "twins.md", text + "\n")
    if pages:
        for name in PAGES:
            put(PAGE, f"<!-- {name}: made by benchmarks/twins.py --pages -->", f"<!-- end of {name} -->", blocks[name])
    return text


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "twins")
    parser.add_argument("--quick", action="store_true", help="two arms, one seed, one round, few tasks")
    parser.add_argument("--resume", action="store_true", help="do what is owed in --dir")
    parser.add_argument("--pages", action="store_true", help="write the tables into docs/twins_results.md")
    parser.add_argument("--owed", action="store_true", help="list the jobs that are owed; run none")
    parser.add_argument("--summary", action="store_true", help="tables of what is finished; run no job")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(arguments)
    return exit_code(lambda: _asked(args))


def _asked(args: argparse.Namespace) -> None:
    config = load_twins(args.config, args.overrides, quick=args.quick)
    if args.owed:
        jobs = [TwinJob(config, args.dir, job) for group in jobs_of(config) for job in group]
        print("\n".join(j.name for j in jobs if result_of(args.dir, j) is None))
        return
    if not args.summary:
        run(config, args.dir, resume=args.resume, console=Console())
    print(summarise(config, args.dir, args.pages))


if __name__ == "__main__":
    sys.exit(main())

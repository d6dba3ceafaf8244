"""Run an ablation: `python -m benchmarks.ablation CONFIG [key=value …]`; see docs/evidence.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.ablation.ablate import ablate, owed_jobs, summarise_again
from benchmarks.ablation.scale import scaled
from benchmarks.ablation.settings import load_ablation
from hintdistill.core.errors import HintdistillError
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run_folder

OPTIONS = {
    "--quick": "four arms, two seeds, fewer tasks",
    "--full": "also regimes, critic noise and further arms",
    "--sweep": "first choose every arm's settings on validation tasks",
    "--resume": "do what is owed of the ablation in run.dir",
    "--preflight": "check settings and inputs and list the jobs that are owed; run none",
    "--summary": "table and figure of what is finished; run no job",
    "--quiet": "only warnings, no progress",
    "--json": "print the document as JSON",
}


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code, which means what hintdistill's mean."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file: a run config with an `ablate` section")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    for name, text in OPTIONS.items():
        parser.add_argument(name, action="store_true", help=text)
    args = parser.parse_intermixed_args(arguments)
    try:
        _run(args)
    except HintdistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; --resume continues", file=sys.stderr)
        return 130
    return 0


def _run(args: Any) -> None:
    settings = scaled(load_ablation(args.config, args.overrides), quick=args.quick, full=args.full, sweep=args.sweep)
    folder = run_folder(settings, args.config.stem)
    if args.preflight:
        owed = owed_jobs(settings, folder)
        print(json.dumps(owed) if args.json else "\n".join([*owed, f"{len(owed)} jobs are owed in {folder}"]))
        return
    if args.summary:
        document = summarise_again(folder)
    else:
        document = ablate(settings, folder, resume=args.resume, console=Console(quiet=args.quiet or args.json))
    if args.json:
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return
    print((folder / "evidence.md").read_text(encoding="utf-8"))
    print(f"evidence: {folder / 'evidence.md'}")


if __name__ == "__main__":
    sys.exit(main())

"""Run the controls of the quickstart: does the hint cause the fall of the decision token?

    python benchmarks/controls.py [RUN] [--pages]

Without RUN it first runs configs/quickstart.yaml. `--pages` writes the table and its figures into docs/controls.md. Last line:
one JSON object with the fall of each arm's decision tokens (nats) and its share of the hint's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from blocks import put

from hintdistill.reporting.controls import TITLES, interval

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- numbers: made by benchmarks/controls.py --pages -->", "<!-- end of numbers -->"


def block(document: dict[str, Any]) -> str:
    """The table of an arm a row, with the sentences whose numbers are of the same run."""
    equal, held = document["equal"], document["heldout"]
    lines = [
        f"{equal['rows']} hint rows, {equal['anchors']} anchors and {equal['steps']} optimiser steps per arm at a learning rate of "
        f"{document['learning_rate']:g}; {held['findings']} held-out findings whose error has probability "
        f"{held['probability_before']:.3f} before training and {held['probability_hinted']:.3f} under the hint.",
        "",
        "| trained on | distinct rows | probability after | fall, nats | share of the hint's | KL on clean steps |",
        "|---|---|---|---|---|---|",
    ]
    for arm in document["arms"]:
        title = TITLES[arm["arm"]]
        if arm["not_read"] is not None:
            lines.append(f"| {title} | {arm['distinct']['hint']} | {arm['not_read']} | | | |")
            continue
        share, kl = arm["share_of_hint"], arm["kl_per_token"]
        lines.append(
            f"| {title} | {arm['distinct']['hint']} | {arm['probability_after']:.3f} | {interval(arm['fall_nats'])} | "
            f"{interval(share) if share else '–'} | {'–' if kl is None else format(kl, '.4f')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a finished run; without one the quickstart is run first")
    parser.add_argument("--pages", action="store_true", help="write docs/controls.md")
    args = parser.parse_args()
    folder = args.run
    if folder is None:
        folder = ROOT / "runs" / f"controls-{int(time.time())}"
        command = [sys.executable, "-m", "hintdistill.cli", "run", "configs/quickstart.yaml", f"run.dir={folder}"]
        subprocess.run(command, check=True, cwd=ROOT)
    subprocess.run([sys.executable, "-m", "hintdistill.cli", "controls", str(folder), "--resume"], check=True)
    document = json.loads((folder / "controls.json").read_text(encoding="utf-8"))
    if args.pages:
        put(ROOT / "docs" / "controls.md", BEGIN, END, block(document))
    read = [arm for arm in document["arms"] if arm["not_read"] is None]
    print(json.dumps({arm["arm"]: {"fall": arm["fall_nats"], "share": arm["share_of_hint"]} for arm in read}))


if __name__ == "__main__":
    main()

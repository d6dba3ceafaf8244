"""One of several processes of `test_training_processes.py`: train the cases of a folder one after the other.

`python processes_worker.py FOLDER NAME...`; FOLDER holds cases.pkl, and each case gets NAME/metrics.jsonl and NAME/student.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

from hintdistill.training import processes
from hintdistill.training.reward import NO_OUTCOME
from hintdistill.training.stage import TrainData, TrainJob, train


class Broken(Exception):
    """What a case asks for that must fail."""


def run_case(folder: Path, name: str, case: dict[str, Any]) -> None:
    """Train one case; `breaks` = (process, step) fails there, `stops` leaves the run at that step as a kill would,
    `in` goes on in the folder of another case."""
    here = folder / case.get("in", name)

    def progress(step: int, total: int) -> None:
        if case.get("breaks") == (int(os.environ.get("RANK", "0")), step):
            raise Broken(f"process {os.environ['RANK']} at step {step}")
        if step == case.get("stops"):
            raise StopIteration

    try:
        train(
            TrainJob(
                case["model"],
                TrainData(case["targets"], watch=case["watch"], outcome=case.get("outcome", NO_OUTCOME)),
                case["run"],
                case["train"],
                here,
                here / "student",
                name,
            ),
            progress=progress,
        )
    except StopIteration:
        # all of them stop after the same step
        assert not (here / "student").exists()


if __name__ == "__main__":
    root = Path(sys.argv[1])
    cases = pickle.loads((root / "cases.pkl").read_bytes())
    for which in sys.argv[2:]:
        run_case(root, which, cases[which])
    processes.leave()

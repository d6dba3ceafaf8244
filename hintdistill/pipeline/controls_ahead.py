"""`hintdistill controls RUN --dry-run`: list the arms that would be trained and the amount of work; nothing is written
and no weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.pipeline.arms import result_of, seconds_per_step
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.controls import ARMS, ArmRun, Bench, ControlsSettings, checked
from hintdistill.pipeline.dry_run import student_bytes
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir


def controls_ahead(
    folder: Path, settings: ControlsSettings, arms: Sequence[str] = ARMS, *, resume: bool = False, trust: bool = False
) -> dict[str, Any]:
    """Return the work that `run_controls` would do. Raises the errors that it raises before training.

    Returns:
        `arms` without a result and `finished` ones; `hints`, `anchors` and optimiser `steps` per arm; `tokens`, the
        approximate number in the rows of all `arms`; `money` (0, or None if a critic on a server judges corrections);
        `bytes` of weights that are written and removed again; `seconds`, if the run has trained.
    """
    config = checked(folder, settings, arms, resume)
    with in_use(config, trust):
        bench = Bench(RunContext(config, RunDir(folder), Console(quiet=True)), settings)
        jobs = [ArmRun(bench, arm) for arm in bench.arms(ARMS) if arm.name in (*arms, "hint")]
        owed = [job.name for job in jobs if result_of(bench.folder, job) is None]
        budget = bench.budget
        mean = sum(len(t.context_ids) + len(t.step_ids) for t in bench.trained) / len(bench.trained)
        per_step = seconds_per_step(folder)
    return {
        "arms": owed,
        "finished": [job.name for job in jobs if job.name not in owed],
        "hints": budget.rows,
        "anchors": budget.anchors,
        "steps": budget.steps,
        "tokens": round(len(owed) * mean * (budget.rows + budget.anchors)),
        "money": None if "sft_corrected" in owed and _asks_a_server(config) else 0.0,
        "bytes": len(owed) * (student_bytes(config) or 0),
        "seconds": None if per_step is None else len(owed) * budget.steps * per_step,
    }


def _asks_a_server(config: RunConfig) -> bool:
    sections = {"llm": config.critic.llm, "strong": config.critic.strong}
    return any(of.backend == "server" for name, of in sections.items() if name in config.critic.use)


def ahead_lines(found: dict[str, Any]) -> list[str]:
    """Return the same as lines of text."""
    done = f" (already finished: {', '.join(found['finished'])})" if found["finished"] else ""
    each = f"{found['hints']} hints, {found['anchors']} anchors, {found['steps']} optimiser steps"
    money = "unknown, because a critic on a server judges corrections" if found["money"] is None else "0"
    lines = [
        f"arms: {', '.join(found['arms']) or 'none'}{done}",
        f"each: {each}",
        f"tokens: about {found['tokens']:,} in the rows of all arms",
        f"money: {money}",
        f"bytes: {found['bytes']:,} of weights would be written and removed again",
    ]
    if found["seconds"] is not None:
        lines.append(f"time: about {max(1, round(found['seconds'] / 60))} minutes of training")
    return lines

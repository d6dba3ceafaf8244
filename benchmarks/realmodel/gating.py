"""Measure the gate on a real model's fresh errors: findings of the split `test`, on which no threshold was chosen.

benchmarks/gate.py measures; this plays what it reads, in parts that are not played again, and writes the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gate
from benchmarks.ablation.markdown import table
from benchmarks.realmodel import play
from benchmarks.realmodel.plan import ROOT
from hintdistill.config import GateSection, RunConfig
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.storage import content_key, writing_aside
from hintdistill.rollouts.evaluate import tasks_of
from hintdistill.traces.formats import native

SPLIT, PART, SEED = "test", 30, 0
KINDS = {
    "generic": "placebo: generic",
    "shuffled_answer_free": "placebo: shuffled, answer-free",
    "other_class": "placebo: another class's hint",
    "other_tool": "wrong: confident hint for another listed tool",
    "one_off": "wrong: right hint, one step off",
}


def collect(config: RunConfig, folder: Path, n: int, overrides: Sequence[str]) -> None:
    """Play `n` tasks and measure the findings in them; what is there is neither played nor measured again."""
    parts = list(_played(config, folder, n))
    paths = "[" + ",".join(str(p.resolve()) for p in parts) + "]"
    own = [
        f"run.model={config.run.model}",
        f"traces.path={paths}",
        "inject.candidates=4",
        "run.rounds=null",
        *overrides,
    ]
    gate.collect(
        argparse.Namespace(
            config=ROOT / "configs" / "real.yaml",
            overrides=own,
            checker=f"{ROOT / 'examples' / 'smollm2' / 'errands.py'}:check",
            wordings=None,
            out=_rows(config, folder),
            limit=None,
            max_new_tokens=config.rollout.max_new_tokens,
        )
    )


def _drawn_from(config: RunConfig) -> str:
    """Hash of the model and of how it is sampled: files of others are not read."""
    weights = model_key(resolve_model(str(config.run.model))).weights
    return content_key(config.rollout.sample.model_dump(mode="json"), config.run.dtype, weights)[:8]


def _rows(config: RunConfig, folder: Path) -> Path:
    return folder / f"rows-{_drawn_from(config)}.jsonl"


def _played(config: RunConfig, folder: Path, n: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    world, out = None, []
    sampled = _drawn_from(config)
    for at in range(0, n, PART):
        path = folder / f"{SPLIT}-{sampled}-{at}-{min(at + PART, n)}.jsonl"
        if not path.is_file():
            world = world or play.World.load(config)
            tasks = tasks_of(world.suite, SPLIT, n)[at : at + PART]
            with writing_aside(path) as aside:
                native.write(aside, [e.trace for e in world.plain(tasks, SEED) if e.failure is None])
        out.append(path)
    return out


def table_of(config: RunConfig, folder: Path) -> str | None:
    """The tables of what is measured; None where nothing is."""
    path = _rows(config, folder)
    if not path.is_file():
        return None
    read = gate.read_half(gate.load([path]), GateSection())
    return "\n\n".join([_passing(read), _choice(read["choice"]), _auc(read)])


def _passing(read: Mapping[str, Any]) -> str:
    good, useless = read["hints_that_repair"], read["hints_that_do_not"]
    lines = [
        ["hints that repair the step when decoded", str(good["n"]), _share(good["accepted"]), "at least .75", "1.00"],
        ["hints that do not", str(useless["n"]), _share(useless["accepted"]), "", "0.00"],
    ]
    for kind, said in KINDS.items():
        if (found := read["by_arm"].get(kind)) is not None:
            bound = "at most .10" if kind in gate.NULLS else ""
            of = " of those that pass" if said.startswith("placebo") and "repair" in found else ""
            lines.append([said, str(found["n"]), _share(found["accepted"]), bound, _share(found.get("repair")) + of])
    return table(["what stands above the step", "n", "accepted", "bound", "repairs when decoded"], lines)


def _choice(read: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        [level, str(of["findings"]), _share(of["winner"]), _share(of["random"])] for level, of in sorted(read.items())
    ]
    return table(["level", "findings with several hints", "winner by odds repairs", "random candidate repairs"], lines)


def _auc(read: Mapping[str, Any]) -> str:
    said = {k: _share(v) for k, v in read["auc"].items()}
    return (
        f"{read['findings']} findings; {_share(read['repaired_without_a_hint'])} come out right when decoded greedily without a hint. "
        f"Hints that repair against placebos, area under the curve: odds {said['odds']}, odds beyond the placebos' "
        f"{said['odds_over_placebos']}, fall of the error {said['fall']}; among hints, those that repair against those that do not, odds "
        f"{said['odds_among_hints']}."
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"

"""A run with twins, killed while it makes twins, scores them or trains on them, resumes to the same artefacts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.command import hintdistill
from support.killing import kill_when
from support.twinnable import TWINNABLE

from hintdistill.rescoring.store import TargetStore

SETTINGS = (
    *TWINNABLE,
    "train.twins.per_finding=2",
    "train.epochs=1",
    "train.save_steps=2",
    "rescore.top_k=8",
    "rescore.part_rows=12",
    "run.threads=1",  # rows of two processes are compared bit by bit
)


def lines(folder: Path, name: str) -> list[dict]:
    path = folder / f"{name}.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


KILL_WHEN = {
    "twins": lambda f: (f / "twins.jsonl").exists() and (f / "twins.jsonl").read_bytes().count(b"\n") > 3,
    "rescore": lambda f: len(list((f / "targets").glob("part-*.parquet"))) >= 2,
    "train": lambda f: any((f / "train").glob("*/checkpoint-*/trainer_state.json")),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A file that sets nothing: the settings are overrides."""
    path = tmp_path_factory.mktemp("config") / "twins.yaml"
    path.write_text("run: {seed: 0}\n")
    return str(path)


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins") / "straight"
    hintdistill("run", config, "-q", f"run.dir={folder}", *SETTINGS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILL_WHEN)
def test_killed_with_twins_it_resumes_to_the_same_artefacts(moment, config, straight, tmp_path):
    folder = tmp_path / "run"
    kill_when(lambda: KILL_WHEN[moment](folder), "run", config, "-q", f"run.dir={folder}", *SETTINGS, look_every=0.002)
    assert not (folder / "report.json").exists()
    if moment == "twins":
        # what a kill in the middle of a write leaves behind
        with (folder / "twins.jsonl").open("ab") as file:
            file.write(b'{"key": "torn')
    hintdistill("run", config, "-q", "--resume", f"run.dir={folder}", *SETTINGS)
    for name in ("injections", "twins"):
        ours, theirs = ({row["key"]: row for row in lines(f, name)} for f in (folder, straight))
        assert ours == theirs and ours, name
    ours, theirs = ({t.key: t for t in TargetStore(f / "targets").read()} for f in (folder, straight))
    assert ours.keys() == theirs.keys() and any(t.kind == "twin" and t.accepted for t in ours.values())
    for key, target in ours.items():
        assert (target.accepted, target.reasons, target.span) == (
            theirs[key].accepted,
            theirs[key].reasons,
            theirs[key].span,
        )
        assert np.array_equal(target.plain_sampled, theirs[key].plain_sampled)
        assert np.array_equal(target.context_ids, theirs[key].context_ids)
    weights, others = (load_file(f / "student" / "model.safetensors") for f in (folder, straight))
    assert all(torch.equal(weights[k], others[k]) for k in weights)
    reports = [json.loads((f / "report.json").read_text())["twins"] for f in (folder, straight)]
    assert reports[0] == reports[1]

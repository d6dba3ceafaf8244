"""`hintdistill clean`: what goes, what stays, and that a run goes on without what went."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import STUDENT, TOOLWORLD
from support.command import hintdistill

SMALL = [
    "configs/quickstart.yaml",
    "critic.use=[rules,recorded]",
    "traces.limit=12",
    "train.epochs=1",
    "train.save_steps=1",
    "train.keep_checkpoints=2",
    "rollout.environment=null",
    "report.off_target={}",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "run"
    assert STUDENT.is_dir() and TOOLWORLD.is_dir()
    hintdistill("run", *SMALL, "-q", f"run.dir={folder}")
    return folder


def test_checkpoints_go_and_nothing_is_lost(run):
    (run / "student.writing").mkdir()
    (run / "student.writing" / "half").write_bytes(b"x" * 10)
    checkpoints = list(run.glob("train/*/checkpoint-*"))
    said = json.loads(hintdistill("clean", str(run), "--dry-run", "--json").stdout)
    assert {i["path"] for i in said["items"]} == {str(p) for p in [*checkpoints, run / "student.writing"]}
    assert checkpoints and all(p.exists() for p in checkpoints) and not said["deleted"]
    size = said["bytes"]
    assert f"{size / 1e6:.1f} MB  free" in hintdistill("clean", str(run)).stdout
    assert not any(p.exists() for p in checkpoints) and not (run / "student.writing").exists()
    weights = (run / "student" / "model.safetensors").stat().st_mtime_ns
    hintdistill("run", *SMALL, "-q", "--resume", f"run.dir={run}")
    assert (run / "student" / "model.safetensors").stat().st_mtime_ns == weights, "nothing is trained again"


def test_targets_go_on_request_only(run):
    (item,) = json.loads(hintdistill("clean", str(run), "--targets", "--dry-run", "--json").stdout)["items"]
    assert item["path"] == str(run / "targets") and "score again" in item["loses"]


def test_bfloat16_is_compared_with_float32(run, tmp_path, monkeypatch):
    """A model that counts as large: `auto` takes bfloat16, says how far that is, and trains float32 weights under it."""
    from hintdistill.core import machine

    monkeypatch.setattr(machine, "SMALL", 1000)
    monkeypatch.setattr(machine, "cpu_has_bfloat16", lambda: True)
    folder = tmp_path / "run"
    done = hintdistill("run", *SMALL, f"run.dir={folder}")
    found = json.loads((folder / "report.json").read_text())["run"]["precision"]
    assert found["dtype"] == "bfloat16" and 0 < found["kl_per_token"] < 0.05 and found["tokens"] > 20
    assert "run.dtype=auto chose bfloat16" in done.stderr
    exact = json.loads((run / "report.json").read_text())
    assert exact["run"]["precision"] is None
    from safetensors.torch import load_file

    weights = load_file(folder / "student" / "model.safetensors")
    assert all(w.dtype == torch.float32 for w in weights.values())
    other = load_file(run / "student" / "model.safetensors")
    assert max((weights[n] - other[n]).abs().max().item() for n in weights) < 1e-2
    assert "training moved the decision token by" in done.stdout

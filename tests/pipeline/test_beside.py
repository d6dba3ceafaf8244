"""`hintdistill train RUN --beside NAME`: several students from the targets of one rescoring."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.command import hintdistill
from support.exported import scored_run

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError
from hintdistill.pipeline.beside import _same_targets, train_beside
from hintdistill.pipeline.progress import Console


def test_what_the_targets_depend_on_is_refused(tmp_path):
    """Before anything is read."""
    for name, overrides, said in (
        ("../x", [], "is not a valid folder name"),
        ("a", ["rescore.top_k=8"], "rescore.top_k=8 is not a training setting"),
    ):
        with pytest.raises(ConfigError, match=said):
            train_beside(tmp_path, name, overrides, Console(quiet=True))
    plain = {"run": {"model": "m"}, "traces": {"path": ["x.jsonl"]}}
    own = RunConfig.model_validate(plain)
    for train, key in (
        ({"recipe": {"teacher": {"update": "live"}}, "targets": "in_step"}, "train.recipe.teacher, train.targets"),
        ({"anchor": {"candidates": 9}}, "train.anchor.candidates"),
        ({"hold": {"path": ["x.jsonl"]}}, "train.hold"),
    ):
        with pytest.raises(ConfigError, match=f"^{key} changes"):
            _same_targets(own, RunConfig.model_validate({**plain, "train": train}))
    _same_targets(own, RunConfig.model_validate({**plain, "train": {"lora": {"rank": 4}, "epochs": 9}}))


def sums(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.slow
def test_two_adapters_from_one_rescoring(tmp_path):
    run = scored_run(tmp_path / "run")
    targets = sums(run / "targets")
    fast = ["train.epochs=1", "train.learning_rate=1e-3", "train.save=adapter"]
    for name, rank in (("four", 4), ("eight", 8)):
        done = hintdistill("train", str(run), "--beside", name, f"train.lora.rank={rank}", *fast)
        assert str(run / "students" / name) in done.stdout
    assert sums(run / "targets") == targets and not (run / "student").exists()
    four, eight = (run / "students" / n / "adapter_model.safetensors" for n in ("four", "eight"))
    assert four.stat().st_size < eight.stat().st_size
    before = sums(run / "students")
    hintdistill("train", str(run), "--beside", "four", "train.lora.rank=4", *fast)
    assert sums(run / "students") == before

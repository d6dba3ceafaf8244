"""The benchmark of methods: what its arms train, which rate is taken, and what its page says. A whole small one is
`python benchmarks/methods.py --small`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.methods import ARMS, BEGIN, END, PAGE, SFT, Setting, best_rates, page
from hintdistill.recipes.changes import changes

SETTING = Setting(Path("nowhere"), None, False, (1e-4, 2e-4), 60, 128)


@dataclass(frozen=True)
class Job:
    """A job as the choice of a rate sees it."""

    arm: str
    rate: float

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.rate:g}"

    def key(self) -> str:
        return "key"


def test_every_arm_trains_as_itself_and_gkd_waits_for_its_teacher(tmp_path):
    assert SETTING.arms == [a for a in ARMS if a != "gkd"]
    with_teacher = Setting(tmp_path, tmp_path, False, (1e-4,), 60, 128)
    assert "gkd" in with_teacher.arms
    for arm in with_teacher.arms:
        config = with_teacher.config(arm)
        recipe = config.train.effective_recipe
        assert recipe.name == ARMS[arm][1] and changes(recipe, config.inject.hint, config.inject.steps) == ()
        assert ("twin" in {t.rows for t in recipe.terms.values()}) == (arm == "targeted"), arm
    assert with_teacher.config("gkd").train.effective_recipe.teacher.model == str(tmp_path)


def test_a_rate_is_chosen_where_all_of_an_arms_rates_are_read(tmp_path):
    setting = Setting(tmp_path, None, False, (1e-4, 2e-4), 60, 128)
    jobs = [Job("hint_sd", 1e-4), Job("hint_sd", 2e-4), Job("sdft", 1e-4), Job("sdft", 2e-4)]
    for job, success in zip(jobs[:3], (0.5, 0.7, 0.9), strict=True):
        folder = tmp_path / "results" / job.name
        folder.mkdir(parents=True)
        row = {"key": "key", "failed": None, "success": success, "near": {"maker": 0.5}}
        (folder / "result.json").write_text(json.dumps(row))
    assert best_rates(setting, jobs) == {"hint_sd": 2e-4}, "one rate of sdft is owed"


def test_the_page_says_what_is_there_and_what_is_not():
    row = {"failed": None, "success": 0.5, "near": {"maker": 0.25, "test": 0.75}, "kl": 0.01, "seconds": 9.0}
    rows = [
        row | {"arm": "hint_sd"},
        row | {"arm": "hint_sd", "success": 0.7},
        row | {"arm": SFT, "success": 0.9, "kl": None},
        row | {"arm": "opsd", "failed": "the loss is nan"},
    ]
    text = page(SETTING, rows, {"hint_sd": 2e-4, SFT: 1e-4, "opsd": 1e-4}, ["sdft-0.0001-0-validation"])
    lines = text.splitlines()
    assert lines[2] == "| SFT on hinted corrections | 0.0001 | 1 | 0.900 | 0.250 | 0.750 | – | 9 |"
    assert lines[3] == "| HINT-SD | 0.0002 | 2 | 0.600 ±0.141 | 0.250 ±0.000 | 0.750 ±0.000 | 0.0100 | 9 |"
    assert (
        "Without a result: targeted, with twins, SDPO with feedback, SDFT, OPSD, RLCSD, GKD from a larger student."
        in text
    )
    assert "Missing: 1 jobs" in text and "60 optimiser steps" in text
    assert page(SETTING, [], {}, []).startswith("Not measured yet.")


@pytest.mark.parametrize("mark", [BEGIN, END])
def test_the_page_has_its_place(mark):
    assert PAGE.read_text(encoding="utf-8").count(mark) == 1

"""`hintdistill compare-recipes`: its arms, what it says of them, and a whole small comparison."""

from __future__ import annotations

import json

import pytest
from rich.console import Console as RichConsole

from hintdistill.config.file import load_as, load_config
from hintdistill.core.errors import ConfigError
from hintdistill.pipeline.compare_recipes import RecipeArm, ahead, compare_recipes, parse_arms
from hintdistill.pipeline.controls import ControlsSettings
from hintdistill.pipeline.progress import Console
from hintdistill.reporting.recipes import markdown, remarks, show_recipes

SETTINGS = ["critic.use=[rules]", "rollout.environment=null", "traces.limit=80", "traces.holdout=0.3"]


def config_of(recipe: str | None):
    return load_config("configs/quickstart.yaml", [*SETTINGS, *([f"train.recipe={recipe}"] if recipe else [])])


def test_arms_are_recipes_at_rates():
    arms = parse_arms(["targeted", "hint_sd@1e-5", "hint_sd@5e-05"])
    assert [a.name for a in arms] == ["targeted", "hint_sd@1e-05", "hint_sd@5e-05"]
    assert arms[0] == RecipeArm("targeted") and arms[1].rate == 1e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["targeted"], "at least two recipes"),
        (["targeted", "hint_sdd"], "hint_sd"),
        (["targeted@fast", "hint_sd"], "not a learning rate"),
        (["targeted@-1", "hint_sd"], "greater than 0"),
        (["hint_sd@1e-5", "hint_sd@0.00001"], "is given twice"),
    ],
)
def test_what_is_no_arm_is_said(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_arms(words)


def test_what_a_recipe_lacks_is_said_before_anything_runs(tmp_path):
    arms, settings = parse_arms(["targeted", "rock_freeze"]), ControlsSettings(steps=3)
    for call in (ahead, compare_recipes):
        with pytest.raises(ConfigError, match="frozen_ids"):
            call(config_of, tmp_path / "out", arms, settings)
    assert not (tmp_path / "out").exists()


def document() -> dict:
    arm = {
        "arm": "targeted",
        "recipe": "targeted",
        "called": "targeted",
        "lowers_error": "yes",
        "learning_rate": 2e-4,
        "distinct": {"hint": 9},
        "not_read": None,
        "probability_after": 0.125,
        "fall_nats": {"mean": 1.5, "low": 1.0, "high": 2.0},
        "kl_per_token": 0.00125,
        "train_seconds": 12.4,
        "seconds": 15.0,
    }
    stopped = arm | {
        "arm": "rlsd@1",
        "recipe": "rlsd",
        "called": "rlsd",
        "lowers_error": "no",
        "not_read": "the loss is nan",
    }
    changed = arm | {"arm": "sdft", "recipe": "sdft", "called": "sdft, changed: the teacher reads feedback, not demo"}
    held = {"findings": 7, "accepted": 5, "probability_before": 0.9, "probability_hinted": 0.1}
    equal = {"rows": 16, "steps": 4}
    return {
        "schema": 1,
        "equal": equal,
        "heldout": held,
        "clean": {"heldout_clean": 8},
        "arms": [arm, stopped, changed],
    }


def test_the_page_and_the_table_say_what_must_be_said(capsys):
    page = markdown(document())
    assert "| `targeted` | 0.0002 | 9 | 0.125 | 1.50 (1.00…2.00) | 0.00125 | 12 |" in page
    assert "16 hint rows and 4 optimiser steps" in page and "No environment was played." in page
    said = remarks(document())
    assert said == [
        "rlsd@1 does not lower an error token because the teacher does",
        "rlsd@1 has no result: the loss is nan",
        "sdft is sdft, changed: the teacher reads feedback, not demo",
    ]
    show_recipes(document(), RichConsole(width=200))
    shown = capsys.readouterr().out
    assert all(line in shown for line in said) and "0.125" in shown


@pytest.mark.slow
def test_a_small_comparison_resumes_job_by_job(tmp_path):
    settings = load_as(ControlsSettings, None, ["rows=8", "steps=3", "clean_steps=4"])
    arms = parse_arms(["targeted", "hint_sd@1e-3"])
    out, quiet = tmp_path / "out", Console(quiet=True)
    first = compare_recipes(config_of, out, arms, settings, console=quiet)
    assert [(a["arm"], a["rows"], a["steps"]) for a in first["arms"]] == [("targeted", 8, 3), ("hint_sd@0.001", 8, 3)]
    assert first["arms"][0]["anchors"] > 0 and first["arms"][1]["learning_rate"] == 1e-3
    assert all(a["kl_per_token"] >= 0 and a["train_seconds"] > 0 for a in first["arms"])
    assert not list((out / "arms").rglob("*.safetensors")), "trained weights are removed"
    assert json.loads((out / "compare.json").read_text()) == first and "`hint_sd`" in (out / "compare.md").read_text()
    with pytest.raises(ConfigError, match="already exists"):
        compare_recipes(config_of, out, arms, settings, console=quiet)
    results = {p: p.stat().st_mtime_ns for p in (out / "results").rglob("result.json")}
    again = out / "results" / "targeted" / "result.json"
    again.unlink()
    second = compare_recipes(config_of, out, arms, settings, resume=True, console=quiet)
    assert {p for p, t in results.items() if p.stat().st_mtime_ns != t} == {again}
    timed = ("seconds", "train_seconds", "cpu_seconds")
    strip = [[{k: v for k, v in a.items() if k not in timed} for a in d["arms"]] for d in (first, second)]
    assert strip[0] == strip[1]

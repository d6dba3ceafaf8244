"""What the train stage says of its recipe before anything trains."""

from __future__ import annotations

import pytest

from hintdistill.config.file import load_config
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.train import say_what_trains
from hintdistill.recipes.changes import rollouts
from hintdistill.reporting.build import gate_of, recipe_said


def context(tmp_path, *settings: str) -> RunContext:
    return RunContext(load_config("configs/quickstart.yaml", list(settings)), RunDir(tmp_path), Console(quiet=True))


@pytest.mark.parametrize(
    ("settings", "name", "called"),
    [
        (["train.recipe=hint_sd"], "hint_sd", "hint_sd"),
        (["train.recipe=rlsd"], "rlsd", "rlsd"),
        (["train.recipe=opsd", "inject.hint=critic"], "opsd", "opsd, changed: the teacher reads critic, not solution"),
        (
            ["train.recipe=opsd", "inject.steps=findings"],
            "opsd",
            "opsd, changed: it trains steps with a finding, not every step",
        ),
    ],
)
def test_the_recipe_is_named_as_what_it_is_and_a_promise_it_does_not_make_is_a_warning(
    settings, name, called, tmp_path
):
    ctx = context(tmp_path, *settings)
    say_what_trains(ctx)
    source = ctx.config.train.effective_recipe.data.rollout.source
    assert rollouts(ctx.config.train.effective_recipe).startswith("recorded before training") == (source == "student")
    warned = [w for w in ctx.console.warnings if "does not lower an error token" in w]
    assert bool(warned) == (ctx.config.train.effective_recipe.lowers_error == "no")
    said = recipe_said(ctx.config.model_dump(mode="json"))
    assert (said["name"], said["called"]) == (name, called)
    assert said["lowers_error"].startswith("not caused by the teacher") == bool(warned)


def test_the_report_knows_whether_a_recipe_has_a_gate(tmp_path):
    for recipe, gate in (("hint_sd", True), ("opsd", False)):
        assert gate_of(context(tmp_path, f"train.recipe={recipe}").config.model_dump(mode="json")).enabled is gate
    forced = context(tmp_path, "train.recipe=opsd", "rescore.gate.enabled=true")
    assert gate_of(forced.config.model_dump(mode="json")).enabled is True

"""A method that is changed in what defines it is called changed, and nothing else is."""

from __future__ import annotations

import pytest

from hintdistill.config import TrainSection
from hintdistill.recipes import load_recipe, recipe_names
from hintdistill.recipes.changes import called, changes


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_itself(name):
    recipe = load_recipe(name)
    assert changes(recipe) == ((recipe.changed,) if recipe.changed else ())
    assert called(recipe) == (f"{name}, changed: {recipe.changed}" if recipe.changed else name)
    assert recipe.changed or changes(recipe, "placebo") != (), "another context is another method"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sdft", {"data": {"hint": {"kind": "feedback"}}}, "the teacher reads critic, not demonstration"),
        ("sdft", {"data": {"steps": "findings"}}, "it trains steps with a finding, not every step"),
        ("tm_opd", {"teacher": {"update": "initial"}}, "the teacher's weights are initial, not external"),
        ("hint_sd", {"terms": {"distill": {"divergence": {"kind": "fkl"}}}}, "distill is fkl, not rkl"),
        ("power", {"terms": {"distill": {"divergence": {"signal": "log"}}}}, "distill is pg of log, not pg of power"),
        ("ta_opd", {"terms": {"distill": {"weights": []}}}, "distill has different weights"),
        ("nca", {"terms": {"consistency": None}}, "without the term consistency"),
        ("rlcsd", {"coupling": {"kind": "none", "credit": []}}, "the coupling is none, not adv_add"),
        ("tm_opd", {"terms": {"distill": {"divergence": {"gap_at": "now"}}}}, "distill is a different form of pg"),
        (
            "opsd",
            {"terms": {"distill": {"divergence": {"pointwise_clip": None}}}},
            "distill is a different form of fkl",
        ),
        ("veto", {"terms": {"distill": {"target": {"loglin": {"student": 0.0}}}}}, "distill has a different target"),
    ],
)
def test_what_defines_it_is_named(name, change, said):
    terms = change.get("terms", {})
    for term in list(terms):
        if term not in load_recipe(name).terms:
            pytest.fail(f"{name} has no term {term}: {list(load_recipe(name).terms)}")
    recipe = load_recipe(name, change)
    assert said in changes(recipe) and called(recipe).startswith(f"{name}, changed: ")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hint_sd", {"teacher": {"rate": 0.01}, "terms": {"distill": {"support": {"k": 20}, "coef": 0.5}}}),
        ("rlcsd", {"coupling": {"beta": 0.2}}),
        (
            "hint_sd",
            {
                "terms": {
                    "anchor": {"rows": "anchor", "target": {"loglin": {"initial": 1.0}}, "divergence": {"kind": "fkl"}}
                }
            },
        ),
        ("ta_opd", {"terms": {"distill": {"coef": {"from": 1.0, "to": 0.1, "steps": 5}}}}),
    ],
)
def test_rates_bounds_and_what_holds_the_student_are_no_change(name, change):
    assert changes(load_recipe(name, change)) == ()


def test_a_runs_settings_count_as_they_act():
    """Keys of `train` beside the recipe change it too: an anchor does not, a teacher does."""
    assert changes(TrainSection(recipe="hint_sd", anchor={"weight": 1.0}).effective_recipe) == ()
    assert changes(TrainSection(recipe="targeted", anchor={"weight": 0.0}).effective_recipe) == ()
    other = TrainSection(recipe={"preset": "opsd", "data": {"hint": {"kind": "feedback"}}}).effective_recipe
    assert called(other) == "opsd, changed: the teacher reads critic, not solution"


def test_a_recipe_of_ones_own_name_bears_no_methods_title(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: sdft\ndata: {hint: {kind: feedback}}\n")
    recipe = load_recipe(str(path))
    assert recipe.name == "mine" and recipe.title == "a user's own recipe, based on sdft"
    assert changes(recipe) == ()
    path.write_text("preset: sdft\ntitle: What we do\n")
    assert load_recipe(str(path)).title == "What we do"

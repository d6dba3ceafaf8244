"""Every recipe is the method it is named after: its defining piece acts, and no two are the same."""

from __future__ import annotations

import itertools
import sys

import pytest
from conftest import ROOT
from support.methods import OFF, measured
from support.recipe_models import tiny

from hintdistill.core.errors import ConfigError
from hintdistill.core.extensions import HINT_SOURCES
from hintdistill.core.parts import HINTS
from hintdistill.recipes import load_recipe, recipe_names
from hintdistill.recipes.removed import NOT_BUILT

pytestmark = pytest.mark.usefixtures("one_thread")
sys.path.insert(0, str(ROOT / "docs"))


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def as_shipped(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    return {name: measured(model, name, {}, folder) for name in recipe_names()}


def test_every_recipe_has_a_piece_that_can_be_taken_away():
    assert set(OFF) == set(recipe_names())


@pytest.mark.parametrize("name", sorted(OFF))
def test_the_defining_piece_acts(name, model, as_shipped, tmp_path):
    loss, gradient = as_shipped[name]
    other, changed = measured(model, name, OFF[name], tmp_path)
    moved = float((gradient - changed).norm() / gradient.norm())
    assert abs(loss - other) >= 0.01 * abs(loss) or moved >= 0.01
    assert gradient.norm() > 0


def test_no_two_recipes_are_the_same(as_shipped):
    same = [
        (a, b)
        for (a, (loss, g)), (b, (other, h)) in itertools.combinations(as_shipped.items(), 2)
        if len(g) == len(h) and abs(loss - other) < 1e-3 * abs(loss) and float((g - h).norm()) < 1e-3 * float(g.norm())
    ]
    assert not same


def test_every_kind_of_context_has_a_maker():
    for kind in HINTS.entries():
        assert kind.source in HINT_SOURCES
    assert {load_recipe(n).data.hint.kind for n in recipe_names()} <= set(HINTS.names())


def test_a_method_without_a_recipe_says_why():
    assert not set(NOT_BUILT) & set(recipe_names())
    for name, method in NOT_BUILT.items():
        with pytest.raises(ConfigError, match="no recipe") as error:
            load_recipe(name)
        assert method.need in str(error.value) and "docs/methods.md" in str(error.value)


def test_the_page_is_the_recipes_own():
    from make_methods_page import PAGE, page

    assert page() == PAGE.read_text(encoding="utf-8"), "run docs/make_methods_page.py"

"""Every registered part is used by a shipped recipe, or named in docs/recipes.md as an option, and then it acts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from support.golden_values import dense

from hintdistill.config import RunConfig, RunSection, TracesSection, TrainSection
from hintdistill.core.extensions import HINT_SOURCES
from hintdistill.objectives import couplings, scorebank, signals
from hintdistill.objectives.spans import span_mask
from hintdistill.pipeline.contexts import further_views
from hintdistill.recipes import Recipe, load_recipe, needs, parts, recipe_names
from hintdistill.recipes.needs import HOW, every_weight
from hintdistill.recipes.teachers import TEACHERS

sys.path.insert(0, str(ROOT / "docs"))
from make_recipes_page import OPTIONS

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPES = {name: load_recipe(name) for name in recipe_names()}
SIGNALS = "signals of `pg`"
PARTS: dict[str, tuple[str, ...]] = {
    "supports": parts.SUPPORTS,
    "remainders": parts.RESTS,
    "divergences": tuple(parts.DIVERGENCES.names()),
    "clips": parts.CLIPS,
    SIGNALS: tuple(parts.SIGNALS),
    "scores": tuple(parts.SCORES),
    "facts": tuple(parts.FACTS),
    "shapes": tuple(parts.SHAPES.names()),
    "normalisers": parts.NORMALISERS,
    "loss spans": parts.SPANS,
    "contexts of a view": parts.context_names(),
    "couplings": parts.COUPLINGS,
    "teacher updates": tuple(TEACHERS.names()),
    "hint kinds": tuple(parts.HINTS.names()),
    "rollouts": parts.ROLLOUTS,
}


def used(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield (kind, name) of every part that a recipe names; a kind of hint is the context of the teacher's view."""
    yield "hint kinds", recipe.data.hint.kind
    yield "contexts of a view", parts.HINTS.get(recipe.data.hint.kind).source
    yield "rollouts", recipe.data.rollout.source
    yield "teacher updates", recipe.teacher.update
    yield "couplings", recipe.coupling.kind
    for view in recipe.all_views().values():
        yield "contexts of a view", view.context
    weights = list(every_weight(recipe.coupling.credit))
    for term in recipe.terms.values():
        weights += every_weight(term.weights)
        yield "supports", term.support.kind
        yield "remainders", term.support.rest
        yield "divergences", term.divergence.kind
        yield "normalisers", term.normalize
        yield "loss spans", term.span
        yield from (("clips", c) for c in parts.CLIPS if getattr(term.divergence, c) is not None)
        if term.divergence.entry.has_signal:
            yield SIGNALS, term.divergence.signal
    for weight in weights:
        yield "shapes", weight.shape
        yield from (("facts" if s in parts.FACTS else "scores", s) for s in weight.scores())


NAMED = {pair for recipe in RECIPES.values() for pair in used(recipe)} | {("scores", "one")}
"""`one` is the score of a weight that names none."""


@pytest.mark.parametrize("kind", PARTS)
def test_every_part_is_used_by_a_recipe_or_is_an_option(kind):
    shipped = {name for k, name in NAMED if k == kind}
    assert set(PARTS[kind]) - shipped == set(OPTIONS.get(kind, {})), "use it, list it in OPTIONS, or take it away"


def test_every_need_is_asked_for_and_every_table_has_one_content():
    asked = {n.name for r in RECIPES.values() for n in needs(r)}
    asked |= {n for e in parts.DIVERGENCES.entries() for n, _ in e.needs} | {n for f in parts.FACTS.values() for n in f}
    # of a token set without tokens, and of a kind of hint that a plugin registers (docs/extending.md)
    assert set(HOW) - asked == {"token_set", "demonstrations"}
    assert set(scorebank.FACTS) == set(parts.FACTS) and set(scorebank.SCORES) == set(parts.SCORES)
    other = {"tanh_contrast", "returns", "advantage"}
    assert set(signals.SIGNALS) == set(parts.SIGNALS) - other
    assert all(callable(getattr(couplings, f)) for f in ("additive", "advantage_multiply", "advantage_add"))


def test_the_pages_name_every_context_maker():
    page = (ROOT / "docs" / "contexts.md").read_text(encoding="utf-8")
    assert [name for name in HINT_SOURCES.names() if f"`{name}`" not in page] == []


# -- that the options act ------------------------------------------------------------------------------------------------


def seen(recipe: Recipe) -> Any:
    """What a loss, a span, the needs or the contexts of a run make of a recipe."""
    quoted = {"in_quote": np.array([0.0, 1.0, 0.0]), "since_error": np.array([-1.0, 0.0, 1.0])}
    masks = [span_mask(t, quoted | {"certain": np.ones(3)}, np.ones(3)).tolist() for t in recipe.terms.values()]
    data = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    config = RunConfig(run=RunSection(model="m"), traces=TracesSection(path=("t",)), train=TrainSection(recipe=data))
    losses = {name: found["value"] for name, found in dense(recipe).items()}
    return losses, masks, [n.name for n in needs(recipe)], config.injecting.hint, further_views(recipe)


def term(**keys: Any) -> dict[str, Any]:
    return {"terms": {"distill": keys}}


GAP = {"score": "gap", "shape": "sigmoid"}
SAMPLED = {"support": {"kind": "sampled"}}
VIEWS = {"tanh_contrast": {"wrong": {"context": "wrong"}}, "disagree": {"teacher_2": {"context": "peers"}}}
"""What two parts read beside student and teacher."""
SHAPED = {"last_n": {"n": 2}, "rank_softmax": {"score": "ppl_T"}, "exp_decay": {"score": "surprisal", "kappa": 0.5}}
SHAPED |= {name: {"score": "group_acc"} for name in ("frontier", "frontier_root")}


def option(kind: str, name: str) -> dict[str, Any]:
    """A change of `hint_sd` that takes the option."""
    if kind == "supports":
        return term(support={"kind": name, "k": 6, **({"token_ids": [1, 5, 7]} if name == "token_set" else {})})
    if kind == "divergences":
        hidden = name == "hidden_mse"
        return term(**(SAMPLED if hidden else {"support": {"k": 4}}), divergence={"kind": name})
    if kind == SIGNALS:
        return {"views": VIEWS.get(name, {})} | term(**SAMPLED, divergence={"kind": "pg", "signal": name})
    if kind in ("scores", "facts"):
        weights = [{"score": name, "shape": "identity"}]
        return {"views": VIEWS.get(name, {})} | term(weights=weights, normalize="all")
    if kind == "shapes":
        return term(weights=[{"score": "gap", "shape": name} | SHAPED[name]], normalize="all")
    if kind == "loss spans":
        return term(span=name)
    if kind == "teacher updates":
        return {"teacher": {"update": name}} | term(target={"loglin": {"initial": 0.1}})
    if kind == "hint kinds":
        return {"data": {"hint": {"kind": name}}}
    return {"views": {"other": {"context": name}}} | term(target={"loglin": {"other": 0.2}})


PLAIN: dict[str, dict[str, Any]] = {
    "supports": term(support={"k": 6}),
    "divergences": term(support={"k": 4}),
    SIGNALS: term(**SAMPLED, divergence={"kind": "pg", "signal": "log"}),
    "scores": term(weights=[{"score": "one", "shape": "identity"}], normalize="all"),
    "shapes": term(weights=[{"score": "gap", "shape": "identity"}], normalize="all"),
    "teacher updates": {"teacher": {"update": "initial"}} | term(target={"loglin": {"initial": 0.1}}),
    "contexts of a view": {"views": {"other": {"context": "wrong"}}} | term(target={"loglin": {"other": 0.2}}),
}
"""What an option is compared with; `hint_sd` as it is for the others."""


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, named in OPTIONS.items() for n in named])
def test_an_option_acts(kind, name):
    given = load_recipe("hint_sd", option(kind, name))
    assert (kind, name) in set(used(given)), "the change takes another part"
    found = seen(given)
    assert found != seen(load_recipe("hint_sd", PLAIN.get("scores" if kind == "facts" else kind, {})))

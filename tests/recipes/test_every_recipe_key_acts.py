"""Every key of a recipe acts: set to a second value, a loss, a training, a need or what `recipes show` prints differs."""

from __future__ import annotations

import ast
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from pydantic import BaseModel
from support.golden_values import dense
from support.train_observers import LIVE_TRAINING, trained

from hintdistill.config import RunConfig, RunSection, TracesSection, TrainSection
from hintdistill.core.errors import ConfigError
from hintdistill.objectives.spans import span_mask
from hintdistill.pipeline.contexts import further_views
from hintdistill.recipes import Recipe, load_recipe, needs, parts
from hintdistill.recipes.describe import document
from hintdistill.recipes.values import Schedule

Change = dict[str, Any]


def keys(model: type[BaseModel], prefix: str = "", above: tuple[type, ...] = ()) -> Iterator[str]:
    """Every key of a recipe; those of a weight once, wherever it stands."""
    for name, info in model.model_fields.items():
        inner = [t for t in _types(info.annotation) if t is not Schedule and t not in (*above, model)]
        if inner:
            yield from keys(inner[0], f"{prefix}{name}.", (*above, model))
        else:
            yield prefix + name


def _types(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _types(inner)


def loss(recipe: Recipe) -> Any:
    """Value and gradient of every term."""
    return dense(recipe)


def weighed(recipe: Recipe) -> Any:
    """What each term weighs the tokens of a step by, before any normalisation."""
    facts = {"in_quote": np.array([0.0, 1.0, 0.0]), "since_error": np.array([-1.0, 0.0, 1.0])}
    facts["in_action"] = np.array([0.0, 1.0, 1.0])
    bounds = {name: np.exp(np.array([-0.1, -3.0, -0.9])) >= term.min_probability for name, term in recipe.terms.items()}
    return {
        name: span_mask(term, facts | {"certain": bounds[name]}, np.ones(3)).tolist()
        for name, term in recipe.terms.items()
    }


def needed(recipe: Recipe) -> Any:
    """What a run must have."""
    return [n.name for n in needs(recipe)]


def told(recipe: Recipe) -> Any:
    """What a run of it makes contexts of, for which steps, and whether there is a gate."""
    data = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    config = RunConfig(run=RunSection(model="m"), traces=TracesSection(path=("t",)), train=TrainSection(recipe=data))
    return config.injecting.hint, config.injecting.steps, config.rescoring.gate.enabled, further_views(recipe)


def shown(recipe: Recipe) -> Any:
    """What `hintdistill recipes show` prints, without the keys."""
    return {k: v for k, v in document(recipe).items() if k != "recipe"}


def training(*overrides: str) -> Callable[[Recipe], Any]:
    """A training of some steps with a teacher that follows the student."""

    def observe(recipe: Recipe) -> Any:
        teacher = recipe.teacher.model_dump(mode="json", exclude_none=True)
        words = "{" + ", ".join(f"{k}: {v}" for k, v in teacher.items()) + "}"
        return trained([*LIVE_TRAINING, *overrides, f"train.recipe.teacher={words}"])

    return observe


def term(**change: Any) -> Change:
    """A change of the term `distill` of `hint_sd` (reverse KL on the student's top 3 and the tail)."""
    return {"terms": {"distill": change}}


TOP = {"terms": {"distill": {"support": {"k": 3}}}}
ADVANCED = {"support": {"kind": "sampled"}, "divergence": {"kind": "pg", "signal": "advantage"}}
WEIGHTED = [{"score": "gap", "shape": "sigmoid", "beta": 2.0}]
PARTIAL = {"views": {"part": {"context": "partial"}}, "terms": {"distill": {"target": {"loglin": {"part": 0.5}}}}}
ADDED = {"kind": "adv_add", "credit": WEIGHTED}
ADVANTAGE = {"kind": "adv_mul", "credit": WEIGHTED}
WORDS = ("title", "formula", "source", "published", "ours", "lowers_error_why", "note")

TABLE: dict[str, tuple[Callable[[Recipe], Any], Change, Change]] = {
    **{key: (shown, {key: "one"}, {key: "another"}) for key in WORDS},
    "name": (shown, {}, {"name": "another"}),
    "confidence": (shown, {}, {"confidence": "P"}),
    "verdict": (shown, {}, {"verdict": "BASELINE"}),
    "lowers_error": (shown, {}, {"lowers_error": "no"}),
    "mechanism": (shown, {}, {"mechanism": ["objectives.divergences.rkl"]}),
    "data.rollout.source": (shown, {}, {"data": {"rollout": {"source": "traces"}}}),
    "data.hint.kind": (told, {}, {"data": {"hint": {"kind": "solution"}}}),
    "data.steps": (told, {}, {"data": {"steps": "every"}}),
    "data.gate": (told, {}, {"data": {"gate": False}}),
    "changed": (shown, {}, {"changed": "something"}),
    "views.weights": (needed, PARTIAL, {"views": {"part": {"weights": "external"}}}),
    "views.context": (told, PARTIAL, {"views": {"part": {"context": "wrong"}}}),
    "teacher.update": (needed, {}, {"teacher": {"update": "initial"}}),
    "teacher.rate": (
        training("train.epochs=1"),
        {"teacher": {"update": "ema", "rate": 0.5}},
        {"teacher": {"rate": 0.1}},
    ),
    "teacher.every": (
        training("train.epochs=1"),
        {"teacher": {"update": "periodic", "every": 1}},
        {"teacher": {"every": 2}},
    ),
    "terms.target.loglin": (loss, TOP, term(target={"loglin": {"teacher": 1.0, "plain": -0.5}})),
    "terms.target.anchor": (
        loss,
        term(target={"loglin": {"teacher": 1.5, "plain": -0.5}, "anchor": "plain", "residual_clip": 0.3}),
        term(target={"anchor": "initial"}),
    ),
    "terms.target.residual_clip": (
        loss,
        term(target={"loglin": {"teacher": 1.5, "plain": -0.5}, "anchor": "plain", "residual_clip": 0.3}),
        term(target={"residual_clip": 1.0}),
    ),
    "terms.target.temperature": (loss, TOP, term(target={"temperature": 2.0})),
    "terms.target.tilt": (loss, term(target={"tilt_sign": "advantage"}), term(target={"tilt": 0.5})),
    "terms.target.tilt_sign": (loss, term(target={"tilt": 0.5}), term(target={"tilt_sign": "advantage"})),
    "terms.target.mixture": (loss, TOP, term(target={"mixture": {"initial": 0.2}})),
    "terms.support.kind": (loss, term(support={"k": 3}), term(support={"kind": "teacher_topk"})),
    "terms.support.k": (loss, term(support={"k": 3}), term(support={"k": 5})),
    "terms.support.rest": (loss, term(support={"k": 3}), term(support={"rest": "renorm"})),
    "terms.support.token_ids": (
        loss,
        term(support={"kind": "token_set", "token_ids": [4, 5]}),
        term(support={"token_ids": [4, 9]}),
    ),
    "terms.support.drop_special": (loss, term(support={"k": 9}), term(support={"drop_special": True})),
    "terms.support.include_sampled": (loss, term(support={"k": 3}), term(support={"include_sampled": True})),
    "terms.divergence.kind": (loss, term(support={"k": 3}), term(divergence={"kind": "fkl"})),
    "terms.divergence.signal": (
        loss,
        term(support={"kind": "sampled"}, divergence={"kind": "pg", "signal": "log"}),
        term(divergence={"signal": "softlog"}),
    ),
    "terms.divergence.pointwise_clip": (loss, term(support={"k": 3}), term(divergence={"pointwise_clip": 0.01})),
    "terms.divergence.token_clip": (loss, term(support={"k": 3}), term(divergence={"token_clip": 0.05})),
    "terms.weights.score": (loss, term(weights=WEIGHTED), term(weights=[{**WEIGHTED[0], "score": "pos"}])),
    "terms.weights.shape": (
        loss,
        term(weights=WEIGHTED),
        term(weights=[{"score": "gap", "shape": "tanh", "tau": 2.0}]),
    ),
    "terms.weights.invert": (loss, term(weights=WEIGHTED), term(weights=[{**WEIGHTED[0], "invert": True}])),
    "terms.weights.times_sign": (loss, term(weights=WEIGHTED), term(weights=[{**WEIGHTED[0], "times_sign": True}])),
    "terms.weights.soft_or": (
        loss,
        term(weights=WEIGHTED),
        term(weights=[{"soft_or": [WEIGHTED[0], {"score": "in_quote"}]}]),
    ),
    "terms.weights.product": (
        loss,
        term(weights=WEIGHTED),
        term(weights=[{"product": [WEIGHTED[0], {"score": "in_quote"}]}]),
    ),
    "terms.weights.then": (
        loss,
        term(weights=WEIGHTED),
        term(weights=[{**WEIGHTED[0], "then": [{"shape": "clamp", "low": 0.0, "high": 0.4}]}]),
    ),
    "terms.weights.id": (loss, term(weights=[{**WEIGHTED[0], "id": "m"}, {"ref": "m"}]), term(weights=WEIGHTED)),
    "terms.weights.ref": (
        loss,
        term(weights=[{**WEIGHTED[0], "id": "m"}]),
        term(weights=[{**WEIGHTED[0], "id": "m"}, {"ref": "m"}]),
    ),
    "terms.span": (weighed, TOP, term(span="quote")),
    "terms.quote_weight": (weighed, term(span="quote_weighted"), term(quote_weight=7.0)),
    "terms.min_probability": (
        weighed,
        term(rows="anchor", target={"loglin": {"teacher": None, "initial": 1.0}}),
        term(min_probability=0.5),
    ),
    "terms.normalize": (loss, term(weights=WEIGHTED, normalize="kept"), term(normalize="per_row")),
    "terms.coef": (loss, TOP, term(coef=0.5)),
    "terms.rows": (needed, {}, term(rows="anchor", target={"loglin": {"teacher": None, "initial": 1.0}})),
    "terms.student_view": (
        loss,
        TOP,
        {"views": {"other": {"weights": "live", "grad": True}}, **term(student_view="other")},
    ),
    "terms.temperature": (loss, TOP, term(temperature=2.0)),
    "coupling.kind": (needed, {}, {"coupling": {"kind": "additive"}}),
    "coupling.credit": (
        loss,
        {"coupling": ADVANTAGE, **term(**ADVANCED)},
        {"coupling": {"credit": [{"score": "pos"}]}},
    ),
}
for _key, _of, _value in (("lam", ADVANTAGE, 0.3), ("beta", ADDED, 3.0), ("keep_sign", ADDED, False)):
    TABLE[f"coupling.{_key}"] = (loss, {"coupling": _of, **term(**ADVANCED)}, {"coupling": {_key: _value}})
HERE = "tests/recipes/test_every_recipe_key_acts.py"
TOLD = {
    "views.grad": (HERE, "test_a_student_without_a_gradient_is_refused"),
    "views.n": (HERE, "test_several_contexts_have_numbered_names"),
    "views.rho": (HERE, "test_a_partial_hint_says_its_share"),
    "teacher.isolation": (
        "tests/training/test_teachers.py",
        "test_a_gated_teacher_copies_the_student_when_it_has_earned_it",
    ),
    "teacher.margin": (
        "tests/training/test_teachers.py",
        "test_a_gated_teacher_copies_the_student_when_it_has_earned_it",
    ),
    "teacher.tail": (
        "tests/training/test_teachers.py",
        "test_a_gated_teacher_copies_the_student_when_it_has_earned_it",
    ),
    "teacher.model": ("tests/training/test_teachers.py", "test_an_external_teacher_must_have_the_same_tokenizer"),
    "terms.support.accept_bias": (HERE, "test_a_biased_loss_has_to_be_accepted"),
    "coupling.weight": (
        "tests/training/test_outcome_training.py",
        "test_weight_one_is_the_terms_alone_and_weight_nought_the_reward_alone",
    ),
}
"""Keys that act in tests of their own: the file, and the test whose text sets the key."""


@pytest.mark.parametrize("key", TOLD)
def test_a_key_that_acts_elsewhere_is_set_there(key):
    file, test = TOLD[key]
    text = (ROOT / file).read_text()
    found = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == test]
    assert found and key.rpartition(".")[2] in (ast.get_source_segment(text, found[0]) or "")


@pytest.mark.parametrize("key", TABLE)
def test_a_second_value_is_seen(key):
    observer, base, change = TABLE[key]
    first = load_recipe({"preset": "hint_sd"} | base)
    second = load_recipe({"preset": {"preset": "hint_sd"} | base} | change)
    assert observer(first) != observer(second), f"{key} changes nothing"


def test_every_key_is_in_the_table():
    found = list(keys(Recipe))
    parted = [k for k in found if k not in TABLE and k not in TOLD and not k.startswith("coupling.credit.")]
    assert parted == [], "say how a new key acts"
    assert [k for k in (*TABLE, *TOLD) if k not in found and k not in SECTIONS] == []


SECTIONS = {"coupling.credit"}
"""Keys that hold weights, whose own keys are those of a term's weights."""


def test_a_student_without_a_gradient_is_refused():
    other = {"weights": "live", "grad": True}
    load_recipe("hint_sd", {"views": {"other": other}} | term(student_view="other"))
    with pytest.raises(ConfigError, match="has no gradient"):
        load_recipe("hint_sd", {"views": {"other": other | {"grad": False}}} | term(student_view="other"))


def test_several_contexts_have_numbered_names():
    contrast = term(support={"kind": "sampled"}, divergence={"kind": "pg", "signal": "tanh_contrast"})
    for n, names in ((1, {"wrong"}), (2, {"wrong_1", "wrong_2"})):
        used = load_recipe("hint_sd", {"views": {"wrong": {"context": "wrong", "n": n}}} | contrast).used_views()
        assert {name for name in used if name.startswith("wrong")} == names


def test_a_partial_hint_says_its_share():
    recipe = load_recipe(
        "hint_sd", {"views": {"part": {"context": "partial", "rho": 0.25}}} | term(target={"loglin": {"part": 1.0}})
    )
    assert recipe.used_views()["part"].rho == 0.25 and "in_step_teacher" in needed(recipe)


def test_a_biased_loss_has_to_be_accepted():
    biased = term(support={"k": 3, "rest": "drop"})
    with pytest.raises(ConfigError, match="lowers the mass of the kept entries"):
        load_recipe("hint_sd", biased)
    assert load_recipe("hint_sd", term(support={"k": 3, "rest": "drop", "accept_bias": True}))


# -- the parameters of parts ----------------------------------------------------------------------------------------------

DIVERGENCES = {
    ("jsd", "alpha"): (0.5, 0.2),
    ("skew", "alpha"): (0.5, 0.2),
    ("skew_rkl", "alpha"): (0.5, 0.2),
    ("mix", "lam"): (0.5, 0.2),
    ("hidden_mse", "layers"): None,
    ("token_preference", "beta"): (1.0, 0.2),
    ("token_preference", "reference"): ("initial", "plain"),
    ("pg", "signal"): ("log", "softlog"),
    ("pg", "behaviour"): (None, "initial"),
    ("pg", "gap_at"): ("now", "sampling"),
    ("pg", "clip_low"): (0.2, 0.9),
    ("pg", "clip_high"): (0.2, 0.01),
    ("pg", "cap"): (2.0, 0.1),
    ("pg", "ratio"): ("token", "row"),
    ("pg", "baseline"): (None, "value"),
    ("pg", "baseline_k"): (2, 20),
}
SIGNALS = {
    ("fdiv", "of"): ("fkl", "jsd"),
    ("fdiv", "clip"): (0.1, 5.0),
    ("power", "alpha"): (0.5, 0.2),
    ("clip", "low"): (-0.5, -0.1),
    ("clip", "high"): (0.5, 0.1),
    ("floor", "lam"): (0.5, 0.1),
    ("znorm", "eps"): (0.01, 1.0),
    ("scale_only", "eps"): (0.01, 1.0),
    ("tanh_contrast", "tau"): None,
    ("tanh_contrast", "scale"): None,
    ("returns", "gamma"): (0.9, 0.1),
}
SHAPES = {
    ("threshold", "at"): (0.0, 1.0),
    ("threshold", "below"): (False, True),
    ("threshold", "otherwise"): (0.0, 0.5),
    ("threshold_abs", "at"): (0.1, 2.5),
    ("dead_zone", "at"): (0.1, 2.5),
    ("top_frac", "rho"): (0.3, 0.7),
    ("quantile_below", "q"): (0.3, 0.7),
    ("sigmoid", "beta"): (1.0, 3.0),
    ("exp_clip", "low"): (0.1, 0.8),
    ("exp_clip", "high"): (3.0, 1.1),
    ("sigmoid_clip", "alpha"): (0.1, 0.5),
    ("saturate", "c"): (0.5, 2.0),
    ("affine", "alpha"): (0.5, 0.1),
    ("affine", "flip"): (False, True),
    ("robust01", "low"): (0.05, 0.4),
    ("robust01", "high"): (0.95, 0.6),
    ("tanh", "tau"): (1.0, 3.0),
    ("tanh", "scale"): (1.0, 3.0),
    ("low_entropy_sign", "q"): (0.2, 0.8),
    ("median_sigmoid", "shift"): (0.0, 1.0),
    ("median_sigmoid", "eps"): (0.01, 1.0),
    ("median_scale", "eps"): (0.01, 1.0),
    ("logistic_pos", "w_min"): (0.1, 0.5),
    ("logistic_pos", "centre"): (0.5, 0.1),
    ("logistic_pos", "scale"): (0.1, 0.5),
    ("cum_drop", "below"): (0.5, -0.5),
    ("cum_drop", "step"): (0.1, 0.4),
    ("cum_drop", "base"): (1.0, 0.7),
    ("sign_gate", "agree"): (1.0, 0.3),
    ("sign_gate", "disagree"): (0.0, 0.6),
    ("rank_softmax", "tau"): (1.0, 0.2),
    ("set_softmax", "tau"): (1.0, 0.2),
    ("identity", "power"): (1.0, 2.0),
    ("clamp", "low"): (-1.0, 0.1),
    ("clamp", "high"): (1.0, 0.2),
    ("geom", "gamma"): (0.9, 0.3),
    ("exp_decay", "kappa"): (0.5, 2.0),
    ("first_n", "n"): (1, 3),
    ("last_n", "n"): (1, 3),
    ("skip_n", "n"): (1, 3),
    ("equals", "value"): (1.0, 0.0),
    ("freeze", "ids"): ([0, 5], [10]),
    ("freeze", "weight"): (0.0, 0.5),
    ("rolling_stop", "window"): None,
    ("rolling_stop", "level"): None,
    ("rolling_stop", "eta"): None,
    ("rolling_stop", "patience"): None,
    ("rolling_stop", "skip"): None,
}
"""Two values of each parameter; None: of a part that six tokens cannot show, with tests of its own in tests/objectives."""
SCORES = {
    **dict.fromkeys(("geom", "first_n", "last_n", "skip_n", "logistic_pos"), "index"),
    "exp_decay": "since_error",
    "equals": "in_quote",
    "freeze": "token_id",
    "set_softmax": "rollout_ppl_S",
    "logistic_pos": "pos",
}
"""What a shape reads here, where it is not the gap."""
ALSO = {
    ("threshold_abs", "at"): {},
    ("saturate", "c"): {},
    ("freeze", "ids"): {"weight": 0.0},
    ("freeze", "weight"): {"ids": [0, 5]},
    ("exp_clip", "low"): {"high": 3.0},
    ("exp_clip", "high"): {"low": 0.1},
    ("clamp", "low"): {"high": 1.0},
    ("clamp", "high"): {"low": -1.0},
    ("pg", "clip_low"): {"behaviour": "initial", "signal": "advantage"},
    ("pg", "clip_high"): {"behaviour": "initial", "signal": "advantage"},
    ("pg", "cap"): {"behaviour": "initial"},
    ("pg", "ratio"): {"behaviour": "initial"},
    ("pg", "baseline_k"): {"baseline": "value"},
    ("clip", "low"): {"high": 0.5},
    ("clip", "high"): {"low": -0.5},
}
"""What must be set beside a parameter."""


def test_every_parameter_of_a_part_is_in_the_tables():
    assert {(e.name, p.name) for e in parts.DIVERGENCES.entries() for p in e.parameters} == set(DIVERGENCES)
    assert {(k, p.name) for k, taken in parts.SIGNALS.items() for p in taken} == set(SIGNALS)
    assert {(e.name, p.name) for e in parts.SHAPES.entries() for p in e.parameters} == set(SHAPES)


def _both(of: tuple[str, str], values: Any, place: Callable[[dict[str, Any]], Change]) -> tuple[Any, Any]:
    other = ALSO.get(of, {})
    made = [{**other, **({} if v is None else {of[1]: v})} for v in values]
    return tuple(dense(load_recipe("hint_sd", place(m))) for m in made)  # type: ignore[return-value]


@pytest.mark.parametrize("of", [k for k, v in DIVERGENCES.items() if v is not None], ids=".".join)
def test_a_divergences_parameter_is_seen(of):
    sampled = {"support": {"kind": "sampled"}} if of[0] in ("pg", "token_preference") else {"support": {"k": 4}}
    one, two = _both(of, DIVERGENCES[of], lambda m: term(**sampled, divergence={"kind": of[0], **m}))
    assert one != two


@pytest.mark.parametrize("of", [k for k, v in SIGNALS.items() if v is not None], ids=".".join)
def test_a_signals_parameter_is_seen(of):
    pg = {"kind": "pg", "signal": of[0]}
    one, two = _both(of, SIGNALS[of], lambda m: term(support={"kind": "sampled"}, divergence={**pg, **m}))
    assert one != two


@pytest.mark.parametrize("of", [k for k, v in SHAPES.items() if v is not None], ids=".".join)
def test_a_shapes_parameter_is_seen(of):
    score = SCORES.get(of[0], "gap")
    weight = {"score": score, "shape": of[0]}
    one, two = _both(of, SHAPES[of], lambda m: term(support={"k": 4}, weights=[{**weight, **m}], normalize="all"))
    assert one != two


def test_a_term_that_is_not_there_cannot_be_taken_away():
    with pytest.raises(ConfigError, match=r"has no term `distil` that could be removed.*distill"):
        load_recipe("hint_sd", {"terms": {"distil": None}})
    assert "anchor" not in load_recipe("hint_sd", {"terms": {"anchor": None}}).terms

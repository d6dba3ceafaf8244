"""Recipes: every method is there, every key is known, every need is named, and what they promise of the error token holds."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import ROOT
from support.command import hintdistill
from typer.testing import CliRunner

from hintdistill.cli.main import app
from hintdistill.config import TrainSection
from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError
from hintdistill.objectives import Batch, objective
from hintdistill.objectives import shapes as shape_functions
from hintdistill.objectives import signals as signal_functions
from hintdistill.objectives.diagnostics import DIAGNOSTICS as DIAGNOSED
from hintdistill.objectives.divergences import DIVERGENCES
from hintdistill.objectives.scorebank import FACTS, SCORES
from hintdistill.objectives.supports import RESTS, SUPPORTS
from hintdistill.recipes import load_recipe, missing, needs, parts, recipe_folder, recipe_names, require_met
from hintdistill.recipes.needs import HOW
from hintdistill.recipes.removed import NOT_BUILT
from hintdistill.recipes.schema import Recipe
from hintdistill.recipes.specs import DIVERGENCE_UNION, WEIGHT_UNION
from hintdistill.recipes.teachers import TEACHERS
from hintdistill.training.capabilities import available

F64 = torch.float64
RECIPES = {name: load_recipe(name) for name in recipe_names()}
REFERENCE = [
    "cursor_targeted",
    "hint_sd",
    "hero",
    "rosd",
    "openclaw_pg",
    "openclaw_topk",
    "trace",
    "step_opsd",
    "edge_opd",
    "sdar",
]
FOUNDATIONS = [
    "tm_opd",
    "gkd",
    "minillm",
    "sdpo",
    "sdpo_feedback",
    "opsd",
    "sdft",
    "opcd",
    "vpd",
    "pi_distill",
    "sd_zero",
]
CORE = (
    """cursor_targeted gkd tropd ptd_po cgtr mopd_peers preflight esr topk_sg ta_opd revisiting nca ar_opd rlsd rlcsd"""
)
OPTION = """sg_opd kat gndpo oprd geometry fire scope rock_freeze ogls safesteer opd_plus trb accept_route adwin sc_grpo power
    decouple ophsd extrapolate_guarded pbsd_seq mad_opd regime_route dasd opct"""
CARRY = """recoverable_hint omni_chunk resample_suffix lgr guided_surprisal bcq_ncq rubric critic_distill reward_decay
    align_dpca noisy_expert"""
BASELINES = ["eopd", "reopold", "aopd"]


pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_method_of_the_catalogue_is_a_recipe_or_says_why_not():
    known = {*RECIPES, *NOT_BUILT}
    for names, verdict, count in ((CORE, "CORE", 15), (OPTION, "OPTION", 24), (CARRY, "CARRY", 11)):
        assert len(names.split()) == count and set(names.split()) <= known
        assert {RECIPES[n].verdict for n in names.split() if n in RECIPES} <= {verdict}
    assert {*CORE.split()} - {"preflight"} <= set(RECIPES), "and that one is a command"
    assert {RECIPES[n].verdict for n in BASELINES} == {"BASELINE"}
    assert {*REFERENCE, *FOUNDATIONS, "evidence_target", "targeted", "pbsd_token", "pbsd_tilt"} <= known


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_says_where_it_comes_from_and_works_from_its_file_alone(name):
    recipe = RECIPES[name]
    for text in (recipe.title, recipe.formula, recipe.source, recipe.published, recipe.ours, recipe.confidence):
        assert text.strip()
    if recipe.lowers_error in ("conditional", "no"):
        assert recipe.lowers_error_why
    for where in recipe.mechanism:
        module, _, attribute = where.rpartition(".")
        assert callable(getattr(importlib.import_module(f"hintdistill.{module}"), attribute))
    assert {n.name for n in needs(recipe)} <= set(HOW)
    raw = yaml.safe_load((recipe_folder() / f"{name}.yaml").read_text())
    again = load_recipe({"preset": name, **raw})
    assert again == recipe


def test_the_entries_are_the_functions():
    """The torch-free entries that check a recipe list exactly what the tensor functions take."""

    def parameters(function, skip):
        names = list(inspect.signature(function).parameters)[skip:]
        return tuple(n for n in names if n not in shape_functions.CONTEXT)

    def listed(entry):
        return tuple(p.name for p in entry.parameters)

    assert {n: parameters(f, 1) for n, f in shape_functions.SHAPES.items()} == {
        e.name: listed(e) for e in parts.SHAPES.entries()
    }
    assert {n: parameters(f, 2) for n, f in DIVERGENCES.items()} == {
        e.name: listed(e) for e in parts.DIVERGENCES.entries() if e.reads == "distributions"
    }
    signals = {n: tuple(p.name for p in taken) for n, taken in parts.SIGNALS.items()}
    assert {n: parameters(f, 2) for n, f in signal_functions.SIGNALS.items()} == {
        n: p for n, p in signals.items() if n in signal_functions.SIGNALS
    }
    assert signals["tanh_contrast"] == parameters(signal_functions.tanh_contrast, 1)
    assert set(SCORES) == set(parts.SCORES) and set(FACTS) == set(parts.FACTS)
    assert (parts.SUPPORTS, parts.RESTS) == (SUPPORTS, RESTS)
    used = {n for t in parts.FACTS.values() for n in t}
    used |= {n for e in parts.HINTS.entries() for n in e.needs} | {n for e in TEACHERS.entries() for n in e.all_needs}
    used |= {n for e in parts.DIVERGENCES.entries() for n, _ in e.needs}
    assert used <= set(HOW)


def test_each_kind_is_a_model_of_its_own():
    """The recipe's JSON schema tells the kinds apart, each with its own parameters and no other's."""
    divergences = {
        k["properties"]["kind"]["const"]: set(k["properties"]) for k in DIVERGENCE_UNION.json_schema()["oneOf"]
    }
    assert set(divergences) == set(parts.DIVERGENCES) and "alpha" in divergences["jsd"]
    assert "alpha" not in divergences["rkl"] and "lam" in divergences["mix"]
    shapes = {k["properties"]["shape"]["const"]: k for k in WEIGHT_UNION.json_schema()["oneOf"]}
    assert set(shapes) == set(parts.SHAPES) and "rho" in shapes["top_frac"]["properties"]
    assert shapes["top_frac"]["properties"]["rho"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    term = Recipe.model_json_schema()["$defs"]["Term"]["properties"]
    assert term["divergence"]["oneOf"] == DIVERGENCE_UNION.json_schema()["oneOf"]
    assert [k["properties"]["shape"]["const"] for k in term["weights"]["items"]["oneOf"]] == list(shapes)


# what the recipe reads, drawn


def batch_for(recipe, *, v=12, n=6, sure=2.5, seed=0, outside=True):
    """A tabular student with one row whose first token is an error: likely to the student, not to the teacher."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=g, dtype=F64)
    wrong, right = 3, 5
    logits[0, wrong] = sure
    logits.requires_grad_()
    views, hidden = {}, {}
    for name, view in {**recipe.used_views("hint"), "teacher": recipe.all_views()["teacher"]}.items():
        # an external teacher reads what the student reads, and speaks against the error all the same
        plain = name != "teacher" and view.context in ("plain", "wrong", "attempt_failure", "peer_failure")
        own = logits.detach() + 0.3 * torch.randn(n, v, generator=g, dtype=F64)
        if not plain:
            own[0, wrong], own[0, right] = (-6.0 if outside else -0.5), 4.0
        if name.startswith("teacher_") and outside:
            # specialists that disagree about the error
            own[0, wrong] += 2.0
        views[name] = own.log_softmax(-1)
    live = {n: v for n, v in recipe.used_views("hint").items() if v.grad}
    for i, name in enumerate(live):
        views[name] = (logits + 0.1 * i * torch.arange(v, dtype=F64)).log_softmax(-1)
    views["student"] = logits.log_softmax(-1)
    if any(t.divergence.kind == "hidden_mse" for t in recipe.terms.values()):
        hidden = {"student": logits[None], "teacher": views["teacher"][None]}
    sampled = logits.detach().argmax(-1)
    sampled[0] = wrong
    facts = {
        "in_quote": torch.tensor([1.0] + [0.0] * (n - 1)),
        "error_span": torch.tensor([1.0] + [0.0] * (n - 1)),
        "in_action": torch.ones(n),
        "since_error": torch.arange(n).float(),
        "reward": torch.zeros(2),
        "advantage": -torch.ones(2),
        "group_acc": torch.full((2,), 0.3),
        "key_span": torch.zeros(n),
        "recorded": torch.full((n,), -1.0),
        "rollout_ppl_S": torch.tensor([[2.0, 3.0], [4.0, math.nan]], dtype=F64),
        "rollout_ppl_T": torch.tensor([[2.0, 3.0], [4.0, math.nan]], dtype=F64),
    }
    return logits, Batch(views, sampled, [n // 2, n - n // 2], facts, hidden), sampled


def shrunk(name):
    """The recipe with top-k supports that leave something out of a vocabulary of twelve."""
    recipe = RECIPES[name]
    terms = {}
    for term, spec in recipe.terms.items():
        own = {"k": 3}
        if spec.support.kind == "token_set":
            own["token_ids"] = [3, 5, 7]
        terms[term] = {"support": own}
    return load_recipe(name, {"terms": terms})


def change(recipe, batch, logits, sampled, step=0):
    """Change of the error token's probability by one small step on this objective."""
    value, metrics = objective(recipe, batch, step=step, generator=torch.Generator().manual_seed(1))
    assert math.isfinite(float(value.detach())) and all(math.isfinite(m) for m in metrics.values())
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(gradient).all()
    scale = 1e-3 / gradient.abs().max().clamp(min=1e-12)
    before, after = (x.detach().log_softmax(-1)[0, sampled[0]].exp() for x in (logits, logits - scale * gradient))
    return float(after - before)


OBJECTIVES = list(RECIPES)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if RECIPES[n].lowers_error == "yes"])
def test_the_error_token_goes_down(name):
    """Also where it lies outside the teacher's top-k."""
    recipe = shrunk(name)
    for outside in (True, False):
        for seed in range(6):
            logits, batch, sampled = batch_for(recipe, seed=seed, outside=outside)
            assert (3 not in batch.views["teacher"][0].topk(3).indices) or not outside
            assert change(recipe, batch, logits, sampled) < 0, (outside, seed)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if RECIPES[n].lowers_error == "conditional"])
def test_a_conditional_promise_can_be_kept(name):
    recipe = shrunk(name)
    changes = []
    for outside in (True, False):
        for seed in range(8):
            logits, batch, sampled = batch_for(recipe, seed=seed, outside=outside, sure=2.5 - 0.3 * seed)
            changes.append(change(recipe, batch, logits, sampled))
    assert min(changes) < 0, "no batch lowers the token"


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if RECIPES[n].lowers_error == "no"])
def test_what_cannot_lower_it_does_not(name):
    """Where the teacher lowers the token and the verifier has nothing against the row, the token is not lowered by much."""
    recipe = shrunk(name)
    moves = []
    for seed in range(6):
        logits, batch, sampled = batch_for(recipe, seed=seed)
        facts = {**batch.facts, "advantage": torch.ones(2), "reward": torch.ones(2)}
        moves.append(
            change(recipe, Batch(batch.views, batch.sampled, batch.lengths, facts, batch.hidden), logits, sampled)
        )
    assert max(moves) >= -1e-12


def test_switches_that_recipes_show_names_do_what_they_say():
    for name, override in (
        ("openclaw_topk", {"terms": {"distill": {"support": {"k": 3, "include_sampled": True}}}}),
        ("revisiting", {"terms": {"distill": {"support": {"k": 3, "include_sampled": True}}}}),
        ("edge_opd", {"terms": {"distill": {"weights": [{"score": "evidence", "shape": "threshold", "below": True}]}}}),
        ("trace", {"terms": {"error": {"coef": 0.5, "support": {"k": 3}, "divergence": {"pointwise_clip": None}}}}),
    ):
        recipe = load_recipe(name, override)
        for seed in range(6):
            logits, batch, sampled = batch_for(recipe, seed=seed)
            assert change(recipe, batch, logits, sampled) < 0, name


SHARPENING = ("pbsd_tilt", "pbsd_token", "scope", "sdar", "veto")
"""What moves a student that already is its teacher: likelihoods and preferences measure no distance, a tilt and Veto's bridge
sharpen."""


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n not in SHARPENING])
def test_an_empty_hint_is_nothing(name):
    """Teacher, contexts and initial policy all equal to the student: loss and gradient vanish."""
    recipe = shrunk(name)
    logits, batch, _ = batch_for(recipe)
    s = batch.views["student"]
    same = {n: s if recipe.all_views().get(n) and recipe.all_views()[n].grad else s.detach() for n in batch.views}
    hidden = dict.fromkeys(batch.hidden, logits[None])
    own = s.detach().gather(-1, batch.sampled[:, None])[:, 0]
    facts = {**batch.facts, "advantage": torch.zeros(2), "recorded": own}
    value, _ = objective(
        recipe, Batch(same, batch.sampled, batch.lengths, facts, hidden), generator=torch.Generator().manual_seed(0)
    )
    (gradient,) = torch.autograd.grad(value, logits, allow_unused=True)
    assert abs(float(value.detach())) < 1e-9
    assert gradient is None or gradient.abs().max() < 1e-9


def test_masked_tokens_do_not_move():
    recipe = load_recipe("hint_sd", {"terms": {"distill": {"span": "quote"}}})
    logits, batch, _ = batch_for(recipe)
    value, metrics = objective(recipe, batch)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[1:] == 0).all() and (gradient[0] != 0).any() and metrics["distill/kept_fraction"] == 1


def test_gates_divide_by_what_they_keep():
    """Normaliser `kept`: a gate is no change of the learning rate; `all` leaves it one."""
    gate = [{"score": "index", "shape": "first_n", "n": 1}]
    _, batch, _ = batch_for(RECIPES["hint_sd"])
    values = {
        how: objective(load_recipe("hint_sd", {"terms": {"distill": {"weights": gate, "normalize": how}}}), batch)[0]
        for how in ("kept", "all", "mean1", "per_row")
    }
    per_token = [
        objective(load_recipe("hint_sd", {"terms": {"distill": {"weights": gate, "normalize": "all"}}}), batch)[1]
    ]
    assert torch.isclose(values["kept"], values["all"] * 3) and torch.isclose(values["mean1"], values["kept"])
    assert torch.isclose(values["per_row"], values["kept"])
    assert per_token[0]["distill/kept_fraction"] == pytest.approx(2 / 6)


def test_complementary_masks_cover_every_token():
    recipe = shrunk("tropd")
    for seed in range(8):
        _, batch, _ = batch_for(recipe, seed=seed)
        from hintdistill.objectives import term

        masks: dict = {}
        g = torch.Generator().manual_seed(seed)
        a = term(recipe.terms["trusted"], batch, masks=masks, generator=g).weights
        b = term(recipe.terms["outliers"], batch, masks=masks, generator=g).weights
        assert torch.equal(a + b, torch.ones_like(a)) and set(a.unique().tolist()) <= {0.0, 1.0}


def test_fire_weights_average_one():
    from hintdistill.objectives import term

    recipe = RECIPES["fire"]
    _, batch, _ = batch_for(recipe)
    out = term(recipe.terms["distill"], batch)
    doubled = load_recipe(
        "fire",
        {
            "terms": {
                "distill": {
                    "weights": [
                        {"score": "H_S", "shape": "affine", "alpha": 1.0},
                        {"score": "one", "shape": "clamp", "high": 7.0},
                    ]
                }
            }
        },
    )
    assert (out.weights >= 0).all() and out.weights.max() <= 4
    b = term(doubled.terms["distill"], batch)
    weighted = b.weights * len(b.weights) / b.weights.sum()
    assert float(b.value.detach()) == pytest.approx(float((weighted * b.per_token).mean().detach()))


def test_nca_has_no_gradient_through_the_plain_view():
    recipe = load_recipe("nca", {"terms": {"distill": None}})
    plain, hinted = (
        torch.randn(4, 9, dtype=F64, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (1, 2)
    )
    views = {"student": plain.log_softmax(-1), "student_hint": hinted.log_softmax(-1)}
    value, _ = objective(recipe, Batch(views, torch.zeros(4, dtype=torch.long), [4]))
    a, b = torch.autograd.grad(value, (plain, hinted), allow_unused=True)
    assert a is None and (b != 0).any()


def test_rlcsd_never_crosses_the_sign_of_the_advantage():
    recipe = RECIPES["rlcsd"]
    from hintdistill.objectives.compose import made_ready
    from hintdistill.objectives.weighing import Drawn, weigh

    for a in (-0.3, 0.3):
        _, batch, _ = batch_for(recipe)
        ready = made_ready(
            recipe.terms["kept"], replace(batch, facts={**batch.facts, "advantage": torch.full((2,), a)})
        )
        fixed = weigh(ready.now, ready.bank, ready.base, recipe.coupling, Drawn({}))
        got = fixed.signal
        assert ((got.sign() == math.copysign(1, a)) | (got == 0)).all() and (got != a).any()
        assert "sign_held" in fixed.metrics


# needs, overrides, contradictions


def test_needs_name_the_missing_piece():
    expected = {
        "rlcsd": {"in_step_teacher", "several_rollouts", "reward"},
        "gkd": {"full_vocabulary", "external_teacher"},
        "tm_opd": {"external_teacher"},
        "targeted": {"union_support"},
        "ar_opd": {"in_step_teacher", "full_vocabulary"},
    }
    for name, wanted in expected.items():
        assert wanted <= {n.name for n in needs(RECIPES[name])}
        if "external_teacher" in wanted:
            lacking = {"external_teacher"}
            with pytest.raises(ConfigError, match="needs what this run does not have") as error:
                require_met(RECIPES[name], available(TrainSection(recipe=name)))
            assert all(n in str(error.value) and HOW[n] in str(error.value) for n in lacking)


RUNNABLE = [n for n in OBJECTIVES if not missing(RECIPES[n], available(TrainSection(recipe=n)))]


def test_what_a_run_can_train_today():
    assert {
        "targeted",
        "evidence_target",
        "hint_sd",
        "hero",
        "rosd",
        "openclaw_pg",
        "openclaw_topk",
        "cursor_targeted",
        "sdpo_feedback",
        "opcd",
        "esr",
        "topk_sg",
        "ta_opd",
        "revisiting",
        "nca",
        "eopd",
        "power",
        "opd_plus",
        "sdar",
        "ptd_po",
        "scope",
    } <= set(RUNNABLE)
    assert set(OBJECTIVES) - set(RUNNABLE) == {"gkd", "minillm", "tm_opd", "rock_freeze"}, (
        "a model, or ids, are a key away"
    )


def test_a_run_stops_before_it_writes(tmp_path):
    run = ["run", "configs/quickstart.yaml", f"run.dir={tmp_path / 'r'}", "train.recipe=gkd"]
    assert "external_teacher" in hintdistill(*run, expect=2).stderr
    assert not (tmp_path / "r").exists()


BASE = ["run.model=m", "traces.path=t.jsonl"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.recipe=hint_s", r"no recipe `hint_s` \(did you mean `hint_sd`\?\)"),
        ("train.recipe.terms.distill.suport.k=3", r"unknown key `terms.distill.suport` \(did you mean `support`\?\)"),
        ("train.recipe.terms.distill.divergence.kind=jds", r"unknown divergence `jds` \(did you mean `jsd`\?\)"),
        (
            "train={recipe: {preset: targeted_jsd, terms: {distill: {divergence: {alfa: .3}}}}}",
            r"unknown key `alfa` of divergence jsd \(did you mean `alpha`\?\)",
        ),
        (
            "train.recipe.terms.distill.divergence={kind: pg, signal: powr}",
            r"unknown signal `powr` \(did you mean `power`\?\)",
        ),
        (
            "train.recipe.terms.distill.weights=[{score: H_s, shape: sigmoid}]",
            r"unknown score `H_s` \(did you mean `H_S`\?\)",
        ),
        (
            "train.recipe.terms.distill.weights=[{score: gap, shape: sigmod}]",
            r"unknown shape `sigmod` \(did you mean `sigmoid`\?\)",
        ),
        (
            "train.recipe.terms.distill.weights=[{score: gap, shape: sigmoid, bta: 1}]",
            r"unknown key `bta` of shape sigmoid",
        ),
        ("train.recipe.terms.distill.weights=[{ref: trust}]", "unknown mask `trust`"),
        ("train.recipe.terms.distill.target.loglin.techer=1", r"unknown view `techer` \(did you mean `teacher`\?\)"),
        (
            "train={recipe: {preset: targeted_jsd, terms: {distill: {support: {kind: sampled}}}}}",
            "jsd compares distributions, but the support `sampled` has only one token",
        ),
        ("train.recipe.terms.distill.support.rest=[renorm, tail]", "an additional tail would count the rest twice"),
        (
            "train={recipe: {preset: targeted_jsd, terms: {distill: {support: {rest: drop}}}}}",
            "lowers the mass of the kept entries",
        ),
        ("train.recipe.terms.distill.divergence={kind: pg}", "pg reads only the sampled token"),
        (
            "train.recipe.terms.distill.divergence={kind: jsd, alpha: 1}",
            "alpha of jsd must lie strictly between 0 and 1",
        ),
        ("train.recipe.terms.distill.target.residual_clip=5", "no anchor is named"),
        ("train.recipe.coupling.kind=adv_mul", "needs a credit"),
        ("train.recipe.terms={distill: null, anchor: null}", "an objective needs at least one term"),
        ("train.recipe.teacher.update=emma", r"unknown teacher rule `emma` \(did you mean `ema`\?\)"),
        ("train.recipe.data.rollout.sourse=student", r"unknown key `data.rollout.sourse` \(did you mean `source`\?\)"),
        ("train.recipe.terms.distil.support.k=3", r"no term `distil` \(did you mean `distill`\?\)"),
        ("train.recipe.views.techer.context=plain", r"no term reads the view `techer` \(did you mean `teacher`\?\)"),
        (
            "train.recipe.terms.distill.target.tilt_sign=advantge",
            r"unknown word `advantge` \(did you mean `advantage`\?\)",
        ),
        (
            "train.recipe.terms.distill.divergence={kind: skew, alpha: 1}",
            "alpha of skew must lie strictly between 0 and 1",
        ),
        ("train.recipe.terms.distill.divergence={kind: mix, lam: 1.5}", "lam of mix must lie between 0 and 1, not 1.5"),
        (
            "train={recipe: {preset: targeted_jsd, terms: {distill: {divergence: {alpha: {from: .5, to: 1, steps: 9}}}}}}",
            "alpha of jsd must lie strictly",
        ),
        (
            "train={recipe: {preset: targeted_jsd, terms: {distill: {divergence: {alpha: half}}}}}",
            "alpha of jsd must be a number or a schedule, not 'half'",
        ),
        ("train.recipe.terms.distill.temperature={from: 0, to: 1, steps: 9}", "greater than 0, at both ends"),
        ("train.recipe.terms.distill.target.mixture={initial: 1.0}", "must be positive and sum to less than 1"),
        (
            "train.recipe.terms.distill.weights=[{score: gap, shape: top_frac, rho: 2}]",
            "rho of top_frac must lie between 0 and 1",
        ),
        ("train.recipe.terms.distill.weights=[{score: contrast, shape: tanh}]", "unknown view `wrong`"),
        (
            "train={recipe: {preset: power, terms: {distill: {divergence: {signal: fdiv, of: klf}}}}}",
            r"unknown `of` of fdiv `klf` \(did",
        ),
        (
            "train={recipe: {preset: power, terms: {distill: {divergence: {alpha: 0}}}}}",
            "alpha of power must lie above 0, not 0",
        ),
        (
            "train={recipe: {preset: power, terms: {distill: {divergence: {clip_low: .2}}}}}",
            "clip_low limits an importance ratio",
        ),
        (
            "train={recipe: {preset: tm_opd, terms: {distill: {divergence: {behaviour: inital}}}}}",
            r"unknown view `inital` \(did you",
        ),
        (
            "train={recipe: {preset: fire, terms: {distill: {divergence: {clip_low: .2}}}}}",
            "both limit the importance ratio",
        ),
        (
            "train={recipe: {preset: vopd, terms: {distill: {divergence: {baseline: null}}}}}",
            "baseline_k belongs to a baseline",
        ),
        ("train={recipe: {preset: contrast_target, views: {wrong: {n: 2}}}}", "the view `wrong` has 2 contexts"),
        ("train.recipe.controllers=[cgtr]", "`controllers` was removed: teacher.update=cgtr"),
        ("train.recipe.kind=diagnostic", "`kind` was removed: every recipe is an objective"),
        ("train.recipe.data.hint.kind=feedbak", r"unknown hint kind `feedbak` \(did you mean `feedback`\?\)"),
        ("train={recipe: hint_sd, targets: stored}", "a teacher with the update rule ema has no stored targets"),
        ("train={recipe: opcd, targets: stored}", "stored targets contain only top-k entries, not the full vocabulary"),
        (
            "train={recipe: {preset: rlcsd, terms: {distill: {support: {k: 5}}}}}",
            "no term `distill`; its terms are kept, rest",
        ),
        ("train={recipe: {preset: trace, terms: {distill: {divergence: {kind: fkl}}}}}", "its terms are key, error"),
        ("train.recipe.terms.distil.divergence.kind=fkl", "no term `distil`.*; its terms are distill, anchor"),
        ("train={recipe: {preset: hint_sd, terms: {anchor: {min_probability: .3}}}}", "no term `anchor`"),
        ("train={recipe: {terms: {mine: {rows: hint}}}}", "a term of your own must name its divergence"),
        ("train.recipe=nowhere/mine.yaml", "no recipe file at .*/nowhere/mine.yaml"),
    ],
)
def test_mistakes_are_refused_at_load(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*BASE, override])


def test_a_coefficient_beside_the_teachers_leaves_the_teachers():
    """The default target is said, so that adding a view to it does not take the teacher away."""
    added = load_recipe("hint_sd", {"terms": {"distill": {"target": {"loglin": {"plain": -0.5}}}}})
    assert added.terms["distill"].target.loglin == {"teacher": 1.0, "plain": -0.5}
    gone = load_recipe("hint_sd", {"terms": {"distill": {"target": {"loglin": {"plain": 1.0, "teacher": None}}}}})
    assert gone.terms["distill"].target.loglin == {"plain": 1.0}


def test_any_scalar_of_a_term_moves_with_the_step():
    """A schedule at the step where it is v gives what the number v gives."""

    def ramp(first, last):
        return {"from": first, "to": last, "steps": 10}

    for name, keys, first, last in (
        ("hint_sd", ("temperature",), 1.0, 3.0),
        ("hint_sd", ("target", "temperature"), 1.0, 3.0),
        ("ar_opd", ("target", "residual_clip"), 0.1, 2.0),
        ("ar_opd", ("target", "mixture", "initial"), 0.01, 0.4),
        ("hint_sd", ("target", "loglin", "initial"), 0.0, 0.5),
        ("decouple", ("divergence", "lam"), 0.0, 1.0),
        ("opsd", ("divergence", "pointwise_clip"), 0.01, 0.5),
        ("hint_sd", ("divergence", "token_clip"), 0.01, 2.0),
        ("power", ("divergence", "alpha"), 0.5, 3.0),
        ("hint_sd", ("coef",), 1.0, 0.0),
    ):

        def made(value, name=name, keys=keys):
            change = value
            for key in reversed(keys):
                change = {key: change}
            return load_recipe(name, {"terms": {"distill": change}})

        _, batch, _ = batch_for(made(first))
        for step, share in ((0, 0.0), (4, 0.4), (10, 1.0), (50, 1.0)):
            moving, _ = objective(made(ramp(first, last)), batch, step=step)
            still, _ = objective(made(first + share * (last - first)), batch)
            assert torch.allclose(moving, still), (name, keys, step)
        assert not torch.allclose(objective(made(first), batch)[0], objective(made(last), batch)[0]), (name, keys)
    window = {
        "terms": {"distill": {"weights": [{"score": "index", "shape": "first_n", "n": ramp(1, 3)}], "normalize": "all"}}
    }
    _, batch, _ = batch_for(RECIPES["hint_sd"])
    kept = [objective(load_recipe("hint_sd", window), batch, step=s)[1]["distill/kept_fraction"] for s in (0, 5, 10)]
    assert kept == pytest.approx([2 / 6, 4 / 6, 1.0])


def test_an_additive_coupling_adds_the_callers_reward_loss():
    recipe = load_recipe("sdar", {"coupling": {"weight": {"from": 0.5, "to": 0.0, "steps": 10}}})
    logits, batch, _ = batch_for(recipe)
    reward = logits.square().mean()
    for step, w in ((0, 0.5), (5, 0.25), (10, 0.0)):
        both, _ = objective(recipe, batch, step=step, reward_loss=reward)
        alone, _ = objective(recipe, batch, step=step)
        assert torch.allclose(both, (1 - w) * reward + w * alone)
    with pytest.raises(ValueError, match="the coupling none adds no reward loss"):
        objective(RECIPES["hint_sd"], batch, reward_loss=reward)


def test_terms_measure_what_they_leave_out():
    """Tail mass of both sides, what a clip bound, and views of several teachers."""
    recipe = shrunk("hint_sd")
    _, batch, _ = batch_for(recipe)
    _, metrics = objective(recipe, batch)
    s, t = batch.views["student"].detach(), batch.views["teacher"]
    kept = s.topk(3).indices
    assert metrics["distill/tail_student"] == pytest.approx(float(1 - s.gather(-1, kept).exp().sum(-1).mean()))
    assert metrics["distill/tail_target"] == pytest.approx(float((1 - t.gather(-1, kept).exp().sum(-1)).mean()))
    _, batch, _ = batch_for(RECIPES["opsd"])
    s, t = batch.views["student"].detach(), batch.views["teacher"]
    _, metrics = objective(RECIPES["opsd"], batch)
    share = ((t.exp() * (t - s)) > 0.05).double().mean()
    assert metrics["distill/clipped_entries"] == pytest.approx(float(share)) and share > 0
    assert "in_step_teacher" in {
        n.name
        for n in needs(
            load_recipe(
                "targeted",
                {
                    "views": {"wrong": {"context": "wrong", "n": 2}},
                    "terms": {
                        "distill": {
                            "support": {"kind": "sampled"},
                            "divergence": {"kind": "pg", "signal": "tanh_contrast"},
                        }
                    },
                },
            )
        )
    }


def test_diagnostics_that_recipes_name_in_words_are_there():
    words = [r.published + "; " + r.ours for r in RECIPES.values()]
    named = {w for text in words for part in re.findall(r"diagnostics ([a-z_, ]+)", text) for w in part.split(", ")}
    assert named and named <= set(DIAGNOSED)


def test_hidden_states_of_the_last_tokens():
    """OPRD's last-k positions are a weight; hidden states that are missing are named."""
    last = {"terms": {"distill": None, "hidden": {"weights": [{"score": "index", "shape": "last_n", "n": 1}]}}}
    hidden = {"support": {"kind": "sampled"}, "divergence": {"kind": "hidden_mse"}, "rows": "hint"}
    recipe = load_recipe({"preset": "hint_sd", "terms": {"hidden": hidden}}, last)
    logits, batch, _ = batch_for(recipe)
    value, _ = objective(recipe, batch)
    (gradient,) = torch.autograd.grad(value, logits)
    moved = (gradient != 0).any(-1).tolist()
    assert moved == [False, False, True, False, False, True]
    bare = Batch(batch.views, batch.sampled, batch.lengths, batch.facts)
    with pytest.raises(KeyError, match="hidden_mse needs hidden states of student, teacher; given: -"):
        objective(recipe, bare)


def test_any_key_can_be_overridden(tmp_path):
    config = load_config(
        None, [*BASE, "train.recipe=hint_sd", "train.recipe.terms.distill.support.k=7", "train.recipe.teacher.rate=.5"]
    )
    recipe = config.train.effective_recipe
    assert recipe.name == "hint_sd" and recipe.terms["distill"].support.k == 7 and recipe.teacher.rate == 0.5
    assert recipe.terms["distill"].support.rest == "tail" and config.train.target_source == "in_step"
    # a divergence of another kind leaves the old one's parameters behind; a scalar becomes a schedule
    over = {
        "terms": {"distill": {"divergence": {"kind": "rkl"}, "coef": {"from": 1, "to": 0, "steps": 9}}, "anchor": None}
    }
    changed = load_recipe("targeted", over)
    assert changed.terms["distill"].divergence.parameters == {} and list(changed.terms) == ["distill"]
    assert changed.terms["distill"].coef.to == 0
    # so does another signal
    signal = load_recipe("power", {"terms": {"distill": {"divergence": {"signal": "floor", "lam": 0.2}}}})
    assert signal.terms["distill"].divergence.parameters == {"signal": "floor", "lam": 0.2}
    # a file of one's own, from a preset
    mine = tmp_path / "mine.yaml"
    mine.write_text("preset: sdpo\ntitle: mine\ndata: {hint: {kind: feedback}}\n")
    own = load_config(None, [*BASE, f"train.recipe={mine}"]).train
    assert (
        own.effective_recipe.name == "mine"
        and own.effective_recipe.teacher.rate == 0.05
        and not missing(own.effective_recipe, available(own))
    )


def test_the_anchors_weight_changes_the_recipe():
    default = TrainSection().effective_recipe
    assert default == load_recipe("targeted") and TrainSection().target_source == "stored"
    halved = TrainSection(anchor={"weight": 0.5}).effective_recipe.terms
    assert halved["anchor"].coef == 0.5 and halved["anchor"].min_probability == 0.5
    assert halved["distill"] == default.terms["distill"]
    assert "anchor" not in TrainSection(anchor={"weight": 0}).effective_recipe.terms
    added = TrainSection(recipe="hint_sd", anchor={"weight": 1.5}).effective_recipe
    assert added.terms["anchor"].coef == 1.5 and added.terms["anchor"].divergence.kind == "fkl"
    assert TrainSection(recipe={"teacher": {"update": "live"}}).target_source == "in_step"
    # the anchor that the weight asks for is there before the recipe's overrides change it
    changed = load_config(
        None, [*BASE, "train.recipe=hint_sd", "train.anchor.weight=1", "train.recipe.terms.anchor.min_probability=.3"]
    ).train.effective_recipe
    assert (changed.terms["anchor"].coef, changed.terms["anchor"].min_probability) == (1.0, 0.3)
    assert changed.terms["anchor"].support == default.terms["anchor"].support and [*changed.terms] == [
        "distill",
        "anchor",
    ]
    own = {"anchor": {"rows": "anchor", "divergence": {"kind": "rkl"}, "target": {"loglin": {"initial": 1.0}}}}
    kept = TrainSection(recipe={"preset": "hint_sd", "terms": own}, anchor={"weight": 1}).effective_recipe.terms[
        "anchor"
    ]
    assert (kept.divergence.kind, kept.min_probability) == ("rkl", 0.0)


def test_a_term_of_ones_own_says_its_rows_or_its_target_and_divergence():
    """The other names of terms are mistakes: they would add a second loss in silence."""
    rows = {"rows": "hint", "divergence": {"kind": "fkl"}, "support": {"kind": "teacher_topk", "k": 5}}
    assert list(load_recipe("rlcsd", {"terms": {"mine": rows}}).terms) == ["kept", "rest", "mine"]
    target = {"target": {"loglin": {"teacher": 1.0}}} | {k: v for k, v in rows.items() if k != "rows"}
    assert "mine" in load_recipe({"preset": "hint_sd", "terms": {"mine": target}}).terms


def test_recipes_are_checked_without_torch():
    code = "import sys; from hintdistill.recipes import *; [load_recipe(n) for n in recipe_names()]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_objectives_need_torch_alone():
    """Not even what the rest of the package depends on."""
    blocked = ["pydantic", "yaml", "jinja2", "transformers", "peft", "pyarrow", "rich", "typer", "openai"]
    modules = ", ".join(f"hintdistill.objectives.{m}" for m in ("chunked", "compose", "controllers", "diagnostics"))
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_custom_loop_runs():
    """About forty lines, with torch alone; with a recipe's name on that recipe."""
    loop = ROOT / "examples" / "custom_loop.py"
    body = ast.parse(loop.read_text()).body[1:]
    assert sum(bool(line.strip()) for node in body for line in ast.unparse(node).splitlines()) <= 45
    blocked = ["pydantic", "yaml", "jinja2", "transformers", "peft", "pyarrow", "rich", "typer", "openai"]
    alone = f"import runpy, sys; sys.modules.update(dict.fromkeys({blocked})); sys.argv = ['loop']; runpy.run_path({str(loop)!r})"
    for command in (["-c", alone], [str(loop), "targeted"], [str(loop), "hint_sd"]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        losses = [float(x) for x in re.findall(r"loss (\S+)", done.stdout)]
        assert losses[-1] < losses[0] / 3


def cli(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_recipes_list_and_show():
    rows = json.loads(cli("recipes", "list", "--json"))
    assert {r["name"] for r in rows} == set(RECIPES)
    shown = cli("recipes", "show", "sdar")
    for words in (
        "formula:",
        "arXiv 2605.15155",
        "released code was read",
        "published:",
        "ours:",
        "not caused by the teacher",
    ):
        assert words in shown
    document = json.loads(cli("recipes", "show", "rlcsd", "--json"))
    assert {"in_step_teacher", "reward"} <= {n["name"] for n in document["needs"]} and document["recipe"]["views"][
        "wrong"
    ]["n"] == 4


def test_the_page_names_every_recipe():
    page = (ROOT / "docs" / "recipes.md").read_text()
    sys.path.insert(0, str(ROOT / "docs"))
    from make_recipes_page import page as made

    assert page == made(), "run `make docs`"
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == set(RECIPES)


def test_what_a_weight_does_is_measured():
    """The metrics of shapes and of a coupling come out beside those of the term."""
    recipe = RECIPES["rlcsd"]
    _, batch, _ = batch_for(recipe)
    batch = replace(batch, facts={**batch.facts, "advantage": torch.full((2,), 0.3)})
    metrics = objective(recipe, batch)[1]
    zero = [v for k, v in metrics.items() if k.endswith("/weight_zero")]
    assert zero and all(0 <= v <= 1 for v in zero) and "kept/sign_held" in metrics

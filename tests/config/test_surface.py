"""The frozen surface, the JSON schema, and keys that are no more."""

from __future__ import annotations

import json

import pytest
import yaml
from conftest import ROOT
from jsonschema import Draft202012Validator
from support.surface import frozen, lines
from typer.testing import CliRunner

from hintdistill.cli.main import app
from hintdistill.config.file import load_config, validate
from hintdistill.config.removed import REMOVED, upgrade
from hintdistill.config.surface import json_schema, leaves
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.recipes import load_recipe
from hintdistill.recipes.library import REMOVED as REMOVED_OF_RECIPES

BASE = ["run.model=m", "traces.path=t.jsonl"]


def test_the_surface_is_frozen():
    gone, new = sorted(set(frozen()) - set(lines())), sorted(set(lines()) - set(frozen()))
    assert not gone and not new, "freeze it again with a reason: python tests/support/surface.py REASON"


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_is_an_error_with_the_new_spelling(key):
    assert key not in {leaf.key for leaf in leaves()}
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*BASE, f"{key}=1"])
    assert caught.value.message == f"the overrides: `{key}` was removed: {REMOVED[key]}"


@pytest.mark.parametrize("key", REMOVED_OF_RECIPES)
def test_a_removed_key_of_recipes_too(key):
    *parents, last = key.split(".")
    change = {last: "x"}
    for part in reversed(parents):
        change = {part: change}
    with pytest.raises(ConfigError) as caught:
        load_recipe("sdpo", change)
    assert f"`{key}` was removed: {REMOVED_OF_RECIPES[key]}" in caught.value.message


def test_what_a_run_of_the_version_before_saved_is_read_with_the_same_meaning():
    saved = yaml.safe_load((ROOT / "tests" / "goldens" / "run_v1" / "config.yaml").read_text())
    config = validate(upgrade(saved))
    assert config.critic.llm.prompts == {"prompt": "critic/toolworld.jinja"}
    assert config.inject.formats == {} and len(config.rescore.gate.checks) == 5
    assert config.train.effective_recipe.terms["anchor"].coef == 1.5 and config.train.recipe == "targeted_jsd"
    saved["train"] |= {"divergence": "fkl", "support": "union_topk", "top_k": 9, "teacher": "round_start"}
    saved["train"] |= {"normalize": "token", "loss_span": "quote_weighted", "quote_weight": 3.0}
    saved["train"]["anchor"]["min_probability"] = 0.25
    saved["train"]["outcome"] = {"baseline": "round", "normalise": False, "clip_low": 0.1, "clip_high": None}
    saved["critic"]["llm"] |= {
        "strategy": "binary_search",
        "step_prompt": "critic/mine.jinja",
        "price_in": 1,
        "price_out": 2,
    }
    saved["inject"]["turn_format"] = "({hint})"
    saved["rescore"]["gate"]["check_leak"] = False
    config = validate(upgrade(saved))
    distill, anchor = config.train.effective_recipe.terms["distill"], config.train.effective_recipe.terms["anchor"]
    assert (distill.divergence.kind, distill.support.kind, distill.support.k) == ("fkl", "union", 9)
    assert (distill.span, distill.quote_weight, distill.normalize) == ("quote_weighted", 3.0, "kept")
    assert (anchor.min_probability, anchor.normalize, anchor.coef) == (0.25, "kept", 1.5)
    assert config.train.effective_recipe.teacher.update == "round_start" and config.train.outcome.clip == (0.1, None)
    assert config.critic.llm.prompts == {"half_prompt": "critic/half.jinja", "step_prompt": "critic/mine.jinja"}
    assert config.critic.llm.price == (1, 2) and config.inject.formats == {"assistant_turn": "({hint})"}
    assert "leak" not in config.rescore.gate.checks and len(config.rescore.gate.checks) == 4


def saved_train(**changes):
    """A configuration that schema 1 saved, with changes in its section `train`; `anchor` is merged."""
    saved = yaml.safe_load((ROOT / "tests" / "goldens" / "run_v1" / "config.yaml").read_text())
    anchor = saved["train"]["anchor"] | {"weight": None} | changes.pop("anchor", {})
    saved["train"] |= {"targets": None, "anchor": anchor} | changes
    return saved


def test_saved_recipes_of_every_form_are_translated():
    old_keys = {"preset": "targeted", "diagnostics": ["locality"], "data": {"locator": "critic", "rollout": {"n": 4}}}
    recipe = validate(upgrade(saved_train(recipe=old_keys, top_k=9))).train.effective_recipe
    assert recipe.terms["distill"].support.k == 9 and list(recipe.terms) == ["distill", "anchor"]
    # no term `distill`: the settings of all hint terms reach its own
    recipe = validate(upgrade(saved_train(recipe="trace", loss_span="quote", normalize="token"))).train.effective_recipe
    assert [(n, t.span, t.normalize) for n, t in recipe.terms.items()] == [
        ("key", "quote", "kept"),
        ("error", "quote", "kept"),
    ]
    # no anchor: the default one, as schema 1 added it
    bound = {"weight": 1.0, "min_probability": 0.3}
    terms = validate(upgrade(saved_train(recipe="hint_sd", anchor=bound))).train.effective_recipe.terms
    assert (terms["anchor"].rows, terms["anchor"].coef, terms["anchor"].min_probability) == ("anchor", 1.0, 0.3)
    bound["weight"] = None
    terms = validate(upgrade(saved_train(recipe="hint_sd", anchor=bound))).train.effective_recipe.terms
    assert terms["anchor"].coef == load_recipe().terms["anchor"].coef and terms["anchor"].min_probability == 0.3
    bound["weight"] = 0
    assert "anchor" not in validate(upgrade(saved_train(anchor=bound))).train.effective_recipe.terms
    own = {"preset": "hint_sd", "terms": {"mine": {"divergence": {"kind": "fkl"}, "coef": 0.5}}}
    assert list(validate(upgrade(saved_train(recipe=own))).train.effective_recipe.terms) == ["distill", "mine"]


@pytest.mark.parametrize("recipe", ["targeted", {"terms": {"distill": {"span": "quote"}}}, "hint_sd"])
def test_a_recipe_saved_as_the_default_stays_what_it_was(recipe):
    saved = validate({"run": {"model": "m"}, "traces": {"path": ["t.jsonl"]}, "train": {"recipe": recipe}}).model_dump(
        mode="json"
    )
    read = validate(upgrade(saved, 3)).train.effective_recipe
    was = (
        {"preset": "targeted_jsd", **recipe} if isinstance(recipe, dict) else recipe.replace("targeted", "targeted_jsd")
    )
    assert read == load_recipe(was) and (read.terms["distill"].divergence.kind == "jsd") == (recipe != "hint_sd")


def test_a_saved_config_without_a_translation_says_who_made_it():
    with pytest.raises(
        InputError, match=r"schema 1 and cannot be translated: .*trace has no term `distill`; .* key, error"
    ):
        upgrade(saved_train(recipe="trace", divergence="fkl"))
    with pytest.raises(InputError, match="schema 1 and cannot be translated: KeyError: 'train'"):
        upgrade({"run": {}})


def test_the_json_schema_names_every_key():
    said = CliRunner().invoke(app, ["config", "schema"])
    assert said.exit_code == 0
    schema = json.loads(said.stdout)

    def keys(node, prefix=""):
        for name, inner in node["properties"].items():
            options = [inner, *inner.get("anyOf", [])]
            inside = [schema["$defs"][o["$ref"].rpartition("/")[2]] for o in options if "$ref" in o]
            if inside:
                yield from keys(inside[0], f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", inner

    found = dict(keys(schema))
    wanted = {leaf.key: leaf for leaf in leaves()}
    assert set(found) == set(wanted)
    assert all(found[k].get("description", "") == leaf.meaning for k, leaf in wanted.items())
    recipe = json.loads(CliRunner().invoke(app, ["config", "schema", "--recipe"]).stdout)
    assert {"terms", "teacher", "coupling"} <= set(recipe["properties"])


def test_the_json_schema_takes_what_the_loader_takes():
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    check = Draft202012Validator(schema)
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert not [e.message for e in check.iter_errors(yaml.safe_load(path.read_text()))], path
    base = {"run": {"model": "m"}}
    several = [
        {"traces": {"path": ["a", "b"]}},
        {"critic": {"use": "rules"}},
        {"critic": {"llm": {"prompt": ["a", "b"]}}},
        {"critic": {"llm": {"prompt": "a"}}},
    ]
    assert all(check.is_valid(base | part) for part in several)
    wrong = [
        {"traces": {"path": 3}},
        {"critic": {"use": "rule"}},
        {"critic": {"use": []}},
        {"inject": {"placements": ["mesage"]}},
        {"critic": {"llm": {"price": 1}}},
        {"train": {"outcome": {"clip": 0.2}}},
    ]
    assert not any(check.is_valid(base | part) for part in wrong)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("critic.llm={strategy: binary_search, prompt: a.jinja}", "takes 2 prompts in place of critic/half.jinja"),
        ("critic.llm.prompt=[a.jinja, b.jinja]", "the strategy all_at_once takes 1 prompt"),
        (
            "critic.llm={strategy: step_by_step, prompt: critic/all_at_once.jinja}",
            r"critic/all_at_once.jinja is the shipped prompt for another role \(prompt\), where the strategy step_by_step "
            "uses critic/step.jinja",
        ),
        (
            "critic.llm={strategy: binary_search, prompt: [critic/step.jinja, a.jinja]}",
            "uses critic/half.jinja",
        ),
        ("critic.llm.prompt=critic/repair.jinja", r"another role \(repair\)"),
        ("critic.llm.price=[-1, 2]", "must not be negative"),
        ("train.outcome.clip=[2, null]", "a low end between 0 and 1"),
        ("rescore.gate.checks=[leeks]", "'legal_gain', 'specific', 'leak'"),
    ],
)
def test_folded_values_are_checked(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*BASE, override])


@pytest.mark.parametrize(
    ("strategy", "prompts"),
    [
        ("all_at_once", {"prompt": "critic/all_at_once.jinja"}),
        ("step_by_step", {"step_prompt": "critic/step.jinja"}),
        ("binary_search", {"half_prompt": "critic/half.jinja", "step_prompt": "critic/step.jinja"}),
    ],
)
def test_another_strategy_brings_its_own_prompts(strategy, prompts):
    config = load_config(ROOT / "configs" / "llm-critic.yaml", [f"critic.llm.strategy={strategy}"])
    assert config.critic.llm.prompts == prompts
    own = load_config(None, [*BASE, f"critic.llm={{strategy: {strategy}, prompt: {[*'ab'][: len(prompts)]}}}"])
    assert list(own.critic.llm.prompts.values()) == ["a", "b"][: len(prompts)]

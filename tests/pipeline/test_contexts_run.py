"""Contexts in a run on the shipped rollouts: what is made, what is counted, and that every method trains on it."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT, STUDENT
from support.command import hintdistill

from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.pipeline.contexts import texts_by_task
from hintdistill.pipeline.shards import require_shardable
from hintdistill.planning.contexts import lines, preview
from hintdistill.recipes import load_recipe, recipe_names

CONFIG = ROOT / "configs" / "methods.yaml"
NAMED = """cursor_targeted gkd tropd ptd_po cgtr mopd_peers esr topk_sg ta_opd revisiting nca ar_opd rlsd rlcsd sdpo sdpo_feedback
    sdft opsd hero rosd trace hint_sd openclaw_pg openclaw_topk tm_opd"""
FEWER = "traces.limit=48"
"""For the recipes that are not named above; six tasks with eight rollouts each are enough for all of them but `gndpo`, which scales the
gaps of a step's rows by their mean: the five hints that train there are one step five times, and nothing is left."""
ROCKS = "{score: token_id, shape: freeze, ids: [5, 6, 7], weight: 0.0}"
SETTINGS = {"rock_freeze": [f"train.recipe.terms.distill.weights=[{ROCKS}]"]}
"""What a recipe does not run without."""


def test_rollouts_are_shown_at_every_step_and_what_lacks_one_is_counted():
    config = load_config(CONFIG, ["train.recipe=ogls", "traces.limit=16"])
    found = preview(config, limit=200)
    assert found.maker == "solution" and found.counted["context"] >= 16
    made = [s for s in found.steps if "hint" in s]
    assert all("A correct solution" in s["hint"] and s["placement"] == "system_prompt" for s in made)
    assert all({"peer_success", "peer_failure"} == set(s["views"]) for s in made)
    assert sum(found.counted.values()) == len(found.steps)
    assert len({(s["trace"], s["step"]) for s in found.steps}) == len(found.steps), "every step once"


def test_render_says_what_is_missing():
    bare = ["traces.limit=8", "inject.hint=solution", "inject.steps=every", "inject.contexts.solutions=null"]
    found = preview(load_config(CONFIG, bare), limit=1)
    assert set(found.counted) == {"no_solution"} and "no_solution" in list(lines(found))[-1]
    told = hintdistill(
        "contexts", "render", str(CONFIG), "train.recipe=sdpo", "traces.limit=8", "--most", "1", "--json"
    )
    document = json.loads(told.stdout)
    assert document["maker"] == "peer_success" and len(document["steps"]) == 1
    assert "peer_success" in hintdistill("contexts", "list").stdout


def test_a_shard_has_not_all_rollouts():
    require_shardable(load_config(CONFIG, ["train.recipe=opsd"]), "rescore")
    with pytest.raises(ConfigError, match="peer_success is made of other rollouts of the same task"):
        require_shardable(load_config(CONFIG, ["train.recipe=sdpo"]), "rescore")


def test_what_the_configuration_says_goes_before_the_recipe():
    own = load_config(CONFIG, ["train.recipe=sdpo"])
    assert (own.injecting.hint, own.injecting.steps, own.rescoring.gate.enabled) == ("peer_success", "every", False)
    assert own.injecting.placements == ("system_prompt",) and own.rescoring.placebos == {}
    said = ["inject.hint=critic", "inject.steps=findings", "rescore.gate.enabled=true", "inject.placements=[message]"]
    other = load_config(CONFIG, ["train.recipe=sdpo", *said])
    assert (other.injecting.hint, other.injecting.steps) == ("critic", None) and other.rescoring.gate.enabled
    assert other.injecting.placements == ("message",) and len(other.rescoring.placebos) == 3
    plain = load_config(CONFIG, [])
    assert plain.injecting.hint == "critic" and plain.rescoring == plain.rescore


def test_texts_by_task_in_both_forms(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"task": "a", "text": "first"}\n{"task": "a", "text": "second"}\n', encoding="utf-8")
    assert texts_by_task(path) == {"a": "first"}
    shown = texts_by_task(ROOT / "examples" / "toolworld" / "demonstrations.jsonl")
    assert shown and all(text.startswith("assistant: ") for text in shown.values())
    for wrong in ('{"task": "a"}\n', '{"task": "a", "text": ""}\n', "no JSON\n"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(InputError):
            texts_by_task(path)


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """A model of the student's family that is not the student: what an external teacher is."""
    folder = tmp_path_factory.mktemp("another")
    hintdistill("run", "configs/quickstart.yaml", f"run.dir={folder / 'run'}", "traces.limit=60", "--until", "train")
    return folder / "run" / "student"


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_a_method_trains_on_the_shipped_rollouts(name, another, tmp_path):
    more = [*SETTINGS.get(name, []), *([] if name in {*NAMED.split(), "gndpo"} else [FEWER])]
    if load_recipe(name).teacher.update == "external":
        more.append(f"train.recipe.teacher.model={another}")
    run = ["run", "configs/methods.yaml", f"train.recipe={name}", *more, f"run.dir={tmp_path / 'run'}"]
    hintdistill(*run, "train.logging_steps=1", "--until", "train")
    summary = json.loads((tmp_path / "run" / "student" / "hintdistill.json").read_text())
    metrics = [json.loads(line) for f in (tmp_path / "run" / "train").glob("*/metrics.jsonl") for line in f.open()]
    losses = [(r["loss"], r["grad_norm"]) for r in metrics if "loss" in r]
    assert summary["hint_rows"] > 0 and all(abs(loss) < 100 for loss, _ in losses)
    assert any(loss != 0 and gradient > 1e-6 for loss, gradient in losses), "nothing was learnt"
    assert (tmp_path / "run" / "student" / "model.safetensors").stat().st_size > 0 and STUDENT.is_dir()

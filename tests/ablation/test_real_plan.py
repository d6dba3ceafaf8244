"""What a job of benchmarks/real.py depends on: results of 2026-11-28 stay valid, and what matters is still in the key."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks.realmodel import arms, jobs, plan, recipes
from benchmarks.realmodel.plan import PREREG, Announced, Plan, announced
from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError
from hintdistill.core.storage import content_key

ROOT = Path(__file__).resolve().parents[2]
BUDGET = {"rows": 40, "anchors": 40, "twins": 40, "steps": 20}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Plans of configs/real.yaml; the weights' key needs none."""
    monkeypatch.setattr(plan, "resolve_model", lambda name: Path(name))
    monkeypatch.setattr(plan, "model_key", lambda folder: type("Key", (), {"weights": "weights"}))

    def make(*overrides: str, folder: Path = tmp_path) -> Plan:
        return Plan(
            load_config(ROOT / "configs" / "real.yaml", ["run.model=m", *overrides]), folder, 64, BUDGET, {"v": ["v.0"]}
        )

    return make


def of_the_record(data: dict, at: str) -> dict:
    """What the record names of nested settings."""
    known = set(json.loads(plan.AS_OF.read_text())["settings"])
    kept = {k: v for k, v in data.items() if f"{at}.{k}" in known}
    return {k: of_the_record(v, f"{at}.{k}") if isinstance(v, dict) else v for k, v in kept.items()}


def test_the_key_of_a_job_of_the_first_arms_is_made_of_what_it_was_made_of(made):
    here = made()
    assert here.changed() == {}
    data = here.config.model_dump(mode="json", include={"rollout", "inject", "rescore", "train"})
    # the sections said so then; now they are silent where the recipe says it
    assert data["inject"]["hint"] is None and data["rescore"]["gate"]["enabled"] is None
    data["inject"]["hint"], data["rescore"]["gate"]["enabled"] = "critic", True
    data = {name: of_the_record(value, name) for name, value in data.items()}
    own = {"episodes": 64, "budget": BUDGET, "tasks": {"v": ["v.0"]}, "train": {}}
    # the checkout's folder is left out: a run that another checkout opened would be another one
    data["rollout"]["environment"] = "examples/smollm2/errands.py:Errands"
    then = {**own, **data, "weights": "weights"}
    assert here.content() == then
    for arm in ("shared", "none", "targeted", "sft_corrected", "targeted_twins", "placebo", "wrong_hint"):
        job = jobs.RealJob(here, arm, 2, "label", {"learning_rate": 2e-3})
        assert job.key() == content_key("real", arm, 2, {"learning_rate": 2e-3}, then)


def test_the_numbers_and_names_that_the_record_holds_are_those_of_the_key(made):
    known = json.loads(plan.AS_OF.read_text())["settings"]
    assert len(known) == len(set(known)) >= 119 and "rescore.gate.min_odds_nats" in known
    # the record and the content of the plain configuration are pinned, so a change of either is seen
    told = made().content()
    told["rollout"]["environment"] = "E"
    assert content_key(told["train"]) == PINNED["train"] and content_key(told["rescore"]) == PINNED["rescore"]


PINNED = {"train": "75a673d47be8827c4d148625", "rescore": "60ae5bed998465ea7fa62767"}


def test_a_newer_setting_counts_where_it_is_not_at_its_default():
    known = {"train", "train.batch_size"}
    data = {"batch_size": 8, "newer": 1, "part": {"also_newer": 2}}
    plain = {"batch_size": 4, "newer": 1, "part": {"also_newer": 2}}
    assert plan._older(data, plain, "train", known) == {"batch_size": 8}
    assert plan._older({**data, "newer": 3}, plain, "train", known) == {"batch_size": 8, "newer": 3}


def test_another_checkout_of_the_same_environment_is_the_same_environment(made):
    here = jobs.RealJob(made(), "targeted", 0).key()
    for path, same in (("/elsewhere/examples/smollm2", True), ("/elsewhere/examples/other", False)):
        there = jobs.RealJob(made(f"rollout.environment={path}/errands.py:Errands"), "targeted", 0)
        assert (there.key() == here) is same


def test_a_recipe_or_hint_that_says_something_else_is_another_job(made, tmp_path):
    mine = tmp_path / "targeted.yaml"
    said = yaml.safe_load((ROOT / "configs" / "recipes" / "targeted.yaml").read_text())
    said["terms"]["anchor"]["coef"] = 3.0
    mine.write_text(yaml.safe_dump(said))
    hints = tmp_path / "prompts"
    (hints / "hints").mkdir(parents=True)
    (hints / "hints" / "wrong_tool.jinja").write_text("Another one.")
    keys = {jobs.RealJob(p, "targeted", 0).key() for p in (made(), made(f"critic.prompts={hints}"))}
    assert len(keys) == 2
    assert list(made(f"train.recipe={mine}").changed()) == [f"recipe {mine}"]


def test_other_recipes_have_keys_of_their_own_and_need_the_traces_of_the_arms(made):
    one, other = recipes.recipe_jobs(made(), ["hint_sd", "sdpo_feedback"], [0])
    again, seed = recipes.recipe_jobs(made(), ["hint_sd"], [0, 1])
    assert one.key() == again.key() and len({j.key() for j in (one, other, seed)}) == 3
    assert one.plan.config.train.recipe == "hint_sd" and one.name == "seed0/recipe.hint_sd"
    with pytest.raises(ConfigError, match="seed0/shared is owed"):
        one.run(lambda n: None)


def test_a_second_round_depends_on_the_first(made):
    first = jobs.RealJob(made(), "targeted", 0)
    second = jobs.RealJob(made(), "targeted", 0, round=2)
    assert second.first() == first and second.name == "seed0/targeted.round2" and second.key() != first.key()
    changed = jobs.RealJob(made(), "targeted", 0, change={"learning_rate": 1.0}, round=2)
    assert changed.key() != second.key()
    (drift,) = jobs.drifts_of([first, jobs.RealJob(made(), "none", 0), jobs.RealJob(made(), "rule", 0)])
    assert drift.name == "seed0/targeted.drift"


def test_arms_with_later_makers_are_jobs_of_their_own_and_leave_the_announced_ones_as_they_were(made):
    what, _ = announced()
    later = ("shared_twins", *arms.MORE)
    titles = [j.title for j in jobs.jobs_of(made(), what)]
    assert set(later) <= {*what.added} and all(titles.count(name) == len(what.seeds) for name in later)
    keys = {name: jobs.RealJob(made(), name, 0).key() for name in (*later, "targeted_twins", "shared", "targeted")}
    assert len(set(keys.values())) == len(keys)
    assert not [j for j in jobs.drifts_of(jobs.jobs_of(made(), what)) if "shared" in j.name]
    with pytest.raises(ConfigError, match="shared is owed"):
        jobs.RealJob(made(), "targeted_stop_twins", 0).run(lambda n: None)


def held(kind: str, error_class: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(kind=kind, error_class=error_class)


@pytest.mark.parametrize(
    ("arm", "stop", "other", "hold"),
    [
        ("targeted", False, False, False),
        ("targeted_twins", False, True, False),
        ("targeted_stop_twins", True, True, False),
        ("targeted_stop_hold", True, True, True),
    ],
)
def test_what_an_arm_holds(made, arm, stop, other, hold):
    assert arms._held_by(arm, held("twin", "stopped_early")) is stop
    assert arms._held_by(arm, held("twin", "repeated_step")) is other
    assert arms._held_by(arm, held("hold")) is hold and not arms._held_by(arm, held("anchor"))
    section = arms.section_of(arm, made().config.train, {"learning_rate": 1e-3}, {})
    assert (section.twins.per_finding, section.hold.split) == (3 if stop else int(other), "stop" if hold else None)
    terms = section.effective_recipe.terms.values()
    assert {t.rows for t in terms} >= {"hint", *(["twin"] if other else []), *(["hold"] if hold else [])}
    others = jobs._others(jobs.RealJob(made(), arm, 0))
    assert others == {k: 40 for k, of in (("twin", other), ("hold", hold)) if of}


def test_the_run_folder_of_later_makers_differs_in_what_it_holds_alone(made, tmp_path):
    one, more = (jobs.run_config(made(), 0, tmp_path, held=h) for h in (None, arms.HELD))
    assert (more.train.twins.per_finding, more.train.hold.split, more.train.hold.limit) == (3, "stop", 40)
    put_back = {"twins": one.train.twins, "hold": one.train.hold}
    assert more.model_copy(update={"train": more.train.model_copy(update=put_back)}) == one


# -- what is announced ---------------------------------------------------------------------------------------------------


def test_the_announced_arms_are_first_and_deviations_have_a_date_and_a_reason(made):
    what, said = announced()
    assert what.arms == ("targeted", "sft_corrected", "targeted_twins", "placebo", "wrong_hint") and said["rounds"] == 1
    assert all(d["date"] and d["why"] for d in what.deviations) and len(what.deviations) >= 2
    titles = [j.name for j in jobs.jobs_of(made(), what)]
    assert titles[:4] == ["seed0/shared", "seed0/none", "seed0/targeted", "seed0/sft_corrected"]
    assert titles.index("seed2/wrong_hint") < titles.index("seed0/targeted.round2") < titles.index("seed0/sft_gold")
    assert len(set(titles)) == len(titles)
    known = {t.partition("/")[2] for t in titles}
    assert all(a in known and b in known for a, b, _ in what.secondary)


def test_an_added_name_may_be_an_arm_with_settings_of_its_own(made):
    what = Announced((), ("tuned",), (), (), (), (), {"tuned": {"arm": "targeted", "learning_rate": 0.1}}, (0,), ())
    job = jobs.jobs_of(made(), what)[-1]
    assert (job.arm, job.title, dict(job.change)) == ("targeted", "tuned", {"learning_rate": 0.1})


@pytest.mark.parametrize(
    ("deviation", "told"),
    [
        ({"date": "d", "change": {}}, "date, why and change"),
        ({"date": "d", "why": "w", "change": {"seeds": [1]}}, "cannot change 'seeds'"),
        ({"date": "d", "why": "w", "change": {"train": {"targeted": {}}}}, "no deviation adds"),
    ],
)
def test_a_deviation_that_says_too_little_or_too_much_is_refused(tmp_path, deviation, told):
    said = yaml.safe_load(PREREG.read_text()) | {"deviations": [deviation]}
    path = tmp_path / "real.yaml"
    path.write_text(yaml.safe_dump(said))
    with pytest.raises(ConfigError, match=told):
        announced(path)


def test_what_stood_in_the_file_when_it_was_committed_still_stands_there():
    import subprocess

    first = subprocess.run(
        ["git", "show", f"{plan.commit_of(PREREG)}:benchmarks/prereg/real.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert PREREG.read_text().startswith(first.removesuffix("[]\n").rstrip())

"""From result files to the document and its page: fair rows, the sweep's choice, noise, predictions, aims. Nothing is trained."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
from conftest import ROOT
from test_evidence import CONFIG, target

from benchmarks.ablation.ablate import BenchJob
from benchmarks.ablation.jobs import Job, family, job_config, job_key
from benchmarks.ablation.pages import write_evidence
from benchmarks.ablation.scale import scaled
from benchmarks.ablation.settings import load_ablation
from benchmarks.ablation.sweep import chosen_settings, sweep_config, sweep_jobs, swept_arms, with_chosen
from benchmarks.ablation.table import summarise_jobs
from hintdistill.core.errors import ConfigError
from hintdistill.pipeline.arms import Budget, draw_rows, result_of

SETTINGS = ("test@0", "test@1", "test_clean@1", "transfer@1", "near_miss_unknown_tool@0")
SEEDS = (0, 1, 2)
N = 40


@pytest.fixture(scope="module")
def config():
    return load_ablation(CONFIG, ["ablate.seeds=[0,1,2]", "ablate.bootstrap=300"])


# -- equal rows ----------------------------------------------------------------------------------------------------------------


TWELVE = Budget(rows=12, anchors=12, steps=1)


def rows(n: int, kind: str):
    one = dataclasses.replace(target([0.5], [0.1], (0, 1), 0), kind=kind, accepted=True)
    return [dataclasses.replace(one, key=f"{kind}-{i}") for i in range(n)]


def test_every_arm_trains_on_as_many_rows_and_none_three_times_before_all_twice():
    chosen, distinct = draw_rows([*rows(5, "hint"), *rows(30, "anchor")], TWELVE, "s")
    hints = [t.key for t in chosen if t.kind == "hint"]
    assert len(hints) == 12 == len(set(hints)) and distinct == {"hint": 5, "anchor": 12}
    times = np.unique([k.split("#")[0] for k in hints], return_counts=True)[1]
    assert sorted(times) == [2, 2, 2, 3, 3] and sum(t.kind == "anchor" for t in chosen) == 12
    assert [t.key for t in draw_rows([*rows(5, "hint"), *rows(30, "anchor")], TWELVE, "s")[0]] == [
        t.key for t in chosen
    ]


def test_a_share_of_the_anchors_comes_from_what_is_held():
    held = [dataclasses.replace(t, key=f"held-{t.key}") for t in rows(4, "anchor")]
    chosen, distinct = draw_rows([*rows(12, "hint"), *rows(30, "anchor")], TWELVE, "s", held)
    keys = [t.key for t in chosen if t.kind == "anchor"]
    assert len(keys) == len(set(keys)) == 12 and sum(k.startswith("held-") for k in keys) == 6
    assert distinct == {"hint": 12, "anchor": 6 + 4}


def test_without_filling_rows_are_a_bound_and_what_the_gate_rejected_is_never_drawn():
    rejected = [dataclasses.replace(t, accepted=False) for t in rows(9, "hint")]
    chosen, distinct = draw_rows([*rows(0, "hint"), *rejected, *rows(3, "anchor")], TWELVE, "s")
    assert distinct == {"hint": 0, "anchor": 3} and [t.kind for t in chosen] == ["anchor"] * 12
    chosen, _ = draw_rows([*rows(5, "hint"), *rows(30, "anchor")], dataclasses.replace(TWELVE, fill=False), "s")
    assert sum(t.kind == "hint" for t in chosen) == 5


# -- jobs ----------------------------------------------------------------------------------------------------------------------


def test_a_result_of_other_settings_is_owed_again(config, tmp_path):
    job = Job("common", "hint", 0)
    (tmp_path / job.name).mkdir(parents=True)
    (tmp_path / job.name / "result.json").write_text(json.dumps({"key": job_key(config, job), "arm": "hint"}))
    assert result_of(tmp_path, BenchJob(config, tmp_path, job)) is not None
    for override in (
        "ablate.rows=64",
        "ablate.train.hint.learning_rate=1.0e-3",
        "ablate.limits={}",
        "rollout.sample.episodes=24",
    ):
        other = load_ablation(CONFIG, ["ablate.seeds=[0,1,2]", override])
        assert result_of(tmp_path, BenchJob(other, tmp_path, job)) is None, override
    same = load_ablation(CONFIG, ["ablate.seeds=[0]", "ablate.processes=1", "ablate.bootstrap=100"])
    assert result_of(tmp_path, BenchJob(same, tmp_path, job)) is not None, "what no result depends on"


def test_a_job_goes_to_another_process_as_it_is(config, tmp_path):
    job = BenchJob(config, tmp_path, Job("common", "hint", 0))
    assert job.config.train.effective_recipe.name == "targeted"
    sent = pickle.loads(pickle.dumps(job))
    assert sent == job and sent.key() == job.key()


def test_what_is_shared_does_not_depend_on_how_arms_train(config):
    shared, other = (
        Job("common", "shared", 0),
        load_ablation(CONFIG, ["ablate.train.hint.learning_rate=1.0e-3"]),
    )
    assert job_key(config, shared) == job_key(other, shared)
    assert job_key(config, Job("common", "hint", 0)) != job_key(other, Job("common", "hint", 0))


def test_whose_settings_an_arm_trains_with(config, tmp_path):
    assert {family(a) for a in ("stale", "foreign", "llm_critic", "hint_outcome", "step:50+gate", "hint")} == {"hint"}
    tuned = with_chosen(config, {"hint": {"setting": {"learning_rate": 9e-4}}})
    rate = lambda arm: job_config(tuned, Job("common", arm, 0), tmp_path).train.learning_rate  # noqa: E731
    assert rate("hint") == rate("step:50") == rate("llm_critic") == 9e-4
    beside = job_config(tuned, Job("common", "hint_outcome", 0), tmp_path).train
    assert (
        beside.learning_rate == 9e-4
        and beside.outcome.baseline == "round"
        and beside.effective_recipe.coupling.kind == "additive"
    )
    assert (
        beside.effective_recipe.terms
        == job_config(tuned, Job("common", "hint", 0), tmp_path).train.effective_recipe.terms
    )
    assert rate("placebo") == 2e-4 and rate("sft_success") == 1.6e-3, "as the configuration says"


def test_what_an_arm_changes_is_merged_into_the_section_key_by_key(config):
    own = [
        "train.anchor={weight: 3.0, per_trace: 2}",
        "train.recipe={preset: sdpo, terms: {anchor: {rows: anchor, divergence: {kind: fkl}}}}",
        "ablate.train.placebo={anchor: {weight: 1.0}, recipe: {terms: {distill: {coef: 0.5}}}}",
        "ablate.train.sft_success={recipe: {terms: {distill: {coef: 0.5, divergence: {kind: rkl}}}}}",
        "ablate.train.wrong_hint={recipe: opsd}",
    ]
    tuned = load_ablation(CONFIG, own)
    section = lambda arm: job_config(tuned, Job("common", arm, 0), None).train  # noqa: E731
    ours, base = section("placebo"), tuned.train
    assert (ours.anchor.weight, ours.anchor.per_trace) == (1.0, 2)
    terms, before = ours.effective_recipe.terms, base.effective_recipe.terms
    assert base.effective_recipe.name == ours.effective_recipe.name == "sdpo"
    assert terms["distill"] == before["distill"].model_copy(update={"coef": 0.5})
    assert section("wrong_hint").effective_recipe.name == "opsd" and section("wrong_hint").anchor == base.anchor
    sft = section("sft_success").effective_recipe.terms["distill"]
    assert (sft.coef, sft.divergence.kind) == (0.5, "fkl"), "cross-entropy survives a change of the recipe"


def test_cross_entropy_is_given_to_every_term_of_hint_rows(config, tmp_path):
    renamed = {
        "preset": "targeted",
        "terms": {"distill": None, "mine": {"rows": "hint", "divergence": {"kind": "jsd"}}},
    }
    tuned = load_ablation(CONFIG, [f"train.recipe={json.dumps(renamed)}"])
    terms = job_config(tuned, Job("common", "sft_corrected", 0), tmp_path).train.effective_recipe.terms
    assert "distill" not in terms and terms["mine"].divergence.kind == "fkl"
    assert terms["anchor"] == tuned.train.effective_recipe.terms["anchor"]


def test_a_jobs_key_is_of_content_wherever_the_files_are(tmp_path):
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
        (folder / "world.py").write_text("class World: ...\n")
        (folder / "recipe.yaml").write_text("preset: targeted\nterms: {distill: {coef: 0.5}}\n")
    paths = lambda f: [f"rollout.environment={f}/world.py:World", f"train.recipe={f}/recipe.yaml"]  # noqa: E731
    key = lambda f, arm="hint": job_key(load_ablation(CONFIG, paths(f)), Job("common", arm, 0))  # noqa: E731
    here, there = folders
    assert key(here) == key(there)
    before, shared = key(there), key(there, "shared")
    (there / "recipe.yaml").write_text("preset: targeted\nterms: {distill: {coef: 0.25}}\n")
    assert key(there) != before and key(there, "shared") == shared
    (there / "world.py").write_text("class World:\n    other = True\n")
    assert key(there, "shared") != shared


def test_a_config_without_an_ablate_section_is_told_so_first():
    with pytest.raises(ConfigError, match="the `ablate` section is missing"):
        load_ablation(ROOT / "configs" / "quickstart.yaml")


# -- the sweep -----------------------------------------------------------------------------------------------------------------


def test_every_arm_tries_as_many_settings_on_other_tasks_and_seeds(config):
    asked = scaled(config, quick=False, full=True, sweep=True)
    trials = sweep_config(asked)
    shared, jobs = sweep_jobs(asked)
    assert {j.arm for j in jobs} == {*swept_arms(asked)} == {a for a in config.ablate.arms if a != "none"}
    assert len(jobs) == 7 * 4 and [j.seed for j in shared] == [100] and len({j.name for j in jobs}) == len(jobs)
    assert trials.ablate.test_split == "validation" and not trials.ablate.near_splits and not trials.ablate.sweep.use
    rates = {job_config(trials, j, None).train.learning_rate for j in jobs if j.arm == "sft_success"}
    assert rates == {2e-4, 4e-4, 8e-4, 1.6e-3}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ablate.sweep.own={placebo: [{learning_rate: 1.0e-4}]}"], "own.placebo has 1 settings, the other arms 4"),
        (["ablate.sweep.use=true", "ablate.sweep.settings=[]", "ablate.sweep.own={}"], "needs ablate.sweep.settings"),
        (["ablate.sweep.seeds=[3]"], "seed 3 is in ablate.seeds and in ablate.sweep.seeds"),
        (["ablate.sweep.use=true", "ablate.sweep.split=test"], "would choose on test"),
    ],
)
def test_an_unfair_sweep_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_ablation(CONFIG, overrides)


def test_the_best_mean_success_is_taken_and_an_edge_is_said(config):
    def trial(index: int, *success: float) -> dict:
        outcomes = {
            s: [{"task": f"x.none.{i}", "success": i < share * 10} for i in range(10)]
            for s, share in zip(("a@0", "a@1"), success, strict=True)
        }
        return {
            "arm": "hint",
            "setting": index,
            "seed": 100,
            "outcomes": outcomes,
            "off_target": {"x": {"kl_per_token": 0.1}},
        }

    got = chosen_settings(config, [trial(0, 0.2, 0.3), trial(1, 0.9, 0.4), trial(2, 0.7, 0.6), trial(3, 0.1, 0.1)])[
        "hint"
    ]
    assert got["chosen"] == 1 and got["setting"] == {"learning_rate": 2e-4} and not got["at_edge"], (
        "of equals the first"
    )
    assert got["trials"][2]["success"] == {"a@0": 0.7, "a@1": 0.6} and got["trials"][0]["kl_per_token"] == 0.1
    assert chosen_settings(config, [trial(0, 0.1, 0.1), trial(1, 0.2, 0.2), trial(3, 0.9, 0.9)])["hint"]["at_edge"]


def test_what_is_to_be_kept_is_half_of_the_criterion(config):
    def trial(index: int, common: bool, near: bool) -> dict:
        played = [{"task": f"x.none.{i}", "success": common} for i in range(9)] + [
            {"task": "x.near_noun.none.9", "success": near}
        ]
        return {"arm": "hint", "setting": index, "outcomes": {"a@0": played}, "off_target": {}}

    got = chosen_settings(config, [trial(0, True, False), trial(1, False, True)])["hint"]
    assert [t["success"]["a@0"] for t in got["trials"]] == [0.9, 0.1] and [t["kept"] for t in got["trials"]] == [0, 1]
    assert [t["mean"] for t in got["trials"]] == pytest.approx([0.45, 0.55]) and got["chosen"] == 1


# -- the document --------------------------------------------------------------------------------------------------------------


def outcomes(success: float, errors: dict[str, float], seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "task": f"t{i}",
            "success": bool(rng.random() < success),
            "errors": [e for e, p in errors.items() if rng.random() < p],
            "failure": None,
        }
        for i in range(N)
    ]


def result(arm: str, seed: int, success: float, left: float, repair: float) -> dict:
    errors = {"unknown_tool": 0.4 * left, "skipped_lookup": 0.3 * left}
    played = {s: outcomes(success if s in SETTINGS[:2] else 0.95, errors, seed) for s in SETTINGS}
    predicted = [
        {"error_class": c, "findings": 9, "repair": {"mean": repair, "low": repair - 0.1, "high": repair + 0.1}}
        for c in errors
    ]
    counts = dict.fromkeys(
        ("episodes", "failed", "findings", "candidates", "rejected", "rows", "distinct", "anchors", "traces", "steps"),
        7,
    )
    if arm == "shared":
        return {
            "regime": "common",
            "arm": arm,
            "seed": seed,
            "cpu_seconds": 5.0,
            "initial": played,
            "success_in_rollouts": 0.4,
            "hinted": {s: outcomes(0.95, {}, seed) for s in SETTINGS[:2]},
            "predicted": predicted,
            "effects": {"all": [-2.0, -3.0], "accepted": [-3.0], "placebo": []},
        }
    between = {"test@1": played["test@1"][:20]}
    return {
        "regime": "common",
        "arm": arm,
        "seed": seed,
        "cpu_seconds": 6.0,
        "outcomes": played,
        "predicted": predicted,
        "rounds": [
            counts | {"round": 1, "tripwire": None, "outcomes": between},
            counts | {"round": 2, "tripwire": "collapse: 9 of 9" if arm == "placebo" else None},
        ],
        "off_target": {
            n: {"kl_per_token": 0.002, "kl_p99": 0.1, "top1_flip_rate": 0.001} for n in ("clean", "near_misses")
        },
        "train": {"learning_rate": 1e-4},
    }


ARMS = {  # success, share of errors left, predicted repair
    "shared": (0.35, 1.0, 0.8),
    "hint": (0.85, 0.1, 0.9),
    "placebo": (0.38, 0.95, 0.05),
    "full_trace": (0.6, 0.5, 0.5),
    "sft_success": (0.5, 0.8, 0.2),
    "step:0": (0.8, 0.1, 0.8),
    "step:50": (0.5, 0.5, 0.5),
    "step:100": (0.2, 1.0, 0.0),
    "step:50+gate": (0.8, 0.2, 0.7),
    "alarm:10": (0.8, 0.2, 0.7),
}


@pytest.fixture(scope="module")
def document(config):
    results = [result(arm, seed, *numbers) for arm, numbers in ARMS.items() for seed in SEEDS]
    sessions = [
        {"phase": "arms", "jobs": 30, "seconds": 60.0, "processes": 2, "processor": "x", "cores": 2, "commit": "c"}
    ]
    return summarise_jobs(config, results, sessions)


def test_intervals_pairs_and_errors(document):
    data = document["regimes"]["common"]
    hint = data["arms"]["hint"]
    gap = hint["gap_closed"]["test@1"]
    assert gap["low"] < gap["mean"] < gap["high"] and gap["mean"] == pytest.approx(0.85, abs=0.15)
    assert data["arms"]["placebo"]["settings"]["test@1"]["minus_hint"]["high"] < 0
    left = hint["settings"]["test@1"]["errors_left"]
    assert set(left) >= {"unknown_tool", "skipped_lookup", "one wrong token", "a wrong plan"}
    assert left["unknown_tool"] == left["one wrong token"] and left["unknown_tool"]["mean"] < 0.3
    assert data["effects"]["all"]["n"] == 6 and data["effects"]["placebo"] == {"n": 0, "median_nats": None}
    assert [c["tasks"] for c in hint["curve"]] == [20, 20, 20]
    assert [t["seed"] for t in data["arms"]["placebo"]["tripwires"]] == [0, 1, 2]


def test_predictions_meet_measurements_with_an_interval(document):
    line, points = document["preflight"]["line"], document["preflight"]["points"]
    assert {p["arm"] for p in points} == set(ARMS) - {"shared"} and {p["error_class"] for p in points} == {
        "unknown_tool",
        "skipped_lookup",
    }
    assert (
        line["points"] == len(points) == 18 and 0.6 < line["r2"]["low"] < line["r2"]["mean"] < line["r2"]["high"] <= 1
    )
    assert line["r2_identity"]["mean"] <= line["r2"]["mean"]


def test_where_the_gain_is_gone_and_what_the_gate_recovers(document):
    noise = document["noise"]
    assert [(r["percent"], r["gate"]) for r in noise["rows"] if r["kind"] == "step"] == [
        (0, False),
        (50, False),
        (100, False),
        (0, True),
        (50, True),
    ]
    (tie,) = [t for t in noise["ties"] if (t["kind"], t["gate"], t["setting"]) == ("step", False, "test@1")]
    assert 50 < tie["crosses_zero_at"] < 100 and tie["interval_reaches_zero_at"] in (50, 100)
    (gate,) = [g for g in noise["gate"] if g["setting"] == "test@1" and g["kind"] == "step"]
    assert 0.6 < gate["recovered"] < 1.1 and gate["with"] > gate["without"]


def test_aims_are_said_plainly(document):
    aims = {(a["aim"], a["where"]): a["reached"] for a in document["aims"]}
    assert aims["off-target KL, nats per token", "common, near_misses"] is False
    assert aims["top-1 flips", "common, near_misses"] is True
    assert aims["share of the targeted gain, placebo", "common, test@1"] is True
    assert aims["share of the true critic's gain, half of the steps wrong, gate on", "test@1"] is True
    assert aims["full_trace minus targeted", "common, test@1"] is True
    assert aims["errors left, unknown_tool", "common, test@1"] is True


def test_the_page_shows_every_table(document, tmp_path):
    write_evidence(document, tmp_path)
    page = (tmp_path / "evidence.md").read_text()
    for heading in (
        "## Aims",
        "### Errors by class, T=0",
        "### Errors by class, T=1",
        "### What else moved",
        "## Critic noise",
        "### What the gate recovers",
        "## Predicted and measured repair",
        "### Success after each round",
        "## Settings",
    ):
        assert heading in page
    assert (
        "Tripwire in placebo hint, seed 1, round 2: collapse: 9 of 9" in page and "128 rows (steps of a trace" in page
    )
    assert "near_miss_unknown_tool@0" in page and "nan" not in page
    assert json.loads((tmp_path / "evidence.json").read_text())["schema"] == 2


@pytest.mark.parametrize("change, panels", [({}, 5), ({"regimes": 2}, 6), ({"noise": None}, 4)])
def test_the_figure_has_a_panel_for_each_question(document, change, panels, tmp_path):
    regimes = document["regimes"] | ({"rare": document["regimes"]["common"]} if "regimes" in change else {})
    noise = {"rows": [], "ties": [], "gate": []} if "noise" in change else document["noise"]
    write_evidence(document | {"regimes": regimes, "noise": noise}, tmp_path)
    assert (tmp_path / "evidence.svg").read_text().count('<g id="axes_') == panels


# -- the whole thing, tiny -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tiny_ablation_with_a_sweep_is_resumed_job_by_job(tmp_path):
    """Sweep, two arms and critic noise; a second start does only what was taken away."""
    from benchmarks.ablation.ablate import ablate

    settings = load_ablation(
        CONFIG,
        [
            "ablate.seeds=[0]",
            "ablate.arms=[hint,llm_critic,hint_outcome,none]",
            "ablate.noise=[step:50]",
            "ablate.sweep.use=true",
            "ablate.limits={}",
            "ablate.limit=4",
            "ablate.sweep.limit=4",
            "ablate.sweep.own={}",
            "ablate.sweep.settings=[{learning_rate: 1.0e-4}]",
            "ablate.steps=2",
            "ablate.rows=6",
            "ablate.bootstrap=100",
            "ablate.processes=1",
            "rollout.sample.episodes=16",
            "report.off_target_steps=6",
        ],
    )
    folder = tmp_path / "run"
    document = ablate(settings, folder)
    arms = document["regimes"]["common"]["arms"]
    assert set(arms) == {"hint", "llm_critic", "hint_outcome", "step:50"} and document["sweep"]["hint"]["chosen"] == 0
    assert all(r["steps"] == 2 and r["rows"] == r["anchors"] == 6 for r in arms["hint"]["rounds"])
    beside, alone = (arms[name]["rounds"][0] for name in ("hint_outcome", "hint"))
    assert beside["steps"] == 2 and beside["rows"] == 6 and beside["traces"] > alone["traces"]
    assert document["regimes"]["common"]["effects"]["system_prompt"]["n"] > 0
    again = folder / "common" / "hint" / "seed-0" / "result.json"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("result.json")}
    again.unlink()
    repeated = ablate(settings, folder, resume=True)
    assert {p for p, t in before.items() if p.stat().st_mtime_ns != t} == {again}
    ours, theirs = (d["regimes"]["common"]["arms"]["hint"]["settings"] for d in (repeated, document))
    assert ours == theirs and repeated["sessions"][-1]["jobs"] == 1

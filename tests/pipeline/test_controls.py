"""`hintdistill controls` on a small run of the shipped student: equal rows and steps, the order of the arms, resume arm by arm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hintdistill.cli.main import app
from hintdistill.config.file import load_as, load_config, validate
from hintdistill.core.errors import ConfigError, EmptyFunnelError
from hintdistill.pipeline import run as whole_run
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.controls import ARMS, ArmRun, Bench, ControlsSettings, run_controls
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.report import add_controls
from hintdistill.pipeline.store import RunDir

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET = Console(quiet=True)
SMALL = load_as(ControlsSettings, None, ["rows=16", "steps=16", "clean_steps=8"])
SOME = ("placebo", "random_step", "sft_corrected")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run up to rescore: controls need no trained student."""
    folder = tmp_path_factory.mktemp("controls") / "run"
    settings = ["critic.use=[rules,recorded]", "traces.limit=80", "traces.holdout=0.3", "rollout.environment=null"]
    whole_run.run(load_config("configs/quickstart.yaml", settings), folder, until="rescore", console=QUIET)
    return folder


@pytest.fixture(scope="module")
def document(run) -> dict:
    return run_controls(run, SMALL, SOME, console=QUIET)


def arm(document: dict, name: str) -> dict:
    return next(a for a in document["arms"] if a["arm"] == name)


def test_every_arm_has_as_many_rows_anchors_and_steps(document):
    assert [a["arm"] for a in document["arms"]] == ["hint", *SOME], "the hint always takes part"
    assert {(a["rows"], a["anchors"], a["steps"]) for a in document["arms"]} == {
        (document["equal"]["rows"], document["equal"]["anchors"], document["equal"]["steps"])
    }
    assert document["equal"]["rows"] == document["equal"]["steps"] == 16
    assert all(0 < a["distinct"]["hint"] <= 16 for a in document["arms"])


def test_the_error_falls_by_the_hint_and_not_by_a_placebo_or_another_step(document):
    hint = arm(document, "hint")["fall_nats"]
    assert hint["low"] > 0 and arm(document, "hint")["share_of_hint"]["mean"] == 1.0
    for name in ("placebo", "random_step"):
        control = arm(document, name)
        assert control["fall_nats"]["mean"] < hint["mean"] / 3, name
        assert control["share_of_hint"]["high"] < 0.6, name
    held = document["heldout"]
    assert held["probability_hinted"] < arm(document, "hint")["probability_after"] < held["probability_before"]
    assert all(0 <= a["kl_per_token"] < 0.1 for a in document["arms"])


def test_corrections_are_the_hinted_models_and_what_critics_object_to_is_left_out(document):
    counts, critics = document["corrections"]["counts"], document["corrections"]["critics"]
    lost = sum(counts.get(n, 0) for n in ("no_place", "too_long", "cut", "unreadable", "objected"))
    assert critics == ["rules"] and counts["asked"] == counts["kept"] + lost and counts["kept"] > counts["asked"] / 2
    assert arm(document, "sft_corrected")["train"]["recipe"]["terms"] == {"distill": {"divergence": {"kind": "fkl"}}}


def test_an_arm_without_a_result_is_owed_and_no_other(run, document):
    with pytest.raises(ConfigError, match="already has controls"):
        run_controls(run, SMALL, SOME, console=QUIET)
    again = run / "controls" / "placebo" / "result.json"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("result.json")}
    assert {p.parent.name for p in before} == {"hint", *SOME}
    again.unlink()
    repeated = run_controls(run, SMALL, SOME, resume=True, console=QUIET)
    assert {p for p, t in before.items() if p.stat().st_mtime_ns != t} == {again}
    ours, theirs = (arm(d, "placebo") for d in (repeated, document))
    assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    assert not list((run / "controls").rglob("*.safetensors")), "trained weights are removed"


def test_the_document_is_in_the_folder_and_the_report(run, document):
    stored = json.loads((run / "controls.json").read_text())
    assert stored["schema"] == 1 and [a["arm"] for a in stored["arms"]] == ["hint", *SOME]
    assert json.loads((run / "report.json").read_text())["controls"] == stored
    page = (run / "report.html").read_text()
    assert "Is the effect the hint&#39;s?" in page and "hint at random step" in page and "rules" in page
    whole_run.report_only(run, QUIET)
    assert json.loads((run / "report.json").read_text())["controls"] == stored, "a report written again keeps it"


def test_the_command_prints_a_table_and_does_nothing_twice(run, document):
    said = CliRunner().invoke(
        app, ["controls", str(run), "rows=16", "steps=16", "clean_steps=8", "--arms", "placebo", "--resume", "-q"]
    )
    assert said.exit_code == 0, said.output
    for text in ("targeted hint", "placebo hint", "SFT on corrections", "16 optimiser steps", "controls.json"):
        assert text in " ".join(said.output.split()), text


def test_arms_that_have_a_result_stay_in_the_document_while_their_settings_are_the_same(run, document):
    def arms(*overrides: str) -> list[str]:
        settings = load_as(ControlsSettings, None, ["rows=16", "steps=16", "clean_steps=8", *overrides])
        found = run_controls(run, settings, ("placebo",), resume=True, console=QUIET)
        assert (found["corrections"] is None) == ("sft_corrected" not in [a["arm"] for a in found["arms"]])
        return [a["arm"] for a in found["arms"]]

    assert arms() == ["hint", *SOME]
    assert arms("train.sft_corrected.learning_rate=1.0e-3") == ["hint", "placebo", "random_step"]


def bench_of(run: Path, *overrides: str, **sections: dict) -> Bench:
    """The bench of the run as it would be under other settings; its folder is only read."""
    opened = RunDir.open(run)
    data = opened.manifest()["config"]
    config = validate(data | {name: data[name] | keys for name, keys in sections.items()})
    return Bench(RunContext(config, opened, QUIET), load_as(ControlsSettings, None, overrides))


def test_an_arms_keys_are_merged_into_the_runs_and_corrections_stay_cross_entropy(run):
    own = {"anchor": {"weight": 3.0, "per_trace": 2}, "recipe": {"preset": "sdpo"}}
    changes = ["train.placebo.anchor.weight=1", "train.placebo.recipe.terms.distill.coef=0.5"]
    changes += ["train.sft_corrected.recipe.terms.distill.divergence.kind=rkl"]
    bench = bench_of(run, *changes, train=own)
    sections = {a.name: bench.section_of(a) for a in bench.arms(ARMS)}
    base, placebo, corrected = sections["hint"], sections["placebo"], sections["sft_corrected"]
    assert (placebo.anchor.weight, placebo.anchor.per_trace) == (1, base.anchor.per_trace) == (1, 2)
    assert placebo.effective_recipe.name == base.effective_recipe.name == "sdpo"
    assert placebo.effective_recipe.terms["distill"].coef == 0.5
    assert corrected.effective_recipe.terms["distill"].divergence.kind == "fkl"


def test_another_content_of_recipe_or_prompt_is_another_key(run, tmp_path):
    recipe, prompt = tmp_path / "recipe.yaml", tmp_path / "placebo" / "generic.jinja"
    recipe.write_text("preset: targeted\n")

    def keys() -> dict[str, str]:
        settings = {"train": {"recipe": str(recipe)}, "critic": {"prompts": str(tmp_path)}}
        bench = bench_of(run, **settings)
        return {a.name: ArmRun(bench, a).key() for a in bench.arms(ARMS)}

    before = keys()
    recipe.write_text("preset: targeted\nterms: {distill: {coef: 0.5}}\n")
    edited = keys()
    assert all(edited[name] != before[name] for name in ARMS)
    prompt.parent.mkdir()
    prompt.write_text("Take care with this step.")
    assert {name for name, key in keys().items() if key == edited[name]} == {"hint"}


def test_accepted_hints_of_no_fidelity_that_may_be_trained_are_an_empty_funnel(run):
    with pytest.raises(EmptyFunnelError, match=r"train\.fidelity"):
        bench_of(run, train={"fidelity": ["reserialised"]})


def test_without_a_report_the_document_is_kept_and_that_is_said(tmp_path, capsys):
    config = load_config("configs/quickstart.yaml", [])
    add_controls(RunDir(tmp_path), config, {"schema": 1}, Console())
    assert json.loads((tmp_path / "controls.json").read_text()) == {"schema": 1}
    said = capsys.readouterr()
    assert "has no report yet" in " ".join((said.out + said.err).split()) and len(list(tmp_path.iterdir())) == 1


def test_what_is_wrong_is_said_before_the_folder_is_looked_at_and_names_its_own_page(run, tmp_path):
    with pytest.raises(ConfigError, match="no arm 'sham'"):
        run_controls(tmp_path / "none", SMALL, ("sham",), console=QUIET)
    with pytest.raises(ConfigError) as unknown:
        load_as(ControlsSettings, None, ["foo=3"])
    assert unknown.value.hint == "docs/controls.md lists all keys"
    manifest = json.loads((run / "manifest.json").read_text()) | {"schema": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="run schema 1") as older:
        run_controls(tmp_path, SMALL, console=QUIET)
    assert "run.dir" not in older.value.hint


@pytest.mark.parametrize(
    ("overrides", "arms", "message"),
    [
        (["stepz=3"], ARMS, "unknown key `stepz` .*steps"),
        (["steps=0"], ARMS, "steps"),
        ([], ("placebo", "sham"), "no arm 'sham'"),
        (["train.sham.learning_rate=1"], ARMS, "no arm 'sham'"),
        (["train.placebo.learning_rat=1"], ARMS, "arm placebo: unknown key `train.learning_rat`"),
    ],
)
def test_what_does_not_hold_is_said_before_anything_is_trained(run, document, overrides, arms, message):
    with pytest.raises(ConfigError, match=message):
        run_controls(run, load_as(ControlsSettings, None, overrides), arms, resume=True, console=QUIET)


def test_a_run_whose_targets_are_made_in_the_step_is_refused(tmp_path):
    settings = ["critic.use=[rules]", "traces.limit=4", "rollout.environment=null", "train.targets=in_step"]
    whole_run.run(
        load_config("configs/quickstart.yaml", [*settings, "train.recipe.teacher.update=live"]),
        tmp_path,
        until="read",
        console=QUIET,
    )
    with pytest.raises(ConfigError, match=r"train\.targets=stored"):
        run_controls(tmp_path, SMALL, console=QUIET)


def test_an_ablate_section_in_a_runs_config_is_told_where_it_went(tmp_path):
    with pytest.raises(ConfigError, match=r"benchmarks/ablation/ablate\.yaml"):
        load_config("configs/quickstart.yaml", ["ablate.rows=4"])


def test_a_dry_run_says_which_arms_are_owed_and_writes_nothing(run, document):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    words = ["controls", str(run), "rows=16", "steps=16", "clean_steps=8", "--dry-run"]
    with pytest.raises(ConfigError, match="already has controls"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    ahead = json.loads(CliRunner().invoke(app, [*words, "--resume", "--json"], catch_exceptions=False).stdout)
    assert {*ahead["arms"], *ahead["finished"]} == set(ARMS) and {"hint", "placebo"} <= set(ahead["finished"])
    assert (ahead["hints"], ahead["steps"], ahead["money"]) == (16, 16, 0.0) and ahead["tokens"] > 0
    text = CliRunner().invoke(app, [*words, "--resume"], catch_exceptions=False).stdout
    assert text.startswith(f"arms: {', '.join(ahead['arms'])} (already finished: ") and "\nbytes: " in text
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before

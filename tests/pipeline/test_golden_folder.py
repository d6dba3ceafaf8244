"""A run folder of an earlier release (goldens/run_v1, run schema 1): show and report read it, --resume refuses it by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from hintdistill.cli.main import app
from hintdistill.config.file import load_config, validate
from hintdistill.core.errors import ConfigError, HintdistillError, InputError
from hintdistill.pipeline.store import RUN_SCHEMA, RunDir

GOLDEN = ROOT / "tests" / "goldens" / "run_v1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN, tmp_path / "run")
    monkeypatch.chdir(ROOT)  # its paths are relative to where the shell was
    return tmp_path / "run"


def run(*args: object) -> None:
    app([str(a) for a in args], standalone_mode=False)


def figures(folder: Path) -> dict:
    """The report without what names files of this machine, and without the gate's settings that have other names today."""
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    document["run"] = {k: v for k, v in document["run"].items() if k not in ("model", "config")}
    document["gate"] = {k: document["gate"][k] for k in ("null_pass_rate", "bound", "min_drop_nats", "max_raise_nats")}
    return document


def test_show_reads_it(folder, capsys):
    run("show", folder)
    assert "unknown_tool" in capsys.readouterr().out
    first = json.loads((folder / "report.json").read_text())["findings"][0]
    run("show", folder, f"{first['trace']}:{first['step']}", "--json")
    assert json.loads(capsys.readouterr().out)[0]["hint"] == first["hint"]


def test_report_reads_it_and_finds_the_same_figures(folder):
    """Nothing is measured again: its weights are not in the repository. What this release adds to the report may be there."""
    manifest = (folder / "manifest.json").read_bytes()
    card = (folder / "student" / "README.md").read_bytes()
    before = figures(folder)
    run("report", folder, "-q")
    after = figures(folder)
    assert contained(before, after) == []
    assert (folder / "manifest.json").read_bytes() == manifest, "a folder of schema 1 stays one"
    assert (folder / "student" / "README.md").read_bytes() == card, "the card says with what the student was made"
    run("report", folder, "--share")
    assert "examples/" not in (folder / "report-share.json").read_text()


def contained(before, after, path: str = "") -> list[str]:
    """Paths of what the old report says and the new one says otherwise, to 1e-9."""
    if isinstance(before, dict):
        missing = [f"{path}.{k}" for k in before if k not in after]
        return missing + [p for k in before if k in after for p in contained(before[k], after[k], f"{path}.{k}")]
    if isinstance(before, list):
        if len(before) != len(after):
            return [path]
        return [p for i, (a, b) in enumerate(zip(before, after, strict=True)) for p in contained(a, b, f"{path}.{i}")]
    close = isinstance(before, float) and isinstance(after, float) and abs(before - after) <= 1e-9 * max(1, abs(before))
    return [] if close or before == after else [path]


def test_resume_refuses_it_by_name_and_changes_nothing(folder):
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    overrides = [f"run.dir={folder}", "critic.use=[rules]", "rollout.environment=null"]
    with pytest.raises(
        ConfigError, match=r"made with run schema 1 \(hintdistill 0\.1\.0\), but this release continues only 2"
    ) as caught:
        run("run", "configs/quickstart.yaml", "--resume", "-q", *overrides)
    assert "run.dir=" in caught.value.hint and "show" in caught.value.hint
    with pytest.raises(ConfigError, match="made with run schema 1"):
        RunDir.create(folder, load_config("configs/quickstart.yaml", overrides), resume=True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files


def test_report_of_a_moved_folder_names_the_key_of_the_missing_file(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"near_misses\.jsonl") as caught:
        run("report", folder, "-q")
    assert caught.value.hint.startswith("report.off_target.") and caught.value.hint.endswith(" names it")


@pytest.mark.parametrize("named", [True, False])
def test_resume_with_the_folder_s_own_config_speaks_of_the_schema_first(folder, named):
    """Its config.yaml has keys and paths of before, which are not the trouble."""
    with pytest.raises(ConfigError, match=r"made with run schema 1 \(hintdistill 0\.1\.0\)"):
        run("run", folder / "config.yaml", "--resume", "-q", *([f"run.dir={folder}"] if named else []))


def test_its_configuration_is_read_and_unknown_keys_are_named(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    config, unknown = RunDir.open(folder).config()
    assert config.run.model == str(ROOT / "examples" / "toolworld" / "student") and config.rescore.top_k == 8
    assert unknown == [], "what has another name today is translated"
    manifest["config"]["train"]["gone"], manifest["config"]["gone"] = 1, {"a": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    again, unknown_too = RunDir.open(folder).config()
    assert again == config and set(unknown_too) == {*unknown, "train.gone", "gone"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"schema": 99}', "run schema 99, but this release reads only 1 and 2"),
        ("[]", "does not hold a JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_without_a_traceback(folder, text, says):
    (folder / "manifest.json").write_text(text)
    for command in (["report", folder, "-q"], ["push", folder, "me/x"]):
        with pytest.raises(HintdistillError, match=says):
            run(*command)
    with pytest.raises(InputError, match=says):
        RunDir.open(folder).config()


def test_a_folder_of_this_release_carries_its_schema(tmp_path):
    made = RunDir.create(tmp_path / "run", load_config(ROOT / "configs" / "quickstart.yaml"), resume=False)
    made.close()
    manifest = made.manifest()
    assert manifest["schema"] == RUN_SCHEMA == 2
    assert validate(manifest["config"]) == made.config()[0] == load_config(made.path / "config.yaml")
    RunDir.create(tmp_path / "run", made.config()[0], resume=True).close()

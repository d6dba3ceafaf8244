"""Paths in a config file are relative to the file, those in overrides to the shell's folder; what is no path stays as it is."""

from __future__ import annotations

import glob
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, STUDENT, TOOLWORLD
from support.command import hintdistill

from hintdistill.config import RunConfig
from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError
from hintdistill.core.paths import contents, map_paths, object_content
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run as run_pipeline
from hintdistill.pipeline.store import RunDir

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TEXT = """
run: {model: students/a, dir: out/run, initial: owner/Model-0.5B}
traces: {path: [t.jsonl, "more/*.jsonl"], tools: ../tools.json}
critic:
  use: [rules]
  prompts: prompts
  cache: answers.jsonl
  checker: world.py:check
  recorded: {path: findings.jsonl}
  llm: {backend: local, model: critics/b, prompt: critic/all_at_once.jinja}
  strong: {base_url: http://localhost:1/v1, model: some/name}
train: {recipe: {preset: mine.yaml, teacher: {update: external, model: teachers/c}}}
rollout: {environment: "package.module:World"}
report: {off_target: {near: near.jsonl}}
"""


@pytest.fixture
def folder(tmp_path):
    """A config in a folder that the shell is not in, with a recipe beside it and the folders that its models are in."""
    folder = tmp_path / "project" / "configs"
    for name in ("students/a", "critics/b", "teachers/c"):
        (folder / name).mkdir(parents=True)
    (folder / "c.yaml").write_text(TEXT)
    (folder / "mine.yaml").write_text("preset: targeted\n")
    return folder


def paths_of(config: RunConfig) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}

    def note(key, mark, value):
        found.setdefault(key, []).append(value)
        return value

    map_paths(config.model_dump(mode="json"), RunConfig, note)
    return found


def test_paths_are_relative_to_the_file_wherever_the_shell_is(folder, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    found = []
    for shell, name in (
        (tmp_path / "elsewhere", folder / "c.yaml"),
        (folder, "c.yaml"),
        (folder.parent, "configs/c.yaml"),
    ):
        monkeypatch.chdir(shell)
        found.append(paths_of(load_config(name)))
    assert found[0] == found[1] == found[2]
    assert found[0] == {
        "run.model": [f"{folder}/students/a"],
        "run.dir": [f"{folder}/out/run"],
        "run.initial": ["owner/Model-0.5B"],
        "traces.path": [f"{folder}/t.jsonl", f"{folder}/more/*.jsonl"],
        "traces.tools": [f"{folder.parent}/tools.json"],
        "critic.prompts": [f"{folder}/prompts"],
        "critic.cache": [f"{folder}/answers.jsonl"],
        "critic.checker": [f"{folder}/world.py:check"],
        "critic.recorded.path": [f"{folder}/findings.jsonl"],
        "critic.llm.model": [f"{folder}/critics/b"],
        "train.recipe.preset": [f"{folder}/mine.yaml"],
        "train.recipe.teacher.model": [f"{folder}/teachers/c"],
        "rollout.environment": ["package.module:World"],
        "report.off_target.near": [f"{folder}/near.jsonl"],
    }


def test_overrides_are_relative_to_the_shell(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["traces.path=u.jsonl", "critic.llm={backend: vllm, model: ./b}", "report.off_target.far=far.jsonl"]
    overrides += ["train.recipe.teacher.model=./d", "rollout.environment=w.py:World", "run.dir=~/runs"]
    found = paths_of(load_config(folder / "c.yaml", overrides))
    assert found["traces.path"] == [f"{tmp_path}/u.jsonl"] and found["critic.llm.model"] == [f"{tmp_path}/b"]
    assert found["report.off_target.far"] == [f"{tmp_path}/far.jsonl"]
    assert found["report.off_target.near"] == [f"{folder}/near.jsonl"], "what no override sets stays the file's"
    assert found["train.recipe.teacher.model"] == [f"{tmp_path}/d"]
    assert found["train.recipe.preset"] == [f"{folder}/mine.yaml"]
    assert found["rollout.environment"] == [f"{tmp_path}/w.py:World"]
    assert found["run.dir"] == [f"{Path.home()}/runs"]


@pytest.mark.parametrize(
    ("key", "value", "there", "new"),
    [
        ("traces.path", "[data/t.jsonl]", "data/t.jsonl", "../data/t.jsonl"),
        ("traces.path", "['data/*.jsonl']", "data/t.jsonl", "../data/*.jsonl"),
        ("critic.checker", "data/w.py:check", "data/w.py", "../data/w.py:check"),
        ("report.off_target", "{near: data/n.jsonl}", "data/n.jsonl", "../data/n.jsonl"),
        ("train.recipe", "data/r.yaml", "data/r.yaml", "../data/r.yaml"),
        ("run.model", "data/model/x", "data/model/x/config.json", "../data/model/x"),
        ("run.model", "data/x", "data/x/config.json", "../data/x"),
        ("run.dir", "data/run", "data/run/manifest.json", "../data/run"),
    ],
)
def test_a_path_of_the_old_rule_is_an_error_with_the_new_spelling(tmp_path, monkeypatch, key, value, there, new):
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).write_text("x")
    (tmp_path / "configs").mkdir()
    data = {"run": {"model": "owner/model"}, "traces": {"path": "t.jsonl"}}
    section, _, name = key.partition(".")
    data.setdefault(section, {})[name] = yaml.safe_load(value)
    (tmp_path / "configs" / "c.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="relative to the file") as caught:
        load_config("configs/c.yaml")
    assert key in caught.value.message and caught.value.hint.endswith(f"write {new}")
    if "off_target" not in key:
        # the same on the command line is right, and so is the new spelling in the file
        load_config("configs/c.yaml", [f"{key}={value}"]) if key != "train.recipe" else None
    data[section][name] = yaml.safe_load(value.replace("data/", "../data/"))
    (tmp_path / "configs" / "c.yaml").write_text(yaml.safe_dump(data))
    if key != "train.recipe":
        assert all(
            str(tmp_path / "data") in p
            for p in paths_of(load_config("configs/c.yaml"))["report.off_target.near" if "off_target" in key else key]
        )


def test_the_folder_of_a_pattern_may_hold_its_signs(tmp_path, monkeypatch):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    (folder / "t.jsonl").write_text("")
    (folder / "c.yaml").write_text("run: {model: owner/m}\ntraces: {path: '*.jsonl'}\n")
    monkeypatch.chdir(tmp_path)
    (pattern,) = load_config(folder / "c.yaml").traces.path
    assert glob.glob(pattern) == [str(folder / "t.jsonl")]  # noqa: PTH207


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_lead_to_what_is_there(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yours = {"own-traces.yaml": {"run.model", "traces.path"}, "tau-airline.yaml": {"traces.path", "traces.tools"}}
    # the real model is made by examples/smollm2/get_model.py, outside the repository
    yours["real.yaml"] = {"run.model"}
    made = str(TOOLWORLD / "foreign.jsonl")
    for key, values in paths_of(load_config(path)).items():
        for value in values:
            place = value.rpartition(":")[0] or value
            assert key in yours.get(path.name, ()) or Path(place).exists() or value in ("targeted", made), (key, value)


def test_a_command_works_from_another_folder(tmp_path):
    words = ["run", str(ROOT / "configs" / "quickstart.yaml"), "--dry-run", "--limit", "3", "critic.use=[rules]"]
    done = hintdistill(*words, folder=tmp_path)
    assert "traces: 3" in done.stdout and list(tmp_path.iterdir()) == []


def test_the_saved_configuration_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(TOOLWORLD)
    config = RunConfig.model_validate({"run": {"model": "student"}, "traces": {"path": ["traces.jsonl"]}})
    run = RunDir.create(tmp_path / "run", config, resume=False)
    run.close()
    monkeypatch.chdir(tmp_path)
    for again in (load_config(run.path / "config.yaml"), run.config()[0]):
        assert again.run.model == str(STUDENT) and again.traces.path == (str(TOOLWORLD / "traces.jsonl"),)


def test_keys_are_of_contents_not_of_places(tmp_path):
    """The same files in two places, with the configs in other places still: every row has the same key."""
    index: list[dict[str, list[str]]] = []
    for place, config in (("one", "one/c.yaml"), ("two/deeper", "two/configs/c.yaml")):
        home = tmp_path / place
        home.mkdir(parents=True)
        for name in ("traces.jsonl", "findings.jsonl", "world.py"):
            shutil.copy(TOOLWORLD / name, home)
        for name in ("student", "prompts"):
            shutil.copytree(TOOLWORLD / name, home / name)
        file = tmp_path / config
        file.parent.mkdir(exist_ok=True)
        to = os.path.relpath(home, file.parent)
        critic = {"use": ["recorded", "checker"], "recorded": {"path": f"{to}/findings.jsonl"}}
        critic |= {"prompts": f"{to}/prompts", "checker": f"{to}/world.py:label_steps"}
        data = {
            "run": {"model": f"{to}/student"},
            "traces": {"path": f"{to}/traces.jsonl", "limit": 12},
            "critic": critic,
        }
        file.write_text(yaml.safe_dump(data))
        run = tmp_path / f"run-{len(index)}"
        run_pipeline(load_config(file), run, until="inject", console=Console(quiet=True))
        index.append({s: json.loads((run / "index" / f"{s}.json").read_text()) for s in ("read", "critique", "inject")})
    assert index[0] == index[1] and all(len(keys) >= 3 for keys in index[0].values())


def test_contents_stand_for_paths(folder, tmp_path):
    (folder / "world.py").write_text("x = 1")
    (folder / "prompts").mkdir()
    (folder / "prompts" / "a.jinja").write_text("a")
    before = contents(load_config(folder / "c.yaml").model_dump(mode="json"), RunConfig)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    data = load_config(moved / "c.yaml").model_dump(mode="json")
    after = contents(data, RunConfig)
    same = ("run", "train", "rollout")
    assert {k: before[k] for k in same} == {k: after[k] for k in same}
    for key in ("prompts", "checker", "cache"):
        assert before["critic"][key] == after["critic"][key] and str(folder) not in str(before["critic"][key])
    assert before["critic"]["checker"].endswith(":check") and before["run"]["dir"] is None
    assert object_content(f"{folder}/world.py:check") == before["critic"]["checker"]
    (moved / "world.py").write_text("x = 2")
    assert contents(data, RunConfig)["critic"]["checker"] != before["critic"]["checker"]
    assert object_content("package.module:World") == "package.module:World"


@pytest.mark.parametrize("pattern", ["more/*.jsonl", "m*/*.jsonl", "**/*.jsonl", "**", "mor[e]", "more/[[]a].jsonl"])
def test_a_glob_stands_for_the_contents_of_what_it_matches(tmp_path, pattern):
    """Also where the folder's own name has a glob's signs, which `load_config` escapes."""

    def traces(place: str, **files: str) -> tuple:
        home = tmp_path / place
        (home / "more").mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (home / "more" / f"{name}.jsonl").write_text(text)
        (home / "c.yaml").write_text(yaml.safe_dump({"run": {"model": "some/name"}, "traces": {"path": [pattern]}}))
        data = load_config(home / "c.yaml").model_dump(mode="json")
        return tuple(contents(data | {"run": None}, RunConfig)["traces"]["path"])

    for place in ("one", "two[1]*"):
        (tmp_path / place).mkdir()
    a, b, c = ("[a]", "b", "c") if "[[]" in pattern else ("a", "b", "c")
    one, two = traces("one", **{a: "1", b: "2"}), traces("two[1]*", **{a: "1", b: "2"})
    assert one == two and str(tmp_path) not in one[0]
    assert traces("one", **{a: "3"}) != two, "other bytes"
    further = traces("one", **{a: "1", c: "3"})
    assert (further == two) == (a != "a"), "another file, which the pattern of one file does not match"
    (tmp_path / "one" / "more" / "c.jsonl").rename(tmp_path / "one" / "more" / "d.jsonl")
    assert (traces("one") == further) == (a != "a"), "another name"


def test_a_glob_that_matches_nothing_stays_as_it_is(tmp_path):
    data = {"traces": {"path": [f"{tmp_path}/*.jsonl"]}}
    assert contents(data, RunConfig)["traces"]["path"] == [f"{tmp_path}/*.jsonl"]

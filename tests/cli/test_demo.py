"""The demo from the wheel, as one has it who has no checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from support.command import ENV

from hintdistill.core import package_data
from hintdistill.core.errors import ConfigError

SMALL = ("--limit", "120", "train.epochs=2", "rollout.limit=8", "rollout.splits=[test,near_miss_unknown_tool]")


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo_in_an_empty_folder(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, capture_output=True, check=True)
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(installed)
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "hintdistill.cli", "demo", *SMALL],
        capture_output=True,
        text=True,
        env={**ENV, "PYTHONPATH": str(installed)},
        cwd=empty,
    )
    assert done.returncode == 0, done.stderr
    page = empty / done.stdout.splitlines()[-1].removeprefix("report: ")
    assert page.is_file() and page.parent.parent == empty / "runs"
    report = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    assert Path(report["run"]["model"]).is_relative_to(installed) and report["run"]["critics"] == ["llm"]
    assert report["funnel"]["train"]["hints"] > 0 and report["curves"]["steps"] and report["failed_after"]["splits"]


def test_an_installation_without_the_example_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(package_data, "data_root", lambda: tmp_path)
    with pytest.raises(ConfigError, match="this installation lacks the example"):
        package_data.demo_config()

"""The Python of docs/bridges.md runs as it stands, in a folder with the run and the model that it names."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT
from support.command import hintdistill
from support.peers import need, the_run

pytestmark = need("trl", "datasets", "tinker", "verl", "ray")
PAGE = (ROOT / "docs" / "bridges.md").read_text()


def test_every_block_runs(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(the_run())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/bridges.md, block {number}", "exec"), names)
    assert names["trainer"].state.global_step == 1 and len(names["data"]) > 10
    assert names["Manager"].__name__ == "HintedAgentLoopManager"


@pytest.mark.parametrize("line", [li for li in PAGE.splitlines() if li.startswith("hintdistill export")])
def test_every_export_line_runs(tmp_path, line):
    words = line.partition("#")[0].split()[1:]
    hintdistill(*[w.replace("runs/demo", str(the_run())) for w in words], "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "card.json").is_file()

"""Shards of a run, each in a process's own folder, and the one run that `merge` makes of them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from support.command import COMMAND, ENV, hintdistill, process, rows
from support.killing import kill_when

from hintdistill.core.errors import ConfigError
from hintdistill.core.scores import Target
from hintdistill.pipeline.shards import Shard
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.store import TargetStore

CONFIG = "configs/quickstart.yaml"
SMALL = [
    "critic.use=[rules,recorded]",
    "traces.limit=22",
    "traces.holdout=0.3",
    "rescore.part_rows=4",
    "train.watch.steps=3",
    "train.twins.per_finding=1",
]
STORES = ("critiques", "injections", "twins")


def shard(folder: Path, number: int, of: int, *more: str, expect: int | None = 0) -> subprocess.CompletedProcess:
    args = (CONFIG, "--until", "rescore", "--shard", f"{number}/{of}", f"run.dir={folder}", *SMALL, *more)
    return hintdistill("run", *args, expect=expect)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The same run without shards."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    hintdistill("run", CONFIG, "--until", "rescore", f"run.dir={folder}", *SMALL)
    return folder


@pytest.fixture(scope="module")
def unmerged(tmp_path_factory) -> Path:
    """Three shards, the last one first."""
    folder = tmp_path_factory.mktemp("shards") / "shared"
    for number in (2, 0, 1):
        shard(folder, number, 3)
    return folder


@pytest.fixture(scope="module")
def merged(unmerged, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "shared"
    shutil.copytree(unmerged, folder)
    hintdistill("merge", str(folder))
    return folder


def same(one: Target, two: Target) -> bool:
    """Whether every field has the same bits."""
    for field in fields(Target):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, np.ndarray):
            if a.tobytes() != b.tobytes():
                return False
        elif field.name == "placebos":
            if any(
                x.hint_effect.tobytes() != y.hint_effect.tobytes() or x.text != y.text
                for x, y in zip(a, b, strict=True)
            ):
                return False
        elif a != b:
            return False
    return True


def test_a_merged_run_is_the_whole_run_to_the_bit(whole, merged):
    one, two = RunDir.open(whole), RunDir.open(merged)
    for name in ("read", "groups", "critique", "inject", "twins", "rescore", "failures"):
        assert one.index(name) == two.index(name), name
    assert len(one.index("rescore") or []) > 30
    for name in STORES:
        assert rows(whole, name) == rows(merged, name)
    mine, other = (
        {t.key: t for t in TargetStore(f / "targets").open(RunDir(f).index("rescore"))} for f in (whole, merged)
    )
    assert {t.kind for t in mine.values()} == {"hint", "anchor", "twin"}
    assert mine.keys() == other.keys() and all(same(mine[k], other[k]) for k in mine)
    report = [json.loads((f / "report.json").read_text()) for f in (whole, merged)]
    for part in ("funnel", "effects", "gate", "findings", "unscored", "twins"):
        assert report[0][part] == report[1][part], part


def test_traces_are_cut_in_whole_blocks_and_each_is_in_one_shard(unmerged):
    runs = [RunDir(unmerged / "shards" / f"{n}-of-3") for n in range(3)]
    parts = [run.index("read") or [] for run in runs]
    assert [key for part in parts for key in part] == RunDir(unmerged).index("read")
    assert [len(p) for p in parts] == [8, 8, 6], "22 traces are six blocks of at most four"
    held = [line.split()[1] for line in (RunDir(unmerged).index("groups") or [])[1:]]
    assert held == [line.split()[1] for run in runs for line in (run.index("groups") or [])[1:]]


def test_a_merged_run_is_whole_and_goes_on(merged):
    manifest = RunDir.open(merged).manifest()
    assert manifest["merged"] == 3 and manifest["until"] == "rescore" and manifest["finished"]
    before = sorted(p.name for p in (merged / "targets").iterdir())
    out = hintdistill("rescore", str(merged))
    assert sorted(p.name for p in (merged / "targets").iterdir()) == before, "nothing is scored again"
    assert "report:" in out.stdout
    assert hintdistill("merge", str(merged)).returncode == 0, "merging again changes nothing"
    assert sorted(p.name for p in (merged / "targets").iterdir()) == before
    said = shard(merged, 0, 3, expect=2).stderr
    assert "already merged" in said and "--resume" in said


def test_what_is_not_merged_says_how(unmerged):
    for args in (["show"], ["report"], ["controls"], ["export", "--to", "hf", "-o", "x"], ["run", "--resume"]):
        said = hintdistill(args[0], str(unmerged), *args[1:], expect=None)
        if args[0] == "export" and "No such option" in said.stderr:
            continue
        assert said.returncode == 2 and f"hintdistill merge {unmerged}" in said.stderr, args
    assert "all files are unchanged since they were written" in hintdistill("verify", str(unmerged)).stdout
    own = unmerged / "shards" / "1-of-3"
    assert hintdistill("show", str(own)).returncode == 0, "a shard is a run folder"
    assert "shard 1/3" in hintdistill("run", str(own), "--resume", "--until", "rescore").stderr


def test_other_settings_other_cuts_and_missing_shards_are_refused(unmerged, tmp_path):
    assert "rescore.top_k" in shard(unmerged, 0, 3, "rescore.top_k=7", expect=2).stderr
    assert "cut into 3 shards" in shard(unmerged, 0, 2, expect=2).stderr
    assert (
        "cannot run the stage 'report'"
        in hintdistill("run", CONFIG, "--shard", "0/2", f"run.dir={unmerged}", *SMALL, expect=2).stderr
    )
    assert (
        "run.dir=SHARED" in hintdistill("run", CONFIG, "--until", "rescore", "--shard", "0/2", *SMALL, expect=2).stderr
    )
    less = tmp_path / "less"
    shutil.copytree(unmerged, less)
    shutil.rmtree(less / "shards" / "1-of-3")
    said = hintdistill("merge", str(less), expect=2).stderr
    assert "1 of 3 shards" in said and f"--until rescore --shard 1/3 run.dir={less}" in said
    shutil.copytree(less / "shards" / "0-of-3", less / "shards" / "1-of-3")
    assert "not made from the traces read there" in hintdistill("merge", str(less), expect=3).stderr


def test_a_damaged_part_is_not_merged(unmerged, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(unmerged, folder)
    part = next((folder / "shards" / "2-of-3" / "targets").glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    said = hintdistill("merge", str(folder), expect=3).stderr
    assert "has changed" in said and "verify" in said
    assert "damaged" in hintdistill("verify", str(folder), expect=3).stdout
    shard(folder, 2, 3)
    hintdistill("merge", str(folder))
    assert len(RunDir.open(folder).index("rescore") or []) > 30


def test_a_bad_row_is_a_row_of_its_shard(tmp_path):
    """A record that is no trace, and a finding without a place, are counted in one shard and in the merged run."""
    traces = tmp_path / "traces.jsonl"
    lines = (ROOT / "examples/toolworld/traces.jsonl").read_text().splitlines()[:9]
    traces.write_text("\n".join([*lines[:5], '{"messages": "none"}', *lines[5:], "{broken"]) + "\n")
    folder = tmp_path / "shared"
    for number in (1, 0):
        shard(folder, number, 2, f"traces.path={traces}", "train.twins.per_finding=0")
    hintdistill("merge", str(folder), "--json")
    document = json.loads((folder / "report.json").read_text())
    assert document["funnel"]["read"]["records"] == 11 and document["funnel"]["read"]["traces"] == 9
    own = [json.loads((folder / "shards" / f"{n}-of-2" / "report.json").read_text()) for n in range(2)]
    assert [d["funnel"]["read"]["records"] for d in own] == [4, 7]


def test_the_plan_has_each_shard(whole):
    """Counted without weights, from the critiques that are there: every trace is in one shard, every token is read."""
    out = hintdistill("plan", CONFIG, "--no-measure", "--shards", "3", "--json", f"run.dir={whole}", *SMALL).stdout
    found = json.loads(out)
    shards, (stage,) = found["shards"], (s for s in found["stages"] if s["stage"] == "rescore")
    assert [s["traces"] for s in shards] == [8, 8, 6] and [s["shard"] for s in shards] == ["0/3", "1/3", "2/3"]
    assert sum(s["rescore"]["tokens"] for s in shards) >= stage["tokens"] > max(s["rescore"]["tokens"] for s in shards)
    assert all(0 < s["rescore"]["peak_bytes"] <= stage["peak_bytes"] for s in shards)


def test_a_name_is_a_part_of_a_whole():
    assert Shard.parse("2/8") == Shard.parse("2-of-8") == Shard(2, 8)
    assert Shard.parse("env", {"RANK": "1", "WORLD_SIZE": "2"}) == Shard(1, 2)
    for wrong in ("8/8", "a/b", "1", "-1/4", "1/0"):
        with pytest.raises(ConfigError):
            Shard.parse(wrong)
    with pytest.raises(ConfigError, match="torchrun"):
        Shard.parse("env", {})


def test_spans_cover_all_traces_once():
    for traces in (0, 1, 63, 64, 65, 1000):
        for of in (1, 2, 3, 7, 40):
            spans = [Shard(n, of).span(traces, 16) for n in range(of)]
            assert spans[0][0] == 0 and spans[-1][1] == traces
            assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
            assert all(start % 16 == 0 or start == traces for start, _ in spans)


@pytest.mark.slow
def test_under_xargs_and_torchrun_one_killed(whole, tmp_path):
    """Real processes: two at a time under xargs, of which one was killed in its scoring before; and two under torchrun."""
    args = " ".join([*COMMAND, "run", CONFIG, "-q", "--until", "rescore", *SMALL])
    by_xargs, by_torchrun = tmp_path / "xargs", tmp_path / "torchrun"
    own = [f"run.dir={by_xargs}", "-q", "--until", "rescore", *SMALL, "--shard", "1/4"]
    kill_when(lambda: any((by_xargs / "shards").glob("1-of-4/targets/*.parquet")), "run", CONFIG, *own)
    killed = by_xargs / "shards" / "1-of-4"
    assert RunDir.open(killed, parts=True).index("rescore") is None, "killed before it had come to its end"
    line = f"seq 0 3 | xargs -P 2 -I@ {args} --shard @/4 run.dir={by_xargs}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    words = [*COMMAND, "run", CONFIG, "-q", "--until", "rescore", "--shard", "env", f"run.dir={by_torchrun}", *SMALL]
    done = subprocess.run([*launch, *words], cwd=ROOT, env=dict(os.environ, **ENV), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder in (by_xargs, by_torchrun):
        process("merge", str(folder))
        assert RunDir.open(folder).index("rescore") == RunDir.open(whole).index("rescore")
        one, two = (TargetStore(f / "targets").open(RunDir(f).index("rescore")) for f in (whole, folder))
        assert all(same(a, b) for a, b in zip(one, two, strict=True))

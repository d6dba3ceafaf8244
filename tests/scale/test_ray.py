"""A real Ray on this machine: two actors take the shards of a run, one is killed in the middle, and the targets are the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT
from support.ray_cluster import cluster

pytest.importorskip("ray")

from hintdistill.config.file import load_config
from hintdistill.core.errors import ServiceError
from hintdistill.core.scores import Target
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.ray_shards import Actors, run_on_ray
from hintdistill.pipeline.run import run
from hintdistill.pipeline.store import SHARDS, RunDir
from hintdistill.rescoring.store import TargetStore

SMALL = ("critic.use=[rules]", "traces.limit=32", "rescore.part_rows=8", "train.watch.steps=3")


@pytest.fixture(scope="module", autouse=True)
def started():
    with cluster():
        yield


def settings(folder: Path, *more: str):
    return load_config(ROOT / "configs" / "quickstart.yaml", [*SMALL, f"run.dir={folder}", *more])


def targets(folder: Path) -> list[Target]:
    return list(TargetStore(folder / "targets").open(RunDir.open(folder).index("rescore")))


def same(one: Target, two: Target) -> bool:
    pairs = ((getattr(one, f.name), getattr(two, f.name)) for f in fields(Target) if f.name != "placebos")
    return all(a.tobytes() == b.tobytes() if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def test_two_actors_one_killed_make_the_targets_of_one_process(tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    run(settings(whole), whole, until="rescore", console=Console(quiet=True))
    killed: list[int] = []
    over = threading.Event()

    def kill_one() -> None:
        """Once a shard is critiqued and not finished, end the process that runs it."""
        while not over.is_set():
            for path in (shared / SHARDS).glob("*-of-*"):
                run_ = RunDir(path)
                begun = run_.is_run() and run_.index("critique") is not None and not run_.manifest().get("finished")
                workers = psutil.Process().children(recursive=True) if begun else []
                holders = [p for p in workers if _holds(p, path / ".lock")]
                for process in holders[:1]:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    run_on_ray(settings(shared), 4, Actors(2), console=Console(quiet=True))
    over.set()
    killer.join()
    assert killed, "no actor was met at work"
    assert RunDir.open(shared).index("rescore") == RunDir.open(whole).index("rescore")
    one, two = targets(whole), targets(shared)
    assert len(one) > 40 and all(same(a, b) for a, b in zip(one, two, strict=True))


def _holds(process: psutil.Process, path: Path) -> bool:
    try:
        return any(f.path == str(path) for f in process.open_files())
    except psutil.Error:
        return False


def test_a_shard_that_fails_is_a_row_and_the_others_are_done(tmp_path):
    """One shard's folder is a file: that shard cannot be run, and the error names it and how to go on."""
    shared = tmp_path / "shared"
    own = settings(shared, "traces.limit=24")
    from hintdistill.pipeline.shards import read_once

    read_once(own, shared, Console(quiet=True))
    (shared / SHARDS).mkdir()
    (shared / SHARDS / "1-of-3").write_text("in the way")
    with pytest.raises(ServiceError, match="1 of 3 shards failed, the first 1/3") as caught:
        run_on_ray(own, 3, Actors(2), console=Console(quiet=True))
    assert "--shard 1/3" in (caught.value.hint or "")
    for number in (0, 2):
        assert RunDir(shared / SHARDS / f"{number}-of-3").manifest()["finished"]
    (shared / SHARDS / "1-of-3").unlink()
    run_on_ray(own, 3, Actors(1), console=Console(quiet=True))
    assert RunDir.open(shared).manifest()["merged"] == 3


def test_the_examples_are_what_they_say():
    """The Kubernetes manifest is YAML with an indexed job, and both name the command's own options."""
    folder = ROOT / "examples" / "scale"
    documents = list(yaml.safe_load_all((folder / "kubernetes.yaml").read_text()))
    assert documents[0]["kind"] == "Job" and documents[0]["spec"]["completionMode"] == "Indexed"
    for name in ("slurm.sh", "kubernetes.yaml"):
        text = (folder / name).read_text()
        assert "--until rescore" in text and "--shard" in text and "run.dir=" in text

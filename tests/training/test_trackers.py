"""Trackers for real: after a short training each of them holds what metrics.jsonl holds, under the Trainer's names."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import time
from collections.abc import Iterator

import pytest
import test_training
from conftest import STUDENT
from support.command import hintdistill

from hintdistill.config import RunSection, TrainSection
from hintdistill.core.errors import ConfigError
from hintdistill.training import trackers
from hintdistill.training.stage import TrainData, TrainJob, train
from hintdistill.training.trackers import check_trackers, trackers_arguments

targets = test_training.targets
RUN = RunSection(model=str(STUDENT), device="cpu", dtype="float32")
NAME = "0123456789abcdef01234567"


def tracked(targets, tmp_path, *names: str) -> tuple[set[str], TrainSection]:
    """Train two steps; returns the names that metrics.jsonl has, as the Trainer hands them to trackers."""
    config = TrainSection(epochs=1, batch_size=4, warmup_ratio=0, logging_steps=1, trackers=names)
    train(TrainJob(STUDENT, TrainData(targets[:8]), RUN, config, tmp_path / "work", tmp_path / "student", NAME))
    rows = [json.loads(line) for line in (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and {"loss", "divergence", "decision_probability", "grad_norm"} <= rows[0].keys()
    return {f"train/{name}" for name in rows[0] if name != "step"}, config


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a wandb file: a LevelDB log (blocks of 32 KiB; checksum, length, type) after seven bytes of its own."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + 7 + length > len(data):
            return  # still being written
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.fixture(autouse=True)
def _nobodys_settings(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("WANDB_", "TRACKIO_", "TENSORBOARD_"))]:
        monkeypatch.delenv(name)


def test_tensorboard(targets, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard comes with the extra `trackers`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names, _ = tracked(targets, tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "work" / "tracker" / "tensorboard"))
    events.Reload()
    assert names <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("train/divergence")] == [1, 2]
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


# not importorskip: trackio reads its folder when it is imported
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio comes with the extra `trackers`")
def test_trackio(targets, tmp_path, capsys):
    names, _ = tracked(targets, tmp_path, "trackio")
    database = tmp_path / "work" / "tracker" / "trackio" / "hintdistill.db"
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, metrics from metrics order by step").fetchall()
    assert {r[0] for r in rows} == {NAME}
    assert names <= set(json.loads(rows[0][1]))
    assert not capsys.readouterr().out, "what a tracker prints would break a document on standard output"


def test_wandb_offline(targets, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb comes with the extra `trackers`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    names, _ = tracked(targets, tmp_path, "wandb")
    assert wandb.run is None, "the next training gets a run of its own"
    (path,) = (tmp_path / "work" / "tracker" / "wandb").glob(f"offline-run-*/run-{NAME}.wandb")

    def seen() -> set[str]:
        found = set()
        for data in log_records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            found |= {item.key or "/".join(item.nested_key) for item in record.history.item}
        return found

    # wandb writes the file in a process of its own, which may still be at it when the run has ended
    until = time.monotonic() + 60
    while not names <= seen() and time.monotonic() < until:
        time.sleep(0.05)
    assert names <= seen()
    # nothing that was printed is kept for a server
    logs = list(path.parent.glob("files/output.log"))
    assert not logs or not logs[0].read_bytes()


def test_off_by_default_and_settings_of_the_user_stay(tmp_path, monkeypatch):
    assert trackers_arguments(TrainSection(), tmp_path, "x") == ({"report_to": "none"}, {})
    monkeypatch.setenv("WANDB_DIR", "/somewhere")
    monkeypatch.setenv("WANDB_MODE", "offline")
    keywords, environment = trackers_arguments(TrainSection(trackers=("wandb", "tensorboard")), tmp_path, "x")
    assert keywords["report_to"] == ["wandb", "tensorboard"] and keywords["run_name"] == "x"
    assert "WANDB_DIR" not in environment and "WANDB_RESUME" not in environment and environment["WANDB_RUN_ID"] == "x"
    assert environment["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "tracker" / "tensorboard")


def test_a_missing_package_and_a_missing_key_are_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigError, match="wandb, but there is no key") as caught:
        check_trackers(TrainSection(trackers=("wandb",)))
    assert "WANDB_MODE=offline" in caught.value.hint
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    check_trackers(TrainSection(trackers=("wandb",)))
    monkeypatch.setattr(trackers, "installed", lambda name: None)
    with pytest.raises(ConfigError, match="names trackio, wandb, but it is not installed") as caught:
        check_trackers(TrainSection(trackers=("trackio", "wandb")))
    assert "pip install trackio wandb" in caught.value.hint


def test_the_command_refuses_before_it_writes_and_doctor_says_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    run = ["run", "configs/quickstart.yaml", f"run.dir={tmp_path / 'run'}", "train.trackers=[wandb]"]
    done = hintdistill(*run, expect=2)
    assert "there is no key" in done.stderr and not (tmp_path / "run").exists()
    said = json.loads(hintdistill("doctor", "--json").stdout)
    (line,) = [c["detail"] for c in said if c["name"] == "trackers"]
    assert all(name in line for name in trackers.TRACKERS)

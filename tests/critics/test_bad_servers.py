"""Runs against critics that misbehave: what is owed, what is a failure, exit codes, keys, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT
from support.bad_server import BadServer, bad_server
from support.command import COMMAND, ENV, hintdistill, rows

KEY = "sk-test-7Qd0Zr9Lm4Xy"


def settings(server: BadServer, mode: str, folder: Path, *more: str) -> list[str]:
    return [
        "configs/llm-critic.yaml",
        "-q",
        f"run.dir={folder}",
        "critic.use=[llm]",
        f"critic.llm.base_url={server.url(mode)}",
        "critic.llm.model=m",
        "critic.llm.retries=0",
        "critic.llm.repair_rounds=0",
        "critic.llm.context_tokens=100000",
        "critic.llm.concurrency=1",
        "traces.limit=4",
        *more,
    ]


@pytest.mark.parametrize(
    ("mode", "more", "reason"),
    [
        ("limited", (), "status"),
        ("busy", (), "status"),
        ("page", (), "no_completion"),
        ("cut", (), "cut"),
        ("drips", ("critic.llm.timeout_s=0.1",), "timed_out"),
        ("none", ("critic.budget_tokens=10",), "budget"),
        ("mixed", (), "status"),
    ],
)
def test_training_waits_for_owed_critiques(tmp_path, mode, more, reason):
    with bad_server() as server:
        done = hintdistill("run", *settings(server, mode, tmp_path / "run", *more), expect=5)
    assert f"lack a critique ({'2' if mode == 'mixed' else '4'} {reason})" in done.stderr
    assert "critic.allow_owed" in done.stderr and not (tmp_path / "run" / "injections.jsonl").exists()
    command = shlex.split(done.stderr.strip().rpartition("Continue with: ")[2])
    assert command == ["hintdistill", "run", str(tmp_path / "run"), "--resume"]


def test_a_share_may_be_owed_and_a_resumed_run_asks_only_for_those(tmp_path):
    with bad_server() as server:
        arguments = settings(server, "mixed", tmp_path / "run")
        hintdistill("run", *arguments, expect=5)
        asked = len(server.received)
        # nothing was found by the others, which is an empty funnel and no service's failure
        arguments[4] = f"critic.llm.base_url={server.url('busy')}"
        half = hintdistill("run", *arguments, "--resume", "critic.allow_owed=0.5", "--until", "inject")
        assert len(server.received) >= asked + 2 and half.returncode == 0


@pytest.mark.parametrize(("mode", "reason"), [("nonsense", "answer"), ("too_long", "refused"), ("declines", "refused")])
def test_an_answer_that_cannot_be_had_is_a_failure_and_not_owed(tmp_path, mode, reason):
    with bad_server() as server:
        arguments = settings(server, mode, tmp_path / "run")
        done = hintdistill("run", *arguments, "--until", "rescore", expect=4)
        assert "no hint was injected" in done.stderr and len(server.received) == 4
        assert {r["failure"]["reason"] for r in rows(tmp_path / "run", "critiques")} == {reason}
        assert (tmp_path / "run" / "report.json").is_file() and (tmp_path / "run" / "index" / "rescore.json").is_file()
        hintdistill("critique", *arguments)
        assert len(server.received) == 4


def test_an_answer_is_read_behind_thoughts_and_between_prose(tmp_path):
    with bad_server() as server:
        hintdistill("critique", *settings(server, "thinks", tmp_path / "run"))
        assert len(server.received) == 4
    assert all(r["critique"]["verdict"] == "findings" for r in rows(tmp_path / "run", "critiques"))


@pytest.mark.parametrize(
    ("mode", "code"), [("echo401", 5), ("echo500", 5), ("echo_page", 5), ("echo_moved", 5), ("echo_answer", 0)]
)
def test_a_key_that_a_server_repeats_is_nowhere(tmp_path, monkeypatch, mode, code):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    more = ("--until", "inject") if mode == "echo_answer" else ()
    with bad_server() as server:
        done = hintdistill("run", *settings(server, mode, tmp_path / "run"), *more, expect=code)
        assert KEY in str(server.received[0]["headers"])
    held = [p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert held and not [h for h in held if KEY.encode() in h or KEY.upper().encode() in h]
    assert KEY not in done.stdout + done.stderr and "7Qd0Zr9Lm4Xy" not in done.stderr
    assert any(b"[key]" in h for h in held) or "[key]" in done.stderr


@pytest.mark.parametrize(("command", "number"), [("run", signal.SIGINT), ("critique", signal.SIGTERM)])
def test_a_signal_while_a_critic_hangs_ends_the_run_and_says_how_to_continue(tmp_path, command, number):
    """The request had 120 seconds and three tries; a second Ctrl-C changes nothing, and one line is said."""
    folder = tmp_path / "run"
    with bad_server() as server:
        process = subprocess.Popen(
            [*COMMAND, command, *settings(server, "hangs", folder, "critic.llm.retries=3")],
            env=ENV,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not server.received:
            time.sleep(0.01)
        os.kill(process.pid, number)
        if number == signal.SIGINT:
            time.sleep(0.02)
            os.kill(process.pid, number)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 130 and said.count("\n") == 1, said
        assert said.startswith(f"interrupted; finished work is kept in {folder}. ")
        words = shlex.split(said.strip().rpartition("Continue with: ")[2])
        assert not (folder / "critiques.jsonl").exists() or rows(folder, "critiques") == []
        assert command == "run" or words[-2:] == ["--until", "critique"]
        hintdistill(*words[1:], f"critic.llm.base_url={server.url('none')}", "--until", "critique")
    assert len(rows(folder, "critiques")) == 4
    assert json.loads((folder / "manifest.json").read_text())["schema"] == 2

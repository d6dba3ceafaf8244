"""The loop of an agent that learns from its failures: one script, and it fails less afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_loop_fails_less_with_its_memory_and_less_after_training(tmp_path):
    command = [
        sys.executable,
        "examples/agent_loop.py",
        "--tasks",
        "16",
        "--test-tasks",
        "12",
        "--json",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["learnt"]["diagnosed"] > 0 and said["learnt"]["repaired"] > 0 and said["entries"] > 0
    assert said["student_with_memory"]["failed"] < said["student"]["failed"]
    assert (
        said["trained"]["failed"] < said["student"]["failed"]
        and said["trained"]["success"] > said["student"]["success"]
    )
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file() or any(
        (tmp_path / "run" / "student").iterdir()
    )

"""Run the real command line, and read the rows it wrote."""

from __future__ import annotations

import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from conftest import ROOT

COMMAND = [str(Path(sys.executable).with_name("hintdistill"))]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def hintdistill(*args: str, expect: int | None = 0, folder: Path | None = None) -> subprocess.CompletedProcess:
    """Run the command's own `main` in this process, which has torch loaded, and give what it printed and its exit code.

    A test of processes (kills, signals, environment variables) takes `process`.
    """
    from hintdistill.cli.main import main

    return _checked(_called(main, [COMMAND[0], *args], folder or ROOT), expect)


def script(path: str, *args: str) -> subprocess.CompletedProcess:
    """Run a Python script of the repository as a program (`__main__`) in this process; fails where it fails."""
    return _checked(_called(lambda: runpy.run_path(str(ROOT / path), run_name="__main__"), [path, *args], ROOT), 0)


def _called(function: Callable[[], object], words: list[str], folder: Path) -> subprocess.CompletedProcess:
    out, err, argv, code = StringIO(), StringIO(), sys.argv, 0
    states = random.getstate(), torch.get_rng_state()
    sys.argv = words
    try:
        with redirect_stdout(out), redirect_stderr(err), chdir(folder):
            function()
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.argv = argv
        random.setstate(states[0])
        torch.set_rng_state(states[1])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def process(*args: str, expect: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run the installed command as a user does, in a process of its own."""
    env = ENV if env is None else env
    return _checked(subprocess.run([*COMMAND, *args], capture_output=True, text=True, env=env, cwd=ROOT), expect)


def _checked(done: subprocess.CompletedProcess, expect: int | None) -> subprocess.CompletedProcess:
    assert expect is None or done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def rows(folder: Path, name: str) -> list:
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda r: r["key"])

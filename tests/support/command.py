"""Run the real command line, and read the rows it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

COMMAND = [str(Path(sys.executable).with_name("hintdistill"))]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def hintdistill(*args: str, expect: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, env=ENV, cwd=ROOT)
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def rows(folder: Path, name: str) -> list:
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda r: r["key"])

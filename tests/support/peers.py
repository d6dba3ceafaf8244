"""What the tests of other trainers share: the rule that no peer is missing in silence, a scored run, the model that it is of.

`make test-peers` sets HINTDISTILL_PEERS: then a peer that is not installed is an error that names it. Elsewhere the tests of a
peer that is not there are skipped, and the suite leaves out all of them by their marker.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import STUDENT
from support.exported import scored_run


def need(*names: str) -> list:
    """Return the marks of a module that needs these packages; raises or skips where one is not installed."""
    missing = [n for n in names if importlib.util.find_spec(n) is None]
    if missing and os.environ.get("HINTDISTILL_PEERS"):
        raise RuntimeError(f"peers that are not installed in this environment: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)
    torch.set_num_threads(1)
    found = importlib.util.find_spec("vllm")
    if found is not None and found.origin is None:
        # the folder tests/vllm, which trl takes for a vLLM without a version
        sys.modules["vllm"] = None
    return [pytest.mark.peers]


@cache
def the_run() -> Path:
    """A run up to its targets, once for all tests: hints, anchors of weight 2, twins."""
    folder = tempfile.mkdtemp(prefix="hintdistill-peers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return scored_run(Path(folder) / "run", limit=32)


@cache
def the_model():
    """The toolworld student, float32, as it is; nobody trains this one."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32).eval()

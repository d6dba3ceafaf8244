"""What `run.dtype=auto` means: by device and by size, and the same for every model of a folder."""

from __future__ import annotations

import pytest
import torch
from conftest import STUDENT

from hintdistill.core import machine
from hintdistill.core.machine import SMALL, precision
from hintdistill.engines.transformers import pick_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("able", [False, True])
def test_auto_by_device_and_size(monkeypatch, able):
    monkeypatch.setattr(machine, "cpu_has_bfloat16", lambda: able)
    assert precision("auto", False, 1) == "bfloat16", "an accelerator has it"
    assert precision("auto", True, SMALL) == "float32", "a small model stays exact"
    assert precision("auto", True, SMALL + 1) == ("bfloat16" if able else "float32")
    assert all(
        precision(said, on_cpu, SMALL + 1) == said for said in ("float32", "bfloat16") for on_cpu in (False, True)
    )


def test_a_folder_is_asked_for_its_size():
    assert pick_dtype("auto", CPU, STUDENT) == torch.float32
    assert pick_dtype("bfloat16", CPU, STUDENT) == torch.bfloat16

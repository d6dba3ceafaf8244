"""What other libraries warn of: silenced with a reason, and only that."""

from __future__ import annotations

import warnings

import pytest
from conftest import ROOT
from support.command import ENV, process

from hintdistill.core.library_warnings import SILENCED, silence_libraries


def heard(*before: str) -> list[str]:
    """What is heard of all silenced warnings and one other, under filters that the user asked for."""
    with warnings.catch_warnings(record=True) as found:
        warnings.resetwarnings()
        for action in before:
            warnings.simplefilter(action)
        silence_libraries()
        count = len(warnings.filters)
        silence_libraries()
        assert len(warnings.filters) == count
        for of in SILENCED:
            warnings.warn(f"{of.says} and will go", of.category, stacklevel=1)
        warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)
    return [str(w.message) for w in found]


def test_known_warnings_are_silent_and_others_are_not():
    assert heard() == ["something else is deprecated"]
    assert len(heard("always")) == len(SILENCED) + 1, "who asks for all of them sees them"
    assert all(of.reason for of in SILENCED)


def test_nothing_else_silences_warnings():
    """One place: a filter elsewhere would be without a reason."""
    found = [p for p in (ROOT / "hintdistill").rglob("*.py") if "filterwarnings" in p.read_text(encoding="utf-8")]
    assert [p.name for p in found] == ["library_warnings.py"]


@pytest.mark.slow
def test_a_run_with_adapters_prints_no_warning_of_another_library(tmp_path):
    settings = ("critic.use=[rules,recorded]", "train.epochs=1", "train.lora={rank: 4, alpha: 8}", "run.dtype=bfloat16")
    more = ("train.gradient_checkpointing=true", "rollout.environment=null", f"run.dir={tmp_path / 'run'}")
    said = process("run", "configs/quickstart.yaml", "--limit", "80", *settings, *more, env=ENV).stderr
    assert "Warning:" not in said and "deprecated" not in said

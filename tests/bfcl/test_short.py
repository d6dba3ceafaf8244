"""The short tasks of benchmarks/bfcl.py: what is in each split, and that the right answers as text are right."""

from __future__ import annotations

import pytest
from bfcl_data import entries, splits
from bfcl_short import MOST, SHORT
from bfcl_suite import opening, wrong

from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.parsing import parse_hermes

pytestmark = pytest.mark.bfcl


def test_the_splits_are_parts_of_the_suites_own_and_short():
    assert isinstance(SHORT, TaskSuite)
    found = SHORT.splits()
    assert {n: len(ids) for n, ids in found.items()} == {
        "train": 406,
        "validation": 224,
        "test": 426,
        "irrelevance": 240,
    }
    for name, ids in found.items():
        assert set(ids) <= set(splits()[name]) and len(set(ids)) == len(ids)
    assert all(entries()[i].answer for i in found["test"]) and not any(
        entries()[i].answer for i in found["irrelevance"]
    )
    for i in (*found["train"], *found["validation"], *found["test"]):
        assert sum(len(m.content or "") for m in opening(entries()[i], as_text=True)) <= MOST
    assert list(found["test"]) != sorted(found["test"]), "the first n would be of one category"


def test_the_right_text_is_right_in_every_task():
    for ids in SHORT.splits().values():
        for i in ids:
            assert wrong(entries()[i], parse_hermes(SHORT.right_text(i))) is None, i

"""Holm's adjustment of p-values."""

from __future__ import annotations

import pytest

from hintdistill.core.statistics import holm


def test_holm_against_a_worked_example():
    # the smallest times 4, the next times 3, times 2, times 1, never below one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_is_never_above_one_keeps_a_lone_value_and_refuses_what_is_no_probability():
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.2])

"""The tables of benchmarks/real.py and what its jobs depend on; no weights are read."""

from __future__ import annotations

import numpy as np

from benchmarks.realmodel.page import (
    arms_table,
    base_table,
    makers_table,
    nouns_bootstrap,
    repair_table,
    shape_table,
)
from benchmarks.realmodel.plan import PREREG, commit_of
from hintdistill.core.statistics import difference, gap_closed


def row(task: str, noun: str, success: bool, **more) -> dict:
    plain = {"kind": "one", "nouns": [noun], "steps": 3, "error": None, "error_at": None, "failure": None}
    return {**plain, "clean_before": False, "clean_after": False, **more, "task": task, "success": success}


def test_tasks_of_one_noun_are_drawn_together():
    nouns = [n for n in "abcd" for _ in range(25)]
    # within a noun all tasks go alike, so there are four observations and not a hundred
    values = [float(n in "ab") for n in nouns]
    alone = nouns_bootstrap(difference, nouns, values, np.zeros(100))
    apart = nouns_bootstrap(difference, [str(i) for i in range(100)], values, np.zeros(100))
    assert alone.mean == apart.mean == 0.5
    assert alone.high - alone.low > 3 * (apart.high - apart.low)
    whole = nouns_bootstrap(gap_closed, nouns, values, np.zeros(100), values)
    assert (whole.mean, whole.low, whole.high) == (1.0, 1.0, 1.0)


def test_a_cell_says_success_and_what_the_hint_adds():
    base = [row(f"unseen.{i}", "pen" if i % 2 else "pool", i < 2) for i in range(8)]
    hinted = [row(f"unseen.{i}", "pen" if i % 2 else "pool", i < 6) for i in range(8)]
    erring = {"error": "ignored_error", "error_at": 1, "clean_before": True, "clean_after": True}
    base[7] |= erring
    cells = {
        ("unseen", "base"): {"n": 8, "episodes": base},
        ("unseen", "level1"): {"n": 8, "episodes": hinted, "repairs": [{"class": "ignored_error", "repaired": True}]},
    }
    told = base_table(cells)
    assert "| unseen | no hint | 8 | 0.25" in told and "0.75" in told and "0.50 (0.50 to 0.50)" in told
    assert "1 of 1 (1.00)" in shape_table(cells) and "1 of 1" in repair_table(cells)


def test_gain_is_read_against_the_same_seeds_and_a_pair_needs_both_members():
    def job(label: str, seed: int, right: int, **more) -> dict:
        read = [row(f"unseen.x.{i}", f"n{i}", i < right) for i in range(10)]
        pairs = {
            s: [row(f"{s}.x.{i}", f"n{i}", i < (8 if s == "found" else 5)) for i in range(10)]
            for s in ("found", "last")
        }
        return {"arm": label, "seed": seed, "measured": {"unseen": read, **pairs}, **more}

    hinted = [row(f"unseen.x.{i}", f"n{i}", i < 8) for i in range(10)]
    results = {"none": [job("none", 0, 2, hinted=hinted)], "targeted": [job("targeted", 0, 5, distinct={"hint": 7})]}
    lines = arms_table(results, "unseen").splitlines()
    assert "0.50 (" in lines[3] and lines[3].startswith("| targeted | 0 |")
    assert "| 0.50 | – | hint 7 |" in lines[3]  # (5 - 2) / (8 - 2), and 5 of 10 pairs


def test_coverage_before_and_after_is_of_the_same_seeds():
    def more(seed: int, covered: int, kinds: dict) -> dict:
        made = {"classes": {"stopped_early": {"kinds": kinds}, "wrong_city": {"kinds": {}}}}
        found = {"stopped_early": 4, "wrong_city": 1}
        kept = {"stopped_early": covered + 1}
        return {
            "seed": seed,
            "findings": found,
            "covered": {"stopped_early": covered},
            "twins": made,
            "twins_accepted": kept,
        }

    shared = [{"seed": s, "twins_accepted": {"stopped_early": 1}} for s in (0, 1, 2)]
    told = makers_table([more(0, 3, {"had": 3, "done": 2}), more(1, 2, {"had": 4})], shared).splitlines()
    assert "(seeds 0, 1)" in told[0]
    assert told[-2:] == [
        "| stopped_early | 8 | 2 | 5 | 7 of 9 | done 2, had 7 |",
        "| wrong_city | 2 | 0 | 0 | 0 of 0 | – |",
    ]


def test_test_tasks_are_named_after_the_commit_that_announced_them():
    assert len(commit_of(PREREG)) == 40

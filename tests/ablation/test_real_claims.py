"""What the arms of the real model say together: the claim in one sentence, secondary endpoints, factors, drift. No weights."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.realmodel.claims import claim_of, curve_table, factor_table, factors, p_value, secondary_table
from benchmarks.realmodel.drift import prompts, requests_of, summary

SEEDS = (0, 1, 2)
N = 40


def job(label: str, seed: int, right: int, pairs: int = 30, **more) -> dict:
    """A job that gets the first `right` of its tasks, and the first `pairs` of its pairs."""
    plain = {"kind": "two", "steps": 3, "error": None, "error_at": None, "failure": None}

    def rows(split: str, good: int) -> list[dict]:
        return [
            {
                **plain,
                "task": f"{split}.x.{i}",
                "nouns": [f"n{i % 10}"],
                "success": i < good,
                "error": None if i < good else "wrong_tool",
            }
            for i in range(N)
        ]

    measured = {"unseen": rows("unseen", right), "found": rows("found", pairs), "last": rows("last", N)}
    return {"arm": label, "label": label, "seed": seed, "measured": measured, **more}


def results(**right: int) -> dict:
    hinted = [{**r, "success": i < 36} for i, r in enumerate(job("none", 0, 0)["measured"]["unseen"])]
    out = {"none": [job("none", s, 4, hinted=hinted) for s in SEEDS]}
    return out | {label: [job(label, s, n) for s in SEEDS] for label, n in right.items()}


def test_the_claim_needs_every_part():
    claim = claim_of(results(targeted=32, sft_corrected=30), SEEDS, "targeted", "sft_corrected", "unseen")
    assert claim.gain.mean == pytest.approx(28 / 32) and claim.beside.mean == pytest.approx(2 / 32)
    assert claim.sentence().startswith("The claim is **met**: the gain of targeted is 0.88")
    worse = claim_of(results(targeted=32, sft_corrected=38), SEEDS, "targeted", "sft_corrected", "unseen").sentence()
    assert (
        "**not met**" in worse
        and "must be at least -0.03 (not met)" in worse
        and "lower end must be above 0.40 (met)" in worse
    )


def test_pairs_that_are_lost_break_the_guard():
    found = results(targeted=32, sft_corrected=30)
    found["targeted"] = [job("targeted", s, 32, pairs=27) for s in SEEDS]
    claim = claim_of(found, SEEDS, "targeted", "sft_corrected", "unseen")
    assert claim.guard.mean == pytest.approx(-3 / N) and "it must be at least -0.05 (not met)" in claim.sentence()


def test_a_guard_that_could_not_fail_is_said():
    found = results(targeted=32, sft_corrected=30)
    for jobs in found.values():
        for s, one in enumerate(jobs):
            one["measured"] |= job(one["label"], s, 0, pairs=2)["measured"] | {"unseen": one["measured"]["unseen"]}
    told = claim_of(found, SEEDS, "targeted", "sft_corrected", "unseen").sentence()
    assert told.startswith("The claim is **met only formally**") and told.endswith("only 0.05 of the pairs completely.")


def test_what_is_owed_is_said_and_a_part_that_failed_decides():
    found = results(targeted=32)
    assert "**not measured yet**" in claim_of(found, SEEDS, "targeted", "sft_corrected", "unseen").sentence()
    assert "**not met**" in claim_of(results(targeted=6), SEEDS, "targeted", "sft_corrected", "unseen").sentence()
    found["targeted"].pop()  # a seed is owed
    told = claim_of(found, SEEDS, "targeted", "sft_corrected", "unseen").sentence()
    assert told == (
        "The claim is **not measured yet**: the gain of targeted (not measured yet); targeted minus sft_corrected "
        "(not measured yet); the guard of matched pairs (not measured yet)."
    )
    assert "**not measured yet**" in claim_of({}, SEEDS, "targeted", "sft_corrected", "unseen").sentence()


def test_secondary_endpoints_are_adjusted_for_all_that_are_announced():
    endpoints = [("a", "b", "success"), ("a", "c", "success"), ("a", "b", "pairs"), ("a", "owed", "success")]
    lines = secondary_table(results(a=30, b=8, c=30), endpoints, SEEDS, "unseen").splitlines()[2:]
    assert lines[0].startswith("| a minus b | success | 0.55 (") and lines[0].endswith("| < .001 | 0.002 |")
    assert lines[1].endswith("| 0.00 (0.00 to 0.00) | 1.000 | 1.000 |") and "pairs | 0.00" in lines[2]
    assert lines[3] == "| a minus owed | success | not measured yet | – | – |"


def test_p_counts_both_sides_and_never_says_zero():
    assert p_value(np.r_[np.full(10, -1.0), np.full(990, 1.0)]) == pytest.approx(22 / 1001)
    assert p_value(np.ones(999)) == pytest.approx(2 / 1000) and p_value(np.zeros(9)) == 1.0


def test_success_is_the_product_of_its_factors():
    rows = job("a", 0, 10)["measured"]["unseen"]
    rows[20] |= {"error": "unparsable_call"}
    rows[21] |= {"error": "wrong_city"}
    rows[22] |= {"error": None}  # cut
    decisions, rest, success = factors(rows)
    assert (decisions, success) == (13 / N, 10 / N) and decisions * rest == pytest.approx(success)
    assert np.isnan(factors(rows[30:])[1])
    assert "| a | 120 | 0.50 | 1.00 | 0.50 |" in factor_table(results(a=20), "unseen")


def test_the_curve_has_a_row_for_each_job_whose_drift_is_read_by_rate():
    found = results(fast=20, slow=10)
    moved = {"seed": 0, "kl_p50": 0.001, "kl_p95": 0.02, "kl_p99": 0.3, "flips": 0.01}
    lines = curve_table(found, {"fast": [moved], "slow": [moved]}, {"fast": ("a", 2e-3), "slow": ("a", 2e-4)}, "unseen")
    assert [line.split("|")[2].strip() for line in lines.splitlines()[2:]] == ["slow", "fast"]
    assert "| a | fast | 0.002 | 0 | 0.50 | 0.75 | 0.001 / 0.020 / 0.300 | 0.010 |" in lines


def test_drift_is_read_on_at_least_300_distinct_general_prompts():
    assert len(set(prompts())) == len(prompts()) >= 300
    (one,) = requests_of([([1, 2, 3], [4, 5]), ([1, 2], [])])
    assert (one.start, one.end) == (3, 5)
    told = summary(np.arange(101, dtype=np.float32), 5)
    assert told == pytest.approx({"kl_mean": 50, "kl_p50": 50, "kl_p95": 95, "kl_p99": 99, "flips": 5 / 101})

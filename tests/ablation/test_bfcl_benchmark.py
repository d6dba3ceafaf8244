"""The figures of benchmarks/bfcl.py: what an announced difference comes out as, and what is owed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import bfcl
from benchmarks.ablation.jobs import TWINS, Job, job_config


def outcomes(right: int, of: int = 40) -> list[dict]:
    return [{"task": f"t{i}", "success": i < right} for i in range(of)]


def results(arms: dict[str, int], seeds: int = 3) -> list[dict]:
    out = []
    for seed in range(seeds):
        both = {"test@0": outcomes(10), "irrelevance@0": outcomes(30)}
        out.append({"arm": "shared", "seed": seed, "initial": both, "hinted": {"test@0": outcomes(25)}})
        for arm, right in arms.items():
            told = {"test@0": outcomes(right), "irrelevance@0": outcomes(28)}
            out.append({"arm": arm, "seed": seed, "outcomes": told})
    return out


@pytest.fixture(scope="module")
def said() -> dict:
    return yaml.safe_load(bfcl.PREREG.read_text(encoding="utf-8"))


def test_a_difference_is_paired_and_one_without_its_arm_is_owed(said):
    found = bfcl.gathered(None, results({"hint": 20, "placebo": 10}))
    assert set(found) == {"untrained", "hinted", "hint", "placebo"} and sorted(found["hint"]["test"]) == [0, 1, 2]
    first, second = bfcl.endpoints(found, said["primary"], 400)
    assert first[0].mean == pytest.approx(0.25) and first[0].low > 0 and first[2] == 3
    assert second[0].mean == pytest.approx(-0.05)
    table = bfcl.endpoints_table(found, said, 400)
    assert "lower end at least +0.00: yes" in table and "lower end at least -0.05: **no**" in table
    rows = [line for line in table.splitlines() if line.endswith("owed |")]
    assert len(rows) == 6, "of seven secondary differences one has both of its arms"


def test_every_announced_arm_is_run_and_every_arm_is_a_setting(said):
    config = bfcl.settings(["run.model=m"])
    named = {one[k] for one in (*said["primary"], *said["secondary"]) for k in ("arm", "minus")}
    assert named <= {*config.ablate.arms, bfcl.UNTRAINED}
    assert {one["of"] for one in (*said["primary"], *said["secondary"])} == {"test", *config.ablate.near_splits}
    trains = {arm: job_config(config, Job("all", arm, 0), Path()).train for arm in config.ablate.arms}
    assert trains["twins"].twins.per_finding == TWINS["per_finding"] and trains["twins"].twins.weight == TWINS["weight"]
    assert not trains["hint"].twins.per_finding
    kinds = {a: t.effective_recipe.terms["distill"].divergence.kind for a, t in trains.items()}
    assert kinds["sft_gold"] == kinds["gold_steps"] == kinds["sft_corrected"] == "fkl"

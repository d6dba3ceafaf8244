"""The benchmark of twins: its jobs, what is equal in its arms, and its controls' edits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from support.stored_targets import make_target

from benchmarks.ablation.twin_arms import drawn, transplanted
from benchmarks.ablation.twin_page import BLOCKS, blocks_of, document_of
from benchmarks.ablation.twin_reads import suite_name
from benchmarks.ablation.twin_run import TwinJob, mass, training
from benchmarks.ablation.twin_settings import NAMES, SUITE, batches_of, jobs_of, load_twins
from hintdistill.core.errors import ConfigError
from hintdistill.core.types import Finding, Message, Replacement, Trace, Twin, TwinEdit

CONFIG = ROOT / "benchmarks" / "ablation" / "twins.yaml"


def test_jobs():
    config = load_twins(CONFIG)
    shared, arms = jobs_of(config)
    assert [j.seed for j in shared] == [0, 1, 2, 3, 4] and len(arms) == 5 * (4 * 3 + 6)
    assert {j.arm for j in arms} == set(NAMES)
    quick = load_twins(CONFIG, quick=True)
    assert [(j.arm, j.seed) for group in jobs_of(quick) for j in group] == [("shared", 0), ("none", 0), ("twins", 0)]
    assert quick.run.rounds == 1 and quick.ablate.steps == 24 and quick.twins.held == 48
    assert SUITE.is_file()


def test_every_name_that_is_asked_of_the_suite_is_there():
    """They are looked up by text, which no type checker reads."""
    asked = {
        name
        for path in (ROOT / "benchmarks" / "ablation").glob("twin_*.py")
        for name in re.findall(r'suite_name\("(\w+)"\)', path.read_text())
    }
    assert {"right_tasks", "read_pairs"} <= asked
    assert all(suite_name(name) is not None for name in asked)


def test_what_matters_most_is_done_first_and_nothing_before_what_it_shares():
    config = load_twins(CONFIG)
    order = [job for _, jobs in batches_of(config) for job in jobs]
    shared, arms = jobs_of(config)
    assert sorted(map(str, order)) == sorted(map(str, [*shared, *arms]))
    assert [(j.arm, j.seed) for j in order[:6]] == [
        ("shared", 0),
        ("none", 0),
        ("twins", 0),
        ("shared", 1),
        ("none", 1),
        ("twins", 1),
    ]
    assert [j.arm for j in order[15:25]] == ["anchors"] * 5 + ["undone"] * 5
    rates = [j.setting == config.twins.rate for j in order if j.arm != "shared"]
    assert rates == sorted(rates, reverse=True), "other rates come last"


def test_a_jobs_key_follows_what_it_depends_on():
    def key(*overrides: str) -> str:
        config = load_twins(CONFIG, overrides)
        return TwinJob(config, Path(), next(j for j in jobs_of(config)[1] if j.arm == "twins")).key()

    assert key() == key("twins.arms=[none, twins]") == key("twins.frontier=[twins]")
    assert len({key(), key("twins.held=32"), key("train.twins.per_finding=1"), key("ablate.steps=12")}) == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.twins.per_finding=0", "per_finding"),
        ("twins.rate=3", "no such entry"),
        ("run.rounds=null", "run.rounds"),
    ],
)
def test_settings_that_do_not_hold(override, said):
    with pytest.raises(ConfigError, match=said):
        load_twins(CONFIG, [override])


def test_every_arm_has_the_same_loss_mass_and_reads_its_rows_as_often():
    config = load_twins(CONFIG, ["twins.hints=8", "twins.anchors=4", "twins.held=4", "ablate.steps=4"])
    sure = np.full(2, -0.1, np.float32)
    rows = [
        make_target(f"{kind}{i}", kind=kind, trace_id=f"{kind}{i}", accepted=True, plain_sampled=sure)
        for kind, n in (("hint", 8), ("anchor", 4), ("twin", 4))
        for i in range(n)
    ]
    section = training(config.train, rows, config, "twins")
    none = training(config.train, rows[:12], config, "none")
    of_twins, of_none = mass(section, rows), mass(none, rows[:12])
    assert of_twins == {"hint": 8.0, "anchor": 8.0, "twin": 4.0}
    assert of_none == {"hint": 8.0, "anchor": 12.0, "twin": 0.0}
    assert (section.batch_size, none.batch_size) == (8, 6), "16 and 12 rows of a slot each, twice in four steps"


def test_rows_are_repeated_in_rounds():
    pool = [make_target(f"t{i}", kind="twin") for i in range(3)]
    assert [t.key for t in drawn(pool, 5)] == ["t0", "t1", "t2", "t0#1", "t1#1"]
    assert drawn([], 5) == []


def test_an_edit_is_transplanted_where_it_adds_and_has_a_place():
    def trace(name: str, *roles: str) -> Trace:
        return Trace(id=name, messages=tuple(Message(role=r, content=r) for r in roles))

    theirs, ours = trace("a", "system", "user", "assistant"), trace("b", "user", "assistant", "user", "assistant")
    say = Replacement(where="message", index=1, old="", new=" Use x.")
    swap = Replacement(where="message", index=1, old="user", new="other")

    def twin(*replacements: Replacement) -> Twin:
        edit = TwinEdit(kind="request", maker="m", replacements=replacements)
        finding = Finding(step=0, error_class="unknown_tool")
        return Twin(
            trace_id="a", finding=finding, edit=edit, context_ids=(1,), step_ids=(2,), span=(0, 1), fidelity="ids"
        )

    moved = transplanted(twin(say, swap), theirs, ours, 1)
    assert moved is not None and [(r.index, r.new) for r in moved.replacements] == [(2, " Use x.")]
    assert transplanted(twin(swap), theirs, ours, 1) is None, "nothing is added"
    of_system = Replacement(where="message", index=0, old="", new=" x")
    assert transplanted(twin(of_system), theirs, ours, 1) is None, "there is no such message"


def test_the_tables_say_what_the_jobs_measured():
    config = load_twins(CONFIG, quick=True)
    pairs = suite_name("read_pairs")(per_family=2)
    outcome = [
        {"task": "x", "success": True, "errors": []},
        {"task": "y", "success": False, "errors": ["unknown_tool"]},
    ]
    right = {task: not task.endswith(".new.1") for task in suite_name("tasks_of_pairs")(pairs)}
    reads = {
        "pairs": right,
        "heldout": {"unknown_tool": [0.25]},
        "removability": {"plain": [True, False], "hint": [True, True]},
    }
    classes = {"unknown_tool": {"findings": 4, "covered": 3, "twins": 5}}
    twins = {"classes": classes, "accepted": {"unknown_tool/rename": 4}, "rejected": {"unknown_tool/add": 1}}
    played = {"test@0": outcome, "test@1": outcome, "test_clean@1": outcome}
    shared = [{"initial": played, "hinted": {"test@0": outcome}, "twins": twins, **reads}]
    arms = [
        {
            "arm": arm,
            "setting": 1,
            "seed": 0,
            "outcomes": played,
            "off_target": {"clean": {"kl_per_token": 0.0005}},
            "rounds": [],
            **reads,
        }
        for arm in ("none", "twins")
    ]
    document = document_of(config, shared, arms)
    blocks = blocks_of(document, config)
    assert set(blocks) == set(BLOCKS)
    assert document["arms"][0]["pairs"]["unseen"]["consistency"]["mean"] == 1.0
    assert "| unknown_tool | 4 | 3 | 5 | 4 | 1 |" in blocks["coverage"]
    assert "+0.500" in blocks["removability"] and "| (a) none |" in blocks["main"]
    assert blocks["frontier"].count("| yes |") == 2
    page = (ROOT / "docs" / "twins_results.md").read_text()
    assert all(f"<!-- {name}: made by benchmarks/twins.py --pages -->" in page for name in BLOCKS)

"""Suites of near-miss pairs: their command plays a model folder, and what it cannot play is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import STUDENT, TOOLWORLD
from near_miss import SUITE

from hintdistill.rollouts.pairs import Pair, PairSuite, read_pairs, score, write_pairs


def test_the_command_plays_a_model_folder_and_prints_one_document(capsys):
    asked = ["--families", "unknown_tool.rename", "unknown_tool.system", "--n", "1", "--json"]
    assert SUITE.command("about", [str(STUDENT), *asked]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(f["family"], f["role"], f["pairs"]) for f in document["families"]] == [
        ("unknown_tool.rename", "maker", 1),
        ("unknown_tool.system", "test", 1),
    ]
    assert document["headline"]["test"]["trigger"] == 0.0 and document["temperature"] == 0.0


def test_another_worlds_pairs_and_environment_are_played_by_the_same_command(tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    one = replace(SUITE.read(families=["unknown_tool.rename"], per_family=1)[0], family="mine")
    write_pairs(pairs, [one])
    world = f"{TOOLWORLD / 'edits.py'}:EditedToolworld"
    asked = ["--pairs", str(pairs), "--environment", world, "--test-families", "mine"]
    assert SUITE.command(None, [str(STUDENT), *asked]) == 0
    told = capsys.readouterr().out
    assert "mine" in told and "test" in told and "all habits alike" in told


@pytest.mark.parametrize(
    ("asked", "said"), [([], "no student given"), ([str(STUDENT), "--families", "nope"], "no family 'nope'")]
)
def test_what_cannot_be_played_is_said(asked, said, capsys):
    with pytest.raises(SystemExit):
        SUITE.command(None, asked)
    assert said in capsys.readouterr().err


def test_groups_and_the_first_pairs_of_a_family(tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [Pair(f"h.{f}.{i}", "h", f"h.{f}", f"t{i}", f"t{i}.{f}") for f in "ab" for i in range(3)]
    write_pairs(path, pairs)
    suite = PairSuite(path, ("h.a",), ("h.b",), lambda: pairs, SUITE.environment, SUITE.options)
    assert suite.read() == pairs == suite.make() and suite.groups["all"] == ("h.a", "h.b")
    assert [p.id for p in suite.read(families=["test"], per_family=2)] == ["h.b.0", "h.b.1"]
    assert [p.id for p in read_pairs(path, ["h.a"], 1)] == ["h.a.0"]


def test_a_habits_interval_is_over_its_triggers():
    pairs = [Pair(f"h.{f}.{i}", "h", f"h.{f}", f"t{i}", f"t{i}.{f}") for f in "ab" for i in range(8)]
    right = {t: i < 4 for i in range(8) for t in (f"t{i}", f"t{i}.a", f"t{i}.b")}
    document = score(pairs, right, ("h.b",))
    row = document["headline"]["all"]
    assert row["consistency"] == 0.5 and row["low"] < 0.25 and row["high"] > 0.75
    assert {f["family"]: f["role"] for f in document["families"]} == {"h.a": "maker", "h.b": "test"}

"""The tables of the real model's near-miss pairs are made from result files alone; no weights."""

from __future__ import annotations

import json

import pytest

from benchmarks import real_pairs
from hintdistill.core.errors import ConfigError
from hintdistill.rollouts.pairs import read_pairs


def result(folder, arm, seed, right, pairs=None):
    folder.mkdir(parents=True, exist_ok=True)
    document = {"arm": arm, "seed": seed, "pairs": pairs or real_pairs.example("PAIRS_SHA256"), "right": right}
    (folder / f"{arm}-{seed}.json").write_text(json.dumps(document))


def test_an_errand_begins_with_a_trigger_and_every_task_is_played_once():
    pairs = real_pairs.example("SUITE").read(per_family=3)
    batches = list(real_pairs.by_errand(pairs))
    tasks = [t for batch in batches for t in batch]
    assert len(tasks) == len(set(tasks)) == 3 * (2 + len(real_pairs.example("EDITS")))
    numbers = [t.split(".")[1] for t in tasks]
    assert len(batches[0]) == 1 and len(dict.fromkeys(numbers)) == 3 and numbers == sorted(numbers, key=numbers.index)
    for batch in batches:
        wheres = {scene_part(t) for t in batch}
        assert len(wheres) == 1


def scene_part(task: str) -> tuple[str, str]:
    kind, _, edit = (*task.split("."), "")[:3]
    own = [e.where for e in real_pairs.example("EDITS").values() if e.name == edit]
    return kind, own[0] if own else "trigger"


def test_students_stand_beside_the_untrained_model_on_the_same_pairs(tmp_path):
    pairs = read_pairs(real_pairs.example("PAIRS"))
    two = real_pairs.example("SUITE").read(families=["test"], per_family=2)
    tasks = {t for p in two for t in (p.trigger, p.near_miss)}
    everything = {t: t.count(".") > 1 for p in pairs for t in (p.trigger, p.near_miss)}
    result(tmp_path, "targeted", 0, {t: t.count(".") == 1 or t.endswith(".list") for t in tasks})
    result(tmp_path, "untrained", None, everything)
    result(tmp_path, "older", 0, everything, pairs="of another file")
    base, student = real_pairs.results(tmp_path)
    assert (base["arm"], student["arm"]) == ("untrained", "targeted")
    rows = real_pairs.students_table([base, student], pairs).splitlines()
    assert rows[2].startswith("| untrained |  | 168 | 0.00 | 1.00 | 0.00 (0.00 to 0.00) | 0.00 / 1.00 / 0.00 |")
    assert (
        rows[3].startswith("| targeted | 0 | 14 | 1.00 | ") and "| 1.00 / 0.50 / 0.50 | 1.00 / 0.00 / 0.00 |" in rows[3]
    )
    table = real_pairs.base_table(base, pairs)
    assert (
        table.count("\n| `") == len(real_pairs.example("EDITS"))
        and "test families: trigger 0.00, near-miss 1.00, both 0.00" in table
    )


def test_results_on_other_pairs_are_not_gone_on_with(tmp_path):
    result(tmp_path, "untrained", None, {"next.0": True}, pairs="of another file")
    with pytest.raises(ConfigError, match="other pairs"):
        real_pairs.play(tmp_path, [], tmp_path / "untrained-None.json", {})


def test_students_are_found_by_their_adapters(tmp_path):
    folder = tmp_path / "seed1" / "targeted" / "student"
    folder.mkdir(parents=True)
    (tmp_path / "seed1" / "none").mkdir()
    (folder / "adapter_config.json").write_text("{}")
    assert real_pairs.students(tmp_path, None) == [("targeted", 1, folder)]
    assert real_pairs.students(tmp_path, ["placebo"]) == []

"""The scripts that measure critics: which records are read, and what is written of a worse critic."""

from __future__ import annotations

import pytest

from benchmarks import critic_curve, critic_labels, replay
from benchmarks.ablation.ablate import plan_jobs
from benchmarks.ablation.settings import load_ablation
from hintdistill.core.errors import InputError
from hintdistill.core.types import Message, Trace
from hintdistill.traces.formats.annotated import Label, Labelled


def labelled(name: str, verdict: str, steps: int, words: int) -> Labelled:
    said = [Message(role="user", content="word " * words)]
    said += [Message(role="assistant", content="an answer")] * steps
    label = Label(verdict=verdict, step=0 if verdict == "findings" else None)
    return Labelled(trace=Trace(id=name, messages=tuple(said)), label=label, source_set="made")


def test_the_shortest_records_with_two_steps_are_taken():
    erring = [labelled(f"e{i:02}", "findings", 2, 40 - i) for i in range(25)]
    clean = [labelled(f"c{i:02}", "none", 2, i + 1) for i in range(12)]
    others = [labelled("one step", "findings", 1, 1), labelled("another's", "not_student", 2, 1)]
    got = critic_labels.chosen([*others, *clean, *erring], len)
    names = [x.trace.id for x in got]
    assert sorted(names) == [f"c{i:02}" for i in range(10)] + [f"e{i:02}" for i in range(5, 25)]
    assert names[0] == "c00" and names[-1] == "e05", "in order of length"
    with pytest.raises(InputError, match="12 records with the label findings"):
        critic_labels.chosen([*clean, *erring[:12]], len)


def outcomes(successes: str, error: str = "unknown_tool") -> list[dict[str, object]]:
    return [
        {"task": str(i), "success": c == "1", "errors": [] if c == "1" else [error]} for i, c in enumerate(successes)
    ]


def job(successes: str, **of: int) -> dict[str, object]:
    counts = {"findings": 8, "candidates": 6, "rejected": 2} | of
    return {"outcomes": {"test@1": outcomes(successes)}, "rounds": [counts, counts]}


def test_what_a_worse_critic_keeps_of_the_gain():
    config = load_ablation(critic_curve.CONFIG, ["ablate.bootstrap=100"])
    _, arms = plan_jobs(config)
    assert len(arms) == 36 and arms[0].arm == "hint" and {j.seed for j in arms[:12]} == {0}
    found = {
        "shared": {k: {"initial": {"test@1": outcomes("10000")}} for k in (0, 1)},
        "hint": {k: job("11111") for k in (0, 1)},
        "mixed:50+gate": {k: job("11100", named=8, right=4, to_find=8, candidates=3, rejected=5) for k in (0, 1)},
        "step:0": {0: job("11110", named=8, right=8, to_find=8)},
        "miss-unknown_tool:100+gate": {k: job("11000", named=5, right=5, to_find=8) for k in (0, 1)},
    }
    told = critic_curve.summary(config, found)
    mixed = told["arms"]["mixed:50+gate"]
    assert mixed["settings"]["test@1"]["kept"]["mean"] == pytest.approx(0.5) and mixed["accepted"] == 3 / 8
    assert (mixed["right"], mixed["named"], mixed["seeds"]) == (16, 32, [0, 1])
    assert told["arms"]["step:0"]["settings"]["test@1"]["gain"]["mean"] == pytest.approx(0.6)
    assert told["arms"]["miss-unknown_tool:100+gate"]["left"]["missed"]["mean"] == pytest.approx(0.75)
    page = critic_curve.text(told)
    assert "| wrong in 50 %, all three kinds | 16 of 32 (50%) | 0.50 [" in page and "| 38% |" in page
    assert "| as it is, gate off | 16 of 16 (100%) |" in page and "| no gate |" in page
    assert "misses unknown_tool" in page and "20 of 32 errors are named" in page and "1 to 2 seeds" in page


def test_replay_says_how_often_its_rows_were_read():
    config = replay.settings([0, 1], ["ablate.bootstrap=100", "ablate.arms=[foreign,replay]"])
    assert [(j.arm, j.setting) for j in replay.more_passes(config)] == [("replay", 0)] * 2
    assert replay.more_passes(replay.settings([0], ["ablate.arms=[foreign]"])) == []

    def arm(successes: str, traces: int, batch: int) -> dict[int, dict[str, object]]:
        of = job(successes, distinct=6, steps=16, traces=traces)
        return {k: {**of, "train": {"batch_size": batch}} for k in (0, 1)}

    found = {
        "shared": {k: {"initial": {"test@1": outcomes("10000")}} for k in (0, 1)},
        "foreign": arm("11110", 96, 8),
        "replay": arm("11100", 160, 8),
        "replay+": arm("11111", 160, 13),
    }
    told = replay.summary(config, found)
    assert [of["passes"] for of in told["rounds"]["replay"]] == [0.8, 0.8]
    page = replay.table(told)
    assert "| stale | 0.800 [" in page and "| 8, 8 | 6, 6 | 1.33, 1.33 |" in page
    assert "| **replay - stale** | -0.200 [" in page and "| **replay, as many passes - stale** | +0.200 [" in page
    del found["replay+"][1]
    assert "as many passes" not in replay.table(replay.summary(config, found)), "half of its seeds are no row"


def test_the_page_of_critics_has_what_the_evidence_says_of_random_mistakes():
    told = critic_curve.random_mistakes(critic_curve.TABLES.read_text(encoding="utf-8"))
    begin, end = critic_curve.KNOWN
    assert critic_curve.PAGE.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip() == told
    assert told.count("right step in") == 5 and "| right step in 50 % | 0.74 / 0.81 | 0.39 / 0.53 |" in told

"""Sections of the report: curves, effects against placebos, cost, traces without a finding, and what was not scored."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from hintdistill.core import statistics
from hintdistill.core.statistics import mean_over_groups
from hintdistill.core.types import Critique
from hintdistill.reporting import clean_traces, curves, failed_episodes, intervals, spending, ways_out
from hintdistill.reporting.html import render_html
from hintdistill.reporting.share import shareable

ATTACK = "</svg><script>document.title='owned'</script>$x_{1}$\x1b[2J"
READINGS = [
    {"step": 5, "loss": 0.5, "anchor_kl": 0.0, "decision_probability": 0.9, f"decision_probability/{ATTACK}": 0.8},
    {"step": 10, "loss": 0.25, "anchor_kl": 1e-4, "decision_probability": 0.4},
    {"step": 12, "tripwire": "max_heldout_kl", "value": 1.0, "bound": 0.5},
    {"step": 15, "loss": float("nan"), "heldout_kl": 2e-4, f"decision_probability/{ATTACK}": 0.1},
    {"step": 15, "train_runtime": 9.0},
]


@pytest.fixture
def document() -> dict[str, Any]:
    """The golden report with what these sections are made of."""
    found = json.loads((ROOT / "tests" / "goldens" / "run_v1" / "report.json").read_text(encoding="utf-8"))
    found["curves"] = curves.curves(READINGS)
    found["against_placebos"] = intervals.against_placebos(found["findings"])
    found["found_nothing"] = clean_traces.found_nothing(*clean())
    return found


def clean(n: int = 12) -> tuple[list[dict[str, Any]], dict[str, Critique]]:
    call = {"name": "look", "arguments_raw": '{"at":1}'}
    messages = [{"role": "user", "content": ATTACK}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    rows: list[dict[str, Any]] = [
        {"key": f"k{i}", "trace": {"id": f"t{i}", "messages": messages, "reward": 1.0}} for i in range(n)
    ]
    rows[0]["trace"]["messages"] = [{"role": "assistant", "content": "a" * 9000}]
    said = {r["key"]: Critique(trace_id=r["trace"]["id"], verdict="none") for r in rows}
    said["k1"] = Critique(trace_id="t1", verdict="abstain")
    return [*rows, {"key": "f", "failure": {}}, {"key": "unread", "trace": rows[-1]["trace"]}], said


def test_curves_are_series_with_gaps():
    found = curves.curves(READINGS)
    assert found is not None and found["steps"] == [5, 10, 15]
    assert found["series"]["loss"] == [0.5, 0.25, None] and found["series"]["heldout_kl"] == [None, None, 2e-4]
    assert found["decision_probability_by_class"] == {ATTACK: [0.8, None, 0.1]}
    assert curves.curves(READINGS[2:3]) is None and curves.body({"curves": None}) == ""


def test_drawings_are_the_same_bytes_hold_no_date_and_nothing_that_runs(document):
    drawn = curves.drawings(document["curves"])
    assert drawn == curves.drawings(copy.deepcopy(document["curves"])) and len(drawn) == 3
    for words, svg in drawn:
        assert "<script" not in svg and "<dc:date>" not in svg and "\x1b" not in svg
        assert "optimiser step</text>" in svg, "text stays text"
        assert words.startswith("Curves over optimiser steps, ")
    assert "loss begins at 0.5 and ends at 0.25" in drawn[0][0]


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colour", [*curves.COLOURS, curves.INK])
def test_colours_of_drawings_have_contrast_on_their_ground(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 4.5


def test_intervals_of_several_measures_are_those_of_each_alone(monkeypatch):
    """In blocks of draws, and with measures that know fewer groups than others."""
    rng = np.random.default_rng(0)
    groups = [f"t{i // 2}" for i in range(60)]
    measures = [(rng.normal(size=n).tolist(), groups[:n]) for n in (60, 41, 60)]
    alone = [mean_over_groups(*measure) for measure in measures]
    monkeypatch.setattr(statistics, "AT_ONCE", 1000)
    assert statistics.means_over_groups(measures) == alone
    values, of = np.array(measures[0][0]), np.array(groups)
    sums = np.array([values[of == g].sum() for g in np.unique(of)])
    drawn = np.random.default_rng(0).integers(30, size=(2000, 30))
    low, high = np.quantile(sums[drawn].sum(1) / 60, (0.025, 0.975))
    assert (alone[0].low, alone[0].high) == pytest.approx((low, high))


def test_intervals_are_over_traces_and_pair_each_finding_with_its_placebos(document):
    found = document["against_placebos"]
    scored = [f for f in document["findings"] if f["decision"]]
    assert found["all"]["n"] == len(scored) and found["all"]["traces"] == len({f["trace"] for f in scored})
    hint = [f["decision"]["effect_nats"] for f in scored]
    mean, low, high = found["all"]["hint_nats"]
    assert mean == pytest.approx(np.mean(hint)) and low <= mean <= high
    placebo = [np.mean([p["effect_nats"] for p in f["placebos"]]) for f in scored]
    assert found["all"]["over_placebo_nats"][0] == pytest.approx(np.mean(np.array(hint) - placebo))
    assert set(found["by_class"]) == {f["error_class"] for f in scored}
    assert sum(g["n"] for g in found["by_class"].values()) == len(scored)
    alike = mean_over_groups([1.0, 1.0, 5.0, 5.0], ["a", "a", "b", "b"])
    apart = mean_over_groups([1.0, 1.0, 5.0, 5.0], ["a", "b", "c", "d"])
    assert (alike.mean, alike.low, alike.high) == (3.0, 1.0, 5.0) and apart.high - apart.low <= 4.0
    with pytest.raises(ValueError, match="0 values"):
        mean_over_groups([], [])
    assert intervals.against_placebos([])["all"]["hint_nats"] is None
    without = intervals.against_placebos([{**scored[0], "placebos": []}])
    assert without["all"]["placebo_nats"] is None and without["all"]["hint_nats"] is not None


def test_a_sample_of_traces_without_a_finding_is_drawn_by_content_and_says_what_it_cuts():
    found = clean_traces.found_nothing(*clean())
    assert found["traces"] == 11 and len(found["sample"]) == clean_traces.SAMPLE
    assert found == clean_traces.found_nothing(*clean()) and "t1" not in {t["trace"] for t in found["sample"]}
    rows, said = clean(1)
    (long,) = clean_traces.found_nothing(rows, said)["sample"]
    assert len(long["text"]) == clean_traces.LONGEST and long["cut"] == len("assistant: ") + 9000 - clean_traces.LONGEST
    text = clean_traces.body({"found_nothing": found})
    assert (
        "8 of 11 traces" in text and "look({&#34;at&#34;:1})" in text and "<script" not in text and "\x1b" not in text
    )


def test_a_reason_has_a_way_out(document):
    left = [
        {"trace": "t", "step": 1, "error_class": "x", "quote": None, "reason": r, "message": ATTACK}
        for r in ("consequence", "consequence", "of_a_plugin", None)
    ]
    text = ways_out.body({"unscored": left})
    assert re.search(r"consequence</th><td class=\"n\">2</td>", text) and "only root errors are corrected" in text
    assert "See the message below." in text and "<script" not in text and "4 of 4 shown" in text
    assert ways_out.body({"unscored": []}) == ""


def test_every_reason_of_the_inject_stage_has_a_way_out_and_names_real_keys():
    from hintdistill.config.surface import leaves
    from hintdistill.core import errors

    source = (ROOT / "hintdistill" / "pipeline" / "inject.py").read_text(encoding="utf-8")
    named = set(re.findall(r'reason = "(\w+)"|skipped or "(\w+)"', source))
    assert {a or b for a, b in named} <= set(ways_out.WAYS_OUT)
    splices = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.SpliceError)]
    assert {e("").reason for e in (*splices, errors.NoHintError, errors.ContextLengthError)} <= set(ways_out.WAYS_OUT)
    keys = {leaf.key for leaf in leaves()}
    written = " ".join(way for _, way in ways_out.WAYS_OUT.values())
    for key in re.findall(r"(?<!docs/)\b((?:critic|inject|rescore|traces)\.[a-z_.]+[a-z])", written):
        assert key in keys or any(k.startswith(f"{key}.") for k in keys), key


def test_cost_is_said_per_critic_and_per_accepted_finding(document):
    usage = {"requests": 3, "prompt_tokens": 1000, "completion_tokens": 50}
    whole = usage | {"by_critic": {ATTACK: usage}, "money": 0.5}
    whole |= {"tokens_per_accepted_finding": 105.0, "money_per_accepted_finding": 0.05}
    document["funnel"]["critique"]["usage"] = whole
    text = spending.body(document)
    assert (
        "105 tokens per accepted finding" in text and "0.050000 per accepted finding" in text and "<script" not in text
    )
    document["funnel"]["critique"]["usage"] = whole | {"money": None}
    assert "no price is set" in spending.body(document)
    document["funnel"]["critique"]["usage"] = whole | {"requests": 0}
    assert spending.body(document) == ""


def test_the_page_has_the_sections_and_what_leaves_holds_no_text(document):
    page = render_html(document, 5)
    for anchor in ("placebos", "curves", "found-nothing"):
        assert f'id="{anchor}"' in page
    shared = shareable(document)
    assert shared["curves"]["series"] == document["curves"]["series"]
    assert shared["against_placebos"]["all"] == document["against_placebos"]["all"]
    assert shared["found_nothing"]["traces"] == 11
    assert "document.title" not in json.dumps(shared), "neither a trace nor the name of a class"
    assert 'id="curves"' in render_html(shared, 5)


def episode(split: str, when: str, task: str, success: bool, text: str | None = "user: hello") -> dict[str, Any]:
    errors = [] if success else [ATTACK]
    row = {"split": split, "when": when, "task": task, "success": success, "errors": errors, "failure": None}
    return row | {"text": None if success and when == "after" else text}


@pytest.fixture
def episodes() -> list[dict[str, Any]]:
    rows = [
        episode(s, w, f"old-{i}", False) for s in ("test", "near_miss_x") for w in ("before", "after") for i in range(5)
    ]
    rows += [
        episode("near_miss_x", "before", "lost", True, "user: " + "b" * 9000),
        episode("near_miss_x", "after", "lost", False, ATTACK),
    ]
    return [*rows, episode("test", "after", "new", False), episode("test", "after", "good", True)]


def test_episodes_that_fail_after_training_stand_beside_those_before(episodes, document):
    found = failed_episodes.failed_after(episodes)
    assert found is not None and list(found["splits"]) == ["near_miss_x", "test"], "near-misses first"
    assert found["splits"]["near_miss_x"] == {"episodes": 6, "failed": 6, "lost": 1, "failed_before": 5}
    assert found["splits"]["test"] == {"episodes": 7, "failed": 6, "lost": 0, "failed_before": 5}
    first = found["shown"][0]
    assert (first["split"], first["task"], first["before"]["success"]) == ("near_miss_x", "lost", True), (
        "what was lost comes first"
    )
    assert first["before"]["cut"] == len("user: ") + 9000 - failed_episodes.LONGEST and first["after"]["text"] == ATTACK
    assert len(found["shown"]) == 2 * failed_episodes.SHOWN
    assert failed_episodes.failed_after([r for r in episodes if r["when"] == "before"]) is None
    alone = failed_episodes.failed_after([episode("test", "after", "new", False)])
    assert alone is not None and alone["shown"][0]["before"] is None and alone["splits"]["test"]["failed_before"] == 0
    document["failed_after"] = found
    page, shared = render_html(document, 3), shareable(document)
    assert "before success, after failed" in page and "more characters" in page and "\x1b" not in page
    assert "document.title" not in json.dumps(shared) and [
        s["lost"] for s in shared["failed_after"]["splits"].values()
    ] == [1, 0]
    assert 'id="failed-after"' in render_html(shared, 3)

"""The verdict: one sentence, at most six figures, regressions first, each linking to rows of the page."""

from __future__ import annotations

import copy
import io
import json
import re
from typing import Any

import pytest
from conftest import ROOT
from rich.console import Console

from hintdistill.reporting.html import render_html
from hintdistill.reporting.share import shareable
from hintdistill.reporting.terminal import show_summary
from hintdistill.reporting.verdict import ORDER, fell, verdict
from hintdistill.reporting.worst import GROUPS, residual, worst, worst_first


def played(success: float, episodes: int = 60) -> dict[str, Any]:
    return {"episodes": episodes, "success_rate": success, "error_rate": 1 - success, "errors": {}, "failures": {}}


@pytest.fixture
def document() -> dict[str, Any]:
    """The golden report, with an environment in which one family of near-misses was lost."""
    found = json.loads((ROOT / "tests" / "goldens" / "run_v1" / "report.json").read_text(encoding="utf-8"))
    splits = {
        "test": {"before": played(0.4, 300), "after": played(0.9, 300)},
        "near_miss_a": {"before": played(1.0), "after": played(0.98)},
        "near_miss_b": {"before": played(1.0), "after": played(0.5)},
    }
    found["environment"] = {**splits["test"], "splits": splits}
    found["train"]["tripwires"] = []
    return found


def figure(document: dict[str, Any], title: str) -> Any:
    return next(f for f in verdict(document).figures if f.title == title)


def test_a_lost_family_of_near_misses_comes_first_and_is_named(document):
    found = verdict(document)
    assert len(found.figures) <= 6 and found.worse == 1
    first = found.figures[0]
    assert (first.title, first.state, first.worse) == ("near-misses", "worse", ("b",))
    assert first.lines[0] == "b: success 100.0 % → 50.0 % of 60 (worse)" and first.lines[1].endswith("98.0 % of 60")
    assert "regression: near-misses (b)" in found.sentence
    assert first.value == "1 of 2 worse, 1 fell within chance"
    states = [ORDER.index(f.state) for f in found.figures]
    assert states == sorted(states)


def test_a_change_within_noise_is_not_called_an_effect(document):
    held = document["effects"]["by_split"]["holdout"]["error_probability"]
    for before, after, verb in ((0.9, 0.2, "lowered"), (0.148, 0.146, "hardly changed"), (0.1, 0.4, "raised")):
        held |= {"before": before, "after": after}
        assert verdict(document).sentence.startswith(
            f"Training on 3 hints {verb} the probability of the error on held-out"
        )
    assert figure(document, "errors still likely after training").worse == ("mean 0.100 → 0.400",)
    document["run"]["hint"] = "placebo"
    assert "3 placebo hints" in verdict(document).sentence


def test_a_fall_within_chance_is_none():
    assert not fell(played(1.0), played(0.98)) and fell(played(1.0), played(0.85))
    assert not fell(played(0.5, 4), played(0.25, 4)) and not fell(played(0.5), played(0.9))


def test_every_figure_can_become_worse(document):
    moved = document["off_target"]["heldout_clean"]
    moved["kl_per_token"] = 0.2
    assert figure(document, "off-target KL").worse == ("heldout_clean",)
    document["run"]["config"]["rollout"]["stop"] = {"max_off_target_kl": 0.3}
    assert figure(document, "off-target KL").state == "good", "the bound of the run's own configuration"
    document["train"]["tripwires"] = [{"step": 4, "tripwire": "max_heldout_kl", "value": 0.7, "bound": 0.5}]
    assert figure(document, "tripwires").lines == ("max_heldout_kl at step 4: 0.7, bound 0.5",)
    trained = next(f for f in document["findings"] if f["trained"])
    trained["decision"] |= {"before": 0.2, "after": 0.9}
    assert figure(document, "errors still likely after training").worse == (
        "1 trained findings are more likely than before",
    )
    document["environment"]["splits"]["test"]["after"]["success_rate"] = 0.1
    assert figure(document, "tasks").worse == ("test",)
    document["run"]["config"]["rollout"]["stop"] = {}
    assert verdict(document).worse == 5


def test_what_is_owed_or_could_not_be_scored_is_said_and_what_was_skipped_is_no_loss(document):
    document["funnel"]["inject"] |= {"skipped": {"consequence": 7}, "failed": {}}
    document["funnel"]["rescore"]["failed"] = {}
    document["funnel"]["critique"]["owed"] = 0
    assert figure(document, "left open").state == "good"
    document["funnel"]["critique"]["owed"], document["funnel"]["rescore"]["failed"] = 3, {"context_length": 2}
    found = figure(document, "left open")
    assert found.state == "look" and found.value == "3 critiques owed, 2 findings could not be scored"
    assert (
        "could not be scored: 2 context_length" in found.lines
        and "skipped by the settings: 7 consequence" in found.lines
    )


def test_what_was_not_measured_is_not_called_good(document):
    bare = document | {"environment": None, "off_target": {}, "train": None, "findings": []}
    bare["funnel"]["train"]["hints"] = 0
    found = verdict(bare)
    assert found.sentence.startswith("Nothing was trained (") and "not measured: " in found.sentence
    assert {f.title for f in found.figures if f.state == "unknown"} == {
        "near-misses",
        "tasks",
        "off-target KL",
        "errors still likely after training",
        "tripwires",
    }


def test_page_terminal_and_shared_page_say_it_and_every_link_has_its_rows(document):
    page, shared, out = render_html(document, 5), render_html(shareable(document), 5), io.StringIO()
    show_summary(document, Console(file=out, width=80))
    found = verdict(document)
    assert found.sentence in page and found.sentence in out.getvalue()
    ending = out.getvalue()[out.getvalue().index(found.sentence) :]
    assert all(f"{f.title}: {f.value}" in ending for f in found.figures)
    assert "WORSE" in page and "family 1: success" in shared and "near_miss_b" not in shared
    for text in (page, shared):
        links = set(re.findall(r'href="#([^"]+)"', text))
        assert links >= {f.anchor for f in found.figures} and all(f'id="{link}"' in text for link in links)


def test_the_page_says_which_run_it_is(document):
    document["run"] |= {
        "name": "tuesday",
        "started": "2026-11-28T09:00:00+00:00",
        "command": "hintdistill run tuesday/config.yaml",
        "data": ["traces.jsonl"],
        "config_hash": "0123456789abcdef01234567",
    }
    page, shared = render_html(document, 5), render_html(shareable(document), 5)
    for key in ("name", "started", "command", "config_hash"):
        assert str(document["run"][key]).replace("+", "&#43;") in page or document["run"][key] in page, key
    assert document["run"]["config_hash"] in shared and "tuesday" not in shared and "traces.jsonl" not in shared


def many(document: dict[str, Any]) -> list[dict[str, Any]]:
    plain = document["findings"][0]
    out = []
    for i in range(40):
        finding = copy.deepcopy(plain)
        finding |= {
            "key": f"{i:024x}",
            "trained": i < 20,
            "accepted": i < 30,
            "split": "train" if i < 20 else "holdout",
        }
        finding["decision"] |= {"before": 0.9, "after": (i * 7 % 40) / 40}
        out.append(finding)
    return out


def test_the_worst_trained_findings_are_shown_first_and_the_rest_is_counted(document):
    findings = many(document)
    shown, groups = worst(findings, 12)
    assert [(g.name, g.shown, g.findings) for g in groups] == [
        ("trained", 8, 20),
        ("held out, accepted", 2, 10),
        ("rejected", 2, 10),
    ]
    trained = sorted((residual(f) for f in findings if f["trained"]), reverse=True)
    assert [residual(f) for f in shown[:8]] == trained[:8] and groups[0].residual == trained[7]
    for n in (0, 1, 39, 40, 60):
        some, counted = worst(findings, n)
        assert len(some) == min(n, 40) == sum(g.shown for g in counted) and {g.name for g in counted} <= set(GROUPS)
    document["findings"] = findings
    page = render_html(document, 12)
    assert page.count('<article id="f-') == 12 and "12 of 40 findings are in this page" in page
    assert page.count('class="above"') == 1 and page.count(f'href="#f-{worst_first(shown)[0]["key"]}"') == 11, (
        "a text is printed once"
    )

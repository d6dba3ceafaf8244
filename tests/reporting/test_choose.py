"""`show` and `open_run`: selections, names, ids in full, numbers for programs."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from rich.console import Console
from support.command import hintdistill
from support.stored_targets import make_target

import hintdistill as hd
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.reporting.choose import Wanted, choose, name_of, named
from hintdistill.reporting.listing import show_finding, show_findings
from hintdistill.reporting.worst import residual

GOLDEN = ROOT / "tests" / "goldens" / "run_v1"


@pytest.fixture
def document() -> dict:
    found = json.loads((GOLDEN / "report.json").read_text(encoding="utf-8"))
    found["unscored"] = [
        {"trace": "left", "step": 1, "error_class": "x", "quote": None, "reason": "consequence", "message": None}
    ]
    return found


@pytest.fixture
def run(tmp_path, document) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(GOLDEN / "manifest.json", folder)
    (folder / "report.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_selections(document):
    everything = document["findings"]
    worst = choose(document, Wanted(worst=3))
    assert worst.matching == len(everything) and not worst.unscored
    assert [residual(f) for f in worst.findings] == sorted(map(residual, everything), reverse=True)[:3]
    trained = choose(document, Wanted(trained=True))
    assert trained.findings == [f for f in everything if f["trained"]] and trained.findings and not trained.unscored
    kind = everything[0]["error_class"]
    assert choose(document, Wanted(error_class=kind)).findings == [f for f in everything if f["error_class"] == kind]
    assert [u["trace"] for u in choose(document, Wanted(reason="consequence")).unscored] == ["left"]
    rejected = next(f for f in everything if f["reasons"])
    assert rejected in choose(document, Wanted(reason=rejected["reasons"][0])).findings
    words = everything[0]["hint"][:20].upper()
    assert everything[0] in choose(document, Wanted(search=words)).findings
    assert not choose(document, Wanted(search="no such words anywhere")).findings
    with pytest.raises(ConfigError, match="no finding has the reason 'leek'") as caught:
        choose(document, Wanted(reason="leek"))
    assert "consequence" in caught.value.hint


def test_names_and_their_beginnings(document):
    one = document["findings"][0]
    assert one in named(document, name_of(one)) and one in named(document, one["trace"])
    assert named(document, one["key"]) == [one] and named(document, one["key"][:12]) == [one]
    assert [u["reason"] for u in named(document, "lef")] == ["consequence"]
    with pytest.raises(ConfigError, match="findings begin with ''"):
        named(document, "")
    with pytest.raises(ConfigError, match="there is no finding 'nothing:0'"):
        named(document, "nothing:0")


def test_ids_are_whole_at_any_width_and_numbers_are_plain_in_a_pipe(document):
    long = document["findings"][0]["trace"] = "t" * 150
    for terminal in (True, False):
        out = io.StringIO()
        show_findings(document, Console(file=out, width=40, force_terminal=terminal, color_system=None))
        assert f"{long}:{document['findings'][0]['step']}" in out.getvalue()
    head, *lines = out.getvalue().splitlines()
    assert len(lines) == len(document["findings"]) + 1
    for line, finding in zip(lines, document["findings"], strict=False):
        cells = dict(zip(head.split("\t"), line.split("\t"), strict=True))
        assert float(cells["before"]) == finding["decision"]["before"] and cells["trace:step"] == name_of(finding)


def test_one_finding_is_a_table_of_its_tokens(document):
    finding, out = document["findings"][0], io.StringIO()
    show_finding(finding, Console(file=out, width=40, force_terminal=False))
    rows = [line.split("\t") for line in out.getvalue().splitlines() if line.count("\t") == 6]
    assert rows[0] == ["token", "text", "before", "hinted", "after", "teacher says", "part of"]
    assert [float(r[3]) for r in rows[1:]] == [t["hinted"] for t in finding["tokens"]]
    (decision,) = [r for r in rows if "decision" in r[6]]
    assert int(decision[0]) == finding["decision"]["position"]


def test_the_command(run, document):
    kind = document["findings"][0]["error_class"]
    shown = json.loads(hintdistill("show", str(run), "--class", kind, "--worst", "2", "--json").stdout)
    assert len(shown) == 2 and {f["error_class"] for f in shown} == {kind}
    assert len(hintdistill("show", str(run), "--trained").stdout.splitlines()) == 1 + sum(
        f["trained"] for f in document["findings"]
    )
    assert "not scored: consequence" in hintdistill("show", str(run), "left:1").stdout
    assert "cannot be combined" in hintdistill("show", str(run), "left:1", "--trained", expect=2).stderr
    assert "available:" in hintdistill("show", str(run), "--class", "nonsense", expect=2).stderr
    (run / "report.json").write_text('{"schema": 1, "rounds": []}')
    assert "each of its rounds" in hintdistill("show", str(run), expect=2).stderr


def test_a_run_as_tables(run, document):
    opened = hd.open_run(run)
    assert len(opened.findings) == len(document["findings"]) and opened.findings[0]["name"] == name_of(
        document["findings"][0]
    )
    assert opened.findings[0]["decision_before"] == document["findings"][0]["decision"]["before"]
    assert len(opened.tokens) == sum(len(f["tokens"]) for f in document["findings"])
    assert {r["set"] for r in opened.off_target} == set(document["off_target"]) and opened.environment == []
    assert opened.classes[0]["error_probability_before"] is not None and opened.unscored[0]["trace"] == "left"
    assert opened.verdict.sentence.startswith("Training on 3 hints") and "3 trained" in repr(opened)
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="pandas is not installed"):
            opened.findings.to_pandas()
    else:
        assert len(opened.findings.to_pandas()) == len(opened.findings)
    with pytest.raises(InputError, match="no run at"):
        hd.open_run(run / "nowhere")


def test_targets_and_traces_are_one_line():
    target = make_target("abc", trace_id="t", step=3)
    assert repr(target).startswith("Target(t:3 ") and len(repr(target)) < 200 and "array" not in repr(target)
    trace = hd.Trace(id="t", messages=(hd.Message(role="user", content="x" * 5000), hd.Message(role="assistant")))
    assert repr(trace) == "Trace('t', 2 messages, 1 steps, 0 tools)"

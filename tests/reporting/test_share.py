"""What leaves with `report --share` is an allow-list: no text, no name, no path, no configuration; whatever is new stays here."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from support.page import taken_apart

from hintdistill.core.errors import ConfigError
from hintdistill.reporting.allow import BLANK
from hintdistill.reporting.html import render_html
from hintdistill.reporting.share import shareable, write_shared

GOLDEN = ROOT / "tests" / "goldens" / "run_v1"
MARK = "Zq9Marker"
STAYS = ("run.config", "train.arrived.base")
"""Whole parts of the document of which nothing leaves."""
PLAIN = re.compile(
    r"[a-z_/]+|[0-9a-f]{16,24}|(trace|class|set|near_miss|reason|failure|split|note|critic|prompt|package|recipe)-\d+|[\d.]+"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "report.json").read_text(encoding="utf-8"))


def full(golden: dict[str, Any]) -> dict[str, Any]:
    """The golden report with the parts that its run had no use for."""
    document = json.loads(json.dumps(golden))
    measured = {
        "episodes": 10,
        "success_rate": 0.4,
        "error_rate": 0.5,
        "errors": {"unknown_tool": 0.5, "alice": 0.1},
        "failures": {"reset raised OSError: /home/alice/key": 1},
    }
    both = {"before": measured, "after": measured}
    document["environment"] = {**both, "splits": {"test": both, "alice's tasks": both}}
    document["train"]["arrived"] = {"adapter": "/home/alice/adapter", "base": "/home/alice/base", "handling": "merged"}
    document["warnings"] = ["the server at 10.0.0.7 said sk-live-abcdef"]
    document["funnel"]["read"]["failed"] = {"not_json": 2, "alice": 1}
    moved = dict.fromkeys(("steps", "tokens", "kl_per_token", "kl_per_step", "kl_p99", "top1_flip_rate"), 0.25)
    interval = {"mean": 1.5, "low": 1.25, "high": 1.75}
    arm = {
        "rows": 16,
        "anchors": 24,
        "distinct": {"hint": 12, "anchor": 24},
        "steps": 16,
        "train": {},
        "not_read": None,
    }
    read = {"fall_nats": interval, "share_of_hint": interval, "fall_nats_accepted": 1.5, "probability_after": 0.25}
    read |= {"kl_per_token": 0.5, "off_target": {"heldout_clean": moved, "alice's set": moved}, "seconds": 3.5}
    document["controls"] = {
        "schema": 1,
        "recipe": "alice's recipe",
        "learning_rate": 0.5,
        "equal": {"rows": 16, "anchors": 24, "steps": 16},
        "heldout": {"findings": 9, "accepted": 7, "probability_before": 0.75, "probability_hinted": 0.125},
        "clean": {"heldout_clean": 8, "alice's set": 8},
        "corrections": {"critics": ["rules"], "counts": {"asked": 5, "kept": 4, "cut": 1}},
        "arms": [
            arm | read | {"arm": "hint"},
            arm | {"arm": "placebo", "not_read": "alice's gradient is not finite", "train": {"schedule": "alice"}},
        ],
    }
    document["unscored"] = [
        {
            "trace": "alice",
            "step": 1,
            "error_class": "alice",
            "quote": "alice",
            "reason": "consequence",
            "message": "alice",
        }
    ]
    document["findings"][0] |= {"notes": ["refused message: alice said so"], "guards": ["leak: 'alice' is not there"]}
    document["findings"][1] |= {"error_class": "alice", "critic": "alice", "split": "alice"}
    return document


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path; items of lists share one path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    else:
        yield path, value


def test_every_leaf_of_a_report_is_allowed_or_absent(golden):
    for document in (golden, full(golden)):
        shared = shareable(document)
        assert "config" not in shared["run"] and "base" not in (shared["train"]["arrived"] or {})
        for path, value in leaves(shared):
            if isinstance(value, str) and value != BLANK and not path.startswith("warnings"):
                assert PLAIN.fullmatch(value) or path == "run.versions.torch", (path, value)
        # numbers are there as they were: nothing of the report's figures is lost
        kept = dict(leaves(shared))
        for path, value in leaves({k: v for k, v in document.items() if k not in ("findings", "unscored")}):
            if isinstance(value, int | float) and not path.startswith(STAYS) and "alice" not in path:
                renamed = path.startswith(("off_target.near_misses", "environment"))
                assert renamed or kept[path] == value, path


def test_the_shared_document_keeps_the_figures_and_the_order(golden):
    shared = shareable(golden)
    assert shared["effects"] == golden["effects"] and shared["gate"] == golden["gate"]
    assert shared["funnel"] == golden["funnel"] and shared["run"]["prompts"] == golden["run"]["prompts"]
    assert shared["off_target"]["heldout_clean"] == golden["off_target"]["heldout_clean"]
    assert shared["off_target"]["set-1"] == golden["off_target"]["near_misses"], "a user's own name is a number"
    traces = {f["trace"] for f in golden["findings"]}
    assert {f["trace"] for f in shared["findings"]} == {f"trace-{i + 1}" for i in range(len(traces))}
    assert [f["decision"]["before"] for f in shared["findings"]] == [
        f["decision"]["before"] for f in golden["findings"]
    ]


def test_of_controls_the_figures_leave_and_no_setting_or_text(golden):
    document = full(golden)["controls"]
    shared = shareable(full(golden))["controls"]
    hint, placebo = shared["arms"]
    moved = document["arms"][0]["off_target"]["heldout_clean"]
    assert list(hint["off_target"].values()) == [moved, moved] and "heldout_clean" in hint["off_target"]
    for key in ("arm", "rows", "distinct", "fall_nats", "share_of_hint", "probability_after", "seconds"):
        assert hint[key] == document["arms"][0][key], key
    assert placebo["arm"] == "placebo" and placebo["not_read"] == BLANK and hint["not_read"] is None
    assert "train" not in hint and "train" not in placebo and shared["recipe"] == "recipe-1"
    assert shared["corrections"] == document["corrections"] and shared["heldout"] == document["heldout"]


def planted(value: Any, at: list[int]) -> Any:
    """The document with a marker as a new key of every mapping and as a new item of every list, at every depth."""
    at[0] += 1
    if isinstance(value, dict):
        grown = {k: planted(v, at) for k, v in value.items()}
        mark = f"{MARK}{at[0]}"
        return grown | {mark: mark, f"{mark}_deep": {"text": mark, "token": [mark]}, f"{MARK.lower()}_{at[0]}": mark}
    if isinstance(value, list):
        return [*(planted(v, at) for v in value), f"{MARK}{at[0]}", {f"{MARK}{at[0]}": MARK}, [MARK]]
    return value


def replaced(value: Any) -> Any:
    """The document with a marker in the place of every text."""
    if isinstance(value, dict):
        return {k: replaced(v) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(v) for v in value]
    return f"{MARK} {value}" if isinstance(value, str) else value


@pytest.mark.parametrize("change", [lambda d: planted(d, [0]), replaced])
def test_what_nobody_allowed_does_not_leave(golden, change):
    changed = change(full(golden))
    assert json.dumps(changed).count(MARK) > 100
    shared = shareable(changed)
    for text in (json.dumps(shared, ensure_ascii=False), taken_apart(render_html(shared, 1000)).text):
        assert MARK.lower() not in text.lower()


def test_no_text_path_host_key_or_user_leaves(golden, tmp_path, monkeypatch):
    document = full(golden)
    run = tmp_path / "run"
    run.mkdir()
    document["run"] |= {"model": str(run), "host": socket.gethostname()}
    document["run"]["config"]["critic"]["llm"] |= {"base_url": "http://10.0.0.7/v1", "api_key_env": "MY_KEY"}
    monkeypatch.setenv("MY_KEY", "sk-live-abcdef")
    (run / "report.json").write_text(json.dumps(document), encoding="utf-8")
    secret = {"alice", str(tmp_path), str(Path.home()), "10.0.0.7", "sk-live", "MY_KEY", "examples/", "/home"}
    secret |= {f[k] for f in document["findings"] for k in ("hint", "trace", "quote", "evidence") if f[k]}
    secret |= {p["text"] for f in document["findings"] for p in f["placebos"]}
    secret |= {t["text"] for f in document["findings"] for t in f["tokens"] if len(t["text"].strip()) > 12}
    if len(socket.gethostname()) > 5:
        secret.add(socket.gethostname())
    if len(user := os.environ.get("USER") or getpass.getuser()) > 5:
        secret.add(user)
    for line in (GOLDEN / "traces.jsonl").read_text(encoding="utf-8").splitlines():
        said = [m.get("content") for m in json.loads(line)["trace"]["messages"]]
        secret |= {s for s in said if s and len(s) > 12}
    assert len(secret) > 50
    for path in write_shared(run):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            text = taken_apart(text).text
        assert [s for s in secret if s in text or json.dumps(s)[1:-1] in text] == []


def test_a_loop_names_the_reports_that_can_be_shared(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"schema": 1, "rounds": []}))
    with pytest.raises(ConfigError, match="each of its rounds has a report"):
        write_shared(tmp_path)

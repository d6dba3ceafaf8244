"""Trace files through the real command line: inspect, convert, and a run that meets files of every kind."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, WEATHER
from support.command import hintdistill, rows

from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError
from hintdistill.core.types import Trace
from hintdistill.pipeline import run as pipeline
from hintdistill.pipeline.progress import Console
from hintdistill.traces.reading import read_traces

USER, ANSWER = {"role": "user", "content": "Weather in Oslo?"}, {"role": "assistant", "content": "Rain."}
WRONG = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "function": {"name": "nosuch", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "error: unknown tool"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    (made / "chat.jsonl").write_text(
        json.dumps({"messages": [USER, WRONG, RESULT, ANSWER], "tools": [WEATHER], "reward": 1}) + "\n{broken\n"
    )
    (made / "atif.json").write_text(
        json.dumps(
            {
                "schema_version": "ATIF-v1.7",
                "agent": {"name": "a", "version": "1"},
                "steps": [
                    {"step_id": 1, "source": "user", "message": "q"},
                    {"step_id": 2, "source": "agent", "message": "x"},
                ],
            }
        )
    )
    with zipfile.ZipFile(made / "more.zip", "w") as archive:
        archive.writestr("a.jsonl", json.dumps([USER, ANSWER]))
        archive.writestr("../b.jsonl", json.dumps([USER, ANSWER]))
    (made / "notes.md").write_text("# notes")
    (made / "tools.json").write_text(json.dumps([WEATHER]))
    return made


def test_inspect_has_an_entry_for_every_file(folder):
    document = json.loads(hintdistill("traces", "inspect", str(folder), "--json").stdout)
    files = {f["path"].removeprefix(f"{folder}/"): f for f in document["files"]}
    keys = ("format", "traces", "steps", "tool_calls", "failures")
    assert {name: tuple(f[k] for k in keys) for name, f in files.items()} == {
        "atif.json": ("atif", 1, 1, 0, 0),
        "chat.jsonl": ("openai_chat", 1, 2, 1, 1),
        "more.zip!/a.jsonl": ("openai_chat", 1, 1, 0, 0),
        "more.zip!/../b.jsonl": (None, 0, 0, 0, 1),
        "notes.md": (None, 0, 0, 0, 0),
        "tools.json": (None, 0, 0, 0, 1),
    }
    assert files["atif.json"]["reason"] is None and "line 2" in files["chat.jsonl"]["reason"]
    assert (
        "points outside the archive" in files["more.zip!/../b.jsonl"]["reason"] and ".md" in files["notes.md"]["reason"]
    )
    assert (
        files["chat.jsonl"]["checks"] == {"unknown_tool": 1, "ignored_error": 1} and files["chat.jsonl"]["rewards"] == 1
    )
    assert document["totals"]["traces"] == 3 and document["totals"]["failures"] == 3
    shown = hintdistill("traces", "inspect", str(folder)).stdout
    assert (
        "1 traces, 2 steps, 1 tool calls" in shown
        and "unknown_tool" in shown
        and "6 files, 3 traces, 4 steps, 3 failures" in shown
    )


def test_inspect_of_nothing_usable_is_exit_3_and_still_a_document(tmp_path):
    (tmp_path / "x.jsonl").write_text("{")
    document = json.loads(hintdistill("traces", "inspect", str(tmp_path / "x.jsonl"), "--json", expect=3).stdout)
    assert document["files"][0]["failures"] == 1 and "not_json" in document["files"][0]["reason"]
    assert "no such file" in hintdistill("traces", "inspect", str(tmp_path / "nowhere"), expect=3).stderr
    assert (
        "did you mean `atif`" in hintdistill("traces", "inspect", str(tmp_path), "--format", "atiff", expect=2).stderr
    )


def test_convert(folder, tmp_path):
    out = tmp_path / "native.jsonl"
    refused = hintdistill("convert", str(folder), "--out", str(out), expect=3).stderr
    assert "files yielded no step" in refused and "tools.json" in refused and not out.exists()
    done = hintdistill("convert", str(folder), "--out", str(out), "--allow-empty-files", "--json")
    document = json.loads(done.stdout)
    assert document["traces"] == 3 and {f["reason"] for f in document["failures"]} == {
        "not_json",
        "unsafe_path",
        "not_a_trace",
    }
    traces = list(read_traces([out]))
    assert [isinstance(t, Trace) for t in traces] == [True] * 3


def run(folder: Path, until: str, *overrides: str) -> None:
    """A run in this process."""
    common = ["critic.use=[rules]", "traces.tools=null", f"run.dir={folder}"]
    pipeline.run(
        load_config(ROOT / "configs" / "quickstart.yaml", [*common, *overrides]),
        folder,
        until=until,
        console=Console(quiet=True),
    )


def test_a_run_stops_at_a_file_without_a_step_unless_told_otherwise(folder, tmp_path):
    (folder / "more.zip").unlink()
    config = ["configs/quickstart.yaml", "-q", "critic.use=[rules]", f"traces.path={folder}", "traces.tools=null"]
    done = hintdistill("run", *config, "--until", "read", f"run.dir={tmp_path / 'a'}", expect=3)
    assert (
        "1 files yielded no step" in done.stderr and "tools.json" in done.stderr and "allow_empty_files" in done.stderr
    )
    run(tmp_path / "b", "critique", f"traces.path={folder}", "traces.allow_empty_files=true")
    assert sum("trace" in r for r in rows(tmp_path / "b", "traces")) == 2
    run(tmp_path / "c", "read", f"traces.path={folder}", f"traces.tools={folder / 'tools.json'}")
    with pytest.raises(ConfigError, match="unknown trace format `nope`"):
        run(tmp_path / "d", "read", f"traces.path={folder}", "traces.format=nope")


def test_a_given_turn_is_never_injected(tmp_path):
    """The prompt's own wrong call is context and no step of the student's; the same call in the run is injected."""
    path = tmp_path / "t.jsonl"
    record = {"prompt": [USER, WRONG, RESULT, USER], "completion": [WRONG, RESULT, ANSWER], "tools": [WEATHER]}
    path.write_text(json.dumps(record))
    folder = tmp_path / "run"
    run(folder, "inject", "critic.rules.checks=[unknown_tool]", "traces.holdout=0", f"traces.path={path}")
    made = rows(folder, "injections")
    assert not [r for r in made if r.get("finding", {}).get("step") == 0]
    assert [r["injection"]["finding"]["step"] for r in made if "injection" in r] == [1]

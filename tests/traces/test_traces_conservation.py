"""Nothing is lost in silence: what a record holds is in its traces, or its key path says why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REAL_TRACES
from support.command import hintdistill
from support.traces_seeds import SEEDS

from hintdistill.core.types import Message, Trace
from hintdistill.reporting.inspection import inspect_files
from hintdistill.traces.conservation import leaves, lost_of
from hintdistill.traces.options import Failure, Record
from hintdistill.traces.reading import Deduplicator, read_traces
from hintdistill.traces.registry import formats

Watched = tuple[Record, str, list[Trace | Failure]]


def watched(path: Path) -> list[Watched]:
    """Each record of a file with the format and the outcomes that a reader made of it."""
    found: list[Watched] = []
    keep = Deduplicator()
    keep.watch = lambda record, name, outcomes: found.append((record, name, outcomes))
    list(read_traces([path], keep=keep))
    return found


WORDS = {
    "q": "where does the train go",
    "a": "the train goes to bergen",
    "r": "departure nine forty",
    "hm": "first look it up",
    "s": "answer in one sentence",
    "f": "find_the_train",
}


def spoken(value: Any) -> Any:
    """A seed whose words are long and told apart, as those of real traces are."""
    if isinstance(value, str):
        inner = None
        if value[:1] in ("{", "[", '"') and value not in ("{", '"'):
            inner = json.loads(value)
        if inner is not None:
            return json.dumps(spoken(inner))
        return WORDS.get(value, f"the word {value} of a seed" if len(value) == 1 else value)
    if isinstance(value, dict):
        return {k: spoken(v) for k, v in value.items()}
    return [spoken(v) for v in value] if isinstance(value, list) else value


SESSIONS = json.loads(Path(__file__).with_name("recorded_sessions.json").read_text())["sessions"]
"""Sessions with what atif-make, which needs Python 3.12, has really made of them."""


class Recorded:
    """What a recorded conversion gave, as atif-make hands it over."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.made = made

    def to_dict(self) -> dict[str, Any]:
        return self.made

    @classmethod
    def convert(cls, path: Path, kind: str) -> tuple[Recorded, list[Any]]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return cls(next(s["atif"] for s in SESSIONS if (s["kind"], s["lines"]) == (kind, lines))), []


def sessions(folder: Path, patch: pytest.MonkeyPatch) -> list[Watched]:
    """The recorded sessions, each a file, read with the conversion that was recorded of it."""
    patch.setitem(sys.modules, "atif_make", SimpleNamespace(convert=Recorded.convert))
    found: list[Watched] = []
    for n, session in enumerate(SESSIONS):
        path = folder / f"{n}.jsonl"
        path.write_text("\n".join(map(json.dumps, session["lines"])))
        found += watched(path)
    return found


@pytest.fixture(params=sorted(SEEDS))
def seeded(request, tmp_path, monkeypatch) -> list[Watched]:
    if request.param == "sessions":
        found = sessions(tmp_path, monkeypatch)
        assert [name for _, name, _ in found] == ["sessions"] * len(SESSIONS)
        return found
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(spoken(s)) for s in SEEDS[request.param]))
    found = watched(path)
    assert {name for _, name, _ in found} == {request.param}
    return found


def without(trace: Trace, drop: str) -> Trace | None:
    """The trace without its last message, call, or result; None where it has none."""
    at = {
        "message": [i for i, m in enumerate(trace.messages) if m.content],
        "call": [i for i, m in enumerate(trace.messages) if m.tool_calls],
        "result": [i for i, m in enumerate(trace.messages) if m.role == "tool" and m.content],
        "reasoning": [i for i, m in enumerate(trace.messages) if m.reasoning],
    }[drop]
    if not at:
        return None
    gone = trace.messages[at[-1]]
    made: list[Message] = []
    for m in trace.messages:
        # a log that says the same twice has lost it where it is nowhere left
        if drop == "call" and m.tool_calls == gone.tool_calls:
            m = m.model_copy(update={"tool_calls": ()})
        elif drop == "reasoning" and m.reasoning == gone.reasoning:
            m = m.model_copy(update={"reasoning": None})
        elif drop in ("message", "result") and m.content == gone.content:
            continue
        made.append(m)
    return trace.model_copy(update={"messages": tuple(made)})


@pytest.mark.parametrize("drop", ["message", "call", "result", "reasoning"])
def test_one_thing_less_in_a_readers_output_is_found(seeded, drop):
    """The mutation test: whatever a reader would forget of a message, a call, a result or a thought fails the check."""
    tried = 0
    for record, name, outcomes in seeded:
        traces = [o for o in outcomes if isinstance(o, Trace)]
        before = {item.path for item in lost_of(record.value, outcomes, name)}
        mutants = [without(t, drop) for t in traces]
        if not traces or any(m is None for m in mutants):
            continue
        tried += 1
        lost = lost_of(record.value, [m for m in mutants if m is not None], name)
        fresh = [item for item in lost if item.path not in before and item.reason is None]
        assert fresh, f"{name}: a {drop} is gone and nothing is missed"
    if not tried:
        pytest.skip(f"no seed with a {drop} in every trace")


def test_seeds_lose_only_what_is_explained(seeded):
    for record, name, outcomes in seeded:
        if any(isinstance(o, Trace) for o in outcomes):
            unexplained = [i for i in lost_of(record.value, outcomes, name) if i.reason is None]
            assert not unexplained, (name, unexplained)


@pytest.mark.skipif(not REAL_TRACES.is_dir(), reason=f"no real traces at {REAL_TRACES}")
def test_real_files_lose_only_what_is_explained():
    folders = sorted(p for p in REAL_TRACES.iterdir() if p.is_dir())
    reports = [r for folder in folders for r in inspect_files([folder], lost=True)]
    unexplained = {(r.path, i.path) for r in reports for i in r.lost or () if i.reason is None}
    assert not unexplained
    assert sum(len(r.lost or ()) for r in reports) > 400, "what is left out is listed, with its reason"


def test_reasons_are_exact_key_paths_of_known_formats():
    data = json.loads(Path(lost_of.__code__.co_filename).with_name("left_out.json").read_text())
    assert set(data) <= {f.NAME for f in formats()}
    paths = [p for reasons in data.values() for listed in reasons.values() for p in listed]
    assert paths and not any(sign in p for p in paths for sign in "*?^$|\\")
    for name, reasons in data.items():
        listed = [p for paths in reasons.values() for p in paths]
        assert len(listed) == len(set(listed)), f"{name}: a path has two reasons"


def test_leaves_go_into_json_strings_and_give_exact_paths():
    value = {"a": [{"b": json.dumps({"c": ["x", json.dumps("y")]}), "type": "text"}], "d": "{no json"}
    assert sorted(leaves(value)) == [("a[].b.c[]", "x"), ("a[].b.c[]", "y"), ("d", "{no json")]


def test_inspect_lists_what_is_lost(tmp_path):
    record = {"id": "x", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    event = {"sessionId": "s", "uuid": "1", "type": "user", "message": {"role": "user", "content": "where to"}}
    answer = {**event, "uuid": "2", "parentUuid": "1", "type": "assistant", "novel": "words nobody reads"}
    answer["message"] = {"role": "assistant", "content": [{"type": "text", "text": "to Bergen"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (tmp_path / "b.jsonl").write_text(json.dumps(event) + "\n" + json.dumps(answer))
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": [{"role": "assistant", "content": "alone"}]}))
    document = json.loads(hintdistill("traces", "inspect", str(tmp_path), "--lost", "--json").stdout)
    one, two, three = (f["lost"] for f in document["files"])
    assert one == [] and [(i["path"], i["reason"]) for i in three] == [("", "no_request")]
    assert [i["path"] for i in two if i["reason"] is None] == ["[].novel"]
    assert {i["path"] for i in two if i["reason"]} >= {"[].uuid"}
    text = hintdistill("traces", "inspect", str(tmp_path), "--lost").stdout
    assert "[].novel" in text and "words nobody reads" in text
    plain = json.loads(hintdistill("traces", "inspect", str(tmp_path), "--json").stdout)
    assert all(f["lost"] is None for f in plain["files"])

"""Compressed files, tables and data sets: read by run, convert and inspect alike; what is not read is said by all three."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import STUDENT, WEATHER
from support.command import hintdistill

from hintdistill.core.errors import InputError
from hintdistill.core.types import Trace
from hintdistill.traces.options import Failure
from hintdistill.traces.reading import read_traces

USER, ANSWER = {"role": "user", "content": "Weather in Oslo?"}, {"role": "assistant", "content": "Rain."}


def record(n: int) -> dict[str, Any]:
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "get_weather", "arguments": json.dumps({"city": f"Oslo {n}"})},
    }
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    asked = {"role": "user", "content": f"Weather in Oslo {n}?"}
    result = {"role": "tool", "tool_call_id": "c", "content": "rain"}
    return {"id": f"t{n}", "messages": [asked, said, result, ANSWER], "tools": [WEATHER]}


def texts(*numbers: int) -> str:
    return "\n".join(json.dumps(record(n)) for n in numbers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    (made / "a.jsonl").write_text(texts(1))
    (made / "b.jsonl.gz").write_bytes(gzip.compress(texts(2, 3).encode()))
    columns = {"id": ["t4"], "messages": [json.dumps(record(4)["messages"])], "tools": [json.dumps([WEATHER])]}
    pq.write_table(pa.table(columns), made / "c.parquet")
    (made / "notes.md").write_text("# notes")
    (made / "other.tar.gz").write_bytes(gzip.compress(b"no traces"))
    return made


def test_all_three_commands_read_the_same_and_name_what_they_do_not_read(folder, tmp_path):
    document = json.loads(hintdistill("traces", "inspect", str(folder), "--json").stdout)
    assert {Path(f["path"]).name: f["traces"] for f in document["files"]} == {
        "a.jsonl": 1,
        "b.jsonl.gz": 2,
        "c.parquet": 1,
        "notes.md": 0,
        "other.tar.gz": 0,
    }
    done = hintdistill("convert", str(folder), "--out", str(tmp_path / "all.jsonl"))
    assert "4 traces" in done.stdout and "notes.md" in done.stderr and "1 .gz, 1 .md" in done.stderr
    config = {"run": {"model": str(STUDENT)}, "traces": {"path": [str(folder)]}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    ran = hintdistill("run", str(tmp_path / "c.yaml"), f"run.dir={tmp_path / 'run'}", "--until", "read")
    assert "4 traces" in ran.stdout + ran.stderr and "notes.md" in ran.stdout + ran.stderr


def test_zstd_is_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(texts(1).encode()) + zstandard.ZstdCompressor().compress(
        b"\n" + texts(2).encode()
    )
    (tmp_path / "t.jsonl.zst").write_bytes(packed)
    assert [t.id for t in read_traces([tmp_path])] == ["t1", "t2"], "two frames are one file"
    (tmp_path / "t.jsonl.zst").write_bytes(packed[:-9])
    assert any(isinstance(o, Failure) for o in read_traces([tmp_path]))


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain", "bomb"])
def test_damaged_files_are_failures(tmp_path, damage):
    packed = gzip.compress(texts(*range(50)).encode())
    data = {"cut": packed[:-20], "flipped": packed[:200] + b"\0\0\0" + packed[203:], "plain": texts(1).encode()}
    bomb = gzip.compress(b" " * (40 << 20)) if damage == "bomb" else b""
    (tmp_path / "t.jsonl.gz").write_bytes(data.get(damage, bomb))
    found = list(read_traces([tmp_path / "t.jsonl.gz"]))
    assert isinstance(found[-1], Failure) and found[-1].reason in ("unreadable", "not_json", "not_utf8")
    assert damage != "bomb" or "bomb" in found[-1].message


def test_a_table_gives_no_call_an_argument_that_it_never_had(tmp_path):
    """Arrow gives every object of a column the keys of all of them."""
    messages = [
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"city": "Oslo"}}]},
            ANSWER,
        ],
        [USER, {"role": "assistant", "content": "", "tool_calls": [{"name": "g", "arguments": {"day": 1}}]}, ANSWER],
    ]
    pq.write_table(pa.table({"messages": messages}), tmp_path / "t.parquet")
    one, two = read_traces([tmp_path / "t.parquet"])
    assert one.messages[1].tool_calls[0].arguments == {"city": "Oslo"}
    assert two.messages[1].tool_calls[0].arguments == {"day": 1}
    assert (str(two.source.position), one.messages[0].extra) == ("row 2", {})


def test_empty_and_broken_tables_are_failures(tmp_path):
    pq.write_table(pa.table({"messages": pa.array([], pa.string())}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table PAR1")
    assert [o.reason for o in read_traces([tmp_path])] == ["empty_file", "unreadable"]


def test_a_saved_set_is_read_without_the_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_list([record(1), record(2)]),
            "test": datasets.Dataset.from_list([record(9), record(3), record(4)]).select([1, 2]),
        }
    )
    made.save_to_disk(str(tmp_path / "set"))
    assert sorted(t.id for t in read_traces([tmp_path / "set"])) == ["t1", "t2", "t3", "t4"]
    train = list(read_traces([tmp_path / "set" / "train"]))
    assert all(isinstance(t, Trace) for t in train) and [t.id for t in train] == ["t1", "t2"]
    assert train[0].messages == next(iter(plain(tmp_path, 1))).messages


def plain(tmp_path: Path, n: int) -> list[Trace]:
    (tmp_path / f"{n}.jsonl").write_text(json.dumps(record(n)))
    return [t for t in read_traces([tmp_path / f"{n}.jsonl"]) if isinstance(t, Trace)]


def test_a_set_of_the_hub_is_read_from_its_copy(tmp_path, monkeypatch):
    """A snapshot in the hub's own cache, as a download leaves it; nothing asks the network."""
    pytest.importorskip("datasets")
    cache = tmp_path / "hub"
    for revision, first in (("a" * 40, 1), ("b" * 40, 5)):
        snapshot = cache / "datasets--someone--runs" / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / "train.jsonl").write_text(texts(first, first + 1))
        (snapshot / "test.jsonl").write_text(texts(first + 2))
    refs = cache / "datasets--someone--runs" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(cache))
    for place in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(place, True)  # what the variable of that name sets when the libraries are first imported

    def ids(path: str) -> list[str]:
        return [o.id if isinstance(o, Trace) else o.message for o in read_traces([path])]

    assert ids("hf://someone/runs?split=test") == ["t3"]
    assert sorted(ids("hf://someone/runs")) == ["t1", "t2", "t3"]
    assert ids(f"hf://someone/runs?split=train&revision={'b' * 40}") == ["t5", "t6"]
    (trace,) = read_traces(["hf://someone/runs?split=test"])
    assert trace.source.position == "split test, row 1"
    (failure,) = read_traces(["hf://someone/other?split=test"])
    assert isinstance(failure, Failure) and failure.reason == "unreadable" and "someone/other" in failure.message


@pytest.mark.parametrize("path", ["hf://runs", "hf://a/b/c", "hf://a/b?part=train"])
def test_a_hub_name_that_is_none_is_refused(path):
    with pytest.raises(InputError, match="hf://"):
        list(read_traces([path]))

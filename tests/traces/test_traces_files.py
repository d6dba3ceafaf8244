"""Files from outside: streaming, broken input, archives, links; every file and every record is accounted for."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hintdistill.core.errors import InputError
from hintdistill.core.types import Source, Trace
from hintdistill.reporting.inspection import convert, inspect_files
from hintdistill.traces import records
from hintdistill.traces.files import all_files
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.reading import read_traces
from hintdistill.traces.records import read_values

RECORD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
LINE = json.dumps(RECORD)
REASONS = list[str]


def reasons(path: Path, **options: int) -> REASONS:
    """`ok` or the failure's reason, record by record."""
    return ["ok" if isinstance(o, Trace) else o.reason for o in read_traces([path], ReadOptions(**options))]


BROKEN = {
    "not_utf8": b'{"messages": "\xff\xfe"}',
    "not_json": b'{"messages": [{"role": "us',
    "too_deep": b'{"messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "not_finite": b'{"messages": [], "reward": 1e999}',
    "number_too_large": b'{"messages": [], "reward": ' + b"9" * 5000 + b"}",
    "lone_surrogate": rb'{"messages": [{"role": "assistant", "content": "\ud83d"}]}',
    "not_a_trace": b'"text"',
}


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_each_broken_line_is_one_failure_and_the_rest_is_read(tmp_path, newline):
    path = tmp_path / "t.jsonl"
    good = LINE.encode()
    path.write_bytes(newline.join(part for bad in BROKEN.values() for part in (good, bad)) + newline + good)
    got = list(read_traces([path]))
    assert reasons(path) == [r for name in BROKEN for r in ("ok", name)] + ["ok"]
    for number, outcome in enumerate(got, 1):
        assert outcome.source is not None and outcome.source.position == f"line {number}"


@pytest.mark.parametrize("indent", [None, 2], ids=["lines", "indented"])
def test_a_broken_element_of_an_array_costs_itself(tmp_path, indent):
    """The next element is found by where it starts; positions count on."""
    path = tmp_path / "t.json"
    good = json.dumps(RECORD, indent=indent).replace("\n", "\n  ")
    for name in ("not_utf8", "not_json", "too_deep", "not_finite", "number_too_large"):
        bad = BROKEN[name]
        path.write_bytes(b"[\n  " + good.encode() + b",\n  " + bad + b",\n  " + good.encode() + b"\n]\n")
        assert reasons(path) == ["ok", name, "ok"], name
    path.write_text(f"[\n  {good},\n  {good}")
    assert reasons(path) == ["ok", "ok", "not_json"], "a list that is not closed is said to be truncated"


def test_values_beyond_depth_in_what_is_kept_are_refused(tmp_path):
    """Python reads it, no other JSON library has to."""
    path = tmp_path / "t.jsonl"
    deep = "[" * 100 + "]" * 100
    path.write_text(LINE[:-1] + f', "info": {deep}}}\n' + LINE)
    assert reasons(path) == ["too_deep", "ok"]


def test_a_record_beyond_the_bound_is_refused_and_reading_goes_on(tmp_path):
    path = tmp_path / "t.jsonl"
    big = json.dumps({**RECORD, "pad": "x" * 300_000})
    path.write_text(f"{LINE}\n{big}\n{LINE}")
    assert reasons(path, max_record_bytes=200_000) == ["ok", "too_large", "ok"]
    assert reasons(path) == ["ok", "ok", "ok"]
    path = tmp_path / "t.json"
    path.write_text(f"[\n{LINE},\n{big},\n{LINE}\n]")
    assert reasons(path, max_record_bytes=200_000) == ["ok", "too_large", "ok"]


def test_memory_is_bounded_by_the_record_not_the_file(tmp_path, monkeypatch):
    """Peak of Python's allocations: an array ten times as long takes no more."""
    monkeypatch.setattr(records, "CHUNK", 1 << 12)
    peaks = []
    for count in (40, 400):
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps([{**RECORD, "pad": "x" * 20_000}] * count))
        tracemalloc.start()
        with path.open("rb") as file:
            assert sum(isinstance(v, Record) for v in read_values(file, str(path), 1 << 28)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] and peaks[1] < 20 * 20_000


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), json_values, max_size=3),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([None, 1, 4]),
    st.sampled_from(["array", "lines", "glued"]),
    st.booleans(),
    st.integers(1, 40),
)
def test_streaming_gives_what_json_gives(values, indent, layout, ascii_only, chunk):
    """Whatever the layout, and wherever the chunks are cut."""
    if layout == "array":
        text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    else:
        text = ("\n" if layout == "lines" else " ").join(json.dumps(v, ensure_ascii=ascii_only) for v in values)
    before, records.CHUNK = records.CHUNK, chunk
    try:
        got = list(read_values(io.BytesIO(text.encode()), "t.json", 1 << 20))
    finally:
        records.CHUNK = before
    assert [v.value if isinstance(v, Record) else v for v in got] == values


def make_zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), data)
    return path


def test_an_archive_is_read_member_by_member(tmp_path):
    path = make_zip(
        tmp_path / "logs.zip", a_DOT_jsonl=f"{LINE}\n{LINE}".encode(), sub__b_DOT_json=b"{", notes_DOT_txt=b"x"
    )
    got = list(read_traces([path]))
    assert [str(o.source) for o in got] == [
        f"{path}!/a.jsonl, line 1",
        f"{path}!/a.jsonl, line 2",
        f"{path}!/sub/b.json, line 1",
    ]
    assert [getattr(o, "reason", "ok") for o in got] == ["ok", "ok", "not_json"]
    by_name = {r.path: r for r in inspect_files([path])}
    assert "not a known kind of trace file" in (by_name[f"{path}!/notes.txt"].reason or "")


def test_an_eval_archive_gives_its_samples(tmp_path):
    sample = {"id": 1, "epoch": 1, "target": "", **RECORD}
    path = make_zip(
        tmp_path / "log.eval", header_DOT_json=b'{"eval": {}}', samples__1_DOT_json=json.dumps(sample).encode()
    )
    (trace,) = read_traces([path])
    assert isinstance(trace, Trace) and trace.task_id == "1"


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("member", "data", "reason"),
    [
        ("../out.jsonl", LINE, "unsafe_path"),
        ("/etc/x.jsonl", LINE, "unsafe_path"),
        ("C:\\x.jsonl", LINE, "unsafe_path"),
        ("a\\..\\..\\x.jsonl", LINE, "unsafe_path"),
        (link("l.jsonl"), "/etc/passwd", "symlink"),
        ("inner.zip", "PK", "nested_archive"),
        ("bomb.jsonl", " " * (32 << 20), "zip_bomb"),
    ],
)
def test_hostile_members_are_refused_and_the_others_read(tmp_path, member, data, reason):
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.jsonl", LINE + os.urandom(1 << 18).hex())
        archive.writestr("fine.jsonl", LINE)
        archive.writestr(member, data)
    got = reasons(path)
    assert got[-1] == reason and "ok" in got
    assert not (tmp_path.parent / "out.jsonl").exists()


def test_bombs_by_size_overlap_and_lie(tmp_path):
    bomb = make_zip(tmp_path / "bomb.zip", a_DOT_jsonl=b" " * (64 << 20))
    assert reasons(bomb) == ["zip_bomb"]
    # every entry of the directory points at the same data
    data = make_zip(tmp_path / "one.zip", a_DOT_jsonl=os.urandom(5000)).read_bytes()
    at = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entries = data[at:end] * 3
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, len(entries), at, 0)
    overlap = tmp_path / "overlap.zip"
    overlap.write_bytes(data[:at] + entries + tail)
    assert reasons(overlap) == ["zip_bomb"]
    # the directory says ten bytes, the member holds a hundred thousand
    lie = bytearray(make_zip(tmp_path / "lie.zip", a_DOT_jsonl=b"\n" * 100_000).read_bytes())
    at = lie.index(b"PK\x01\x02")
    lie[at + 24 : at + 28] = struct.pack("<L", 10)
    (tmp_path / "lie.zip").write_bytes(lie)
    assert reasons(tmp_path / "lie.zip") in (["unreadable"], ["empty_file"], ["empty_file", "unreadable"])


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_damaged_archives_are_one_failure(tmp_path, cut):
    data = make_zip(tmp_path / "t.zip", a_DOT_jsonl=(LINE + "\n").encode() * 50).read_bytes()
    path = tmp_path / "t.zip"
    path.write_bytes(data[:cut])
    assert reasons(path) == ["bad_archive"]
    flipped = bytearray(data)
    flipped[60] ^= 0xFF
    path.write_bytes(flipped)
    assert reasons(path)[-1] in ("unreadable", "bad_archive", "not_json", "not_utf8")


def test_links_and_pipes_in_a_folder(tmp_path):
    outside, folder = tmp_path / "outside.jsonl", tmp_path / "in"
    folder.mkdir()
    outside.write_text(LINE)
    (folder / "a.jsonl").write_text(LINE)
    (folder / "b.jsonl").symlink_to(outside)
    (folder / "c.jsonl").symlink_to(folder / "a.jsonl")
    (folder / "d").symlink_to(tmp_path)
    (folder / "e.jsonl").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "f.jsonl")
    found = {Path(f.name).name: f.refused and f.refused.reason for f in all_files([folder])}
    assert found == {
        "a.jsonl": None,
        "b.jsonl": "symlink",
        "c.jsonl": None,
        "d": "symlink",
        "e.jsonl": "symlink",
        "f.jsonl": "not_a_file",
    }
    assert "not followed" in next(o.message for o in read_traces([folder]) if isinstance(o, Failure))


def test_globs_and_several_paths(tmp_path):
    for name in ("a1.jsonl", "a2.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(LINE)
    assert [t.id for t in read_traces([str(tmp_path / "a*.jsonl")])] == ["a1#1", "a2#1"]
    assert [t.id for t in read_traces([tmp_path / "b.jsonl", tmp_path])] == ["b#1", "a1#1", "a2#1"], (
        "a file named twice is read once"
    )
    assert len(list(read_traces([str(tmp_path / "**")]))) == 3
    with pytest.raises(InputError, match="nothing matches"):
        list(read_traces([str(tmp_path / "z*.jsonl")]))


def test_an_id_that_is_not_unique_costs_no_trace(tmp_path):
    other = {
        **RECORD,
        "messages": [*RECORD["messages"], {"role": "user", "content": "and?"}, {"role": "assistant", "content": "b"}][
            ::-1
        ],
    }
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"id": "x", **r}) for r in (RECORD, other, RECORD)))
    got = list(read_traces([path]))
    assert [getattr(o, "reason", getattr(o, "id", None)) for o in got] == ["x", "x@t#2", "duplicate_id"]


def test_convert_is_streamed_whole_or_not_at_all(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text(json.dumps([{**RECORD, "odd": 1}, {"x": 1}]))
    out = tmp_path / "native.jsonl"
    done = convert([tmp_path / "in"], out)
    assert (done.traces, [f.reason for f in done.failures]) == (1, ["not_a_trace"])
    (trace,) = read_traces([out])
    assert isinstance(trace, Trace) and trace.extra == {"odd": 1}
    (tmp_path / "in" / "b.json").write_text('{"tools": []}')
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"1 files yielded no step.*b\.json"):
        convert([tmp_path / "in"], out)
    assert out.read_bytes() == before and [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert convert([tmp_path / "in"], out, allow_empty_files=True).traces == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            {
                "mistake_step": "3",
                "history": [{"role": "assistant", "name": "Expert", "content": "x"}],
                "mistake_agent": "Expert",
            },
            "labelled Who&When record",
        ),
        ({"trajectory_id": "a", "failures": []}, "AgentRx labels"),
        ({"type": "function", "function": {"name": "look", "parameters": {}}}, "schema of the tool 'look'"),
        ({"name": "look", "parameters": {}}, "schema of the tool 'look'"),
        ({"anything": 1}, "keys present: anything"),
    ],
)
def test_what_is_often_beside_traces_is_refused_by_name(tmp_path, value, says):
    path = tmp_path / "beside.json"
    path.write_text(json.dumps(value))
    (failure,) = read_traces([path])
    assert isinstance(failure, Failure) and failure.reason == "not_a_trace"
    assert says in failure.message


PIECES = st.sampled_from(
    [
        '"',
        "\\u",
        "d8",
        "D8",
        "dc",
        "DC",
        "00",
        "3d",
        "e9",
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        "1",
        "-",
        "0",
        ".",
        "e",
        "E",
        "+",
        "9" * 30,
        "9" * 400,
        "true",
        "null",
        "NaN",
        "Infinity",
        " ",
        "\t",
        "\\n",
        "\\/",
        "\\x",
        '"a"',
        "é",
        "1e308",
        "1e309",
        "5e-324",
        "2.5e-400",
        "\\ud83d\\ude00",
        "\\ud83d",
        "\\ude00",
    ]
)


@settings(max_examples=examples(400))
@given(pieces=st.lists(PIECES, min_size=1, max_size=8), quoted=st.booleans())
def test_the_fast_decoder_takes_nothing_that_the_slow_one_reads_differently(pieces, quoted):
    text = f'"{"".join(pieces)}"' if quoted else "".join(pieces)
    decoder, source = records._Decoder(), Source(file="f", position="line 1")
    fast = decoder.whole(text.encode(), source)
    if fast is None:
        return
    slow, end = decoder.decode(text, records._skip(text, 0), source)
    assert isinstance(slow, Record) and not text[end:].strip()
    assert json.dumps(fast.value) == json.dumps(slow.value)

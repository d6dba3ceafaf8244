"""Rows that stay on disk: found by key and by field, the newest of each key, whatever a kill left of the last line."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hintdistill.core.errors import InputError
from hintdistill.core.rows import KeySet, Lazy, OnDemand, Picked, Rows, chunks
from hintdistill.core.storage import BLOCK, JsonlStore


def store_of(tmp_path, *rows):
    store = JsonlStore(tmp_path / "rows.jsonl")
    store.extend(rows)
    return store


def test_the_newest_row_of_a_key_is_found_and_no_other(tmp_path):
    store = store_of(tmp_path, {"key": "a", "n": 1}, {"key": "b", "n": 2}, {"key": "a", "n": 3})
    rows = Rows(store)
    assert rows["a"] == {"key": "a", "n": 3} and rows.get("b") == {"key": "b", "n": 2}
    assert rows.get("c") is None and "c" not in rows and "a" in rows and len(rows) == 2
    assert {k: rows[k] for k in ("a", "b")} == store.by_key()
    with pytest.raises(KeyError):
        rows["c"]
    assert pickle.loads(pickle.dumps(rows))["a"]["n"] == 3, "its open file stays behind"


def test_a_torn_line_is_no_row_and_is_cut_off_by_the_next_write(tmp_path):
    store = store_of(tmp_path, {"key": "a"}, {"key": "long", "text": "x" * (2 * BLOCK)})
    with store.path.open("a") as file:
        file.write('{"key":"torn","text":"' + "y" * (BLOCK + 7))
    assert "torn" not in Rows(store) and "long" in Rows(store)
    JsonlStore(store.path).append({"key": "b"})
    assert [r["key"] for r in store.rows()] == ["a", "long", "b"]


def test_rows_that_were_written_by_others_are_found_too(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1, "key": "a", "trace": "t"}\n{"key": "b \\u00e9", "trace": "t"}\n')
    rows = Rows(JsonlStore(path))
    assert rows["a"]["n"] == 1 and "b é" in rows
    assert [r["key"] for r in rows.grouped(["b é", "a"], "trace").of("t")] == ["b é", "a"]
    path.write_text('{"key":"a","n":1}\n{broken\n')
    with pytest.raises(InputError, match="line 2"):
        Rows(JsonlStore(path))
    path.write_text('{"key":"a",broken\n')
    with pytest.raises(InputError, match="not valid JSON"):
        Rows(JsonlStore(path))["a"]


@pytest.mark.parametrize("order", ["abcd", "dcba", "bd", "axcx", ""])
@pytest.mark.parametrize("again", [(), ("b",), ("d", "a")])
def test_rows_in_any_order_are_the_newest_of_their_keys(tmp_path, order, again):
    store = store_of(tmp_path, *({"key": k, "n": n} for n, k in enumerate(("a", "b", "c", "d", *again))))
    store.path.open("a").write('{"key":"torn')
    newest, rows = store.by_key(), Rows(store)
    assert list(rows.each(order)) == [(k, newest.get(k)) for k in order]


def test_a_damaged_row_is_named_wherever_it_is_met(tmp_path):
    store = store_of(tmp_path, {"key": "a"}, {"key": "b"})
    with store.path.open("a") as file:
        file.write('{"key":"c",broken\n')
    rows = Rows(store)
    for keys in ("abc", "c"):
        with pytest.raises(InputError, match=r"rows\.jsonl, byte 24: not valid JSON"):
            list(rows.each(keys))
    assert list(Rows(JsonlStore(tmp_path / "none.jsonl")).each("a")) == [("a", None)]


def test_rows_of_a_moment_are_one_write_and_none_is_lost_where_the_block_fails(tmp_path, monkeypatch):
    store, written = JsonlStore(tmp_path / "rows.jsonl"), []
    monkeypatch.setattr(JsonlStore, "extend", lambda self, rows: written.append([r["key"] for r in rows]))
    with pytest.raises(ValueError, match="stopped"), store.batched(1000.0) as write:
        for key in "abc":
            write([{"key": key}])
        raise ValueError("stopped")
    with store.batched(0.0) as write:
        for key in "de":
            write([{"key": key}])
    assert [some for some in written if some] == [["a"], ["b", "c"], ["d"], ["e"]]


def test_rows_are_grouped_by_a_field_in_the_order_of_their_keys(tmp_path):
    store = store_of(tmp_path, *({"key": f"k{i}", "trace": f"t{i % 3}", "i": i} for i in range(9)))
    grouped = Rows(store).grouped([f"k{i}" for i in (8, 2, 5, 0, 1)], "trace")
    assert [r["i"] for r in grouped.of("t2")] == [8, 2, 5] and [r["i"] for r in grouped.of("t0")] == [0]
    assert grouped.of("t9") == [] and sorted(grouped.values()) == ["t0", "t1", "t2", "t2", "t2"]
    with pytest.raises(InputError, match="lacks 1 rows, the first k99"):
        Rows(store).grouped(["k1", "k99"], "trace")


@given(
    st.sets(st.text(st.characters(blacklist_characters="\0"), min_size=1, max_size=9), max_size=40), st.text(max_size=9)
)
def test_a_set_of_keys_is_the_set_it_was_made_of(keys, other):
    made = KeySet(keys)
    assert made == keys and len(made) == len(keys) and set(made) == keys
    assert (other in made) == (other in keys and "\0" not in other)


def test_lazy_sequences_are_walked_anew_and_chunks_lose_nothing():
    lazy = Lazy(lambda: iter(range(7)))
    assert list(lazy) == list(lazy) == list(range(7)) and len(lazy) == 7
    assert lazy[0] == 0 and lazy[-1] == 6 and lazy[2:5] == [2, 3, 4]
    with pytest.raises(IndexError):
        lazy[7]
    assert list(chunks(lazy, 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    made = OnDemand(["a", "b"], str.upper)
    assert dict(made) == {"a": "A", "b": "B"} and made.get("c") is None


def test_picked_members_are_taken_anew_in_their_own_order():
    taken = []

    class Noted(list):
        def __getitem__(self, at):
            taken.append(at)
            return super().__getitem__(at)

    picked = Picked(Noted("abcdef"), [4, 0, 4])
    assert taken == [] and list(picked) == ["e", "a", "e"] and taken[:3] == [4, 0, 4]
    assert len(picked) == 3 and list(picked[1:]) == ["a", "e"] and picked[-1] == "e" and "b" not in picked
    with pytest.raises(IndexError):
        picked[3]

"""Targets that stay on disk: selecting reads light columns, a target is read when it is taken, and memory does not grow."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from support.many_targets import peaks, synthetic, write
from support.stored_targets import make_target

from hintdistill.config import GateSection, TrainSection
from hintdistill.core.errors import InputError
from hintdistill.core.scores import Placebo, Target
from hintdistill.rescoring.gate import decide
from hintdistill.rescoring.store import TargetStore
from hintdistill.rescoring.stored import by_key, extents, heads, number_of, of_kind
from hintdistill.training.rows import RowDataset, build_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets") / "targets"
    write(folder, 150)
    return folder


def equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray | torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, tuple) and a and isinstance(a[0], Placebo):
        return isinstance(b, tuple) and repr(a) == repr(b)
    return a == b


def test_heads_and_selections_need_no_file_and_a_target_does(tmp_path):
    store = TargetStore(tmp_path)
    store.append([make_target(k) for k in "abc"])
    stored = store.open(["c", "a"])
    (part,) = store.parts()
    part.unlink()
    assert [h.key for h in stored.heads] == ["c", "a"] and extents(stored) == [(3, 2), (3, 2)]
    assert [h.key for h in heads(by_key(stored.where(lambda h: h.split == "holdout")))] == ["a", "c"]
    with pytest.raises(InputError, match=part.name):
        stored[0]


def test_a_key_that_is_not_there_is_named_and_the_last_row_of_a_key_counts(tmp_path):
    store = TargetStore(tmp_path)
    store.append([make_target("a", step=1)])
    store.append([make_target("b"), make_target("a", step=5)])
    parts = [[t.step for t in store.read_part(p) if t.key == "a"] for p in store.parts()]
    assert [t.step for t in store.open(["a"])] == parts[-1]
    with pytest.raises(InputError, match="lacks 1 of 2 targets, the first is nowhere"):
        store.open(["a", "nowhere"])


def test_what_is_opened_is_what_is_read(folder):
    """Every field, in the order asked for, judged by the present gate, and in another process too."""
    store = TargetStore(folder)
    read = {t.key: t for t in store.read()}
    keys, gate = sorted(read, key=lambda k: k[::-1]), GateSection(min_drop_nats=4.0)
    stored = store.open(keys, gate)
    assert len(stored) == 150 and stored[3:5].heads == stored.heads[3:5]
    for opened in (stored, pickle.loads(pickle.dumps(stored))):
        for key, target in zip(keys, opened, strict=True):
            judged = decide(read[key], gate)
            for f in fields(Target):
                assert equal(getattr(target, f.name), getattr(judged, f.name)), f.name
    assert {t.reasons for t in stored.heads if t.kind == "hint"} == {("no_effect",)}


@pytest.mark.parametrize("normalize", ["per_row", "kept"])
def test_rows_of_stored_targets_are_those_of_targets_in_memory(folder, normalize, monkeypatch):
    monkeypatch.setattr("hintdistill.training.rows.CACHE_BYTES", 1)
    terms = {name: {"normalize": normalize} for name in ("distill", "anchor")}
    config = TrainSection(recipe={"preset": "targeted", "terms": terms})
    stored = TargetStore(folder).open(cache_bytes=1)
    lazy, eager = build_rows(by_key(stored), config), build_rows(sorted(synthetic(150), key=lambda t: t.key), config)
    assert len(lazy) == 75 and lazy.lengths == RowDataset(list(eager)).lengths == [len(r.ids) for r in eager]
    assert lazy.number_of("hint") == lazy.number_of("anchor") == 75
    for a, b in zip(lazy, eager, strict=True):
        assert a.key == b.key and equal(a.ids, b.ids) and len(a.slots) == 2
        for s, t in zip(a.slots, b.slots, strict=True):
            assert all(equal(w, t.weights[n]) for n, w in s.weights.items())
            for f in fields(s):
                assert f.name == "weights" or equal(getattr(s, f.name), getattr(t, f.name)), f.name


def test_a_row_that_is_no_target_stops_before_training(folder, tmp_path):
    store = TargetStore(tmp_path)
    good = next(t for t in store_of(folder) if t.kind == "hint")
    store.append([good, replace(good, key="bad", plain_sampled=np.full_like(good.plain_sampled, np.nan))])
    with pytest.raises(InputError, match="row bad: a log-probability of a sampled token is missing"):
        build_rows(store.open(), TrainSection())


def store_of(folder):
    return TargetStore(folder).open()


def test_memory_does_not_grow_with_the_rows(folder, tmp_path):
    """2,000 rows held in memory take 180 MB; what a run keeps of them are their heads."""
    write(tmp_path, 2_000)
    few, many = peaks(folder, tmp_path, cache_mb=1)
    assert many["report"] - few["report"] < 40


@pytest.mark.slow
def test_memory_does_not_grow_with_twenty_thousand_rows(folder, tmp_path):
    write(tmp_path, 20_000)
    few, many = peaks(folder, tmp_path, cache_mb=1)
    assert many["report"] - few["report"] < 150


def test_kinds_are_told_from_the_table_alone(folder):
    stored = TargetStore(folder).open(gate=GateSection())
    for kind in ("hint", "anchor", "twin"):
        some = of_kind(stored, kind)
        assert [h.key for h in heads(some)] == [h.key for h in stored.heads if h.kind == kind]
        assert number_of(stored, kind, "train") == sum(h.kind == kind and h.split == "train" for h in stored.heads)
    whole = list(stored)
    assert [t.key for t in of_kind(whole, "anchor")] == [h.key for h in heads(of_kind(stored, "anchor"))]
    assert number_of(whole, "hint", "train") == number_of(stored, "hint", "train")
    assert stored.heads.table.rows.nbytes + stored.heads.table.keys.nbytes < 200 * len(stored)

"""Targets on disk: what is read is what was written, and what is not ours is refused by name."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.stored_targets import make_target

from hintdistill.core.errors import InputError
from hintdistill.core.scores import Placebo, Target
from hintdistill.rescoring.store import SCHEMA, TargetStore, context_hash

F = np.float32
INF = np.inf


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
    if isinstance(a, Placebo):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple) and a and isinstance(a[0], Placebo):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_nothing_is_lost_in_storage(tmp_path):
    """float32 in, float32 out, bit by bit, infinities and padding included."""
    targets = [
        make_target(),
        make_target(
            "b",
            kind="anchor",
            measurement=None,
            placebos=(),
            error_class=None,
            hint=None,
            block_ids=np.zeros(0, np.int64),
        ),
    ]
    store = TargetStore(tmp_path / "targets")
    store.append(targets)
    back = list(store.read())
    for before, after in zip(targets, back, strict=True):
        for f in fields(Target):
            assert same(getattr(before, f.name), getattr(after, f.name)), f.name
    assert store.keys() == {"a", "b"}


def test_a_row_is_enough_for_a_foreign_trainer(tmp_path):
    """Plain pyarrow, none of this package: the distributions, where they belong and how they are weighted."""
    TargetStore(tmp_path).append([make_target()])
    row = pq.read_table(next(tmp_path.glob("part-*.parquet"))).to_pylist()[0]
    assert row["first_position"] == 3 and row["step_ids"] == [8, 9]
    assert row["context_sha256"] == context_hash(row["context_ids"])
    assert [len(x) for x in row["support_ids"]] == [3, 2]
    assert all(len(a) == len(b) for a, b in zip(row["support_ids"], row["teacher_logprobs"], strict=True))
    assert row["token_weights"] == [0.0, 1.0]


def test_parts_are_appended_and_a_torn_one_is_invisible(tmp_path):
    store = TargetStore(tmp_path)
    store.append([make_target("a")])
    store.append([make_target("b")])
    store.append([])
    (tmp_path / "part-torn.writing").write_bytes(b"half")
    assert store.keys() == {"a", "b"} and len(store.parts()) == 2


def test_a_corrupt_part_is_named(tmp_path):
    store = TargetStore(tmp_path)
    store.append([make_target()])
    part = store.parts()[0]
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(InputError, match=part.name) as caught:
        list(store.read())
    assert "--resume makes it again" in caught.value.hint


def test_a_foreign_file_and_another_version_are_refused(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "part-x.parquet")
    with pytest.raises(InputError, match="does not contain hintdistill targets"):
        TargetStore(tmp_path).keys()
    pq.write_table(
        pa.Table.from_pylist([], schema=SCHEMA.with_metadata({b"hintdistill.targets": b"99"})),
        tmp_path / "part-x.parquet",
    )
    with pytest.raises(InputError, match="target schema 99"):
        list(TargetStore(tmp_path).read())


def _rewrite(part, **change):
    """A part whose first row says something else, as a careless writer would leave it."""
    rows = pq.read_table(part).to_pylist()
    rows[0].update(change)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_sampled": [-1.0]}, "teacher_sampled covers 1 tokens, but the step has 2"),
        ({"plain_logprobs": [[-1.0], [-2.0]]}, "the log-probabilities of token 0 differ in length"),
        ({"plain_sampled": [-1.0, float("nan")]}, "missing or not finite"),
        ({"action_start": 2}, "action_start is 2, but the step has 2 tokens"),
        ({"context_ids": [5, 6, 8]}, "the context does not match its hash"),
    ],
)
def test_a_row_that_is_no_target_is_named(tmp_path, change, message):
    store = TargetStore(tmp_path)
    store.append([make_target("the-key")])
    _rewrite(store.parts()[0], **change)
    with pytest.raises(InputError, match=f"row the-key: .*{message}") as caught:
        list(store.read())
    assert store.parts()[0].name in caught.value.message


def test_precision_lost_by_storage_is_none():
    """float32 to parquet and back, over the whole range an engine may give: the largest difference is exactly zero."""
    import tempfile
    from pathlib import Path

    rng = np.random.default_rng(0)
    values = -np.exp(rng.uniform(-20, 5, (64, 32))).astype(F)
    target = make_target(
        step_ids=np.arange(64),
        span=(0, 64),
        support_ids=np.sort(rng.permuted(np.tile(np.arange(200), (64, 1)), axis=1)[:, :32], axis=1),
        teacher_logprobs=values,
        plain_logprobs=values[::-1].copy(),
        teacher_tail=values[:, 0],
        plain_tail=values[:, 1],
        teacher_sampled=values[:, 2],
        plain_sampled=values[:, 3],
        tokens=("a",) * 64,
        instead=("b",) * 64,
    )
    with tempfile.TemporaryDirectory() as folder:
        TargetStore(Path(folder)).append([target])
        back = next(TargetStore(Path(folder)).read())
    assert float(np.abs(back.teacher_logprobs - target.teacher_logprobs).max()) == 0.0
    assert float(np.abs(back.hint_effect - target.hint_effect).max()) == 0.0

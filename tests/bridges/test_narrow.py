"""Fewer ids per token: the sampled id stays, and the rest's probability goes where it is told to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stored_targets import make_target

from hintdistill.bridges.flat import FlatRow
from hintdistill.bridges.formulas import bound, forward_kl, rounding
from hintdistill.bridges.narrow import kept_columns, log_sum, narrow

VOCAB = 24


def target_of(seed: int, tokens: int = 3, width: int = 7):
    """Random views on a random support with pads; the sampled id is the least likely one."""
    rng = np.random.default_rng(seed)
    teacher, plain = (np.log(rng.dirichlet(np.full(VOCAB, 0.3), tokens) + 1e-12) for _ in range(2))
    teacher, plain = (x - log_sum(x)[:, None] for x in (teacher, plain))
    ids = np.stack([rng.permutation(VOCAB)[:width] for _ in range(tokens)])
    held = np.take_along_axis(teacher, ids, 1)
    sampled = np.take_along_axis(ids, held.argmin(1)[:, None], 1)[:, 0]
    ids[:, -1] = np.where(rng.random(tokens) < 0.5, -1, ids[:, -1])
    sampled = np.where((ids == sampled[:, None]).any(1), sampled, ids[:, 0])

    def view(full):
        there = ids >= 0
        few = np.where(there, np.take_along_axis(full, np.maximum(ids, 0), 1), -np.inf)
        rest = full.copy()
        rows, columns = np.nonzero(there)
        rest[rows, ids[rows, columns]] = -np.inf
        return few.astype(np.float32), log_sum(rest).astype(np.float32)

    (a, a_tail), (b, b_tail) = view(teacher), view(plain)
    return make_target(
        step_ids=sampled,
        support_ids=ids,
        teacher_logprobs=a,
        teacher_tail=a_tail,
        plain_logprobs=b,
        plain_tail=b_tail,
        span=(0, tokens),
    )


def flat(target, weights) -> FlatRow:
    ids = np.concatenate([np.zeros(4, np.int64), target.step_ids])
    wide = target.teacher_logprobs.astype(np.float64), target.teacher_tail.astype(np.float64)
    return FlatRow("k", "hint", ids, 4, weights, target.support_ids, *wide)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_the_sampled_id_and_the_likeliest_stay(seed, k):
    target = target_of(seed)
    kept = kept_columns(target, k)
    for t in range(3):
        ids = target.support_ids[t][kept[t]]
        assert target.step_ids[t] in ids and len(ids) == min(k, (target.support_ids[t] >= 0).sum())
        others = kept[t] & (target.support_ids[t] != target.step_ids[t])
        left = ~kept[t] & (target.support_ids[t] >= 0)
        if others.any() and left.any():
            assert target.teacher_logprobs[t][others].min() >= target.teacher_logprobs[t][left].max()


@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from(["keep", "drop", "renormalise"]))
def test_where_the_rest_goes(seed, k, tail):
    target = target_of(seed)
    few = narrow(target, k, tail)
    for view in ("teacher", "plain"):
        kept, rest = getattr(few, f"{view}_logprobs"), getattr(few, f"{view}_tail")
        mass = np.exp(kept.astype(np.float64)).sum(1) + np.exp(rest.astype(np.float64))
        if tail == "drop":
            assert (mass <= 1 + 1e-6).all() and np.isneginf(rest).all()
        else:
            assert np.allclose(mass, 1, atol=1e-5) and (tail == "keep" or np.isneginf(rest).all())
    assert ((few.support_ids >= 0) == np.isfinite(few.teacher_logprobs)).all()
    assert few.key == target.key and np.array_equal(few.step_ids, target.step_ids)


def test_all_ids_and_the_rest_are_the_target_itself():
    target = target_of(1)
    for k in (None, 7, 100):
        few = narrow(target, k, "keep")
        there = target.support_ids >= 0
        assert np.array_equal(few.support_ids[few.support_ids >= 0], target.support_ids[there])
        assert np.array_equal(few.teacher_logprobs[few.support_ids >= 0], target.teacher_logprobs[there])
        assert np.array_equal(few.teacher_tail, target.teacher_tail)


@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from(["keep", "drop", "renormalise"]))
def test_no_row_is_off_by_more_than_its_bound(seed, k, tail):
    rng = np.random.default_rng(seed + 1)
    student = np.log(rng.dirichlet(np.full(VOCAB, 0.5), 3) + 1e-9)
    student = student - log_sum(student)[:, None]
    weights = rng.uniform(0, 2, 3) * (rng.random(3) < 0.8)
    target = target_of(seed)
    whole, few = flat(target, weights), flat(narrow(target, k, tail), weights)
    off, limit = abs(forward_kl(few, student) - forward_kl(whole, student)), bound(whole, few, student, tail)
    assert off <= limit + 1e-5
    if tail == "keep" and k >= 7:
        assert limit == 0 and off <= 1e-5


def test_a_bound_is_of_use():
    """Where little is left out, little may be off: otherwise a check could not fail."""
    rng = np.random.default_rng(0)
    student = np.log(rng.dirichlet(np.full(VOCAB, 5.0), 3))
    target, weights = target_of(3), np.full(3, 1 / 3)
    whole = flat(target, weights)
    limits = [bound(whole, flat(narrow(target, k, "keep"), weights), student, "keep") for k in (1, 3, 5, 7)]
    assert limits == sorted(limits, reverse=True) and limits[-1] == 0.0
    assert rounding(whole, student, 0.0) == 0.0 and 0 < rounding(whole, student, 3e-7) < 1e-4
    few = flat(narrow(target, 3, "keep"), weights)
    assert forward_kl(whole, student) - forward_kl(few, student) == pytest.approx(
        abs(forward_kl(whole, student) - forward_kl(few, student)), abs=1e-6
    ), "merging never raises a divergence"

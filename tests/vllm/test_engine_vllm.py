"""The vLLM engine in process: the same numbers as transformers, with the prefix cache read and guarded.

On the tiny critic, over random ids; the server's tests are in test_real_server.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.served import CRITIC

from hintdistill.core.errors import ConfigError, ContextLengthError, ScoreError
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.transformers import TransformersEngine

pytest.importorskip("vllm", reason="vllm is not installed in this environment; `make test-vllm` has its own")
pytestmark = pytest.mark.vllm

VOCAB = 512


@pytest.fixture(scope="module")
def reference():
    return TransformersEngine.load(CRITIC, dtype="float32", device="cpu")


def views(seed: int, tokens: int = 640) -> list[ScoreRequest]:
    """Plain and hinted views of three steps of one trace, one of them without a hint."""
    rng = np.random.default_rng(seed)
    trace = rng.integers(3, VOCAB, tokens)
    out = []
    for end in (tokens // 2, tokens * 3 // 4, tokens):
        hint = rng.integers(3, VOCAB, 20)
        for block in (hint[:0], hint, hint[::-1]):
            ids = np.concatenate([trace[: end - 16], block, trace[end - 16 : end]])
            out.append(ScoreRequest(ids, len(ids) - 16, len(ids), group=f"step {end}"))
    return out


def agree(ours, theirs, bound: float = 1e-4) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a.sampled - b.sampled).max() <= bound
        for t in range(len(a.sampled)):
            left = dict(zip(a.topk_ids[t].tolist(), a.topk_logprobs[t].tolist(), strict=True))
            right = dict(zip(b.topk_ids[t].tolist(), b.topk_logprobs[t].tolist(), strict=True))
            shared = (set(left) & set(right)) - {-1}
            assert len(shared) >= 8 and all(abs(left[i] - right[i]) <= bound for i in shared)


def test_vllm_and_transformers_agree(vllm_engine, reference):
    asked = views(0)
    ours = vllm_engine.score(asked, 8)
    agree(ours, reference.score([ScoreRequest(r.ids, r.start, r.end) for r in asked], 8))
    for score in ours:
        mass = np.exp(score.topk_logprobs.astype(np.float64)).sum(1) + np.exp(score.tail_logprob.astype(np.float64))
        assert np.abs(mass - 1).max() <= 1e-5
        assert score.gathered is None and score.topk_ids.shape[1] <= 9
    assert vllm_engine.capabilities == frozenset()


def test_the_prefix_cache_is_read_once_the_trunk_was_served(vllm_engine, reference):
    asked = [r for r in views(1) if len(r.ids) not in (320, 480, 640)]
    vllm_engine.warm(asked)
    before = vllm_engine.reissued
    ours = vllm_engine.score(asked, 8)
    assert all(cached >= 128 for cached in vllm_engine.cached), vllm_engine.cached
    assert vllm_engine.reissued == before
    agree(ours, reference.score([ScoreRequest(r.ids, r.start, r.end) for r in asked], 8))


def test_the_guard_sends_again_what_the_cache_reached_into(vllm_engine, reference):
    """Scoring the same views again: the cache now holds the scored tokens themselves, whose rows would be garbage."""
    asked = views(2)
    # a long scored range, so that a whole cache block lies inside it
    asked = [ScoreRequest(r.ids, r.start - 200, r.end) for r in asked]
    first = vllm_engine.score(asked, 8)
    before = vllm_engine.reissued
    again = vllm_engine.score(asked, 8)
    assert vllm_engine.reissued > before
    agree(first, again, 1e-5)
    agree(again, reference.score([ScoreRequest(r.ids, r.start, r.end) for r in asked], 8))


def test_order_does_not_matter_and_equal_requests_are_bit_identical(vllm_engine):
    asked = views(3)
    first = vllm_engine.score(asked, 8)
    order = np.random.default_rng(0).permutation(len(asked))
    shuffled = vllm_engine.score([*(asked[i] for i in order), asked[0]], 8)
    agree([first[i] for i in order], shuffled[:-1], 1e-5)
    at = int(np.flatnonzero(order == 0)[0])
    assert (shuffled[at].sampled == shuffled[-1].sampled).all()


def test_default_and_reuse_agree(vllm_engine):
    asked = views(4)
    agree(vllm_engine.score(asked, 8, reuse=False), vllm_engine.score(asked, 8), 1e-5)


def test_bad_input_is_named(vllm_engine):
    with pytest.raises(ConfigError, match=r"top_k 17 exceeds the 16"):
        vllm_engine.score(views(5), 17)
    long = np.random.default_rng(0).integers(3, VOCAB, 9000)
    with pytest.raises(ContextLengthError, match="9000 tokens is longer than the 8191 tokens"):
        vllm_engine.score([ScoreRequest(long, 10, 9000)], 4)


def test_a_missing_log_probability_is_an_error_never_a_number(vllm_engine, monkeypatch):
    """vLLM gives no table for the scored rows: what the guard's re-issue would not repair."""
    real = vllm_engine._generate

    def without(todo, top_k, skip):
        answers = real(todo, top_k, skip)
        for answer in answers:
            answer.prompt_logprobs[-3] = None
        return answers

    monkeypatch.setattr(vllm_engine, "_generate", without)
    with pytest.raises(ScoreError, match=r"there is no log-probability of the sampled token at position 13 .*step 320"):
        vllm_engine.score(views(6)[:2], 4)

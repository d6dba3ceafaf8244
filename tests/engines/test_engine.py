"""The engine equals a plain reference: one full forward, full logits, log_softmax, per sequence."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hintdistill.core.errors import ContextLengthError, ModelError, ScoreError
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.forward import chunks, head_error, make_head
from hintdistill.engines.prefix_tree import call_tokens
from hintdistill.engines.transformers import TransformersEngine

TOLERANCE = {"gemma3_sliding": 5e-5, "mistral_sliding": 5e-5}
"""float32, nats: 1e-5 on full-attention kinds, 5e-5 on sliding-window kinds."""


def reference(model, request: ScoreRequest) -> torch.Tensor:
    """Log-probabilities [T, V] by a separate full forward, nothing shared, cut or padded."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(request.ids)[None], use_cache=False).logits[0].float()
    return logits.log_softmax(-1)[request.start - 1 : request.end - 1]


def requests(seed: int, n: int = 7) -> list[ScoreRequest]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        length = int(rng.integers(2, 60))
        start = int(rng.integers(1, length))
        end = int(rng.integers(start + 1, length + 1))
        out.append(ScoreRequest(rng.integers(0, 1024, length), start, end, gather_ids=rng.integers(0, 1024, 5)))
    return out


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_equal_separate_forwards(arch, tiny_model):
    model, tolerance = tiny_model(arch), TOLERANCE.get(arch, 1e-5)
    asked = requests(3)
    for request, score in zip(
        asked, TransformersEngine(model, "k", batch_tokens=200).score(asked, top_k=8), strict=True
    ):
        full = reference(model, request)
        step = torch.tensor(request.ids[request.start : request.end])
        assert np.abs(score.sampled - full.gather(1, step[:, None])[:, 0].numpy()).max() <= tolerance
        assert np.abs(score.gathered - full[:, torch.tensor(request.gather_ids)].numpy()).max() <= tolerance
        kept = score.topk_ids
        for t, row in enumerate(kept):
            ids = row[row >= 0]
            assert len(set(ids)) == len(ids) and int(step[t]) in ids
            assert np.abs(score.topk_logprobs[t][row >= 0] - full[t, torch.tensor(ids)].numpy()).max() <= tolerance
            assert np.isneginf(score.topk_logprobs[t][row < 0]).all()
            mass = np.exp(score.topk_logprobs[t].astype(np.float64)).sum() + np.exp(np.float64(score.tail_logprob[t]))
            assert abs(mass - 1) <= 1e-5
        assert (score.top1 == full.argmax(-1).numpy()).all()


@pytest.mark.parametrize("top_k", [4, 80])
def test_groups_that_the_head_reads_together_have_the_scores_they_have_alone(top_k, tiny_model, monkeypatch):
    """Of few ids per position and of many; what two views ask alike is the same bits."""
    engine, rng = TransformersEngine(tiny_model("qwen3"), "k"), np.random.default_rng(2)
    ids, asked = rng.integers(3, 1000, 40), list[ScoreRequest]()
    for n in range(4):
        hinted = np.concatenate([ids[:20], rng.integers(3, 1000, 3 + n), ids[20:]])
        views = ((ids, f"{n}"), (hinted, f"{n}"), (ids, f"{n}"), (hinted[2:], None))
        asked += [ScoreRequest(x, len(x) - 9, len(x), group, rng.integers(3, 1000, 5)) for x, group in views]
    together = engine.score(asked, top_k)
    monkeypatch.setattr("hintdistill.engines.transformers.HEAD_ENTRIES", 1)
    for a, b in zip(together, engine.score(asked, top_k), strict=True):
        assert (a.topk_ids == b.topk_ids).all() and (a.top1 == b.top1).all()
        for name in ("sampled", "topk_logprobs", "tail_logprob", "gathered"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)
    for n in range(0, len(asked), 4):
        plain, again = together[n], together[n + 2]
        assert (plain.topk_logprobs == again.topk_logprobs).all() and (plain.sampled == again.sampled).all()
        assert plain.topk_ids.shape == together[n + 1].topk_ids.shape


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_full_logprobs_equal_separate_forwards(arch, tiny_model):
    model = tiny_model(arch)
    asked = requests(5, 4)
    for request, got in zip(asked, TransformersEngine(model, "k").logprobs(asked), strict=True):
        assert float((got - reference(model, request)).abs().max()) <= TOLERANCE.get(arch, 1e-5)


def test_bfloat16_is_no_further_off_than_separate_forwards(tiny_model):
    exact, rough = tiny_model("qwen3"), copy.deepcopy(tiny_model("qwen3")).to(torch.bfloat16)
    asked = requests(11)
    engine = TransformersEngine(rough, "k")
    ours, theirs = [], []
    for request, score in zip(asked, engine.score(asked, 4), strict=True):
        step = torch.tensor(request.ids[request.start : request.end])[:, None]
        truth = reference(exact, request).gather(1, step)[:, 0].numpy()
        ours.append(np.abs(score.sampled - truth))
        theirs.append(np.abs(reference(rough, request).gather(1, step)[:, 0].numpy() - truth))
    assert np.concatenate(ours).mean() <= 1.1 * np.concatenate(theirs).mean()


def test_group_shares_the_union_of_its_ids(tiny_model):
    engine = TransformersEngine(tiny_model("llama"), "k")
    rng = np.random.default_rng(0)
    step = rng.integers(0, 1024, 6)
    asked = []
    for n in (3, 9, 20):
        ids = np.concatenate([rng.integers(0, 1024, n), step])
        asked.append(ScoreRequest(ids, n, n + 6, group="views"))
    alone = [engine.score([ScoreRequest(r.ids, r.start, r.end)], 4)[0] for r in asked]
    together = engine.score(asked, 4)
    assert all((t.topk_ids == together[0].topk_ids).all() for t in together)
    for one, t in zip(alone, together, strict=True):
        for row, more in zip(one.topk_ids, t.topk_ids, strict=True):
            assert set(row[row >= 0]) <= set(more)


def test_group_of_different_lengths_is_refused(tiny_model):
    engine = TransformersEngine(tiny_model("llama"), "k")
    ids = np.arange(10)
    with pytest.raises(ValueError, match="same length"):
        engine.score([ScoreRequest(ids, 2, 5, "g"), ScoreRequest(ids, 2, 6, "g")], 4)


def test_equal_requests_are_bit_identical_and_order_does_not_matter(tiny_model):
    engine = TransformersEngine(tiny_model("qwen3"), "k", batch_tokens=64)
    asked = requests(9)
    first = engine.score([*asked, asked[2]], 6)
    assert (first[2].sampled == first[-1].sampled).all() and (first[2].topk_logprobs == first[-1].topk_logprobs).all()
    order = [4, 2, 6, 0, 1, 5, 3]
    shuffled = engine.score([asked[i] for i in order], 6)
    for i, score in zip(order, shuffled, strict=True):
        assert np.abs(score.sampled - first[i].sampled).max() <= 1e-5


def test_tokens_after_the_range_do_not_matter(tiny_model):
    engine = TransformersEngine(tiny_model("llama"), "k")
    ids = np.arange(20)
    other = np.concatenate([ids[:12], ids[::-1][:8]])
    a, b = engine.score([ScoreRequest(ids, 5, 12), ScoreRequest(other, 5, 12)], 4)
    assert (a.sampled == b.sampled).all()


@settings(deadline=None, max_examples=examples(25))
@given(k=st.integers(1, 1024))
def test_any_top_k(tiny_model, k):
    score = TransformersEngine(tiny_model("llama"), "k").score([ScoreRequest(np.arange(6), 2, 6)], k)[0]
    total = np.exp(score.topk_logprobs.astype(np.float64)).sum(1) + np.exp(score.tail_logprob.astype(np.float64))
    assert np.abs(total - 1).max() <= 1e-5
    if k == 1024:
        assert np.isneginf(score.tail_logprob).all()


def test_a_sequence_beyond_the_context_is_named(tiny_model):
    with pytest.raises(ContextLengthError, match=r"3000 tokens is longer than the model's 2048 positions"):
        TransformersEngine(tiny_model("llama"), "k").score([ScoreRequest(np.zeros(3000, np.int64), 2990, 3000)], 4)


def test_nan_weights_are_an_error_never_a_number(tiny_model):
    broken = copy.deepcopy(tiny_model("llama"))
    engine = TransformersEngine(broken, "k")
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(ScoreError, match="log-probability nan"):
        engine.score([ScoreRequest(np.arange(6), 2, 6)], 4)


def test_a_head_that_the_config_does_not_explain_is_refused(tiny_model):
    model = copy.deepcopy(tiny_model("gemma2_softcap"))
    assert head_error(model, make_head(model)) <= 1e-4
    model.config.final_logit_softcapping = None
    capped = make_head(model)
    model.config.final_logit_softcapping = 3.0
    assert head_error(model, capped) > 0.1
    model.lm_head.register_forward_hook(lambda module, args, out: out + torch.arange(out.shape[-1]))
    original = model.forward
    model.forward = lambda **kwargs: type("Out", (), {"logits": original(**kwargs).logits * 2})()
    with pytest.raises(ModelError, match="changes its logits"):
        TransformersEngine(model, "k")


def test_chunks_cover_every_row_once():
    for rows, vocab in ((1, 10), (1000, 1 << 22), (5, 1 << 30)):
        slices = list(chunks(rows, vocab))
        assert [i for c in slices for i in range(rows)[c]] == list(range(rows))


def test_reading_two_sets_of_weights_in_turn_leaves_gradients_on(student_engine):
    request = ScoreRequest(np.arange(8, 20), 4, 12)
    for a, b in zip(student_engine.logprobs([request]), student_engine.logprobs([request]), strict=True):
        assert torch.equal(a, b)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_call_on_a_cpu_is_smaller_unless_it_is_said(tiny_model):
    model = tiny_model("qwen3")
    assert TransformersEngine(model, "k").batch_tokens == call_tokens(None, on_cpu=True) == 4_096
    assert call_tokens(None, on_cpu=False) == 16_384
    assert TransformersEngine(model, "k", 16_384).batch_tokens == call_tokens(16_384, on_cpu=True) == 16_384

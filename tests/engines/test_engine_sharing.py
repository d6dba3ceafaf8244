"""Sharing a prefix changes no number: every kind of model against separate forward passes, whatever the plan."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from support.model_kinds import COMMON, LOOSE, VOCAB, WAYS, model_of

from hintdistill.core.errors import ModelError, SharingError
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines import shared_prefix, sharing
from hintdistill.engines.shared_prefix import Trunk, shared_attention, shared_hidden
from hintdistill.engines.sharing import SharingWarning, candidates
from hintdistill.engines.transformers import TransformersEngine

pytestmark = pytest.mark.usefixtures("one_thread")


def tolerance(kind: str) -> float:
    return 5e-5 if kind in LOOSE else 1e-5


def reference(model, request: ScoreRequest) -> torch.Tensor:
    """Log-probabilities [T, V] by a separate full forward."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(request.ids)[None], use_cache=False).logits[0].float()
    return logits.log_softmax(-1)[request.start - 1 : request.end - 1]


def views(seed: int = 0) -> list[ScoreRequest]:
    """Nested, repeated and empty hints; K hints at one place that begin alike; a one-token step; the very end."""
    rng = np.random.default_rng(seed)
    trace = rng.integers(3, VOCAB, 90)
    hint = rng.integers(3, VOCAB, 14)
    alike = np.concatenate([hint[:5], rng.integers(3, VOCAB, 6)])

    def view(at: int, block: np.ndarray, end: int, scored: int) -> ScoreRequest:
        ids = np.concatenate([trace[:at], block, trace[at:end]])
        return ScoreRequest(ids, len(ids) - scored, len(ids))

    nothing = trace[:0]
    twice = np.concatenate([trace[:20], hint, trace[20:40], alike, trace[40:60]])
    return [
        view(20, nothing, 34, 12),
        view(20, hint, 34, 12),
        view(20, alike, 34, 12),
        view(20, hint, 34, 12),
        view(60, hint, 70, 1),
        view(60, hint[:1], 90, 9),
        view(0, hint, 30, 8),
        view(90, nothing, 90, 1),
        ScoreRequest(twice, 70, 80),
        ScoreRequest(rng.integers(3, VOCAB, 40), 5, 9),
    ]


def worst(model, requests: list[ScoreRequest], engine: TransformersEngine) -> float:
    """Largest |Δ log p| of the engine's sampled tokens and kept ids to separate forward passes, nats."""
    error = 0.0
    for request, score in zip(requests, engine.score(requests, 4), strict=True):
        full = reference(model, request)
        step = torch.tensor(request.ids[request.start : request.end])
        error = max(error, float(np.abs(score.sampled - full.gather(1, step[:, None])[:, 0].numpy()).max()))
        kept = torch.tensor(score.topk_ids)
        there = torch.where(kept < 0, torch.tensor(score.topk_logprobs), full.gather(1, kept.clamp(min=0)))
        known = score.topk_ids >= 0
        error = max(error, float(np.abs(score.topk_logprobs[known] - there.numpy()[known]).max()))
    return error


@pytest.mark.parametrize("kind", WAYS)
def test_every_kind_is_exact_and_takes_its_way(kind):
    model = model_of(kind)
    engine = TransformersEngine(model, "k", batch_tokens=70)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SharingWarning)
        error = worst(model, views(), engine)
    assert engine.sharing == WAYS[kind], engine.trials
    assert error <= tolerance(kind)
    assert engine.saved.computed < 0.75 * engine.saved.asked


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "gpt_oss"])
@settings(deadline=None, max_examples=examples(15))
@given(data=st.data())
def test_random_plans_are_exact(kind, data):
    model = model_of(kind)
    trace = np.random.default_rng(data.draw(st.integers(0, 3))).integers(3, VOCAB, 48)
    requests = []
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(1, 47))
        end = data.draw(st.integers(at + 1, 48))
        ids = trace[:end]
        # one place, nested places, the same block again, or none
        for place in sorted(data.draw(st.lists(st.integers(0, at), max_size=2)), reverse=True):
            block = np.array(data.draw(st.sampled_from([[], [5], [5, 6, 7], [5, 6, 9, 10, 11, 12]])), np.int64)
            ids = np.concatenate([ids[:place], block, ids[place:]])
        scored = data.draw(st.integers(1, min(6, len(ids) - 1)))
        requests.append(ScoreRequest(ids, len(ids) - scored, len(ids)))
    budget = data.draw(st.sampled_from([7, 40, 4096]))
    engine = TransformersEngine(model, "k", budget, sharing="shared_prefix")
    assert worst(model, requests, engine) <= tolerance(kind)


@pytest.mark.parametrize("kind", ["qwen3", "gpt_oss", "qwen3_next"])
def test_a_view_without_a_hint_is_bit_identical(kind):
    engine = TransformersEngine(model_of(kind), "k")
    asked = views()
    scores = engine.score([*asked, asked[0], asked[5]], 8)
    for first, again in ((scores[0], scores[-2]), (scores[5], scores[-1])):
        assert (first.sampled == again.sampled).all() and (first.topk_logprobs == again.topk_logprobs).all()
        assert (first.tail_logprob == again.tail_logprob).all()


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_bfloat16_is_no_further_off_than_separate_forwards(kind):
    exact, rough = model_of(kind), copy.deepcopy(model_of(kind)).to(torch.bfloat16)
    engine = TransformersEngine(rough, "k")
    ours, theirs = [], []
    for seed in range(3):
        asked = views(seed)
        for request, score in zip(asked, engine.score(asked, 4), strict=True):
            step = torch.tensor(request.ids[request.start : request.end])[:, None]
            truth = reference(exact, request).gather(1, step)[:, 0].numpy()
            ours.append(np.abs(score.sampled - truth))
            theirs.append(np.abs(reference(rough, request).gather(1, step)[:, 0].numpy() - truth))
    assert engine.sharing == "shared_prefix"
    assert np.concatenate(ours).mean() <= 1.1 * np.concatenate(theirs).mean()


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_oss"])
def test_branches_on_a_trunk_that_was_read_before(kind):
    model = model_of(kind)
    engine = TransformersEngine(model, "k", batch_tokens=50)
    rng = np.random.default_rng(1)
    trace = rng.integers(3, VOCAB, 100)
    trunk = engine.read_trunk(trace)
    hinted = [np.concatenate([trace[:at], rng.integers(3, VOCAB, 9), trace[at : at + 8]]) for at in (10, 55, 96, 100)]
    hinted = [np.concatenate([h, h[:4]]) for h in hinted]
    requests = [ScoreRequest(h, len(h) - 6, len(h)) for h in hinted]
    for request, score in zip(requests, engine.score(requests, 2, trunk), strict=True):
        step = torch.tensor(request.ids[request.start : request.end])[:, None]
        assert np.abs(score.sampled - reference(model, request).gather(1, step)[:, 0].numpy()).max() <= tolerance(kind)
    assert engine.plans[0].computed < 100
    with pytest.raises(ValueError, match="lies on a given trunk"):
        engine.score([ScoreRequest(trace, 50, 60)], 2, trunk)
    with pytest.raises(ModelError, match="shares prefixes by snapshots"):
        TransformersEngine(model_of("qwen3_next"), "k").read_trunk(trace)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_students_own_forward_leaves_the_trunk_and_its_gradient_alone(checkpointing):
    model = copy.deepcopy(model_of("qwen3")).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = np.random.default_rng(2).integers(3, VOCAB, 60)
    model(input_ids=torch.tensor(ids)[None], use_cache=False).logits.float().log_softmax(-1)[0, -1, 7].backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    branch = np.concatenate([ids[:40], [4, 4, 4], ids[40:50]])
    with shared_attention(model):
        trunk, inputs = Trunk.call(ids)
        loss = model(**inputs).logits.float().log_softmax(-1)[0, -1, 7]
        with torch.no_grad():
            tree = shared_prefix.grow([branch], [ids])
            hidden = shared_hidden(model, tree, [range(45, len(branch))], 4096, trunk.memory)[0]
        loss.backward()
    for name, parameter in model.named_parameters():
        if name in wanted:
            assert torch.allclose(parameter.grad, wanted[name], atol=1e-6, rtol=1e-5), name
    model.eval()
    with torch.no_grad():
        truth = model(input_ids=torch.tensor(branch)[None]).logits[0, 45:].log_softmax(-1)
        assert float((model.lm_head(hidden).log_softmax(-1) - truth).abs().max()) <= 1e-5
    assert model.config._attn_implementation == "sdpa"


def test_branches_refuse_a_gradient():
    model = model_of("llama")
    tree = shared_prefix.grow([np.arange(3, 20), np.array([3, 4, 5, 99, 98])])
    with pytest.raises(SharingError, match="only whole trunks can carry a gradient"):
        shared_hidden(model, tree, [range(16), range(4)], 4096)


def test_a_way_that_is_not_exact_falls_back_and_says_why(monkeypatch):
    """The sliding window is dropped, as a model that does not hand it over would."""
    real = shared_prefix.PackedCall.attend

    def without_window(self, layer, query, key, value, rule):
        return real(self, layer, query, key, value, shared_prefix.Rule(rule.scale, None, rule.softcap, rule.sinks))

    monkeypatch.setattr(shared_prefix.PackedCall, "attend", without_window)
    model = model_of("mistral")
    engine = TransformersEngine(model, "k")
    with pytest.warns(SharingWarning, match=r"MistralForCausalLM: .*shared_prefix: off by .* nats in the self-check"):
        error = worst(model, views(), engine)
    assert engine.sharing == "separate" and error <= 5e-5
    assert engine.trials[0].error > 1e-2


def test_an_unknown_kind_reads_every_sequence_by_itself(monkeypatch):
    model = copy.deepcopy(model_of("llama"))
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    assert candidates(model) == ["separate"]
    engine = TransformersEngine(model, "k")
    with pytest.warns(SharingWarning, match="LlamaForCausalLM is an unknown kind"):
        assert worst(model, views(), engine) <= 1e-5


def test_a_model_whose_check_raises_falls_back(monkeypatch):
    def broken(*args):
        raise RuntimeError("the kernel is not built")

    monkeypatch.setattr(sharing, "shared_hidden", broken)
    engine = TransformersEngine(model_of("llama"), "k")
    with pytest.warns(SharingWarning, match="RuntimeError: the kernel is not built"):
        engine.score(views()[:2], 2)


def test_no_mask_is_as_large_as_the_trace(monkeypatch):
    """Every mask that is built has at most a block of queries as rows, for trunks and for rewritten histories."""
    shapes = []
    real = shared_prefix.PackedCall._mask

    def watched(self, *args):
        mask = real(self, *args)
        shapes.append(tuple(mask.shape))
        return mask

    monkeypatch.setattr(shared_prefix.PackedCall, "_mask", watched)
    monkeypatch.setattr(shared_prefix, "BLOCK", 16)
    rng = np.random.default_rng(0)
    trace = rng.integers(3, VOCAB, 400)
    rewritten = np.concatenate([trace[:100], rng.integers(3, VOCAB, 250)])
    requests = [ScoreRequest(trace, 380, 400), ScoreRequest(rewritten, 330, 350)]
    for kind in ("llama", "gemma3", "gpt_oss"):
        model = model_of(kind)
        assert worst(model, requests, TransformersEngine(model, "k", sharing="shared_prefix")) <= tolerance(kind)
    groups = COMMON["num_attention_heads"] // COMMON["num_key_value_heads"]
    assert shapes and max(rows for rows, _ in shapes) <= 16 * groups


def test_adapter_views():
    model = model_of("qwen3_tied_lora")
    engine = TransformersEngine(model, "k")
    asked = views()[:3]
    live, initial = engine.score(asked, 4), engine.view("initial").score(asked, 4)
    with model.disable_adapter():
        for request, score in zip(asked, initial, strict=True):
            step = torch.tensor(request.ids[request.start : request.end])[:, None]
            assert np.abs(score.sampled - reference(model, request).gather(1, step)[:, 0].numpy()).max() <= 1e-5
    assert np.abs(live[0].sampled - initial[0].sampled).max() > 1e-2
    assert (engine.view("default").score(asked, 4)[1].sampled == live[1].sampled).all()
    assert engine.view("initial").key != engine.key
    with pytest.raises(ModelError, match="no view 'nope'"):
        engine.view("nope")


def test_threads_take_turns():
    engine = TransformersEngine(model_of("qwen3"), "k")
    asked = views()
    wanted = engine.score(asked, 4)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: engine.score(asked, 4), range(8)):
            assert all((a.sampled == b.sampled).all() for a, b in zip(wanted, got, strict=True))

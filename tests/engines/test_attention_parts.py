"""Attention without masks, keys and values in the host's memory, and long contexts: the same numbers, and no array as large as a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.model_kinds import VOCAB, model_of

from hintdistill.core.model_shape import ModelShape
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines import attention_parts, shared_prefix
from hintdistill.engines.attention_parts import Part, attend_parts, fits
from hintdistill.engines.keys_values import Memory
from hintdistill.engines.token_counts import ScoringUse, TokenCount, count_tokens, scoring_peak
from hintdistill.engines.transformers import TransformersEngine

pytestmark = pytest.mark.usefixtures("one_thread")


def requests(length: int = 300) -> list[ScoreRequest]:
    """Two steps of a trace, each plain and hinted, the second hint twice nested, and a rewritten history."""
    rng = np.random.default_rng(0)
    trace, hint = rng.integers(3, VOCAB, length), rng.integers(3, VOCAB, 9)
    third = length // 3
    one = np.concatenate([trace[:third], hint, trace[third : third + 20]])
    two = np.concatenate([one[: third + 4], hint[::-1], one[third + 4 :]])
    rewritten = np.concatenate([trace[: third * 2], rng.integers(3, VOCAB, third)])
    return [ScoreRequest(ids, len(ids) - 12, len(ids)) for ids in (trace, one, two, rewritten, trace[: third + 20])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("splits", [(0, 0), (1, 1), (40, 40), (40, 55)])
def test_parts_together_are_attention_over_all_keys(dtype, splits):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(h, n, 16, generator=generator).to(dtype) for h, n in ((6, 9), (2, 64), (2, 64)))
    a, b = splits
    parts = [Part(k[:, x:y], v[:, x:y]) for x, y in ((0, a), (a, b), (b, 55))]
    found = attend_parts(q, [*parts, Part(k[:, 55:], v[:, 55:], causal=True)], 0.3)
    assert found.dtype == dtype and found.shape == q.shape
    hidden = torch.ones(9, 64, dtype=torch.bool).triu(56)
    logits = (q.double() @ k.double().repeat_interleave(3, 0).transpose(1, 2) * 0.3).masked_fill(hidden, -torch.inf)
    wanted = logits.softmax(-1) @ v.double().repeat_interleave(3, 0)
    bound = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype]
    assert (found.double() - wanted).abs().max() <= bound


def test_it_is_for_passes_without_gradient_and_widths_that_a_kernel_takes():
    q, v = torch.zeros(2, 3, 16), torch.zeros(2, 3, 16)
    assert fits(q, v) and not fits(q, torch.zeros(2, 3, 8))
    assert not fits(q.requires_grad_(), v)
    with torch.no_grad():
        assert fits(q, v)
    with pytest.raises(ValueError, match="no keys"):
        attend_parts(q, [Part(v[:, :0], v[:, :0])], 1.0)


def test_a_kernel_that_is_missing_or_differs_is_not_used(monkeypatch):
    """Scores stay the same, with masks."""
    model = model_of("qwen3")
    wanted = TransformersEngine(model, "k", sharing="shared_prefix").score(requests(), 4)
    masks = []
    real = shared_prefix.PackedCall._mask
    monkeypatch.setattr(shared_prefix.PackedCall, "_mask", lambda self, *a: masks.append(a) or real(self, *a))

    def missing(*args):
        raise RuntimeError("no such operator")

    for broken in (missing, lambda q, k, v, causal, scale: (q * 2, q[..., 0])):
        attention_parts._tried.cache_clear()
        monkeypatch.setattr(attention_parts, "_kernel", broken)
        masks.clear()
        found = TransformersEngine(model, "k", sharing="shared_prefix").score(requests(), 4)
        assert masks
        assert all(np.abs(a.sampled - b.sampled).max() <= 1e-5 for a, b in zip(wanted, found, strict=True))
    attention_parts._tried.cache_clear()


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "gpt_oss"])
def test_offloaded_keys_and_values_give_the_same_bits(kind):
    """They come back one chain of one layer at a time; sliding layers and sinks lay their branches over a copy."""
    model = model_of(kind)
    kept = TransformersEngine(model, "k", 64, sharing="shared_prefix").score(requests(), 4)
    engine = TransformersEngine(model, "k", 64, sharing="shared_prefix", offload=True)
    assert engine.view("live").offload
    for a, b in zip(kept, engine.score(requests(), 4), strict=True):
        assert (a.sampled == b.sampled).all() and (a.topk_logprobs == b.topk_logprobs).all()
    trunk = engine.read_trunk(requests()[0].ids[:200])
    assert trunk.memory.offload and len(trunk.ids) == 200


def test_what_is_written_after_a_chain_was_fetched_is_fetched_again():
    memory, here = Memory(offload=True), torch.device("cpu")
    one = torch.ones(2, 3, 4)
    memory.write(0, 0, 0, 8, one, one)
    assert (memory.read(0, 0, here)[0][:, :3] == 1).all()
    memory.write(0, 0, 3, 8, 2 * one, 2 * one)
    assert (memory.read(0, 0, here)[0][:, 3:6] == 2).all()
    assert memory.read(0, 0, here, room=20)[0].shape[1] == 20 and (memory.read(0, 0, here)[1][:, 3:6] == 2).all()


def test_plain_attention_builds_no_mask_and_the_plan_counts_none(monkeypatch):
    """A trunk that is read in many calls, and branches, of a model without windows; one with windows still has masks."""
    built = []
    real = shared_prefix.PackedCall._mask
    monkeypatch.setattr(shared_prefix.PackedCall, "_mask", lambda self, *a: built.append(a) or real(self, *a))
    for kind, masked in (("qwen3", False), ("llama", False), ("gemma3", True), ("gpt_oss", True)):
        model = model_of(kind)
        built.clear()
        TransformersEngine(model, "k", 32, sharing="shared_prefix").score(requests(), 4)
        shape = ModelShape.from_config(model.config)
        assert bool(built) == masked == shape.masked, kind
        assert bool(count_tokens([requests()], shape, 32).masks) == masked


def test_an_accelerator_holds_one_layer_of_what_is_offloaded():
    shape = ModelShape.from_config(model_of("qwen3").config)
    read = TokenCount(kept=100_000, largest_call=64, together=8)

    def of(**said) -> int:
        return scoring_peak(shape, read, ScoringUse(2, 8, 4, on_cpu=False, **said)).parts["keys and values"]

    assert of(offload=True) == of() // shape.layers


def test_the_last_feed_forward_block_reads_what_is_asked_and_one_place_where_nothing_is():
    model, widths = model_of("qwen3"), []
    engine = TransformersEngine(model, "k", 32, sharing="shared_prefix")
    wanted = engine.score(requests(), 4)
    hook = model.model.layers[-1].mlp.down_proj.register_forward_hook(lambda m, a, out: widths.append(out.shape[1]))
    try:
        found = engine.score(requests(), 4)
    finally:
        hook.remove()
    (tree,) = engine.plans
    asked = {place for i, n in enumerate(tree.lengths) for place in tree.places(i, range(n - 12, n))}
    each = [sum(c == p.chain and p.start <= at < p.stop for c, at in asked for p in call) for call in tree.calls(32)]
    assert widths == [n or 1 for n in each] and each.count(0) > 5
    assert all((a.sampled == b.sampled).all() for a, b in zip(wanted, found, strict=True))


def test_the_plan_counts_ids_and_what_the_heap_holds_of_small_blocks_on_a_cpu():
    shape = ModelShape.from_config(model_of("qwen3").config)
    read = count_tokens([requests(), requests(600)], shape, 32)
    assert read.requested == sum(r.end - 1 for r in requests(600))
    on_cpu, elsewhere = (scoring_peak(shape, read, ScoringUse(4, 12, 4, on_cpu=c)).parts for c in (True, False))
    assert on_cpu["token ids"] == elsewhere["token ids"] == 8 * read.requested
    assert 0 < on_cpu["allocator"] < on_cpu["activations"] and "allocator" not in elsewhere
    large = TokenCount(largest_call=(32 << 20) // (4 * shape.intermediate))
    assert "allocator" not in scoring_peak(shape, large, ScoringUse(4, 12, 4)).parts, "mapped, and given back at once"

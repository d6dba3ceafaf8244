"""Attention while sampling, and drafted sampling: the same tokens as the library's way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.realmodel.drafted import DraftedGenerator, _accepted, draft
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.rollouts.attention import sampling_attention
from hintdistill.rollouts.generation import SamplingOptions, TransformersGenerator

GREEDY = SamplingOptions(temperature=0.0, max_new_tokens=24)
STOP = [1]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 40}
    config = LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2, pad_token_id=0, initializer_range=0.3)
    return TransformersEngine(LlamaForCausalLM(config).eval(), "tiny")


def contexts(n: int = 5) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(2, 40, size=70 + 9 * i).tolist() for i in range(n)]


def test_the_logits_are_those_of_the_library_with_padding_and_without(engine):
    ids = torch.tensor([c[:20] for c in contexts()])
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    for m in (None, mask):
        with torch.inference_mode():
            before = engine.model(ids, attention_mask=m).logits
            with sampling_attention(engine.model):
                assert engine.model.config._attn_implementation != "sdpa"
                after = engine.model(ids, attention_mask=m).logits
        kept = torch.ones_like(ids, dtype=torch.bool) if m is None else m.bool()
        torch.testing.assert_close(after[kept], before[kept], atol=1e-4, rtol=1e-4)
    assert engine.model.config._attn_implementation == "sdpa"


def test_drafts_change_no_greedy_token_and_are_read_in_fewer_passes(engine):
    plain, drafted = TransformersGenerator(engine), DraftedGenerator(engine)
    said = [c + c[-30:] for c in contexts()]
    first = plain.generate(said, STOP, GREEDY, 0)
    assert drafted.generate(said, STOP, GREEDY, 0) == first
    # taken up with something in between: what was read before is not read again, and nothing else comes out
    longer = [[*c[:80], 7, 9, 11] for c in said]
    plain._kept = None
    assert drafted.generate(longer, STOP, GREEDY, 1) == plain.generate(longer, STOP, GREEDY, 1)
    n, kept = drafted.closest(np.array([*said[0][:80], 7, 9, 11, 3]))
    assert n == 83 and kept is not None


def test_what_is_not_allowed_is_not_said_and_what_is_has_the_models_distribution(engine):
    context, options = contexts(1)[0], SamplingOptions(temperature=1.0, max_new_tokens=3)
    held = DraftedGenerator(engine, allowed=lambda context, step: [7, 9] if len(step) == 1 else None)
    said = held.generate([context] * 200, STOP, options, 0)
    seconds = [(s.ids[0], s.ids[1]) for s in said if len(s.ids) > 1]
    assert {b for _, b in seconds} <= {7, 9} and len({s.ids[2] for s in said if len(s.ids) > 2}) > 3
    first = max({a for a, _ in seconds}, key=lambda t: sum(a == t for a, _ in seconds))
    after = [b for a, b in seconds if a == first]
    with torch.inference_mode():
        logits = engine.model(torch.tensor([[*context, first]])).logits[0, -1, [7, 9]]
    assert np.mean([b == 7 for b in after]) == pytest.approx(float(logits.softmax(0)[0]), abs=0.15)


def test_a_context_that_is_shorter_than_what_rows_must_share_is_read_by_itself(engine):
    drafted = DraftedGenerator(engine)
    for said in ([c[:n] for c, n in zip(contexts(2), (20, 40), strict=True)], contexts(2), [contexts(1)[0][:30]]):
        options = SamplingOptions(temperature=0.0, max_new_tokens=2)
        assert drafted.generate(said, STOP, options, 0) == TransformersGenerator(engine).generate(
            said, STOP, options, 0
        )


def test_a_draft_is_what_followed_the_longest_and_latest_repetition():
    assert draft(np.array([5, 6, 7, 8, 9, 5, 6, 7]), 2) == [8, 9]
    assert draft(np.array([5, 6, 1, 5, 6, 2, 5, 6]), 1) == [2]
    assert draft(np.array([4, 6, 1, 5, 6]), 3) == []


def test_what_is_accepted_has_the_models_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    rng = torch.Generator().manual_seed(0)
    drawn = np.array([_accepted(logits, [1], 1.0, rng)[0] for _ in range(6000)])
    shares = [(drawn == t).mean() for t in range(3)]
    assert np.allclose(shares, [0.5, 0.3, 0.2], atol=0.03)
    after = np.array([r[1] for r in (_accepted(logits, [1], 1.0, rng) for _ in range(6000)) if len(r) == 2])
    assert np.allclose([(after == t).mean() for t in range(3)], [0.1, 0.1, 0.8], atol=0.03)

"""Identities of the divergences and supports, in float64 on small vocabularies."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hintdistill.objectives import divergence, fkl, gather_with_tail, jsd, rkl, union_of

V = 11


def pair(seed: int, shape=(3,)) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(*shape, V, generator=g, dtype=torch.float64) * 2 for _ in range(2))
    return s.requires_grad_(), t.log_softmax(-1)


seeds = st.integers(0, 10_000)


@settings(max_examples=examples(40), deadline=None)
@given(seeds, st.sampled_from(["fkl", "rkl", "jsd"]))
def test_zero_and_flat_where_student_equals_target(seed, name):
    logits, _ = pair(seed)
    loss = divergence(name, logits.log_softmax(-1), logits.detach().log_softmax(-1)).sum()
    loss.backward()
    assert abs(loss.item()) < 1e-12 and logits.grad.abs().max() < 1e-12


@settings(max_examples=examples(40), deadline=None)
@given(seeds)
def test_against_the_definition(seed):
    logits, t = pair(seed)
    s = logits.detach().log_softmax(-1)
    assert torch.allclose(fkl(s, t), (t.exp() * (t - s)).sum(-1))
    assert torch.allclose(rkl(s, t), (s.exp() * (s - t)).sum(-1))
    for alpha in (0.1, 0.5, 0.9):
        m = ((1 - alpha) * s.exp() + alpha * t.exp()).log()
        expected = (1 - alpha) * (s.exp() * (s - m)).sum(-1) + alpha * (t.exp() * (t - m)).sum(-1)
        assert torch.allclose(jsd(s, t, alpha), expected)


def test_jsd_limits_symmetry_and_bound():
    logits, t = pair(1)
    s = logits.detach().log_softmax(-1)
    assert torch.allclose(jsd(s, t, 1e-6) / 1e-6, fkl(s, t), rtol=1e-4)
    assert torch.allclose(jsd(s, t, 1 - 1e-6) / 1e-6, rkl(s, t), rtol=1e-4)
    assert torch.allclose(jsd(s, t), jsd(t, s))
    assert (jsd(s * 50, t * 50) <= math.log(2) + 1e-9).all()
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match="alpha"):
            jsd(s, t, alpha)


@settings(max_examples=examples(30), deadline=None)
@given(seeds)
def test_reverse_kl_gradient(seed):
    """∇RKL = Σ S log(S/T) ∇log S, because Σ S ∇log S vanishes."""
    logits, t = pair(seed)
    rkl(logits.log_softmax(-1), t).sum().backward()
    s = logits.detach().log_softmax(-1)
    weight = s.exp() * (s - t)
    expected = weight - s.exp() * weight.sum(-1, keepdim=True)
    assert torch.allclose(logits.grad, expected, atol=1e-12)


@settings(max_examples=examples(30), deadline=None)
@given(seeds, st.sampled_from(["fkl", "rkl", "jsd"]))
def test_a_tail_never_exceeds_the_full_divergence_and_grows_with_k(seed, name):
    logits, t = pair(seed)
    s = logits.detach().log_softmax(-1)
    full, last = divergence(name, s, t), torch.full((3,), -1e-12, dtype=torch.float64)
    order = s.argsort(-1, descending=True)
    for k in range(1, V + 1):
        coarse = divergence(name, gather_with_tail(s, order[:, :k]), gather_with_tail(t, order[:, :k]))
        assert (coarse >= last - 1e-12).all() and (coarse <= full + 1e-12).all()
        last = coarse
    assert torch.allclose(last, full)


@pytest.mark.parametrize("name", ["fkl", "rkl", "jsd"])
@pytest.mark.parametrize("k", [1, 4, V])
def test_gradients_by_finite_differences_with_tail_and_padding(name, k):
    logits, t = pair(5)
    ids = torch.cat([logits.detach().topk(k).indices, torch.full((3, 2), -1)], -1)
    target = gather_with_tail(t, ids)
    check = torch.autograd.gradcheck(
        lambda x: divergence(name, gather_with_tail(x.log_softmax(-1), ids), target), (logits,)
    )
    assert check
    divergence(name, gather_with_tail(logits.log_softmax(-1), ids), target).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", ["fkl", "rkl", "jsd"])
def test_one_small_step_lowers_the_sampled_error_token(name):
    """Also when the token lies outside the teacher's top-k: it is in the support, because it was sampled."""
    logits = torch.zeros(1, V, dtype=torch.float64)
    logits[0, 3] = 3.0
    logits.requires_grad_()
    teacher = torch.zeros(1, V, dtype=torch.float64)
    teacher[0, 3], teacher[0, 5] = -6.0, 4.0
    t = teacher.log_softmax(-1)
    support = union_of(logits.detach().topk(2).indices, t.topk(2).indices, torch.tensor([[3]]))
    assert 3 not in t.topk(2).indices
    loss = divergence(name, gather_with_tail(logits.log_softmax(-1), support), gather_with_tail(t, support)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    after = (logits - 0.05 * gradient).log_softmax(-1)[0, 3]
    assert after < logits.log_softmax(-1)[0, 3]


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.lists(st.integers(-1, 8), min_size=3, max_size=3), min_size=1, max_size=4))
def test_union_holds_each_id_once(sets):
    got = union_of(*(torch.tensor([s]) for s in sets))[0].tolist()
    expected = sorted({i for s in sets for i in s if i >= 0})
    assert [i for i in got if i >= 0] == expected
    assert got[len(expected) :] == [-1] * (len(got) - len(expected))


def test_objectives_need_torch_only():
    import subprocess
    import sys

    code = "import sys, hintdistill.objectives; assert not {'transformers', 'peft', 'pyarrow'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The identities that the published methods promise, in float64 on small vocabularies, and gradients by finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hintdistill.objectives import (
    Batch,
    ScoreBank,
    divergence,
    fkl,
    jsd,
    log_linear,
    policy_gradient,
    restrict,
    rkl,
    select,
)
from hintdistill.objectives import couplings as c
from hintdistill.objectives import shapes as sh
from hintdistill.objectives import signals as sg
from hintdistill.objectives.controllers import Cgtr
from hintdistill.objectives.diagnostics import (
    cliff_lambda,
    error_probability,
    fidelity_by_position,
    harm_rate,
    kept_fraction,
    length_tail,
    locality,
    preflight_gap,
    rock_tokens,
    top_k_mass,
    update_geometry,
)
from hintdistill.objectives.divergences import (
    DIVERGENCES,
    hidden_mse,
    token_preference,
)
from hintdistill.objectives.schedules import scheduled
from hintdistill.objectives.scorebank import at
from hintdistill.objectives.supports import intersection_of, without

V, N = 9, 4
seeds = st.integers(0, 10_000)
F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


def draw(seed: int, *shape: int, scale: float = 1.5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64) * scale


def dist(seed: int, n: int = N, v: int = V) -> torch.Tensor:
    return draw(seed, n, v).log_softmax(-1)


def ids(seed: int, n: int = N, v: int = V) -> torch.Tensor:
    return torch.randint(0, v, (n,), generator=torch.Generator().manual_seed(seed))


def gradient(of, logits: torch.Tensor) -> torch.Tensor:
    x = logits.clone().requires_grad_()
    (g,) = torch.autograd.grad(of(x.log_softmax(-1)).sum(), x)
    return g


def expected_gradient(per_token, logits: torch.Tensor) -> torch.Tensor:
    """E over y ~ S of the gradient of a sampled loss: every token of the vocabulary, weighted by its probability."""
    total = torch.zeros_like(logits)
    for y in range(logits.shape[-1]):
        sampled = torch.full((len(logits),), y)
        weight = logits.log_softmax(-1)[:, y : y + 1].exp()
        total += weight * gradient(lambda s, y=sampled: per_token(s, y), logits)
    return total


# divergences and supports


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@pytest.mark.parametrize("rest", ["tail", "renorm", "drop", "full"])
def test_gradients_by_finite_differences(name, rest):
    """rkl_sg holds its weight fixed, so its finite difference is taken with the weight frozen."""
    t, logits = dist(1), draw(2, N, V).requires_grad_()
    kept = select("student_topk", logits.detach(), t, ids(3), k=4) if rest != "full" else None
    kept = kept if kept is None else torch.cat([kept, torch.full((N, 2), -1)], -1)
    theirs = restrict(t, kept, rest)
    if name == "rkl_sg":
        fixed = restrict(logits.detach().log_softmax(-1), kept, rest)

        def loss(x):
            ours = restrict(x.log_softmax(-1), kept, rest)
            here = ours > -torch.inf
            return (torch.where(here, ours.exp(), 0.0) * torch.where(here, fixed - theirs, 0.0)).sum(-1)

        got = gradient(lambda s: divergence(name, restrict(s, kept, rest), theirs), logits.detach())
        assert torch.allclose(got, torch.autograd.grad(loss(logits).sum(), logits)[0])
    else:

        def loss(x):
            return divergence(name, restrict(x.log_softmax(-1), kept, rest), theirs)

    assert torch.autograd.gradcheck(loss, (logits,))


@settings(max_examples=examples(25), deadline=None)
@given(seeds)
def test_stop_gradient_topk_is_the_truncated_gradient_and_plain_truncation_differs_by_the_kept_mass(seed):
    t, logits = dist(seed), draw(seed + 1, N, V)
    s = logits.log_softmax(-1)
    kept = s.topk(4).indices
    sg_gradient = gradient(lambda x: divergence("rkl_sg", restrict(x, kept, "drop"), restrict(t, kept, "drop")), logits)
    weight = torch.zeros_like(s).scatter(-1, kept, 1.0) * s.exp() * (s - t)
    assert torch.allclose(sg_gradient, weight - s.exp() * weight.sum(-1, keepdim=True), atol=1e-12)
    plain = gradient(lambda x: divergence("rkl", restrict(x, kept, "drop"), restrict(t, kept, "drop")), logits)
    mass = gradient(lambda x: x.gather(-1, kept).exp().sum(-1), logits)
    assert torch.allclose(plain, sg_gradient + mass, atol=1e-12)
    full = gradient(lambda x: divergence("rkl_sg", x, t), logits)
    assert torch.allclose(full, gradient(lambda x: rkl(x, t), logits), atol=1e-12)


@settings(max_examples=examples(25), deadline=None)
@given(seeds)
def test_topk_of_the_whole_vocabulary_is_full_and_tails_grow(seed):
    s, t, y = dist(seed), dist(seed + 1), ids(seed)
    full = rkl(s, t)
    for rest in ("tail", "renorm", "drop"):
        kept = select("student_topk", s, t, y, k=V)
        assert torch.allclose(divergence("rkl", restrict(s, kept, rest), restrict(t, kept, rest)), full)
    last = torch.zeros(N, dtype=F64)
    for k in range(1, V + 1):
        kept = select("student_topk", s, t, y, k=k)
        value = rkl(restrict(s, kept, "tail"), restrict(t, kept, "tail"))
        assert (value >= last - 1e-12).all() and (value <= full + 1e-12).all()
        last = value


def test_renormalised_entries_have_no_gradient_on_the_kept_mass():
    t, logits = dist(1), draw(2, N, V)
    kept = logits.topk(3).indices
    g = gradient(lambda s: rkl(restrict(s, kept, "renorm"), restrict(t, kept, "renorm")), logits)
    assert g.gather(-1, kept).sum(-1).abs().max() < 1e-12
    assert g.scatter(-1, kept, 0.0).abs().max() < 1e-12


def test_supports_hold_what_they_say():
    s, t, y = dist(1), dist(2), ids(3)
    a, b = s.topk(3).indices, t.topk(3).indices

    def rows(x):
        return [sorted(i for i in r if i >= 0) for r in x.tolist()]

    assert rows(select("student_topk", s, t, y, k=3)) == rows(a)
    assert rows(select("teacher_topk", s, t, y, k=3)) == rows(b)
    both = [sorted({*p, *q, int(z)}) for p, q, z in zip(a.tolist(), b.tolist(), y, strict=True)]
    assert rows(select("union", s, t, y, k=3)) == both
    assert rows(select("intersection", s, t, y, k=3)) == [
        sorted(set(p) & set(q)) for p, q in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert rows(select("teacher_topk", s, t, y, k=3, include_sampled=True)) == [
        sorted({*q, int(z)}) for q, z in zip(b.tolist(), y, strict=True)
    ]
    assert rows(select("token_set", s, t, y, token_ids=[5, 2, 2])) == [[2, 5]] * N
    assert rows(select("union", s, t, y, k=3, removed=[0, 1])) == [[i for i in r if i > 1] for r in both]
    assert rows(select("full", s, t, y, removed=[8])) == [list(range(8))] * N
    assert select("full", s, t, y) is None and select("sampled", s, t, y).tolist() == y[:, None].tolist()
    assert without(torch.tensor([[3, 1, 2]]), torch.tensor([3])).tolist() == [[1, 2, -1]]
    assert intersection_of(torch.tensor([[3, 1, -1]]), torch.tensor([[-1, 1, 7]])).tolist() == [[1, -1, -1]]
    with pytest.raises(ValueError, match="unknown support 'topk'"):
        select("topk", s, t, y)
    with pytest.raises(ValueError, match="unknown remainder 'tale'"):
        restrict(s, a, "tale")
    with pytest.raises(ValueError, match=r"target has shape \[4, 8\], student has \[4, 9\]"):
        divergence("rkl", s, t[:, :8])


@pytest.mark.parametrize("rest", ["tail", "renorm", "drop"])
def test_a_position_that_keeps_nothing_contributes_nothing(rest):
    logits, t = draw(1, 2, V).requires_grad_(), dist(2, 2)
    kept = torch.tensor([[-1, -1], [3, 1]])
    value = divergence("rkl", restrict(logits.log_softmax(-1), kept, rest), restrict(t, kept, rest))
    value.sum().backward()
    assert value[0] == 0 and (logits.grad[0] == 0).all() and torch.isfinite(logits.grad).all()
    assert (logits.grad[1] != 0).any()


@settings(max_examples=examples(25), deadline=None)
@given(seeds)
def test_skew_and_mix(seed):
    s, t = dist(seed), dist(seed + 1)
    assert torch.allclose(divergence("skew", s, t, alpha=1e-12), fkl(s, t), rtol=1e-6)
    assert torch.allclose(divergence("skew_rkl", s, t, alpha=1e-12), rkl(s, t), rtol=1e-6)
    assert (divergence("skew", s * 20, t * 20, alpha=0.1) <= math.log(10) + 1e-9).all()
    assert torch.allclose(divergence("mix", s, t, lam=0.3), 0.3 * rkl(s, t) + 0.7 * fkl(s, t))
    with pytest.raises(ValueError, match="lam must lie between 0 and 1"):
        divergence("mix", s, t, lam=1.3)


def test_clips_bound_entries_and_positions():
    s, t = dist(1), dist(2)
    entries = t.exp() * (t - s)
    assert torch.allclose(divergence("fkl", s, t, pointwise_clip=0.05), entries.clamp(max=0.05).sum(-1))
    loose = divergence("jsd", s, t, pointwise_clip=1e9)
    assert torch.allclose(loose, jsd(s, t))
    assert torch.allclose(divergence("rkl", s, t, token_clip=0.2), rkl(s, t).clamp(max=0.2))


def test_hidden_mse_and_preferences():
    a, b = draw(1, 3, N, 5).requires_grad_(), draw(2, 3, N, 5).requires_grad_()
    value = hidden_mse(a, b)
    assert torch.allclose(value, (a - b).square().sum(-1).mean(0) / 5)
    value.sum().backward()
    assert b.grad is None and (a.grad != 0).any()
    s, ref, t = draw(3, N, V).requires_grad_(), dist(4), dist(5)
    y = ids(6)
    y[0] = t[0].argmax()
    loss, active = token_preference(s.log_softmax(-1), ref, t, y, beta=2.0)
    best = t.argmax(-1)
    assert not active[0] and loss[0] == 0 and (active[1:] == (best != y)[1:]).all()
    margin = at(s.log_softmax(-1) - ref, best) - at(s.log_softmax(-1) - ref, y)
    assert torch.allclose(loss[active], torch.log1p((-2 * margin).exp())[active])


# policy gradients


@settings(max_examples=examples(15), deadline=None)
@given(seeds)
def test_expected_policy_gradients(seed):
    """E[pg(log)] = ∇RKL, pg(fdiv: FKL) = ∇FKL, pg(fdiv: JSD) = ∇JSD_½; a value baseline leaves the expectation."""
    t, logits = dist(seed), draw(seed + 1, 2, V)
    t = t[:2]

    def pg(signal, **parameters):
        def loss(s, y):
            own, theirs = at(s, y), at(t, y)
            a = sg.SIGNALS[signal](own.detach(), theirs, **parameters)
            return policy_gradient(own, a)[0]

        return expected_gradient(loss, logits)

    def with_baseline(s, y):
        own = at(s, y)
        return policy_gradient(own, sg.value_baseline(at(t, y) - own.detach(), s, t))[0]

    assert torch.allclose(pg("log"), gradient(lambda s: rkl(s, t), logits), atol=1e-12)
    assert torch.allclose(pg("fdiv", of="rkl"), gradient(lambda s: rkl(s, t), logits), atol=1e-12)
    assert torch.allclose(pg("fdiv", of="fkl"), gradient(lambda s: fkl(s, t), logits), atol=1e-12)
    # f of JSD without its constant: M = (S + T)/2, so ½ of ln((1+u)/2) belongs to ∇ of -JSD
    assert torch.allclose(pg("fdiv", of="jsd"), gradient(lambda s: jsd(s, t), logits), atol=1e-12)
    assert torch.allclose(expected_gradient(with_baseline, logits), pg("log"), atol=1e-12)


def test_a_value_baseline_lowers_the_variance():
    t, logits = dist(1, 1), draw(2, 1, V)
    s = logits.log_softmax(-1)
    plain, based = [], []
    for y in range(V):
        sampled = torch.tensor([y])
        gap = at(t - s, sampled)
        plain.append(float((gap - rkl(s, t).neg()).square() * s[0, y].exp()))
        based.append(float(sg.value_baseline(gap, s, t).square() * s[0, y].exp()))
    # E[Δ] = -KL(S ‖ T), so the baseline centres the advantage
    assert sum(based) == pytest.approx(sum(plain))
    assert sum(based) < float(sum((t - s)[0].square() * s[0].exp()))
    kept = s.topk(3).indices
    assert torch.allclose(
        sg.value_baseline(torch.zeros(1, dtype=F64), s, t, kept), (s.exp() * (s - t)).gather(-1, kept).sum(-1)
    )


def test_signals_as_published():
    s, t = -draw(1, 50).abs(), -draw(2, 50).abs()
    gap = t - s
    assert torch.allclose(sg.power(s, t, alpha=1e-7) / 1e-7, gap, atol=1e-5)
    for alpha in (0.1, 1.0, 7.0):
        value = sg.power(s, t, alpha)
        assert (value.abs() <= 1).all() and (value.sign() == gap.sign()).all()
    assert torch.allclose(sg.softlog(s, t), gap.sign() * (1 + gap.abs()).log())
    assert sg.clip(s, t, -0.5, 0.5).abs().max() <= 0.5
    assert sg.floor(s, t, 0.1).min() >= math.log(0.1 / 0.9) - 1e-12
    z = sg.znorm(s, t - 0.4)
    assert abs(z.mean()) < 1e-12 and z.std(unbiased=False) == pytest.approx(1, abs=1e-5)
    assert (sg.scale_only(s, t).sign() == gap.sign()).all() and (z.sign() != (gap - 0.4).sign()).any()
    assert torch.allclose(sg.fdiv(s, t, "fkl", clip=2.0), gap.exp().clamp(max=2.0))
    assert torch.allclose(sg.tanh_contrast(gap, 0.02, 0.5), 0.5 * (gap / 0.02).tanh())
    assert torch.equal(sg.returns(gap, [20, 30], 0.0), gap)
    r = sg.returns(gap, [20, 30], 0.5)
    assert r[19] == gap[19] and r[49] == gap[49] and torch.isclose(r[0], (gap[:20] * 0.5 ** torch.arange(20)).sum())
    with pytest.raises(ValueError, match="unknown f-divergence"):
        sg.fdiv(s, t, "kl")


def test_importance_ratios_and_clips():
    own, old, a = draw(1, 6).requires_grad_(), draw(2, 6), draw(3, 6)
    ratio = (own.detach() - old).exp()
    assert torch.allclose(sg.importance_ratio(own, old), (own - old).exp())
    assert sg.importance_ratio(own.detach() * 0, old * 0 - 50).max() == pytest.approx(math.exp(20))
    per_row = sg.importance_ratio(own, old, lengths=[2, 4])
    assert torch.allclose(per_row[:2], (own - old)[:2].mean().exp().expand(2))
    loss, metrics = policy_gradient(own, a, old, clip_low=0.2, clip_high=0.3)
    expected = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.3) * a)
    assert torch.allclose(loss, expected) and 0 <= metrics["ratio_clipped"] <= 1
    loss, _ = policy_gradient(own, a, old, cap=2.0)
    (g,) = torch.autograd.grad(loss.sum(), own)
    assert torch.allclose(g, -ratio.clamp(max=2.0) * a)
    # at S = S_old the importance-weighted gradient is the plain one
    one = torch.autograd.grad(policy_gradient(own, a, own.detach())[0].sum(), own)[0]
    assert torch.allclose(one, torch.autograd.grad(policy_gradient(own, a)[0].sum(), own)[0])
    assert policy_gradient(own, a * 0)[1]["dead_fraction"] == 1


def test_backpropagating_the_sampled_gap_ignores_the_teacher():
    """The trap that policy_gradient avoids: ∇(log S(y) - log T(y)) is ∇log S(y) whatever T is."""
    logits, y = draw(1, N, V), ids(2)

    def naive(t):
        return gradient(lambda s: at(s, y) - at(t, y), logits)

    assert torch.equal(naive(dist(3)), naive(dist(4)))


# targets


@settings(max_examples=examples(25), deadline=None)
@given(seeds)
def test_log_linear_corners(seed):
    s, t, p, b = (dist(seed + i) for i in range(4))
    views = {"student": s, "teacher": t, "partial": p, "initial": b, "plain": b}

    def q(coefficients, **more):
        return log_linear(views, coefficients, **more)[0]

    assert torch.equal(q({"teacher": 1.0}), t)
    for lam, expected in ((0.0, p), (1.0, t)):
        assert torch.allclose(q({"partial": 1 - lam, "teacher": lam}, anchor="partial", residual_clip=1e9), expected)
    assert torch.allclose(q({"teacher": 1.0, "initial": 0.0}), t)
    assert torch.allclose(q({"teacher": 1.0, "student": 0.0}), t)
    assert torch.allclose(q({"teacher": 1.0, "partial": 0.0, "plain": -0.0}), t)
    ratio = (1.4 * t - 0.4 * b).log_softmax(-1)
    assert torch.allclose(q({"teacher": 1.4, "initial": -0.4}), ratio)
    assert torch.allclose(q({"teacher": 1.0}, temperature=2.0), (t / 2).log_softmax(-1))
    mixed = q({"teacher": 1.0}, mixture={"initial": 0.1})
    assert torch.allclose(mixed.exp(), 0.9 * t.exp() + 0.1 * b.exp())
    evidence = q({"student": 1.0, "teacher": 1.0, "plain": -1.0})
    assert torch.allclose(evidence.logsumexp(-1), torch.zeros(N, dtype=F64), atol=1e-12)
    y = ids(seed)
    tilted = q({"teacher": 1.0}, tilt=0.7, sampled=y)
    assert torch.allclose((at(tilted, y) - at(t, y)), 0.7 - (1 + (math.exp(0.7) - 1) * at(t, y).exp()).log())


def test_the_evidence_target_cancels_what_the_engine_adds():
    """A bias that a quantised engine puts on hinted and plain view alike leaves the target where it was."""
    s, t, p, bias = dist(1), dist(2), dist(3), draw(4, N, V)
    exact = log_linear({"student": s, "teacher": t, "plain": p}, {"student": 1, "teacher": 1, "plain": -1})[0]
    biased = {"student": s, "teacher": (t + bias).log_softmax(-1), "plain": (p + bias).log_softmax(-1)}
    assert torch.allclose(log_linear(biased, {"student": 1, "teacher": 1, "plain": -1})[0], exact)


def test_residual_clip_bounds_the_distance_from_the_anchor():
    p, t = dist(1), dist(2)
    q, metrics = log_linear(
        {"partial": p, "teacher": t}, {"partial": 0.4, "teacher": 0.6}, anchor="partial", residual_clip=0.5
    )
    assert torch.allclose(q, (p + 0.6 * (t - p).clamp(-0.5, 0.5)).log_softmax(-1))
    assert metrics["residual_clipped"] == pytest.approx(float(((t - p).abs() > 0.5).double().mean()), abs=1e-6)


def test_vetos_fixed_point():
    t, beta = dist(1), 0.6
    s = dist(2)
    for _ in range(200):
        s = log_linear({"teacher": t, "student": s}, {"teacher": 1.0, "student": beta})[0]
    assert torch.allclose(s, (t / (1 - beta)).log_softmax(-1), atol=1e-9)


def test_a_target_has_no_gradient_and_names_what_it_lacks():
    s = draw(1, N, V).requires_grad_()
    q, _ = log_linear({"student": s.log_softmax(-1), "teacher": dist(2)}, {"student": 1.0, "teacher": 1.0})
    assert not q.requires_grad
    with pytest.raises(KeyError, match="needs the view 'plain'; the given views are teacher"):
        log_linear({"teacher": dist(2)}, {"teacher": 1.0, "plain": -1.0})
    with pytest.raises(ValueError, match="requires the sampled ids"):
        log_linear({"teacher": dist(2)}, {"teacher": 1.0}, tilt=1.0)


# scores, shapes, weights


def bank(seed: int = 1, **facts) -> ScoreBank:
    views = {
        "student": dist(seed),
        "teacher": dist(seed + 1),
        "plain": dist(seed + 2),
        "wrong_1": dist(seed + 3),
        "wrong_2": dist(seed + 4),
        "teacher_b": dist(seed + 5),
        "initial": dist(seed + 6),
    }
    return ScoreBank(views, views["teacher"], ids(seed), [3, 1], facts)


def test_scores_against_their_definitions():
    b = bank()
    s, t, y = b.s, b.t, b.y
    expected = {
        "H_S": -(s.exp() * s).sum(-1),
        "H_T": -(t.exp() * t).sum(-1),
        "gap": at(t, y) - at(s, y),
        "ratio": (at(t, y) - at(s, y)).exp(),
        "surprisal": -at(s, y),
        "evidence": at(t, y) - at(b.views["plain"], y),
        "contrast": at(t, y) - ((at(b.views["wrong_1"], y).exp() + at(b.views["wrong_2"], y).exp()) / 2).log(),
        "div": rkl(s, t),
        "div_forward": fkl(s, t),
        "teacher_max": t.exp().max(-1).values,
        "importance": (at(s, y) - at(b.views["initial"], y)).exp(),
        "pos": torch.tensor([0.5 / 3, 1.5 / 3, 2.5 / 3, 0.5]),
        "index": torch.tensor([1.0, 2, 3, 1]),
        "disagree": (at(t, y) - at(b.views["teacher_b"], y)).abs() / 2,
        "one": torch.ones(N),
        "token_id": y,
    }
    for name, value in expected.items():
        assert torch.allclose(b[name], value.to(F64)), name
    assert torch.allclose(b["mean_logT"][:3], at(t, y)[:3].mean().expand(3)) and b["mean_logT"][3] == at(t, y)[3]
    assert torch.allclose(b["ppl_S"][3], (-at(s, y)[3]).exp()) and torch.allclose(b["ppl_T"][3], (-at(t, y)[3]).exp())
    assert torch.allclose(b["compat"], torch.ones(N, dtype=F64)) and torch.allclose(
        b["overlap"], torch.ones(N, dtype=F64)
    )
    top = ScoreBank(b.views, t, y, [3, 1], k=2)
    kept = s.topk(2).indices
    assert torch.allclose(top["compat"], t.gather(-1, kept).exp().sum(-1))
    shared = [len(set(p) & set(q)) / 2 for p, q in zip(kept.tolist(), t.topk(2).indices.tolist(), strict=True)]
    assert top["overlap"].tolist() == shared
    assert (
        (top["div_union"] >= 0).all()
        and torch.allclose(b["div_union"], fkl(s, t))
        and torch.allclose(b["div_tail64"], rkl(s, t))
    )
    assert (b["accept"] == (t.topk(5).indices == y[:, None]).any(-1)).all()
    with pytest.raises(KeyError, match="no score 'nothing'"):
        b["nothing"]


def test_facts_spread_over_their_rows():
    b = bank(reward=torch.tensor([1.0, 0.0]), advantage=torch.tensor([-2.0, 3.0]))
    assert b["reward"].tolist() == [1, 1, 1, 0] and b["adv_sign"].tolist() == [-1, -1, -1, 1]
    with pytest.raises(ValueError, match="a fact has 3 values; the batch has 2 rows, 4 tokens"):
        bank(reward=torch.ones(3))["reward"]


def test_an_empty_hint_makes_every_evidence_zero():
    s = dist(1)
    b = ScoreBank({"student": s, "teacher": s, "plain": s, "wrong": s}, s, ids(2), [N])
    for name in ("gap", "evidence", "contrast", "div", "div_union"):
        assert b[name].abs().max() < 1e-12


@settings(max_examples=examples(25), deadline=None)
@given(seeds, st.floats(0, 1))
def test_top_frac_keeps_the_ceiling(seed, rho):
    x = draw(seed, 13)
    valid = draw(seed + 1, 13) > 0
    kept = sh.top_frac(x, rho, valid=valid)
    assert int(kept.sum()) == math.ceil(rho * int(valid.sum())) and not (kept[~valid] > 0).any()
    if 0 < kept.sum() < valid.sum():
        assert x[kept > 0].min() >= x[valid & (kept == 0)].max()


def test_shapes_as_published():
    x, a = draw(1, 40), draw(2, 40).sign()
    w = sh.exp_clip(a * x, 0.8, 1.2)
    assert w.min() >= 0.8 and w.max() <= 1.2
    d = x.abs()
    sat = sh.saturate(d)
    assert (sat >= 0).all() and (sat < 1).all() and sh.saturate(torch.tensor([0.3]), c=0.3) == 0.5
    assert sh.saturate(torch.zeros(5)).max() == 0
    step = sh.sigmoid_clip(x, 0.2)
    assert step.min() >= 0.8 and step.max() <= 1.2 and sh.sigmoid_clip(torch.zeros(1)) == 1
    assert torch.allclose(sh.sigmoid(x, 5.0), torch.sigmoid(5 * x))
    p, q = sh.minmax01(x), sh.robust01(x)
    assert p.min() == 0 and p.max() == 1 and q.min() == 0 and q.max() == 1
    assert torch.allclose(sh.soft_or(p, q), 1 - (1 - p) * (1 - q))
    assert sh.threshold(torch.tensor([0.0, 0.1]), 0.0).tolist() == [0, 1]
    assert sh.threshold(torch.tensor([0.0, 1.0]), 0.5, otherwise=0.25).tolist() == [0.25, 1]
    assert sh.threshold(torch.tensor([-1.0, 1.0]), 0.0, below=True).tolist() == [1, 0]
    assert sh.threshold_abs(torch.tensor([-1.0, 0.01]), 0.02).tolist() == [1, 0]
    assert sh.geom(torch.tensor([-2.0, 0.0, 2.0]), 0.8).tolist() == pytest.approx([1, 1, 0.64])
    assert sh.last_n(torch.zeros(5), 2, lengths=[3, 2]).tolist() == [0, 1, 1, 1, 1]
    assert sh.first_n(torch.tensor([1.0, 2, 3]), 2).tolist() == [1, 1, 0] and sh.skip_n(
        torch.tensor([1.0, 2]), 1
    ).tolist() == [0, 1]
    late = sh.logistic_pos(torch.tensor([0.0, 0.3, 1.0]))
    assert late[1] == pytest.approx(0.625) and late[0] > 0.25 and late[2] < 1
    assert sh.freeze(torch.tensor([1.0, 7, 3]), [7], 0.0).tolist() == [1, 0, 1]
    assert sh.sign_gate(torch.tensor([1.0, -1.0])).tolist() == pytest.approx([1.8, 1.0])
    assert sh.frontier(torch.tensor([0.5])) == 1 and sh.frontier_root(torch.tensor([0.5])) == 0.5
    assert sh.exp_decay(torch.tensor([1.0, 3.0]), 2.0).tolist() == pytest.approx([1, math.exp(-1)])
    drop = sh.cum_drop(torch.tensor([0.5, 0.9, 0.5, 0.9]), lengths=[2, 2])
    assert drop.tolist() == pytest.approx([1.49, 1.49, 1.49, 1.49])
    ranked = sh.rank_softmax(torch.tensor([2.0, 2, 6]), lengths=[2, 1])
    assert ranked.tolist() == pytest.approx([0.5, 0.5, 1.5])
    assert sh.rank_softmax(torch.tensor([2.0, 6]), -1.0, lengths=[1, 1]).tolist() == pytest.approx([1.5, 0.5])
    draws = sh.bernoulli(torch.full((2000,), 0.3), generator=torch.Generator().manual_seed(0))
    assert draws.mean() == pytest.approx(0.3, abs=0.05) and (sh.bernoulli(torch.full((9,), 1.7)) == 1).all()
    low = sh.low_entropy_sign(d, 0.2)
    assert (low[d < d.quantile(0.2)] > 0).all() and (low[d > d.quantile(0.2)] < 0).all()
    assert sh.median_sigmoid(torch.ones(3)).tolist() == pytest.approx([0.5] * 3, abs=1e-5)
    assert sh.median_scale(torch.tensor([-1.0, 2, 4])).tolist() == pytest.approx([-0.5, 1, 2], abs=1e-5)
    flipped = sh.affine(torch.tensor([0.0, 2.0]), 1.0, flip=True)
    assert flipped.tolist() == [2, 1] and sh.affine(torch.tensor([0.0, 2.0])).tolist() == [1, 2]
    assert sh.quantile_below(torch.arange(10.0), 0.2).sum() == 8
    assert sh.clamp(torch.tensor([0.1, 5.0]), 0.4, 2.0).tolist() == pytest.approx([0.4, 2.0])


def test_rolling_stop_truncates_back_to_the_first_low_window():
    row = torch.tensor([1.0] * 20 + [0.0] * 20)
    keep = sh.rolling_stop(row, window=2, level=0.25, patience=4, skip=4, lengths=[40])
    # windows of two below .25 begin with the second zero, at 21
    assert keep.tolist() == [1.0] * 21 + [0.0] * 19
    assert (
        sh.rolling_stop(row, window=2, level=0.25, patience=4, skip=30, lengths=[40]).tolist()
        == [1.0] * 30 + [0.0] * 10
    )
    assert sh.rolling_stop(row, window=2, level=0.25, patience=30, skip=4, lengths=[40]).min() == 1
    # without a level: the quantile of the rows' lowest windows
    two = torch.cat([row, row + 1])
    assert sh.rolling_stop(two, window=2, eta=1.0, patience=1, skip=4, lengths=[40, 40]).min() == 1


def test_shape_checks_of_a_batch():
    s = dist(1)
    with pytest.raises(ValueError, match="rows of 3 tokens in all"):
        Batch({"student": s}, ids(1), [3])
    with pytest.raises(ValueError, match="teacher has shape"):
        Batch({"student": s, "teacher": s[:, :4]}, ids(1), [N])
    with pytest.raises(ValueError, match="student must have 2 axes"):
        Batch({"student": s[None]}, ids(1), [N])


def test_parts_check_the_shapes_they_are_given():
    s, y = dist(1), ids(2)
    for call, message in (
        (lambda: select("student_topk", s, s, y[:2]), r"sampled has shape \[2, 1\]"),
        (lambda: restrict(s, y[:2, None]), r"ids has shape \[2, 1\], logprobs has"),
        (lambda: intersection_of(y[:2, None], y[:, None]), "b has shape"),
        (lambda: sh.apply("sigmoid", s, {}), "score must have 1 axes"),
        (lambda: sh.apply("cum_drop", s[:, 0], {}, lengths=[1, 2]), "rows of 3 tokens in all, values of 4"),
        (lambda: sh.apply("top_frac", s[:, 0], {}, valid=torch.ones(3, dtype=torch.bool)), "valid has shape"),
        (lambda: sh.soft_or(s[:, 0], s[0]), "b has shape"),
        (lambda: sg.returns(s[:, 0], [9], 0.5), "rows of 9 tokens"),
        (lambda: sg.importance_ratio(s[:, 0], s[:, 0], lengths=[1]), "rows of 1 tokens"),
        (lambda: sg.value_baseline(s[:, 0], s, s[:2]), "target has shape"),
        (lambda: c.group_advantage(torch.ones(3), ["x"]), "1 groups for 3 rewards"),
        (lambda: fidelity_by_position(s, [1]), "rows of 1 tokens"),
        (lambda: locality(s, s[:2]), "student has shape"),
        (lambda: top_k_mass(s, s[:2]), "teacher has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# couplings, controllers, schedules, diagnostics


def test_couplings():
    a, r = draw(1, 30), draw(2, 30)
    total, metrics = c.advantage_add(a, r, 5.0)
    assert 0 < metrics["sign_held"] == float((total == 0).float().mean()) < 1
    assert ((total.sign() == a.sign()) | (total == 0)).all()
    assert torch.allclose(c.advantage_add(a, r, 0.1, keep_sign=False)[0], a + 0.1 * r)
    scaled, metrics = c.advantage_multiply(a, torch.full_like(a, 1.2), 0.5)
    assert torch.allclose(scaled, a * 1.1) and metrics["advantage_factor"] == pytest.approx(1.1)
    mixed, metrics = c.additive(torch.tensor(2.0), torch.tensor(4.0), 0.25)
    assert mixed == 2.5 and metrics == {"reward_loss": 2.0, "distill_loss": 4.0}
    rewards = torch.tensor([1.0, 0, 0, 1, 1], dtype=F64)
    group = c.group_advantage(rewards, ["x", "x", "x", "y", "y"])
    assert group[3:].abs().max() < 1e-9 and group[0] > 0 > group[1] and abs(group[:3].sum()) < 1e-9
    kept, metrics = sh.apply(
        "threshold", torch.tensor([0.2, 0.8, 0.9, 0.1]), {"at": 0.5}, valid=torch.tensor([True, True, True, False])
    )
    assert kept.tolist() == [0, 1, 1, 0] and metrics == pytest.approx({"weight_mean": 2 / 3, "weight_zero": 1 / 3})


def test_the_extrapolation_cliff():
    assert cliff_lambda(0.9993, 0.81, 5) == pytest.approx(1.2769, abs=5e-5)
    p, b, clip = 0.95, 0.7, 3.0
    star = cliff_lambda(p, b, clip)
    for lam in torch.linspace(0.5, 3.0, 26).tolist():
        teacher, initial = (torch.tensor([[x, 1 - x]], dtype=F64).log() for x in (p, b))
        q = log_linear({"teacher": teacher, "initial": initial}, {"teacher": lam, "initial": 1 - lam})[0][0, 0].exp()
        # p is the teacher's modal probability: the clip-safe region is q < 1 - (1-p)/c
        assert (float(q) < 1 - (1 - p) / clip) == (lam < star)
    with pytest.raises(ValueError, match="need 0 < b < p < 1"):
        cliff_lambda(0.5, 0.9, 5)


def test_a_gated_copy_waits_for_isolation_reward_and_sane_lengths():
    rule = Cgtr()
    steps = [s for s in range(200) if rule.refresh(s, reward=0.1 + 0.002 * s, longest=100, mean_length=50)]
    assert steps and all(s % 5 == 0 for s in steps) and all(b - a >= 30 for a, b in itertools.pairwise(steps))
    assert not any(Cgtr().refresh(s, 0.5, 100, 50) for s in range(200))
    assert not any(Cgtr().refresh(s, 0.01 * s, 400, 50) for s in range(200))


def test_schedules():
    assert scheduled(0.3, 99) == 0.3
    trace = {"from": 0.5, "to": 0.0, "start": 10, "steps": 30}
    assert [scheduled(trace, s) for s in (0, 10, 25, 40, 99)] == pytest.approx([0.5, 0.5, 0.25, 0, 0])
    cosine = {"from": 1.0, "to": 0.0, "steps": 10, "kind": "cosine"}
    assert scheduled(cosine, 5) == pytest.approx(0.5) and scheduled(cosine, 1) > 0.97


def test_diagnostics():
    plain, hinted, y = dist(1), dist(2), dist(1).argmax(-1)
    gap = preflight_gap(plain, hinted, y)
    assert gap["repair_plain"] == 0 and gap["repair_gap"] == gap["repair_hinted"] > 0
    right = torch.zeros(N, V, dtype=torch.bool).scatter(-1, hinted.argmax(-1, keepdim=True), True)
    assert preflight_gap(plain, hinted, y, right)["repair_hinted"] == 1
    assert harm_rate([True, True, False], [True, False, False]) == 0.5 and math.isnan(harm_rate([False], [True]))
    by = fidelity_by_position(plain, [3, 1])
    assert torch.allclose(by[1], plain[1].max().exp()) and torch.allclose(
        by[0], (plain[0].max().exp() + plain[3].max().exp()) / 2
    )
    tokens = torch.tensor([1, 1, 1, 2, 2, 3])
    assert rock_tokens(tokens, torch.tensor([9.0, 9, 9, 1, 1, 5]), n=1, skip=1) == [3]
    geometry = update_geometry(torch.zeros(8, 8), torch.eye(8))
    assert geometry["changed_fraction"] == pytest.approx(1 / 8) and geometry["stable_rank"] == pytest.approx(8)
    assert error_probability(plain, y) == pytest.approx(float(plain.max(-1).values.exp().mean()))
    assert length_tail([1, 1, 4]) == 2
    near = locality(plain, plain)
    assert near == {"kl_mean": 0, "kl_p99": 0, "top1_flips": 0}
    far = locality(plain, hinted)
    assert far["kl_mean"] == pytest.approx(float(rkl(plain, hinted).mean())) and 0 < far["top1_flips"] <= 1
    assert top_k_mass(plain, hinted, V) == pytest.approx(1) and 0 < top_k_mass(plain, hinted, 2) < 1
    assert kept_fraction(torch.tensor([0.0, 0.5, 2.0, 0.0])) == 0.5

"""The chunked loss is the dense loss: value and every gradient, soft cap and scale included."""

from __future__ import annotations

import pytest
import torch

from hintdistill.objectives import Batch, divergence, gather_with_tail, term
from hintdistill.objectives.chunked import HeadSpec, chunked, linear_divergence
from hintdistill.objectives.chunked_support import linear_support, linear_term
from hintdistill.objectives.divergences import DIVERGENCES
from hintdistill.recipes import load_recipe

N, H, V = 13, 6, 37
F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


def draw(seed: int, *shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense_logits(hidden, head: HeadSpec):
    z = (hidden @ head.weight.T + (head.bias if head.bias is not None else 0.0)) * head.scale
    z = z if head.softcap is None else torch.tanh(z / head.softcap) * head.softcap
    return z / head.temperature


def parts(softcap=None, scale=1.0, frozen=False, bias=True):
    hidden = draw(1, N, H).requires_grad_()
    weight = draw(2, V, H).requires_grad_(not frozen)
    b = draw(3, V).requires_grad_(not frozen) if bias else None
    target_head = HeadSpec(draw(4, V, H + 2), None, scale, softcap)
    return hidden, HeadSpec(weight, b, scale, softcap), draw(5, N, H + 2), target_head, draw(6, N).abs()


def test_a_gradient_is_given_away_once():
    hidden, head, target_hidden, target_head, weights = parts()
    value, _ = linear_divergence(hidden, head, target_hidden, target_head, weights, "rkl")
    torch.autograd.grad(value, hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        torch.autograd.grad(value, hidden)


SHAPED = [(None, 1.0), (3.0, 1.0), (None, 0.5), (2.5, 0.7)]


@pytest.mark.parametrize(("softcap", "scale"), SHAPED)
@pytest.mark.parametrize(
    ("kind", "parameters"), [("fkl", {}), ("rkl", {}), ("jsd", {"alpha": 0.3}), ("mix", {"lam": 0.3})]
)
def test_closed_forms_are_the_dense_loss(kind, parameters, softcap, scale):
    hidden, head, target_hidden, target_head, weights = parts(softcap, scale)
    leaves = [hidden, head.weight, head.bias]
    s, t = dense_logits(hidden, head).log_softmax(-1), dense_logits(target_hidden, target_head).log_softmax(-1)
    each = divergence(kind, s, t, **parameters)
    expected = torch.autograd.grad(3 * (each * weights).sum(), leaves)
    for positions, tile in ((4, 5), (100, 1000), (1, 37)):
        value, per_position = linear_divergence(
            hidden, head, target_hidden, target_head, weights, kind, positions=positions, tile=tile, **parameters
        )
        assert torch.allclose(per_position, each, atol=1e-5) and torch.allclose(
            value, (each * weights).sum(), rtol=1e-5
        )
        for got, want in zip(torch.autograd.grad(3 * value, leaves), expected, strict=True):
            assert float((got - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize(("softcap", "scale"), SHAPED)
def test_any_loss_over_positions_in_chunks(softcap, scale):
    """Stored top-k targets with a tail, JSD, per-position weights."""
    hidden, head, target_hidden, target_head, weights = parts(softcap, scale)
    leaves = [hidden, head.weight, head.bias]
    full = dense_logits(target_hidden, target_head).log_softmax(-1)
    ids = full.topk(5).indices
    target = gather_with_tail(full, ids)

    def loss(logprobs, at):
        return divergence("jsd", gather_with_tail(logprobs, ids[at]), target[at]) * weights[at]

    each = loss(dense_logits(hidden, head).log_softmax(-1), slice(None))
    expected = torch.autograd.grad(each.sum(), leaves)
    for positions in (3, 64):
        value, per_position = chunked(hidden, head, loss, positions=positions)
        assert torch.allclose(per_position, each, atol=1e-5)
        for got, want in zip(torch.autograd.grad(value, leaves), expected, strict=True):
            assert float((got - want).norm() / want.norm()) < 1e-5


def test_a_frozen_head_gets_no_gradient_and_costs_none():
    hidden, head, target_hidden, target_head, weights = parts(frozen=True)
    value, _ = linear_divergence(hidden, head, target_hidden, target_head, weights)
    kept = value.grad_fn.kept
    assert kept[1] is None and kept[2] is None and kept[0].shape == hidden.shape
    value.backward()
    assert head.weight.grad is None and torch.isfinite(hidden.grad).all()
    with torch.no_grad():
        assert not linear_divergence(hidden, head, target_hidden, target_head, weights)[0].requires_grad


def test_closed_forms_honour_a_temperature():
    hidden, head, target_hidden, target_head, weights = parts(3.0, 0.5)
    warm, cool = (HeadSpec(h.weight, h.bias, h.scale, h.softcap, t) for h, t in ((head, 1.7), (target_head, 0.6)))
    s, t = dense_logits(hidden, warm).log_softmax(-1), dense_logits(target_hidden, cool).log_softmax(-1)
    expected = torch.autograd.grad((divergence("jsd", s, t) * weights).sum(), hidden)[0]
    got = torch.autograd.grad(linear_divergence(hidden, warm, target_hidden, cool, weights, "jsd")[0], hidden)[0]
    assert float((got - expected).norm() / expected.norm()) < 1e-5


# a recipe's term from hidden states


def spec_of(name="hint_sd", temperature=1.0, target=None, clip=None, support=None, **divergence_keys):
    change = {"temperature": temperature, "divergence": {**divergence_keys, **(clip or {})}}
    change["support"] = {"k": 4, "accept_bias": True, "token_ids": [1, 5, 7], **(support or {})}
    return load_recipe(name, {"terms": {"distill": change | ({"target": target} if target else {})}}).terms["distill"]


def wide(softcap=None, scale=1.0):
    """Everything in float64: student hidden states and head with gradient, two views, sampled ids, weights with a zero."""
    hidden, weight, bias = (draw(i, *n, dtype=F64).requires_grad_() for i, n in ((1, (N, H)), (2, (V, H)), (3, (V,))))
    views = {
        n: (draw(i, N, H + 2, dtype=F64), HeadSpec(draw(i + 1, V, H + 2, dtype=F64), None, scale, softcap))
        for i, n in ((4, "teacher"), (6, "plain"))
    }
    weights = draw(8, N, dtype=F64).abs()
    weights[2] = 0.0
    return hidden, HeadSpec(weight, bias, scale, softcap), views, (torch.arange(N) * 5) % V, weights


def agrees(spec, softcap=None, scale=1.0, special_ids=()):
    """Value, per-position values and every gradient of `linear_term` against `compose.term`, float64, to 1e-10."""
    hidden, head, views, y, weights = wide(softcap, scale)
    student = dense_logits(hidden, head).log_softmax(-1)
    dense = {n: dense_logits(*v).log_softmax(-1) for n, v in views.items()}
    batch = Batch({"student": student, **dense}, y, [N], special_ids=special_ids)
    want = term(spec, batch, base=weights, step=3)
    leaves = [hidden, head.weight, head.bias]
    expected = torch.autograd.grad(want.value, leaves, retain_graph=True)
    given = {**views, "student": (hidden.detach(), HeadSpec(head.weight.detach(), head.bias.detach(), scale, softcap))}
    for positions, tile in ((4, 7), (64, 1 << 15)):
        value, each = linear_term(
            spec, hidden, head, given, y, weights, step=3, special_ids=special_ids, positions=positions, tile=tile
        )
        assert torch.allclose(value, want.value, rtol=1e-10, atol=1e-12)
        assert torch.allclose(each, want.per_token, rtol=1e-10, atol=1e-12)
        for got, exact in zip(torch.autograd.grad(value, leaves), expected, strict=True):
            assert (got - exact).abs().max() <= 1e-10 * exact.abs().max().clamp(min=1e-6)


@pytest.mark.parametrize(
    ("name", "rest"),
    # ce_topk renormalised is refused at load
    [(n, r) for n in sorted(DIVERGENCES) for r in ("tail", "renorm", "drop") if (n, r) != ("ce_topk", "renorm")],
)
def test_a_term_on_a_support_is_the_dense_term(name, rest):
    """Every divergence, remainder, kind of support and clip; soft cap, scale and temperature at once."""
    for kind in ("student_topk", "teacher_topk", "union", "intersection", "token_set"):
        for clip in ({}, {"pointwise_clip": 0.05}, {"token_clip": 0.3}):
            spec = spec_of(kind=name, clip=clip, support={"kind": kind, "rest": rest}, temperature=1.3)
            agrees(spec, softcap=3.0, scale=0.7)


@pytest.mark.parametrize(
    "spec",
    [
        spec_of(),
        spec_of(kind="mix", support={"kind": "full"}),
        spec_of(kind="jsd", alpha=0.2, support={"kind": "full"}, clip={"pointwise_clip": 0.02}),
        spec_of(kind="skew", support={"kind": "full"}, temperature=2.0),
        spec_of(target={"loglin": {"student": 1.0, "teacher": 1.0, "plain": -1.0}}),
        spec_of(target={"loglin": {"plain": 0.4, "teacher": 0.6}, "anchor": "plain", "residual_clip": 0.5}),
        spec_of(target={"temperature": 0.5, "tilt": {"from": 0.0, "to": 1.0, "steps": 9}, "mixture": {"plain": 0.1}}),
        spec_of(support={"k": V}),
        spec_of(support={"include_sampled": True, "drop_special": True}),
        spec_of(support={"kind": "full", "drop_special": True}),
        spec_of(kind="fkl", target={"loglin": {"teacher": 1.4, "plain": -0.4}}, support={"kind": "full"}),
    ],
)
def test_targets_supports_and_schedules_are_the_terms(spec):
    agrees(spec, special_ids=(0, 3, 11))
    agrees(spec, softcap=2.5, scale=0.5, special_ids=(0, 3, 11))


def test_the_gradient_on_a_support_by_finite_differences():
    """Ragged supports too: padded rows, and a row that keeps nothing, which has no gradient."""
    hidden, head, views, _, weights = wide(3.0, 0.7)
    target = dense_logits(*views["teacher"]).log_softmax(-1)
    ids = target.topk(4).indices
    ids[3, 2:], ids[5] = -1, -1
    theirs = gather_with_tail(target, ids.where(ids[:, :1] >= 0, torch.tensor([[0, -1, -1, -1]])))
    theirs[5] = torch.tensor([-torch.inf] * 4 + [0.0])

    def choose(logits, at):
        return ids[at], lambda ours: divergence("rkl", ours, theirs[at])

    def loss(x):
        return linear_support(x, head, weights, choose, positions=5)[0]

    exact = torch.autograd.grad(loss(hidden), hidden)[0]
    assert (exact[5] == 0).all() and (exact[2] == 0).all() and torch.isfinite(exact).all()
    for i, j in ((0, 0), (3, 4), (5, 1), (12, 5)):
        with torch.no_grad():
            nudge = torch.zeros_like(hidden)
            nudge[i, j] = 1e-6
            difference = (loss(hidden + nudge) - loss(hidden - nudge)) / 2e-6
        assert float(difference) == pytest.approx(float(exact[i, j]), abs=1e-7)


def test_a_position_without_weight_may_be_infinitely_far():
    hidden, head, views, y, weights = wide()
    far, of = views["teacher"]
    spec = spec_of(kind="fkl", support={"kind": "token_set", "rest": "tail"})
    nowhere = HeadSpec(of.weight, torch.zeros(V, dtype=F64).index_fill(0, torch.tensor([1, 5, 7]), -torch.inf))
    only = torch.zeros_like(weights)
    rkl = spec_of(kind="rkl", support={"kind": "token_set", "rest": "tail"})
    value, each = linear_term(rkl, hidden, head, {"teacher": (far, nowhere)}, y, only)
    assert torch.isinf(each).all() and float(value.detach()) == 0
    assert (torch.autograd.grad(value, hidden)[0] == 0).all()
    value, each = linear_term(spec, hidden, head, {"teacher": (far, nowhere)}, y, weights)
    assert torch.isfinite(each).all() and torch.isfinite(torch.autograd.grad(value, hidden)[0]).all()


def test_a_term_with_a_frozen_head_keeps_nothing_of_the_vocabularys_size():
    hidden, head, views, y, weights = wide()
    frozen = HeadSpec(head.weight.detach(), head.bias.detach())
    value, _ = linear_term(spec_of(), hidden, frozen, views, y, weights)
    kept = value.grad_fn.next_functions[0][0].kept
    assert kept[0].shape == hidden.shape and kept[1] is None and kept[2] is None
    with torch.no_grad():
        assert not linear_term(spec_of(), hidden, frozen, views, y, weights)[0].requires_grad


def test_what_a_term_cannot_be_is_said():
    hidden, head, views, y, weights = wide()
    sampled = load_recipe("openclaw_pg").terms["distill"]
    with pytest.raises(ValueError, match="pg does not compare distributions; `linear_support` on the sampled ids"):
        linear_term(sampled, hidden, head, views, y, weights)
    with pytest.raises(ValueError, match="reads a reward"):
        linear_term(load_recipe("pbsd_tilt").terms["distill"], hidden, head, views, y, weights)
    with pytest.raises(KeyError, match="needs the view 'initial'; the given views are teacher, plain"):
        linear_term(spec_of(target={"loglin": {"initial": 1.0, "teacher": None}}), hidden, head, views, y, weights)
    with pytest.raises(ValueError, match="unknown remainder 'tale'"):
        linear_support(hidden, head, weights, lambda z, at: (y[at, None], lambda r: r[:, 0]), rest="tale")
    with pytest.raises(ValueError, match="12 weights for 13 positions"):
        linear_support(hidden, head, weights[1:], lambda z, at: (y[at, None], lambda r: r[:, 0]))
    # what the message recommends
    value, each = linear_support(hidden, head, weights, lambda z, at: (y[at, None], lambda r: r[:, 0]), rest="drop")
    exact = dense_logits(hidden, head).log_softmax(-1).gather(-1, y[:, None])[:, 0]
    assert torch.allclose(each, exact) and torch.allclose(value, (weights * exact).sum())
    assert torch.allclose(*(torch.autograd.grad(v, hidden)[0] for v in (value, (weights * exact).sum())))


def test_what_does_not_fit_is_refused():
    hidden, head, target_hidden, target_head, weights = parts()
    with pytest.raises(ValueError, match="there is no closed form for 'skew'"):
        linear_divergence(hidden, head, target_hidden, target_head, weights, "skew")
    with pytest.raises(ValueError, match="same positions"):
        linear_divergence(hidden, head, target_hidden[:3], target_head, weights)
    with pytest.raises(ValueError, match=r"positions has shape \[13\], loss has \[1\]"):
        chunked(hidden, head, lambda logprobs, at: logprobs.sum(-1)[:1])

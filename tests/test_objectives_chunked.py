"""The chunked loss is the dense loss: value and every gradient, soft cap and scale included."""

from __future__ import annotations

import pytest
import torch

from hintdistill.objectives import divergence, gather_with_tail
from hintdistill.objectives.chunked import HeadSpec, chunked, linear_divergence

N, H, V = 13, 6, 37


pytestmark = pytest.mark.usefixtures("one_thread")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense_logits(hidden, head: HeadSpec):
    z = (hidden @ head.weight.T + (head.bias if head.bias is not None else 0.0)) * head.scale
    return z if head.softcap is None else torch.tanh(z / head.softcap) * head.softcap


def parts(softcap=None, scale=1.0, frozen=False, bias=True):
    hidden = draw(1, N, H).requires_grad_()
    weight = draw(2, V, H).requires_grad_(not frozen)
    b = draw(3, V).requires_grad_(not frozen) if bias else None
    target_head = HeadSpec(draw(4, V, H + 2), None, scale, softcap)
    return hidden, HeadSpec(weight, b, scale, softcap), draw(5, N, H + 2), target_head, draw(6, N).abs()


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


def test_a_recipes_term_in_chunks():
    """A whole recipe over chunks of positions equals the recipe over all of them, its static weights given."""
    from hintdistill.objectives import Batch, objective
    from hintdistill.recipes import load_recipe

    recipe = load_recipe("hint_sd", {"terms": {"distill": {"support": {"k": 4}}}})
    hidden, head, target_hidden, target_head, _ = parts(bias=False)
    t = dense_logits(target_hidden, target_head).log_softmax(-1)
    y = torch.arange(N) % V

    def of(logprobs, at):
        n = len(logprobs)
        views = {"student": logprobs, "teacher": t[at]}
        base = {"distill": torch.full((n,), 1.0 / N)}
        # one row per position, so that the value is the sum of the base weights
        return [objective(recipe, Batch({k: v[i : i + 1] for k, v in views.items()}, y[at][i : i + 1], [1]),
                          base={"distill": base["distill"][i : i + 1]})[0] for i in range(n)]  # fmt: skip

    value, _ = chunked(hidden, head, lambda logprobs, at: torch.stack(of(logprobs, at)), positions=4)
    whole, _ = objective(recipe, Batch({"student": dense_logits(hidden, head).log_softmax(-1), "teacher": t}, y, [N]))
    assert torch.allclose(value, whole, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    hidden, head, target_hidden, target_head, weights = parts()
    with pytest.raises(ValueError, match="no closed form for 'skew'"):
        linear_divergence(hidden, head, target_hidden, target_head, weights, "skew")
    with pytest.raises(ValueError, match="same positions"):
        linear_divergence(hidden, head, target_hidden[:3], target_head, weights)
    with pytest.raises(ValueError, match=r"positions has shape \[13\], loss has \[1\]"):
        chunked(hidden, head, lambda logprobs, at: logprobs.sum(-1)[:1])

"""The same tensors through neighbouring projects' losses: equal to 1e-6, or, where their form is a known trap, different as said.

pip install trl liger-kernel        (the extra `peers`; part of `dev`)
"""

from __future__ import annotations

import pytest
import torch

from hintdistill.objectives import Batch, divergence, gather_with_tail, objective, policy_gradient, restrict
from hintdistill.objectives.chunked import HeadSpec, linear_divergence
from hintdistill.objectives.scorebank import at
from hintdistill.recipes import load_recipe

HOW = "the peer is not installed: pip install -e '.[peers]'"
N, V, K = 12, 40, 7
KINDS = {0.0: ("fkl", {}), 1.0: ("rkl", {}), 0.5: ("jsd", {"alpha": 0.5}), 0.2: ("jsd", {"alpha": 0.2})}


pytestmark = pytest.mark.usefixtures("one_thread")


def peer(module: str):
    return pytest.importorskip(module, reason=HOW)


def logits(seed: int, n: int = N, v: int = V) -> torch.Tensor:
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def gradients(a, b, x) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.autograd.grad(a, x, retain_graph=True)[0], torch.autograd.grad(b, x)[0]


@pytest.mark.parametrize("beta", sorted(KINDS))
def test_trls_generalized_jsd(beta):
    """GKDTrainer.generalized_jsd_loss: its β is the teacher's share, its ends forward and reverse KL."""
    gkd = peer("trl.experimental.gkd.gkd_trainer")
    s, t = logits(1).requires_grad_(), logits(2)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(s[None], t[None], beta=beta, reduction="none").sum(-1)[0]
    kind, parameters = KINDS[beta]
    ours = divergence(kind, s.log_softmax(-1), t.log_softmax(-1), **parameters)
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    a, b = gradients(ours.sum(), theirs.sum(), s)
    assert (a - b).abs().max() < 1e-6


@pytest.mark.parametrize("alpha", sorted(KINDS))
@pytest.mark.parametrize("tail", [True, False])
def test_trls_sdpo_topk(alpha, tail):
    """compute_topk_self_distillation_loss: student top-k with a tail, or renormalised."""
    sdpo = peer("trl.experimental.sdpo.loss_utils")
    s, t = logits(3).requires_grad_(), logits(4)
    theirs = sdpo.compute_topk_self_distillation_loss(
        s, t, distillation_topk=K, distillation_alpha=alpha, distillation_add_tail=tail
    )
    kind, parameters = KINDS[alpha]
    kept, rest = s.detach().topk(K).indices, "tail" if tail else "renorm"
    ours = divergence(
        kind, restrict(s.log_softmax(-1), kept, rest), restrict(t.log_softmax(-1), kept, rest), **parameters
    )
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    a, b = gradients(ours.sum(), theirs.sum(), s)
    assert (a - b).abs().max() < 1e-6


@pytest.mark.parametrize("module", ["trl.experimental.sdpo.loss_utils", "trl.experimental.sdft.loss_utils"])
@pytest.mark.parametrize("alpha", sorted(KINDS))
def test_trls_full_vocabulary_and_sampled_losses(module, alpha):
    """SDPO's and SDFT's helpers; the sampled form is policy_gradient with the gap as advantage."""
    utils = peer(module)
    s, t, y = logits(5).requires_grad_(), logits(6), torch.arange(N) % V
    kind, parameters = KINDS[alpha]
    theirs = utils.compute_full_logit_self_distillation_loss(s, t, distillation_alpha=alpha)
    ours = divergence(kind, s.log_softmax(-1), t.log_softmax(-1), **parameters)
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    sampled = utils.compute_sampled_token_self_distillation_loss(s, t, y, distillation_alpha=1.0)
    own, other = at(s.log_softmax(-1), y), at(t.log_softmax(-1), y)
    mine, _ = policy_gradient(own, other - own.detach())
    assert torch.allclose(mine, sampled, atol=1e-6, rtol=0)
    a, b = gradients(mine.sum(), sampled.sum(), s)
    assert (a - b).abs().max() < 1e-6


def test_the_sdpo_recipe_is_trls_sdpo():
    """The whole term: top-k with tail, JSD, importance cap 2, mean over tokens."""
    sdpo = peer("trl.experimental.sdpo.loss_utils")
    s, t, old, y = logits(7).requires_grad_(), logits(8), logits(9), torch.arange(N) % V
    each = sdpo.compute_topk_self_distillation_loss(
        s, t, distillation_topk=K, distillation_alpha=0.5, distillation_add_tail=True
    )
    own, before = at(s.log_softmax(-1), y), at(old.log_softmax(-1), y)
    theirs = sdpo.apply_importance_sampling_clipping(each, own, before, 2.0).mean()
    recipe = load_recipe("sdpo", {"terms": {"distill": {"support": {"k": K}}}})
    views = {"student": s.log_softmax(-1), "teacher": t.log_softmax(-1), "initial": old.log_softmax(-1)}
    ours, _ = objective(recipe, Batch(views, y, [5, N - 5]))
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    a, b = gradients(ours, theirs, s)
    assert (a - b).abs().max() < 1e-6


def test_trls_tail_clamp_differs_where_the_top_k_is_nearly_everything():
    """A trap: TRL's tail is log(-expm1(logsumexp)) with the sum clamped below -1e-7, so at least 1e-7 of mass. Ours is what the
    vocabulary holds; a tail of 1e-12 stays 1e-12."""
    sdpo = peer("trl.experimental.sdpo.loss_utils")
    x = torch.zeros(1, V, dtype=torch.float64)
    x[0, :K] = 30.0
    logp = x.log_softmax(-1)
    kept = torch.arange(K)[None]
    exact = float(logp[0, K:].exp().sum())
    assert exact < 1e-11
    theirs, ours = sdpo.add_tail_bucket(logp[:, :K])[0, -1].exp(), gather_with_tail(logp, kept)[0, -1].exp()
    assert float(ours) == pytest.approx(exact, rel=1e-6) and float(theirs) == pytest.approx(1e-7, rel=1e-3)


@pytest.mark.parametrize("kind", ["fkl", "rkl", "jsd"])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (2.5, 0.7)])
def test_trls_chunked_kernel(kind, softcap, scale):
    """ChunkedDivergenceFunction, soft cap and scale included; float32."""
    kernel = peer("trl.kernels.chunked_divergence")
    g = torch.Generator().manual_seed(1)
    hidden, target = (torch.randn(N, 8, generator=g) for _ in range(2))
    ws, wt = (torch.randn(V, 8, generator=g) for _ in range(2))
    beta = {"fkl": 0.0, "jsd": 0.5, "rkl": 1.0}[kind]
    h = hidden.clone().requires_grad_()
    theirs = kernel.ChunkedDivergenceFunction.apply(
        h, ws, None, target, wt, None, beta, 1.0, scale, softcap, scale, softcap
    )[0]
    ours, each = linear_divergence(
        h, HeadSpec(ws, None, scale, softcap), target, HeadSpec(wt, None, scale, softcap), torch.ones(N), kind
    )
    assert torch.allclose(each, theirs, atol=1e-5)
    a, b = gradients(ours, theirs.sum(), h)
    assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("beta", sorted(KINDS))
def test_ligers_chunked_jsd(beta):
    """LigerFusedLinearJSDLoss, soft loss alone; its β is the teacher's share, and 0 and 1 are the KLs."""
    liger = peer("liger_kernel.chunked_loss")
    g = torch.Generator().manual_seed(2)
    hidden, target = (torch.randn(N, 8, generator=g, dtype=torch.float64) for _ in range(2))
    ws, wt = (torch.randn(V, 8, generator=g, dtype=torch.float64) for _ in range(2))
    loss = liger.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, chunk_size=5
    )
    h, w = hidden.clone().requires_grad_(), ws.clone().requires_grad_()
    theirs = loss(h, w, target, wt, torch.zeros(N, dtype=torch.long))
    kind, parameters = KINDS[beta]
    ours = divergence(kind, (h @ w.T).log_softmax(-1), (target @ wt.T).log_softmax(-1), **parameters).mean()
    # it sums in float32
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    for x in (h, w):
        a, b = torch.autograd.grad(ours, x, retain_graph=True)[0], torch.autograd.grad(theirs, x, retain_graph=True)[0]
        assert (a - b).abs().max() < 1e-6


def test_detaching_one_weight_is_no_divergence():
    """A trap (PTD-PO's released code): with the student detached in the weight of KL(S ‖ M) the gradient is another one; at
    S = T, where JSD's vanishes, it still is zero only because the log-ratio is."""
    s, t = logits(10).requires_grad_(), logits(11)
    a, b = s.log_softmax(-1), t.log_softmax(-1)
    m = torch.logaddexp(a, b) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    detached = 0.5 * (a.detach().exp() * (a - m)).sum(-1) + 0.5 * (b.exp() * (b - m)).sum(-1)
    ours = divergence("jsd", a, b)
    assert torch.allclose(ours, detached)
    x, y = gradients(ours.sum(), detached.sum(), s)
    assert (x - y).norm() / x.norm() > 0.1

"""Methods against an implementation of their own in float64, value and gradient: written from their papers and released code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from hintdistill.objectives import Batch, objective
from hintdistill.objectives.shapes import bernoulli
from hintdistill.recipes import load_recipe, missing, needs
from hintdistill.recipes.schema import Recipe

F64 = torch.float64
N, V = 12, 17
LENGTHS = [5, 4, 3]

pytestmark = pytest.mark.usefixtures("one_thread")


def logits(seed: int, n: int = N, v: int = V, scale: float = 1.5) -> torch.Tensor:
    return scale * torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=F64)


@dataclass
class Case:
    """A student's logits with gradient, other views' log-probabilities, sampled tokens and what the sampler said of them."""

    z: torch.Tensor
    views: dict[str, torch.Tensor]
    y: torch.Tensor
    then: torch.Tensor

    def at(self, view: str) -> torch.Tensor:
        return self.views[view][torch.arange(len(self.y)), self.y]

    @property
    def own(self) -> torch.Tensor:
        return self.z.log_softmax(-1)[torch.arange(len(self.y)), self.y]

    def batch(self, **facts: torch.Tensor) -> Batch:
        views = {"student": self.z.log_softmax(-1), **self.views}
        return Batch(views, self.y, LENGTHS, {"recorded": self.then, **facts})


def case(*names: str, near: float | None = None) -> Case:
    """`near`: views that differ from the first by so much, as right and wrong hints' do."""
    z = logits(1).requires_grad_()
    first = logits(2)
    views = {}
    for i, name in enumerate(names):
        other = logits(3 + i)
        views[name] = (other if near is None else first + near * other).log_softmax(-1)
    y = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(9))
    then = (z.detach() + 0.3 * logits(30)).log_softmax(-1)[torch.arange(N), y]
    return Case(z, views, y, then)


def same(recipe: Recipe, batch: Batch, wanted: torch.Tensor, z: torch.Tensor) -> None:
    value, metrics = objective(recipe, batch)
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9, abs=1e-12)
    ours, theirs = torch.autograd.grad(value, z)[0], torch.autograd.grad(wanted, z)[0]
    assert theirs.abs().max() > 1e-4 and float((ours - theirs).abs().max()) < 1e-9
    assert all(math.isfinite(m) for m in metrics.values())


def clipped(ratio: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """PPO's pessimistic surrogate, as a loss."""
    return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


# -- RLCSD -----------------------------------------------------------------------------------------------------------------

WRONG = ["wrong_1", "wrong_2", "wrong_3", "wrong_4"]


def rlcsd(c: Case, a: torch.Tensor, tau: float = 0.03) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, the advantages it trains with, and which tokens it changes; written from the released loss, token by token."""
    changed, modified = torch.zeros(N, dtype=torch.bool), torch.zeros(N, dtype=F64)
    for t in range(N):
        mean = sum(math.exp(float(c.at(w)[t])) for w in WRONG) / len(WRONG)
        r = 0.5 * math.tanh((float(c.at("teacher")[t]) - math.log(mean)) / tau)
        r = max(-0.5, min(0.5, r))
        changed[t] = abs(r) > 0.02
        total = float(a[t]) + (r if changed[t] else 0.0)
        modified[t] = max(total, 0.0) if a[t] > 0 else min(total, 0.0) if a[t] < 0 else 0.0
    ratio = (c.own - c.then).exp()
    paths = [
        clipped(ratio, x)[mask].mean() for x, mask in ((modified, changed), (a.to(F64), ~changed)) if bool(mask.any())
    ]
    return torch.stack(paths).sum(), modified, changed


def test_rlcsd_is_the_released_loss():
    c = case("teacher", *WRONG, near=0.004)
    per_row = torch.tensor([0.1, -0.04, 0.0], dtype=F64)
    a = per_row.repeat_interleave(torch.tensor(LENGTHS))
    wanted, modified, changed = rlcsd(c, a)
    # every case is there: changed and left alone on either side, stopped at zero, and a verifier that says nothing
    assert bool(changed.any()) and bool((~changed).any())
    assert bool(((modified == 0) & (a != 0)).any()) and bool((changed & (a == 0)).any())
    same(load_recipe("rlcsd"), c.batch(advantage=per_row), wanted, c.z)


def test_rlcsd_trains_nothing_where_the_verifier_says_nothing():
    c = case("teacher", *WRONG, near=0.1)
    value, _ = objective(load_recipe("rlcsd"), c.batch(advantage=torch.zeros(3, dtype=F64)))
    assert float(value.detach()) == 0 and float(torch.autograd.grad(value, c.z)[0].abs().max()) == 0


def test_the_wrong_side_is_the_log_of_a_mean_of_probabilities():
    """One wrong hint that all but rules the token out weighs a quarter there, and a mean of logarithms would let it decide."""
    c = case("teacher", *WRONG, near=0.01)
    out = c.views["wrong_1"].clone()
    out[torch.arange(N), c.y] = -60.0
    c.views["wrong_1"] = out.log_softmax(-1)
    per_row = torch.tensor([0.3, -0.4, 0.2], dtype=F64)
    wanted, _, _ = rlcsd(c, per_row.repeat_interleave(torch.tensor(LENGTHS)))
    same(load_recipe("rlcsd"), c.batch(advantage=per_row), wanted, c.z)


def test_a_row_may_have_fewer_wrong_hints_and_none_is_an_error():
    c = case("teacher", *WRONG, near=0.01)
    c.views["wrong_4"] = torch.full((N, V), -torch.inf, dtype=F64)
    facts = {"advantage": torch.tensor([0.3, -0.4, 0.2], dtype=F64)}
    three, _ = objective(load_recipe("rlcsd", {"views": {"wrong": {"n": 3}}}), c.batch(**facts))
    four, _ = objective(load_recipe("rlcsd"), c.batch(**facts))
    assert float(four.detach()) == pytest.approx(float(three.detach()), rel=1e-12)
    for name in WRONG:
        c.views[name] = torch.full((N, V), -torch.inf, dtype=F64)
    with pytest.raises(ValueError, match="needs a wrong context for every row"):
        objective(load_recipe("rlcsd"), c.batch(**facts))


# -- SCOPE -----------------------------------------------------------------------------------------------------------------


def test_scope_shares_weight_within_the_correct_and_within_the_wrong_rollouts_of_a_task():
    """Three rollouts of one task in the batch, two correct; a fourth, wrong as the third, is in another step of the training."""
    c = case("teacher")
    student, teacher = {"a": 2.0, "b": 5.0, "c": 3.0, "d": 7.0}, {"a": 9.0, "b": 9.5, "c": 4.0, "d": 16.0}
    sets = {"a": "ab", "b": "ba", "c": "cd"}
    facts = {
        "reward": torch.tensor([1.0, 1.0, 0.0], dtype=F64),
        "rollout_ppl_S": torch.tensor([[student[m] for m in sets[r]] for r in "abc"], dtype=F64),
        "rollout_ppl_T": torch.tensor([[teacher[m] for m in sets[r]] for r in "abc"], dtype=F64),
    }
    weight = {r: 2 * student[r] / (student["a"] + student["b"]) for r in "ab"}
    weight["c"] = 2 * (1 / teacher["c"]) / (1 / teacher["c"] + 1 / teacher["d"])
    assert weight["b"] > weight["a"] and weight["c"] > 1, "rare correct paths, and teachers that are sure, count more"
    nll = (
        torch.cat([torch.full((n,), weight[r], dtype=F64) for n, r in zip(LENGTHS[:2], "ab", strict=True)]) * -c.own[:9]
    )
    advantage = (c.at("teacher") - c.then)[9:]
    wrong = weight["c"] * clipped((c.own - c.then).exp()[9:], advantage)
    same(load_recipe("scope"), c.batch(**facts), nll.mean() + wrong.mean(), c.z)


def test_a_set_of_one_weighs_one_and_sets_are_padded():
    from hintdistill.objectives.shapes import apply

    x = torch.tensor([[3.0, math.nan, math.nan], [2.0, 6.0, math.nan]], dtype=F64)
    weights, _ = apply("set_softmax", x, {"tau": 1.0}, lengths=[1, 1])
    assert weights.tolist() == pytest.approx([1.0, 0.5])
    assert apply("set_softmax", x, {"tau": -1.0})[0].tolist() == pytest.approx([1.0, 1.5])


# -- Thinking Machines' on-policy distillation -----------------------------------------------------------------------------


def test_tm_opds_advantage_stays_what_it_was_when_the_token_was_sampled():
    c = case("teacher")
    advantage = c.at("teacher") - c.then
    wanted = (-(c.own - c.then).exp() * advantage).mean()
    same(load_recipe("tm_opd"), c.batch(), wanted, c.z)
    moving = load_recipe("tm_opd", {"terms": {"distill": {"divergence": {"gap_at": "now"}}}})
    assert float(objective(moving, c.batch())[0].detach()) != pytest.approx(float(wanted.detach()), rel=1e-3)


# -- SDFT ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0, 2])
def test_sdft_is_trls(skip):
    """`SDFTTrainer._compute_self_distillation_loss` at its defaults: JSD on the student's top-k, rows' means and their mean."""
    peer = pytest.importorskip("trl.experimental.sdft.loss_utils", reason="pip install -e '.[peers]'")
    c, k = case("teacher"), 6
    each = peer.compute_topk_self_distillation_loss(
        c.z, c.views["teacher"], distillation_topk=k, distillation_alpha=0.5, distillation_add_tail=False
    )
    wanted = torch.stack([row[skip:].mean() for row in each.split(LENGTHS)]).mean()
    weights = [{"score": "index", "shape": "skip_n", "n": skip}]
    same(load_recipe("sdft", {"terms": {"distill": {"support": {"k": k}, "weights": weights}}}), c.batch(), wanted, c.z)


def test_sdfts_defaults_are_trls():
    config = pytest.importorskip("trl.experimental.sdft", reason="pip install -e '.[peers]'").SDFTConfig
    fields = {n: f.default for n, f in config.__dataclass_fields__.items()}
    recipe = load_recipe("sdft")
    term = recipe.terms["distill"]
    assert (term.support.k, term.support.rest) == (fields["distillation_topk"], "renorm")
    assert fields["distillation_add_tail"] is False and fields["distillation_mode"] == "topk_logits"
    assert term.divergence.parameters == {"alpha": fields["distillation_alpha"]} and term.divergence.kind == "jsd"
    assert (fields["teacher_model_kind"], recipe.teacher.update) == ("base", "initial")
    assert term.weights[0].parameters["n"] == fields["num_loss_tokens_to_skip"] and term.normalize == "per_row"


# -- TrOPD, Rock tokens ----------------------------------------------------------------------------------------------------


def test_tropds_clip_is_declared_and_its_rows_draw_for_themselves():
    recipe = load_recipe("tropd")
    clip = recipe.terms["outliers"].divergence.token_clip
    assert clip == 10 and "clip of that term at 10 nats" in recipe.ours and "10)" in recipe.formula
    share = torch.full((7,), 0.5)

    def drawn(x: torch.Tensor, lengths: list[int], seeds: list[int]) -> torch.Tensor:
        return bernoulli(x, lengths=lengths, generator=[torch.Generator().manual_seed(s) for s in seeds])

    together = drawn(share, [4, 3], [1, 2])
    assert torch.equal(together, torch.cat([drawn(share[:4], [4], [1]), drawn(share[4:], [3], [2])]))
    assert set(together.tolist()) == {0.0, 1.0}


def test_rock_tokens_without_ids_are_refused():
    everything = {n.name for n in needs(load_recipe("rock_freeze"))} - {"frozen_ids"}
    assert [n.name for n in missing(load_recipe("rock_freeze"), everything)] == ["frozen_ids"]
    some = [{"score": "token_id", "shape": "freeze", "ids": [5], "weight": 0.0}]
    assert missing(load_recipe("rock_freeze", {"terms": {"distill": {"weights": some}}}), everything) == []


# -- DASD ------------------------------------------------------------------------------------------------------------------


def dasd(c: Case, a: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and the normalised gaps before the bound; written from the paper's formula, token by token."""
    s, t = c.z.detach().log_softmax(-1), c.views["teacher"]
    entropy = [-sum(math.exp(float(x)) * float(x) for x in row) for row in s]
    gap = [float(t[i, c.y[i]] - s[i, c.y[i]]) for i in range(N)]
    mean = sum(entropy) / N
    spread = sum(abs(h - mean) for h in entropy) / N
    at, ordered = 0.2 * (N - 1), sorted(entropy)
    low = ordered[int(at)] + (at - int(at)) * (ordered[int(at) + 1] - ordered[int(at)])
    median = sorted(abs(g) for g in gap)[(N - 1) // 2] + 1e-6
    scaled = torch.tensor([g / median for g in gap], dtype=F64)
    direction = torch.tensor([math.tanh((low - h) / spread) for h in entropy], dtype=F64)
    routed = direction / (1 + (1 - scaled.abs()).exp())
    return clipped((c.own - c.then).exp(), a + routed * scaled.clamp(-bound, bound)).mean(), scaled


@pytest.mark.parametrize("sure", [False, True])
def test_dasd_is_the_papers_formula_with_a_declared_bound(sure):
    """A student that is sure of most tokens has a median gap near 0; without the bound one token would outweigh the verifier."""
    c = case("teacher")
    if sure:
        c.views["teacher"] = c.z.detach().log_softmax(-1).index_copy(0, torch.tensor([3]), c.views["teacher"][3:4])
    a = torch.tensor([0.7, -0.4, 0.2], dtype=F64)
    wanted, scaled = dasd(c, a.repeat_interleave(torch.tensor(LENGTHS)), 5.0)
    same(load_recipe("dasd"), c.batch(advantage=a), wanted, c.z)
    assert (float(scaled.abs().max()) > 1e4) == sure and float(wanted.detach().abs()) < 6
    recipe = load_recipe("dasd")
    bound = recipe.coupling.credit[-1].then[0].parameters
    assert bound == {"low": -5.0, "high": 5.0} and "clip of δ̄ at ±5" in recipe.ours and "clip(δ̄, ±5)" in recipe.formula


def test_dasd_without_its_bound_is_the_printed_formula():
    credit = load_recipe("dasd").model_dump(by_alias=True, exclude_defaults=True)["coupling"]["credit"]
    bare = load_recipe("dasd", {"coupling": {"credit": [{k: v for k, v in w.items() if k != "then"} for w in credit]}})
    c, a = case("teacher"), torch.tensor([0.7, -0.4, 0.2], dtype=F64)
    same(bare, c.batch(advantage=a), dasd(c, a.repeat_interleave(torch.tensor(LENGTHS)), math.inf)[0], c.z)


# -- EDGE-OPD, HERO --------------------------------------------------------------------------------------------------------


def test_edge_opd_keeps_what_the_rule_makes_likelier_and_a_sure_student_loses_little():
    c = case("teacher", near=0.5)
    c.views |= {"plain": c.z.detach().log_softmax(-1), "initial": c.views["teacher"]}
    kept = [i for i in range(N) if float(c.at("teacher")[i] - c.at("plain")[i]) > 0]
    assert 0 < len(kept) < N
    gaps = [float(c.at("teacher")[i] - c.own[i].detach()) for i in kept]
    wanted = torch.stack([-g * c.own[i] for g, i in zip(gaps, kept, strict=True)]).mean()
    same(load_recipe("edge_opd"), c.batch(), wanted, c.z)
    # with the live teacher the gap of a kept token is at most its surprisal
    assert all(0 < g <= -float(c.own[i].detach()) for g, i in zip(gaps, kept, strict=True))
    assert float(wanted.detach()) <= float((c.own[kept].detach() ** 2).mean())


@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_hero_is_the_mean_over_turns_of_each_turns_mean(scale):
    """JSD ½ on the student's top k and the rest, times the ratio to the sampler within [.4, 10]."""
    c, k = case("teacher"), 6
    c.then = c.own.detach() + scale * logits(31)[:, 0]
    each = []
    for i in range(N):
        s, t = c.z[i].softmax(-1), c.views["teacher"][i].exp()
        top = s.detach().topk(k).indices
        p, q = (torch.cat([x[top], (1 - x[top].sum())[None]]) for x in (s, t))
        m = (p + q) / 2
        jsd = 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
        each.append(jsd * min(10.0, max(0.4, math.exp(float(c.own[i].detach() - c.then[i])))))
    turns = [torch.stack(each[start : start + n]).mean() for start, n in ((0, 5), (5, 4), (9, 3))]
    recipe = load_recipe("hero", {"terms": {"distill": {"support": {"k": k}}}})
    same(recipe, c.batch(), torch.stack(turns).mean(), c.z)
    assert float(torch.stack(turns).mean().detach()) <= 10 * math.log(2)

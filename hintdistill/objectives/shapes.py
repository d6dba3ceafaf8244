"""Define shapes, functions from a score [N] to a weight [N]. A hard gate is a weight in {0, 1}; no shape carries a
gradient.

`valid` [N] marks the tokens that count for quantiles and maxima; `lengths` are the rows of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hintdistill.core import parts
from hintdistill.core.registry import Implementations
from hintdistill.objectives.checks import between, dimensions, rows_fill, same_shape


def _some(x: Tensor, valid: Tensor | None) -> Tensor:
    picked = x if valid is None else x[valid]
    return picked if len(picked) else x


def threshold(x: Tensor, at: float = 0.0, below: bool = False, otherwise: float = 0.0) -> Tensor:
    """Return 1 where x > at (or x < at with `below`), else `otherwise`. SelecTKD: accept → 1, else .01; EDGE-OPD:
    evidence > 0."""
    return torch.where((x < at) if below else (x > at), 1.0, otherwise).to(x)


def threshold_abs(x: Tensor, at: float = 0.0) -> Tensor:
    """Return 1 where |x| > at. RLCSD (arXiv 2606.11709): .02; for error spans also on the evidence (ours)."""
    return (x.abs() > at).to(x)


def dead_zone(x: Tensor, at: float = 0.02) -> Tensor:
    """Return x where |x| > at, 0 elsewhere. RLCSD (arXiv 2606.11709) on its residual: values up to .02 change no
    advantage."""
    return torch.where(x.abs() > at, x, 0.0)


def equals(x: Tensor, value: float = 1.0) -> Tensor:
    """Return 1 where x = value."""
    return (x == value).to(x)


def top_frac(x: Tensor, rho: float = 0.2, *, valid: Tensor | None = None) -> Tensor:
    """Return 1 on the ceil(ρn) largest of the valid tokens; ties go to the earlier token. TA-OPD .05, TIP .5,
    Revisiting .2."""
    between(0, 1, rho=rho)
    valid = torch.ones_like(x, dtype=torch.bool) if valid is None else valid
    n = math.ceil(rho * int(valid.sum()))
    order = x.masked_fill(~valid, -torch.inf).argsort(descending=True, stable=True)[:n]
    return torch.zeros_like(x).index_fill(0, order, 1.0)


def quantile_below(x: Tensor, q: float = 0.2, *, valid: Tensor | None = None) -> Tensor:
    """Return 0 below the q-quantile, 1 from there on. FiRe (arXiv 2606.02684) on rows: mean log T at or above its
    P20."""
    return (x >= _some(x, valid).quantile(q)).to(x)


def bernoulli(
    x: Tensor, *, lengths: Sequence[int] = (), generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> Tensor:
    """Return 1 with probability min(1, x). TrOPD (arXiv 2606.01249) on T(y)/S(y).

    With a generator for each row, a row's draws do not depend on the other rows of the batch.
    """
    share = x.clamp(0, 1)
    if generator is None or isinstance(generator, torch.Generator):
        return torch.bernoulli(share, generator=generator)
    rows = zip(share.split(list(lengths)), generator, strict=True)
    return torch.cat([torch.bernoulli(row.cpu(), generator=own).to(x) for row, own in rows])


def sigmoid(x: Tensor, beta: float = 1.0) -> Tensor:
    """Return σ(βx). SDAR (arXiv 2605.15155): β = 5 on the gap."""
    return (beta * x).sigmoid()


def exp_clip(x: Tensor, low: float = 0.8, high: float = 1.2) -> Tensor:
    """Return exp(x) limited to [low, high]. RLSD (arXiv 2604.03128)."""
    return x.exp().clamp(low, high)


def sigmoid_clip(x: Tensor, alpha: float = 0.2) -> Tensor:
    """Return 2σ(x) limited to 1±α. StepOPSD (arXiv 2605.27140)."""
    return (2 * x.sigmoid()).clamp(1 - alpha, 1 + alpha)


def saturate(x: Tensor, c: float | None = None, *, valid: Tensor | None = None) -> Tensor:
    """Return x/(x+c), which is in [0, 1) and ½ at x = c; c = max(P75, 1e-4) by default. SC-GRPO (arXiv 2606.18810)."""
    c = c if c is not None else max(float(_some(x, valid).quantile(0.75)), 1e-4)
    return x / (x + c)


def affine(x: Tensor, alpha: float = 1.0, flip: bool = False, *, valid: Tensor | None = None) -> Tensor:
    """Return 1 + α·x/max x, or 1 + α·(1 - x/max x) with `flip`. FiRe (arXiv 2606.02684)."""
    share = x / _some(x, valid).max().clamp(min=1e-12)
    return 1 + alpha * (1 - share if flip else share)


def robust01(x: Tensor, low: float = 0.05, high: float = 0.95, *, valid: Tensor | None = None) -> Tensor:
    """Return x scaled so that its low and high quantiles become 0 and 1, clamped. TA-OPD (arXiv 2605.26844)."""
    a, b = _some(x, valid).quantile(low), _some(x, valid).quantile(high)
    return ((x - a) / (b - a).clamp(min=1e-12)).clamp(0, 1)


def minmax01(x: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Return x scaled to [0, 1] by its least and greatest value. TIP (arXiv 2604.14084)."""
    some = _some(x, valid)
    return ((x - some.min()) / (some.max() - some.min()).clamp(min=1e-12)).clamp(0, 1)


def soft_or(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b - ab, for a and b in [0, 1]. TIP (arXiv 2604.14084)."""
    same_shape(a=a, b=b)
    return a + b - a * b


def tanh(x: Tensor, tau: float = 1.0, scale: float = 1.0) -> Tensor:
    """Return scale·tanh(x/τ). RLCSD (arXiv 2606.11709): τ = .03 in the released loss, .02 in its run files, scale
    .5."""
    return scale * (x / tau).tanh()


def low_entropy_sign(x: Tensor, q: float = 0.2, *, valid: Tensor | None = None) -> Tensor:
    """Return tanh((P_q(x) - x)/mean |x - mean x|): positive below the q-quantile, negative above. DASD (arXiv
    2605.22263) on H_S."""
    some = _some(x, valid)
    spread = (some - some.mean()).abs().mean().clamp(min=1e-12)
    return ((some.quantile(q) - x) / spread).tanh()


def median_sigmoid(x: Tensor, shift: float = 1.0, eps: float = 1e-6, *, valid: Tensor | None = None) -> Tensor:
    """Return σ(|x|/(median |x| + ε) - shift). DASD (arXiv 2605.22263) on the gap."""
    return (x.abs() / (_some(x, valid).abs().median() + eps) - shift).sigmoid()


def median_scale(x: Tensor, eps: float = 1e-6, *, valid: Tensor | None = None) -> Tensor:
    """Return x/(median |x| + ε). DASD (arXiv 2605.22263) on the gap, there per trajectory."""
    return x / (_some(x, valid).abs().median() + eps)


def geom(x: Tensor, gamma: float = 0.8) -> Tensor:
    """Return γ^x from the error on, 1 before it (x negative). Draft-OPD (arXiv 2605.29343), γ = .8."""
    return gamma ** x.clamp(min=0)


def logistic_pos(x: Tensor, w_min: float = 0.25, centre: float = 0.30, scale: float = 0.10) -> Tensor:
    """Return w_min + (1 - w_min)·σ((x - centre)/scale) of the position in (0, 1). PW-OPSD: late tokens count more."""
    return w_min + (1 - w_min) * ((x - centre) / scale).sigmoid()


def cum_drop(x: Tensor, below: float = 0.7, step: float = 0.01, base: float = 0.5, *, lengths: Sequence[int]) -> Tensor:
    """Return clip(1 - step·(events so far in the row), 0, 1) + base, where an event is x < below. Prune-OPD (arXiv
    2605.07804)."""
    events = torch.cat([(v < below).cumsum(0) for v in x.split(list(lengths))])
    return ((1 - step * events).clamp(0, 1) + base).to(x)


def first_n(x: Tensor, n: float = 100) -> Tensor:
    """Return 1 where the index (from 1) is at most n. ESR (arXiv 2605.27028): 100; also ADWIN's window."""
    return (x <= n).to(x)


def last_n(x: Tensor, n: float = 100, *, lengths: Sequence[int]) -> Tensor:
    """Return 1 on the last n tokens of each row, whatever the score. OPRD (arXiv 2606.06021) on hidden states."""
    return torch.cat([(torch.arange(len(v), 0, -1, device=x.device) <= n) for v in x.split(list(lengths))]).to(x)


def skip_n(x: Tensor, n: float = 0) -> Tensor:
    """Return 0 on the first n tokens of a row, 1 elsewhere. SDFT (arXiv 2601.19897)."""
    return (x > n).to(x)


def rolling_stop(
    x: Tensor,
    window: int = 64,
    level: float | None = None,
    eta: float = 0.3,
    patience: int = 4,
    skip: int = 16,
    *,
    lengths: Sequence[int],
) -> Tensor:
    """Return 0 from the first of `patience` consecutive windows whose mean is below the level. KAT (arXiv 2606.09471).

    The level is the (1-η)-quantile of each row's lowest window mean, over this batch, unless it is passed (KAT uses a
    buffer of the last 4096 rows). The first `skip` tokens are exempt.
    """
    means = [_rolling_mean(row, window) for row in x.split(list(lengths))]
    if level is None:
        lowest = torch.stack([m[skip:].min() if len(m) > skip else m.min() for m in means])
        level = float(lowest.quantile(1 - eta))
    out = []
    for mean in means:
        keep, run = torch.ones_like(mean), 0
        for i in range(skip, len(mean)):
            run = run + 1 if mean[i] < level else 0
            if run == patience:
                keep[i - patience + 1 :] = 0
                break
        out.append(keep)
    return torch.cat(out)


def _rolling_mean(x: Tensor, window: int) -> Tensor:
    total = torch.cat([x.new_zeros(1), x.cumsum(0)])
    ends = torch.arange(1, len(x) + 1, device=x.device)
    starts = (ends - window).clamp(min=0)
    return (total[ends] - total[starts]) / (ends - starts)


def freeze(x: Tensor, ids: Sequence[int] = (), weight: float = 0.0) -> Tensor:
    """Return `weight` on the listed token ids, 1 elsewhere. Rock tokens (arXiv 2605.09253); special tokens likewise."""
    hit = torch.isin(x.long(), torch.tensor(list(ids), dtype=torch.long, device=x.device))
    return torch.where(hit, weight, 1.0).to(x)


def sign_gate(x: Tensor, agree: float = 1.8, disagree: float = 1.0) -> Tensor:
    """Return `agree` where x > 0 (teacher and verifier have the same sign), `disagree` elsewhere. SG-OPD (arXiv
    2606.09304), reading (a)."""
    return torch.where(x > 0, agree, disagree).to(x)


def rank_softmax(x: Tensor, tau: float = 1.0, *, lengths: Sequence[int]) -> Tensor:
    """Return x^(1/τ)/Σ over rows times the number of rows, where x is one value per row, spread over its tokens. SCOPE
    (arXiv 2604.10688) on ppl.

    τ < 0 prefers small values: ppl_T^(-1/τ) is `tau: -1`.
    """
    ends = torch.tensor(list(lengths), device=x.device).cumsum(0) - 1
    share = (x[ends].log() / tau).softmax(0) * len(ends)
    return share.repeat_interleave(torch.tensor(list(lengths), device=x.device))


def set_softmax(x: Tensor, tau: float = 1.0) -> Tensor:
    """Return n·x^(1/τ)/Σ over a set of n rollouts, for the first of each set: [N, M] → [N]; NaN pads the sets.

    SCOPE (arXiv 2604.10688) on the perplexities of one prompt's correct rollouts, or of its wrong ones; τ < 0 prefers small values.
    """
    there = ~x.isnan()
    logits = torch.where(there, x, 1.0).log() / tau
    return logits.masked_fill(~there, -torch.inf).softmax(-1)[:, 0] * there.sum(-1)


def exp_decay(x: Tensor, kappa: float = 2.0) -> Tensor:
    """Return min(1, exp(-(x - κ))): plausible tokens keep their weight, spikes lose it. Ours, after Pedagogical RL's
    surprisal gate."""
    return (-(x - kappa).clamp(min=0)).exp()


def frontier(x: Tensor) -> Tensor:
    """Return 4p(1-p) of the group's accuracy. SSOPD."""
    return 4 * x * (1 - x)


def frontier_root(x: Tensor) -> Tensor:
    """Return √(p(1-p)) of the group's accuracy. SC-SDPO."""
    return (x * (1 - x)).clamp(min=0).sqrt()


def clamp(x: Tensor, low: float = 0.0, high: float = 2.0) -> Tensor:
    """Return x limited to [low, high]. Importance weights: SDPO at most 2, HERO (arXiv 2606.11559) within [.4, 10]."""
    return x.clamp(low, high)


def identity(x: Tensor, power: float = 1.0) -> Tensor:
    """Return x^power."""
    return x**power


SHAPES: Mapping[str, Callable[..., Tensor]] = Implementations(parts.SHAPES)
"""Functions of the registered shapes."""
CONTEXT = ("valid", "lengths", "generator")
"""Arguments that come from the batch, not from the recipe."""


def apply(name: str, x: Tensor, parameters: dict[str, Any], **context: Any) -> tuple[Tensor, dict[str, float]]:
    """Apply the shape with this name to a score [N], or [N, M] for one that reads sets. `context` holds `valid`,
    `lengths` and `generator` if the shape takes them.

    Returns:
        Weights [N], and metrics over the valid tokens: `weight_mean`, and `weight_zero`, the share with weight zero.

    Raises KeyError for an unknown name, ValueError if the shapes of the score, `valid` and `lengths` do not match.
    """
    function = SHAPES[name]
    dimensions(2 if parts.SHAPES.get(name).reads_set else 1, score=x)
    same_shape(score=x if x.ndim == 1 else x[:, 0], valid=context.get("valid"))
    if context.get("lengths") is not None:
        rows_fill(len(x), context["lengths"])
    wanted = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
    weight = function(x, **parameters, **{k: v for k, v in context.items() if k in wanted})
    of = _some(weight.detach(), context.get("valid"))
    if not of.numel():
        return weight, {"weight_mean": 0.0, "weight_zero": 0.0}
    return weight, {"weight_mean": float(of.mean()), "weight_zero": float((of == 0).float().mean())}

"""Compute scores of each token from the views of one batch, detached, once and on demand.

Every published token weighting is a shape of one of these scores. The names follow the methods: S is the student, T the
target of the term (often the teacher), y the sampled token. Scores that no view provides (a reward, a group's accuracy,
the distance from the error) are facts, which the caller supplies under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hintdistill.objectives.divergences import rkl
from hintdistill.objectives.supports import gather_with_tail, restrict, union_of


def entropy(logprobs: Tensor) -> Tensor:
    """Return the entropy [..., V] → [...], nats."""
    present = logprobs > -torch.inf
    return -torch.where(present, logprobs.exp() * torch.where(present, logprobs, 0.0), 0.0).sum(-1)


def at(logprobs: Tensor, sampled: Tensor) -> Tensor:
    """Return the log-probabilities of the sampled ids: [N, V], [N] → [N]."""
    return logprobs.gather(-1, sampled[:, None])[:, 0]


def compat(student: Tensor, target: Tensor, k: int) -> Tensor:
    """Return the sum of T over the student's top-k, i.e. how teachable a position is. TA-OPD (arXiv 2605.26844)."""
    return target.gather(-1, student.topk(min(k, student.shape[-1])).indices).exp().sum(-1)


def overlap(student: Tensor, target: Tensor, k: int) -> Tensor:
    """Return |top-k of S ∩ top-k of T| / k. Prune-OPD (arXiv 2605.07804)."""
    k = min(k, student.shape[-1])
    a, b = student.topk(k).indices, target.topk(k).indices
    return (a[..., :, None] == b[..., None, :]).any(-1).float().mean(-1)


def disagreement(views: Sequence[Tensor], sampled: Tensor) -> Tensor:
    """Return the standard deviation of log T(y) over teacher views, nats. After RAPS-DA (arXiv 2606.30518), which gives
    no formula."""
    return torch.stack([at(v, sampled) for v in views]).std(0, unbiased=False)


RECORDED = "recorded"
"""The fact that holds each token's log-probability at the time of sampling, temperature 1, nats."""


class ScoreBank:
    """Provide the scores [N] of one batch and one term, each computed on first access."""

    def __init__(
        self,
        views: Mapping[str, Tensor],
        target: Tensor,
        sampled: Tensor,
        lengths: Sequence[int],
        facts: Mapping[str, Tensor] | None = None,
        *,
        student: str = "student",
        k: int = 16,
        position: int = 1,
    ) -> None:
        """Bind the scores to a batch. `k` is for scores that use a top-k (published: 16); `position` is the first index
        (1)."""
        self.views = {n: v.detach() for n, v in views.items()}
        self.s, self.t = self.views[student], target.detach()
        self.y, self.lengths, self.k, self.facts = sampled, list(lengths), k, dict(facts or {})
        self.first = position
        self._known: dict[str, Tensor] = {}

    @property
    def own(self) -> Tensor:
        """The student's log-probability of each sampled token [N]."""
        return at(self.s, self.y)

    @property
    def theirs(self) -> Tensor:
        """The target's log-probability of each sampled token [N]."""
        return at(self.t, self.y)

    def __getitem__(self, name: str) -> Tensor:
        """Return the score [N]. Raises KeyError for a name that is neither a computed score nor a fact."""
        if name not in self._known:
            if name in self.facts:
                value = self.per_token(self.facts[name])
            elif name in SCORES:
                value = SCORES[name](self)
            else:
                raise KeyError(
                    f"no score {name!r}: not computed, and not among the facts {', '.join(self.facts) or '-'}"
                )
            self._known[name] = value.detach().to(self.s.dtype)
        return self._known[name]

    def per_token(self, value: Tensor) -> Tensor:
        """Return a fact per row [R] spread over the row's tokens, or a fact per token [N] unchanged."""
        if len(value) == len(self.y):
            return value
        if len(value) != len(self.lengths):
            raise ValueError(
                f"a fact has {len(value)} values; the batch has {len(self.lengths)} rows, {len(self.y)} tokens"
            )
        return value.repeat_interleave(torch.tensor(self.lengths, device=value.device), dim=0)

    def row_mean(self, value: Tensor) -> Tensor:
        """Return the mean over each row, spread over its tokens [N]."""
        return torch.cat([v.mean().expand(len(v)) for v in value.split(self.lengths)])

    def index(self) -> Tensor:
        """Return the position within the row, counted from 1 [N]."""
        return torch.cat([torch.arange(self.first, n + self.first, device=self.y.device) for n in self.lengths])

    def view(self, name: str) -> Tensor:
        """Return a view by name. Raises KeyError, naming it, if it is missing."""
        if name not in self.views:
            raise KeyError(f"this score needs the view {name!r}")
        return self.views[name]

    def recorded(self) -> Tensor:
        """Return the log-probability of each token at the time of sampling [N]: the fact `recorded`, or else the
        initial policy's."""
        if RECORDED in self.facts:
            return self.per_token(self.facts[RECORDED]).to(self.s)
        return at(self.view("initial"), self.y)

    def numbered(self, stem: str) -> list[Tensor]:
        """Return the views `stem`, `stem_1`, `stem_2`, …: several hints of one kind."""
        return [v for n, v in self.views.items() if n == stem or n.startswith(f"{stem}_")]


def _contrast(b: ScoreBank) -> Tensor:
    """Return e = log T(y|right) - log mean_k T(y|wrong_k), the mean over probabilities. RLCSD (arXiv 2606.11709), as in
    its code. A wrong view of -inf is a context that the token's row lacks; the mean is over the existing ones. Raises
    ValueError if a row has no wrong context.
    """
    wrong = b.numbered("wrong")
    if not wrong:
        raise KeyError("the score `contrast` needs views `wrong` or `wrong_1`, `wrong_2`, …")
    each = torch.stack([at(w, b.y) for w in wrong])
    there = (each > -torch.inf).sum(0)
    if not bool((there > 0).all()):
        raise ValueError("the score `contrast` needs a wrong context for every row, but a row has none")
    return at(b.view("teacher"), b.y) - (each.logsumexp(0) - there.to(each).log())


def _union_divergence(b: ScoreBank) -> Tensor:
    """Return KL(T̄ ‖ S̄) on the union of both top-k, renormalised. TA-OPD (arXiv 2605.26844)."""
    k = min(b.k, b.s.shape[-1])
    ids = union_of(b.s.topk(k).indices, b.t.topk(k).indices)
    return rkl(restrict(b.t, ids, "renorm"), restrict(b.s, ids, "renorm"))


def _rolling_divergence(b: ScoreBank) -> Tensor:
    """Return the reverse KL on the student's top-64 with a tail, as in the agreement-trap gate. KAT (arXiv
    2606.09471)."""
    ids = b.s.topk(min(64, b.s.shape[-1])).indices
    return rkl(gather_with_tail(b.s, ids), gather_with_tail(b.t, ids))


SCORES: dict[str, Callable[[ScoreBank], Tensor]] = {
    "one": lambda b: torch.ones_like(b.s[:, 0]),
    "importance": lambda b: (at(b.s, b.y) - b.recorded()).clamp(-20, 20).exp(),
    "adv_sign": lambda b: b["advantage"].sign(),
    "H_S": lambda b: entropy(b.s),
    "H_T": lambda b: entropy(b.t),
    "gap": lambda b: at(b.t, b.y) - at(b.s, b.y),
    "ratio": lambda b: (at(b.t, b.y) - at(b.s, b.y)).exp(),
    "surprisal": lambda b: -at(b.s, b.y),
    "evidence": lambda b: at(b.view("teacher"), b.y) - at(b.view("plain"), b.y),
    "contrast": _contrast,
    "div": lambda b: rkl(b.s, b.t),
    "div_forward": lambda b: rkl(b.t, b.s),
    "div_union": _union_divergence,
    "div_tail64": _rolling_divergence,
    "compat": lambda b: compat(b.s, b.t, b.k),
    "overlap": lambda b: overlap(b.s, b.t, b.k),
    "accept": lambda b: (b.t.topk(min(5, b.t.shape[-1])).indices == b.y[:, None]).any(-1),
    "disagree": lambda b: disagreement(b.numbered("teacher"), b.y),
    "teacher_max": lambda b: b.t.max(-1).values.exp(),
    "pos": lambda b: (b.index() - 0.5) / b.per_token(torch.tensor(b.lengths, device=b.y.device)),
    "index": lambda b: b.index(),
    "token_id": lambda b: b.y,
    "mean_logT": lambda b: b.row_mean(at(b.t, b.y)),
    "ppl_S": lambda b: b.row_mean(-at(b.s, b.y)).exp(),
    "ppl_T": lambda b: b.row_mean(-at(b.t, b.y)).exp(),
}
"""Scores by name. `importance` divides by the sampling policy, see `ScoreBank.recorded`. Entropies and divergences are
in nats, `pos` is in (0, 1), `index` starts at 1; the functions describe the others."""

FACTS = (
    "in_quote",
    "since_error",
    "advantage",
    "reward",
    "group_acc",
    "key_span",
    "error_span",
    "rollout_ppl_S",
    "rollout_ppl_T",
)
"""Facts that only the caller knows: [N] or [R]. `rollout_ppl_S`, `rollout_ppl_T`: [R, M], perplexity of a row's whole
rollout at the time of sampling, under the student and the teacher, followed by those of its task's other rollouts with
the same outcome, padded with NaN. `since_error` counts from the first quoted token (negative before it)."""

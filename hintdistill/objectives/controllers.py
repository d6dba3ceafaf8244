"""Controllers: small states that watch a training and move a scalar, a window or the teacher. No gradients, no tensors kept
on a device. A training loop calls them; nothing here calls anything."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field


def cliff_lambda(p: float, b: float, c: float) -> float:
    """λ*, below which extrapolation (teacher λ, initial 1-λ) keeps structural tokens within the clip-safe region.

    p, b: modal probability of teacher and initial policy at structural tokens (tool-call syntax); c: clip of the
    importance ratio. λ* = [log((1-p)/(c-1+p)) - log((1-b)/b)]/[log((1-p)/p) - log((1-b)/b)]. arXiv 2605.08737. λ*(.9993, .81,
    5) = 1.2769. Raises ValueError unless 0 < b < p < 1 and c > 1.
    """
    if not (0 < b < p < 1 and c > 1):
        raise ValueError(f"need 0 < b < p < 1 and c > 1, not p={p}, b={b}, c={c}")
    odds_b = math.log((1 - b) / b)
    return (math.log((1 - p) / (c - 1 + p)) - odds_b) / (math.log((1 - p) / p) - odds_b)


@dataclass
class Cgtr:
    """When to copy the student into the teacher: isolated long enough, reward up, lengths sane. CGTR (arXiv 2606.03532).

    Where there is no reward, the repair rate on held-out findings takes its place (ours).
    """

    isolation: int = 30
    margin: float = 0.05
    tail: float = 3.2
    every: int = 5
    last: int = 0
    reference: float = -math.inf
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=5))

    def refresh(self, step: int, reward: float, longest: float, mean_length: float) -> bool:
        """Return whether to refresh at this step; the reward to beat then rises to the present mean of the last
        five."""
        self.recent.append(reward)
        mean = sum(self.recent) / len(self.recent)
        if self.reference == -math.inf:
            self.reference = mean
        due = step % self.every == 0 and step - self.last >= self.isolation
        if not (due and mean > self.reference + self.margin and longest / mean_length < self.tail):
            return False
        self.last, self.reference = step, mean
        return True


@dataclass
class KatBuffer:
    """The level below which agreement is called false: the (1-η)-quantile of each rollout's lowest window mean, first in
    first out. KAT (arXiv 2606.09471): 4096 kept, 512 needed, 50 steps of warm-up."""

    eta: float = 0.3
    size: int = 4096
    needed: int = 512
    warmup: int = 50
    minima: deque[float] = field(default_factory=deque)

    def add(self, minimum: float) -> None:
        """One rollout's lowest rolling mean."""
        self.minima.append(minimum)
        while len(self.minima) > self.size:
            self.minima.popleft()

    def level(self, step: int) -> float | None:
        """Return the level, nats; None while it may not act."""
        if step < self.warmup or len(self.minima) < self.needed:
            return None
        ordered = sorted(self.minima)
        return ordered[min(len(ordered) - 1, math.floor((1 - self.eta) * len(ordered)))]


@dataclass
class AdwinWindow:
    """How many first tokens are trained on, by how well their gradient agrees with the full one. ADWIN (arXiv 2605.28396); the
    numbers are ours."""

    n: float = 100.0
    low: float = 0.7
    high: float = 0.9
    factor: float = 1.5
    fresh: int = 20
    good: int = 0

    def probe(self, cosine: float, age: int) -> float:
        """Return one audit: cosine of prefix and full gradient, `age` steps old; returns the window."""
        if age > self.fresh:
            return self.n
        if cosine < self.low:
            self.n, self.good = self.n * self.factor, 0
        elif cosine > self.high:
            self.good += 1
            if self.good == 2:
                self.n, self.good = max(1.0, self.n / self.factor), 0
        else:
            self.good = 0
        return self.n


@dataclass
class PruneLength:
    """How long rollouts may be, by how many are still worth their tokens at the end. Prune-OPD (arXiv 2605.07804): ±100
    tokens, hit ratio .1, patience 3; that hits lengthen and their absence shortens is our reading.

    A rollout hits the budget if it is that long and its overlap weight (`shapes.cum_drop`) has not run down.
    """

    budget: int = 1000
    change: int = 100
    ratio: float = 0.1
    patience: int = 3
    least: int = 100
    run: int = 0

    def update(self, hits: float) -> int:
        """Return one batch's share of rollouts that hit the budget; returns the budget to use, tokens."""
        direction = 1 if hits >= self.ratio else -1
        self.run = self.run + direction if self.run * direction >= 0 else direction
        if abs(self.run) == self.patience:
            self.budget, self.run = max(self.least, self.budget + direction * self.change), 0
        return self.budget


@dataclass
class BlendBudget:
    """The KL that a blended behaviour may spend at a step, nats per token: ε_k = ε₀·(1 - k/K). TRB (arXiv 2605.31159): ε₀ of
    .001 to .05, K of 15 to 50; `targets.bridge_beta` spends it."""

    first: float = 0.01
    steps: int = 25

    def budget(self, step: int) -> float:
        """ε at an optimiser step, from 0."""
        return self.first * max(0.0, 1 - step / self.steps)


@dataclass
class CliffGuard:
    """Refuses an extrapolation that breaks syntax: λ must stay below λ*(p, b, c). arXiv 2605.08737; the margin is ours."""

    clip: float = 5.0
    margin: float = 0.0

    def check(self, lam: float, p: float, b: float) -> float:
        """λ*, from modal probabilities at structural tokens. Raises ValueError naming both if λ is not below it."""
        star = cliff_lambda(p, b, self.clip)
        if lam >= star - self.margin:
            raise ValueError(
                f"λ = {lam:g} is not below λ* = {star:.4g}; structural tokens would leave the clip-safe region"
            )
        return star


@dataclass
class LengthCurriculum:
    """The next training length once the held-out entropy has recovered. Decoupling (arXiv 2605.16826)."""

    lengths: tuple[int, ...]
    minimum: float
    at: int = 0

    def advance(self, entropy: float) -> int:
        """Return the length to use, tokens, after a held-out entropy in nats."""
        if entropy >= self.minimum and self.at < len(self.lengths) - 1:
            self.at += 1
        return self.lengths[self.at]


@dataclass
class HardPromptReplay:
    """Tasks that are failed often come back until they are not. ZPPO (arXiv 2606.18216): in below .5, out from .5."""

    size: int = 256
    admit: float = 0.5
    accuracy: OrderedDict[Hashable, float] = field(default_factory=OrderedDict)

    def update(self, task: Hashable, accuracy: float) -> None:
        """Admit or graduate one task by its mean rollout accuracy; the oldest leaves when there is no room."""
        if accuracy >= self.admit:
            self.accuracy.pop(task, None)
            return
        self.accuracy[task] = accuracy
        while len(self.accuracy) > self.size:
            self.accuracy.popitem(last=False)

    def tasks(self) -> list[Hashable]:
        """Return the tasks to replay, the oldest first."""
        return list(self.accuracy)


CONTROLLERS = {
    "cgtr": Cgtr,
    "kat_buffer": KatBuffer,
    "adwin_window": AdwinWindow,
    "prune_length": PruneLength,
    "entropy_length_curriculum": LengthCurriculum,
    "trb_budget": BlendBudget,
    "lambda_cliff_guard": CliffGuard,
}
"""What the controllers a recipe names are."""

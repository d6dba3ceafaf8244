"""Define controllers: small state machines that monitor training and adjust a scalar, a window or the teacher. They use
no gradients and keep no tensors on a device. A training loop calls them; they call nothing."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field


def cliff_lambda(p: float, b: float, c: float) -> float:
    """Return λ*, the bound below which extrapolation (teacher λ, initial 1-λ) keeps structural tokens in the clip-safe
    region.

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
    """Decide when to copy the student into the teacher: after enough steps, with a higher reward and normal lengths.
    CGTR (arXiv 2606.03532).

    Without a reward, the repair rate on held-out findings replaces it (ours).
    """

    isolation: int = 30
    margin: float = 0.05
    tail: float = 3.2
    every: int = 5
    last: int = 0
    reference: float = -math.inf
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=5))

    def refresh(self, step: int, reward: float, longest: float, mean_length: float) -> bool:
        """Return whether to refresh at this step. After a refresh, the reward to beat is the mean of the last five
        rewards."""
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
    """Keep the level below which agreement counts as false: the (1-η)-quantile of each rollout's lowest window mean,
    over a first-in-first-out buffer. KAT (arXiv 2606.09471): the buffer holds 4096 values, needs 512, and starts after
    50 steps of warm-up."""

    eta: float = 0.3
    size: int = 4096
    needed: int = 512
    warmup: int = 50
    minima: deque[float] = field(default_factory=deque)

    def add(self, minimum: float) -> None:
        """Add one rollout's lowest rolling mean."""
        self.minima.append(minimum)
        while len(self.minima) > self.size:
            self.minima.popleft()

    def level(self, step: int) -> float | None:
        """Return the level in nats; None as long as it must not be used."""
        if step < self.warmup or len(self.minima) < self.needed:
            return None
        ordered = sorted(self.minima)
        return ordered[min(len(ordered) - 1, math.floor((1 - self.eta) * len(ordered)))]


@dataclass
class AdwinWindow:
    """Choose how many first tokens to train on, from the agreement of their gradient with the full gradient. ADWIN
    (arXiv 2605.28396); the numbers are ours."""

    n: float = 100.0
    low: float = 0.7
    high: float = 0.9
    factor: float = 1.5
    fresh: int = 20
    good: int = 0

    def probe(self, cosine: float, age: int) -> float:
        """Process one audit, the cosine of prefix and full gradient, `age` steps old; return the window."""
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
    """Choose the length of rollouts from the share of rollouts that still earn weight at the end. Prune-OPD (arXiv
    2605.07804): ±100 tokens, hit ratio .1, patience 3; longer after hits and shorter without is our reading. A rollout
    hits the budget if it reaches that length before its overlap weight (`shapes.cum_drop`) falls to zero.
    """

    budget: int = 1000
    change: int = 100
    ratio: float = 0.1
    patience: int = 3
    least: int = 100
    run: int = 0

    def update(self, hits: float) -> int:
        """Process one batch's share of rollouts that hit the budget; return the new budget in tokens."""
        direction = 1 if hits >= self.ratio else -1
        self.run = self.run + direction if self.run * direction >= 0 else direction
        if abs(self.run) == self.patience:
            self.budget, self.run = max(self.least, self.budget + direction * self.change), 0
        return self.budget


@dataclass
class BlendBudget:
    """Limit the KL that a blended behaviour may use at a step, nats per token: ε_k = ε₀·(1 - k/K). TRB (arXiv
    2605.31159): ε₀ of .001 to .05, K of 15 to 50; `targets.bridge_beta` uses it."""

    first: float = 0.01
    steps: int = 25

    def budget(self, step: int) -> float:
        """Return ε at an optimiser step, counted from 0."""
        return self.first * max(0.0, 1 - step / self.steps)


@dataclass
class CliffGuard:
    """Refuse an extrapolation that breaks syntax: λ must stay below λ*(p, b, c). arXiv 2605.08737; the margin is
    ours."""

    clip: float = 5.0
    margin: float = 0.0

    def check(self, lam: float, p: float, b: float) -> float:
        """Return λ*, from modal probabilities at structural tokens. Raises ValueError, naming both, if λ is not below
        it."""
        star = cliff_lambda(p, b, self.clip)
        if lam >= star - self.margin:
            raise ValueError(
                f"λ = {lam:g} is not below λ* = {star:.4g}; structural tokens would leave the clip-safe region"
            )
        return star


@dataclass
class LengthCurriculum:
    """Choose the next training length once the held-out entropy has recovered. Decoupling (arXiv 2605.16826)."""

    lengths: tuple[int, ...]
    minimum: float
    at: int = 0

    def advance(self, entropy: float) -> int:
        """Return the training length in tokens, given a held-out entropy in nats."""
        if entropy >= self.minimum and self.at < len(self.lengths) - 1:
            self.at += 1
        return self.lengths[self.at]


@dataclass
class HardPromptReplay:
    """Replay tasks that fail often until they succeed. ZPPO (arXiv 2606.18216): added below .5, removed from .5 on."""

    size: int = 256
    admit: float = 0.5
    accuracy: OrderedDict[Hashable, float] = field(default_factory=OrderedDict)

    def update(self, task: Hashable, accuracy: float) -> None:
        """Add or remove one task by its mean rollout accuracy; if there is no room, the oldest leaves."""
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
"""Controllers by the names that recipes use."""

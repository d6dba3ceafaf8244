"""Controllers: small states that watch a training and decide about the teacher. No gradients, no tensors kept on a device.

`training.teacher` calls them; nothing here calls anything.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


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

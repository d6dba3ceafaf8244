"""Define controllers: small state machines that monitor training and decide about the teacher.

They use no gradients and keep no tensors on a device. `training.teacher` calls them; they call nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


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

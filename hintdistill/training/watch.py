"""Measure, on steps that are not trained on, how far the student has moved from the weights that scored them.

There are two sets: *off target* (clean steps of training traces that are not anchors) and *held-out clean traces*. The
initial policy's scores of them are stored, so a measurement is one pass of the student without gradient, and nothing in
it is random: the same training with and without a watch ends with the same weights, bit for bit. Every process reads
all of it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hintdistill.config import TrainSection, WatchSection
from hintdistill.core.scores import Target
from hintdistill.objectives import fkl, gather_with_tail
from hintdistill.rescoring.stored import by_key, heads, take
from hintdistill.training.losses import OutputHead
from hintdistill.training.passes import Passes, places
from hintdistill.training.rows import TraceRow, watch_rows
from hintdistill.training.slots import Slot
from hintdistill.training.views import sampled, supports, wide

POSITIONS = 256
"""Number of positions whose whole distributions exist at one time."""


@dataclass(frozen=True)
class WatchSets:
    """Hold the steps that are measured during training, and never trained on."""

    off_target: Sequence[Target] = ()
    """Clean steps of training traces."""
    heldout: Sequence[Target] = ()
    """Steps of held-out traces without a finding."""
    from_initial: bool = True
    """Whether the stored plain views of the trained rows are the initial policy's; those of watched steps always
    are."""


NOTHING = WatchSets()


def subsample(targets: Sequence[Target], steps: int, seed: int) -> Sequence[Target]:
    """Return at most `steps` of the targets, in order of their keys, trace by trace, because a trace is read once for
    all its steps.

    The selection for a seed is unaffected if targets outside it are added or removed.
    """

    def rank(number: int) -> tuple[float, str, int, str]:
        head = known[number]
        return random.Random(f"watch:{seed}:{head.trace_id}").random(), head.trace_id, head.step, head.key

    known = heads(targets)
    return by_key(take(targets, sorted(range(len(known)), key=rank)[:steps]))


class Watch:
    """Measure the two sets."""

    def __init__(self, sets: WatchSets, section: WatchSection, logging_steps: int, seed: int) -> None:
        self.every = logging_steps if section.every is None else section.every
        self.logging_steps, self.last = logging_steps, -1
        chosen = {"off_target": sets.off_target, "heldout": sets.heldout} if self.every else {}
        rows = {name: watch_rows(subsample(of, section.steps, seed)) for name, of in chosen.items()}
        self.rows = {name: of for name, of in rows.items() if of}
        """Rows by set; a set without steps is absent."""

    def due(self, step: int, last: bool) -> bool:
        """Return whether to measure after optimiser step `step`, which is a logging step or the `last` one."""
        if not self.rows or step == self.last:
            return False
        return last or step // self.every > (step - self.logging_steps) // self.every

    @torch.no_grad()
    def read(self, step: int, model: Any, passes: Passes, head: OutputHead) -> dict[str, float]:
        """Return the watch's measurements as named in docs/metrics.md; training mode and random state are unchanged."""
        self.last, training = step, model.training
        model.eval()
        try:
            found = {name: self._set(of, model, passes, head) for name, of in self.rows.items()}
        finally:
            model.train(training)
        out: dict[str, float] = {}
        for name, mean in found.items():
            out |= {f"{name}_kl": mean["kl"], f"{name}_flips": mean["flips"]}
        if "off_target" in found:
            mean = found["off_target"]
            out["entropy/off_target"] = mean["entropy"]
            out["entropy_ratio"] = mean["lumped"] / mean["lumped_before"] if mean["lumped_before"] else 1.0
            out |= {"end_probability": mean["end"], "end_drop": mean["end_before"] - mean["end"]}
        return out

    def _set(self, rows: Sequence[TraceRow], model: Any, passes: Passes, head: OutputHead) -> dict[str, float]:
        """Return means over one set: over tokens, and over steps for the probability of ending one."""
        placed = places(rows)
        # without gradient rows may share what they begin with, e.g. the tool schemas
        each = _read([s for _, s in placed], passes.apart(model, placed, "plain"), head)
        return {name: float(values.double().mean()) for name, values in each.items()}


def _read(slots: Sequence[Slot], hidden: Mapping[str, Tensor], head: OutputHead) -> dict[str, Tensor]:
    """Return, per token [N] or per step [S], the student's distance from the stored distribution, and its entropy."""
    states = torch.cat([hidden[s.key] for s in slots])
    device = states.device
    ids, said = supports(slots, device), sampled(slots, device)
    before = wide([s.plain for s in slots], -torch.inf).to(device)
    found: dict[str, list[Tensor]] = {n: [] for n in ("kl", "flips", "entropy", "lumped", "lumped_before", "sampled")}
    for at in torch.arange(len(states), device=device).split(POSITIONS):
        logprobs = head.logprobs(states[at])
        ours = gather_with_tail(logprobs, ids[at])
        top = ids[at].gather(-1, before[at, :-1].argmax(-1, keepdim=True))[:, 0]
        found["kl"].append(fkl(ours, before[at]))
        found["flips"].append((logprobs.argmax(-1) != top).float())
        found["entropy"].append(entropy(logprobs))
        found["lumped"].append(entropy(ours))
        found["lumped_before"].append(entropy(before[at]))
        found["sampled"].append(logprobs.gather(-1, said[at][:, None])[:, 0])
    each = {name: torch.cat(parts) for name, parts in found.items()}
    ends = torch.tensor([s.length for s in slots], device=device).cumsum(0) - 1
    last = torch.stack([s.plain[s.length - 1, s.columns[s.length - 1]] for s in slots]).to(device)
    return each | {"end": each["sampled"][ends].exp(), "end_before": last.exp()}


def entropy(logprobs: Tensor) -> Tensor:
    """Return the entropy in nats [...] of distributions [..., K] given as log-probabilities; entries of -inf contribute
    nothing."""
    present = logprobs > -torch.inf
    return -(torch.where(present, logprobs.exp(), 0.0) * torch.where(present, logprobs, 0.0)).sum(-1)


def times_watched(train: TrainSection, steps: float) -> int:
    """Return how often training is watched: at logging steps, and after the last step."""
    every = train.logging_steps if train.watch.every is None else train.watch.every
    if every == 0:
        return 0
    last, log = math.ceil(steps), train.logging_steps
    due = [s for s in range(log, last + 1, log) if s // every > (s - log) // every]
    return len(set(due) | {last})

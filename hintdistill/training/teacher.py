"""A teacher that follows the student: a running average (`ema`), a copy every so many steps (`periodic`), or a copy when
it has earned it (`cgtr`).

Only what is trained is kept twice, so that with adapters the base weights are shared. The teacher's tensors take the
student's place for one forward pass without gradient; autograd holds on to the student's own storages meanwhile.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hintdistill.objectives.controllers import Cgtr
from hintdistill.recipes.schema import TeacherRule

FILE = "teacher.safetensors"
GATE = "teacher_gate.json"


@dataclass(frozen=True)
class Reading:
    """What the student does on held-out findings, no hint in its context."""

    repaired: float
    """Mean 1 - p(decision token)."""
    length: float
    """Mean 1 / p(last token of the step): how many times as long a step may be expected to go on."""


class Follower:
    """The following teacher's trained parameters."""

    def __init__(self, model: Any, rule: TeacherRule, read: Callable[[], Reading] | None = None) -> None:
        """`read` takes a reading of the student, for `cgtr`."""
        self.rule, self.read = rule, read
        self._live = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.weights = {n: p.detach().clone() for n, p in self._live.items()}
        self.gate = Cgtr(isolation=rule.isolation, margin=rule.margin, tail=rule.tail, every=rule.every)
        self.first: Reading | None = None
        self.copies = 0

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Follow the student after optimiser step `step` (counted from 1). SDPO .05, HINT-SD .001; RLSD every 10 steps."""
        if self.rule.update == "ema":
            for name, mine in self.weights.items():
                # in the weights' own precision small rates would round away, so the average is kept in float32
                if mine.dtype != torch.float32:
                    mine = self.weights[name] = mine.float()
                mine.lerp_(self._live[name].detach().float(), self.rule.rate)
        elif step % self.rule.every == 0 and (self.rule.update == "periodic" or self._earned(step)):
            self.copies += 1
            for name, mine in self.weights.items():
                mine.copy_(self._live[name])

    def _earned(self, step: int) -> bool:
        """CGTR (arXiv 2606.03532). Repair on held-out findings stands for the reward, and the expected overrun of a step,
        against that at the first reading, for the tail of lengths: both are ours, since nothing is sampled here."""
        assert self.read is not None
        now = self.read()
        self.first = self.first or now
        return self.gate.refresh(step, now.repaired, now.length, self.first.length)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The student's module with the teacher's weights."""
        own = {n: p.data for n, p in self._live.items()}
        try:
            for name, parameter in self._live.items():
                parameter.data = self.weights[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in self._live.items():
                parameter.data = own[name]

    def save(self, folder: str | Path) -> None:
        """Write the weights, and what the gate has seen, beside a checkpoint."""
        from safetensors.torch import save_file

        save_file({n: w.contiguous() for n, w in self.weights.items()}, str(Path(folder) / FILE))
        gate = {**asdict(self.gate), "recent": list(self.gate.recent)}
        state = {"gate": gate, "first": asdict(self.first) if self.first else None, "copies": self.copies}
        (Path(folder) / GATE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: str | Path) -> None:
        """Take the state of a checkpoint up again. Raises FileNotFoundError where it has none."""
        from safetensors.torch import load_file

        stored = load_file(str(Path(folder) / FILE))
        self.weights = {n: stored[n].to(w.device) for n, w in self.weights.items()}
        state = json.loads((Path(folder) / GATE).read_text(encoding="utf-8"))
        recent = deque(state["gate"].pop("recent"), maxlen=self.gate.recent.maxlen)
        self.gate = Cgtr(**state["gate"], recent=recent)
        self.first = Reading(**state["first"]) if state["first"] else None
        self.copies = state["copies"]

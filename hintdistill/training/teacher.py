"""A teacher that follows the student: a running average (`ema`) or a copy every so many steps (`periodic`).

Only what is trained is kept twice, so that with adapters the base weights are shared. The teacher's tensors take the
student's place for one forward pass without gradient; autograd holds on to the student's own storages meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hintdistill.recipes.schema import TeacherRule

FILE = "teacher.safetensors"


class Follower:
    """The following teacher's trained parameters."""

    def __init__(self, model: Any, rule: TeacherRule) -> None:
        self.rule = rule
        self._live = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.weights = {n: p.detach().clone() for n, p in self._live.items()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Follow the student after optimiser step `step` (counted from 1). SDPO .05, HINT-SD .001; RLSD every 10 steps."""
        if self.rule.update == "ema":
            for name, mine in self.weights.items():
                # in the weights' own precision small rates would round away, so the average is kept in float32
                if mine.dtype != torch.float32:
                    mine = self.weights[name] = mine.float()
                mine.lerp_(self._live[name].detach().float(), self.rule.rate)
        elif self.rule.update == "periodic" and step % self.rule.every == 0:
            for name, mine in self.weights.items():
                mine.copy_(self._live[name])

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
        """Write the weights beside a checkpoint."""
        from safetensors.torch import save_file

        save_file({n: w.contiguous() for n, w in self.weights.items()}, str(Path(folder) / FILE))

    def load(self, folder: str | Path) -> None:
        """Take the weights of a checkpoint up again. Raises FileNotFoundError where it has none."""
        from safetensors.torch import load_file

        stored = load_file(str(Path(folder) / FILE))
        self.weights = {n: stored[n].to(w.device) for n, w in self.weights.items()}

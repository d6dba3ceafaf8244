"""A teacher that follows the student: a running average (`ema`), a copy every few steps (`periodic`), or a copy when
the student has earned it (`cgtr`).

Only trained parameters are kept twice, so that with adapters the base weights are shared. The teacher's tensors replace
the student's for one forward pass without gradient; autograd meanwhile keeps the student's own storages.

Under FSDP2 each process keeps its shard of the teacher beside its shard of the student. There the contents of the
shards are swapped, because a forward pass gathers its weights from them.
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
from torch import Tensor

from hintdistill.core.registry import loaded
from hintdistill.objectives.controllers import Cgtr
from hintdistill.recipes.data import TeacherRule
from hintdistill.recipes.teachers import TEACHERS
from hintdistill.training.processes import gather_head, is_main, is_sharded, local, reshard

FILE = "teacher.safetensors"
GATE = "teacher_gate.json"


@dataclass(frozen=True)
class HeldoutReading:
    """Hold measurements of the student on held-out findings, without hints in its context."""

    repaired: float
    """Mean 1 - p(decision token)."""
    length: float
    """Mean 1 / p(last token of the step): how many times longer a step is expected to become."""


class Follower:
    """Hold the trained parameters of the following teacher."""

    def __init__(self, model: Any, rule: TeacherRule, read: Callable[[], HeldoutReading] | None = None) -> None:
        """Store the arguments; `read` measures the student, for `cgtr`."""
        self.rule, self.read, self._model = rule, read, model
        self._live = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.weights = {n: p.detach().clone() for n, p in self._live.items()}
        """Weights by name; under FSDP2, after `bind`, this process's shards."""
        self.gate = Cgtr(isolation=rule.isolation, margin=rule.margin, tail=rule.tail, every=rule.every)
        self.first: HeldoutReading | None = None
        self.copies = 0

    @property
    def _sharded(self) -> bool:
        return hasattr(next(iter(self._live.values())), "placements")

    def bind(self) -> None:
        """Take the parameters again after the model was wrapped, because FSDP2 replaces them by shards."""
        if not is_sharded(self._model) or self._sharded:
            return
        self._live = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        self.weights = {n: self._shard_like(w, self._live[n]) for n, w in self.weights.items()}

    def _shard_like(self, whole: Tensor, live: Any) -> Tensor:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole.to(live.device), live.device_mesh, live.placements).to_local()

    def _whole(self, name: str) -> Tensor:
        if not self._sharded:
            return self.weights[name]
        from torch.distributed.tensor import DTensor

        live = self._live[name]
        shard = DTensor.from_local(
            self.weights[name], live.device_mesh, live.placements, shape=live.shape, stride=live.stride()
        )
        return shard.full_tensor()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Follow the student after optimiser step `step` (counted from 1), using the rule's `follow`."""
        loaded(TEACHERS.get(self.rule.update).follow)(self, step)

    def average(self, rate: float) -> None:
        """Move every weight by a share of its distance to the student's."""
        for name, mine in self.weights.items():
            # in the weights' own precision small rates would round away, so the average is kept in float32
            if mine.dtype != torch.float32:
                mine = self.weights[name] = mine.float()
            mine.lerp_(local(self._live[name]).float(), rate)

    def copy(self) -> None:
        """Copy the student's weights."""
        self.copies += 1
        for name, mine in self.weights.items():
            mine.copy_(local(self._live[name]))

    def earned(self, step: int) -> bool:
        """Return whether the gate allows copying the student's weights at this step. CGTR (arXiv 2606.03532).

        Repair of held-out findings replaces the reward, and the expected lengthening of a step relative to the first
        measurement replaces the tail of lengths. Both are our own choices, because nothing is sampled here.
        """
        assert self.read is not None
        now = self.read()
        self.first = self.first or now
        return self.gate.refresh(step, now.repaired, now.length, self.first.length)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Yield the student's module with the teacher's weights."""
        if self._sharded:
            with self._shards_in_place():
                yield
            return
        own = {n: p.data for n, p in self._live.items()}
        try:
            for name, parameter in self._live.items():
                parameter.data = self.weights[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in self._live.items():
                parameter.data = own[name]

    @contextlib.contextmanager
    def _shards_in_place(self) -> Iterator[None]:
        own = {n: local(p).clone() for n, p in self._live.items()}
        reshard(self._model)
        try:
            for name, parameter in self._live.items():
                local(parameter).copy_(self.weights[name])
            yield
        finally:
            reshard(self._model)
            for name, parameter in self._live.items():
                local(parameter).copy_(own[name])
            gather_head(self._model)

    @torch.no_grad()
    def save(self, folder: str | Path) -> None:
        """Write the weights and the gate's state to a checkpoint: whole, by the main process."""
        from safetensors.torch import save_file

        whole = {n: self._whole(n).contiguous() for n in self.weights}
        if not is_main():
            return
        save_file(whole, str(Path(folder) / FILE))
        gate = {**asdict(self.gate), "recent": list(self.gate.recent)}
        state = {"gate": gate, "first": asdict(self.first) if self.first else None, "copies": self.copies}
        (Path(folder) / GATE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: str | Path) -> None:
        """Restore the state from a checkpoint. Raises FileNotFoundError if it has none."""
        from safetensors.torch import load_file

        stored = load_file(str(Path(folder) / FILE))
        if self._sharded:
            self.weights = {n: self._shard_like(stored[n], self._live[n]) for n in self.weights}
        else:
            self.weights = {n: stored[n].to(w.device) for n, w in self.weights.items()}
        state = json.loads((Path(folder) / GATE).read_text(encoding="utf-8"))
        recent = deque(state["gate"].pop("recent"), maxlen=self.gate.recent.maxlen)
        self.gate = Cgtr(**state["gate"], recent=recent)
        self.first = HeldoutReading(**state["first"]) if state["first"] else None
        self.copies = state["copies"]


def running_average(follower: Follower, step: int) -> None:
    """Update by the rule `ema`, a running average. SDPO uses .05, HINT-SD .001."""
    follower.average(follower.rule.rate)


def periodic_copy(follower: Follower, step: int) -> None:
    """Update by the rule `periodic`, a copy every few steps. RLSD copies every 10 steps."""
    if step % follower.rule.every == 0:
        follower.copy()


def earned_copy(follower: Follower, step: int) -> None:
    """Update by the rule `cgtr`, a copy if the gate, asked every few steps, allows it."""
    if step % follower.rule.every == 0 and follower.earned(step):
        follower.copy()

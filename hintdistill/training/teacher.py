"""A teacher that follows the student: a running average (`ema`), a copy every so many steps (`periodic`), or a copy when
it has earned it (`cgtr`).

Only what is trained is kept twice, so that with adapters the base weights are shared. The teacher's tensors take the
student's place for one forward pass without gradient; autograd holds on to the student's own storages meanwhile.

Under FSDP2 each process keeps its shard of the teacher beside its shard of the student. There the shards' contents change
places, because what is gathered for a forward pass is read from them.
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
    """What the student does on held-out findings, no hint in its context."""

    repaired: float
    """Mean 1 - p(decision token)."""
    length: float
    """Mean 1 / p(last token of the step): how many times as long a step may be expected to go on."""


class Follower:
    """The following teacher's trained parameters."""

    def __init__(self, model: Any, rule: TeacherRule, read: Callable[[], HeldoutReading] | None = None) -> None:
        """`read` takes a reading of the student, for `cgtr`."""
        self.rule, self.read, self._model = rule, read, model
        self._live = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.weights = {n: p.detach().clone() for n, p in self._live.items()}
        """By name; under FSDP2, after `bind`, this process's shards."""
        self.gate = Cgtr(isolation=rule.isolation, margin=rule.margin, tail=rule.tail, every=rule.every)
        self.first: HeldoutReading | None = None
        self.copies = 0

    @property
    def _sharded(self) -> bool:
        return hasattr(next(iter(self._live.values())), "placements")

    def bind(self) -> None:
        """Take up the parameters once more after the model was wrapped: FSDP2 puts shards in their place."""
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
        """Follow the student after optimiser step `step` (counted from 1), by the rule's `follow`."""
        loaded(TEACHERS.get(self.rule.update).follow)(self, step)

    def average(self, rate: float) -> None:
        """Move every weight by a share of its distance to the student's."""
        for name, mine in self.weights.items():
            # in the weights' own precision small rates would round away, so the average is kept in float32
            if mine.dtype != torch.float32:
                mine = self.weights[name] = mine.float()
            mine.lerp_(local(self._live[name]).float(), rate)

    def copy(self) -> None:
        """Take the student's weights."""
        self.copies += 1
        for name, mine in self.weights.items():
            mine.copy_(local(self._live[name]))

    def earned(self, step: int) -> bool:
        """Return whether the gate lets the student's weights be taken at this step. CGTR (arXiv 2606.03532).

        Repair on held-out findings stands for the reward, and the expected overrun of a step, against that at the first
        reading, for the tail of lengths: both are ours, since nothing is sampled here.
        """
        assert self.read is not None
        now = self.read()
        self.first = self.first or now
        return self.gate.refresh(step, now.repaired, now.length, self.first.length)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The student's module with the teacher's weights."""
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
        """Write the weights, and what the gate has seen, beside a checkpoint: whole, by the main process."""
        from safetensors.torch import save_file

        whole = {n: self._whole(n).contiguous() for n in self.weights}
        if not is_main():
            return
        save_file(whole, str(Path(folder) / FILE))
        gate = {**asdict(self.gate), "recent": list(self.gate.recent)}
        state = {"gate": gate, "first": asdict(self.first) if self.first else None, "copies": self.copies}
        (Path(folder) / GATE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: str | Path) -> None:
        """Take the state of a checkpoint up again. Raises FileNotFoundError if it has none."""
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
    """The rule `ema`: a running average. SDPO .05, HINT-SD .001."""
    follower.average(follower.rule.rate)


def periodic_copy(follower: Follower, step: int) -> None:
    """The rule `periodic`: a copy every so many steps. RLSD every 10."""
    if step % follower.rule.every == 0:
        follower.copy()


def earned_copy(follower: Follower, step: int) -> None:
    """The rule `cgtr`: a copy where, asked every so many steps, the gate lets it."""
    if step % follower.rule.every == 0 and follower.earned(step):
        follower.copy()

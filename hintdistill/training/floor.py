"""Measure the distance between the scoring engine and the model that is trained: `engine_floor` in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hintdistill.objectives import fkl
from hintdistill.training.rows import TraceRow
from hintdistill.training.views import supports, wide


@torch.no_grad()
def engine_floor(trainer: Any, rows: Sequence[TraceRow]) -> float:
    """Return the mean KL(stored plain ‖ the trainer's model, plain) in nats per token: the mismatch of the two engines.

    It is meaningful only before the first update.
    """
    training = trainer.model.training
    trainer.model.eval()
    total, tokens = 0.0, 0
    for row in rows:
        slots = [s for s in row.slots if s.kind != "outcome"]
        if not slots:
            continue
        done = trainer.passes.student(trainer.owner, [row], ride=False)
        hidden = torch.cat([done.hidden[s.key] for s in slots])
        ours = trainer.head.kept(hidden, supports(slots, hidden.device))
        stored = wide([s.plain for s in slots], -torch.inf).to(ours.device)
        total, tokens = total + float(fkl(ours, stored).sum()), tokens + len(hidden)
    trainer.model.train(training)
    return total / tokens

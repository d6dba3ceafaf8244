"""A small subclass of `transformers.Trainer`: only the loss is ours.

Per step token: the divergence between student and target on the row's support, times its static weight. The student
reads the context without the hint; the target is what the rescore stage stored, or what the teacher says in this very
step. Anchor rows are always KL(initial ‖ student) on stored targets.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from hintdistill.config import TrainSection
from hintdistill.engines.forward import Head, hidden_at, make_head
from hintdistill.errors import TripwireError
from hintdistill.objectives import divergence, fkl, gather_with_tail, union_of
from hintdistill.training.rows import TrainRow


def collate(rows: Sequence[TrainRow]) -> dict[str, Any]:
    """Rows stay rows; padding happens in the forward pass."""
    return {"rows": list(rows)}


class HintTrainer(Trainer):
    """Trains a student towards hinted targets."""

    def __init__(self, *args: Any, objective: TrainSection, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=collate, **kwargs)
        self.objective = objective
        # rows carry static weights, so the loss of a batch is a plain mean and accumulation divides by its steps
        self.model_accepts_loss_kwargs = False
        self._student = self.accelerator.unwrap_model(self.model)
        self._pad = int(self._student.config.get_text_config().pad_token_id or 0)
        self._initial: Any = None
        if (
            objective.targets == "in_step"
            and objective.teacher == "initial"
            and not hasattr(self._student, "disable_adapter")
        ):
            self._initial = copy.deepcopy(self._student).eval().requires_grad_(False)
        self._sums: defaultdict[str, float] = defaultdict(float)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over rows of the weighted divergence.

        Raises:
            TripwireError: the loss is not finite; names the rows.
        """
        rows: list[TrainRow] = inputs["rows"]
        student = self._logprobs(model, rows, hinted=False)
        teachers = self._in_step_teacher(model, rows)
        losses = [self._row_loss(row, s, t) for row, s, t in zip(rows, student, teachers, strict=True)]
        loss = torch.stack(losses).sum() / len(rows)
        if not torch.isfinite(loss):
            bad = [r.key for r, x in zip(rows, losses, strict=True) if not torch.isfinite(x)]
            raise TripwireError(
                f"the loss is {loss.item()} at step {self.state.global_step}; rows {', '.join(bad[:5])}",
                hint="the last checkpoint is kept; lower train.learning_rate or use run.dtype=float32",
            )
        return (loss, {}) if return_outputs else loss

    def _logprobs(self, model: Any, rows: Sequence[TrainRow], hinted: bool) -> list[Tensor]:
        """Log-probabilities of the whole vocabulary at the step's tokens, float32 [T, V] per row."""
        owner = self.accelerator.unwrap_model(model)
        sequences = [(r.hinted_ids if hinted else r.ids) for r in rows]
        positions = [range(len(s) - r.length - 1, len(s) - 1) for s, r in zip(sequences, rows, strict=True)]
        hidden = hidden_at(model, [s[:-1] for s in sequences], positions, self._pad, owner=owner)
        head: Head = make_head(owner)
        # one product for the batch, split afterwards
        logprobs = head(torch.cat(hidden)).log_softmax(-1)
        return list(logprobs.split([r.length for r in rows]))

    def _in_step_teacher(self, model: Any, rows: Sequence[TrainRow]) -> list[Tensor | None]:
        out: list[Tensor | None] = [None] * len(rows)
        at = [i for i, r in enumerate(rows) if r.kind == "hint"]
        if self.objective.targets == "stored" or not at:
            return out
        with torch.no_grad(), self._as_teacher(model) as teacher:
            for i, logprobs in zip(at, self._logprobs(teacher, [rows[i] for i in at], hinted=True), strict=True):
                out[i] = logprobs
        return out

    @contextlib.contextmanager
    def _as_teacher(self, model: Any) -> Iterator[Any]:
        """The teacher's weights: the frozen copy, the student without its adapter, or the student as it is."""
        if self._initial is not None:
            yield self._initial
            return
        was_training = model.training
        model.eval()
        try:
            if self.objective.teacher == "initial":
                with self._student.disable_adapter():
                    yield model
            else:
                yield model
        finally:
            model.train(was_training)

    def _row_loss(self, row: TrainRow, student: Tensor, teacher: Tensor | None) -> Tensor:
        cfg, device = self.objective, student.device
        if teacher is None:
            support = row.support_ids.to(device)
            ours, target = gather_with_tail(student, support), row.target.to(device)
        elif cfg.support == "full":
            ours, target = student, teacher
        else:
            k = min(cfg.top_k, student.shape[-1])
            sampled = row.ids[-row.length :, None].to(device)
            support = union_of(student.detach().topk(k).indices, teacher.topk(k).indices, sampled)
            ours, target = gather_with_tail(student, support), gather_with_tail(teacher, support)
        per_token = (
            fkl(ours, target)
            if row.kind == "anchor"
            else divergence(cfg.divergence, ours, target, jsd_alpha=cfg.jsd_alpha)
        )
        self._measure(row, student.detach(), per_token.detach())
        return (per_token * row.token_weights.to(device)).sum()

    def _measure(self, row: TrainRow, student: Tensor, per_token: Tensor) -> None:
        self._sums[f"{row.kind}_rows"] += 1
        self._sums[row.kind] += float(per_token.mean())
        if row.decision >= 0:
            token = row.ids[-row.length + row.decision]
            self._sums["decision_rows"] += 1
            self._sums["decision"] += float(student[row.decision, token].exp())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last log."""
        sums, self._sums = self._sums, defaultdict(float)
        for kind, name in (("hint", "divergence"), ("anchor", "anchor_kl"), ("decision", "decision_probability")):
            if sums[f"{kind}_rows"]:
                logs[name] = sums[kind] / sums[f"{kind}_rows"]
        super().log(logs, start_time)

    def engine_floor(self, rows: Sequence[TrainRow]) -> float:
        """Mean KL(stored plain ‖ this model, plain), nats per token: the mismatch of rescoring and training engines.

        Only meaningful before the first update.
        """
        total, tokens = 0.0, 0
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            for row in rows:
                ours = gather_with_tail(
                    self._logprobs(self.model, [row], hinted=False)[0], row.support_ids.to(self.args.device)
                )
                total += float(fkl(ours, row.plain.to(ours.device)).sum())
                tokens += row.length
        self.model.train(training)
        return total / tokens

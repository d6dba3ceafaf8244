"""A small subclass of `transformers.Trainer`: only the loss is ours.

A batch's loss is the recipe's terms over its rows. The student reads the context without the hint; the other views are what
the rescore stage stored, or what their weights say in this very step. Anchor rows always have stored targets.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from hintdistill.config import TrainSection
from hintdistill.engines.forward import Head, hidden_at, make_head
from hintdistill.errors import TripwireError
from hintdistill.objectives import fkl, gather_with_tail, objective
from hintdistill.recipes.schema import View
from hintdistill.training.rows import TrainRow
from hintdistill.training.teacher import Follower
from hintdistill.training.views import base, restricted, whole


def collate(rows: Sequence[TrainRow]) -> dict[str, Any]:
    """Rows stay rows; padding happens in the forward pass."""
    return {"rows": list(rows)}


class HintTrainer(Trainer):
    """Trains a student towards hinted targets."""

    def __init__(self, *args: Any, objective: TrainSection, special_ids: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, data_collator=collate, **kwargs)
        self.config, self.recipe, self.special_ids = objective, objective.objective, tuple(special_ids)
        # rows carry static weights, so the loss of a batch is a plain mean and accumulation divides by its steps
        self.model_accepts_loss_kwargs = False
        self._student = self.accelerator.unwrap_model(self.model)
        self._pad = int(self._student.config.get_text_config().pad_token_id or 0)
        self._views = self.recipe.used_views("hint") if objective.target_source == "in_step" else {}
        weights = {self._weights_of(v) for v in self._views.values()}
        self._initial: Any = None
        if "initial" in weights and not hasattr(self._student, "disable_adapter"):
            self._initial = copy.deepcopy(self._student).eval().requires_grad_(False)
        self.follower = Follower(self._student, self.recipe.teacher) if weights & {"ema", "periodic"} else None
        self._sums: defaultdict[str, float] = defaultdict(float)

    def _weights_of(self, view: View) -> str:
        """`live`, `initial`, `ema` or `periodic`."""
        return self.recipe.teacher.update if view.weights == "teacher" else view.weights

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The recipe's terms, mean over rows.

        Raises:
            TripwireError: the loss is not finite; names the rows.
        """
        rows: list[TrainRow] = inputs["rows"]
        student = self._logprobs(model, rows, hinted=False)
        loss = student[0].new_zeros(())
        for kind in ("hint", "anchor"):
            at = [i for i, r in enumerate(rows) if r.kind == kind]
            if at:
                part = self._part(model, kind, [rows[i] for i in at], [student[i] for i in at])
                loss = loss + part * (len(at) / len(rows))
        if not torch.isfinite(loss):
            bad = [r.key for r, s in zip(rows, student, strict=True) if not torch.isfinite(s).all()] or [
                r.key for r in rows
            ]
            raise TripwireError(
                f"the loss is {loss.item()} at step {self.state.global_step}; rows {', '.join(bad[:5])}",
                hint="the last checkpoint is kept; lower train.learning_rate or use run.dtype=float32",
            )
        return (loss, {}) if return_outputs else loss

    def _part(self, model: Any, kind: str, rows: Sequence[TrainRow], student: Sequence[Tensor]) -> Tensor:
        """The terms of one kind of row."""
        if kind == "hint" and self._views:
            batch = whole(rows, self._in_step(model, rows, torch.cat(list(student))), self.special_ids)
        else:
            batch = restricted(rows, student)
        device = student[0].device
        seed = self.args.seed * 1_000_003 + self.state.global_step
        generator = torch.Generator(device).manual_seed(seed)
        value, metrics = objective(
            self.recipe, batch, rows=kind, step=self.state.global_step, base=base(rows, device), generator=generator
        )
        self._measure(kind, rows, student, metrics)
        return value

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

    def _in_step(self, model: Any, rows: Sequence[TrainRow], student: Tensor) -> dict[str, Tensor]:
        """The views that the recipe reads, float32 [ΣT, V]; one forward for each pair of weights and context."""
        made: dict[tuple[str, str, bool], Tensor] = {}
        out = {"student": student}
        for name, view in self._views.items():
            weights = self._weights_of(view)
            if (weights, view.context) == ("live", "plain"):
                out[name] = student
                continue
            key = (weights, view.context, view.grad)
            if key not in made:
                hinted = view.context == "hint"
                if view.grad:
                    made[key] = torch.cat(self._logprobs(model, rows, hinted))
                else:
                    with torch.no_grad(), self._as(model, weights) as teacher:
                        made[key] = torch.cat(self._logprobs(teacher, rows, hinted))
            out[name] = made[key]
        return out

    @contextlib.contextmanager
    def _as(self, model: Any, weights: str) -> Iterator[Any]:
        """A view's weights: the frozen copy, the student without its adapter, a follower of it, or the student as it is."""
        if weights == "initial" and self._initial is not None:
            yield self._initial
            return
        was_training = model.training
        model.eval()
        try:
            if weights == "initial":
                with self._student.disable_adapter():
                    yield model
            elif weights in ("ema", "periodic"):
                assert self.follower is not None
                with self.follower.in_place():
                    yield model
            else:
                yield model
        finally:
            model.train(was_training)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # here, because a checkpoint counts as whole once what is written after this is there
        super()._save_optimizer_and_scheduler(output_dir)
        if self.follower is not None:
            self.follower.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.follower is not None and checkpoint is not None:
            self.follower.load(checkpoint)

    def _measure(
        self, kind: str, rows: Sequence[TrainRow], student: Sequence[Tensor], metrics: Mapping[str, float]
    ) -> None:
        first = next(n for n, t in self.recipe.terms.items() if t.rows == kind)
        self._sums[f"{kind}_rows"] += len(rows)
        for name, value in metrics.items():
            if name == f"{first}/mean":
                self._sums[kind] += value * len(rows)
            elif kind == "hint":
                self._sums[f"own:{name}"] += value * len(rows)
        for row, logprobs in zip(rows, student, strict=True):
            if row.decision >= 0:
                token = row.ids[-row.length + row.decision]
                self._sums["decision_rows"] += 1
                self._sums["decision"] += float(logprobs[row.decision, token].detach().exp())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last log."""
        sums, self._sums = self._sums, defaultdict(float)
        for kind, name in (("hint", "divergence"), ("anchor", "anchor_kl"), ("decision", "decision_probability")):
            if sums[f"{kind}_rows"]:
                logs[name] = sums[kind] / sums[f"{kind}_rows"]
        logs |= {n.removeprefix("own:"): v / sums["hint_rows"] for n, v in sums.items() if n.startswith("own:")}
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

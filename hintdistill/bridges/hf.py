"""Train with a plain `transformers.Trainer` or tools based on it (peft, QLoRA, unsloth, ms-swift): data set, collator
and loss function.

    rows = HintRows.from_run("runs/demo")               # or HintRows.from_export(folder of `hintdistill export --to hf`)
    loss = HintLoss(rows)
    Trainer(model, args, train_dataset=rows, data_collator=Collator(), compute_loss_func=loss, callbacks=[loss.clock()]).train()

The loss consists of the recipe's terms, averaged over the steps of an accumulated batch, as in this toolkit's trainer.
The Trainer passes the outputs, the labels and the number of labels other than -100 to the loss function. So there is
one label per step, the step's number in the data set, by which its targets are looked up. No additional column is
needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from hintdistill.bridges.formats import ExportJob
from hintdistill.bridges.runs import open_rows
from hintdistill.bridges.tables import read_rows, write_rows
from hintdistill.config import TrainSection
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.objectives import gather_with_tail, objective
from hintdistill.recipes import Recipe
from hintdistill.recipes.library import validate
from hintdistill.training.rows import TraceRow
from hintdistill.training.slots import Slot
from hintdistill.training.views import base, restricted, supports

NAME = "hf"
RECIPE = "recipe.json"
IGNORED = -100
_IDS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
_SLOT = pa.struct(
    [
        ("key", pa.string()),
        ("kind", pa.string()),
        ("start", pa.int32()),
        ("length", pa.int32()),
        ("span_start", pa.int32()),
        ("span_end", pa.int32()),
        ("weights", pa.list_(pa.struct([("term", pa.string()), ("each", _FLOATS)]))),
        ("support_ids", pa.list_(_IDS)),
        ("teacher_logprobs", pa.list_(_FLOATS)),
        ("teacher_tail", _FLOATS),
        ("plain_logprobs", pa.list_(_FLOATS)),
        ("plain_tail", _FLOATS),
        ("sampler_logprobs", _FLOATS),
    ]
)
SCHEMA = pa.schema([("key", pa.string()), ("input_ids", _IDS), ("slots", pa.list_(_SLOT))])
"""Columns of the export. Each line is one training row: a trace up to its last scored token, with all its steps that
carry loss."""


def require_stored(section: TrainSection) -> None:
    """Raise ConfigError, with the reason, if the recipe cannot be trained from stored targets alone."""
    recipe = section.effective_recipe
    if section.target_source != "stored":
        raise ConfigError(
            f"recipe {recipe.name} computes its targets in the training step, from the student's own weights or "
            "vocabulary",
            hint="use a recipe with stored targets, e.g. train.recipe=targeted; or --to trl, axolotl or tinker, which "
            "train the forward KL to the stored teacher with any recipe",
        )
    if recipe.coupling.kind != "none":
        raise ConfigError(
            f"recipe {recipe.name} couples an outcome reward ({recipe.coupling.kind}), which an export does not "
            "contain",
            hint="train.recipe.coupling.kind=none",
        )


# -- on disk -----------------------------------------------------------------------------------------------------------


def write(job: ExportJob) -> dict[str, Any]:
    """Write the rows, with the recipe and the seed. Raises ConfigError; see `require_stored`."""
    require_stored(job.section)
    recipe = job.section.effective_recipe
    longest = max(job.rows.lengths)
    count = write_rows(job.folder, NAME, SCHEMA, (columns(row) for row in job.rows))
    data = {"recipe": recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True), "seed": job.seed}
    (job.folder / RECIPE).write_text(json.dumps(data, indent=1), encoding="utf-8")
    return {"rows": count, "longest": longest}


def columns(row: TraceRow) -> dict[str, Any]:
    """Return a row's columns."""
    return {"key": row.key, "input_ids": row.ids.tolist(), "slots": [_slot_columns(s) for s in row.slots]}


def _slot_columns(slot: Slot) -> dict[str, Any]:
    there = slot.support_ids >= 0

    def ragged(values: Tensor) -> list[list[float]]:
        return [v[t].tolist() for v, t in zip(values, there, strict=True)]

    return {
        "key": slot.key,
        "kind": slot.kind,
        "start": slot.start,
        "length": slot.length,
        "span_start": slot.span[0],
        "span_end": slot.span[1],
        "weights": [{"term": name, "each": w.tolist()} for name, w in slot.weights.items()],
        "support_ids": ragged(slot.support_ids),
        "teacher_logprobs": ragged(slot.target[:, :-1]),
        "teacher_tail": slot.target[:, -1].tolist(),
        "plain_logprobs": ragged(slot.plain[:, :-1]),
        "plain_tail": slot.plain[:, -1].tolist(),
        "sampler_logprobs": [] if slot.behaviour is None else slot.behaviour.tolist(),
    }


def row_of(line: dict[str, Any]) -> TraceRow:
    """Return the row of an exported line."""
    ids = torch.tensor(line["input_ids"], dtype=torch.int64)
    return TraceRow(line["key"], ids, tuple(_slot_of(ids, s) for s in line["slots"]))


def _slot_of(ids: Tensor, line: dict[str, Any]) -> Slot:
    start, length = line["start"], line["length"]
    width = max(len(i) for i in line["support_ids"])

    def square(values: list[list[Any]], fill: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*v, *[fill] * (width - len(v))] for v in values], dtype=dtype)

    def view(name: str) -> Tensor:
        tail = torch.tensor(line[f"{name}_tail"], dtype=torch.float32)
        return torch.cat([square(line[f"{name}_logprobs"], -torch.inf, torch.float32), tail[:, None]], 1)

    return Slot(
        key=line["key"],
        kind=line["kind"],
        start=start,
        length=length,
        insert_at=start,
        block=ids[:0],
        sampled=ids[start : start + length],
        weights={w["term"]: torch.tensor(w["each"], dtype=torch.float32) for w in line["weights"]},
        span=(line["span_start"], line["span_end"]),
        support_ids=square(line["support_ids"], -1, torch.int64),
        target=view("teacher"),
        plain=view("plain"),
        decision=-1,
        behaviour=torch.tensor(line["sampler_logprobs"]) if line["sampler_logprobs"] else None,
    )


# -- what the Trainer takes --------------------------------------------------------------------------------------------


class HintRows(Dataset[dict[str, Any]]):
    """Hold rows for training: `input_ids`, and `labels` with the numbers of the row's steps."""

    def __init__(self, rows: Sequence[TraceRow], recipe: Recipe, seed: int = 0) -> None:
        """Take `rows` from `training.rows.build_rows`; `seed` is for weights that draw random numbers."""
        self.rows, self.recipe, self.seed = rows, recipe, seed
        self._first: list[int] = []
        self._total = 0
        for row in rows:
            if len(row.slots) >= len(row.ids):
                raise InputError(f"row {row.key} has {len(row.slots)} steps but only {len(row.ids)} tokens")
            self._first.append(self._total)
            self._total += len(row.slots)

    @classmethod
    def from_run(cls, run: Path | str, k: int | None = None) -> HintRows:
        """Read a run's targets, with at most `k` ids per token and the rest as one entry.

        Raises:
            ConfigError: the recipe cannot be trained from stored targets alone.
            InputError: there are no targets.
        """
        found = open_rows(Path(run), k, "keep")
        require_stored(found.section)
        return cls(found.rows, found.section.effective_recipe, found.ctx.config.run.seed)

    @classmethod
    def from_export(cls, folder: Path | str) -> HintRows:
        """Read an export written by `hintdistill export --to hf`. Raises InputError if it does not exist."""
        folder = Path(folder)
        rows = [row_of(line) for line in read_rows(folder, NAME)]
        data = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        return cls(rows, validate(data["recipe"], str(folder / RECIPE)), data["seed"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row: token ids, and labels that are -100 except for the numbers of its steps, from position 1
        on."""
        row, first = self.rows[index], self._first[index]
        labels = [IGNORED] * len(row.ids)
        labels[1 : 1 + len(row.slots)] = range(first, first + len(row.slots))
        return {"input_ids": row.ids.tolist(), "labels": labels}

    def slot(self, number: int) -> Slot:
        """Return a step by its number."""
        index = int(np.searchsorted(self._first, number, side="right")) - 1
        return self.rows[index].slots[number - self._first[index]]


class Collator:
    """Pads rows on the right."""

    def __init__(self, pad_token_id: int = 0) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, int64 [B, L] each."""
        width = max(len(f["input_ids"]) for f in features)

        def square(name: str, fill: int) -> Tensor:
            return torch.tensor([[*f[name], *[fill] * (width - len(f[name]))] for f in features])

        lengths = torch.tensor([len(f["input_ids"]) for f in features])
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        return {
            "input_ids": square("input_ids", self.pad_token_id),
            "attention_mask": mask,
            "labels": square("labels", IGNORED),
        }


class HintLoss:
    """Compute the loss, as the `compute_loss_func` of a Trainer."""

    def __init__(self, rows: HintRows) -> None:
        self.rows, self.recipe = rows, rows.recipe
        self.kinds = tuple(dict.fromkeys(t.rows for t in self.recipe.terms.values()))
        self.step: int | None = None
        """Optimiser step, as set by the clock."""
        self._moves = _moves(self.recipe)

    def clock(self) -> TrainerCallback:
        """Return the callback that tracks the optimiser step; recipes with schedules need it."""
        return _Clock(self)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the recipe's terms, averaged over `num_items_in_batch` steps, by default over those of this batch.

        Raises:
            ConfigError: the recipe changes with the optimiser step, and there is no clock.
        """
        if self.step is None and self._moves:
            raise ConfigError(
                f"recipe {self.recipe.name} changes with the optimiser step, which the loss function does not know",
                hint="add the clock: Trainer(…, callbacks=[loss.clock()])",
            )
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        placed = [(b, self.rows.slot(int(labels[b, i]))) for b, i in (labels != IGNORED).nonzero().tolist()]
        total = logits.sum() * 0.0 if not placed else logits.new_zeros(())
        for kind in self.kinds:
            some = [(b, s) for b, s in placed if s.kind == kind]
            if some:
                total = total + self._of_kind(kind, some, logits)
        count = num_items_in_batch if num_items_in_batch is not None else max(1, len(placed))
        return total / count

    def _of_kind(self, kind: str, placed: Sequence[tuple[int, Slot]], logits: Tensor) -> Tensor:
        """Return the terms for one kind of step, summed over steps."""
        slots = [s for _, s in placed]
        if max(s.start + s.length for s in slots) - 1 > logits.shape[1]:
            raise InputError(f"a row was cut to {logits.shape[1]} tokens, before the end of its last step")
        found = torch.cat([logits[b, s.start - 1 : s.start + s.length - 1] for b, s in placed])
        wide = found if found.dtype == torch.float64 else found.float()
        student = gather_with_tail(wide.log_softmax(-1), supports(slots, wide.device))
        step = self.step or 0
        value, _ = objective(
            self.recipe,
            restricted(slots, student),
            rows=kind,
            step=step,
            base=base(slots, wide.device),
            generator=torch.Generator(wide.device).manual_seed(self.rows.seed * 1_000_003 + step),
        )
        return value * len(slots)


class _Clock(TrainerCallback):
    """Pass the optimiser step on to a loss function."""

    def __init__(self, loss: HintLoss) -> None:
        self.loss = loss

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the step."""
        self.loss.step = state.global_step


def _moves(recipe: Recipe) -> bool:
    """Return whether any number of the recipe's terms is a schedule."""

    def schedules(value: Any) -> Iterator[bool]:
        if isinstance(value, dict):
            yield {"from", "to", "steps"} <= value.keys()
            for inner in value.values():
                yield from schedules(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from schedules(inner)

    return any(schedules({n: t.model_dump(mode="json", by_alias=True) for n, t in recipe.terms.items()}))

"""Serve stored targets to TRL's AsyncDistillationTrainer, through a rollout worker in place of fresh rollouts.

    with offline():
        trainer = AsyncDistillationTrainer(
            model, args=AsyncDistillationConfig(out, **settings(rollouts), max_steps=100), train_dataset=rollouts.prompts(),
            processing_class=tokenizer, rollout_worker=rollouts, weight_transfer=NoTransfer(),
        )
    trainer.train()

Its loss is the forward KL over the kept ids and the rest, averaged over the tokens of a batch, so a row's weight is the
number of times that it is served. Tested with trl 1.16.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
import pyarrow as pa

from hintdistill.bridges.flat import FlatRow, flat_rows
from hintdistill.bridges.formats import ExportJob
from hintdistill.bridges.formulas import at, products
from hintdistill.bridges.narrow import log_sum
from hintdistill.bridges.peers import need
from hintdistill.bridges.runs import open_rows
from hintdistill.bridges.tables import read_rows, row_at, write_rows
from hintdistill.core.errors import ConfigError
from hintdistill.objectives.schedules import scheduled
from hintdistill.recipes import Recipe

NAME = "trl"
MOST_COPIES = 20
"""Maximum number of copies of the most frequently served row, for one copy of the least frequently served."""
NO_TAIL = -1e-7
"""The trainer's largest log-probability of all kept ids together, so that its rest is never zero."""
_IDS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("kind", pa.string()),
        ("copies", pa.int32()),
        ("weight", pa.float32()),
        ("input_ids", _IDS),
        ("start", pa.int32()),
        ("mask", _IDS),
        ("topk_ids", pa.list_(_IDS)),
        ("topk_logprobs", pa.list_(_FLOATS)),
    ]
)
"""Columns: `start` is the position of the first step token; `mask` and the lists have one entry per step token."""


def require_whole_weights(row: FlatRow) -> None:
    """Raise ConfigError, naming the row, if its tokens have different weights, because the trainer's mask allows only 0
    and 1."""
    weights = row.weights[row.carried]
    if not np.allclose(weights, weights[0], rtol=1e-4, atol=0.0):
        raise ConfigError(
            f"row {row.key}: its tokens have weights in the ratio {weights.min() / weights.max():.3g} to 1, but TRL's "
            "completion_mask is 0 or 1",
            hint="train.recipe.terms.NAME.span=step or quote; or --to hf, tinker or axolotl, which take fractional weights",
        )


def copies_of(recipe: Recipe, kinds: Sequence[str]) -> dict[str, int]:
    """Return how many copies each kind of row gets, so that the copies are in the ratio of the kinds' coefficients
    before the first step.

    Raises:
        ConfigError: the coefficients are not in a ratio of small whole numbers; the message names the kind.
    """
    coefs = {
        kind: sum(scheduled(t.coef, 0) for t in recipe.terms.values() if t.rows == kind)
        for kind in dict.fromkeys(kinds)
    }
    least = min(coefs.values(), default=1.0)
    if least <= 0:
        raise ConfigError(
            f"rows of {min(coefs, key=lambda k: coefs[k])} have a coefficient of {least:g} and cannot be served"
        )
    shares = {kind: Fraction(c / least).limit_denominator(MOST_COPIES) for kind, c in coefs.items()}
    whole = lcm(*(s.denominator for s in shares.values()))
    copies = {kind: int(s * whole) for kind, s in shares.items()}
    divisor = gcd(*copies.values())
    for kind, share in shares.items():
        if abs(float(share) * least - coefs[kind]) > 1e-6 * coefs[kind] or copies[kind] // divisor > MOST_COPIES:
            raise ConfigError(
                f"rows of {kind} have {coefs[kind] / least:.6g} times the weight of others, which a small number of "
                "copies cannot express",
                hint=f"use a ratio of whole numbers up to {MOST_COPIES}, e.g. train.{kind}.weight=2",
            )
    return {kind: n // divisor for kind, n in copies.items()}


def columns(row: FlatRow, copies: int) -> dict[str, Any]:
    """Return a row's columns. Raises ConfigError for fractional weights; see `require_whole_weights`."""
    require_whole_weights(row)
    there = np.isfinite(row.teacher)
    # its reader expects the most likely id first
    order = np.argsort(-np.where(there, row.teacher, -np.inf), axis=1, kind="stable")
    ids, logprobs = np.take_along_axis(row.support_ids, order, 1), np.take_along_axis(row.teacher, order, 1)
    counts = there.sum(1)
    return {
        "key": row.key,
        "kind": row.kind,
        "copies": copies,
        "weight": float(row.weights.sum()),
        "input_ids": row.ids.tolist(),
        "start": row.start,
        "mask": (row.weights != 0).astype(int).tolist(),
        "topk_ids": [i[:n].tolist() for i, n in zip(ids, counts, strict=True)],
        "topk_logprobs": [p[:n].tolist() for p, n in zip(logprobs, counts, strict=True)],
    }


def write(job: ExportJob) -> dict[str, Any]:
    """Write the rows. Raises ConfigError for weights that a mask and copies cannot express."""
    recipe, longest, width = job.section.effective_recipe, 0, 0
    copies = copies_of(recipe, [m.kind for p in job.rows.plans for m in p.members])

    def each() -> Iterator[dict[str, Any]]:
        nonlocal longest, width
        for row in flat_rows(job.rows, recipe):
            longest, width = max(longest, len(row.ids)), max(width, row.support_ids.shape[1])
            yield columns(row, copies[row.kind])

    count = write_rows(job.folder, NAME, SCHEMA, each())
    return {"rows": count, "longest": longest, "ids_per_token": width, "copies": copies}


def loss_in_file(folder: Path, number: int, row: FlatRow, student: np.ndarray) -> float:
    """Return weight · mean over the mask of the trainer's divergence, including its limit on the rest."""
    read = row_at(folder, NAME, number)
    each = []
    for t in np.flatnonzero(read["mask"]):
        ids = np.array([read["topk_ids"][t]], np.int64)
        teacher, ours = np.array([read["topk_logprobs"][t]], np.float64), at(student[t : t + 1], ids)
        each.append(products(teacher, ours).sum() + products(_rest(teacher), _rest(ours)).sum())
    return float(read["weight"] * np.mean(each))


def _rest(kept: np.ndarray) -> np.ndarray:
    """Return the trainer's log-probability of the rest [T], from that of the kept ids [T, K]."""
    rest: np.ndarray = np.log(-np.expm1(np.minimum(log_sum(kept), NO_TAIL)))
    return rest


class _Served(Queue):
    """Act as a queue that is never empty: samples are made on access, each row as often as it must be served."""

    def __init__(self, rows: Sequence[dict[str, Any]], width: int, seed: int) -> None:
        super().__init__()
        self._rows, self._width, self._seed = rows, width, seed
        self._order, self._round, self._taken = list[int](), 0, 0

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the next sample; every row is served its full number of times before any row starts again."""
        if not self._rows:
            raise Empty
        if not self._order:
            turns = [i for i, r in enumerate(self._rows) for _ in range(r["copies"])]
            order = np.random.default_rng([self._seed, self._round]).permutation(len(turns))
            self._order, self._round = [turns[i] for i in order], self._round + 1
        self._taken += 1
        return sample(self._rows[self._order.pop(0)], self._width, self._taken - 1)

    def qsize(self) -> int:
        """Return 1, because there is always a next sample."""
        return 1


def sample(row: dict[str, Any], width: int, number: int = 0) -> Any:
    """Return an exported row as TRL's `RolloutSample`, `width` ids wide."""
    module = need("trl.experimental.async_distillation.async_rollout_worker", "trl")
    length, start = len(row["input_ids"]), row["start"]
    mask = np.zeros(length, np.int64)
    ids, logprobs = np.full((length, width), -1, np.int64), np.full((length, width), -np.inf, np.float32)
    for t, carried in enumerate(row["mask"]):
        if carried:
            mask[start + t] = 1
            ids[start + t, : len(row["topk_ids"][t])] = row["topk_ids"][t]
            logprobs[start + t, : len(row["topk_logprobs"][t])] = row["topk_logprobs"][t]
    return module.RolloutSample(
        prompt=[],
        completion=[],
        input_ids=np.array(row["input_ids"], np.int64),
        completion_mask=mask,
        teacher_topk_ids=ids,
        teacher_topk_logprobs=logprobs,
        model_version=0,
        metrics={},
        teacher_id="default",
        prompt_id=number,
        enqueued_at=time.time(),
    )


class StoredRollouts:
    """Serve stored targets as the `rollout_worker` of `AsyncDistillationTrainer`."""

    def __init__(self, source: Path | str, k: int | None = None, seed: int = 0) -> None:
        """Read a run folder, or a folder that `hintdistill export --to trl` wrote; `k` applies to a run, see `narrow`.

        Raises:
            ConfigError: the trainer cannot express a row's weights.
            InputError: there is nothing to serve.
        """
        source = Path(source)
        if (source / "manifest.json").is_file():
            run = open_rows(source, k, "keep")
            recipe = run.section.effective_recipe
            flat = list(flat_rows(run.rows, recipe))
            copies = copies_of(recipe, [r.kind for r in flat])
            self.rows = [columns(r, copies[r.kind]) for r in flat]
        else:
            self.rows = list(read_rows(source, NAME))
        self.width = max(len(ids) for row in self.rows for ids in row["topk_ids"])
        self.rollout_buffer: Queue[Any] = _Served(self.rows, self.width, seed)
        self.metrics_queue: Queue[Any] = Queue()

    def prompts(self) -> Any:
        """Return a data set that stands in for the trainer's prompts, one per row; nothing is sampled from them."""
        return need("datasets").Dataset.from_dict({"prompt": [row["key"] for row in self.rows]})

    def start(self) -> None:
        """Do nothing, because rows are made on access."""

    def stop(self) -> None:
        """Do nothing."""

    def update_model_version(self, model_version: int) -> None:
        """Do nothing, because stored targets do not become outdated."""

    def check_health(self, stale_after_s: float) -> None:
        """Do nothing, because no process runs that could fail."""


class NoTransfer:
    """Act as the trainer's `weight_transfer` where there is no server to receive weights."""

    def init_weight_transfer(self) -> None:
        """Do nothing."""

    def pause(self) -> None:
        """Do nothing."""

    def send_weights(self, iterator: Iterator[Any]) -> None:
        """Iterate over the weights and discard them."""
        for _ in iterator:
            pass

    def resume(self) -> None:
        """Do nothing."""

    def destroy(self) -> None:
        """Do nothing."""


def settings(rollouts: StoredRollouts) -> dict[str, Any]:
    """Return the settings that an `AsyncDistillationConfig` needs for stored targets."""
    return {
        "beta": 0.0,
        "add_tail_bucket": True,
        "teacher_temperature": 1.0,
        "teacher_top_k": max(1, rollouts.width - 1),
        "token_budget": 0,
        "max_staleness": 1 << 30,
        "weight_sync_steps": 1 << 30,
    }


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Allow making a trainer without a server, by replacing two names of TRL's module inside the block.

    `VLLMClient` would connect to a server. `get_peak_flops_per_device` does not support CPUs; its value is used only
    for a metric.
    """
    import torch

    module = need("trl.experimental.async_distillation.async_distillation_trainer", "trl")
    kept = module.VLLMClient, module.get_peak_flops_per_device
    module.VLLMClient = lambda *args, **kwargs: None
    if not torch.cuda.is_available():
        module.get_peak_flops_per_device = lambda *args, **kwargs: None
    try:
        yield
    finally:
        module.VLLMClient, module.get_peak_flops_per_device = kept

"""Find what fits into memory: the largest micro-batch and the longest trace; if something does not fit, raise an error
before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.config import RunConfig, RunSection, TrainSection
from hintdistill.core.errors import DoesNotFitError
from hintdistill.core.machine import BYTES, Growth, Peak, Room, precision, room
from hintdistill.core.model_shape import ModelShape
from hintdistill.engines.token_counts import FLOAT
from hintdistill.recipes.teachers import of_kind, whose
from hintdistill.training.memory import Load, TeacherUse, TrainSetup, train_peak
from hintdistill.training.row_lengths import RowLength

DOUBT = 0.7
"""A row is refused only if this share of its estimated memory exceeds the available memory, so that a row that fits is
never refused."""
MARGIN = 0.9
"""Share of the memory that recommended settings may use."""
ENOUGH = 16_384
"""Number of tokens in a forward pass beyond which a larger pass is no faster."""
LONGEST = 1 << 24


def weight_bytes(dtype: str, on_cpu: bool, shape: ModelShape) -> int:
    """Return the bytes of one weight under `run.dtype`."""
    return BYTES[precision(dtype, on_cpu, shape.parameters)]


def setup_of(shape: ModelShape, run: RunSection, train: TrainSection, on_cpu: bool) -> TrainSetup:
    """Return the memory setup of a training run with these sections."""
    stored, lora = weight_bytes(run.dtype, on_cpu, shape), train.lora
    return TrainSetup(
        trained=shape.parameters if lora is None else shape.adapter(lora.rank, lora.target_modules),
        weight_bytes=FLOAT if lora is None else stored,
        activation_bytes=stored,
        on_cpu=on_cpu,
        rank=0 if lora is None else lora.rank,
        checkpointing=train.gradient_checkpointing,
        accumulates=train.micro_batch_size is not None and train.micro_batch_size < train.batch_size,
        kinds=len({t.rows for t in train.effective_recipe.terms.values()}),
        teacher=_teacher(train),
    )


def _teacher(train: TrainSection) -> TeacherUse:
    recipe = train.effective_recipe
    views = recipe.used_views("hint") if train.target_source == "in_step" else {}
    made = {(whose(v.weights, recipe.teacher.update), v.context) for v in views.values()}
    made -= {("live", "plain")}
    weights = {w for w, _ in made}
    own = weights & {"initial", "round_start"} and train.lora is None
    return TeacherUse(
        copies=int(bool(own)) + int("external" in weights),
        follower=bool(of_kind(weights, "follows")),
        views=len(made),
        rides=("live", "hint") in made,
        prefills=bool(weights - {"live"}),
        dense=bool(views) and (not recipe.coupling.leaves_terms or any(t.weights for t in recipe.terms.values())),
        branch_tokens=train.branch_tokens,
    )


def load_of(rows: Sequence[RowLength]) -> Load:
    """Return the load of these rows as one micro-batch."""
    return Load(sum(r.tokens for r in rows), sum(r.scored for r in rows), sum(r.branch_tokens for r in rows))


def largest(fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `LONGEST` for which `fits` is true, or 0; `fits` must be true below any number
    for which it is true."""
    low, high = 0, LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def longest_trace(shape: ModelShape, setup: TrainSetup, like: Load, where: Room, growth: Growth | None = None) -> int:
    """Return the tokens of the longest trace that can be trained on alone, with the scored and branch tokens of `like`
    in it.

    Args:
        growth: ratio of the growth of measured memory to that of estimated memory.
    """

    def fits(tokens: int) -> bool:
        peak = train_peak(shape, setup, Load(tokens, min(tokens, like.scored), like.branch_tokens))
        return where.holds(growth(peak) if growth else peak)

    return min(largest(fits), shape.max_length)


def require_fits(rows: Sequence[RowLength], shape: ModelShape, config: RunConfig, where: Room | None = None) -> None:
    """Raise an error before the first training step if a micro-batch cannot fit, whatever the order of the rows.

    This is cheap: nothing is measured and no model is loaded. Estimates are scaled down by `DOUBT`, so rows that fit
    are never refused.

    Raises:
        DoesNotFitError: the message names the longest rows, and what would fit.
    """
    where = where or room(config.run.device)
    setup = setup_of(shape, config.run, config.train, where.on_cpu)
    order = sorted(rows, key=lambda r: (-r.tokens, r.trace_id))
    each = config.train.micro_batch_size or config.train.batch_size
    # even the shortest rows together, or one row alone: what no order of rows could avoid
    unavoidable = [load_of(order[:1]), load_of(order[-each:])]
    if not order or all(_least(train_peak(shape, setup, load)) <= where.available for load in unavoidable):
        return
    raise DoesNotFitError(_why(order, shape, setup, each, where), hint=_what_would(order, shape, setup, where))


def _least(peak: Peak) -> float:
    """Return the smallest amount of free memory that a stage needs."""
    return DOUBT * (peak.total - peak.parts.get("program", 0))


def _why(order: Sequence[RowLength], shape: ModelShape, setup: TrainSetup, each: int, where: Room) -> str:
    longest = longest_trace(shape, setup, load_of(order[:1]), where)
    above = [r for r in order if r.tokens > longest]
    if not above:
        need = where.need(train_peak(shape, setup, load_of(order[-each:])))
        return (
            f"training on {each} rows at once needs about {need / 1e9:.1f} GB, but only "
            f"{where.available / 1e9:.1f} GB are {where.source}"
        )
    names = ", ".join(f"{r.trace_id} ({r.tokens:,} tokens)" for r in above[:5])
    more = f" and {len(above) - 5} more" if len(above) > 5 else ""
    fitting = f"the longest that fits has {longest:,} tokens" if longest else "no trace fits, however short"
    return (
        f"{len(above)} traces are too long for {where.available / 1e9:.1f} GB of memory "
        f"({where.source}): {names}{more}; {fitting}"
    )


def _what_would(order: Sequence[RowLength], shape: ModelShape, setup: TrainSetup, where: Room) -> str:
    """Return settings under which the longest row can be trained on, or the advice to shorten traces."""
    for words, other in options(shape, setup):
        if where.holds(train_peak(shape, other, load_of(order[:1]))):
            return f"set {words}"
    return "leave these traces out, shorten them, or use a machine with more memory"


def options(shape: ModelShape, setup: TrainSetup, rank: int = 32) -> list[tuple[str, TrainSetup]]:
    """Return settings that need less and less memory, beginning with the present ones, each with its config keys."""
    small = dataclasses.replace(
        setup,
        rank=rank,
        trained=shape.adapter(rank, "all-linear"),
        teacher=dataclasses.replace(setup.teacher, copies=0),
    )
    out = [("train.micro_batch_size=1", dataclasses.replace(setup, accumulates=True))]
    if not setup.checkpointing:
        out.append(
            (
                "train.micro_batch_size=1 train.gradient_checkpointing=true",
                dataclasses.replace(setup, accumulates=True, checkpointing=True),
            )
        )
    if not setup.rank:
        out.append(
            (
                f"train.micro_batch_size=1 train.gradient_checkpointing=true train.lora.rank={rank}",
                dataclasses.replace(small, accumulates=True, checkpointing=True),
            )
        )
    return out


@dataclass(frozen=True)
class Recommended:
    """Hold settings under which everything fits, and the reason."""

    settings: Mapping[str, Any]
    token_budget: int
    """Maximum number of tokens in a micro-batch under these settings."""
    batches: int
    """Number of micro-batches per epoch if rows were packed by length up to the budget."""
    largest_batch: int
    """Number of rows in the largest of them."""
    why: str


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return rows sorted by length and packed up to `budget` tokens each, longest first; a row above the budget is
    alone."""
    out: list[list[int]] = []
    for n in sorted(lengths, reverse=True):
        if not out or sum(out[-1]) + n > budget:
            out.append([])
        out[-1].append(n)
    return out


def recommend(
    rows: Sequence[RowLength],
    choices: Sequence[tuple[str, TrainSetup]],
    train: TrainSection,
    holds: Callable[[TrainSetup, Load], bool],
) -> Recommended | None:
    """Return the first settings that fit the longest row, and the largest micro-batch that fits under them; None if
    none do."""
    batch_size = train.batch_size
    order = sorted(rows, key=lambda r: -r.tokens)
    for words, setup in choices if order else ():
        # one row at a time at first: accumulation keeps gradients beside activations
        if not holds(setup, load_of(order[:1])):
            continue
        budget = _budget(setup, order, holds)
        sizes = [m for m in range(2, batch_size + 1) if batch_size % m == 0]
        micro = max((m for m in sizes if sum(r.tokens for r in order[:m]) <= budget), default=1)
        settings: dict[str, Any] = {"train.micro_batch_size": micro}
        settings |= dict(w.split("=", 1) for w in words.split() if not w.startswith("train.micro_batch_size"))
        packed = by_length([r.tokens for r in order], max(budget, order[0].tokens))
        why = f"the {micro} longest rows have {sum(r.tokens for r in order[:micro]):,} tokens in total"
        return Recommended(
            settings | {f"train.recipe.terms.{name}.normalize": "per_row" for name in train.effective_recipe.terms},
            budget,
            len(packed),
            max(map(len, packed)),
            f"{why}; every injection has the same weight",
        )
    return None


def _budget(setup: TrainSetup, order: Sequence[RowLength], holds: Callable[[TrainSetup, Load], bool]) -> int:
    """Return the number of tokens in a micro-batch that fits, given the run's own share of scored tokens and
    branches."""
    total = sum(r.tokens for r in order)
    scored, branches = sum(r.scored for r in order) / total, sum(r.branch_tokens for r in order) / total
    most = largest(lambda n: holds(setup, Load(n, round(n * scored), round(n * branches))))
    return min(most, max(ENOUGH, order[0].tokens))

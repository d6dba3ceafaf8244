"""Load a run's targets as training rows, in the same way as the run's own training."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from hintdistill.bridges.narrow import Narrowed, Tail
from hintdistill.config import TrainSection
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.pipeline import train
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.stored import StoredTargets
from hintdistill.training.rows import Rows, build_rows


@dataclass(frozen=True)
class RunRows:
    """Hold the data on which a run would train."""

    ctx: RunContext
    targets: StoredTargets
    """Accepted hints and held targets of the training split, as stored."""
    rows: Rows
    """Rows of these targets, with the requested number of ids per token."""

    trusted: bool = False
    """Whether settings of a run folder that this user did not write may run code and download; see `core.trust`."""

    def scope(self) -> AbstractContextManager[None]:
        """Return the scope in which the run's settings are used to load its model and tokenizer."""
        return in_use(self.ctx.config, self.trusted)

    @property
    def section(self) -> TrainSection:
        """The run's training section."""
        return self.ctx.config.train


def require_no_action_span(section: TrainSection, what: str) -> None:
    """Raise ConfigError for a recipe that excludes reasoning from the loss; `what` weights the quoted tokens and
    supports no other span."""
    named = [n for n, t in section.effective_recipe.terms.items() if t.span == "action"]
    if named:
        raise ConfigError(
            f"train.recipe.terms.{named[0]}.span=action excludes reasoning from the loss, but {what} weights the "
            "quoted tokens, which may be in the reasoning",
            hint="train with span: step or quote; or export --to hf, trl, tinker or axolotl, which take the recipe's own weights",
        )


def open_rows(run: Path, k: int | None = None, tail: Tail = "keep", *, trust: bool = False) -> RunRows:
    """Read a run's targets.

    Args:
        run: a run folder; for a loop, the folder of one of its rounds.
        k: number of ids per token, including the sampled one; None for all stored ids.
        tail: treatment of the rest.
        trust: whether a run folder that this user did not write may run its code and download; reading its targets
            needs neither.

    Raises:
        InputError: there is no run, or it has no targets to train on.
    """
    rundir = RunDir.open(run)
    config, _ = rundir.config()
    if rundir.index("rescore") is None:
        raise InputError(
            f"{run} has no targets: its rescore stage has not finished",
            hint="hintdistill run … --until rescore; for a loop, name the folder of one of its rounds",
        )
    with in_use(config, trust):
        ctx = RunContext(config, rundir, Console(quiet=True))
        targets = train.selected(ctx)
        if not any(t.kind == "hint" for t in targets.heads):
            raise InputError(
                f"{run} has no accepted hint to train on", hint=f"hintdistill show {run} gives the reasons"
            )
        return RunRows(ctx, targets, build_rows(Narrowed(targets, k, tail), config.train), trust)

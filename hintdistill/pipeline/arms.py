"""The runner of arms: variants of shared targets that are trained on equally many rows for equally many optimiser
steps.

An arm consists of a name, a way to make its targets, and its own training settings (e.g. its learning rate). A job
trains and measures one arm. A job's result is one JSON file, stored under a key of everything it depends on. A job
without a result under its current key is run, so a kill costs only the job in progress. A job without a result under
its current key is owed, so a kill costs only the job in progress.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hintdistill.config import OUTPUT_KEYS, RunSection, TrainSection
from hintdistill.core.errors import EmptyFunnelError, HintdistillError
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key, write_atomic
from hintdistill.core.types import HELD
from hintdistill.core.variables import environment_variables
from hintdistill.injection.hints import seed_of
from hintdistill.pipeline.progress import Advance, Console
from hintdistill.recipes.describe import content

if TYPE_CHECKING:
    from hintdistill.training.reward import OutcomeData
    from hintdistill.training.stage import TrainSummary

RESULT = "result.json"


@dataclass(frozen=True)
class Arm:
    """Define a variant of the shared targets."""

    name: str
    targets: Callable[[], Sequence[Target]]
    """Makes the targets, including anchors; called only if the arm has no result yet."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the `train` section that differ from the other arms."""


@dataclass(frozen=True)
class Budget:
    """Hold the quantities that are equal in all arms."""

    rows: int
    """Number of hint rows: steps with a loss of their own."""
    anchors: int
    """Number of anchor rows; see `others`."""
    steps: int
    """Number of optimiser steps."""
    fill: bool = True
    """Whether to repeat the rows of an arm that has too few; otherwise `rows` and `anchors` are upper bounds."""
    held_share: float = 0.5
    """Share of the anchors drawn from `held` targets, if there are any."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Rows of held kinds (`twin`, `hold`) that have a separate number; rows of other held kinds count as `anchors`."""

    def content(self) -> dict[str, Any]:
        """Return the values that results depend on, as plain data; `others` is omitted if empty, so that older keys
        stay valid."""
        data = asdict(self)
        return data if self.others else {k: v for k, v in data.items() if k != "others"}


# -- settings ----------------------------------------------------------------------------------------------------------


def changed(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `train` section with an arm's changes merged into it, key by key.

    A changed recipe starts from the section's recipe, unless the change names another one with `preset`.
    """
    own = change.get("recipe")
    if isinstance(own, Mapping) and "preset" not in own and base.get("recipe") is not None:
        change = {**change, "recipe": {"preset": base["recipe"], **own}}
    return _merged(base, change)


def combined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return one change of a `train` section that has the effect of `first` followed by `second`."""
    before, own = first.get("recipe"), second.get("recipe")
    if isinstance(before, Mapping) and isinstance(own, Mapping) and "preset" not in {*before, *own}:
        # both change the recipe of a section that is not here
        return _merged(first, {**second, "recipe": _merged(before, own)})
    return changed(first, second)


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for name, value in change.items():
        old = out.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and name != "recipe":
            value = _merged(old, value)
        out[name] = value
    return out


def cross_entropy(section: TrainSection) -> dict[str, Any]:
    """Return the change that gives a section's hint rows the forward KL; with a target that is certain of one token,
    this is cross-entropy."""
    named = [name for name, term in section.effective_recipe.terms.items() if term.rows == "hint"]
    return {
        "recipe": {"preset": section.recipe, "terms": {name: {"divergence": {"kind": "fkl"}} for name in named}},
    }


def training_content(section: TrainSection) -> dict[str, Any]:
    """Return the settings that a training run depends on; a recipe's name or path is replaced by its content."""
    external = section.effective_recipe.teacher.model
    return {
        **section.model_dump(mode="json", exclude={"recipe", *OUTPUT_KEYS}),
        "recipe": content(section.effective_recipe),
        "teacher": None if external is None else model_key(resolve_model(external)).weights,
    }


# -- rows and steps ----------------------------------------------------------------------------------------------------


def draw_rows(
    targets: Sequence[Target], budget: Budget, salt: str, held: Sequence[Target] = ()
) -> tuple[list[Target], dict[str, int]]:
    """Draw the budget's rows from the accepted targets, by `salt` alone. Return them and the number of distinct rows of
    each kind.

    If there are too few, rows are repeated in rounds, under keys of their own, up to the requested number. A kind
    without any target stays empty.

    Args:
        held: further anchors, which are the same in every arm.
    """
    of_held = round(budget.held_share * budget.anchors) if held else 0
    kinds = ("hint", "anchor", *budget.others)
    own = {kind: [t for t in targets if t.kind == kind and t.accepted] for kind in kinds}
    # what has no number of its own counts as an anchor
    own["anchor"] = [t for t in targets if t.kind in HELD and t.kind not in budget.others and t.accepted]
    out: list[Target] = []
    distinct = dict.fromkeys(kinds, 0)
    for kind, members, wanted in (
        ("hint", own["hint"], budget.rows),
        ("anchor", own["anchor"], budget.anchors - of_held),
        ("anchor", list(held), of_held),
        *((kind, own[kind], number) for kind, number in budget.others.items()),
    ):
        members.sort(key=lambda t: t.key)
        random.Random(seed_of("rows", salt, kind)).shuffle(members)
        distinct[kind] += min(wanted, len(members))
        for i in range((wanted if budget.fill else min(wanted, len(members))) if members else 0):
            again, at = divmod(i, len(members))
            out.append(replace(members[at], key=f"{members[at].key}#{again}") if again else members[at])
    return out, distinct


@dataclass(frozen=True)
class ArmTraining:
    """Define one training of one arm."""

    name: str
    """The name, used in errors and in the training's key."""
    student: Path
    """The folder of the weights to start from."""
    initial: Path
    """The folder of the initial policy."""
    run: RunSection
    section: TrainSection
    """The arm's own settings; `steps` decides the number of epochs."""
    steps: int
    """Number of optimiser steps."""
    outcome: OutcomeData | None = None
    made_of: str = ""
    """Key of everything the targets are made of that their own keys do not cover, e.g. prompts."""


def train_arm(
    job: ArmTraining, targets: list[Target], out: Path, work: Path, advance: Advance | None = None
) -> TrainSummary:
    """Train on `targets` for exactly `job.steps` optimiser steps, unless `out` already contains that student.

    All training runs of arms go through this function.

    Args:
        advance: called after every optimiser step.

    Raises:
        EmptyFunnelError: there is no hint row, or training ended after another number of steps than requested.
        TripwireError: a value is not finite, or a bound of `train.tripwires` was exceeded.
    """
    from hintdistill.training.reward import NO_OUTCOME
    from hintdistill.training.rows import build_rows
    from hintdistill.training.stage import TrainData, TrainJob, read_summary, train
    from hintdistill.training.watch import WatchSets

    outcome = job.outcome or NO_OUTCOME
    per_epoch = math.ceil(len(build_rows(targets, job.section, outcome)) / job.section.batch_size)
    # half a step less, because the number of steps is rounded up
    settings = job.section.model_dump() | {"epochs": (job.steps - 0.5) / max(per_epoch, 1), "save_steps": 10**6}
    config = TrainSection.model_validate(settings)
    ended = [] if outcome.key is None else [outcome.key]
    weights = [model_key(folder).weights for folder in (job.student, job.initial)]
    made_of = [[t.key for t in targets], job.made_of, training_content(config), weights]
    key = content_key("arm", job.name, *made_of, job.run.seed, job.run.dtype, *ended)
    summary = read_summary(out)
    if summary is None or summary.key != key:
        shutil.rmtree(work, ignore_errors=True)  # of a training run with other settings
        # what moved is measured afterwards, on steps that all arms share
        watch = WatchSets(
            from_initial=job.student == job.initial or config.effective_recipe.teacher.update == "initial"
        )
        data = TrainData(targets, watch=watch, outcome=outcome)
        training = TrainJob(job.student, data, job.run, config, work, out, key, job.initial)
        summary = train(training, None if advance is None else lambda done, total: advance(1))
    if summary.steps != job.steps:
        raise EmptyFunnelError(f"{job.name}: {summary.steps} optimiser steps instead of {job.steps}")
    return summary


# -- jobs --------------------------------------------------------------------------------------------------------------


class ArmJob(Protocol):
    """A piece of work whose result is kept. It must be picklable if it runs in a separate process."""

    @property
    def name(self) -> str:
        """Return the folder of the result, relative to the folder of all results."""
        ...

    @property
    def units(self) -> int:
        """Return how many units the job adds to the progress bar."""
        ...

    def key(self) -> str:
        """Return the content key of everything that the result depends on."""
        ...

    def run(self, advance: Advance) -> dict[str, Any]:
        """Do the work and return the result as plain data. Call `advance` at most `units` times."""
        ...


def seconds_per_step(run: Path) -> float | None:
    """Return the seconds per optimiser step of the run's own training, from its metrics; None if it has not trained."""
    for path in sorted((run / "train").glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        known = [r["train_runtime"] / r["step"] for r in rows if r.get("train_runtime") and r["step"]]
        if known:
            return float(known[-1])
    return None


def result_of(folder: Path, job: ArmJob) -> dict[str, Any] | None:
    """Return the result of a job, or None if there is none yet."""
    path = folder / job.name / RESULT
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result.get("key") == job.key() else None


def perform(folder: Path, job: ArmJob, advance: Advance = lambda _: None) -> Path:
    """Run a job unless its result exists, and return the file of its result. Raises whatever the job raises."""
    path = folder / job.name / RESULT
    if result_of(folder, job) is None:
        began = time.process_time()
        row = {"key": job.key(), **job.run(advance), "cpu_seconds": time.process_time() - began}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(row, ensure_ascii=False, allow_nan=False))
    return path


def run_owed(
    folder: Path, jobs: Sequence[ArmJob], label: str, console: Console, *, processes: int | None = None
) -> int:
    """Run the jobs without a result in order, and return their number.

    Args:
        processes: number of single-threaded processes that share the work; None does the jobs in this process, one
            after the other.

    Raises:
        HintdistillError: a job failed. With several processes, the other jobs are finished first; all results are kept.
    """
    owed = [j for j in jobs if result_of(folder, j) is None]
    with console.progress(label, sum(j.units for j in jobs)) as advance:
        advance.before(sum(j.units for j in jobs) - sum(j.units for j in owed))
        if owed and processes is not None:
            _in_processes(folder, owed, min(processes, len(owed)), lambda job, s: _done(console, advance, job, s))
        for job in owed if processes is None else ():
            counted, began = 0, time.monotonic()
            advance.says(job.name)

            def one(n: int) -> None:
                nonlocal counted
                counted += n
                advance(n)

            perform(folder, job, one)
            advance(job.units - counted)
            console.note(f"{job.name}: {time.monotonic() - began:.0f} s")
    return len(owed)


def _done(console: Console, advance: Advance, job: ArmJob, seconds: float) -> None:
    advance(job.units)
    console.note(f"{job.name}: {seconds:.0f} s")


def _in_processes(
    folder: Path, owed: Sequence[ArmJob], processes: int, done: Callable[[ArmJob, float], object]
) -> None:
    failed: list[tuple[ArmJob, HintdistillError]] = []
    # two threads on a busy machine are ten times slower than one; torch reads this when the child imports it
    with environment_variables({"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            futures = {pool.submit(_timed, folder, job): job for job in owed}
            for future in as_completed(futures):
                job = futures[future]
                try:
                    done(job, future.result())
                except HintdistillError as error:
                    failed.append((job, error))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    if failed:
        job, first = failed[0]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise type(first)(
            f"job {job.name}{more}: {first.message}",
            hint=f"{first.hint}; --resume does the remaining work"
            if first.hint
            else "--resume does the remaining work",
        )


def _timed(folder: Path, job: ArmJob) -> float:
    import torch

    torch.set_num_threads(1)
    began = time.monotonic()
    perform(folder, job)
    return time.monotonic() - began

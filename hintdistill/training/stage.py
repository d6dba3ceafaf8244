"""Run the training: model, adapters, arguments, checkpoints, resuming, and the resulting folder."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hintdistill.config import RunSection, TrainSection
from hintdistill.core.errors import EmptyFunnelError, InputError
from hintdistill.core.library_warnings import silence_libraries
from hintdistill.core.models import load_tokenizer
from hintdistill.core.scores import Target
from hintdistill.core.storage import read_json, write_atomic
from hintdistill.engines.transformers import pick_device, pick_dtype
from hintdistill.rescoring.stored import by_key, heads
from hintdistill.training import checkpoints, processes, unlogged
from hintdistill.training.floor import engine_floor
from hintdistill.training.metrics_rows import cut_metrics, write_row
from hintdistill.training.output import SUMMARY, write_student
from hintdistill.training.reference_models import Others
from hintdistill.training.reward import NO_OUTCOME, OutcomeData
from hintdistill.training.rows import RowDataset, TraceRow, build_rows
from hintdistill.training.students import Student, load_student
from hintdistill.training.trackers import tracking
from hintdistill.training.tripwires import Crossing, Tripwires, unread
from hintdistill.training.watch import NOTHING, Watch, WatchSets


@dataclass(frozen=True)
class TrainSummary:
    """Summarise a training run; the summary is written into the student's complete folder."""

    key: str
    hint_rows: int
    anchor_rows: int
    rows: int
    """Number of traces read; hints and anchors are their steps."""
    steps: int
    way: str
    """How prefixes were shared, a name from `engines.sharing`; `shared_prefix` is the fastest, and all are exact."""
    engine_floor_nats: float
    """Mean KL in nats per token between the plain views of the rescoring engine and of the trainer."""
    trainable_parameters: int
    parameters: int
    grad_window_cosine: float | None = None
    """The smallest measured cosine between truncated and exact gradient, with `train.grad_window`."""
    arrived: dict[str, str] | None = None
    """The adapter that the student came as, and how it was used; see `students.Arrived`."""
    outcome_rows: int = 0
    """Number of sampled steps trained on by the outcome reward."""
    twin_rows: int = 0
    hold_rows: int = 0
    """Number of steps of hold traces."""
    contexts: dict[str, int] | None = None
    """Context of a teacher's view → number of hint rows that have it; None in summaries of an earlier release."""


def read_summary(student: Path) -> TrainSummary | None:
    """Return the summary of a finished training, or None if there is none."""
    try:
        return TrainSummary(**json.loads((student / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class TrainData:
    """Hold the data of a training run."""

    targets: Sequence[Target]
    """Accepted hints, chosen anchors, hold steps and twins to train on."""
    heldout: Sequence[Target] = ()
    """Accepted hints of held-out tasks, on which a `cgtr` teacher is evaluated."""
    watch: WatchSets = NOTHING
    """Steps that are measured during training, see `watch`."""
    outcome: OutcomeData = NO_OUTCOME
    """The outcomes of the rollouts, for a recipe that uses rewards."""


@dataclass(frozen=True)
class TrainJob:
    """Define one training: the model, its data, its settings, and its folders."""

    folder: Path
    """The folder of the model to train."""
    data: TrainData
    run: RunSection
    config: TrainSection
    work: Path
    """The folder for checkpoints and metrics."""
    out: Path
    """The folder for the student."""
    key: str
    """Content key of all inputs, written into the summary."""
    initial: Path | None = None
    """The folder of the initial policy, if the model in `folder` is a later one."""


@dataclass(frozen=True)
class Listener:
    """Hold the callbacks of a training run."""

    progress: Callable[[int, int], None] | None = None
    """Called after each optimiser step with the numbers of finished and planned steps."""
    warn: Callable[[str], None] | None = None
    """Called when a bound is exceeded."""
    log: Callable[[Mapping[str, float]], None] | None = None
    """Called with the measurements of a logging step; see docs/metrics.md."""


SILENT = Listener()


def train(
    job: TrainJob,
    progress: Callable[[int, int], None] | None = None,
    *,
    warn: Callable[[str], None] | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
) -> TrainSummary:
    """Train the job's model on accepted targets and save it to `job.out`; checkpoints go to `job.work`.

    If it is interrupted and called again with the same job, it continues from the last complete checkpoint and ends
    with the same weights. If there are several processes, each calls this with the same job; the main one measures and
    writes. `progress`, `warn` and `log` are as in `Listener`.

    Raises:
        EmptyFunnelError: there is no accepted hint among the targets, or none is held out although the teacher needs
            them.
        ConfigError: the rows cannot be divided among the processes, or they cannot read the checkpoint.
        ModelError: an external teacher cannot be loaded or has another tokenizer, or `train.grad_window` is used on a
            model with layers that do not attend.
        TripwireError: the loss, the gradient or a weight is not finite, or a bound of `train.tripwires` was exceeded.
            `job.out` and the last checkpoint are unchanged.
    """
    data, run, config, work = job.data, job.run, job.config, job.work
    hints = sum(h.kind == "hint" for h in heads(data.targets))
    if not hints:
        raise EmptyFunnelError("no accepted hint to train on", hint="the report lists why each hint was rejected")
    device = _start(run, config)
    silence_libraries()
    student = load_student(job.folder, run, config, device)
    rows = build_rows(by_key(data.targets), config, data.outcome)
    others = Others.load(job.folder, run, config, device, job.initial, data.heldout)
    with tracking(config, work, job.key) as trackers:
        trainer = make_trainer(
            student.model,
            rows,
            run,
            config,
            work,
            special_ids=_special_ids(job.folder, config),
            others=others,
            trackers=trackers,
            watch=data.watch,
            listener=Listener(progress, warn, log),
        )
        floor = processes.from_main(lambda: _floor(trainer, rows, work))
        last = _continued(trainer, work)
        parameters = _parameters(student.model)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    trainer.require_finite()
    summary = TrainSummary(
        key=job.key,
        hint_rows=hints,
        anchor_rows=rows.number_of("anchor"),
        rows=len(rows),
        steps=trainer.state.global_step,
        way=trainer.passes.way,
        engine_floor_nats=floor,
        trainable_parameters=student.trainable,
        parameters=parameters,
        grad_window_cosine=None if trainer.probe is None else trainer.probe.least,
        arrived=student.arrived.record() if student.arrived else None,
        outcome_rows=len(data.outcome.rows),
        twin_rows=rows.number_of("twin"),
        hold_rows=rows.number_of("hold"),
        contexts=rows.contexts(),
    )
    _save(trainer, student, job, summary)
    return summary


def _continued(trainer: Any, work: Path) -> Path | None:
    """Give the trainer what earlier calls logged and read, and return the last complete checkpoint, if any.

    Raises TripwireError if the last reading exceeds a bound.
    """
    last = processes.from_main(lambda: _last_checkpoint(work))
    total, reading = processes.from_main(lambda: cut_metrics(work, last))
    if last is not None and not unlogged.load(trainer, last):
        trainer.losses.total, trainer.losses.step = total, int(last.name.rpartition("-")[2])
    if trainer.watch is not None and reading:
        trainer.watch.last = reading["step"]
        if trainer.tripwires is not None:
            # a bound that was drawn tighter since is held against what is not read again
            trainer.tripwires.check(reading, reading["step"])
    return last


def _start(run: RunSection, config: TrainSection) -> torch.device:
    """Connect to the other processes, and return the device to train on."""
    from transformers import set_seed

    processes.check_launch(config.grad_window)
    set_seed(run.seed)
    device = pick_device(run.device)
    processes.join(device)
    return device


def make_trainer(
    model: Any,
    rows: Sequence[TraceRow],
    run: RunSection,
    config: TrainSection,
    work: Path,
    *,
    special_ids: Sequence[int] = (),
    others: Others | None = None,
    trackers: Mapping[str, Any] | None = None,
    watch: WatchSets = NOTHING,
    listener: Listener = SILENT,
) -> Any:
    """Return the trainer for these rows, on the device of `run`; checkpoints and metrics go to `work`."""
    from transformers import TrainerCallback

    from hintdistill.training.trainer import HintTrainer

    class Metrics(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            processes.keep_head_whole(trainer.owner)
            if trainer.follower is not None:
                trainer.follower.bind()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if processes.is_main():
                write_row(work, {"step": state.global_step, **(logs or {})})
            if listener.log:
                listener.log(logs or {})

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.follower is not None:
                trainer.follower.after_step(state.global_step)
            if listener.progress:
                listener.progress(state.global_step, state.max_steps)

    micro, world = processes.rows_per_pass(config.batch_size, config.micro_batch_size), processes.world()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    work.mkdir(parents=True, exist_ok=True)
    arguments = _arguments(model, run, config, work, len(rows), trackers or {"report_to": "none"})
    trainer = HintTrainer(
        model=model,
        args=arguments,
        train_dataset=RowDataset(rows, micro * world if world > 1 else 1),
        config=config,
        callbacks=[Metrics()],
        special_ids=special_ids,
        **(others or Others()).arguments(),
        from_initial=watch.from_initial,
        watch=_watch(watch, config, run.seed, listener.warn),
        tripwires=Tripwires(config.tripwires, work, partial(_warn, work, listener.warn)),
    )
    _silence(trainer)
    return trainer


def _arguments(
    model: Any,
    run: RunSection,
    config: TrainSection,
    work: Path,
    rows: int,
    trackers: Mapping[str, Any],
) -> Any:
    """Return the Trainer's arguments; `rows` is the number of rows to train on."""
    from transformers import TrainingArguments

    device = pick_device(run.device)
    micro = processes.rows_per_pass(config.batch_size, config.micro_batch_size)
    steps = math.ceil(config.epochs * math.ceil(rows / config.batch_size))
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * processes.world()),
        learning_rate=config.rate,
        num_train_epochs=config.epochs,
        lr_scheduler_type=config.schedule,
        # the first step of a warm-up has a rate of 0, so a run of few steps has none
        warmup_steps=int(config.warmup_ratio * steps),
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        seed=run.seed,
        data_seed=run.seed,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=config.keep_checkpoints,
        logging_steps=config.logging_steps,
        **trackers,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        # `config.arguments` has taken none that is set here
        **{"optim": "adamw_torch", **config.arguments},
        dataloader_pin_memory=False,
        # full weights stay float32 and are cast as they are used
        bf16=config.lora is None and pick_dtype(run.dtype, device, _parameters(model)) == torch.bfloat16,
        log_level="error",
        ddp_find_unused_parameters=processes.may_leave_unused(model),
    )


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _watch(sets: WatchSets, config: TrainSection, seed: int, warn: Callable[[str], None] | None) -> Watch:
    watch = Watch(sets, config.watch, config.logging_steps, seed)
    # who wants to be stopped should know what cannot stop the run
    if config.tripwires.action == "stop" and warn is not None and (names := unread(config.tripwires, watch.rows)):
        warn(
            f"train.tripwires.{', '.join(names)} has no effect: there is no step to measure it on (see "
            "train.watch, traces.holdout)"
        )
    return watch


def _warn(work: Path, warn: Callable[[str], None] | None, crossing: Crossing) -> None:
    """Handle an exceeded bound under `action: warn`: write a row to the metrics and call the listener, once for all
    processes."""
    if not processes.is_main():
        return
    write_row(
        work,
        {
            "step": crossing.step,
            "tripwire": crossing.wire.name,
            "value": crossing.value,
            "bound": crossing.bound,
            "message": str(crossing),
        },
    )
    if warn is not None:
        warn(f"{crossing}; {crossing.wire.advice}")


def _special_ids(folder: Path, config: TrainSection) -> list[int]:
    """Return the tokenizer's special tokens, if the recipe removes them from supports."""
    if not any(t.support.drop_special for t in config.effective_recipe.terms.values()):
        return []
    return sorted(load_tokenizer(folder).all_special_ids)


def _silence(trainer: Any) -> None:
    """Silence the Trainer's own printing of log dictionaries, because the pipeline shows the progress."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _floor(trainer: Any, rows: Sequence[TraceRow], work: Path) -> float:
    """Measure the engine floor once, before the first update, and keep it for a resumed run."""
    stored = work / "engine_floor.json"
    # a checkpoint is loaded after this, so that it can be measured again at any time
    with contextlib.suppress(FileNotFoundError, InputError):
        return float(read_json(stored, float))
    floor = engine_floor(trainer, rows[:32])
    write_atomic(stored, json.dumps(floor))
    return floor


def _last_checkpoint(work: Path) -> Path | None:
    """Return the newest complete checkpoint; broken ones are removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for path in found:
        # the trainer state is the last thing a checkpoint gets
        if (path / "trainer_state.json").is_file() and not checkpoints.broken(path, every_byte=True):
            return path
        shutil.rmtree(path)
    return None


def _save(trainer: Any, student: Student, job: TrainJob, summary: TrainSummary) -> None:
    """Write the student's folder in the main process; see `output.write_student`."""
    # where weights are sharded, all processes take part in gathering them
    weights = trainer.accelerator.get_state_dict(trainer.model) if processes.is_sharded(trainer.owner) else None
    write = partial(
        write_student,
        job.out,
        trainer.owner,
        folder=job.folder,
        run=job.run,
        config=job.config,
        summary=asdict(summary),
        arrived=student.arrived,
        state_dict=weights,
    )
    processes.from_main(write)

"""Run the training: model, adapters, arguments, checkpoints, resume, and the folder that comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hintdistill.config import RunSection, TrainSection
from hintdistill.engines.transformers import load_model, pick_device, pick_dtype
from hintdistill.errors import EmptyFunnelError
from hintdistill.models import TEMPLATES, TOKENIZER
from hintdistill.scores import Target
from hintdistill.training import processes
from hintdistill.training.rows import RowDataset, TraceRow, build_rows

SUMMARY = "hintdistill.json"


@dataclass(frozen=True)
class TrainSummary:
    """What a training did; written into the student's folder when it is whole."""

    key: str
    hint_rows: int
    anchor_rows: int
    rows: int
    """Traces that were read; hints and anchors are their steps."""
    steps: int
    engine_floor_nats: float
    """Mean KL between the plain view of the rescoring engine and of the trainer, nats per token."""
    trainable_parameters: int
    parameters: int


def read_summary(student: Path) -> TrainSummary | None:
    """The summary of a finished training, or None where there is none."""
    try:
        return TrainSummary(**json.loads((student / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def train(
    folder: Path,
    targets: Sequence[Target],
    run: RunSection,
    config: TrainSection,
    work: Path,
    out: Path,
    key: str,
    progress: Callable[[int, int], None] | None = None,
) -> TrainSummary:
    """Train the model of `folder` on accepted targets and save it to `out`; checkpoints go to `work`.

    Interrupted and called again with the same arguments, it goes on from the last whole checkpoint and ends with the
    same weights. Where there are several processes, each of them calls this with the same arguments; the main one measures
    and writes.

    Raises:
        EmptyFunnelError: no accepted hint among the targets.
        ConfigError: the processes cannot share the rows, or cannot read the checkpoint.
        TripwireError: the loss is not finite.
    """
    from transformers import set_seed

    hints = [t for t in targets if t.kind == "hint"]
    if not hints:
        raise EmptyFunnelError("no accepted hint to train on", hint="the report lists why each was rejected")
    processes.check_launch()
    set_seed(run.seed)
    device = pick_device(run.device)
    processes.join(device)
    model, trainable = _student(folder, run, config, device)
    ordered = sorted(targets, key=lambda t: t.key)
    rows = build_rows(ordered, config)
    trainer = _trainer(model, rows, run, config, work, device, progress, _special_ids(folder, config))
    floor = processes.from_main(lambda: _floor(trainer, rows, work))
    last = processes.from_main(lambda: _last_checkpoint(work))
    parameters = sum(p.numel() for p in model.parameters())
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    summary = TrainSummary(
        key=key, hint_rows=len(hints), anchor_rows=_count(rows, "anchor"), rows=len(rows), steps=trainer.state.global_step,
        engine_floor_nats=floor, trainable_parameters=trainable, parameters=parameters,
    )  # fmt: skip
    whole = _gathered(trainer, lambda: _student(folder, run, config, torch.device("cpu"))[0])
    processes.from_main(lambda: _save(whole, folder, out, summary))
    return summary


def _student(folder: Path, run: RunSection, config: TrainSection, device: torch.device) -> tuple[Any, int]:
    # full weights are trained in float32, so that small updates are not rounded away
    dtype = pick_dtype(run.dtype, device) if config.lora else torch.float32
    model = load_model(folder, dtype, device)
    model.config.use_cache = False
    if config.lora is not None:
        from peft import LoraConfig, get_peft_model

        modules = config.lora.target_modules
        model = get_peft_model(
            model,
            LoraConfig(
                r=config.lora.rank, lora_alpha=config.lora.alpha, lora_dropout=config.lora.dropout, task_type="CAUSAL_LM",
                target_modules=modules if isinstance(modules, str) else list(modules),
            ),
        )  # fmt: skip
    return model, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _trainer(
    model: Any, rows: list[Any], run: RunSection, config: TrainSection, work: Path, device: torch.device,
    progress: Callable[[int, int], None] | None, special_ids: Sequence[int] = (),
) -> Any:  # fmt: skip
    from transformers import TrainerCallback, TrainingArguments

    from hintdistill.training.trainer import HintTrainer

    class Metrics(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            processes.keep_head_whole(trainer.owner)
            if trainer.follower is not None:
                trainer.follower.bind()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if not processes.is_main():
                return
            with (work / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.follower is not None:
                trainer.follower.after_step(state.global_step)
            if progress:
                progress(state.global_step, state.max_steps)

    micro, world = processes.rows_per_pass(config.batch_size, config.micro_batch_size), processes.world()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    work.mkdir(parents=True, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(work), per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * world),
        learning_rate=config.learning_rate, num_train_epochs=config.epochs, lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_steps, max_grad_norm=config.max_grad_norm, weight_decay=config.weight_decay,
        seed=run.seed, data_seed=run.seed, save_strategy="steps", save_steps=config.save_steps,
        save_total_limit=config.keep_checkpoints, logging_steps=config.logging_steps, report_to="none",
        remove_unused_columns=False, disable_tqdm=True, use_cpu=device.type == "cpu", optim="adamw_torch",
        bf16=device.type != "cpu" and config.lora is None, dataloader_pin_memory=False, log_level="error",
        ddp_find_unused_parameters=processes.may_leave_unused(model),
    )  # fmt: skip
    trainer = HintTrainer(
        model=model, args=arguments, train_dataset=RowDataset(rows, micro * world if world > 1 else 1), objective=config,
        callbacks=[Metrics()], special_ids=special_ids,
    )  # fmt: skip
    _silence(trainer)
    return trainer


def _count(rows: Sequence[TraceRow], kind: str) -> int:
    return sum(s.kind == kind for r in rows for s in r.slots)


def _special_ids(folder: Path, config: TrainSection) -> list[int]:
    """The tokenizer's special tokens, where the recipe takes them out of a support."""
    if not any(t.support.drop_special for t in config.objective.terms.values()):
        return []
    from transformers import AutoTokenizer

    return sorted(AutoTokenizer.from_pretrained(folder).all_special_ids)


def _silence(trainer: Any) -> None:
    """Progress is shown by the pipeline; the Trainer's own printing of log dictionaries would break into it."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _floor(trainer: Any, rows: list[Any], work: Path) -> float:
    """Measured once, before the first update, and kept for a resumed run."""
    stored = work / "engine_floor.json"
    if stored.is_file():
        return float(json.loads(stored.read_text(encoding="utf-8")))
    floor = trainer.engine_floor(rows[:32])
    stored.write_text(json.dumps(floor), encoding="utf-8")
    return floor


def _last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; broken ones are removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for path in found:
        # the trainer state is the last thing a checkpoint gets
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


def _gathered(trainer: Any, fresh: Callable[[], Any]) -> Any:
    """The trained model; where it is sharded, its weights in a fresh one on the main process, and None on the others."""
    if not processes.is_sharded(trainer.owner):
        return trainer.owner
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not processes.is_main():
        return None
    model = fresh()
    model.load_state_dict(state)
    return model


def _save(model: Any, folder: Path, out: Path, summary: TrainSummary) -> None:
    """Write the student aside and move it into place when it is whole; adapters are merged and kept beside it."""
    aside = out.with_name(out.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(aside / "adapter")
        model = model.merge_and_unload()
    model.config.use_cache = True
    model.save_pretrained(aside)
    for name in (*TOKENIZER, *TEMPLATES, "generation_config.json"):
        if (folder / name).is_file() and not (aside / name).exists():
            shutil.copy2(folder / name, aside / name)
    (aside / SUMMARY).write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)

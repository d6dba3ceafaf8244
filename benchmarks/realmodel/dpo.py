"""Train DPO on (corrected, erring) steps of one context, with TRL's own trainer and loss (Rafailov et al. 2023, arXiv 2305.18290).

Both steps are recorded token by token, so TRL gets ids and tokenises nothing. The reference is the model without its adapter.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from hintdistill.config import TrainSection
from hintdistill.core.errors import ConfigError, EmptyFunnelError
from hintdistill.core.models import load_tokenizer
from hintdistill.engines.transformers import pick_device, pick_dtype
from hintdistill.engines.weights import load_model
from hintdistill.injection.hints import seed_of
from hintdistill.pipeline.arms import ArmTraining
from hintdistill.training.output import write_student
from hintdistill.training.stage import TrainSummary
from hintdistill.training.students import lora_config

BETA = 0.1
"""Rafailov et al.'s, and TRL's default."""
MICRO = 2


class Pair(NamedTuple):
    """Two steps of one context."""

    context: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def drawn(pairs: Sequence[Pair], rows: int, salt: str) -> list[Pair]:
    """As many pairs as an arm has rows: in an order that the salt alone decides, repeated in rounds where there are too few.

    Raises:
        EmptyFunnelError: there is none.
    """
    if not pairs:
        raise EmptyFunnelError("no pair of a corrected and an erring step", hint="the hints corrected nothing")
    order = sorted(pairs)
    random.Random(seed_of("pairs", salt)).shuffle(order)
    return [order[i % len(order)] for i in range(rows)]


def trainer_of(model: Any, tokenizer: Any, pairs: Sequence[Pair], section: TrainSection, steps: int, work: Path) -> Any:
    """TRL's trainer on these pairs: the arm's rate, schedule and batch size, `steps` optimiser steps.

    Raises:
        ConfigError: TRL cannot be imported, so this arm is owed.
    """
    try:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
    except ImportError as error:
        raise ConfigError(f"the arm dpo needs TRL: {error}", hint="pip install 'hintdistill[peers]'") from None

    class Tokenised(DPOTrainer):
        """Takes ids as they were recorded."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    assert section.lora is not None
    settings = DPOConfig(
        output_dir=str(work),
        beta=BETA,
        learning_rate=section.rate,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=section.batch_size // MICRO,
        max_steps=steps,
        lr_scheduler_type=section.schedule,
        warmup_steps=int(section.warmup_ratio * steps),
        max_grad_norm=section.max_grad_norm,
        weight_decay=section.weight_decay,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not next(model.parameters()).is_cuda,
        save_strategy="no",
        report_to="none",
        logging_steps=5,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        log_level="error",
    )
    rows = [{f"{k}_ids": list(v) for k, v in zip(("prompt", "chosen", "rejected"), p, strict=True)} for p in pairs]
    return Tokenised(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(section.lora),
    )


def train_pairs(training: ArmTraining, pairs: Sequence[Pair], out: Path, work: Path) -> TrainSummary:
    """Train and write the student's adapter. Raises as `trainer_of` does."""
    from transformers import set_seed

    section, run, folder = training.section, training.run, training.student
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    device = pick_device(run.device)
    set_seed(run.seed)
    model = load_model(folder, pick_dtype(run.dtype, device, folder), device)
    trainer = trainer_of(model, load_tokenizer(folder), pairs, section, training.steps, work)
    trainer.train()
    trained = trainer.model
    sizes = [(p.numel(), p.requires_grad) for p in trained.parameters()]
    summary = TrainSummary(
        key="",
        hint_rows=len(pairs),
        anchor_rows=0,
        rows=len(pairs),
        steps=trainer.state.global_step,
        way="TRL",
        engine_floor_nats=0.0,
        trainable_parameters=sum(n for n, on in sizes if on),
        parameters=sum(n for n, _ in sizes),
    )
    write_student(out, trained, folder=folder, run=run, config=section, summary=asdict(summary))
    return summary

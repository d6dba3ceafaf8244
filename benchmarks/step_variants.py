"""The training steps that `train_step.py` compares: one row of L tokens with N errors, each with a hint above its step.

Each variant is made once from a model and a case, and then called: it runs the forward passes and the backward pass of
one step, leaves the gradient in the model, and returns the loss. All but `student_only` and `default` have the same
loss: the mean over the N steps of the mean over a step's tokens of KL(student ‖ teacher) over the whole vocabulary, the teacher
being the student itself under the hint. Nothing is padded, and the batch is one row throughout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from cases import Errors
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen2Config

from hintdistill.config import TrainSection
from hintdistill.core.scores import Measurement, ScoreRequest, Scores, Target
from hintdistill.engines.transformers import TransformersEngine

Step = Callable[[], float]
"""One forward and backward pass; the loss."""
LIVE = {
    "recipe": {
        "teacher": {"update": "live"},
        "terms": {"distill": {"support": {"kind": "full"}, "divergence": {"kind": "rkl"}}},
    },
    "targets": "in_step",
    "anchor": {"weight": 0.0},
}
"""The recipe of the comparison: the default one with a live teacher, the whole vocabulary and reverse KL, no anchor."""


@dataclass(frozen=True)
class Case(Errors):
    """One row to train on."""

    changed: bool = False
    """One hint token is another one: for the control of the gradient's comparison."""

    @property
    def trace(self) -> np.ndarray:
        """int64 [L]"""
        return np.random.default_rng(0).integers(0, self.vocab, self.tokens)

    @property
    def hints(self) -> list[np.ndarray]:
        """int64 [hint] for each error."""
        rng = np.random.default_rng(1)
        hints = [rng.integers(0, self.vocab, self.hint) for _ in self.ends]
        hints[0][-1] = (hints[0][-1] + self.changed) % self.vocab
        return hints

    def hinted(self, i: int, *, whole: bool = False) -> np.ndarray:
        """int64: what the teacher of error i reads, cut after its step, or the whole trace."""
        start = self.ends[i] - self.step
        return np.concatenate([self.trace[:start], self.hints[i], self.trace[start : None if whole else self.ends[i]]])


def seven_billion(layers: int = 28) -> PretrainedConfig:
    """The shape of Qwen2.5-7B."""
    return Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=layers,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    )


def build(config: PretrainedConfig, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A random model, ready to train; the same numbers in every process."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.config.use_cache = False
    return model.train()


def checkpoints(model: Any) -> bool:
    """Whether activations are computed again in the backward pass."""
    return any(getattr(m, "gradient_checkpointing", False) for m in model.modules())


class Plain:
    """The common part of the variants without this toolkit."""

    def __init__(self, model: Any, case: Case) -> None:
        model.set_attn_implementation("sdpa")
        self.model, self.case, self.device = model, case, model.device
        n = case.step
        self.rows = [torch.arange(e - n - 1, e - 1, device=self.device) for e in case.ends]
        """Positions of the trace that predict each step."""

    def logits(self, ids: np.ndarray, keep: int | Tensor = 0) -> Tensor:
        """The model's own logits, float32 [rows, V]; all rows, the last `keep`, or those given."""
        inputs = torch.from_numpy(ids)[None].to(self.device)
        out: Tensor = self.model(input_ids=inputs, use_cache=False, logits_to_keep=keep).logits[0]
        return out.float()


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student ‖ teacher) of log-probabilities [n, V], nats, mean over rows."""
    return kl_div(teacher, student, reduction="none", log_target=True).sum(-1).mean()


class TRLStyle(Plain):
    """Per error a sample of its own, cut after the step: student, hinted teacher, dense log-softmax of the step's rows."""

    def __call__(self) -> float:
        case, total = self.case, 0.0
        for i, end in enumerate(case.ends):
            student = self.logits(case.trace[:end], case.step + 1)[:-1]
            with torch.no_grad():
                teacher = self.logits(case.hinted(i), case.step + 1)[:-1].log_softmax(-1)
            loss = divergence(student.log_softmax(-1), teacher) / case.errors
            loss.backward()
            total += float(loss.detach())
        return total


class Naive(Plain):
    """One student pass and per error a hinted pass of the whole trace; logits and log-softmax of every token."""

    def __call__(self) -> float:
        case, teachers = self.case, []
        student = self.logits(case.trace).log_softmax(-1)
        for i, rows in enumerate(self.rows):
            with torch.no_grad():
                teachers.append(self.logits(case.hinted(i, whole=True)).log_softmax(-1)[rows + case.hint])
        loss = divergence(student[torch.cat(self.rows)], torch.cat(teachers))
        loss.backward()
        return float(loss.detach())


class StudentOnly(Plain):
    """No teacher: one pass up to the last step, logits of the steps' rows only, cross-entropy with the sampled tokens."""

    def __call__(self) -> float:
        rows, trace = torch.cat(self.rows), self.case.trace
        loss = cross_entropy(self.logits(trace[:-1], rows), torch.from_numpy(trace).to(self.device)[rows + 1])
        loss.backward()
        return float(loss.detach())


class Ours:
    """`HintTrainer.compute_loss` on the row, as a run calls it; `config`: the training section's."""

    def __init__(self, model: Any, case: Case, **config: Any) -> None:
        from transformers import TrainingArguments

        from hintdistill.training.rows import RowDataset, build_rows
        from hintdistill.training.trainer import HintTrainer

        model.set_attn_implementation("sdpa")
        section = TrainSection(**config, gradient_checkpointing=checkpoints(model))
        targets = _stored(model, case) if section.target_source == "stored" else _unscored(case)
        self.rows = build_rows(targets, section)
        arguments = TrainingArguments(
            output_dir=tempfile.gettempdir(),
            use_cpu=model.device.type == "cpu",
            report_to="none",
            remove_unused_columns=False,
            bf16=False,
            log_level="error",
        )
        self.trainer = HintTrainer(model=model, args=arguments, train_dataset=RowDataset(self.rows), config=section)
        assert len(self.rows) == 1 and self.trainer.passes.way == "shared_prefix"
        model.train()

    def __call__(self) -> float:
        loss = self.trainer.compute_loss(self.trainer.model, {"rows": self.rows})
        loss.backward()
        return float(loss.detach())


class TRLTrainer:
    """TRL's SDFTTrainer, its `compute_loss` on one sample per error: live teacher, full-vocabulary reverse KL."""

    def __init__(self, model: Any, case: Case) -> None:
        from datasets import Dataset
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast
        from trl.experimental.sdft import SDFTConfig, SDFTTrainer

        model.set_attn_implementation("sdpa")
        words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, "<pad>"))
        arguments = SDFTConfig(
            output_dir=tempfile.gettempdir(),
            use_cpu=model.device.type == "cpu",
            report_to="none",
            bf16=False,
            gradient_checkpointing=checkpoints(model),
            teacher_model_kind="live",
            distillation_mode="full_logits",
            distillation_alpha=1.0,
            num_generations=1,
            per_device_train_batch_size=1,
            log_level="error",
        )
        self.trainer = SDFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "", "privileged_context": ""}]),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>"),
        )
        self.trainer.current_gradient_accumulation_steps = case.errors
        model.train()
        self.samples = [self._sample(case, i, model.device) for i in range(case.errors)]

    @staticmethod
    def _sample(case: Case, i: int, device: torch.device) -> dict[str, Tensor]:
        end, hinted = case.ends[i], torch.from_numpy(case.hinted(i))[None].to(device)
        ids = torch.from_numpy(case.trace[:end])[None].to(device)
        prompt, completion = ids[:, : end - case.step], ids[:, end - case.step :]
        return {
            "prompt_ids": prompt,
            "prompt_mask": torch.ones_like(prompt),
            "completion_ids": completion,
            "completion_mask": torch.ones_like(completion),
            "teacher_input_ids": hinted,
            "teacher_attention_mask": torch.ones_like(hinted),
        }

    def __call__(self) -> float:
        total = 0.0
        for sample in self.samples:
            loss = self.trainer.compute_loss(self.trainer.model, sample)
            loss.backward()
            total += float(loss.detach())
        return total


def _unscored(case: Case) -> list[Target]:
    """Targets of which the teacher in the step reads the tokens alone."""
    nothing = np.zeros((case.step, 1), np.float32)
    scores = [
        Scores(nothing[:, 0], case.trace[e - case.step : e, None], nothing, nothing[:, 0] - np.inf) for e in case.ends
    ]
    return [_target(case, i, s, s) for i, s in enumerate(scores)]


def _stored(model: Any, case: Case) -> list[Target]:
    """Make what the rescore stage stores for each error (top 64 of both views and the tail), and an anchor between the first two."""
    engine = TransformersEngine(model, "benchmark")
    requests, n = [], case.step
    for i, end in enumerate(case.ends):
        for ids in (case.trace[:end], case.hinted(i)):
            requests.append(ScoreRequest(ids, len(ids) - n, len(ids), str(i)))
    middle = (case.ends[0] + (case.ends[1] if case.errors > 1 else 0)) // 2
    requests.append(ScoreRequest(case.trace[:middle], middle - n, middle))
    scores = engine.score(requests, 64)
    hints = [_target(case, i, scores[2 * i], scores[2 * i + 1]) for i in range(case.errors)]
    # a random model is sure of nothing, and an anchor holds what the initial policy was sure of
    sure = np.zeros(n, np.float32)
    anchor = replace(
        _target(case, 0, scores[-1], scores[-1]),
        key="anchor",
        kind="anchor",
        context_ids=case.trace[: middle - n],
        step_ids=case.trace[middle - n : middle],
        block_ids=np.zeros(0, np.int64),
        plain_sampled=sure,
        measurement=None,
    )
    return [*hints, anchor]


def _target(case: Case, i: int, plain: Scores, teacher: Scores) -> Target:
    start, end = case.ends[i] - case.step, case.ends[i]
    return Target(
        key=str(i),
        trace_id="trace",
        step=i,
        kind="hint",
        split="train",
        context_ids=case.trace[:start],
        step_ids=case.trace[start:end],
        span=(0, case.step),
        support_ids=teacher.topk_ids,
        teacher_logprobs=teacher.topk_logprobs,
        plain_logprobs=plain.topk_logprobs,
        teacher_tail=teacher.tail_logprob,
        plain_tail=plain.tail_logprob,
        teacher_sampled=teacher.sampled,
        plain_sampled=plain.sampled,
        insert_at=start,
        block_ids=case.hints[i],
        accepted=True,
        measurement=Measurement(0, 0, 0.0, 0.0, 0.0, 0.0, None, 0.0),
    )


VARIANTS: dict[str, Callable[[Any, Case], Step]] = {
    "ours": lambda model, case: Ours(model, case, **LIVE),
    "trl_style": TRLStyle,
    "trl_sdft": TRLTrainer,
    "naive": Naive,
    "student_only": StudentOnly,
    "default": Ours,
}

"""`train.grad_window`: the loss stays what it is, the gradient is cut short, and how far is measured."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import STUDENT, TOOLWORLD
from support.exact_rows import Doubled, error, loss_and_gradient, targets_of, trainer_of
from support.flat_recipe import train_section
from support.model_kinds import model_of
from transformers import DynamicCache

from hintdistill.config import CHECKS, InjectSection, RescoreSection, RunSection
from hintdistill.core.errors import ModelError
from hintdistill.critics.rules import RulesCritic
from hintdistill.engines.sharing import SharingWarning
from hintdistill.engines.transformers import load_model
from hintdistill.injection.splice import Injector
from hintdistill.objectives import gather_with_tail, rkl
from hintdistill.prompts import PromptLibrary
from hintdistill.rescoring.scorer import Scorer
from hintdistill.traces.reading import read_traces
from hintdistill.training.rows import TraceRow
from hintdistill.training.slots import Slot
from hintdistill.training.stage import TrainData, TrainJob, train
from hintdistill.training.window import cosine, windows

pytestmark = pytest.mark.usefixtures("one_thread")

LIVE = {"targets": "in_step", "teacher": "live", "divergence": "jsd", "anchor": {"weight": 1.0, "min_probability": 0.0}}


@pytest.fixture(scope="module")
def real_targets(student_engine, student_renderer):
    """Six accepted hints of the shipped student's own traces."""
    scorer = Scorer(student_engine, student_renderer, RescoreSection(top_k=20))
    injector = Injector(student_renderer, PromptLibrary(TOOLWORLD / "prompts"), InjectSection())
    hints = []
    for trace in read_traces([TOOLWORLD / "traces.jsonl"]):
        hints += [
            (f"hint {trace.id}", injector.inject(trace, f), "train") for f in RulesCritic(CHECKS).check(trace).findings
        ]
        if len(hints) >= 12:
            break
    return [t for t in scorer.score(hints) if t.accepted][:6]


def kind_trainer(kind, tmp_path, **config):
    model = model_of(kind)
    return trainer_of(model, targets_of(model), tmp_path, **LIVE, **config)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3_tied_lora", "gemma2", "gpt_oss", "qwen3_moe"])
def test_the_loss_is_the_same_and_a_window_over_the_whole_trace_is_exact(kind, checkpointing, tmp_path):
    exact, g = loss_and_gradient(kind_trainer(kind, tmp_path / "exact"))
    previous = -1.0
    for width in (0, 12, 1000):
        trainer = kind_trainer(kind, tmp_path / str(width), grad_window=width, gradient_checkpointing=checkpointing)
        loss, found = loss_and_gradient(trainer)
        assert loss == pytest.approx(exact, abs=1e-6)
        close = cosine([found], [g])
        assert trainer.probe.measured == {0: pytest.approx(close, abs=1e-4)}
        assert close > previous - 1e-6
        previous = close
        assert (error(found, g) <= 2e-6) == (width == 1000)


def test_the_cosine_rises_with_the_window_on_the_shipped_student(real_targets, tmp_path):
    student, found = load_model(STUDENT, torch.float32, torch.device("cpu")), []
    for width in (0, 16, 32, 64, 128):
        trainer = trainer_of(student, real_targets, tmp_path / str(width), **LIVE, grad_window=width)
        loss_and_gradient(trainer)
        found.append(trainer.probe.measured[0])
    assert found == sorted(found) and 0.3 < found[0] < 0.999 and found[-1] > 0.999


def test_a_window_of_nothing_is_a_constant_prefix(tmp_path):
    """Window 0 against keys and values of a cache without gradient, by transformers alone."""
    model = copy.deepcopy(model_of("llama")).double()
    targets = [t for t in targets_of(model) if t.key == "middle0"]
    with Doubled():
        trainer = trainer_of(model, targets, tmp_path, targets="stored", divergence="rkl", grad_window=0)
        _, found = loss_and_gradient(trainer)
        wanted = _with_a_cache(model, trainer.train_dataset.rows[0])
    assert float(wanted.norm()) > 1e-3 and error(found, wanted) <= 1e-10


def _with_a_cache(model, row: TraceRow) -> torch.Tensor:
    (slot,) = row.slots
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=row.ids[None, : slot.start - 1], past_key_values=cache, use_cache=True)
    logits = model(input_ids=row.ids[None, slot.start - 1 : -1], past_key_values=cache, use_cache=True).logits[0]
    ours = gather_with_tail(logits.log_softmax(-1), slot.support_ids)
    (rkl(ours, slot.target) * slot.token_weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_training_reports_the_cosine(real_targets, tmp_path):
    config = train_section(
        **LIVE,
        epochs=2,
        batch_size=2,
        logging_steps=1,
        warmup_ratio=0,
        grad_window=16,
        grad_window_every=2,
        learning_rate=1e-5,
    )
    run = RunSection(model=str(STUDENT), device="cpu", dtype="float32")
    summary = train(TrainJob(STUDENT, TrainData(real_targets), run, config, tmp_path / "w", tmp_path / "student", "k"))
    lines = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    # measured before steps 1, 3, …, so in the log of those steps
    found = {x["step"]: x["grad_window_cosine"] for x in lines if "grad_window_cosine" in x}
    assert sorted(found) == list(range(1, summary.steps + 1, 2))
    assert summary.grad_window_cosine == min(found.values()) and 0 < summary.grad_window_cosine < 1
    assert json.loads((tmp_path / "student" / "hintdistill.json").read_text())["grad_window_cosine"] == min(
        found.values()
    )


def test_kinds_without_keys_and_values_refuse(tmp_path):
    with (
        pytest.warns(SharingWarning),
        pytest.raises(ModelError, match="Qwen3NextForCausalLM is read as `snapshots`"),
    ):
        kind_trainer("qwen3_next", tmp_path, grad_window=8)
    model = copy.deepcopy(model_of("llama"))
    model.config.attention_dropout = 0.1
    with pytest.raises(ModelError, match="LlamaForCausalLM drops different activations each time"):
        trainer_of(model, targets_of(model), tmp_path, **LIVE, grad_window=8)


def test_windows_that_overlap_are_one_piece():
    def slot(start: int, length: int) -> Slot:
        none = torch.zeros(0)
        return Slot(f"{start}", "hint", start, length, 0, none, torch.zeros(length), {}, (0, 1), none, none, none, -1)

    row = TraceRow("a", torch.arange(60), (slot(10, 5), slot(20, 5), slot(40, 5), slot(40, 5)))
    spans = [[(p.start, p.stop) for p in windows([row], width)] for width in (0, 6, 100)]
    assert spans == [[(9, 14), (19, 24), (39, 44)], [(3, 24), (33, 44)], [(0, 44)]]

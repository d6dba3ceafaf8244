"""Training invariants: the loss is what it says, accumulation changes nothing, a resumed run equals an uninterrupted one."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import STUDENT, TOOLWORLD
from support.flat_recipe import train_section

from hintdistill.config import (
    CHECKS,
    AnchorSection,
    InjectSection,
    LoraSection,
    RescoreSection,
    RunSection,
    TrainSection,
)
from hintdistill.core.errors import EmptyFunnelError, TripwireError
from hintdistill.core.scores import Target
from hintdistill.critics.rules import RulesCritic
from hintdistill.engines.transformers import TransformersEngine, load_model
from hintdistill.injection.splice import Injector
from hintdistill.objectives import divergence, gather_with_tail
from hintdistill.prompts import PromptLibrary
from hintdistill.rescoring.scorer import AnchorItem, HintItem, Scorer
from hintdistill.traces.reading import read_traces
from hintdistill.training import passes
from hintdistill.training.passes import places
from hintdistill.training.rows import build_rows
from hintdistill.training.slots import loss_weights
from hintdistill.training.stage import TrainData, TrainJob, make_trainer, read_summary, train

RUN = RunSection(model=str(STUDENT), device="cpu", dtype="float32")
FAST = {"epochs": 1, "batch_size": 4, "warmup_ratio": 0, "save_steps": 1000, "anchor": AnchorSection(weight=1.0)}


@pytest.fixture(scope="module")
def targets(student_engine, student_renderer) -> list[Target]:
    """Eight accepted hints and four anchors from the shipped traces."""
    scorer = Scorer(student_engine, student_renderer, RescoreSection(top_k=20))
    injector = Injector(student_renderer, PromptLibrary(TOOLWORLD / "prompts"), InjectSection())
    hints, clean = [], []
    for trace in read_traces([TOOLWORLD / "traces.jsonl"]):
        found = RulesCritic(CHECKS).check(trace).findings
        hints += [HintItem(f"hint {trace.id}", injector.inject(trace, f), "train") for f in found]
        if not found:
            clean.append(AnchorItem(f"anchor {trace.id}", trace.id, 0, student_renderer.step(trace, 0), "train"))
        if len(hints) >= 20 and len(clean) >= 4:
            break
    return [t for t in scorer.score(hints) if t.accepted][:8] + scorer.anchors(clean[:4])


def trainer_of(of, tmp_path, model=STUDENT, **config):
    section = train_section(**{**FAST, **config})
    device = torch.device("cpu")
    return make_trainer(load_model(model, torch.float32, device), build_rows(of, section), RUN, section, tmp_path)


def gradient(trainer, batches) -> torch.Tensor:
    trainer.model.zero_grad()
    count = trainer._get_num_items_in_batch([{"rows": b} for b in batches], torch.device("cpu"))
    for batch in batches:
        trainer.compute_loss(trainer.model, {"rows": batch}, num_items_in_batch=count).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def test_the_loss_is_the_divergence_of_separate_forwards(targets, tmp_path):
    trainer = trainer_of(targets, tmp_path, divergence="rkl")
    rows = trainer.train_dataset.rows
    loss = trainer.compute_loss(trainer.model, {"rows": rows}).item()
    expected = 0.0
    with torch.no_grad():
        for row, slot in places(rows):
            logits = trainer.owner(input_ids=row.plain(slot)[None], use_cache=False).logits[0].float().log_softmax(-1)
            ours = gather_with_tail(logits[-slot.length - 1 : -1], slot.support_ids)
            name = "rkl" if slot.kind == "hint" else "fkl"
            expected += float((divergence(name, ours, slot.target) * slot.token_weights).sum())
    assert loss == pytest.approx(expected / len(places(rows)), rel=1e-5)


def test_eight_at_once_equals_eight_accumulated(targets, tmp_path):
    trainer = trainer_of(targets, tmp_path)
    rows = trainer.train_dataset.rows[:8]
    whole, parts = gradient(trainer, [rows]), gradient(trainer, [[r] for r in rows])
    assert float((whole - parts).norm() / whole.norm()) <= 2e-6


def test_the_last_layer_attends_only_where_it_is_read(targets, tmp_path, monkeypatch):
    trainer = trainer_of(targets, tmp_path, targets="in_step", teacher="live", support="full")
    rows, found = trainer.train_dataset.rows, {}
    for many in (1, 10**6):
        monkeypatch.setattr(passes, "MANY", many)
        found[many] = gradient(trainer, [rows])
    assert float((found[1] - found[10**6]).norm() / found[10**6].norm()) <= 2e-6


def test_stretches_of_scored_positions():
    assert passes.stretches([range(5, 8), range(2, 4), range(7, 10)], 100) == [range(2, 4), range(5, 10)]
    assert passes.stretches([range(2, 5), range(5, 8)], 24) == [range(2, 8)]
    assert passes.stretches([range(2, 5), range(5, 8)], 23) == [range(23)]


def test_no_loss_and_no_gradient_where_the_target_is_the_student_itself(targets, tmp_path):
    hints = targets[:8]
    empty = [replace(t, teacher_logprobs=t.plain_logprobs, teacher_tail=t.plain_tail) for t in hints]
    for name in ("jsd", "rkl", "fkl"):
        nothing, something = (
            trainer_of(empty, tmp_path, divergence=name),
            trainer_of(hints, tmp_path, divergence=name),
        )
        rows = nothing.train_dataset.rows
        # what is left is the float32 rounding of two forwards in batches of other shapes
        assert abs(nothing.compute_loss(nothing.model, {"rows": rows}).item()) <= 1e-6
        real = gradient(something, [something.train_dataset.rows]).norm()
        assert float(gradient(nothing, [rows]).norm() / real) <= 3e-5


@pytest.mark.parametrize("support", ["full", "union"])
@pytest.mark.parametrize("name", ["rkl", "fkl", "jsd"])
def test_an_empty_hint_in_step_is_nothing(name, support, targets, tmp_path):
    """The teacher's numbers are the student's own, and every divergence of equal numbers is zero."""
    empty = [replace(t, block_ids=np.zeros(0, np.int64)) for t in targets[:8]]
    section = {"targets": "in_step", "teacher": "live", "support": support, "divergence": name}
    trainer, other = (trainer_of(x, tmp_path, **section) for x in (empty, targets[:8]))
    rows = trainer.train_dataset.rows
    assert abs(trainer.compute_loss(trainer.model, {"rows": rows}).item()) <= 1e-8
    real = gradient(other, [other.train_dataset.rows]).norm()
    assert float(gradient(trainer, [rows]).norm() / real) <= 1e-5


def test_in_step_teacher_gives_the_stored_targets(targets, tmp_path):
    """Before the first update, the initial teacher in the step says what the rescore stage stored."""
    stored = trainer_of(targets[:8], tmp_path, divergence="jsd", top_k=20)
    rows = stored.train_dataset.rows
    a = stored.compute_loss(stored.model, {"rows": rows}).item()
    for teacher in ("initial", "live"):
        in_step = trainer_of(targets[:8], tmp_path, divergence="jsd", top_k=20, targets="in_step", teacher=teacher)
        assert in_step.compute_loss(in_step.model, {"rows": rows}).item() == pytest.approx(a, rel=1e-4)
    full = trainer_of(targets[:8], tmp_path, divergence="jsd", targets="in_step", support="full")
    # a coarser support never exceeds the full one
    assert full.compute_loss(full.model, {"rows": rows}).item() >= a - 1e-6


def test_the_in_step_teacher_gets_no_gradient_and_the_initial_one_stays(targets, tmp_path):
    trainer = trainer_of(targets, tmp_path, targets="in_step", support="full", learning_rate=1e-2)
    before = copy.deepcopy(trainer._frozen["initial"].state_dict())
    trainer.train()
    assert all((before[k] == v).all() for k, v in trainer._frozen["initial"].state_dict().items())
    assert any((p != q).any() for p, q in zip(trainer.model.state_dict().values(), before.values(), strict=True))


def test_loss_span(targets):
    target = next(t for t in targets if t.error_class == "unknown_tool")
    (start, end), n = target.span, len(target.step_ids)
    assert 0 < start < end < n
    quoted = [1.0 if start <= i < end else 0.0 for i in range(n)]

    def weights(**config):
        return loss_weights(target, train_section(**config).effective_recipe.terms["distill"])

    assert weights().tolist() == [1.0] * n
    assert weights(loss_span="quote").tolist() == quoted
    suffix = weights(recipe={"terms": {"distill": {"span": "suffix"}}})
    assert suffix.tolist() == [1.0 if i >= start else 0.0 for i in range(n)]
    weighted = weights(loss_span="quote_weighted", quote_weight=3)
    assert weighted.tolist() == [1.0 + 2.0 * q for q in quoted]


def repeated(targets, kind: str, times: int) -> list[Target]:
    """The targets with those of one kind several times, under keys of their own."""
    of_kind = [t for t in targets if t.kind == kind]
    return [*targets, *(replace(t, key=f"{t.key} {n}") for n in range(1, times) for t in of_kind)]


@pytest.mark.parametrize("normalize", ["per_row", "kept"])
def test_weights_are_per_slot(normalize, targets):
    """A slot weighs one, or one on average over its term, and repeating the slots of another term does not change that."""
    one = next(t for t in targets if t.kind == "anchor")
    hints = [t for t in targets if t.kind == "hint"]
    several = [t for t in targets if t.kind == "anchor"]
    config = train_section(normalize=normalize, anchor={"weight": 2.0})
    anchor_weights = []
    for of in ([*hints, one], repeated([*hints, one], "hint", 6), [*hints, *several], repeated(targets, "hint", 3)):
        slots = [s for _, s in places(build_rows(of, config))]
        assert len(slots) == len(of)
        for kind in ("hint", "anchor"):
            own = [float(s.token_weights.sum()) for s in slots if s.kind == kind]
            assert sum(own) == pytest.approx(len(own), rel=1e-5)
            assert normalize == "kept" or own == pytest.approx([1.0] * len(own), rel=1e-5)
        anchor_weights.append({s.key: s.token_weights for s in slots if s.kind == "anchor"})
    for few, many in (anchor_weights[:2], anchor_weights[2:]):
        assert all(torch.equal(w, many[key]) for key, w in few.items())


def test_a_term_counts_with_its_slots(targets, tmp_path):
    """Loss times slots is the sum over slots: k times the hints are k times their part, and the anchors' part stays."""
    hints = [t for t in targets if t.kind == "hint"]
    anchor = next(t for t in targets if t.kind == "anchor")

    def summed(of) -> float:
        trainer = trainer_of(of, tmp_path, anchor={"weight": 50000.0, "min_probability": 0.0})
        nudge = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in trainer.model.parameters():
                p += 0.05 * p.std() * torch.randn(p.shape, generator=nudge)
        return trainer.compute_loss(trainer.model, {"rows": trainer.train_dataset.rows}).item() * len(of)

    of_hints, both = summed(hints), summed([*hints, anchor])
    of_anchor = both - of_hints
    assert of_anchor > 0.1 * of_hints
    assert summed(repeated([*hints, anchor], "hint", 6)) == pytest.approx(6 * of_hints + of_anchor, rel=1e-4)
    assert summed(repeated([*hints, anchor], "anchor", 4)) == pytest.approx(of_hints + 4 * of_anchor, rel=1e-4)


def test_an_anchor_holds_only_what_the_initial_policy_was_sure_of(targets):
    anchor = next(t for t in targets if t.kind == "anchor")
    wavered = np.array(anchor.plain_sampled)
    wavered[0] = np.log(0.2)
    config = train_section(anchor={"min_probability": 0.35})
    term = config.effective_recipe.terms["anchor"]
    sure = (np.exp(wavered) >= 0.35).tolist()
    assert not sure[0] and any(sure)
    assert loss_weights(replace(anchor, plain_sampled=wavered), term).tolist() == [float(x) for x in sure]
    everything = train_section(anchor={"min_probability": 0.0}).effective_recipe.terms["anchor"]
    assert loss_weights(anchor, everything).all()
    # nothing to hold: the row is left out, and the others still average to the coefficient
    nowhere = replace(anchor, key="nowhere", plain_sampled=np.full_like(wavered, np.log(0.2)))
    slots = [s for _, s in places(build_rows([*targets, nowhere], config))]
    assert len(slots) == len(targets) and "nowhere" not in {s.key for s in slots}


def test_the_least_sure_clean_steps_are_the_anchors(targets):
    """By the least sure token that carries loss; a step whose tokens all lie below the bound comes last."""
    from hintdistill.pipeline.train import chosen_anchors

    model = next(t for t in targets if t.kind == "anchor")
    sure = np.full(len(model.plain_sampled), np.log(0.99), np.float32)

    def candidate(key: str, lowest: float, trace: str = "a") -> Target:
        plain = sure.copy()
        plain[1] = np.log(lowest)
        return replace(model, key=key, trace_id=trace, plain_sampled=plain)

    wavered = replace(model, key="wavered", trace_id="a", plain_sampled=np.full_like(sure, np.log(0.3)))
    some = [
        candidate("sure", 0.98),
        candidate("least", 0.6),
        candidate("lucky", 0.4),
        wavered,
        candidate("b", 0.9, "b"),
    ]
    config = train_section(anchor={"min_probability": 0.5})
    assert [t.key for t in chosen_anchors(some, config, 0)] == ["least", "b"]
    two = train_section(anchor={"min_probability": 0.5, "per_trace": 2})
    assert {t.key for t in chosen_anchors(some, two, 0)} == {"least", "sure", "b"}
    assert [t.key for t in chosen_anchors([wavered], config, 0)] == ["wavered"]
    drawn = TrainSection(anchor=AnchorSection(choose="random"))
    assert {chosen_anchors(some, drawn, seed)[0].key for seed in range(20)} == {"sure", "least", "lucky", "wavered"}
    assert chosen_anchors(some, drawn, 3) == chosen_anchors(some, drawn, 3)


def test_tokens_outside_the_loss_span_have_no_gradient(targets, tmp_path):
    """Changing the target of a token that carries no weight changes nothing; of one that does, it does."""

    def spoil(t: Target, at: int) -> Target:
        changed = t.teacher_logprobs.copy()
        changed[at] = changed[at] * 2
        return replace(t, teacher_logprobs=changed)

    quoted = [t for t in targets[:8] if t.span[0] > 0]
    assert quoted
    a, outside, inside = (
        trainer_of(x, tmp_path, loss_span="quote")
        for x in (quoted, [spoil(t, 0) for t in quoted], [spoil(t, t.span[0]) for t in quoted])
    )
    reference = gradient(a, [a.train_dataset.rows])
    assert torch.equal(reference, gradient(outside, [outside.train_dataset.rows]))
    assert not torch.equal(reference, gradient(inside, [inside.train_dataset.rows]))


def test_each_epoch_reads_every_row_once_in_an_order_of_its_own(targets, tmp_path):
    """And the rows of one optimiser step come in order of length, so that those of a micro-batch are alike."""
    trainer = trainer_of(targets, tmp_path, epochs=2, batch_size=4, micro_batch_size=2)
    rows, seen = trainer.train_dataset.rows, []
    own = trainer.compute_loss

    def watched(model, inputs, **kwargs):
        seen.append([r.key for r in inputs["rows"]])
        return own(model, inputs, **kwargs)

    trainer.compute_loss = watched
    trainer.train()
    half = len(seen) // 2
    first, second = ([k for batch in part for k in batch] for part in (seen[:half], seen[half:]))
    assert sorted(first) == sorted(second) == sorted(r.key for r in rows) and first != second
    length = {r.key: len(r.ids) for r in rows}
    steps = [first[i : i + 4] for i in range(0, len(first), 4)]
    assert all([length[k] for k in s] == sorted((length[k] for k in s), reverse=True) for s in steps)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_model(folder, torch.float32, torch.device("cpu")).state_dict()


def test_training_lowers_the_error_and_a_resumed_run_is_bit_equal(targets, tmp_path):
    config = TrainSection(**{**FAST, "epochs": 4, "save_steps": 3, "learning_rate": 5e-5})
    straight = train(TrainJob(STUDENT, TrainData(targets), RUN, config, tmp_path / "a", tmp_path / "student_a", "k"))
    assert straight.hint_rows == 8 and straight.anchor_rows == 4 and straight.steps == 4 * -(-straight.rows // 4)
    assert straight.engine_floor_nats < 1e-6 and straight.way == "shared_prefix"
    assert read_summary(tmp_path / "student_a") == straight

    class Killed(Exception):
        pass

    def kill(step: int, total: int) -> None:
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        train(
            TrainJob(STUDENT, TrainData(targets), RUN, config, tmp_path / "b", tmp_path / "student_b", "k"),
            progress=kill,
        )
    assert not (tmp_path / "student_b").exists()
    # a checkpoint that a kill tore apart is not resumed from
    torn = tmp_path / "b" / "checkpoint-9"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    train(TrainJob(STUDENT, TrainData(targets), RUN, config, tmp_path / "b", tmp_path / "student_b", "k"))
    a, b = weights(tmp_path / "student_a"), weights(tmp_path / "student_b")
    assert all(torch.equal(a[k], b[k]) for k in a)
    before, after = (trainer_of(targets, tmp_path, model=m) for m in (STUDENT, tmp_path / "student_a"))
    with torch.no_grad():
        losses = [t.compute_loss(t.model, {"rows": before.train_dataset.rows}).item() for t in (before, after)]
    assert losses[1] < losses[0]
    metrics = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss", "divergence", "anchor_kl", "decision_probability"} <= set(metrics[0])


def test_another_optimiser_goes_on_after_a_kill_to_the_same_weights(targets, tmp_path):
    """`train.arguments` reach the Trainer, and the state of what they name is in the checkpoints."""
    said = {"optim": "adafactor", "lr_scheduler_kwargs": {"power": 2.0}}
    config = TrainSection(
        **{**FAST, "epochs": 2, "batch_size": 2, "save_steps": 2, "schedule": "polynomial"}, arguments=said
    )

    def go(name: str, **more) -> None:
        out = tmp_path / f"student_{name}"
        train(TrainJob(STUDENT, TrainData(targets[:4]), RUN, config, tmp_path / name, out, "k"), **more)

    def kill(step: int, total: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    go("a")
    with pytest.raises(KeyboardInterrupt):
        go("b", progress=kill)
    assert (tmp_path / "b" / "checkpoint-2").is_dir()
    go("b")
    a, b, plain = weights(tmp_path / "student_a"), weights(tmp_path / "student_b"), weights(STUDENT)
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], plain[k]) for k in a)


def test_lora_output_loads_merged_and_as_adapter(targets, tmp_path):
    from transformers import AutoModelForCausalLM

    config = TrainSection(**{**FAST, "lora": LoraSection(rank=4, alpha=8), "learning_rate": 1e-2})
    summary = train(TrainJob(STUDENT, TrainData(targets), RUN, config, tmp_path / "w", tmp_path / "student", "k"))
    assert summary.trainable_parameters < summary.parameters / 5
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32)
    ids = torch.arange(7, 20)[None]
    initial = load_model(STUDENT, torch.float32, torch.device("cpu"))
    assert (merged(ids).logits - initial(ids).logits).abs().max() > 1e-3
    adapter = json.loads((tmp_path / "student" / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 4
    with_adapter = load_model(tmp_path / "student" / "adapter", torch.float32, torch.device("cpu"))
    assert torch.allclose(with_adapter(ids).logits, merged(ids).logits, atol=1e-4)


def test_a_student_that_arrives_as_an_adapter(targets, tmp_path):
    config = TrainSection(**{**FAST, "lora": LoraSection(rank=4, alpha=8)})
    train(TrainJob(STUDENT, TrainData(targets), RUN, config, tmp_path / "w", tmp_path / "student", "k"))
    adapter = tmp_path / "student" / "adapter"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy2(STUDENT / name, adapter / name)
    engine = TransformersEngine.load(adapter, dtype="float32")
    assert type(engine.model).__name__ == "Qwen3ForCausalLM"


def test_nothing_to_train_on_and_nan_are_errors(targets, tmp_path):
    with pytest.raises(EmptyFunnelError, match="no accepted hint"):
        train(TrainJob(STUDENT, TrainData(targets[8:]), RUN, TrainSection(**FAST), tmp_path / "a", tmp_path / "s", "k"))
    trainer = trainer_of(targets, tmp_path)
    rows = trainer.train_dataset.rows[:3]
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = float("nan")
    with pytest.raises(TripwireError, match=rf"the loss is nan at step 0; rows {rows[0].key}"):
        trainer.compute_loss(trainer.model, {"rows": rows})

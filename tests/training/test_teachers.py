"""Rules by which a teacher follows the student, or does not: whose weights read the hint, and how often a trace is read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import STUDENT
from support.flat_recipe import train_section
from test_recipes_training import loss_and_gradient, targets, tiny, trainer_of  # noqa: F401

from hintdistill.config import RunSection, TrainSection
from hintdistill.core.errors import ConfigError, EmptyFunnelError, ModelError
from hintdistill.core.models import model_key
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.transformers import TransformersEngine, load_model
from hintdistill.recipes import load_recipe, missing
from hintdistill.recipes.schema import TeacherRule
from hintdistill.training.capabilities import available
from hintdistill.training.reference_models import Others
from hintdistill.training.rows import watch_rows
from hintdistill.training.teacher import Follower, HeldoutReading

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
RUN = RunSection(model=str(STUDENT), device="cpu", dtype="float32")
IN_STEP = {"targets": "in_step", "support": "full", "divergence": "rkl", "anchor": {"weight": 0.0}}


class Reads:
    """Tokens that a model is called with, call by call."""

    def __init__(self, model) -> None:
        self.calls: list[int] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs) -> None:
        self.calls.append(int(kwargs["input_ids"].numel()))


def two_hints_on_one_trace(targets):  # noqa: F811
    """Two steps of one trace, each with a hint: the second one's context begins with the first one's sequence."""
    from dataclasses import replace

    first, second = targets[:2]
    before = np.concatenate([first.context_ids, first.step_ids])
    second = replace(
        second,
        trace_id=first.trace_id,
        context_ids=np.concatenate([before, second.context_ids]),
        insert_at=len(before) + second.insert_at,
    )
    return [first, second]


def test_a_live_teacher_reads_its_branches_and_another_reads_each_trace_once(targets, tmp_path):  # noqa: F811
    """L tokens of the trace, then only hints and steps; other weights read the trace once for both hints."""
    both = two_hints_on_one_trace(targets)
    branches = sum(len(t.block_ids) + len(t.context_ids) - t.insert_at + len(t.step_ids) - 1 for t in both)
    length = len(both[1].context_ids) + len(both[1].step_ids) - 1

    live = trainer_of(both, tmp_path, **IN_STEP, teacher="live")
    assert len(live.train_dataset.rows) == 1 and live.passes.rides
    reads = Reads(live.owner)
    loss_and_gradient(live)
    assert reads.calls == [length, branches]

    other = trainer_of(both, tmp_path, **IN_STEP, teacher="initial")
    student, teacher = Reads(other.owner), Reads(other._frozen["initial"])
    loss_and_gradient(other)
    assert student.calls == [length]
    # the longer hinted sequence is the trunk; the other one leaves it where its hint stands
    first = len(both[0].block_ids) + len(both[0].context_ids) - both[0].insert_at + len(both[0].step_ids) - 1
    assert sum(teacher.calls) == length + len(both[1].block_ids) + first


def test_an_external_teacher_says_what_it_says_alone(targets, tmp_path):  # noqa: F811
    """The loss is the divergence from its own hinted reading; a gradient reaches the student alone."""
    teacher = tiny(seed=11)
    section = {**IN_STEP, "recipe": {"teacher": {"update": "external", "model": "another"}}}
    trainer = trainer_of(targets[:3], tmp_path, others=Others(external=teacher), **section)
    loss, gradient = loss_and_gradient(trainer)
    assert gradient.norm() > 0 and all(p.grad is None for p in teacher.parameters())
    total = 0.0
    for target in targets[:3]:
        plain = np.concatenate([target.context_ids, target.step_ids])
        hinted = np.concatenate([plain[: target.insert_at], target.block_ids, plain[target.insert_at :]])
        with torch.no_grad():
            s, t = (
                m(torch.as_tensor(x)[None]).logits[0, -8:-1].float().log_softmax(-1)
                for m, x in ((tiny(), plain), (teacher, hinted))
            )
        total += float((s.exp() * (s - t)).sum(-1).mean())
    assert loss == pytest.approx(total / 3, rel=1e-5)


def test_an_external_teacher_must_have_the_same_tokenizer(tmp_path):
    config = TrainSection(recipe={"teacher": {"update": "external", "model": str(STUDENT)}}, targets="in_step")
    assert "external_teacher" in available(config)
    same = Others.load(STUDENT, RUN, config, CPU, STUDENT, ())
    assert same.external is not None and not any(p.requires_grad for p in same.external.parameters())
    other = tmp_path / "other"
    shutil.copytree(STUDENT, other)
    words = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = words["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    config = TrainSection(recipe={"teacher": {"update": "external", "model": str(other)}}, targets="in_step")
    with pytest.raises(ModelError, match="another tokenizer: 4 entries differ"):
        Others.load(STUDENT, RUN, config, CPU, STUDENT, ())


def test_without_a_model_an_external_teacher_is_a_missing_need():
    config = train_section(teacher="external")
    assert [n.name for n in missing(config.effective_recipe, available(config))] == ["external_teacher"]
    assert config.target_source == "in_step"


def test_a_gated_teacher_copies_the_student_when_it_has_earned_it(tmp_path):
    """Isolation passed, held-out findings repaired by more than the margin, steps not getting longer."""
    model, said = tiny(), [HeldoutReading(0.1, 1.0)]
    rule = TeacherRule(update="cgtr", every=5, isolation=10, margin=0.05, tail=2.0)
    follower = Follower(model, rule, lambda: said[0])
    name, parameter = next(iter(model.named_parameters()))
    first = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(1.0)
    follower.after_step(5)
    assert follower.copies == 0
    # the mean of the last five readings rises, but steps get longer
    said[0] = HeldoutReading(0.9, 2.5)
    follower.after_step(10)
    assert follower.copies == 0 and torch.equal(follower.weights[name], first)
    follower.save(tmp_path)
    said[0] = HeldoutReading(0.9, 1.1)
    for again in (follower, Follower(tiny(), rule, lambda: said[0])):
        if again is not follower:
            again.load(tmp_path)
            again._live = follower._live
        again.after_step(15)
        assert again.copies == 1 and torch.allclose(again.weights[name], first + 1.0)
        assert again.gate.last == 15
    follower.after_step(20)
    assert follower.copies == 1, "isolation"


def test_a_gated_teacher_trains_on_and_needs_held_out_findings(targets, tmp_path):  # noqa: F811
    from dataclasses import replace

    from hintdistill.core.scores import Measurement

    config = TrainSection(recipe="cgtr")
    assert not missing(load_recipe("cgtr"), available(config))
    with pytest.raises(EmptyFunnelError, match="held-out findings"):
        Others.load(STUDENT, RUN, config, CPU, STUDENT, ())
    measured = Measurement(2, 5, -2.0, -0.5, 0.0, -1.0, None, 0.0)
    rows = watch_rows([replace(t, measurement=measured, split="holdout") for t in targets[:2]])
    trainer = trainer_of(
        targets, tmp_path, recipe={"preset": "cgtr", "teacher": {"every": 1}}, others=Others(heldout=rows)
    )
    trainer.train()
    reading = trainer._reading()
    assert 0.0 < reading.repaired < 1.0 and reading.length >= 1.0
    assert len(trainer.follower.gate.recent) == 2


def test_the_initial_policy_of_a_later_round_is_read_from_its_own_folder(tmp_path):
    """In the rounds after the first the student's own folder is no longer where the run started."""
    later = tmp_path / "later"
    model = load_model(STUDENT, torch.float32, CPU)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.1)
    model.save_pretrained(later)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy2(STUDENT / name, later / name)
    config = train_section(teacher="initial", targets="in_step", support="full")
    others = Others.load(later, RUN, config, CPU, STUDENT, ())
    request = ScoreRequest(np.arange(5, 30), 20, 25)
    wanted, found = (
        TransformersEngine(m, "k").score([request], 4)[0]
        for m in (load_model(STUDENT, torch.float32, CPU), others.initial)
    )
    assert np.array_equal(wanted.sampled, found.sampled)
    assert Others.load(STUDENT, RUN, config, CPU, STUDENT, ()).initial is None
    assert model_key(later).weights != model_key(STUDENT).weights


def test_a_teacher_of_the_round_s_start_has_stored_targets():
    assert train_section(teacher="round_start").target_source == "stored"
    with pytest.raises((ConfigError, ValueError), match="live has no stored targets"):
        train_section(teacher="live", targets="stored")


def test_the_round_s_start_and_the_initial_policy_are_two(targets, tmp_path):  # noqa: F811
    """In a later round, for a recipe that reads both: the student as it starts is not where the run began."""
    first = tiny(seed=11)
    recipe = {
        "teacher": {"update": "round_start"},
        "terms": {"distill": {"target": {"loglin": {"teacher": 1.5, "initial": -0.5}}}},
    }
    trainer = trainer_of(
        targets[:2], tmp_path, recipe=recipe, targets="in_step", support="full", others=Others(initial=first)
    )
    start = {n: p.clone() for n, p in trainer.owner.named_parameters()}
    with trainer._as("round_start") as a, trainer._as("initial") as b:
        assert b is first and a is not first and a is not trainer.owner
        assert all(torch.equal(p, start[n]) for n, p in a.named_parameters())


def test_a_rewritten_history_makes_two_rows_and_two_findings_on_a_step_one(targets):  # noqa: F811
    from dataclasses import replace

    from hintdistill.training.rows import build_rows

    both = two_hints_on_one_trace(targets)
    again = replace(both[1], key="again")
    rows = build_rows([*both, again], TrainSection())
    assert [len(r.slots) for r in rows] == [3]
    context = both[1].context_ids.copy()
    context[2] += 1
    rewritten = replace(both[1], key="rewritten", context_ids=context)
    rows = build_rows([*both, rewritten], TrainSection())
    assert sorted((r.key, len(r.slots)) for r in rows) == [(both[0].trace_id, 2), (f"{both[0].trace_id}#2", 1)]
    for row in rows:
        for slot in row.slots:
            assert row.ids[slot.start : slot.start + slot.length].equal(slot.sampled)

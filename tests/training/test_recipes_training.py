"""`train.recipe` in the training stage: every recipe that a run can meet trains, and a following teacher follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.flat_recipe import train_section
from support.recipe_models import RUNNABLE, V, outcome_of, tiny, with_contexts

from hintdistill.config import LoraSection, RunSection, TrainSection
from hintdistill.core.scores import Target
from hintdistill.recipes import load_recipe
from hintdistill.recipes.schema import TeacherRule
from hintdistill.training.passes import places
from hintdistill.training.rows import build_rows
from hintdistill.training.stage import Listener, _last_checkpoint, make_trainer
from hintdistill.training.teacher import Follower

pytestmark = pytest.mark.usefixtures("one_thread")


def logprobs(model, ids: np.ndarray, length: int) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.as_tensor(ids)[None]).logits[0, -length - 1 : -1].float().log_softmax(-1)


@pytest.fixture(scope="module")
def targets() -> list[Target]:
    """Six hints and two anchors on random contexts, scored by the tiny model as the rescore stage would."""
    model, rng, k, out = tiny(), np.random.default_rng(0), 12, []
    for i in range(8):
        context, step, block = (rng.integers(3, V, n) for n in (10, 7, 5))
        if i >= 6:
            block = block[:0]
        plain = logprobs(model, np.concatenate([context, step]), 7)
        hinted = logprobs(model, np.concatenate([context[:6], block, context[6:], step]), 7)
        ids = torch.cat([plain.topk(k).indices, hinted.topk(k).indices, torch.as_tensor(step)[:, None]], -1)
        support = torch.stack(
            [torch.nn.functional.pad(r.unique(), (0, 2 * k + 1 - len(r.unique())), value=-1) for r in ids]
        )

        def kept(x, support=support):
            own = x.gather(-1, support.clamp(min=0)).masked_fill(support < 0, -torch.inf)
            return own.numpy(), torch.log1p(-own.exp().sum(-1)).numpy()

        (teacher, teacher_tail), (before, plain_tail) = kept(hinted), kept(plain)
        sampled = torch.as_tensor(step)[:, None]
        out.append(
            Target(
                key=f"k{i}",
                trace_id=f"t{i}",
                step=0,
                kind="anchor" if i >= 6 else "hint",
                split="train",
                context_ids=context,
                step_ids=step,
                span=(2, 4),
                action_start=1,
                support_ids=support.numpy(),
                teacher_logprobs=teacher,
                plain_logprobs=before,
                teacher_tail=teacher_tail,
                plain_tail=plain_tail,
                teacher_sampled=hinted.gather(-1, sampled)[:, 0].numpy(),
                plain_sampled=plain.gather(-1, sampled)[:, 0].numpy(),
                insert_at=6,
                block_ids=block,
                accepted=True,
            )
        )
    return with_contexts(out)


def trainer_of(of, tmp_path, model=None, lora=None, others=None, **config):
    section = train_section(
        **{"epochs": 1, "batch_size": 4, "warmup_ratio": 0, "save_steps": 1000, "lora": lora, **config}
    )
    run = RunSection(model="tiny", device="cpu", dtype="float32")
    model = model if model is not None else tiny()
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear"))
    rows = build_rows(of, section, outcome_of(of, section.effective_recipe))
    return make_trainer(model, rows, run, section, tmp_path, special_ids=[0, 1, 2], others=others)


def loss_and_gradient(trainer):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, {"rows": trainer.train_dataset.rows})
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_recipe_that_a_run_can_meet_trains(name, targets, tmp_path):
    trainer = trainer_of(targets, tmp_path, recipe=name, learning_rate=1e-3)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    loss, gradient = loss_and_gradient(trainer)
    assert np.isfinite(loss) and torch.isfinite(gradient).all() and gradient.norm() > 0
    trainer.train()
    moved = [float((p.detach() - before[n]).abs().max()) for n, p in trainer.model.named_parameters()]
    rows = len(trainer.train_dataset.rows)
    assert max(moved) > 0 and np.isfinite(moved).all() and trainer.state.global_step == -(-rows // 4)
    bounds = [t.min_probability for t in load_recipe(name).terms.values() if t.rows == "anchor"]
    anchors = [t for t in targets if t.kind == "anchor" and any((np.exp(t.plain_sampled) >= b).any() for b in bounds)]
    assert rows == 6 + len(anchors)


def test_stored_and_in_step_agree_before_the_first_update(targets, tmp_path):
    """Where the same model made the targets; the union is rebuilt from the same top-k."""
    for name in ("targeted", "evidence_target"):
        stored = trainer_of(targets, tmp_path, recipe=name)
        in_step = trainer_of(targets, tmp_path, recipe=name, targets="in_step", top_k=12)
        (a, ga), (b, gb) = loss_and_gradient(stored), loss_and_gradient(in_step)
        assert a == pytest.approx(b, rel=1e-4) and float((ga - gb).norm() / ga.norm()) < 1e-3


def test_a_recipe_in_the_trainer_is_the_recipe_alone(targets, tmp_path):
    """HINT-SD through the trainer equals its formula on separate forwards, mean over kept tokens."""
    trainer = trainer_of(targets, tmp_path, recipe="hint_sd", teacher="live", top_k=9)
    loss, _ = loss_and_gradient(trainer)
    total, tokens = 0.0, 0
    for row, slot in places(trainer.train_dataset.rows):
        s, t = logprobs(trainer.owner, row.plain(slot), 7), logprobs(trainer.owner, row.hinted(slot), 7)
        kept = s.topk(9).indices
        ours, theirs = s.gather(-1, kept), t.gather(-1, kept)
        tail_s, tail_t = (torch.log1p(-x.exp().sum(-1)) for x in (ours, theirs))
        value = (ours.exp() * (ours - theirs)).sum(-1) + tail_s.exp() * (tail_s - tail_t)
        total, tokens = total + float(value.sum()), tokens + 7
    assert loss == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("name", ["hint_sd", "nca", "hero", "topk_sg", "opcd"])
def test_accumulation_changes_nothing(name, targets, tmp_path):
    trainer = trainer_of(targets, tmp_path, recipe=name, anchor={"weight": 1.0})
    rows = trainer.train_dataset.rows
    _, whole = loss_and_gradient(trainer)
    trainer.model.zero_grad()
    for row in rows:
        (trainer.compute_loss(trainer.model, {"rows": [row]}) / len(rows)).backward()
    parts = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    assert float((whole - parts).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("name", ["kat", "ta_opd", "gndpo", "scope", "tropd"])
def test_statistics_are_of_the_optimiser_step(name, targets, tmp_path):
    """Through the Trainer itself: eight rows at once and one row eight times change the weights alike."""
    changed = []
    for micro in (8, 1):
        config = {
            "recipe": name,
            "batch_size": 8,
            "micro_batch_size": micro,
            "schedule": "constant",
            "max_grad_norm": 1e9,
        }
        trainer = trainer_of(targets, tmp_path / str(micro), arguments={"optim": "sgd"}, learning_rate=1e-2, **config)
        before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        changed.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before)
        assert trainer.state.global_step == 1
    whole, parts = changed
    assert float(whole.norm()) > 0 and float((whole - parts).norm() / whole.norm()) < 1e-4


def test_an_ema_teacher_follows_and_leaves_the_student_alone(tmp_path):
    model = tiny()
    follower = Follower(model, TeacherRule(update="ema", rate=0.25))
    name, parameter = next(iter(model.named_parameters()))
    first = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(1.0)
    follower.after_step(1)
    assert torch.allclose(follower.weights[name], first + 0.25)
    with follower.in_place():
        assert torch.allclose(parameter, first + 0.25)
    assert torch.allclose(parameter, first + 1.0)
    follower.save(tmp_path)
    again = Follower(tiny(), TeacherRule(update="ema", rate=0.25))
    again.load(tmp_path)
    assert torch.equal(again.weights[name], follower.weights[name])
    copying = Follower(model, TeacherRule(update="periodic", every=2))
    with torch.no_grad():
        parameter.add_(1.0)
    copying.after_step(1)
    assert torch.allclose(copying.weights[name], first + 1.0)
    copying.after_step(2)
    assert torch.allclose(copying.weights[name], first + 2.0)


@pytest.mark.parametrize("lora", [None, LoraSection(rank=2, alpha=4)])
def test_the_following_teacher_gives_no_gradient_and_its_rate_matters(lora, targets, tmp_path):
    still = trainer_of(
        targets, tmp_path, recipe={"preset": "hint_sd", "teacher": {"rate": 1e-9}}, lora=lora, learning_rate=1e-2
    )
    quick = trainer_of(
        targets, tmp_path, recipe={"preset": "hint_sd", "teacher": {"rate": 0.5}}, lora=lora, learning_rate=1e-2
    )
    initial = {n: w.clone() for n, w in still.follower.weights.items()}
    still.train()
    quick.train()
    assert all(torch.allclose(w, initial[n], atol=1e-5) for n, w in still.follower.weights.items())
    assert any(not torch.allclose(w, initial[n], atol=1e-4) for n, w in quick.follower.weights.items())
    trained = dict(quick.model.named_parameters())
    assert set(initial) == {n for n, p in trained.items() if p.requires_grad}


def test_a_resumed_run_takes_its_teacher_up_again(targets, tmp_path):
    """Killed between two checkpoints and resumed: the same weights, student and teacher, as straight through."""
    settings = {
        "recipe": {"preset": "hint_sd", "teacher": {"rate": 0.3}},
        "epochs": 4,
        "save_steps": 2,
        "learning_rate": 1e-2,
    }
    straight = trainer_of(targets, tmp_path / "a", **settings)
    straight.train()

    class Killed(Exception):
        pass

    section = TrainSection(**{"batch_size": 4, "warmup_ratio": 0, **settings})
    run = RunSection(model="tiny", device="cpu", dtype="float32")

    def kill(step: int, total: int) -> None:
        if step == 5:
            raise Killed

    broken = make_trainer(tiny(), build_rows(targets, section), run, section, tmp_path / "b", listener=Listener(kill))
    with pytest.raises(Killed):
        broken.train()
    resumed = trainer_of(targets, tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=str(_last_checkpoint(tmp_path / "b")))
    a, b = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert all(torch.equal(w, resumed.follower.weights[n]) for n, w in straight.follower.weights.items())

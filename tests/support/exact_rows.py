"""Traces with several injections each, and the loss of a training batch from separate forward passes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import numpy as np
import torch
from support.flat_recipe import train_section
from support.model_kinds import VOCAB
from torch.overrides import TorchFunctionMode

from hintdistill.config import RunSection
from hintdistill.core.scores import Target
from hintdistill.objectives import gather_with_tail, objective
from hintdistill.training.passes import places
from hintdistill.training.reward import NO_OUTCOME
from hintdistill.training.rows import build_rows
from hintdistill.training.stage import make_trainer
from hintdistill.training.views import base, restricted, supports, whole

KEPT = 12
PLAN = {
    # trace: its length and its steps (start, end, place of the hint, length of the hint; 0 for an anchor)
    "long": (74, [(22, 31, 12, 9), (22, 31, 22, 7), (40, 41, 33, 14), (50, 60, 0, 5), (64, 74, 64, 0)]),
    "short": (37, [(9, 16, 4, 11), (25, 37, 20, 6)]),
    "middle": (52, [(30, 44, 29, 3)]),
}
"""Two hints on one step, steps of other lengths, a hint at the very start and one at the step, an anchor."""


def logprobs(model, ids, length: int) -> torch.Tensor:
    """Log-probabilities [length, V] of the last tokens by a forward pass of this sequence alone, float32 or float64."""
    logits = model(input_ids=torch.as_tensor(np.asarray(ids))[None], use_cache=False).logits[0, -length - 1 : -1]
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def targets_of(model, seed: int = 0) -> list[Target]:
    """What the rescore stage would store for the plan: seven hints and an anchor in three traces."""
    rng, out = np.random.default_rng(seed), []
    for name, (length, steps) in PLAN.items():
        trace = rng.integers(3, VOCAB, length)
        for n, (start, end, at, block_length) in enumerate(steps):
            block = rng.integers(3, VOCAB, block_length)
            out.append(target_of(model, f"{name}{n}", name, trace, start, end, at, block))
    return out


def target_of(model, key, trace_id, trace, start, end, at, block) -> Target:
    """What the rescore stage would store for one step `trace[start:end]`; an empty block makes an anchor."""
    step, length = trace[start:end], end - start
    with torch.no_grad():
        plain = logprobs(model, trace[:end], length)
        hinted = logprobs(model, np.concatenate([trace[:at], block, trace[at:end]]), length)
        if not len(block):
            # an initial policy that the student has moved away from: what an anchor pulls on is more than rounding
            plain = hinted = (plain * 0.7).log_softmax(-1)
    sampled = torch.as_tensor(step)[:, None]
    ids = torch.cat([plain.topk(KEPT).indices, hinted.topk(KEPT).indices, sampled], -1)
    support = torch.stack(
        [torch.nn.functional.pad(r.unique(), (0, ids.shape[1] - len(r.unique())), value=-1) for r in ids]
    )

    def kept(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        own = x.gather(-1, support.clamp(min=0)).masked_fill(support < 0, -torch.inf)
        return own.float().numpy(), torch.log1p(-own.exp().sum(-1)).float().numpy()

    (teacher, teacher_tail), (before, plain_tail) = kept(hinted), kept(plain)
    return Target(
        key=key,
        trace_id=trace_id,
        step=start,
        kind="hint" if len(block) else "anchor",
        split="train",
        context_ids=trace[:start],
        step_ids=step,
        span=(0, min(3, length)),
        support_ids=support.numpy(),
        teacher_logprobs=teacher,
        plain_logprobs=before,
        teacher_tail=teacher_tail,
        plain_tail=plain_tail,
        teacher_sampled=hinted.gather(-1, sampled)[:, 0].float().numpy(),
        plain_sampled=plain.gather(-1, sampled)[:, 0].float().numpy(),
        insert_at=at,
        block_ids=block,
        accepted=True,
    )


def trainer_of(model, stored, tmp_path, ended=NO_OUTCOME, **config):
    """A trainer of (a copy of) this model; `batch_size` and the like come from `config`."""
    section = train_section(**{"epochs": 1, "batch_size": 8, "warmup_ratio": 0, "save_steps": 1000, **config})
    own = copy.deepcopy(model)
    own.config.use_cache = False
    run = RunSection(model="tiny", device="cpu", dtype="float32")
    rows = build_rows(stored, section, ended)
    return make_trainer(own, rows, run, section, tmp_path, special_ids=[0, 1, 2])


def flat(model) -> torch.Tensor:
    """Every gradient, one after another; zeros where a trained parameter has none."""
    return torch.cat(
        [
            (p.grad if p.grad is not None else torch.zeros_like(p)).flatten()
            for p in model.parameters()
            if p.requires_grad
        ]
    )


def loss_and_gradient(trainer, rows=None) -> tuple[float, torch.Tensor]:
    """The trainer's own, in training mode."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, {"rows": rows if rows is not None else trainer.train_dataset.rows})
    loss.backward()
    return loss.item(), flat(trainer.model)


def reference(trainer, model, teacher, initial, rows=None) -> tuple[float, torch.Tensor]:
    """The same from separate forward passes: each sequence by itself, the model's own attention, dense log-softmax.

    Args:
        model: the student, with the attention it came with.
        teacher: whoever reads the hint, as a function that gives a context in which a model may be called.
        initial: the initial policy, likewise.
    """
    rows = rows if rows is not None else trainer.train_dataset.rows
    model.train()
    model.zero_grad()
    names = trainer.recipe.used_contexts("hint") if trainer.config.target_source == "in_step" else {}
    total = 0.0
    for kind in ("hint", "anchor"):
        placed = places(rows, kind)
        if not placed:
            continue
        slots = [s for _, s in placed]
        student = torch.cat([logprobs(model, row.plain(s), s.length) for row, s in placed])
        if kind == "hint" and names:
            views = {"student": student}
            for name, (view, label) in names.items():
                if name != "student":
                    who = initial if view.weights == "initial" else teacher
                    with torch.set_grad_enabled(view.grad), who() as judge:
                        read = [logprobs(judge, row.read(s, label), s.length) for row, s in placed]
                    views[name] = torch.cat(read)
            batch = whole(slots, views, [0, 1, 2])
        else:
            batch = restricted(slots, gather_with_tail(student, supports(slots, student.device)))
        value, _ = objective(trainer.recipe, batch, rows=kind, base=base(slots, student.device))
        total = total + value * len(slots)
    loss = total / len(places(rows))
    loss.backward()
    return loss.item(), flat(model)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖g - g'‖ / ‖g'‖."""
    return float((found - wanted).norm() / wanted.norm())


@contextlib.contextmanager
def as_it_is(model) -> Iterator[object]:
    """A model in evaluation mode."""
    was = model.training
    model.eval()
    yield model
    model.train(was)


class Doubled(TorchFunctionMode):
    """Everything in float64, the casts to float32 inside norms, routers and attention included."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def change_of_one_step(trainer, rows: int) -> torch.Tensor:
    """What one optimiser step over all `rows` rows does to the weights.

    By plain SGD with a step so large that rounding the new weights hides nothing of the gradient.
    """
    assert len(trainer.train_dataset.rows) == rows
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e4)
    trainer.train()
    assert trainer.state.global_step == 1
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before

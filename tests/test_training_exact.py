"""The shared path is exact: loss and gradient of a training batch against separate forward passes of every sequence.

Bounds on ‖g - g'‖/‖g'‖ in float32: 2e-6. Recurrent kinds get 1e-5, because the student reads a padded batch in scans of
other chunks than the reference's, which sums in another order; that nothing but rounding is in it shows in float64, where
every kind's difference is below 1e-10.
"""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
from exact_rows import Doubled, as_it_is, error, loss_and_gradient, reference, targets_of, trainer_of
from model_kinds import WAYS, model_of

from hintdistill.engines.sharing import SharingWarning

pytestmark = pytest.mark.usefixtures("one_thread")

RECURRENT = {k for k, way in WAYS.items() if way != "shared_prefix"}
LIVE = {"targets": "in_step", "teacher": "live", "support": "full", "anchor": {"weight": 1.0}}


def bound(kind: str) -> float:
    return 1e-5 if kind in RECURRENT else 2e-6


def student_of(kind: str, dtype=torch.float32):
    """A fresh copy of the kind's model, trained where the trainer trains it."""
    model = copy.deepcopy(model_of(kind)).to(dtype)
    if kind.endswith("lora"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name)
    if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        # the grouped product of experts knows no float64
        model.set_experts_implementation("eager")
    return model


@contextlib.contextmanager
def without_adapter(model):
    """The initial policy: the student itself before its first update, where it has no adapter."""
    with as_it_is(model), model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext():
        yield model


def quiet_trainer(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SharingWarning)
        return trainer_of(*args, **kwargs)


def differences(kind, tmp_path, dtype=torch.float32, spoil=None, **config) -> tuple[float, float]:
    """Of loss and gradient; `spoil` changes the trainer and gives the teacher to compare with."""
    model = student_of(kind, dtype)
    trainer = quiet_trainer(model, targets_of(model), tmp_path, **config)
    teacher = spoil(trainer, model) if spoil else None
    wanted, g = reference(
        trainer, model, (lambda: as_it_is(teacher or model)) if spoil != "initial" else None, lambda: without_adapter(model)
    )  # fmt: skip
    loss, found = loss_and_gradient(trainer)
    assert wanted > 1e-4 and float(g.norm()) > 1e-3
    return abs(loss - wanted) / wanted, error(found, g)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_a_live_teacher_is_exact_on_every_kind(kind, checkpointing, tmp_path):
    loss, gradient = differences(kind, tmp_path, **LIVE, divergence="jsd", gradient_checkpointing=checkpointing)
    assert loss <= 5e-5 and gradient <= bound(kind)


@pytest.mark.parametrize("kind", WAYS)
def test_in_float64_nothing_is_left(kind, tmp_path):
    with Doubled():
        loss, gradient = differences(kind, tmp_path, torch.float64, **LIVE, divergence="rkl")
    assert loss <= 1e-10 and gradient <= 1e-10

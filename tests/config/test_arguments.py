"""`train.arguments`: what is passed to transformers' Trainer, and why the rest is not."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic import ValidationError
from transformers import TrainingArguments

from hintdistill.config import TrainSection
from hintdistill.config.arguments import ALLOWED, OURS, REFUSED, checked


def test_what_is_on_the_list_is_taken_and_converted():
    given = {
        "optim": "adafactor",
        "adam_beta2": 0.95,
        "torch_empty_cache_steps": 4,
        "lr_scheduler_kwargs": {"power": 2},
    }
    assert checked(given) == given and TrainSection(arguments=given).arguments == given
    assert (
        "arguments" not in TrainSection().model_dump()
        and TrainSection(arguments=given).model_dump()["arguments"] == given
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ignore_data_skip", "ignore_data_skip is refused: it reads rows again after a resume"),
        ("save_only_model", "would not end with the same weights"),
        ("learning_rate", r"learning_rate is set by train\.learning_rate"),
        ("use_liger_kernel", "replaces the model's forward pass"),
        ("adam_beta3", "not an argument that can be passed on.*did you mean adam_beta"),
        ("quantum", "passed on to the Trainer; the allowed ones are optim"),
    ],
)
def test_what_is_not_is_refused_by_name_with_the_reason(name, said):
    with pytest.raises(ValidationError, match=said):
        TrainSection(arguments={name: True})


@pytest.mark.parametrize("given", [{"adam_beta1": 1.0}, {"optim": "adamw_8bit"}, {"tf32": "yes"}, {"ddp_timeout": 0}])
def test_a_value_of_another_kind_is_refused(given):
    with pytest.raises(ValidationError, match=next(iter(given))):
        TrainSection(arguments=given)


def test_the_lists_name_arguments_of_the_trainer_and_none_twice():
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    assert set(ALLOWED) <= known
    # names of other releases of transformers may be asked for, and are refused by the same reasons
    assert len((set(OURS) | set(REFUSED)) - known) <= 6
    assert not set(ALLOWED) & set(OURS) and not set(ALLOWED) & set(REFUSED) and not set(OURS) & set(REFUSED)

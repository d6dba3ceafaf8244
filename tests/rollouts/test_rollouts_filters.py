"""What is drawn under top-p, top-k and min-p: the very distribution, in this process and as a server is asked for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.observers import config_of

from hintdistill.core.types import Message, SampledFrom, Trace
from hintdistill.pipeline.context import trace_key
from hintdistill.pipeline.outcome import sampled_elsewhere
from hintdistill.rollouts.generation import SamplingOptions, TransformersGenerator, drawing
from hintdistill.rollouts.measure import Setting, describe, measured_from, options_of, played_from

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT = list(range(20, 60))


def filtered(logits: np.ndarray, how: SampledFrom) -> np.ndarray:
    """Probabilities [V] after temperature, top_k, top_p and min_p, in this order, computed the plain way."""
    p = np.exp(logits / how.temperature - np.max(logits / how.temperature))
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if how.top_k:
        p[order[how.top_k :]] = 0.0
        p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= how.top_p]] = 0.0
    p /= p.sum()
    p[p < how.min_p * p.max()] = 0.0
    return p / p.sum()


@pytest.mark.parametrize(
    "how",
    [
        SampledFrom(temperature=3.0),
        SampledFrom(temperature=3.0, top_k=5),
        SampledFrom(temperature=3.0, top_p=0.6),
        SampledFrom(temperature=2.0, min_p=0.2),
        SampledFrom(temperature=4.0, top_k=12, top_p=0.8, min_p=0.05),
    ],
    ids=str,
)
def test_the_distribution_that_is_drawn_from_is_the_filtered_one(how, student_engine):
    options = SamplingOptions(**how.model_dump(), max_new_tokens=1)
    with student_engine.hold() as model, torch.inference_mode():
        ids = torch.tensor([CONTEXT])
        logits = model(ids).logits[0, -1].double().numpy()
        out = model.generate(
            ids, max_new_tokens=1, return_dict_in_generate=True, output_scores=True, pad_token_id=0, **drawing(options)
        )
    theirs = out.scores[0][0].double().softmax(-1).numpy()
    ours = filtered(logits, how)
    assert (theirs > 0).sum() == (ours > 0).sum() and np.abs(theirs - ours).max() < 1e-5
    # and what is drawn comes from it: everything within the support, and often enough of the likeliest
    n = 400
    drawn = TransformersGenerator(student_engine).generate([CONTEXT] * n, [], options, seed=1)
    counts = np.bincount([s.ids[0] for s in drawn], minlength=len(ours))
    assert counts[ours == 0].sum() == 0
    top = ours.max()
    assert abs(counts[ours.argmax()] / n - top) < 4.5 * np.sqrt(top * (1 - top) / n) + 1e-9


def test_log_probabilities_are_recorded_before_any_filter(student_engine):
    options = SamplingOptions(temperature=2.0, top_k=3, max_new_tokens=2, logprobs=True)
    (step,) = TransformersGenerator(student_engine).generate([CONTEXT], [], options, seed=0)
    with student_engine.hold() as model, torch.inference_mode():
        plain = model(torch.tensor([[*CONTEXT, *step.ids]])).logits[0].log_softmax(-1)
    expected = [float(plain[len(CONTEXT) - 1 + i, t]) for i, t in enumerate(step.ids)]
    assert step.logprobs == pytest.approx(expected, abs=1e-4)


def test_settings_of_a_config_name_their_filters_and_greedy_has_none():
    rollout = config_of(["traces.path=x", "rollout={temperature: 0, top_p: 0.5}"]).rollout
    assert measured_from(rollout) == SampledFrom(temperature=0.0) and Setting("test", 0.0).name == "test@0"
    rollout = config_of(["traces.path=x", "rollout={sample: {temperature: 0.7, top_p: 0.9, min_p: 0.1}}"]).rollout
    assert Setting.of("test", played_from(rollout)).name == "test@0.7,top_p=0.9,min_p=0.1"
    plain, sharp = options_of(rollout, 0.7, 0), options_of(rollout, played_from(rollout), 0)
    assert "top_p" not in describe(plain), "episodes of before keep their keys"
    assert describe(sharp) == describe(plain) | {"top_p": 0.9, "min_p": 0.1}


def test_ratios_of_filtered_rollouts_are_said_to_be_of_another_policy():
    assert sampled_elsewhere(config_of(["traces.path=x"])) is None
    said = sampled_elsewhere(config_of(["traces.path=x", "rollout.sample={temperature: 0.7, top_p: 0.9}"]))
    assert "sampled at temperature 0.7, top_p 0.9, but" in said


def test_log_probabilities_of_another_distribution_are_not_taken_for_the_models():
    message = Message(role="assistant", content="x", token_ids=(1, 2), logprobs=(-1.0, -2.0))
    tempered = message.model_copy(update={"logprobs_of": SampledFrom(temperature=0.7)})
    whole = message.model_copy(update={"logprobs_of": SampledFrom()})
    assert message.own_logprobs == whole.own_logprobs == (-1.0, -2.0) and tempered.own_logprobs is None
    keys = {trace_key(Trace(id="t", messages=(m,))) for m in (message, tempered, whole)}
    assert len(keys) == 3

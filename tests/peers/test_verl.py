"""verl's own agent loop worker, padding and loss with the hook: a run's targets looked up, and a hint spliced at a later turn."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import STUDENT
from support.exported import step_logprobs
from support.peers import need, the_model, the_run

pytestmark = need("verl", "ray", "tensordict")

import ray
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopManager, AgentLoopMetrics, AgentLoopOutput, AgentLoopWorker
from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk

from hintdistill.bridges import verl as bridge
from hintdistill.bridges.formulas import at, products
from hintdistill.bridges.narrow import narrow
from hintdistill.bridges.runs import open_rows
from hintdistill.bridges.surgery import Splice, StoredScores
from hintdistill.core.errors import ConfigError

K, PROMPT, RESPONSE = 8, 256, 128


class Teacher:
    """What verl's teacher manager is to the worker: rows of the real model's top K, the last of them a dummy."""

    distillation_loss_config = SimpleNamespace(topk=K)

    def __init__(self):
        self.asked = []

    async def compute_teacher_logprobs_single(self, sequence_ids, **_):
        self.asked.append(sequence_ids)
        with torch.no_grad():
            top = the_model()(torch.tensor(sequence_ids)[None]).logits[0].log_softmax(-1).topk(K)
        ids, logprobs = top.indices.int(), top.values
        ids[-1], logprobs[-1] = 0, 0.0
        return ids, logprobs


def worker_of(cls):
    """verl's worker without a cluster: its own methods, and what they read."""
    worker = object.__new__(cls)
    worker.tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    worker.processor, worker.mm_processor_kwargs = None, {}
    worker.rollout_config = SimpleNamespace(prompt_length=PROMPT, response_length=RESPONSE)
    worker.distillation_enabled, worker.teacher_key = True, "teacher"
    worker.teacher_server_manager = Teacher()
    worker.reward_loop_worker_handles = None
    return worker


def output_of(prompt, response, mask=None):
    return AgentLoopOutput(
        prompt_ids=prompt, response_ids=response, response_mask=mask or [1] * len(response), metrics=AgentLoopMetrics()
    )


def postprocess(worker, output):
    return asyncio.run(worker._agent_loop_postprocess(output, False, raw_prompt=[]))


def losses(model, done):
    """verl's own loss at every position, from its padded tensors, [prompt + response]."""
    keep = done.attention_mask[0].bool()
    ids = done.input_ids[0][keep]
    nested = lambda x: torch.nested.nested_tensor([x[0][keep]], layout=torch.jagged)  # noqa: E731
    with torch.no_grad():
        out = compute_forward_kl_topk(
            student_logits=model(ids[None]).logits,
            teacher_topk_log_probs=nested(done.teacher_logprobs),
            teacher_topk_ids=nested(done.teacher_ids.long()),
            config=SimpleNamespace(distillation_loss=SimpleNamespace(log_prob_min_clamp=None)),
            data_format="thd",
        )
    return out["distillation_losses"][0].double().numpy(), out["teacher_mass"][0].numpy()


def hints():
    return list(open_rows(the_run()).targets.where(lambda t: t.kind == "hint"))


def test_the_hook_is_what_verl_asks_for():
    assert issubclass(bridge.HintedAgentLoopManager, AgentLoopManager)
    assert issubclass(bridge.worker_class(), AgentLoopWorker)
    # ray sends the class to its actors
    assert issubclass(ray.cloudpickle.loads(ray.cloudpickle.dumps(bridge.worker_class())), AgentLoopWorker)
    worker = worker_of(bridge.worker_class())
    with pytest.raises(ConfigError, match=r"data\.hintdistill_run is not set"):
        worker.open_store(None)
    worker.open_store(str(the_run()))
    assert isinstance(worker.hint_store, StoredScores) and len(worker.hint_store) > 3


def test_a_run_is_looked_up_and_the_loss_is_the_formulas():
    worker = worker_of(bridge.worker_class())
    worker.open_store(str(the_run()))
    for target in hints():
        few = narrow(target, K, "keep")
        context, step = target.context_ids.tolist(), target.step_ids.tolist()
        # the step is a turn inside the response, and turns follow it
        cut = len(context) - 7
        done = postprocess(worker, output_of(context[:cut], [*context[cut:], *step, 9, 9, 9]))
        assert done.teacher_ids.shape == done.teacher_logprobs.shape == (1, PROMPT + RESPONSE, K)
        mask = done.response_mask[0].bool()
        span = slice(*target.span)
        assert mask.nonzero()[:, 0].tolist() == list(range(7 + span.start, 7 + span.stop))
        each, mass = losses(the_model(), done)
        rows = slice(len(context) - 1, len(context) + len(step) - 1)
        student = step_logprobs(the_model(), [*context, *step], len(context))
        wanted = products(few.teacher_logprobs.astype(np.float64), at(student, few.support_ids)).sum(1)
        assert np.allclose(each[rows], wanted, atol=1e-5)
        assert np.allclose(mass[rows], np.exp(few.teacher_logprobs.astype(np.float64)).sum(1), atol=1e-5)
        # of positions without a teacher nothing is left over
        assert np.allclose(np.delete(each, np.r_[rows]), 0.0)
    assert worker.teacher_server_manager.asked == [], "nothing is scored that is known"


def test_a_hint_is_spliced_above_a_later_turn_and_its_step_alone_carries_loss():
    target = max(hints(), key=lambda t: t.step)
    context, step, block = target.context_ids.tolist(), target.step_ids.tolist(), target.block_ids.tolist()
    assert target.step > 0
    splice = Splice(target.insert_at, tuple(block), len(context), len(context) + len(step))
    seen = []

    def find(ids, prompt_length, sample):
        seen.append((ids, prompt_length, sample))
        return [splice]

    worker = worker_of(bridge.worker_class(find))
    cut = 40
    response = [*context[cut:], *step, 7, 8]
    mask = [0] * (len(context) - cut) + [1] * len(step) + [0, 0]
    done = postprocess(worker, output_of(context[:cut], response, mask))
    assert seen == [([*context, *step, 7, 8], cut, {"raw_prompt": []})]
    asked = worker.teacher_server_manager.asked
    assert asked == [[*context[: target.insert_at], *block, *context[target.insert_at :], *step]]
    assert done.response_mask[0].tolist()[: len(mask)] == mask
    # what arrives is the hinted view of the step, where the un-hinted student predicts it
    padded = PROMPT - cut
    rows = slice(padded + len(context) - 1, padded + len(context) + len(step) - 1)
    ids, logprobs = done.teacher_ids[0, rows].numpy(), done.teacher_logprobs[0, rows].numpy()
    for t in range(len(step)):
        held = dict(zip(target.support_ids[t].tolist(), target.teacher_logprobs[t].tolist(), strict=True))
        assert [held[i] for i in ids[t].tolist()] == pytest.approx(logprobs[t].tolist(), abs=2e-4)
    assert done.input_ids[0, rows.start + 1 : rows.stop + 1].tolist() == step


def test_a_sequence_without_a_hint_carries_no_loss():
    worker = worker_of(bridge.worker_class())
    worker.open_store(str(the_run()))
    done = postprocess(worker, output_of([5, 6, 7], [8, 9]))
    assert not done.response_mask.any()
    each, _ = losses(the_model(), done)
    assert not each.any()

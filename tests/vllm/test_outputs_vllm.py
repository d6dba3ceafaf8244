"""What a training writes, in the real vLLM: a student's folder, and an adapter folder on it, say what transformers and peft say.

One engine of its own, because an engine takes adapters only if it was started so. The merged folder is written by the same
call as the full one; that it holds the same files, settings and tensors, by name, shape and precision, stands in for a load
of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STUDENT
from safetensors import safe_open

vllm = pytest.importorskip("vllm", reason="vllm is not installed in this environment; `make test-vllm` has its own")
pytestmark = pytest.mark.vllm

IDS = np.random.default_rng(0).integers(3, 1024, 120).tolist()


def stirred(tmp_path: Path, folder: Path, name: str, **config):
    """A model trained as `config` says, as far as its files are concerned, and the folder it was written to."""
    from hintdistill.config import RunSection, TrainSection
    from hintdistill.training.output import write_student
    from hintdistill.training.students import load_student

    run, section = RunSection(model=str(folder), device="cpu", dtype="float32"), TrainSection(**config)
    student = load_student(folder, run, section, torch.device("cpu"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    write_student(tmp_path / name, student.model, folder=folder, run=run, config=section, summary={})
    return student.model, tmp_path / name


def theirs(model) -> np.ndarray:
    """Log-probabilities of IDS after the first, by transformers or peft."""
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([IDS])).logits[0].float().log_softmax(-1)
    return logprobs[torch.arange(len(IDS) - 1), torch.tensor(IDS[1:])].numpy()


def tensors(folder: Path) -> dict[str, tuple]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {n: (file.get_slice(n).get_dtype(), *file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118


def test_a_students_folder_and_an_adapter_on_it(tmp_path):
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from hintdistill.config import LoraSection
    from hintdistill.engines.vllm import VLLMEngine

    whole, full = stirred(tmp_path, STUDENT, "full")
    under, merged = stirred(tmp_path, full, "merged", lora=LoraSection(rank=4, alpha=8))
    assert tensors(full) == tensors(merged)
    assert (full / "config.json").read_text() == (merged / "config.json").read_text()
    assert {p.name for p in full.iterdir()} == {p.name for p in merged.iterdir()} - {"adapter"}

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    engine = VLLMEngine.load(
        full, dtype="float32", max_logprobs=4, max_length=512, enable_lora=True, max_lora_rank=8, max_loras=1
    )
    try:
        params = SamplingParams(prompt_logprobs=0, max_tokens=1, temperature=0.0, detokenize=False)
        adapter = LoRARequest("corrected", 1, str(merged / "adapter"))
        ours = []
        for request in (None, adapter):
            answer = engine.llm.generate([{"prompt_token_ids": IDS}], params, use_tqdm=False, lora_request=request)[0]
            ours.append(np.array([answer.prompt_logprobs[i][IDS[i]].logprob for i in range(1, len(IDS))]))
    finally:
        engine.close()
    assert np.abs(ours[0] - theirs(whole)).max() <= 1e-4
    assert np.abs(ours[1] - theirs(under)).max() <= 1e-4
    assert np.abs(ours[0] - ours[1]).max() > 1e-2, "the adapter does something"

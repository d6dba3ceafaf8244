"""The real vLLM is handed adapters while it runs: on a CPU too. A server of its own, because one that takes adapters wraps its layers."""

from __future__ import annotations

import json

import pytest
from conftest import STUDENT

vllm = pytest.importorskip("vllm", reason="vllm is not installed in this environment; `make test-vllm` has its own")
pytest.importorskip("peft")
pytestmark = pytest.mark.vllm

PROBE = [list(range(20, 60)), list(range(100, 130))]


@pytest.fixture(scope="module")
def lora_server(tmp_path_factory):
    from support.served import Server

    env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    running = Server(tmp_path_factory.mktemp("vllm") / "log", "--enable-lora", "--max-lora-rank", "16", env=env)
    try:
        running.wait()
        yield running
    finally:
        running.kill()


def adapter(folder, seed):
    import torch
    from peft import LoraConfig, get_peft_model

    from hintdistill.engines.weights import load_model

    torch.manual_seed(seed)
    model = load_model(STUDENT, torch.float32, torch.device("cpu"))
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(folder)
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": str(STUDENT)}))
    return folder


def test_it_samples_from_the_adapter_it_was_handed(lora_server, tmp_path):
    from hintdistill.config import ServerSection
    from hintdistill.core.errors import ServiceError
    from hintdistill.engines.transformers import TransformersEngine
    from hintdistill.rollouts.sampling import SamplingOptions
    from hintdistill.rollouts.server import ServerGenerator

    folders = [adapter(tmp_path / str(seed), seed) for seed in (0, 1)]
    engines = [TransformersEngine.load(f, "float32", "cpu") for f in folders]
    initial = TransformersEngine.load(STUDENT, "float32", "cpu")
    generator = ServerGenerator(ServerSection(base_url=lora_server.url, hand_over="adapter", model="student"), 1024)
    assert generator.hand_adapter(None, initial, PROBE) < 1e-4
    for folder, engine in zip(folders, engines, strict=True):
        assert generator.hand_adapter(folder, engine, PROBE) < 1e-4
        served = [n for n in generator._models() if n.startswith("hintdistill-")]
        assert served == [generator.model]
        (step,) = generator.generate([PROBE[0]], [2], SamplingOptions(temperature=0.0, max_new_tokens=8), 0)
        assert 1 <= len(step.ids) <= 8 and len(step.logprobs) == len(step.ids)
    assert generator.gap(engines[0], PROBE) > 0.1
    with pytest.raises(ServiceError, match="nats per token"):
        generator.hand_adapter(folders[1], engines[0], PROBE)

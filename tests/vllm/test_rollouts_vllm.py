"""Rollouts by the real vLLM, which is handed new weights between rounds. After the tests that need the student's own weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, STUDENT

vllm = pytest.importorskip("vllm", reason="vllm is not installed in this environment; `make test-vllm` has its own")
pytestmark = pytest.mark.vllm


def section(url: str, **change):
    from hintdistill.config import ServerSection

    return ServerSection(base_url=url, **change)


@pytest.fixture(scope="module")
def engine():
    from hintdistill.engines.transformers import TransformersEngine

    return TransformersEngine.load(STUDENT, dtype="float32")


@pytest.fixture(scope="module")
def renderer():
    from hintdistill.injection.rendering import Renderer

    return Renderer.from_pretrained(STUDENT)


def opening(renderer, task):
    from world import ToolworldEnvironment

    start = ToolworldEnvironment().reset(task)
    return renderer.encode(renderer.render(start.messages, start.tools, header=True))


def other_weights(tmp_path: Path) -> Path:
    """The student, a little off everywhere."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    shutil.copytree(STUDENT, folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    save_file(
        {k: (v + 0.05 * torch.randn_like(v.float()).to(v.dtype)) for k, v in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def test_sampled_ids_and_logprobs_are_the_students_own(server, engine, renderer):
    from world import Toolworld

    from hintdistill.core.scores import ScoreRequest
    from hintdistill.rollouts.sampling import Sampler, SamplingOptions
    from hintdistill.rollouts.server import ServerGenerator

    generator = ServerGenerator(section(server.url), engine.max_length)
    tasks = list(Toolworld().splits()["validation"])[:12]
    options = SamplingOptions(temperature=1.0, max_new_tokens=64, max_steps=8, seed=3)
    played = list(Sampler(generator, renderer, options).episodes(Toolworld(), tasks))
    assert [e.task for e in played] == tasks and all(e.failure is None for e in played)
    assert sum(e.trace.reward for e in played) > 0
    worst = 0.0
    for m in (m for e in played for m in e.trace.messages if m.role == "assistant"):
        ids = np.array(m.prompt_token_ids + m.token_ids)
        ours = engine.score([ScoreRequest(ids, len(m.prompt_token_ids), len(ids))], 1)[0].sampled
        worst = max(worst, float(np.abs(ours - np.array(m.logprobs)).max()))
    assert worst < 1e-3
    greedy = SamplingOptions(temperature=0.0, max_new_tokens=64, max_steps=8)
    one, two = (
        [e.trace.messages[-1].content for e in Sampler(w, renderer, greedy).episodes(Toolworld(), tasks)]
        for w in (generator, engine)
    )
    assert one == two


def test_it_serves_the_weights_it_was_handed(server, engine, renderer, tmp_path):
    from hintdistill.core.errors import ServiceError
    from hintdistill.engines.transformers import TransformersEngine
    from hintdistill.rollouts.server import ServerGenerator

    folder = other_weights(tmp_path)
    other = TransformersEngine.load(folder, dtype="float32")
    probe = [opening(renderer, "weather.alias.none.old.1"), opening(renderer, "hotel.urgent.none.old.2")]
    generator = ServerGenerator(section(server.url), engine.max_length)
    assert generator.gap(engine, probe) < 1e-3 < 0.1 < generator.gap(other, probe)
    assert generator.hand_over(folder, other, probe) < 1e-3 and generator.key == other.key
    assert generator.gap(engine, probe) > 0.1, "the old weights are gone, the prefix cache too"
    with pytest.raises(ServiceError, match=r"nats per token"):
        generator.hand_over(folder, engine, probe)
    assert generator.hand_over(STUDENT, engine, probe) < 1e-3


def test_weights_that_are_not_served_are_found_out(server, engine, renderer, tmp_path):
    """Whatever a reload leaves behind, nothing is sampled from weights other than those that were handed over."""
    from hintdistill.core.errors import ServiceError
    from hintdistill.engines.transformers import TransformersEngine
    from hintdistill.rollouts.server import ServerGenerator

    generator = ServerGenerator(section(server.url), engine.max_length)
    other = TransformersEngine.load(other_weights(tmp_path), dtype="float32")
    probe = [opening(renderer, "weather.alias.none.old.1"), opening(renderer, "hotel.urgent.none.old.2")]
    with pytest.raises(ServiceError, match=r"nats per token") as error:
        generator.hand_over(STUDENT, other, probe)
    assert generator.key == "" and "--worker-extension-cls" in error.value.hint


def test_a_round_of_the_loop_by_the_server(server, tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hintdistill.cli",
            "run",
            "configs/rounds.yaml",
            "-q",
            f"run.dir={folder}",
            "run.rounds=2",
            f"rollout.sample.server.base_url={server.url}",
            "rollout.sample.episodes=24",
            "rollout.splits=[validation]",
            "rollout.limit=6",
            "train.epochs=1",
            "train.batch_size=8",
            "report.off_target_steps=8",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    import json

    rounds = json.loads((folder / "rounds.json").read_text())["rounds"]
    assert [r["trained"] for r in rounds] == [True, True] and rounds[1]["episodes"]["failed"] == 0


def test_a_server_that_is_gone_or_cannot_reload(server, engine, renderer, tmp_path):
    from hintdistill.core.errors import ServiceError
    from hintdistill.rollouts.generation import SamplingOptions
    from hintdistill.rollouts.server import ServerGenerator

    with pytest.raises(ServiceError, match=r"cannot reach the rollout server at http://127\.0\.0\.1:9/v1"):
        ServerGenerator(section("http://127.0.0.1:9/v1", retries=0), 4096)
    wrong = ServerGenerator(section(server.url, model="nope"), 4096)
    with pytest.raises(ServiceError, match="refused: 404"):
        wrong.generate([[5, 6]], [0], SamplingOptions(max_new_tokens=2), 0)

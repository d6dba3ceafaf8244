"""A server that is handed adapters: one adapter on the initial model, whatever rounds it is made of; and the loop that overlaps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STUDENT
from pydantic import ValidationError
from support.command import hintdistill
from support.sampling_server import sampling_server

from hintdistill.config import RolloutSection, ServerSection
from hintdistill.core.errors import ConfigError, ServiceError
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.engines.weights import load_model
from hintdistill.rollouts.adapters import adapter_for_server, chain_of
from hintdistill.rollouts.server import ServerGenerator

pytestmark = pytest.mark.usefixtures("one_thread")
PROBE = [list(range(20, 60)), list(range(100, 130))]


def student_with_adapter(base: Path, into: Path, rank: int, seed: int) -> Path:
    """A student as a training with train.lora and train.save=both leaves it: merged weights, and the adapter beside them."""
    from peft import LoraConfig, get_peft_model

    from hintdistill.training.output import save_model

    model = load_model(base, torch.float32, torch.device("cpu"))
    torch.manual_seed(seed)
    tuned = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(into / "adapter")
    said = json.loads((into / "adapter" / "adapter_config.json").read_text())
    (into / "adapter" / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": str(base)}))
    save_model(tuned.merge_and_unload(), into, base, torch.float32)
    return into


@pytest.fixture(scope="module")
def rounds(tmp_path_factory) -> tuple[Path, Path]:
    """The students of two rounds."""
    folder = tmp_path_factory.mktemp("rounds")
    one = student_with_adapter(STUDENT, folder / "01" / "student", 4, 0)
    return one, student_with_adapter(one, folder / "02" / "student", 2, 1)


def scores(folder: Path) -> np.ndarray:
    engine = TransformersEngine.load(folder, "float32", "cpu")
    return np.concatenate([s.sampled for s in engine.score([ScoreRequest(np.array(p), 1, len(p)) for p in PROBE], 1)])


def test_adapters_of_two_rounds_are_one_on_the_initial_model(rounds):
    one, two = rounds
    assert adapter_for_server(STUDENT, STUDENT) is None and adapter_for_server(one, STUDENT) == one / "adapter"
    assert chain_of(two, STUDENT) == [one / "adapter", two / "adapter"]
    stacked = adapter_for_server(two, STUDENT)
    said = json.loads((stacked / "adapter_config.json").read_text())
    assert said["r"] == said["lora_alpha"] == 6 and said["base_model_name_or_path"] == str(STUDENT)
    assert np.abs(scores(stacked) - scores(two)).max() < 1e-4 < np.abs(scores(two) - scores(one)).max()
    assert stacked.parent == two.parent and adapter_for_server(two, STUDENT) == stacked


def test_a_student_of_whole_weights_and_an_adapter_of_another_kind_are_refused(rounds, tmp_path):
    with pytest.raises(ConfigError, match="contains no adapter"):
        chain_of(STUDENT, rounds[0])
    two = student_with_adapter(rounds[0], tmp_path / "student", 2, 2)
    said = json.loads((two / "adapter" / "adapter_config.json").read_text())
    (two / "adapter" / "adapter_config.json").write_text(json.dumps(said | {"use_dora": True}))
    with pytest.raises(ConfigError, match=r"more than a sum of low-rank products \(use_dora"):
        adapter_for_server(two, STUDENT)


def test_the_server_serves_the_adapter_it_was_handed_and_no_other(rounds):
    one, two = rounds
    engines = {f: TransformersEngine.load(f, "float32", "cpu") for f in (STUDENT, one, two)}
    with sampling_server(STUDENT) as server:
        generator = ServerGenerator(ServerSection(base_url=server.url, hand_over="adapter"), 512)
        assert generator.hand_adapter(None, engines[STUDENT], PROBE) < 1e-6 and generator.model == "model"
        assert server.told == []
        assert generator.hand_adapter(one / "adapter", engines[one], PROBE) < 1e-4
        assert generator.hand_adapter(adapter_for_server(two, STUDENT), engines[two], PROBE) < 1e-4
        assert [path.rsplit("/", 1)[1] for path, _ in server.told] == [
            "load_lora_adapter",
            "load_lora_adapter",
            "unload_lora_adapter",
        ]
        assert set(server.weights) == {"model", generator.model} and generator.key == engines[two].key
        # another adapter than the weights here is found out, and does not stay
        with pytest.raises(ServiceError, match="nats per token"):
            generator.hand_adapter(two / "adapter", engines[one], PROBE)
        assert set(server.weights) == {"model"}


def test_a_server_sleeps_where_it_can_and_is_named_where_it_cannot():
    with sampling_server(STUDENT) as server:
        generator = ServerGenerator(ServerSection(base_url=server.url, sleep=True), 512)
        server.sleeps = None
        with pytest.raises(ServiceError, match=r"has no sleep mode \(404\)"):
            generator.sleep()
        server.sleeps = False
        generator.sleep()
        assert server.sleeps is True
        generator.sleep()
        generator.wake()
        assert server.sleeps is False and [path for path, _ in server.told] == ["/sleep?level=1", "/wake_up"]
    with pytest.raises(ValidationError, match="cannot sleep"):
        RolloutSection(overlap=True, sample={"server": {"base_url": "http://localhost:1/v1", "sleep": True}})


def test_overlap_needs_a_server_and_both_keys_are_silent_where_they_are_off():
    with pytest.raises(ValidationError, match=r"set sample\.server\.base_url"):
        RolloutSection(overlap=True)
    data = RolloutSection().model_dump(mode="json")
    assert "overlap" not in data and "hand_over" not in data["sample"]["server"]
    on = RolloutSection(overlap=True, sample={"server": {"base_url": "http://localhost:1/v1", "hand_over": "adapter"}})
    assert RolloutSection.model_validate(on.model_dump(mode="json")) == on


@pytest.mark.slow
def test_a_loop_that_overlaps_plays_each_round_with_the_student_before_the_last_training(tmp_path):
    """Three rounds; the third is played by the second's adapter, and its episodes carry the sampler's own log-probabilities."""
    run = tmp_path / "run"
    with sampling_server(STUDENT) as server:
        more = [
            "run.rounds=3",
            "rollout.overlap=true",
            f"rollout.sample.server={{base_url: '{server.url}', hand_over: adapter, concurrency: 4}}",
            "rollout.sample.episodes=16",
            "rollout.batch_size=8",
            "rollout.splits=[validation]",
            "rollout.limit=4",
            "train.lora={rank: 4, alpha: 8}",
            "train.learning_rate=1e-3",
            "train.epochs=1",
            "report.html=false",
        ]
        hintdistill("run", "configs/rounds.yaml", f"run.dir={run}", *more)
        played = list(dict.fromkeys(server.sampled_by))
    document = json.loads((run / "rounds.json").read_text())
    assert [r["episodes"]["trainings_old"] for r in document["rounds"]] == [0, 1, 1]
    initial = TransformersEngine.load(STUDENT, "float32", "cpu").key
    # rounds 1 and 2 by the initial model, round 3 by the first round's adapter
    assert len(played) == 2 and played[0] == initial != played[1]
    first = (run / "rounds" / "02" / "episodes.jsonl").read_text().splitlines()
    assert all(json.loads(line)["trace"]["messages"][-1].get("logprobs") for line in first[:3])

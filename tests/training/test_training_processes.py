"""Two processes train as one does: the same losses and the same weights, with DDP and with FSDP2, and no hang."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from support.flat_recipe import train_section
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from hintdistill.config import LoraSection, RunSection
from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError
from hintdistill.core.scores import Target
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.training import processes
from hintdistill.training.checkpoints import check_checkpoint
from hintdistill.training.reward import NO_OUTCOME, OutcomeData, OutcomeRow, TraceOutcome
from hintdistill.training.rows import LengthSampler, RowDataset, build_rows
from hintdistill.training.stage import TrainData, TrainJob, read_summary, train
from hintdistill.training.watch import WatchSets

V = 96
WORKER = Path(__file__).parent.parent / "support" / "processes_worker.py"
ACCELERATE = ROOT / "configs" / "accelerate"
LIMIT_S = 400
"""A hang is a failure; on a quiet machine a launch takes a tenth of this."""

pytestmark = pytest.mark.usefixtures("one_thread")


def save_model(folder: Path, tied: bool) -> Path:
    torch.manual_seed(5)
    common = {
        "vocab_size": V,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "bos_token_id": None,
    }
    config = Qwen3Config(**common, head_dim=8, tie_word_embeddings=True) if tied else LlamaConfig(**common)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(6.0)
    model.save_pretrained(folder)
    return folder


def some_targets() -> list[Target]:
    """Seven traces of 20 to 260 tokens with up to three hints each; three of them, the longest too, are anchors only."""
    rng, k, out = np.random.default_rng(1), 8, []
    for trace, (length, hints) in enumerate([(260, 0), (200, 3), (120, 1), (60, 0), (41, 2), (30, 0), (20, 1)]):
        ids = rng.integers(3, V, length)
        for step in range(max(hints, 1)):
            at, n = 10 + step * (length - 10) // 3, int(rng.integers(4, 8))
            sampled = ids[at : at + n]
            support = np.stack([np.concatenate([[t], rng.permutation(V)[:k]]) for t in sampled])
            support[:, 1:][support[:, 1:] == sampled[:, None]] = -1
            logprobs = torch.from_numpy(rng.normal(size=(2, n, k + 2)).astype(np.float32)).log_softmax(-1).numpy()
            holes = np.where(support < 0, -np.inf, 0.0).astype(np.float32)
            teacher, plain = logprobs[0, :, :-1] + holes, logprobs[1, :, :-1] + holes
            tails = [np.log1p(-np.exp(x).sum(-1)) for x in (teacher, plain)]
            block = rng.integers(3, V, 5 if hints else 0)
            out.append(
                Target(
                    key=f"{trace}:{step}",
                    trace_id=f"t{trace}",
                    step=step,
                    kind="hint" if hints else "anchor",
                    split="train",
                    context_ids=ids[:at],
                    step_ids=sampled,
                    span=(1, 3),
                    support_ids=support,
                    teacher_logprobs=teacher,
                    plain_logprobs=plain,
                    teacher_tail=tails[0],
                    plain_tail=tails[1],
                    teacher_sampled=teacher[:, 0],
                    plain_sampled=np.zeros(n, np.float32),
                    insert_at=6,
                    block_ids=block,
                    accepted=True,
                )
            )
    return out


def some_outcomes() -> OutcomeData:
    """Steps of four rollouts; those of `t9` carry nothing else."""
    rng, rows = np.random.default_rng(3), []
    whole = {t.trace_id: np.concatenate([t.context_ids, t.step_ids]) for t in some_targets()}
    whole["t9"] = rng.integers(3, V, 50)
    ended = {t: TraceOutcome(float(n % 2), n % 2 - 0.5, 0.5, 4) for n, t in enumerate(sorted(whole))}
    for trace, end, length in [
        ("t1", 30, 9),
        ("t1", 60, 5),
        ("t3", 14, 4),
        ("t4", 18, 6),
        ("t9", 20, 5),
        ("t9", 50, 8),
    ]:
        ids = torch.from_numpy(whole[trace][:end])
        then = torch.from_numpy(rng.normal(-4.0, 1.0, length).astype(np.float32))
        key, advantage = f"outcome:{trace}:{end}", ended[trace].advantage
        rows.append(OutcomeRow(key, trace, 0, ids, length, then, advantage, 0.1))
    return OutcomeData(ended, rows)


LIVE = {"targets": "in_step", "teacher": "live", "support": "full", "divergence": "jsd"}
EMA = {"recipe": {"teacher": {"update": "ema", "rate": 0.3}}, **LIVE, "teacher": None}
"""Its weights change places with the student's in each step."""
CASES = {
    "stored": {"tied": False},
    "live": {"tied": True, **LIVE},
    "lora": {"tied": False, "lora": LoraSection(rank=4, alpha=8), **LIVE},
    "ema": {"tied": True, **EMA},
    # the initial policy as a model of its own, and few tokens per pass: the processes make unequal numbers of passes
    "initial": {"tied": False, "targets": "in_step", "support": "full", "branch_tokens": 40},
    # a view with a gradient through the hint: a second pass of the student's
    "hinted": {"tied": True, "recipe": "nca"},
    # rows of one or two: some have an outcome and no hint, some a hint and no outcome
    "outcome": {
        "tied": False,
        "recipe": {"preset": "targeted", "coupling": {"kind": "additive", "weight": 0.5}},
        **LIVE,
    },
    "live_few": {"tied": False, **LIVE, "branch_tokens": 40, "gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, dict]:
    models = tmp_path_factory.mktemp("models")
    folders = {tied: save_model(models / f"tied-{tied}", tied) for tied in (True, False)}
    run = RunSection(model="", device="cpu", dtype="float32")
    out = {}
    for name, settings in CASES.items():
        section = {k: v for k, v in settings.items() if k != "tied" and v is not None}
        # seven rows are no multiple of two processes; two micro-batches of one row each per process and step
        config = train_section(
            epochs=2,
            batch_size=4,
            micro_batch_size=1,
            warmup_ratio=0,
            save_steps=3,
            logging_steps=1,
            learning_rate=1e-3,
            anchor={"weight": 0.5, "min_probability": 0.0},
            **section,
        )
        targets = some_targets()
        # read while training, by every process alike, between the steps
        watch = WatchSets(off_target=[t for t in targets if t.kind == "anchor"])
        out[name] = {
            "model": folders[settings["tied"]],
            "targets": targets,
            "run": run,
            "train": config,
            "watch": watch,
            "outcome": some_outcomes() if name == "outcome" else NO_OUTCOME,
        }
    return out


def launch_cases(root: Path, cases: dict[str, dict], names: list[str], command: list[str]) -> tuple[int, str]:
    """Run cases in two processes; exit code and output."""
    (root / "cases.pkl").write_bytes(pickle.dumps(cases))
    return launch(root, [*command, str(WORKER), str(root), *names])


def launch(root: Path, command: list[str]) -> tuple[int, str]:
    """Exit code and output of a launcher's module with its arguments; what is left of its processes after the limit is killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    with (root / "output.txt").open("w+") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = child.wait(LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        return code, output.read()


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LAUNCH = ["accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0", "--config_file"]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if "loss" in r]


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = (
        "grad_norm",
        "divergence",
        "anchor_kl",
        "off_target_kl",
        "span_logprob/student",
        "loss_tokens",
        "reward_loss",
        "distill_loss",
        "reward/ratio_mean",
        "reward/behaviour_gap",
    )
    return [{k: r[k] for k in names if k in r} for r in rows if "loss" in r]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.fixture(scope="module")
def alone(cases, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a case in this one process, trained when it is first asked for."""
    root = tmp_path_factory.mktemp("alone")

    def trained(name: str) -> Path:
        if (root / name).exists():
            return root / name
        case = cases[name]
        train(
            TrainJob(
                case["model"],
                TrainData(case["targets"], watch=case["watch"], outcome=case["outcome"]),
                case["run"],
                case["train"],
                root / name,
                root / name / "student",
                name,
            )
        )
        return root / name

    return trained


def check_same(together: Path, alone: Callable[[str], Path], names: list[str]) -> None:
    for name in names:
        assert len(losses(alone(name))) == 4
        assert losses(together / name) == pytest.approx(losses(alone(name)), rel=1e-5), name
        for ours, theirs in zip(metrics(together / name), metrics(alone(name)), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4), name
        check_weights(together / name, alone(name))


def check_weights(ours: Path, theirs: Path) -> None:
    a, b = weights(theirs / "student"), weights(ours / "student")
    assert a.keys() == b.keys()
    assert max(float((a[k] - b[k]).abs().max()) for k in a) <= 1e-5, ours.name


def go_on_alone(case: dict, folder: Path) -> None:
    assert (folder / "checkpoint-3").is_dir() and not (folder / "student").exists()
    train(
        TrainJob(
            case["model"],
            TrainData(case["targets"], watch=case["watch"]),
            case["run"],
            case["train"],
            folder,
            folder / "student",
            "k",
        )
    )
    assert read_summary(folder / "student").steps == 4


def test_ddp(cases, alone, tmp_path):
    """Uneven rows, a process without a hint, a run left and taken up alone; at last an error in one process, which ends both."""
    names = ["stored", "live", "lora", "ema", "hinted", "outcome"]
    more = {"left": {**cases["lora"], "stops": 4}, "broken": {**cases["stored"], "breaks": (1, 2)}}
    code, output = launch_cases(tmp_path, {**cases, **more}, [*names, *more], TORCHRUN)
    check_same(tmp_path, alone, names)
    assert code != 0 and "Broken: process 1 at step 2" in output
    assert not (tmp_path / "broken" / "student").exists()
    go_on_alone(cases["lora"], tmp_path / "left")
    check_weights(tmp_path / "left", alone("lora"))


@pytest.mark.slow
def test_fsdp2(cases, alone, tmp_path):
    """Whole and sharded alike, tied or not; runs left are taken up by two processes and by one."""
    more = {
        "left": {**cases["ema"], "stops": 4},
        "left_lora": {**cases["lora"], "stops": 4},
        "left_for_two": {**cases["ema"], "stops": 4},
        "two": {**cases["ema"], "in": "left_for_two"},
    }
    code, output = launch_cases(tmp_path, {**cases, **more}, [*cases, *more], [*LAUNCH, str(ACCELERATE / "fsdp2.yaml")])
    assert code == 0, output[-4000:]
    assert "destroy_process_group" not in output
    check_same(tmp_path, alone, list(cases))
    check_weights(tmp_path / "left_for_two", alone("ema"))
    assert (tmp_path / "left" / "checkpoint-3" / "pytorch_model_fsdp.bin").is_file()
    for folder, name in (("left", "ema"), ("left_lora", "lora")):
        go_on_alone(cases[name], tmp_path / folder)
        check_weights(tmp_path / folder, alone(name))


def test_a_step_has_the_same_rows_however_many_processes_read_them(monkeypatch):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    lengths, step = [9, 3, 7, 5, 2, 8, 4], 4
    alone = LengthSampler(lengths, step, 0)
    alone.set_epoch(3)
    whole = list(alone)
    for micro, world in ((1, 2), (2, 2), (1, 4)):
        sampler = LengthSampler(lengths, step, 0, fill=-len(lengths) % (micro * world))
        sampler.set_epoch(3)
        shards = [list(BatchSamplerShard(BatchSampler(sampler, micro, False), world, p)) for p in range(world)]
        assert len({len(s) for s in shards}) == 1
        passes = step // (micro * world)
        for n, at in enumerate(range(0, len(lengths), step)):
            read = [i for s in shards for batch in s[n * passes : (n + 1) * passes] for i in batch]
            assert sorted(i for i in read if i < len(lengths)) == sorted(whole[at : at + step])


def test_what_stands_in_for_a_row_carries_nothing(cases):
    rows = build_rows(cases["stored"]["targets"], cases["stored"]["train"])
    data = RowDataset(rows, 4)
    assert len(rows) == 7 and len(data) == 8 and len(RowDataset(rows)) == 7
    assert data[7].slots == () and len(data[7].ids) == 2


def test_what_cannot_be_shared_is_said(cases, tmp_path, monkeypatch):
    assert processes.rows_per_pass(6, None) == 6
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes.rows_per_pass(16, None) == 4 and processes.rows_per_pass(16, 2) == 2
    for batch, micro in ((6, None), (8, 4)):
        with pytest.raises(ConfigError, match=r"do not divide train\.batch_size"):
            processes.rows_per_pass(batch, micro)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP 1"):
        processes.check_launch()
    monkeypatch.setenv("FSDP_VERSION", "2")
    processes.check_launch()
    with pytest.raises(ConfigError, match="under FSDP2 no process has them"):
        processes.check_launch(grad_window=64)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ConfigError, match="before they are sharded"):
        processes.check_launch()
    with pytest.raises(ConfigError, match="written without FSDP2"):
        check_checkpoint(tmp_path, fsdp=True)
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(ConfigError, match="is sharded"):
        check_checkpoint(tmp_path, fsdp=False)
    check_checkpoint(tmp_path, fsdp=True)


def run_command(folder: Path, *overrides: str) -> list[str]:
    settings = [
        "traces.limit=40",
        "critic.use=[rules]",
        "rollout.environment=null",
        "report.off_target={}",
        "train.epochs=1",
        "train.save_steps=2",
        "train.logging_steps=1",
        "train.batch_size=8",
        "run.device=cpu",
    ]
    return ["-m", "hintdistill.cli", "run", "configs/quickstart.yaml", *settings, f"run.dir={folder}", *overrides]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_whole_run(kind, tmp_path):
    """The main process does all but the training, and prints the report once; its weights are those of a run alone."""
    code, output = launch(tmp_path, [*LAUNCH, str(ACCELERATE / f"{kind}.yaml"), *run_command(tmp_path / "two")])
    assert code == 0, output[-4000:]
    # the report's lines: how far training came, and where the page is
    assert output.count("\nreport: training moved ") == 1 and output.count(f"\nreport: {tmp_path}") == 1
    assert output.count("\nreport: ") == 2 and output.count("\ntrain: recipe ") == 1 and "Traceback" not in output
    config = load_config(ROOT / "configs" / "quickstart.yaml", run_command(tmp_path / "one")[4:])
    run(config, tmp_path / "one", until="train", console=Console(quiet=True))
    two, one = (next((tmp_path / n / "train").iterdir()) for n in ("two", "one"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    a, b = weights(tmp_path / "one" / "student"), weights(tmp_path / "two" / "student")
    assert max(float((a[k] - b[k]).abs().max()) for k in a) <= 1e-4


@pytest.mark.slow
def test_an_error_of_the_main_process_ends_the_others(tmp_path):
    code, output = launch(tmp_path, [*TORCHRUN, *run_command(tmp_path / "run", "traces.path=nowhere.jsonl")])
    assert code != 0 and "error: " in output and "nowhere.jsonl" in output

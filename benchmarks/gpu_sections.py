"""The sections of `gpu.py`: each takes a `Work` and returns figures as plain data. All run on a CPU with tiny sizes (`--rehearse`).

What they measure is imported from the other benchmarks; here are sizes, exactness, the run that is killed, and the long context.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from cases import small
from gpu_pack import kill_group

from hintdistill.core.scores import ScoreRequest, Scores
from hintdistill.engines.transformers import TransformersEngine

if TYPE_CHECKING:
    from gpu import Work

ROOT = Path(__file__).resolve().parent.parent
LARGE = (16_384, 64, 128)
"""Tokens of the trace, of a hint, of a step."""
TINY = (96, 4, 8)
STUDENT = ROOT / "examples" / "toolworld" / "student"


def _random(layers: int, vocab: int, device: str, dtype: torch.dtype) -> Any:
    import rescore

    return rescore.build(layers, vocab, device, dtype)


def _requests(tokens: int, errors: int, vocab: int, hint: int, step: int) -> list[ScoreRequest]:
    """Each erring step plain and under its hint, a group for each."""
    import rescore

    case = rescore.Case(tokens, errors, vocab, hint, step)
    trace, cut, _ = case.sequences()
    out = []
    for i, (end, hinted) in enumerate(zip(case.ends, cut, strict=True)):
        out += [ScoreRequest(ids, len(ids) - step, len(ids), str(i)) for ids in (trace[:end], hinted)]
    return out


def _farthest(one: list[Scores], other: list[Scores]) -> float:
    return max(float(np.abs(a.sampled - b.sampled).max()) for a, b in zip(one, other, strict=True))


def exact(work: Work) -> dict[str, Any]:
    """Check whether sharing changes a score, in float32 and bfloat16, and whether the step's gradient equals the naive one."""
    layers, vocab = (2, 512) if work.tiny else (8, 32_000)
    shape = (192, 4, vocab, 6, 8) if work.tiny else (4096, 4, vocab, 48, 64)
    torch.backends.cuda.matmul.allow_tf32 = False
    requests, out = _requests(*shape), dict[str, Any]()
    reference: list[Scores] = []
    for dtype in (torch.float32, torch.bfloat16):
        name, model = str(dtype).removeprefix("torch."), _random(layers, vocab, work.device, dtype)
        apart = TransformersEngine(model, "gpu", sharing="separate").score(requests, 64)
        # small calls, so that trunks are read in pieces too
        for budget in (None, 1024 if not work.tiny else 64):
            engine = TransformersEngine(model, "gpu", budget, sharing="shared_prefix")
            together, again = engine.score(requests, 64), engine.score(requests, 64)
            out[f"{name}_calls_of_{engine.batch_tokens}"] = {
                "shared_to_separate": _farthest(together, apart),
                "twice_the_same": _farthest(together, again),
                "computed": engine.saved.computed / 2,
            }
            if reference:
                out[f"{name}_calls_of_{engine.batch_tokens}"]["to_float32"] = _farthest(together, reference)
        out[f"{name}_separate_to_float32"] = _farthest(apart, reference or apart)
        reference = reference or apart
        engine = TransformersEngine(model, "gpu")
        out[f"{name}_way"] = engine.way()
        out[f"{name}_trials"] = [vars(t) for t in engine.trials]
        del model, engine
    out["gradient_rel_err"] = _gradient(work)
    return out


def _gradient(work: Work) -> float:
    """|g - g'| / |g'| of our step to TRL's way, float32."""
    from step_variants import VARIANTS, Case, build
    from train_step import gradient

    case = Case(96, 2, 512, 4, 8) if work.tiny else Case(2048, 4, 32_000, 48, 64)
    model = build(small(2 if work.tiny else 8, case.vocab), work.device)
    found = []
    for name in ("ours", "trl_style"):
        model.zero_grad(set_to_none=True)
        VARIANTS[name](model, case)()
        found.append(gradient(model).double())
    return float((found[0] - found[1]).norm() / found[1].norm())


def rescore(work: Work) -> dict[str, Any]:
    """The teacher phase at the shape of a 7B model."""
    import rescore as bench
    from step_variants import seven_billion
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    tokens, hint, step = TINY if work.tiny else LARGE
    with torch.device(work.device):
        config = small(1, 512) if work.tiny else seven_billion()
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if work.tiny else torch.bfloat16).eval()
    case = bench.Case(tokens, 4, config.vocab_size, hint, step)
    return {"aim_vs_naive": 40, **bench.on_device(model, case, 1 if work.tiny else 3)}


def _step(errors: int, aim: float) -> Callable[[Work], dict[str, Any]]:
    def section(work: Work) -> dict[str, Any]:
        """A training step at the shape of a 7B model."""
        import train_step as bench
        from step_variants import Case, build

        tokens, hint, step = TINY if work.tiny else LARGE
        model = build(small(1, 512)) if work.tiny else bench.large(28, work.device)
        case = Case(tokens, errors, model.config.vocab_size, hint, step)
        return {"aim_vs_trl_style": aim, **bench.on_device(model, case, 1 if work.tiny else 2)}

    return section


def loss(work: Work) -> dict[str, Any]:
    """The loss at the head."""
    import loss as bench

    shape = {"positions": 12, "width": 32, "vocab": 512} if work.tiny else {}
    shape = shape or {"positions": 512, "width": 3584, "vocab": 152_064}
    return bench.on_device(work.device, torch.float32 if work.tiny else torch.bfloat16, shape, 1 if work.tiny else 5)


def plan(work: Work) -> dict[str, Any]:
    """Compare the plan of the two costly stages with what they really take."""
    import plan as bench

    size = (
        bench.Size(1, 64, 1024, 6, (2, 4))
        if work.tiny
        else bench.Size(16, 2048, 151_936, 24, (40, 70), dtype="bfloat16")
    )
    settings = bench.larger(work.folder, size, work.device)
    settings["run"] |= {"device": work.device, "threads": 1 if work.tiny else None}
    ways = {"checkpointing": ["train.gradient_checkpointing=true", "train.lora.rank=16"]}
    return {"aim_peak_error": 0.15, **bench.one_case("gpu", work.folder, settings, ways)}


def long(work: Work) -> dict[str, Any]:
    """A context of 128k tokens."""
    import long_context as bench

    size = bench.Size.tiny() if work.tiny else bench.Size(131_072, 8, 36, bench.FOUR_BILLION)
    return bench.measure(size, work.device, torch.float32 if work.tiny else torch.bfloat16)


def real(work: Work) -> dict[str, Any]:
    """Arms on a real model, all in this process; each job's result is kept, so a later call goes on after the last one."""
    # a rehearsal has the shipped student in the place of the weights
    weights = work.weights or (STUDENT if work.tiny else None)
    if weights is None:
        return {"skipped": "no weights were packed"}
    from benchmarks.realmodel import jobs
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.arms import perform, result_of

    began = time.monotonic()
    said = [f"run.model={weights}", f"run.device={work.device}"]
    # whose hints need not work on errands, and whose errors need not be told apart
    said += ["rescore.gate.enabled=false", "run.dtype=float32"] if work.tiny else []
    config = load_config(ROOT / "configs" / "real.yaml", said)
    episodes, n, steps = (6, 2, 1) if work.tiny else (64, 64, 20)
    budget = {"rows": 40, "anchors": 40, "twins": 40, "steps": steps}
    plan = jobs.Plan(config, work.folder, episodes, budget, jobs.grid_tasks(config, n), {"learning_rate": 1e-3})
    change = {"recipe": {"terms": {"distill": {"divergence": {"kind": "fkl"}}}}}
    arms = ("targeted",) if work.tiny else ("targeted", "placebo", "sft_corrected", "targeted_twins", "wrong_hint")
    wanted = [jobs.RealJob(plan, "shared", 0), jobs.RealJob(plan, "none", 0)]
    wanted += [jobs.RealJob(plan, arm, 0, arm, change) for arm in arms]
    seconds, slowest = dict[str, float](), 0.0
    for job in wanted:
        if time.monotonic() - began + slowest > work.seconds:
            break
        started = time.monotonic()
        perform(work.folder, job)
        seconds[job.label or job.arm] = round(time.monotonic() - started, 1)
        slowest = max(slowest, seconds[job.label or job.arm])
    results = {j.label or j.arm: result_of(work.folder, j) for j in wanted}
    return {
        "seconds": seconds,
        "owed": [name for name, found in results.items() if found is None],
        "success": {
            name: _rates(found) for name, found in results.items() if found is not None and "measured" in found
        },
    }


def _rates(found: dict[str, Any]) -> dict[str, float]:
    return {split: sum(r["success"] for r in rows) / len(rows) for split, rows in found["measured"].items() if rows}


def end_to_end(work: Work) -> dict[str, Any]:
    """A run killed while it rescores and while it trains, and resumed to its end."""
    import plan as bench

    shape = {
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }
    size = bench.Size(36, 2560, 151_936, 200, (30, 60), shape, "bfloat16")
    if work.tiny:
        size = bench.Size(1, 64, 1024, 12, (1, 3))
    settings = bench.larger(work.folder, size, work.device)
    settings["run"] |= {"device": work.device, "threads": 1 if work.tiny else None}
    settings["rescore"] |= {"part_rows": 4 if work.tiny else 64}
    settings["train"] |= {
        "lora": {"rank": 16},
        "save": "adapter",
        "save_steps": 1 if work.tiny else 4,
        "gradient_checkpointing": True,
        "epochs": 1.0 if work.tiny else 0.3,
    }
    config, run = work.folder / "config.yaml", work.folder / "run"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    moments = {"rescore": "targets/*.parquet", "train": "train/**/checkpoint-*"}
    return _killed_run(work, config, run, moments)


def _killed_run(work: Work, config: Path, run: Path, moments: dict[str, str]) -> dict[str, Any]:
    """Start the run, kill it when the first file of each moment is there, let it end, and check the folder."""
    command = [sys.executable, "-m", "hintdistill.cli"]
    at, out = [f"run.dir={run}"], dict[str, Any]()
    began = time.monotonic()
    for stage, pattern in moments.items():
        resume = ["--resume"] if run.exists() else []
        process = _start([*command, "run", str(config), *at, *resume], work)
        while process.poll() is None and not any(run.glob(pattern)):
            time.sleep(0.01)
        out[f"killed in {stage}"] = process.poll() is None
        kill_group(process)
    process = _start([*command, "run", str(config), *at, "--resume"], work)
    out["exit"] = process.wait()
    out["seconds"] = round(time.monotonic() - began, 1)
    if out["exit"]:
        raise RuntimeError((work.folder / "run.log").read_text(encoding="utf-8", errors="replace")[-1500:])
    checked = subprocess.run(
        [*command, "verify", str(run), "--json"], capture_output=True, text=True, env=_environment()
    )
    from hintdistill.rescoring.store import TargetStore

    keys = [target.key for target in TargetStore(run / "targets").read()]
    return out | {
        "verified": checked.returncode == 0,
        "traces": len((work.folder / "traces.jsonl").read_text(encoding="utf-8").splitlines()),
        "targets": len(keys),
        "targets_twice": len(keys) - len(set(keys)),
        "student": sorted(p.name for p in (run / "student").iterdir()),
    }


def _environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return os.environ | {"PYTHONPATH": path}


def _start(command: list[str], work: Work) -> subprocess.Popen[Any]:
    log = (work.folder / "run.log").open("a", encoding="utf-8")
    return subprocess.Popen(command, stdout=log, stderr=log, env=_environment(), start_new_session=True)


SECTIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "exact": exact,
    "rescore": rescore,
    "step4": _step(4, 2.8),
    "step8": _step(8, 4.8),
    "real": real,
    "loss": loss,
    "plan": plan,
    "long": long,
    "end_to_end": end_to_end,
}

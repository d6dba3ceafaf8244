"""Measure the errors of `hintdistill plan`: its peak memory and time for rescoring and training against the real ones.

    python benchmarks/plan.py [--case quickstart|larger] [--keep DIR]

Two cases: the quickstart (0.9 M parameters, its 600 traces, rules and recorded findings as the critic) and a random Qwen3 of
8 layers × 512 with a vocabulary of 32,000 on traces of 1–2k tokens, as in the measurements of the rescoring benchmarks. `larger`
is run as it comes, with gradient checkpointing, and with a live teacher in the step. One thread, float32.

Each stage runs in a fresh process. Its peak is the high-water mark of resident memory (VmHWM, set back before the stage begins)
above what the process held with everything imported and no model loaded; the model's weights are taken off both sides, so the
error is that of what the stage adds. Times are processor seconds of the one thread, which a busy machine does not change. The
plan is made in a process of its own, with its measured run, from the run's own targets: what is compared is how well it counts
and times, not how many hints were accepted.

Last line: one JSON object. `peak_error` and `time_error`: the largest relative errors, planned / measured − 1 by absolute value;
`cases`: all figures.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hintdistill.config.file import load_config
from hintdistill.pipeline.stages import ORDER

ROOT = Path(__file__).resolve().parent.parent
STUDENT = ROOT / "examples" / "toolworld" / "student"
CASES: dict[str, dict[str, list[str]]] = {
    "quickstart": {"as it is": []},
    "larger": {
        "as it is": [],
        "checkpointing": ["train.gradient_checkpointing=true"],
        "live teacher": ["train.recipe.teacher.update=live", "train.targets=in_step"],
    },
}
"""Per case, the ways it is trained."""


def quickstart(folder: Path) -> dict[str, Any]:
    """The shipped config with critics that cost nothing."""
    config = load_config(ROOT / "configs" / "quickstart.yaml").model_dump(mode="json")
    config["critic"]["use"] = ["rules", "recorded"]
    del config["rollout"]
    config["run"] |= {"dtype": "float32", "threads": 1}
    return config


@dataclass(frozen=True)
class Size:
    """The sizes of the random model and of its traces."""

    layers: int = 8
    width: int = 512
    vocab: int = 32_000
    traces: int = 24
    parts: tuple[int, int] = (8, 16)
    """Fewest and most shipped traces that are joined into one; one has about 110 tokens."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of the model's config."""
    dtype: str = "float32"


def larger(folder: Path, size: Size = Size(), device: str = "cpu") -> dict[str, Any]:
    """A random model, and traces of 1–2k tokens made of the shipped ones, one after another."""
    model = folder / "model"
    if not (folder / "built").exists():
        build_model(model, size, device)
        build_traces(folder / "traces.jsonl", size.traces, size.parts)
        (folder / "built").touch()
    return {
        "run": {"model": str(model), "dtype": size.dtype, "threads": 1},
        "traces": {"path": str(folder / "traces.jsonl"), "holdout": 0.2},
        "critic": {"max_per_trace": 3},
        "rescore": {"gate": {"enabled": False, "min_student_probability": 0.0}},
        "train": {"batch_size": 4, "micro_batch_size": 1, "epochs": 1},
    }


def build_model(folder: Path, size: Size = Size(), device: str = "cpu") -> None:
    """A random Qwen3 with the shipped tokenizer."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    shape = {
        "vocab_size": size.vocab,
        "hidden_size": size.width,
        "intermediate_size": 3 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "bos_token_id": None,
    }
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            Qwen3Config(**shape | dict(size.config)), dtype=getattr(torch, size.dtype)
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in STUDENT.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy2(path, folder / path.name)
    model.save_pretrained(folder)


def build_traces(path: Path, count: int, parts_of: tuple[int, int] = (8, 16)) -> None:
    """Native traces: shipped ones joined until they have some 1,000 to 2,000 tokens, or of as many parts as are asked for."""
    rng = random.Random(0)
    source = [json.loads(x) for x in (ROOT / "examples/toolworld/traces.jsonl").read_text().splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            parts = rng.sample(source, rng.randint(*parts_of))
            messages = [m for i, p in enumerate(parts) for m in p["messages"] if i == 0 or m["role"] != "system"]
            kept = [
                {k: v for k, v in m.items() if "token" not in k and k not in ("logprobs", "raw_text")} for m in messages
            ]
            tools = {t["function"]["name"]: t for p in parts for t in p.get("tools", ())}
            trace = {**parts[0], "id": f"long-{number}", "messages": kept, "tools": list(tools.values())}
            trace.pop("task_id", None)
            file.write(json.dumps(trace) + "\n")


def memory(key: str) -> int:
    """A figure of /proc/self/status, bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def child(stage: str, config: Path, overrides: list[str]) -> None:
    """Run one stage here; prints peak and seconds. The stages before it are in the run folder."""
    import torch

    import hintdistill.pipeline.report
    import hintdistill.training.trainer  # noqa: F401
    from hintdistill.config.file import load_config
    from hintdistill.core.machine import high_water
    from hintdistill.engines.transformers import pick_device
    from hintdistill.pipeline.context import RunContext
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.stages import stage_named
    from hintdistill.pipeline.store import RunDir

    settings = load_config(config, overrides)
    torch.set_num_threads(1)
    assert settings.run.dir is not None
    ctx = RunContext(settings, RunDir.create(settings.run.dir, settings, resume=True), Console(quiet=True))
    _ = ctx.renderer
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began, cpu = time.perf_counter(), time.process_time()
    stage_named(stage).run(ctx)
    seconds, device = time.perf_counter() - began, pick_device(settings.run.device)
    on_cpu = device.type == "cpu"
    peak = high_water(device) - (before if on_cpu else 0)
    # seconds of the one thread do not see what an accelerator does
    used = time.process_time() - cpu if on_cpu else seconds
    print(json.dumps({"peak": peak, "before": before, "seconds": seconds, "cpu": used}))


def call(arguments: list[str]) -> str:
    """A process of our own; what it printed."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout


def run_stage(stage: str, config: Path, overrides: list[str]) -> dict[str, Any]:
    """Measure a stage in a separate process."""
    out: dict[str, Any] = json.loads(call([__file__, "--child", stage, str(config), *overrides]).splitlines()[-1])
    return out


def compare(planned: dict[str, Any], measured: dict[str, Any]) -> dict[str, float]:
    """Relative errors of one stage."""
    parts = planned["parts"]
    added = planned["peak_bytes"] - parts.get("program", 0) - parts["weights"]
    real = measured["peak"] - parts["weights"]
    return {
        "planned_mb": added / 1e6,
        "measured_mb": real / 1e6,
        "peak_error": added / real - 1,
        "planned_s": planned["seconds"],
        "measured_s": measured["cpu"],
        "time_error": planned["seconds"] / measured["cpu"] - 1,
    }


def one_case(
    name: str, folder: Path, settings: dict[str, Any] | None = None, ways: Mapping[str, list[str]] | None = None
) -> dict[str, dict[str, float]]:
    """Rescoring once, training in each of the case's ways; or of other settings and ways under a name."""
    config = folder / "config.yaml"
    settings = settings or {"quickstart": quickstart, "larger": larger}[name](folder)
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    at = [f"run.dir={folder / 'run'}"]
    for stage in ORDER:
        if not stage.needs_weights:
            run_stage(stage.name, config, at)
    scored = run_stage("rescore", config, at)
    out: dict[str, dict[str, float]] = {}
    for way, overrides in (CASES[name] if ways is None else ways).items():
        document = json.loads(call(["-m", "hintdistill.cli", "plan", str(config), "--json", *at, *overrides]))
        plan = {s["stage"]: s for s in document["stages"]}
        if "rescore" not in out:
            out["rescore"] = compare(plan["rescore"], scored)
        # the process of the benchmark has no engine left over from rescoring
        left = plan["train"]["parts"].pop("other models", 0)
        plan["train"]["peak_bytes"] -= left
        out[f"train, {way}"] = compare(plan["train"], run_stage("train", config, [*at, *overrides]))
    for stage, figures in out.items():
        print(f"{name}: {stage}: " + "  ".join(f"{k} {v:.3g}" for k, v in figures.items()), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=tuple(CASES), help="only this one")
    parser.add_argument("--keep", type=Path, help="work here and leave it")
    args = parser.parse_args()
    names = [args.case] if args.case else list(CASES)
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            folder = (args.keep or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            cases[name] = one_case(name, folder)
    every = [figures for case in cases.values() for figures in case.values()]
    print(
        json.dumps(
            {
                "peak_error": round(max(abs(f["peak_error"]) for f in every), 3),
                "time_error": round(max(abs(f["time_error"]) for f in every), 3),
                "cases": {
                    c: {s: {k: round(v, 3) for k, v in f.items()} for s, f in some.items()} for c, some in cases.items()
                },
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        main()

"""Score a context of 128k tokens: tokens, seconds, peak memory; keys and values on the device or in host memory.

    python benchmarks/long_context.py [--tokens 131072] [--layers 2] [--device cpu]

A random model of two layers × 128 in float32 (one head of 64; on a GPU, `gpu.py` takes the shape of Qwen3-4B); a trace
of that many tokens with N errors evenly spread, each step of 64 tokens plain and under a hint of 48. The trunk is read in calls
of 4,096 tokens on a CPU, 16,384 elsewhere, each attending to the keys and values of those before it; nothing is masked, so no
array is as large as tokens × calls. `planned`: what `hintdistill plan` counts for keys and values, one call's tensors and
the head, against `peak`, both above the loaded model. `splice`: seconds to splice eight hints into one trace of some 100,000
tokens with the shipped tokenizer, and into one of a quarter of that: four times as long is linear.

Last line: one JSON object. `--write` puts the figures into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from blocks import put
from cases import Meter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FOUR_BILLION = {
    "vocab_size": 151_936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
"""The widths of Qwen3-4B."""
SMALL = {
    "vocab_size": 8192,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Size:
    """The trace and the model."""

    tokens: int = 131_072
    errors: int = 4
    layers: int = 2
    shape: dict[str, Any] = field(default_factory=lambda: dict(SMALL))
    hint: int = 48
    step: int = 64
    call: int | None = None
    """Tokens of a forward call; None for what suits the device."""

    @classmethod
    def tiny(cls) -> Size:
        """For a rehearsal."""
        shape = {**SMALL, "vocab_size": 256, "hidden_size": 64, "intermediate_size": 64}
        return cls(1024, 2, 1, shape, 6, 8, 128)


def measure(size: Size, device: str, dtype: torch.dtype, both: bool = True) -> dict[str, Any]:
    """Score the trace, keys and values here and (`both`) offloaded, and compare with what is planned."""
    from rescore import Case, Peak
    from transformers import AutoModelForCausalLM, Qwen3Config

    from hintdistill.core.model_shape import ModelShape
    from hintdistill.core.scores import ScoreRequest
    from hintdistill.engines.token_counts import PROGRAM, ScoringUse, count_tokens, scoring_peak
    from hintdistill.engines.transformers import TransformersEngine

    torch.manual_seed(0)
    config = Qwen3Config(num_hidden_layers=size.layers, max_position_embeddings=2 * size.tokens, **size.shape)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    case, requests = Case(size.tokens, size.errors, config.vocab_size, size.hint, size.step), list[ScoreRequest]()
    trace, cut, _ = case.sequences()
    for i, (end, hinted) in enumerate(zip(case.ends, cut, strict=True)):
        requests += [ScoreRequest(q, len(q) - size.step, len(q), str(i)) for q in (trace[:end], hinted)]
    meter, out, first = Meter(device), dict[str, Any](), None
    shape = ModelShape.from_config(config)
    for offload in (False, True) if both else (False,):
        engine = TransformersEngine(model, "long", size.call, sharing="shared_prefix", offload=offload)
        read = count_tokens([requests], shape, engine.batch_tokens)
        width = torch.finfo(dtype).bits // 8
        counted = scoring_peak(
            shape, read, ScoringUse(width, size.step, 64, on_cpu=not meter.accelerated, offload=offload)
        )
        # what libraries load at their first call is no part of it
        engine.score([ScoreRequest(trace[:64], 32, 64)], 64)
        meter.reset()
        before = meter.allocated()
        with Peak() as host:
            began = meter.clock()
            scores = engine.score(requests, 64)
            seconds = meter.clock() - began
        peak = (meter.peak_bytes() - before) / 1e6 if meter.accelerated else host.mb
        first = first or scores
        planned = counted.total - counted.parts["weights"] - (0 if meter.accelerated else PROGRAM)
        out["offloaded" if offload else "kept"] = {
            "seconds": round(seconds, 2),
            "peak_mb": round(peak),
            "host_mb": round(host.mb),
            "planned_mb": round(planned / 1e6),
            "parts_mb": {k: round(v / 1e6) for k, v in counted.parts.items() if k not in ("weights", "program")},
            "same": all((a.sampled == b.sampled).all() for a, b in zip(first, scores, strict=True)),
        }
        del engine
        gc.collect()
    return {
        "tokens": size.tokens,
        "layers": size.layers,
        "asked": read.asked,
        "computed": read.computed,
        "calls": read.calls,
        "within_plan": all(row["peak_mb"] <= 1.15 * row["planned_mb"] for row in out.values()),
        **out,
    }


def splice_seconds(parts: int, hints: int = 8) -> dict[str, float]:
    """Seconds to splice hints into the steps of one trace that is `parts` shipped ones joined, and its tokens."""
    import tempfile

    from plan import build_traces

    from hintdistill.config import InjectSection
    from hintdistill.core.types import Finding, Trace
    from hintdistill.injection.rendering import Renderer
    from hintdistill.injection.splice import Injector
    from hintdistill.prompts import PromptLibrary
    from hintdistill.traces.reading import read_traces

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.jsonl"
        build_traces(path, 1, (parts, parts))
        trace = next(t for t in read_traces([path]) if isinstance(t, Trace))
    renderer = Renderer.from_pretrained(ROOT / "examples" / "toolworld" / "student")
    injector = Injector(renderer, PromptLibrary(), InjectSection(), placebos={})
    steps = [m for m in trace.messages if m.role == "assistant"]
    chosen = range(len(steps) - hints, len(steps))
    began = time.process_time()
    made = [
        injector.inject(trace, Finding(step=i, error_class="other", hint="Read the last result again.", confidence=1.0))
        for i in chosen
    ]
    seconds = time.process_time() - began
    return {"tokens": len(made[-1].plain_ids), "seconds": round(seconds, 2)}


def main() -> None:
    """Measure; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--splice", action="store_true", help="the splice alone")
    parser.add_argument("--no-splice", action="store_true", help="leave the splice out")
    parser.add_argument("--write", action="store_true", help="put the figures into benchmarks/RESULTS.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if not args.splice:
        # a CPU's memory is the host's: there is nothing to offload to
        on_cpu, size = args.device == "cpu", Size(args.tokens, layers=args.layers)
        found = measure(size, args.device, torch.float32 if on_cpu else torch.bfloat16, both=not on_cpu)
    found["splice"] = [] if args.no_splice else [splice_seconds(150), splice_seconds(600)]
    print(json.dumps(found))
    if args.write:
        put(
            ROOT / "benchmarks" / "RESULTS.md",
            "<!-- long context: made by benchmarks/long_context.py -->",
            "<!-- end of long context -->",
            table(found),
        )


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"`python benchmarks/long_context.py`, one CPU thread, float32: a trace of {found['tokens']:,} tokens with four hints,",
        f"{found['layers']} layers × 128; {found['asked']:,} tokens asked, {found['computed']:,} read in {found['calls']} calls.",
        "",
        "| keys and values | seconds | peak MB | planned MB |",
        "|---|---|---|---|",
    ]
    for name in ("kept", "offloaded"):
        if (row := found.get(name)) is None:
            continue
        lines.append(f"| {name} | {row['seconds']} | {row['peak_mb']} | {row['planned_mb']} |")
    if found["splice"]:
        said = ", ".join(f"{x['seconds']} s at {x['tokens']:,} tokens" for x in found["splice"])
        lines += ["", f"Splicing eight hints into one trace, processor seconds: {said}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

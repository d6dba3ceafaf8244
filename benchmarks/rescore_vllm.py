"""The vLLM section of `rescore.py`, for an interpreter that has vLLM. It scores four hints of one 2k trace, 8 layers × 512.

    .venv-vllm/bin/python benchmarks/rescore_vllm.py [--quick]

Last line: JSON with `vllm_vs_default_2k_n4` (seconds of vLLM's default for prompt_logprobs, which reads no prefix cache,
over ours), both times, the tokens that came from the cache, and the largest |Δ log p| between the two.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.vllm import VLLMEngine

TOKENS, ERRORS, HINT, STEP, TOP_K = 2048, 4, 48, 64, 16


def save_model(folder: Path, layers: int) -> None:
    """A random Qwen3 without a tokenizer: vLLM is given ids."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def requests(seed: int) -> list[ScoreRequest]:
    """The hinted views of four steps of one trace."""
    rng = np.random.default_rng(seed)
    trace = rng.integers(3, 32_000, TOKENS)
    out = []
    for end in (TOKENS * (i + 1) // ERRORS for i in range(ERRORS)):
        ids = np.concatenate([trace[: end - STEP], rng.integers(3, 32_000, HINT), trace[end - STEP : end]])
        out.append(ScoreRequest(ids, len(ids) - STEP, len(ids)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), 2 if args.quick else 8)
        engine = VLLMEngine.load(Path(folder), dtype="float32", max_logprobs=TOP_K, max_length=4096, tokenizer=False)
        default, ours, cached, error = [], [], [], 0.0
        for repeat in range(1 if args.quick else args.repeats):
            asked = requests(repeat)
            began = time.perf_counter()
            plain = engine.score(asked, TOP_K, reuse=False)
            default.append(time.perf_counter() - began)
            # the default wrote its blocks; the trace of another seed is new to the cache, so ours pays for its trunk
            asked = requests(1000 + repeat)
            engine.warm(asked)
            began = time.perf_counter()
            shared = engine.score(asked, TOP_K)
            ours.append(time.perf_counter() - began)
            cached = engine.cached
            plain = engine.score(asked, TOP_K, reuse=False)
            error = max(
                error, *(float(np.abs(a.sampled - b.sampled).max()) for a, b in zip(plain, shared, strict=True))
            )
        engine.close()
        print(
            json.dumps(
                {
                    "vllm_vs_default_2k_n4": round(min(default) / min(ours), 2),
                    "default_s": round(min(default), 3),
                    "ours_s": round(min(ours), 3),
                    "cached_tokens": cached,
                    "max_abs_dlogp": error,
                }
            )
        )


if __name__ == "__main__":
    main()

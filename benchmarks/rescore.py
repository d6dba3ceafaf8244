"""Measure the cost of scoring a hinted view if every token is read once, against the usual methods.

    python benchmarks/rescore.py [--quick] [--repeats 3] [--vllm-python .venv-vllm/bin/python]

One process, one thread, CPU seconds, a random model of 8 layers × 512 (8 query and 4 key heads, feed-forward 1536) in
float32; N errors evenly spread over a trace of L tokens, each with a hint of 48 tokens above a step of 64 (at 16k: 64
and 128). All variants give the same thing: the log-probability of each step token under its hint. Repetitions are
interleaved, the best of each variant counts, so the figures are ratios of one run.

  A  TRL-style: per error one student and one hinted forward pass of the sample, logits of the step, dense log-softmax
  B  per error one hinted forward pass of the whole trace, full logits
  C  per error one hinted forward pass cut after the step, logits of the step only
  given       the trace's keys and values are there (a training step's own forward left them): the branches alone
  standalone  nothing is there: trunk and branches
  twinned     standalone, and the twins of all N errors in one edited context (one token is changed near its beginning)

The bound is the ratio of the floating-point operations: 2·P per token and body parameter, 4·d·keys per token and layer
for attention, 2·d·V per scored position for the head. `flop_bound_share` = measured ratio to C / bound at 4k, N = 4.

Last line: one JSON object. `vllm_vs_default_2k_n4`: four hints of one 2k trace through the real vLLM, prefix cache read,
against its default for prompt_logprobs; null, with the reason in `vllm_reason`, where there is none. On a CUDA device a
further section times B, C, given and standalone there; `gpu.py` has the one at the shape of a 7B model.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from cases import FEED_FORWARD, HEADS, KEY_HEADS, WIDTH, Errors, Meter, small
from torch import Tensor
from transformers import AutoModelForCausalLM

from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.prefix_tree import grow
from hintdistill.engines.shared_prefix import Trunk, shared_hidden
from hintdistill.engines.transformers import TransformersEngine

BUDGET = 1 << 20


@dataclass(frozen=True)
class Case(Errors):
    """One trace to score."""

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.tokens} tokens, N={self.errors}, vocabulary {self.vocab}"

    def sequences(self) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """The trace, each hinted sequence cut after its step, and each hinted whole trace."""
        rng = np.random.default_rng(0)
        trace = rng.integers(0, self.vocab, self.tokens)
        hints = [rng.integers(0, self.vocab, self.hint) for _ in self.ends]
        cut, whole = [], []
        for end, hint in zip(self.ends, hints, strict=True):
            above = trace[: end - self.step]
            cut.append(np.concatenate([above, hint, trace[end - self.step : end]]))
            whole.append(np.concatenate([above, hint, trace[end - self.step :]]))
        return trace, cut, whole


def build(layers: int, vocab: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A random model."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small(layers, vocab)).to(device=device, dtype=dtype).eval()


class Variants:
    """The ways to score one case; each returns log-probabilities [N, step]."""

    def __init__(self, model: Any, case: Case) -> None:
        self.model, self.case = model, case
        self.trace, self.cut, self.whole = case.sequences()
        self.device = next(model.parameters()).device
        self.positions = [range(len(q) - case.step - 1, len(q) - 1) for q in self.cut]
        self.trunk = Trunk.read(model, self.trace, BUDGET)
        self.wide = False
        """Normalise in float64: near -log(vocabulary) a float32 log-probability hides differences below 1e-6."""

    def errors(self, names: Sequence[str]) -> tuple[float, float]:
        """Largest |Δ log p| of ours to C, and the same after one hint token was changed for C alone: a check of the check."""
        self.wide = True
        ours, plain = (
            [run() for run in (self.given, self.standalone, self.twinned) if run.__name__ in names],
            self.truncated(),
        )
        error = max(float((x - plain).abs().max()) for x in ours)
        hint = len(self.cut[0]) - self.case.step - 1
        before = self.cut[0][hint]
        self.cut[0][hint] = (before + 1) % self.case.vocab
        changed = self.truncated()
        control = min(float((x - changed).abs().max()) for x in ours)
        self.cut[0][hint], self.wide = before, False
        return error, control

    def _of_steps(self, logits: Tensor, ids: np.ndarray) -> Tensor:
        logits = logits.double() if self.wide else logits.float()
        return logits.log_softmax(-1).gather(1, torch.from_numpy(ids).to(self.device)[:, None])[:, 0]

    def _forward(self, ids: np.ndarray, **kwargs: Any) -> Tensor:
        return self.model(input_ids=torch.from_numpy(ids)[None].to(self.device), use_cache=False, **kwargs).logits[0]

    def trl_style(self) -> Tensor:
        """A."""
        n, out = self.case.step, []
        for end, hinted in zip(self.case.ends, self.cut, strict=True):
            self._forward(self.trace[:end], logits_to_keep=n + 1).float().log_softmax(-1)
            teacher = self._forward(hinted, logits_to_keep=n + 1)[:-1].float().log_softmax(-1)
            out.append(teacher.gather(1, torch.from_numpy(hinted[-n:]).to(self.device)[:, None])[:, 0])
        return torch.stack(out)

    def naive_full(self) -> Tensor:
        """B."""
        n, out = self.case.step, []
        for hinted, whole in zip(self.cut, self.whole, strict=True):
            logp = self._forward(whole)[:-1].float().log_softmax(-1)
            places = torch.arange(len(hinted) - n - 1, len(hinted) - 1, device=self.device)
            out.append(logp[places, torch.from_numpy(hinted[-n:]).to(self.device)])
        return torch.stack(out)

    def truncated(self) -> Tensor:
        """C. The last step token need not be read, here as in ours."""
        n = self.case.step
        return torch.stack([self._of_steps(self._forward(q[:-1], logits_to_keep=n), q[-n:]) for q in self.cut])

    def _shared(self, trunk: Trunk | None) -> Tensor:
        tree = grow([q[:-1] for q in self.cut], [trunk.ids] if trunk else [])
        hidden = shared_hidden(self.model, tree, self.positions, BUDGET, trunk.memory if trunk else None)
        ids = np.concatenate([q[-self.case.step :] for q in self.cut])
        return self._of_steps(self.model.lm_head(torch.cat(hidden)), ids).reshape(self.case.errors, -1)

    def given(self) -> Tensor:
        """Branches on a trunk that is there."""
        return self._shared(self.trunk)

    def standalone(self) -> Tensor:
        """Trunk and branches."""
        return self._shared(None)

    def twinned(self) -> Tensor:
        """Trunk and branches, and a second trunk for the twins; returns the log-probabilities under the hints."""
        n, edited = self.case.step, self.trace.copy()
        edited[32] = (edited[32] + 1) % self.case.vocab
        sequences = [*self.cut, *(edited[:end] for end in self.case.ends)]
        tree = grow([q[:-1] for q in sequences], [])
        places = [range(len(q) - n - 1, len(q) - 1) for q in sequences]
        hidden = shared_hidden(self.model, tree, places, BUDGET, None)
        ids = np.concatenate([q[-n:] for q in sequences])
        return self._of_steps(self.model.lm_head(torch.cat(hidden)), ids).reshape(len(sequences), -1)[
            : self.case.errors
        ]


class Peak:
    """Largest resident memory above what was there at the start, MB, sampled every few milliseconds."""

    def __enter__(self) -> Peak:
        gc.collect()
        # what earlier runs freed would hide what this one takes
        ctypes.CDLL(None).malloc_trim(0)
        self.process, self.most, self.done = psutil.Process(), 0, threading.Event()
        self.before = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.003):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def mb(self) -> float:
        """Megabytes."""
        return max(0, self.most - self.before) / 1e6


def measure(
    variants: dict[str, Callable[[], Tensor]], repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Best seconds and peak MB per variant."""
    best, peak = dict.fromkeys(variants, float("inf")), {}
    with torch.inference_mode():
        for repeat in range(repeats):
            for name, run in variants.items():
                # what is short gets more repetitions: it is what noise moves most
                for turn in range(1 if name in ("A", "B", "C") else 3):
                    watched = Peak() if repeat == turn == 0 else contextlib.nullcontext()
                    with watched:
                        began = clock()
                        run()
                        best[name] = min(best[name], clock() - began)
                    if isinstance(watched, Peak):
                        peak[name] = watched.mb
    return best, peak


def operations(model: Any, lengths: list[int], shared: list[int], scored: int) -> float:
    """Floating-point operations of sequences that each read `length` tokens after `shared` ones."""
    config = model.config
    body = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.ndim == 2)
    total = 2.0 * config.hidden_size * config.vocab_size * scored
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    for n, past in zip(lengths, shared, strict=True):
        total += 2.0 * body * n + 4.0 * width * config.num_hidden_layers * n * (past + n / 2)
    return total


def bound(model: Any, case: Case) -> float:
    """Ratio of the operations of C to those of the branches alone."""
    scored, branch = case.errors * case.step, case.hint + case.step
    cut = operations(model, [e + case.hint for e in case.ends], [0] * case.errors, scored)
    return cut / operations(model, [branch] * case.errors, [e - case.step for e in case.ends], scored)


def cpu(model: Any, case: Case, names: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Times, peaks and ratios of one case."""
    v = Variants(model, case)
    ways = {
        "A": v.trl_style,
        "B": v.naive_full,
        "C": v.truncated,
        "given": v.given,
        "standalone": v.standalone,
        "twinned": v.twinned,
    }
    best, peak = measure({n: ways[n] for n in names}, repeats, time.process_time)
    with torch.inference_mode():
        error, control = v.errors(names)
    print(f"  {case.name:40} max |Δ log p| {error:.2e}; with one hint token changed {control:.2e}")
    for name in names:
        print(f"  {case.name:40} {name:>10} {best[name]:8.2f} s {peak.get(name, float('nan')):8.0f} MB")
    return {"s": best, "mb": peak, "error": error, "control": control, "bound": bound(model, case)}


def engine_ratio(model: Any, case: Case, best: float) -> float:
    """C over the whole engine (top 64 ids, tail and union besides the sampled ids) on a given trunk."""
    engine = TransformersEngine(model, "benchmark", sharing="shared_prefix")
    trace, cut, _ = case.sequences()
    trunk = engine.read_trunk(trace)
    requests = [ScoreRequest(q, len(q) - case.step, len(q)) for q in cut]
    times = []
    for _ in range(5):
        began = time.process_time()
        engine.score(requests, 64, trunk)
        times.append(time.process_time() - began)
    return best / min(times)


def vllm(python: Path, quick: bool) -> tuple[float | None, str]:
    """The vLLM section, run by the interpreter that has it; (ratio, reason)."""
    if not python.exists():
        return None, f"no interpreter at {python}; `make install-vllm` makes one"
    script = Path(__file__).with_name("rescore_vllm.py")
    done = subprocess.run([str(python), str(script), *(["--quick"] if quick else [])], capture_output=True, text=True)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["it failed"])[-1][:200]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  vLLM: {answer}")
    return answer["vllm_vs_default_2k_n4"], ""


def on_device(
    model: Any, case: Case, repeats: int, names: Sequence[str] = ("B", "C", "given", "standalone")
) -> dict[str, Any]:
    """Time and peaks of the variants on the device of the model, and their ratios; the errors where it is float32."""
    v, meter = Variants(model, case), Meter(next(model.parameters()).device)
    ways = {"B": v.naive_full, "C": v.truncated, "given": v.given, "standalone": v.standalone}
    with torch.inference_mode():
        found = {name: meter.of(ways[name], repeats) for name in names}
        error, control = v.errors(names)
    s = {name: f["s"] for name, f in found.items()}
    scored, branch = case.errors * case.step, case.hint + case.step
    past = [e - case.step for e in case.ends]
    limit = bound(model, case)
    return {
        "case": case.name,
        "seconds": s,
        "peak_mb": {name: f["mb"] for name, f in found.items()},
        "vs_truncated": s["C"] / s["given"],
        "vs_naive_full": s["B"] / s["given"] if "B" in s else None,
        "standalone_vs_truncated": s["C"] / s["standalone"],
        "flop_bound": limit,
        "flop_bound_share": s["C"] / s["given"] / limit,
        "teraflops": operations(model, [branch] * case.errors, past, scored) / s["given"] / 1e12,
        "max_abs_dlogp": error,
        "control_abs_dlogp": control,
    }


def gpu(layers: int, repeats: int) -> dict[str, Any]:
    """B, C, given and standalone on a CUDA device in bfloat16, 16k and N = 4, small widths; the 7B shape is `gpu.py`'s."""
    model = build(layers, 151_936, "cuda", torch.bfloat16)
    found = on_device(model, Case(16_384, 4, 151_936, 64, 128), repeats + 2)
    return {"device": torch.cuda.get_device_name(), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4k keys only, two layers, one repetition")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm-python", type=Path, default=Path(".venv-vllm/bin/python"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    layers, repeats = (2, 1) if args.quick else (8, args.repeats)
    ratios: dict[str, Any] = {}
    model = build(layers, 32_000)
    four = cpu(model, Case(4096, 4, 32_000), ("A", "B", "C", "given", "standalone", "twinned"), repeats)
    eight = cpu(model, Case(4096, 8, 32_000), ("C", "standalone"), repeats)
    ratios["vs_truncated_4k_n4"] = four["s"]["C"] / four["s"]["given"]
    ratios["vs_truncated_16k_n4"] = None
    ratios["vs_naive_full_4k_n4"] = four["s"]["B"] / four["s"]["given"]
    ratios["vs_trl_style_4k_n4"] = four["s"]["A"] / four["s"]["standalone"]
    ratios["engine_vs_truncated_4k_n4"] = engine_ratio(model, Case(4096, 4, 32_000), four["s"]["C"])
    ratios["twinned_vs_standalone_4k_n4"] = four["s"]["twinned"] / four["s"]["standalone"]
    cases = [four, eight]
    if not args.quick:
        cases.append(cpu(model, Case(16_384, 4, 32_000, 64, 128), ("C", "given"), 1))
        ratios["vs_truncated_16k_n4"] = cases[-1]["s"]["C"] / cases[-1]["s"]["given"]
    del model
    wide = cpu(build(layers, 150_000), Case(4096, 4, 150_000), ("B", "given"), 1)
    ratios["vs_naive_full_150k_4k_n4"] = wide["s"]["B"] / wide["s"]["given"]
    ratios["standalone_vs_truncated_4k_n4"] = four["s"]["C"] / four["s"]["standalone"]
    ratios["standalone_vs_truncated_4k_n8"] = eight["s"]["C"] / eight["s"]["standalone"]
    reused, reason = vllm(args.vllm_python, args.quick)
    figures = {
        **{k: None if v is None else round(v, 2) for k, v in ratios.items()},
        "max_abs_dlogp": max(c["error"] for c in (*cases, wide)),
        "control_abs_dlogp": min(c["control"] for c in (*cases, wide)),
        "flop_bound_share": round(ratios["vs_truncated_4k_n4"] / four["bound"], 3),
        "flop_bound": round(four["bound"], 2),
        "peak_mb": {k: round(v) for k, v in four["mb"].items()}
        | {f"150k_{k}": round(v) for k, v in wide["mb"].items()},
        "vllm_vs_default_2k_n4": reused,
        **({"vllm_reason": reason} if reason else {}),
        **({"gpu": gpu(layers, repeats)} if torch.cuda.is_available() else {}),
        "config": {
            "layers": layers,
            "width": WIDTH,
            "feed_forward": FEED_FORWARD,
            "heads": [HEADS, KEY_HEADS],
            "dtype": "float32",
            "threads": 1,
            "quick": args.quick,
            "torch": torch.__version__,
        },
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())

"""Measure time and peak memory of the loss at the output head: dense, this toolkit's chunks, TRL's chunked kernel, Liger's chunked JSD.

    python benchmarks/loss.py [--positions 512] [--width 1024] [--vocab 152064] [--kind jsd] [--repeats 3] [--train-head]

From hidden states of student and teacher to the gradient of the student's hidden states, float32, one thread, the head
frozen (as with adapters) unless --train-head. Each variant runs in a process of its own, in turns; peers that are not
installed are left out and named. `stored_topk` trains on stored top-64 targets with a tail through `linear_support`, `hint_sd`
is that recipe's term (reverse KL, student top-100 and tail) through `linear_term`, beside dense forms of the same loss.

Last line: one JSON object with, per variant, CPU seconds (least of the repeats), peak MB above what was there before,
the ratio of both to the dense form, and the relative error of the gradient. Aim, frozen head at 512 × 152k: at most 0.15 of the
dense peak and 1.3 of its time.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import Meter

from hintdistill.objectives import divergence, gather_with_tail, union_of
from hintdistill.objectives.chunked import HeadSpec, linear_divergence
from hintdistill.objectives.chunked_support import linear_support, linear_term
from hintdistill.recipes import load_recipe

VARIANTS = (
    "dense",
    "chunked",
    "trl",
    "liger",
    "dense_stored_topk",
    "chunked_stored_topk",
    "dense_hint_sd",
    "chunked_hint_sd",
)
PEERS = {"trl": "trl.kernels.chunked_divergence", "liger": "liger_kernel.chunked_loss"}
Tensors = dict[str, torch.Tensor]


def tensors(args: argparse.Namespace) -> Tensors:
    """Make the same numbers in every process."""
    device, dtype = getattr(args, "device", "cpu"), getattr(args, "dtype", torch.float32)
    g = torch.Generator(device).manual_seed(0)
    kind = {"generator": g, "device": device, "dtype": dtype}
    shape = (args.positions, args.width)
    h = torch.randn(shape, **kind)
    t = h + 0.5 * torch.randn(shape, **kind)
    weight = torch.randn(args.vocab, args.width, **kind).mul_(2.0 / args.width**0.5)
    return {"hidden": h.requires_grad_(), "target": t, "weight": weight.requires_grad_(args.train_head)}


def dense(x: Tensors, kind: str) -> torch.Tensor:
    """Both `[N, V]` at once, differentiated by autograd."""
    s = torch.nn.functional.linear(x["hidden"], x["weight"]).log_softmax(-1)
    with torch.no_grad():
        t = torch.nn.functional.linear(x["target"], x["weight"]).log_softmax(-1)
    # written out, without the care for padding that `divergence` takes and pays for
    if kind == "rkl":
        return (s.exp() * (s - t)).sum(-1).mean()
    if kind == "fkl":
        return (t.exp() * (t - s)).sum(-1).mean()
    m = torch.logaddexp(s, t) - 0.6931471805599453
    return 0.5 * ((s.exp() * (s - m)).sum(-1) + (t.exp() * (t - m)).sum(-1)).mean()


def ours(x: Tensors, kind: str) -> torch.Tensor:
    """`linear_divergence`."""
    n = len(x["hidden"])
    head, target = HeadSpec(x["weight"]), HeadSpec(x["weight"].detach())
    return linear_divergence(
        x["hidden"], head, x["target"], target, torch.full((n,), 1 / n, device=x["hidden"].device), kind
    )[0]


def trl(x: Tensors, kind: str) -> torch.Tensor:
    """TRL's `ChunkedDivergenceFunction`."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    beta = {"fkl": 0.0, "jsd": 0.5, "rkl": 1.0}[kind]
    weight = x["weight"]
    return ChunkedDivergenceFunction.apply(x["hidden"], weight, None, x["target"], weight.detach(), None, beta)[
        0
    ].mean()


def liger(x: Tensors, kind: str) -> torch.Tensor:
    """Liger's chunked linear JSD, soft loss alone, uncompiled."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    beta = {"fkl": 0.0, "jsd": 0.5, "rkl": 1.0}[kind]
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, chunk_size=64)
    labels = torch.zeros(len(x["hidden"]), dtype=torch.long, device=x["hidden"].device)
    return loss(x["hidden"], x["weight"], x["target"], x["weight"].detach(), labels)


def stored_targets(x: Tensors) -> Tensors:
    """Return what the rescore stage would have stored: entries [N, K] and log-probabilities with a tail [N, K+1]."""
    ids, targets = [], []
    with torch.no_grad():
        for h, t in zip(x["hidden"].split(32), x["target"].split(32), strict=True):
            s, q = (torch.nn.functional.linear(y, x["weight"]).log_softmax(-1) for y in (h, t))
            ids.append(union_of(s.topk(64).indices, q.topk(64).indices))
            targets.append(gather_with_tail(q, ids[-1]))
    return {"kept": torch.cat(ids), "stored": torch.cat(targets)}


def dense_stored_topk(x: Tensors, kind: str) -> torch.Tensor:
    """Log-probabilities of the vocabulary, then those of the stored entries."""
    s = torch.nn.functional.linear(x["hidden"], x["weight"]).log_softmax(-1)
    return divergence(kind, gather_with_tail(s, x["kept"]), x["stored"]).mean()


def our_stored_topk(x: Tensors, kind: str) -> torch.Tensor:
    """`linear_support` on the stored entries."""
    n = len(x["hidden"])
    return linear_support(
        x["hidden"],
        HeadSpec(x["weight"]),
        torch.full((n,), 1 / n, device=x["hidden"].device),
        lambda logits, at: (x["kept"][at], lambda ours: divergence(kind, ours, x["stored"][at])),
    )[0]


def dense_hint_sd(x: Tensors, kind: str) -> torch.Tensor:
    """HINT-SD's term on log-probabilities of the vocabulary."""
    s = torch.nn.functional.linear(x["hidden"], x["weight"]).log_softmax(-1)
    with torch.no_grad():
        t = torch.nn.functional.linear(x["target"], x["weight"]).log_softmax(-1)
        kept = s.topk(100).indices
    return divergence("rkl", gather_with_tail(s, kept), gather_with_tail(t, kept)).mean()


def our_hint_sd(x: Tensors, kind: str) -> torch.Tensor:
    """The recipe's own term through `linear_term`."""
    n = len(x["hidden"])
    views = {"teacher": (x["target"], HeadSpec(x["weight"].detach()))}
    term, sampled = load_recipe("hint_sd").terms["distill"], torch.zeros(n, dtype=torch.long, device=x["hidden"].device)
    return linear_term(
        term, x["hidden"], HeadSpec(x["weight"]), views, sampled, torch.full((n,), 1 / n, device=x["hidden"].device)
    )[0]


FORMS: dict[str, Callable[[Tensors, str], torch.Tensor]] = {
    "dense": dense,
    "chunked": ours,
    "trl": trl,
    "liger": liger,
    "dense_stored_topk": dense_stored_topk,
    "chunked_stored_topk": our_stored_topk,
    "dense_hint_sd": dense_hint_sd,
    "chunked_hint_sd": our_hint_sd,
}


def variant(name: str, x: Tensors, kind: str) -> Callable[[], torch.Tensor]:
    """The loss to measure, ready to run; what is stored is made, and what is imported is there, before anything is measured."""
    if name in PEERS:
        importlib.import_module(PEERS[name])
    if name.endswith("stored_topk"):
        x |= stored_targets(x)
    if name.endswith("hint_sd"):
        load_recipe("hint_sd")
    return lambda: FORMS[name](x, kind)


def resident_mb(key: str) -> float:
    """A figure of this process from the kernel, MB."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(key)).split()[1]) / 1024


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Peak of the first run, CPU seconds of the best of the others, and the gradient's summary."""
    torch.set_num_threads(1)
    x = tensors(args)
    run = variant(args.one, x, args.kind)
    gc.collect()
    # what the preparation freed goes back to the system, or a run would use it again and seem to need nothing
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    seconds = []
    peak = 0.0
    for i in range(args.repeats + 1):
        x["hidden"].grad = x["weight"].grad = None
        began = time.process_time()
        loss = run()
        loss.backward()
        seconds.append(time.process_time() - began)
        if i == 0:
            peak = resident_mb("VmHWM") - before
    gradient = x["hidden"].grad
    assert gradient is not None
    probe = gradient.double() @ torch.randn(
        args.width, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    scale = float(loss.detach())
    return {
        "cpu_s": min(seconds[1:]),
        "peak_mb": peak,
        "loss": scale,
        "probe": (probe / probe.norm()).flatten().tolist(),
        "total_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def spawn(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure one variant in a fresh process."""
    command = [sys.executable, __file__, "--one", name]
    for key in ("positions", "width", "vocab", "kind", "repeats"):
        command += [f"--{key}", str(getattr(args, key))]
    command += ["--train-head"] if args.train_head else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def absent_peers() -> list[str]:
    """Peers that are not installed."""
    return [n for n, m in PEERS.items() if importlib.util.find_spec(m.partition(".")[0]) is None]


def on_device(
    device: str, dtype: torch.dtype, shape: dict[str, int], repeats: int, kind: str = "jsd"
) -> dict[str, Any]:
    """Seconds of the wall and peak memory of each variant that is installed, in this process on one device, head frozen.

    `shape`: `positions`, `width`, `vocab`. What a variant raises is its row's `failure`.
    """
    args = argparse.Namespace(**shape, device=device, dtype=dtype, train_head=False)
    meter, out = Meter(device), dict[str, Any]()
    for name in [n for n in VARIANTS if n not in absent_peers()]:
        x = tensors(args)
        try:
            run = variant(name, x, kind)

            def clear(x: Tensors = x) -> None:
                x["hidden"].grad = x["weight"].grad = None

            loss: list[float] = []

            def step(run: Callable[[], torch.Tensor] = run, loss: list[float] = loss) -> None:
                value = run()
                value.backward()
                loss[:] = [float(value.detach())]

            out[name] = meter.of(step, repeats, clear) | {"loss": loss[0]}
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            out[name] = {"failure": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    for name, found in out.items():
        base = out[dense_form(name)]
        if "s" in found and "s" in base:
            found["time_ratio"] = found["s"] / base["s"]
            found["peak_ratio"] = found["mb"] / base["mb"] if found["mb"] is not None else None
    return {**shape, "kind": kind, "absent": absent_peers(), "variants": out}


def dense_form(name: str) -> str:
    """The dense form of the same loss."""
    return {"stored_topk": "dense_stored_topk", "hint_sd": "dense_hint_sd"}.get(name.partition("_")[2], "dense")


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each variant against the dense form of the same loss."""
    out = {}
    for name, r in results.items():
        base = results[dense_form(name)]
        a, b = (torch.tensor(y["probe"], dtype=torch.float64) for y in (r, base))
        out[name] = {
            "cpu_s": round(r["cpu_s"], 2),
            "peak_mb": round(r["peak_mb"], 1),
            "time_ratio": round(r["cpu_s"] / base["cpu_s"], 3),
            "peak_ratio": round(r["peak_mb"] / base["peak_mb"], 3),
            "gradient_error": float(f"{float((a - b).norm() / b.norm()):.2g}"),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=152_064)
    parser.add_argument("--kind", choices=("fkl", "rkl", "jsd"), default="jsd")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--train-head", action="store_true")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="these and their dense forms")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args)))
        return
    absent = absent_peers()
    wanted = set(args.only or VARIANTS) - set(absent)
    names = [n for n in VARIANTS if n in wanted | {dense_form(w) for w in wanted}]
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        results[name] = spawn(args, name)
        print(f"{name:>20} {results[name]['cpu_s']:7.2f} s {results[name]['peak_mb']:8.1f} MB", flush=True)
    shape = {k: getattr(args, k) for k in ("positions", "width", "vocab", "kind", "train_head")}
    print(json.dumps({**shape, "absent": absent, "variants": ratios(results)}))


if __name__ == "__main__":
    main()

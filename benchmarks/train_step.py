"""Measure the cost of a training step under hints if the teacher shares the student's pass, against the usual methods.

    python benchmarks/train_step.py [--quick] [--repeats 3] [--layers 8] [--no-trl]
    python benchmarks/train_step.py --device cuda [--repeats 3]

A random model of 8 layers × 512 (8 query and 4 key heads, feed-forward 1536) in float32; one row of 4096 tokens with N
errors evenly spread, each with a hint of 48 tokens above a step of 64, the last step at the row's end. A step is the
forward passes and the backward pass, without the optimiser. The loss is reverse KL over the whole vocabulary with the
student itself, under the hint, as the teacher.

  ours          `HintTrainer.compute_loss`: one student pass, the hints and steps ride on its keys and values
  trl_style     per error one sample cut after the step: student, hinted teacher, logits of the step, dense log-softmax
  trl_sdft      the same by TRL's own SDFTTrainer, where it is installed
  naive         one student pass and per error one hinted pass of the whole row, logits and log-softmax of every token
  student_only  no teacher: one pass up to the last step, logits of the steps only, cross-entropy
  default       `HintTrainer.compute_loss` with the default recipe as shipped: initial teacher, its targets stored, and one
                anchor step in the row besides the N hints (what storing them costs is `rescore.py`'s subject)

Each variant has a process of its own. CPU seconds of one thread; the variants of a case take turns, the least of the
repetitions counts, and every ratio is of one run. Peak is the resident memory of a process's first step above the model.
`vs_trl_style`, `vs_naive`: their seconds over ours. `vs_student_only`: ours (or the default recipe's) over the student's.
`grad_rel_err`: |g - g'|/|g'| over all parameters, ours to trl_style; `control_grad_rel_err`: the same after one hint token was
changed for ours alone, as a check of the check.

On a CUDA device: the same at 16k with a random model of Qwen2.5-7B's shape in bfloat16, gradient checkpointing, hints of 64
and steps of 128, seconds of wall time; besides, the teacher's share of the step and the loss's transient memory.

Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from cases import Meter, small
from step_variants import VARIANTS, Case, Ours, build, checkpoints, seven_billion

from hintdistill.objectives.chunked import POSITIONS, logsumexp

TOKENS = 4096


def resident_mb(key: str) -> float:
    """A figure of this process from the kernel, MB."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(key)).split()[1]) / 1024


def gradient(model: Any) -> torch.Tensor:
    """Return all parameters' gradients in one row, with zeros for parameters without a gradient."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def work(job: dict[str, Any], answers: TextIO) -> None:
    """One variant: made at once, then a step for each line of standard input.

    A line is a JSON object: `gradient` names the file that gets the step's gradient, `changed` asks for another hint.
    """
    torch.set_num_threads(1)
    case = Case(**job["case"])
    model = build(small(job["layers"], case.vocab))
    step = VARIANTS[job["name"]](model, case)
    # libraries make their buffers at the first call
    model(input_ids=torch.zeros(1, 64, dtype=torch.long), logits_to_keep=1).logits.sum().backward()
    print("ready", file=answers, flush=True)
    first = True
    for line in sys.stdin:
        asked = json.loads(line)
        run = VARIANTS[job["name"]](model, replace(case, changed=True)) if asked["changed"] else step
        model.zero_grad(set_to_none=True)
        gc.collect()
        if first:
            # what the preparation freed goes back to the system, or a step would use it again and seem to need nothing
            if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
                libc.malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = resident_mb("VmRSS")
        began = time.process_time()
        loss = run()
        seconds = time.process_time() - began
        if first:
            peak, first = resident_mb("VmHWM") - before, False
        if asked["gradient"]:
            torch.save(gradient(model), asked["gradient"])
        print(json.dumps({"s": seconds, "mb": peak, "loss": loss}), file=answers, flush=True)


class Worker:
    """Run a variant in a separate process."""

    def __init__(self, name: str, case: Case, layers: int) -> None:
        self.name, self.errors = name, tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in `stop`
        self.best, self.mb, self.loss = float("inf"), 0.0, 0.0
        job = {"name": name, "case": asdict(case), "layers": layers}
        # a wider machine's memory pools would hide what a step takes
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--work", json.dumps(job)],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise SystemExit(f"{self.name}: {self.errors.read()[-2000:]}")
        return line

    def ready(self) -> None:
        """Wait until the model is there."""
        self._answer()

    def step(self, gradient: str = "", changed: bool = False) -> None:
        """Run one step; `gradient`: the file that gets it; `changed`: under another hint, and not counted."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"gradient": gradient, "changed": changed}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self._answer())
        if not changed:
            self.best, self.mb, self.loss = min(self.best, answer["s"]), answer["mb"], answer["loss"]

    def stop(self) -> None:
        """End the process."""
        self.process.communicate()
        self.errors.close()


def measure(
    case: Case, names: list[str], layers: int, repeats: int, compare: bool = False
) -> tuple[dict[str, Worker], dict[str, float]]:
    """Best seconds and peak of each variant, taking turns; and, to `compare`, errors of their gradients to trl_style's."""
    workers = {n: Worker(n, case, layers) for n in names}
    for w in workers.values():
        w.ready()
    with tempfile.TemporaryDirectory() as folder:
        files = {n: str(Path(folder) / n) if compare and n not in ("student_only", "default") else "" for n in names}
        for turn in range(repeats):
            for n, w in workers.items():
                w.step("" if turn else files[n])
        if compare:
            files["control"] = str(Path(folder) / "control")
            workers["ours"].step(files["control"], changed=True)
        for w in workers.values():
            w.stop()
            what = f"N={case.errors}, vocabulary {case.vocab}"
            print(f"  {what:26} {w.name:>12} {w.best:8.2f} s {w.mb:7.0f} MB   loss {w.loss:.6f}", flush=True)
        return workers, gradient_errors({n: f for n, f in files.items() if f})


def gradient_errors(files: dict[str, str]) -> dict[str, float]:
    """|g - g'|/|g'| of each variant to trl_style."""
    if "trl_style" not in files:
        return {}
    reference, errors = torch.load(files.pop("trl_style")).double(), {}
    for name, file in files.items():
        errors[name] = float((torch.load(file).double() - reference).norm() / reference.norm())
        print(f"  gradient of {name:>12}, relative error to trl_style: {errors[name]:.2e}", flush=True)
    return errors


def cpu(args: argparse.Namespace) -> dict[str, Any]:
    """All cases, each against its own row of variants."""
    layers, repeats = (2, 1) if args.quick else (args.layers, args.repeats)
    reason = "" if importlib.util.find_spec("trl") else "trl is not installed"
    trl = [] if reason or args.quick or args.no_trl else ["trl_sdft"]
    four = Case(TOKENS, 4, 32_000)
    n4, errors = measure(four, ["trl_style", "ours", "student_only", "default", *trl], layers, repeats, compare=True)
    alone = [] if args.quick else ["student_only"]
    wide, _ = measure(replace(four, vocab=150_000), ["naive", "ours", *alone], layers, repeats)
    ratios = {
        "vs_trl_style_4k_n4": n4["trl_style"].best / n4["ours"].best,
        "vs_trl_style_4k_n8": None,
        "vs_naive_150k_4k_n4": wide["naive"].best / wide["ours"].best,
        "vs_student_only_4k_n4": n4["ours"].best / n4["student_only"].best,
        "vs_student_only_4k_n8": None,
        "default_recipe_vs_student_only_4k_n4": n4["default"].best / n4["student_only"].best,
        "vs_trl_sdft_4k_n4": n4["trl_sdft"].best / n4["ours"].best if trl else None,
    }
    if not args.quick:
        n8, _ = measure(replace(four, errors=8), ["trl_style", "ours", "student_only"], layers, repeats)
        ratios["vs_trl_style_4k_n8"] = n8["trl_style"].best / n8["ours"].best
        ratios["vs_student_only_4k_n8"] = n8["ours"].best / n8["student_only"].best
        ratios["vs_student_only_150k_4k_n4"] = wide["ours"].best / wide["student_only"].best
    return {
        **{k: None if v is None else round(v, 3) for k, v in ratios.items()},
        "grad_rel_err": errors["ours"],
        "control_grad_rel_err": errors["control"],
        **({"trl_sdft_grad_rel_err": errors["trl_sdft"]} if "trl_sdft" in errors else {}),
        **({"trl_sdft_reason": reason} if reason else {}),
        "peak_mb": {n: round(w.mb) for n, w in n4.items()} | {f"150k_{n}": round(w.mb) for n, w in wide.items()},
        "config": {
            "layers": layers,
            "width": 512,
            "tokens": TOKENS,
            "hint": four.hint,
            "step": four.step,
            "dtype": "float32",
            "threads": 1,
            "quick": args.quick,
            "repeats": repeats,
            "torch": torch.__version__,
        },
    }


class Inside:
    """Measure the teacher's share of our step, and the memory of the loss, each in separate steps."""

    def __init__(self, ours: Ours, model: Any) -> None:
        self.teacher_s, self.loss_mb, self.meter = 0.0, 0.0, Meter(model.device)
        passes, terms = ours.trainer.passes, ours.trainer.terms
        self._riding, self._in_step = passes.riding, terms.in_step
        passes.riding, terms.in_step = self.riding, self.in_step
        try:
            for _ in range(2):
                model.zero_grad(set_to_none=True)
                ours()
        finally:
            passes.riding, terms.in_step = self._riding, self._in_step

    def riding(self, *args: Any) -> Any:
        """The branches' pass, timed."""
        began = self.meter.clock()
        found = self._riding(*args)
        self.teacher_s = self.meter.clock() - began
        return found

    def in_step(self, slots: Any, hidden: Any, head: Any, views: Any, step: int) -> Any:
        """The loss at the head: its peak above what was there and what it leaves behind; then the teacher's share of it, timed."""
        before = self.meter.allocated()
        self.meter.reset()
        out = self._in_step(slots, hidden, head, views, step)
        # the gradients of the head's weight and of the hidden states stay: they are no transient
        self.loss_mb = (self.meter.peak_bytes() - max(before, self.meter.allocated())) / 1e6
        began = self.meter.clock()
        with torch.no_grad():
            for part in views["teacher"].hidden.split(POSITIONS):
                logsumexp(views["teacher"].spec.logits(part))
        self.teacher_s += self.meter.clock() - began
        return out


def operations(model: Any, case: Case) -> dict[str, float]:
    """Floating-point operations of a step: `ours` is the least that the loss needs, `trl_style` the same of that way.

    A pass over L tokens takes 2·P·L for the layers' matrices and 2·width·L² a layer for causal attention; a backward pass twice
    and 2.5 times as much; the head 2·d·V a position, three times as much with its gradient. With checkpointing, each backward pass
    is preceded by one more forward pass.
    """
    config, (h, s) = model.config, (case.hint, case.step)
    body = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.ndim == 2)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention, head = 2.0 * width * config.num_hidden_layers, 2.0 * config.hidden_size * config.vocab_size * s
    more = 1 if checkpoints(model) else 0

    def read(n: int) -> float:
        return 2.0 * body * n + attention * n * n

    def trained(n: int) -> float:
        return (1 + more) * read(n) + 4.0 * body * n + 2.5 * attention * n * n

    branches = sum(2.0 * body * (h + s) + 2 * attention * (h + s) * (e - s + (h + s) / 2) for e in case.ends)
    return {
        "ours": trained(case.ends[-1]) + branches + 4 * head * case.errors,
        "trl_style": sum(trained(e) + read(e + h) + 4 * head for e in case.ends),
    }


def on_device(model: Any, case: Case, repeats: int) -> dict[str, Any]:
    """Seconds and peaks of one case on the device of the model, which is ready to train."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("trl_style", "student_only", "ours"):
        # the last one stays for what is measured inside of it
        step = VARIANTS[name](model, case)
        found[name] = Meter(model.device).of(step, repeats, lambda: model.zero_grad(set_to_none=True))
        print(f"  N={case.errors} {name:>12} {found[name]['s']:8.3f} s {found[name]['mb']} MB", flush=True)
    inside, s = Inside(step, model), {name: f["s"] for name, f in found.items()}
    needed = operations(model, case)
    limit, ratio = needed["trl_style"] / needed["ours"], s["trl_style"] / s["ours"]
    return {
        "vs_trl_style": ratio,
        "flop_bound": limit,
        "flop_bound_share": ratio / limit,
        "teraflops": needed["ours"] / s["ours"] / 1e12,
        "vs_student_only": s["ours"] / s["student_only"],
        "teacher_share": inside.teacher_s / s["ours"],
        "transient_loss_mb": round(inside.loss_mb, 1),
        "seconds": s,
        "peak_mb": {name: f["mb"] for name, f in found.items()},
    }


def large(layers: int, device: str = "cuda") -> Any:
    """A random model of Qwen2.5-7B's shape in bfloat16, ready to train with gradient checkpointing."""
    model = build(seven_billion(layers), device, torch.bfloat16)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def cuda(args: argparse.Namespace) -> dict[str, Any]:
    """The 7B-shaped model at 16k."""
    model = large(args.layers or 28)
    out: dict[str, Any] = {"device": torch.cuda.get_device_name(), "layers": model.config.num_hidden_layers}
    for errors in (4, 8):
        found = on_device(model, Case(16_384, errors, model.config.vocab_size, 64, 128), args.repeats)
        out |= {f"{name}_16k_n{errors}": value for name, value in found.items()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="N = 4 only, two layers, one repetition, without TRL's trainer"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=None, help="8, or 28 on a CUDA device")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL's own trainer out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--gpu", action="store_const", dest="device", const="cuda", help="short for --device cuda")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.work:
        # what a library prints is not an answer
        answers, sys.stdout = sys.stdout, sys.stderr
        work(json.loads(args.work), answers)
        return
    if args.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("no CUDA device")
        print(json.dumps(cuda(args)))
        return
    args.layers = args.layers or 8
    print(json.dumps(cpu(args)))


if __name__ == "__main__":
    main()

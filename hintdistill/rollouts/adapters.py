"""A student's adapter in the form that a server accepts: one low-rank adapter on the loop's first model.

Each round trains a new adapter on the previous student. The server holds the first model, so the adapters of all rounds
are concatenated: with ΔW = Σ s_i B_i A_i, A stacks the A_i vertically and B stacks the s_i B_i horizontally; the rank
is the sum of their ranks, and the scale is 1. That is exact, and the rank grows with the rounds.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from hintdistill.core.errors import ConfigError
from hintdistill.core.models import ADAPTER_CONFIG, resolve_model

STACKED = "adapter-for-server"
"""Name of the folder, next to a student, with its adapter in the form a server accepts."""
WEIGHTS = "adapter_model.safetensors"


def adapter_of(student: Path) -> Path | None:
    """Return the folder of the adapter from which a student was made; None if it has only whole weights."""
    return next((f for f in (student, student / "adapter") if (f / ADAPTER_CONFIG).is_file()), None)


def chain_of(student: Path, initial: Path) -> list[Path]:
    """Return the adapters from the initial model up to a student, in order; empty for the initial model itself.

    Raises:
        ConfigError: the student, or one that it is based on, is not an adapter on the initial model.
    """
    chain: list[Path] = []
    at, initial = student.resolve(), initial.resolve()
    while at != initial:
        folder = adapter_of(at)
        if folder is None or len(chain) > 1000:
            raise ConfigError(
                f"{at} contains no adapter, but the server should receive adapters on {initial}",
                hint="set train.lora and train.save=both or adapter, or rollout.sample.server.hand_over=weights",
            )
        chain.insert(0, folder)
        said = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        at = resolve_model(str(said["base_model_name_or_path"])).resolve()
    return chain


def adapter_for_server(student: Path, initial: Path) -> Path | None:
    """Return one adapter folder that turns the initial model into the student; None for the initial model itself.

    Raises:
        ConfigError: see `chain_of`; or an adapter is more than a sum of low-rank products.
    """
    chain = chain_of(student, initial)
    if len(chain) < 2:
        return chain[0] if chain else None
    into = student.parent / STACKED
    if not (into / ADAPTER_CONFIG).is_file():
        _stack(chain, into)
    return into


def _stack(chain: list[Path], into: Path) -> None:
    from safetensors.torch import load_file, save_file

    parts: dict[str, list[torch.Tensor]] = defaultdict(list)
    rank, config = 0, dict[str, Any]()
    for folder in chain:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        _require_plain(config, folder)
        scale, own = config["lora_alpha"] / config["r"], load_file(folder / WEIGHTS)
        for name, tensor in own.items():
            parts[name].append(tensor.float() if "lora_A" in name else scale * tensor.float())
        counts = {len(p) for p in parts.values()}
        if len(counts) != 1:
            raise ConfigError(
                f"{folder} adapts other modules than the adapter before it, so they cannot be combined into one"
            )
        rank += int(config["r"])
    whole = {n: torch.cat(p, 0 if "lora_A" in n else 1).contiguous() for n, p in parts.items()}
    aside = into.with_name(into.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(whole, aside / WEIGHTS, metadata={"format": "pt"})
    first = json.loads((chain[0] / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    said = {**config, "r": rank, "lora_alpha": rank, "base_model_name_or_path": first["base_model_name_or_path"]}
    (aside / ADAPTER_CONFIG).write_text(json.dumps(said, indent=1), encoding="utf-8")
    shutil.rmtree(into, ignore_errors=True)
    aside.rename(into)


def _require_plain(config: dict[str, Any], folder: Path) -> None:
    odd = [k for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(k)]
    if odd or config.get("bias", "none") != "none":
        raise ConfigError(f"{folder} is more than a sum of low-rank products ({', '.join(odd) or 'bias'})")

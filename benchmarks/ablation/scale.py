"""Make the same ablation smaller or larger: `--quick` and `--full`."""

from __future__ import annotations

from typing import Any

from benchmarks.ablation.settings import AblationConfig
from hintdistill.core.errors import ConfigError

QUICK: dict[str, Any] = {
    "arms": ["hint", "placebo", "random_step", "sft_success", "none"],
    "noise": [],
    "limit": 100,
    "limits": {},
    "near_splits": [],
    "transfer_split": None,
}
"""Four arms and the initial policy."""

NOISE = ("step:25", "step:50", "step:75", "step:100", "alarm:10", "alarm:30", "hint:25", "hint:50")
FULL_NOISE = [f"{spec}{gate}" for spec in NOISE for gate in ("", "+gate")] + ["step:0"]
"""`step:0` is the true critic with the gate off; the true critic with the gate on is the arm `hint`."""


def scaled(config: AblationConfig, *, quick: bool, full: bool, sweep: bool = False) -> AblationConfig:
    """The configuration of the ablation asked for. Raises ConfigError for quick and anything else."""
    if quick and (full or sweep):
        raise ConfigError(f"--quick and --{'full' if full else 'sweep'} exclude each other")
    data = config.model_dump(mode="json")
    data["ablate"]["sweep"]["use"] = data["ablate"]["sweep"]["use"] or sweep
    if quick:
        first = next(iter(config.ablate.regimes))
        data["ablate"] |= QUICK | {
            "seeds": list(config.ablate.seeds[:2]),
            "regimes": {first: config.ablate.regimes[first]},
        }
    if full:
        extra = ["stale", "hint_outcome", *(["foreign"] if config.ablate.foreign_traces else [])]
        extra += ["llm_critic"] if config.ablate.llm_critic else []
        data["ablate"]["arms"] = [*data["ablate"]["arms"], *(a for a in extra if a not in data["ablate"]["arms"])]
        data["ablate"]["regimes"] |= data["ablate"]["further_regimes"]
        data["ablate"]["noise"] = data["ablate"]["noise"] or FULL_NOISE
    return AblationConfig.model_validate(data)

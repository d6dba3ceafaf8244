"""Settings and jobs of the benchmark of twins: an ablation whose arms each hold the same number of other steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from benchmarks.ablation.jobs import Job
from benchmarks.ablation.settings import AblationConfig
from hintdistill.config import RunConfig
from hintdistill.config.base import Section
from hintdistill.config.file import load_as
from hintdistill.core.errors import ConfigError
from hintdistill.pipeline.arms import changed

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "examples" / "toolworld" / "near_miss.py"
TwinArm = Literal[
    "none",
    "twins",
    "anchors",
    "undone",
    "near_episodes",
    "random_edit",
    "decoded",
    "other_finding",
    "half_classes",
    "half_kinds",
]
NAMES: dict[str, str] = {
    "none": "(a) none",
    "twins": "twins",
    "anchors": "(b) clean anchors",
    "near_episodes": "(c) near-miss episodes",
    "undone": "(d) edit undone",
    "random_edit": "(e) random edit",
    "other_finding": "(f) another finding's edit",
    "decoded": "(g) twin's context, decoded step",
    "half_classes": "(h) half of the classes",
    "half_kinds": "(i) half of the kinds",
}


class TwinsSection(Section):
    """The held steps and their number, equal in every arm."""

    arms: tuple[TwinArm, ...] = get_args(TwinArm)
    frontier: tuple[TwinArm, ...] = ("none", "twins", "anchors", "near_episodes")
    """Arms trained at every rate of `ablate.sweep.settings`; the others at the one numbered `rate`."""
    rate: int = Field(default=1, ge=0)
    hints: int = Field(default=128, ge=1)
    """Hint slots per round."""
    anchors: int = Field(default=64, ge=1)
    """Anchors per round, the same steps in every arm."""
    held: int = Field(default=64, ge=1)
    """Further held slots per round: twins, or the rows that replace them. The arm `none` has none; its anchors weigh as much as both."""
    passes: float = Field(default=1.0, gt=0)
    """How often a round's rows are read; rows per optimiser step follow from it and `ablate.steps`."""
    half_classes: tuple[str, ...] = ("unknown_tool", "skipped_lookup")
    half_kinds: tuple[str, ...] = ("rename", "request", "field", "warning")
    pairs_per_family: int | None = Field(default=None, ge=1)
    """Families of the near-miss suite; None means all."""
    heldout: int = Field(default=150, ge=1)
    """Findings in test episodes of the initial policy, at most, whose error is read after training."""


class TwinsConfig(AblationConfig):
    """The configuration of the benchmark."""

    twins: TwinsSection = TwinsSection()

    @property
    def ablation(self) -> AblationConfig:
        """The settings for the ablation's own parts."""
        return AblationConfig.model_validate(self.model_dump(mode="json", exclude={"twins"}))

    @property
    def run_part(self) -> RunConfig:
        """The run's own settings."""
        return RunConfig.model_validate(self.model_dump(mode="json", exclude={"twins", "ablate"}))


QUICK: dict[str, Any] = {
    "run": {"rounds": 1},
    "rollout": {"sample": {"episodes": 128}},
    "report": {"off_target_steps": 40},
    "ablate": {"seeds": [0], "steps": 24, "limit": 48, "limits": {}, "near_splits": []},
    "twins": {
        "arms": ["none", "twins"],
        "frontier": [],
        "hints": 96,
        "anchors": 48,
        "held": 48,
        "pairs_per_family": 8,
        "heldout": 40,
    },
}
"""One seed, one round, two arms, few tasks."""


def load_twins(path: Path, overrides: Sequence[str] = (), *, quick: bool = False) -> TwinsConfig:
    """Read the settings. Raises ConfigError for settings that do not hold."""
    config = load_as(TwinsConfig, path, overrides)
    if quick:
        data = config.model_dump(mode="json")
        for section, change in QUICK.items():
            data[section] = changed(data[section], change)
        config = TwinsConfig.model_validate(data)
    if config.run.rounds is None:
        raise ConfigError("the arms are loops; set run.rounds")
    if config.twins.rate >= len(config.ablate.sweep.settings):
        raise ConfigError(f"twins.rate is {config.twins.rate}, ablate.sweep.settings has no such entry")
    if config.train.target_source != "stored" or not config.train.twins.per_finding:
        raise ConfigError("arms are rows of stored targets with twins; set train.twins.per_finding")
    return config


def jobs_of(config: TwinsConfig) -> tuple[list[Job], list[Job]]:
    """What is shared by the arms of a seed, and the arms: at the one rate first, in the order of `twins.arms`, every seed of each."""
    regime, t = next(iter(config.ablate.regimes)), config.twins
    others = [r for r in range(len(config.ablate.sweep.settings)) if r != t.rate]
    chosen = [(arm, t.rate) for arm in t.arms] + [(arm, r) for r in others for arm in t.arms if arm in t.frontier]
    arms = [Job(regime, arm, seed, rate) for arm, rate in chosen for seed in config.ablate.seeds]
    return [Job(regime, "shared", seed) for seed in config.ablate.seeds], arms


def batches_of(config: TwinsConfig) -> list[tuple[str, list[Job]]]:
    """The jobs in the order in which they are done, with a label: what is shared comes right before the first arms that need it.

    The first two arms are done seed by seed, so that a benchmark that is cut short has whole pairs.
    """
    shared, arms = jobs_of(config)
    pair = config.twins.arms[:2]
    first = [j for j in arms if j.arm in pair and j.setting == config.twins.rate]
    out: list[tuple[str, list[Job]]] = []
    for one in shared:
        out += [("shared", [one]), ("arms", [j for j in first if j.seed == one.seed])]
    return [*out, ("arms", [j for j in arms if j not in first])]

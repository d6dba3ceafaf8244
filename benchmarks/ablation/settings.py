"""The settings of an ablation: those of a run, and the section `ablate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hintdistill.config import CriticSection, RunConfig
from hintdistill.config.base import Section
from hintdistill.config.file import load_as
from hintdistill.core.errors import ConfigError
from hintdistill.core.paths import ConfigPath, PathMark

Arm = Literal[
    "hint",
    "placebo",
    "wrong_hint",
    "random_step",
    "full_trace",
    "sft_success",
    "sft_corrected",
    "none",
    "twins",
    "sft_gold",
    "gold_steps",
    "stale",
    "foreign",
    "replay",
    "llm_critic",
    "hint_outcome",
]
MAIN_ARMS: tuple[Arm, ...] = (
    "hint",
    "placebo",
    "wrong_hint",
    "random_step",
    "full_trace",
    "sft_success",
    "sft_corrected",
    "none",
)
NOISE_KINDS = ("step", "alarm", "hint", "near", "later", "tool", "mixed")
"""The ways in which a critic is made worse; `miss-CLASS` is a further one."""


def _everything() -> dict[str, tuple[str, ...]]:
    return {"all": ("*",)}


class SweepSection(Section):
    """`--sweep`: every arm tries as many settings on validation tasks, and its best one makes the table."""

    use: bool = False
    """The settings of `--sweep`."""
    split: str = "validation"
    limit: int | None = Field(default=None, ge=1)
    """Tasks of the split."""
    seeds: tuple[int, ...] = Field(default=(100,), min_length=1)
    """Not among `ablate.seeds`, so that no training is both chosen and reported."""
    settings: tuple[dict[str, Any], ...] = ()
    """Keys of the `train` section, one setting each, for every arm without its own list."""
    own: dict[str, tuple[dict[str, Any], ...]] = Field(default_factory=dict)
    """Arm → its own settings, as many as the others have."""

    @model_validator(mode="after")
    def _as_many_for_all(self) -> SweepSection:
        for arm, settings in self.own.items():
            if len(settings) != len(self.settings):
                raise ValueError(
                    f"own.{arm} has {len(settings)} settings, the other arms {len(self.settings)}; every arm tries as many"
                )
        if self.use and not self.settings:
            raise ValueError("--sweep needs ablate.sweep.settings")
        return self


class HoldSection(Section):
    """Behaviour that is to be kept: further episodes of the initial policy, whose steps without a finding are anchors in every
    round and for every arm. What looks like an error and is none is rare in a round's own traces, and is what a correction
    overruns first."""

    tasks: tuple[str, ...] = ()
    """Patterns of task names in `rollout.sample.split`; none: no such episodes."""
    episodes: int = Field(default=112, ge=1)
    """At most this many, each of another task, drawn by the seed and sampled as the rounds are."""
    share: float = Field(default=0.5, gt=0.0, le=1.0)
    """The number of a round's anchors that come from them."""


class AblateSection(Section):
    """The same loop as controlled arms over seeds; see docs/evidence.md for what each arm is."""

    arms: tuple[Arm, ...] = MAIN_ARMS
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    processes: int = Field(default=2, ge=1)
    """One-thread processes."""
    regimes: dict[str, tuple[str, ...]] = Field(default_factory=_everything)
    """Name → patterns of task names, for training and for the splits measured in that regime."""
    further_regimes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Regimes that only `--full` adds."""
    rows: int = Field(default=128, ge=1)
    """Steps with a loss of their own per round and arm, and as many anchors."""
    fill: bool = True
    """Whether an arm with fewer distinct rows has them repeated, none a third time before all twice, so that every arm trains
    on equally many; without it `rows` is a bound."""
    steps: int = Field(default=24, ge=1)
    """Optimiser steps per round, the same in every arm."""
    hold: HoldSection = HoldSection()
    test_split: str = "test"
    """The splits on which success and error rates are reported."""
    clean_split: str | None = None
    """Tasks without a trigger, for retention."""
    near_splits: tuple[str, ...] = ()
    """Tasks in which the present behaviour is right; success there, and movement on their steps."""
    transfer_split: str | None = None
    """Task kinds never trained on."""
    temperatures: tuple[float, ...] = Field(default=(0.0, 1.0), min_length=1)
    limit: int | None = Field(default=None, ge=1)
    """Tasks per split."""
    limits: dict[str, int] = Field(default_factory=dict)
    """Tasks of single splits, by name, where that differs from `limit`."""
    noise: tuple[str, ...] = ()
    """Critic noise, each an arm: `step:50` a random step in half of the findings, `alarm:10` a false alarm on a tenth of the
    clean traces, `hint:25` another class's hint in a quarter; `near:50` a step too early or too late, `later:50` a consequence in
    place of the root, `tool:50` the right step and a hint that names another legal tool, `mixed:50` one of these three;
    `miss-unknown_tool:100` all findings of a class missed. `+gate` appended: with the gate on."""
    foreign_traces: tuple[ConfigPath, ...] = ()
    """Trace files of another policy, for the arms `foreign` and `replay`."""
    llm_critic: Annotated[dict[str, Any], PathMark("section", of=CriticSection)] = Field(default_factory=dict)
    """The `critic` section of the arm `llm_critic`, where it differs from `critic`."""
    train: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Arm → keys of the `train` section in which it differs, e.g. a learning rate chosen on validation tasks."""
    sweep: SweepSection = SweepSection()
    error_groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Name → error classes that the tables also count together, e.g. those of one wrong token and those of a wrong plan."""
    bootstrap: int = Field(default=4000, ge=100)
    """Resamples for the intervals."""

    @model_validator(mode="after")
    def _noise_reads(self) -> AblateSection:
        for spec in self.noise:
            parse_noise(spec)
        return self

    @model_validator(mode="after")
    def _sweep_apart(self) -> AblateSection:
        if both := sorted({*self.seeds} & {*self.sweep.seeds}):
            raise ValueError(
                f"seed {both[0]} is in ablate.seeds and in ablate.sweep.seeds; what is chosen on it is not reported on"
            )
        if self.sweep.use and self.sweep.split == self.test_split:
            raise ValueError(f"the sweep would choose on {self.test_split}, the split that is reported")
        return self


def parse_noise(spec: str) -> tuple[str, float, bool]:
    """`step:50+gate` → (`step`, 0.5, True). Raises ValueError for another form."""
    read = re.fullmatch(rf"({'|'.join(NOISE_KINDS)}|miss-\w+):(\d+)(\+gate)?", spec, re.ASCII)
    if read is None or int(read[2]) > 100:
        raise ValueError(f"noise {spec!r} is not of the form {'|'.join(NOISE_KINDS)}|miss-CLASS:PERCENT[+gate]")
    return read[1], int(read[2]) / 100, read[3] is not None


class AblationConfig(RunConfig):
    """The configuration of an ablation."""

    ablate: AblateSection = AblateSection()


def load_ablation(path: str | Path, overrides: Sequence[str] = ()) -> AblationConfig:
    """Read an ablation's YAML file and apply `key=value` overrides.

    Raises:
        ConfigError: as `load_config` does; the file has no `ablate` section.
    """
    config = load_as(AblationConfig, path, overrides)
    if "ablate" not in config.model_fields_set:
        raise ConfigError(
            f"{path}: the `ablate` section is missing, so this is the config of a run and not of an ablation",
            hint="benchmarks/ablation/ablate.yaml has one; docs/evidence.md says what is in it",
        )
    return config


def run_part(config: AblationConfig) -> RunConfig:
    """The run's own settings, without the `ablate` section."""
    return RunConfig.model_validate(config.model_dump(mode="json", exclude={"ablate"}))

"""Tripwires: bounds on measurements during training, and the messages when one is exceeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hintdistill.config import TripwireSection
from hintdistill.core.errors import TripwireError


@dataclass(frozen=True)
class Wire:
    """Define one bound."""

    name: str
    """Name of the bound in `train.tripwires`."""
    metric: str
    sign: int
    """1: the measurement must not rise above the bound; -1: it must not fall below."""
    unit: str
    cause: str
    advice: str


LESS = "lower train.learning_rate or train.epochs, or raise train.anchor.weight"
WIRES = (
    Wire(
        "max_off_target_kl",
        "off_target_kl",
        1,
        " nats per token",
        "the student moves on steps that are not trained on",
        LESS,
    ),
    Wire("max_heldout_kl", "heldout_kl", 1, " nats per token", "the student moves on held-out clean traces", LESS),
    Wire(
        "min_entropy_ratio",
        "entropy_ratio",
        -1,
        "",
        "entropy collapse: the student becomes too certain everywhere",
        "lower train.learning_rate, or use a divergence that covers the teacher (train.recipe.terms.distill.divergence.kind=fkl or jsd)",
    ),
    Wire(
        "max_end_drop",
        "end_drop",
        1,
        "",
        "length tail: steps become less likely to end where they originally ended",
        LESS,
    ),
    Wire(
        "min_hint_effect",
        "hint_effect",
        -1,
        " nats",
        "the hint's effect is gone, so there is nothing left to learn",
        "train for fewer steps (train.epochs), or keep the teacher at the initial policy (train.recipe.teacher.update=initial)",
    ),
)


@dataclass(frozen=True)
class Crossing:
    """Describe a bound that was exceeded."""

    wire: Wire
    value: float
    bound: float
    step: int

    def __str__(self) -> str:
        side = "above" if self.wire.sign > 0 else "below"
        return (
            f"{self.wire.metric} is {self.value:.4g}{self.wire.unit} at step {self.step}, {side} "
            f"train.tripwires.{self.wire.name}={self.bound:g}: {self.wire.cause}"
        )


class Tripwires:
    """Compare measurements with the bounds; the only state is the list of warnings already given."""

    def __init__(self, section: TripwireSection, work: Path, warn: Callable[[Crossing], None] | None = None) -> None:
        """Store the arguments; `work` contains the checkpoints, and `warn` is called once for each bound under `action:
        warn`."""
        self.section, self.work, self.warn = section, work, warn
        self._told: set[str] = set()

    def check(self, readings: Mapping[str, float], step: int) -> None:
        """Compare the measurements after optimiser step `step` with the bounds.

        Raises:
            TripwireError: a bound was exceeded and the action is `stop`, or a measurement is not finite.
        """
        for wire in WIRES:
            bound, value = getattr(self.section, wire.name), readings.get(wire.metric)
            if value is None:
                continue
            # the hint lowers what it speaks against, so its effect is negative where it works
            value = -value if wire.metric == "hint_effect" else value
            if not math.isfinite(value):
                self._stop(
                    f"{wire.metric} is {value} at step {step}", "lower train.learning_rate or use run.dtype=float32"
                )
            if bound is None or wire.sign * value <= wire.sign * bound:
                continue
            crossing = Crossing(wire, value, bound, step)
            if self.section.action == "stop":
                self._stop(str(crossing), f"{wire.advice}; with a wider bound, --resume continues from there")
            if wire.name not in self._told:
                self._told.add(wire.name)
                if self.warn is not None:
                    self.warn(crossing)

    def _stop(self, message: str, advice: str) -> None:
        raise TripwireError(message, hint=f"{kept(self.work)}; {advice}")


def unread(section: TripwireSection, sets: Mapping[str, object]) -> list[str]:
    """Return the bounds without any measurement, because their set contains no steps."""
    needs = {
        "max_off_target_kl": "off_target",
        "min_entropy_ratio": "off_target",
        "max_end_drop": "off_target",
        "max_heldout_kl": "heldout",
    }
    return [name for name, of in needs.items() if getattr(section, name) is not None and of not in sets]


def kept(work: Path) -> str:
    """Return a text that names the checkpoint which a stopped training leaves."""
    steps = [int(p.name.rpartition("-")[2]) for p in work.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return (
        f"the last checkpoint is {work / f'checkpoint-{max(steps)}'}" if steps else "no checkpoint was written before"
    )

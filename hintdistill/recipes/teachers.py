"""Teacher rules: whose weights the teacher has, and how they follow the student. Torch-free entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hintdistill.core.errors import ConfigError
from hintdistill.core.registry import Registry


@dataclass(frozen=True)
class Teacher:
    """A rule for the teacher's weights."""

    name: str
    weights: Literal["initial", "round_start", "live", "follows", "external"]
    """The origin of the weights: the initial policy, this round's first student, the student itself, a copy that follows the
    student, or another model."""
    follow: str | Callable[..., None] | None = None
    """How a copy follows the student: `(follower, step)`, called after each optimiser step (from 1); see `training.teacher.Follower`."""
    reads_heldout: bool = False
    """Whether it reads the student on held-out findings (`Follower.read`); a run without any is then refused."""
    needs: tuple[str, ...] = ()
    """What a run needs for it beyond what its weights ask for, names of `recipes.needs.HOW`."""

    def __post_init__(self) -> None:
        if (self.weights == "follows") != (self.follow is not None):
            raise ConfigError(
                f"the teacher rule {self.name}: `follow` is required if `weights` is `follows`, and not allowed otherwise"
            )

    @property
    def stored(self) -> bool:
        """Whether its weights stand still, so that targets can be scored before training and stored."""
        return self.weights in ("initial", "round_start")

    @property
    def all_needs(self) -> tuple[str, ...]:
        """Everything that a run needs for it, names of `recipes.needs.HOW`."""
        in_step = () if self.stored else ("in_step_teacher",)
        other = ("external_teacher",) if self.weights == "external" else ()
        return (*in_step, *other, *self.needs)


_WHERE = "hintdistill.training.teacher"
_SHIPPED = (
    Teacher("initial", "initial"),
    Teacher("round_start", "round_start"),
    Teacher("live", "live"),
    Teacher("ema", "follows", f"{_WHERE}:running_average"),
    Teacher("periodic", "follows", f"{_WHERE}:periodic_copy"),
    Teacher("cgtr", "follows", f"{_WHERE}:earned_copy", reads_heldout=True),
    Teacher("external", "external"),
)
TEACHERS: Registry[Teacher] = Registry("teacher rule", Teacher, {t.name: t for t in _SHIPPED})


def of_kind(names: set[str], *weights: str) -> set[str]:
    """Return the rules whose weights are of one of these kinds."""
    return {n for n in names if TEACHERS.get(n).weights in weights}


def whose(view_weights: str, update: str) -> str:
    """Return the origin of a view's weights under a teacher rule: one of `Teacher.weights`, and of a copy that follows
    its rule's name."""
    if view_weights != "teacher":
        return view_weights
    rule = TEACHERS.get(update)
    return rule.name if rule.weights == "follows" else rule.weights

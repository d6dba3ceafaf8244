"""Define teacher rules: whose weights the teacher has, and how they follow the student. The entries are torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hintdistill.core.errors import ConfigError
from hintdistill.core.registry import Registry


@dataclass(frozen=True)
class Teacher:
    """Describe a rule for the teacher's weights."""

    name: str
    weights: Literal["initial", "round_start", "live", "follows", "external"]
    """Origin of the weights: the initial policy, the first student of this round, the student itself, a copy that
    follows the student, or another model."""
    follow: str | Callable[..., None] | None = None
    """Function that makes a copy follow the student: `(follower, step)`, called after each optimiser step (from 1); see
    `training.teacher.Follower`."""
    reads_heldout: bool = False
    """Whether it reads the student on held-out findings (`Follower.read`); a run without any is then refused."""
    needs: tuple[str, ...] = ()
    """Further needs of a run with this rule, as names of `recipes.needs.HOW`, beyond those of its weights."""

    def __post_init__(self) -> None:
        if (self.weights == "follows") != (self.follow is not None):
            raise ConfigError(
                f"the teacher rule {self.name}: `follow` is required if `weights` is `follows`, and not allowed otherwise"
            )

    @property
    def stored(self) -> bool:
        """Whether its weights are fixed, so that targets can be scored before training and stored."""
        return self.weights in ("initial", "round_start")

    @property
    def all_needs(self) -> tuple[str, ...]:
        """All needs of a run with this rule, as names of `recipes.needs.HOW`."""
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
    """Return the rules whose weights have one of these origins."""
    return {n for n in names if TEACHERS.get(n).weights in weights}


def whose(view_weights: str, update: str) -> str:
    """Return the origin of a view's weights under a teacher rule: one of `Teacher.weights`, or the rule's name for a
    copy that follows."""
    if view_weights != "teacher":
        return view_weights
    rule = TEACHERS.get(update)
    return rule.name if rule.weights == "follows" else rule.weights

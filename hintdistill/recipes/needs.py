"""Determine the needs of a recipe beyond a hint and a student, and those that a configuration does not meet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from hintdistill.core.errors import ConfigError
from hintdistill.core.types import TargetKind
from hintdistill.recipes import parts
from hintdistill.recipes.schema import Recipe, Term, WeightSpec
from hintdistill.recipes.teachers import TEACHERS

HOW = {
    "in_step_teacher": "set train.targets=in_step (the default where the recipe needs it)",
    "full_vocabulary": "set train.targets=in_step; stored targets hold top-k entries",
    "union_support": "score with an engine that can gather (transformers)",
    "several_rollouts": "several traces of each task: rollout.sample.per_task=4; or train.outcome.baseline=round",
    "reward": "a reward on each trace",
    "hidden_states": "hidden states of student and teacher at the step's tokens",
    "external_teacher": "set train.recipe.teacher.model to another model with the same tokenizer; or train.recipe.teacher.update=initial",
    "demonstrations": "a demonstration per task; or set train.recipe.data.hint.kind=feedback to use the critic's hints",
    "token_set": "set train.recipe.terms.<term>.support.token_ids",
    "frozen_ids": "list them: train.recipe.terms.<term>.weights=[{score: token_id, shape: freeze, ids: [...]}]; "
    "objectives.diagnostics.rock_tokens finds them",
}
"""Way to meet each need."""


@dataclass(frozen=True)
class Need:
    """Describe one thing that a recipe needs."""

    name: str
    why: str

    @property
    def how(self) -> str:
        """How to meet it."""
        return HOW[self.name]


def needs(recipe: Recipe) -> list[Need]:
    """Return everything that the recipe needs, each once, with the key that causes it."""
    found: dict[str, str] = {}

    def add(names: Collection[str], why: str) -> None:
        for name in names:
            found.setdefault(name, why)

    add(parts.HINTS.get(recipe.data.hint.kind).needs, f"data.hint.kind is {recipe.data.hint.kind}")
    teacher = TEACHERS.get(recipe.teacher.update)
    add(teacher.all_needs, f"teacher.update is {teacher.name}")
    if teacher.weights == "round_start" and "initial" in recipe.used_names("hint"):
        add(
            ["in_step_teacher"],
            "the view initial differs from the stored plain view if the teacher restarts in each round",
        )
    if recipe.coupling.kind != "none":
        add(["reward"], f"coupling.kind is {recipe.coupling.kind}")
        if recipe.coupling.kind in ("additive", "adv_mul", "adv_add"):
            add(["several_rollouts"], "an advantage compares rollouts with each other")
    for rows in get_args(TargetKind):
        for name, view in recipe.used_views(rows).items():
            if view.context not in parts.OWN_CONTEXTS:
                add(["in_step_teacher"], f"view {name} reads {view.context}")
            if view.weights == "external":
                add(["external_teacher"], f"view {name} has external weights")
            if rows == "hint" and (view.weights, view.context) == ("live", "hint"):
                add(["in_step_teacher"], f"view {name} is the student itself under the hint")
    for name, term in recipe.terms.items():
        _term_needs(name, term, add)
    for weight in recipe.coupling.credit:
        _score_needs("coupling.credit", weight.scores(), add)
    return [Need(n, w) for n, w in found.items()]


def _term_needs(name: str, term: Term, add: object) -> None:
    assert callable(add)
    entry, support = term.divergence.entry, term.support
    for need, why in entry.needs:
        add([need], f"terms.{name}{why}")
    if entry.reads == "hidden":
        return
    if entry.has_signal and term.divergence.signal == "advantage":
        add(["reward", "several_rollouts"], f"terms.{name} has the advantage as its signal")
    if entry.has_signal and term.divergence.parameters.get("baseline") is not None:
        add(["full_vocabulary"], f"terms.{name}.divergence.baseline")
    if term.target.tilt_sign == "advantage":
        add(["reward", "several_rollouts"], f"terms.{name}.target is tilted by the advantage")
    if entry.reads == "distributions" and term.rows == "hint":
        if support.kind == "union" and not support.drop_special:
            add(["union_support"], f"terms.{name}.support is union")
        else:
            add(["full_vocabulary"], f"terms.{name}.support is {support.kind}")
    if support.kind == "token_set" and not support.token_ids:
        add(["token_set"], f"terms.{name}.support is token_set without token_ids")
    if term.temperature != 1 or term.target.temperature != 1:
        add(["full_vocabulary"], f"terms.{name} has a temperature")
    for weight in term.weights:
        _score_needs(f"terms.{name}.weights", weight.scores(), add)
    if any(w.shape == "freeze" and not w.parameters.get("ids") for w in every_weight(term.weights)):
        add(["frozen_ids"], f"terms.{name}.weights freezes the tokens of an empty list")


def every_weight(weights: Iterable[WeightSpec]) -> Iterator[WeightSpec]:
    """Yield all weights, including their parts."""
    for weight in weights:
        yield weight
        yield from every_weight((*weight.soft_or, *weight.product, *weight.then))


def _score_needs(where: str, scores: set[str], add: object) -> None:
    assert callable(add)
    for score in sorted(scores):
        facts = parts.FACTS["advantage"] if score == "adv_sign" else parts.FACTS.get(score, ())
        add(facts, f"{where} reads {score}")
        if score in parts.FULL_VOCABULARY_SCORES:
            add(["full_vocabulary"], f"{where} reads {score}")


def reads_reward(recipe: Recipe) -> bool:
    """Return whether it needs the reward of each trace."""
    return any(n.name == "reward" for n in needs(recipe))


def reads_advantage(recipe: Recipe) -> bool:
    """Return whether it has nothing to learn if all compared rollouts have the same reward."""
    return any(n.name == "several_rollouts" for n in needs(recipe))


def missing(recipe: Recipe, available: Collection[str]) -> list[Need]:
    """Return the needs that are not available."""
    return [n for n in needs(recipe) if n.name not in available]


def require_met(recipe: Recipe, available: Collection[str]) -> None:
    """Raise ConfigError, which names every missing need, its reason and how to meet it."""
    lacking = missing(recipe, available)
    if lacking:
        text = "; ".join(f"{n.name} ({n.why}): {n.how}" for n in lacking)
        raise ConfigError(
            f"the recipe {recipe.name} needs what this run does not have: {text}",
            hint=f"`hintdistill recipes show {recipe.name}` lists all its needs; any of its keys can be set under "
            "train.recipe",
        )

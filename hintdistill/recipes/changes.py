"""Describe how a changed recipe departs from its method, so that no run, card or report claims a method that did not
train.

A recipe is named after a method. Overrides of rates, coefficients and bounds do not change the method. It is defined by
the teacher and its context, the targets, the comparison, the weights and the coupling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hintdistill.recipes import parts
from hintdistill.recipes.library import load_recipe, recipe_names
from hintdistill.recipes.schema import Recipe, Term, WeightSpec

STEPS = {"findings": "steps with a finding", "every": "every step", "final": "the last step"}
"""Values of `data.steps` in words."""


def changes(recipe: Recipe, read: str | None = None, steps: str | None = None) -> tuple[str, ...]:
    """List the departures of a recipe from its method: those of the shipped recipe, and defining differences from the
    shipped one. Empty for a recipe under a new name.

    Args:
        read: the context maker that the run's `inject.hint` names instead of the recipe's own.
        steps: the same for `inject.steps`.
    """
    if recipe.name not in recipe_names():
        return ()
    own = load_recipe(recipe.name)
    shipped = [own.changed] if own.changed else []
    return tuple(dict.fromkeys([*shipped, *_changes(own, recipe, read, steps)]))


def called(recipe: Recipe, read: str | None = None, steps: str | None = None) -> str:
    """Return a recipe's accurate name: `sdft`, or `sdft, changed: the teacher reads the critic, …`; see `changes`."""
    found = changes(recipe, read, steps)
    return f"{recipe.name}, changed: {'; '.join(found)}" if found else recipe.name


def rollouts(recipe: Recipe) -> str:
    """State whose rollouts the method was published with, and which rollouts a run uses instead."""
    if recipe.data.rollout.source == "traces":
        return "recorded, as published"
    return (
        "recorded before training; published with rollouts that the student samples during training (`run.rounds` "
        "samples between training runs)"
    )


def _changes(own: Recipe, now: Recipe, read: str | None, steps: str | None) -> Iterator[str]:
    wanted, found = (parts.HINTS.get(r.data.hint.kind).source for r in (own, now))
    if (read or found) != wanted:
        yield f"the teacher reads {read or found}, not {wanted}"
    if (steps or now.data.steps) != own.data.steps:
        yield f"it trains {STEPS[steps or now.data.steps]}, not {STEPS[own.data.steps]}"
    if now.data.rollout.source != own.data.rollout.source:
        yield f"rollouts are {now.data.rollout.source}, not {own.data.rollout.source}"
    if now.teacher.update != own.teacher.update:
        yield f"the teacher's weights are {now.teacher.update}, not {own.teacher.update}"
    for name, view in own.views.items():
        if name not in now.views:
            yield f"without the view {name}"
        elif now.views[name] != view:
            yield f"the view {name} is different"
    yield from _coupling(own, now)
    mine, theirs = (_hints(r) for r in (own, now))
    for name, term in mine.items():
        if name not in theirs:
            yield f"without the term {name}"
        else:
            yield from _term(name, term, theirs[name])
    for name in theirs:
        if name not in mine:
            yield f"with a further term {name}"


def _hints(recipe: Recipe) -> dict[str, Term]:
    """Return the terms that define the method, without those that hold the student elsewhere."""
    return {n: t for n, t in recipe.terms.items() if t.rows == "hint"}


def _coupling(own: Recipe, now: Recipe) -> Iterator[str]:
    a, b = own.coupling, now.coupling
    if a.kind != b.kind:
        yield f"the coupling is {b.kind}, not {a.kind}"
    elif _weights(a.credit) != _weights(b.credit) or a.keep_sign != b.keep_sign:
        yield "the advantage is combined with a different credit"


def _term(name: str, own: Term, now: Term) -> Iterator[str]:
    if _target(own) != _target(now):
        yield f"{name} has a different target"
    a, b = own.divergence, now.divergence
    if (a.kind, a.signal) != (b.kind, b.signal):
        yield f"{name} is {_of(b.kind, b.signal, now)}, not {_of(a.kind, a.signal, own)}"
    elif _words(a.parameters) != _words(b.parameters) or (a.pointwise_clip is None) != (b.pointwise_clip is None):
        yield f"{name} is a different form of {a.kind}"
    if (own.support.kind, own.support.rest) != (now.support.kind, now.support.rest):
        yield f"{name} compares {now.support.kind} ({now.support.rest}), not {own.support.kind} ({own.support.rest})"
    if _weights(own.weights) != _weights(now.weights):
        yield f"{name} has different weights"
    if own.span != now.span:
        yield f"{name} uses the span {now.span}, not {own.span}"
    if own.student_view != now.student_view:
        yield f"{name} trains through the view {now.student_view}"
    if not _nothing(own.coef) and _nothing(now.coef):
        yield f"{name} has the coefficient 0"


def _nothing(coefficient: Any) -> bool:
    return isinstance(coefficient, int | float) and coefficient == 0


def _of(kind: str, signal: str, term: Term) -> str:
    return f"{kind} of {signal}" if term.divergence.entry.has_signal else kind


def _target(term: Term) -> Any:
    """Return the views of a target and how they enter, without their amounts, unless one is removed."""
    of = term.target
    views = {n for n, a in of.loglin.items() if not _nothing(a)}
    return views, of.anchor, sorted(of.mixture), of.tilt_sign, _nothing(of.tilt)


def _words(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are words, and which numbers are set: removing a bound makes another form."""
    return {k: v if isinstance(v, str) else None for k, v in parameters.items()}


def _weights(weights: Iterable[WeightSpec]) -> list[Any]:
    """Return the composition of weights, without their numbers."""
    return [
        (w.score, w.shape, w.invert, w.times_sign, w.ref, *(_weights(x) for x in (w.soft_or, w.product, w.then)))
        for w in weights
    ]

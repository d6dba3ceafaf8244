"""The statements that a model card may make about a method: the teacher's context, the steps, and the distribution the
student was trained towards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hintdistill.config import TrainSection
from hintdistill.recipes.describe import PROMISE

SPAN_WORDS = {
    "step": "the whole step",
    "action": "the step without its reasoning",
    "quote": "the quoted words",
    "quote_weighted": "the whole step, with the quoted words weighted more",
    "suffix": "the quote and the rest of the step",
}
OWN = "hint"
"""Name of the teacher's own context in a summary's counts."""


def was_read(document: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return what was added to the teacher's context, and on how many of the trained steps; contexts that no step had
    are not mentioned."""
    contexts = facts.get("contexts")
    if contexts is None:
        return "a hint was added to each step's context"
    rows, had = facts["hint_rows"], {n: c for n, c in contexts.items() if c}
    if not had:
        return f"the teacher read the same contexts as the student (on {rows} steps)"
    said = ", ".join(f"{'' if n == OWN else f'`{n}` '}on {c} of {rows} steps" for n, c in had.items())
    return f"a teacher read an additional context (`inject.hint: {document['run']['hint']}`) {said}"


def pulled(document: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return the training target of hinted steps, claiming no more than the recipe does."""
    recipe = TrainSection.model_validate(document["run"]["config"]["train"]).effective_recipe
    who = {"initial": "the model itself", "external": "another model"}.get(
        recipe.teacher.update, f"the model itself (weights: `{recipe.teacher.update}`)"
    )
    terms = {n: t for n, t in recipe.terms.items() if t.rows == "hint"}
    how = " and ".join(f"`{t.divergence.kind}`" for t in terms.values())
    spans = " and ".join(dict.fromkeys(SPAN_WORDS.get(t.span, f"`{t.span}`") for t in terms.values()))
    read = facts.get("contexts")
    under = " under the hint" if read is None or read.get(OWN) else ""
    return f"the predictions of {who} there{under} (loss: {how} over {spans})"


def lowers(document: Mapping[str, Any]) -> str:
    """Return a sentence on whether a token that the teacher lowers is lowered in the student; empty if it always is."""
    recipe = TrainSection.model_validate(document["run"]["config"]["train"]).effective_recipe
    if recipe.lowers_error == "yes":
        return ""
    why = f" ({recipe.lowers_error_why})" if recipe.lowers_error_why else ""
    return f" Whether this lowers a sampled token that the teacher lowers: {PROMISE[recipe.lowers_error]}{why}."

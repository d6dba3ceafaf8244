"""Explanations of the gate's reasons, one sentence each, for readers of the report."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "leak": "The hint names something that neither the step's own context nor the tool schemas contain, so the student "
    "could not know it without a hint.",
    "dialect": "The hint's JSON has other spacing than the student's, so training would also teach a format.",
    "illegal": "The hint tells the student to call something that the tool schemas do not contain.",
    "vacuous": "The hint says nothing about this step that the student could act on.",
    "no_effect": "Under the hint the error's log-probability does not fall by rescore.gate.min_drop_nats, or "
    "the odds of the teacher's continuation do not rise by rescore.gate.min_odds_nats.",
    "not_below_placebo": "A placebo in the hint's place lowers the error as much as the hint does.",
    "not_above_placebo": "The hint raises the odds of the teacher's continuation by less than "
    "rescore.gate.min_odds_margin_nats above the median placebo in its place.",
    "not_specific": "The hint changes the rest of the step as much as the quoted words, so it concerns style "
    "rather than the error.",
    "mass_to_illegal": "The probability that the error loses does not move to continuations that the tool "
    "schemas allow.",
    "primed": "Some of the quoted words become more likely under the hint, because naming wrong words repeats them.",
    "primes": "The hint names the wrong name before any other, or lists several tools, which may make the error more "
    "likely.",
    "level": "The hint reveals more of the answer than inject.max_level allows.",
    "outranked": "Another wording of the hint for the same finding had a larger effect and was chosen.",
    "other_level": "A hint of another level is trained on for this finding.",
    "not_this_students_error": "These weights would hardly make the error (below "
    "rescore.gate.min_student_probability), so the traces are probably from another "
    "student.",
    "not_done_here": "The initial policy does not take the step in the edited context, so the twin holds nothing.",
}


def explained(reason: str) -> str:
    """Return a sentence that explains a reason; reasons of plug-ins have no explanation here."""
    return REASONS.get(reason, "No explanation is available for this reason; see the gate or plug-in that gave it.")

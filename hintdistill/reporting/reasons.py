"""Explanations of the gate's reasons, one sentence each, for readers of the report."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "leak": "The hint names something that neither the step's own context nor the tool schemas contain: the student "
    "could not know it when it runs without a hint.",
    "dialect": "The hint spaces its JSON unlike the student does, so that training would teach a format as well.",
    "illegal": "The hint tells the student to call something that the tool schemas do not have.",
    "vacuous": "The hint says nothing about this step that a reader could act on.",
    "no_effect": "Under the hint the error does not become less likely by rescore.gate.min_drop_nats, or what is said "
    "instead does not gain rescore.gate.min_odds_nats.",
    "not_below_placebo": "A placebo in the hint's place lowers the error as much as the hint does.",
    "not_above_placebo": "A placebo in the hint's place does almost as much for what is said instead "
    "(rescore.gate.min_odds_margin_nats above their median is asked).",
    "not_specific": "The hint changes the rest of the step as much as the quoted words: it speaks to style and not to the error.",
    "mass_to_illegal": "The probability that the error loses does not go to continuations that the tool schemas allow.",
    "primed": "Some of the quoted words become more likely under the hint: naming the wrong words repeats them.",
    "primes": "The hint says the wrong name before any other, or lists several tools: that may make the error more likely.",
    "level": "The hint tells more of the answer than inject.max_level allows.",
    "outranked": "Another wording of the hint for the same finding did better; that one was chosen.",
    "other_level": "Another level of hint is trained on for this finding.",
    "not_this_students_error": "These weights would hardly make the error (below rescore.gate.min_student_probability): "
    "the traces are probably of another student.",
    "not_done_here": "The initial policy does not take the step in the edited context, so the twin holds nothing.",
}


def explained(reason: str) -> str:
    """Return a sentence that explains a reason; reasons of plug-ins have no explanation here."""
    return REASONS.get(reason, "No explanation is written for this reason; see the gate or plug-in that gave it.")

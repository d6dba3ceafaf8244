"""The reasons why findings were not scored, each with its meaning and a way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from hintdistill.reporting.markup import html_table

SHOWN = 100
"""Largest number of findings listed individually; report.json contains all."""
WAYS_OUT: Mapping[str, tuple[str, str]] = {
    "consequence": (
        "An earlier finding caused the error, and only root errors are corrected.",
        "None is needed. Where the critic is wrong about the cause, mend its prompt (critic.llm.prompt).",
    ),
    "not_decisive": ("Its critic says that the run did not fail by it.", "critic.select=roots takes all root errors."),
    "low_confidence": ("Its critic is less sure of it than is asked.", "Lower critic.min_confidence."),
    "over_max_per_trace": ("The trace has more findings than are taken of one trace.", "Raise critic.max_per_trace."),
    "given_step": ("Somebody else wrote the step; the student did not.", "traces.student_role names the student."),
    "cut_step": (
        "The step ended at a limit of tokens, so that its end is not the student's.",
        "Record traces with a higher limit of tokens.",
    ),
    "no_hint": (
        "The critic gave no hint, and no template is written for its class.",
        "Write hints/CLASS.jinja in critic.prompts, or let an LLM critic write hints.",
    ),
    "no_demonstration": ("No demonstration of the task is known.", "Name a file in inject.contexts.demonstrations."),
    "no_file": ("inject.contexts.file has no text for the task.", "Write one into the file."),
    "no_finding": ("The critics found nothing in the trace.", "None is needed, if they are right."),
    "no_observation": (
        "Nothing follows the step, and nobody says how the trace ended.",
        "Give traces a reward, or a field `feedback`.",
    ),
    "no_other_hint": (
        "No other error class has a hint that fits the step.",
        "Write hints/CLASS.jinja for more classes.",
    ),
    "no_own_success": (
        "The trace did not succeed, and its own success is asked for.",
        "inject.hint=verified takes a peer's.",
    ),
    "no_part": ("The context is one word, which has no part.", "Write longer hints."),
    "no_peer": ("No other rollout of the task has a reward.", "Play each task several times: rollout.sample.per_task."),
    "no_peer_failure": ("No other rollout of the task failed.", "Play each task more often: rollout.sample.per_task."),
    "no_peer_success": (
        "No other rollout of the task succeeded.",
        "Play each task more often: rollout.sample.per_task.",
    ),
    "no_rule": (
        "There are no words for the rule that the class breaks.",
        "Add them to candidates/principle.jinja in critic.prompts.",
    ),
    "no_solution": ("No reference solution of the task is known.", "Name a file in inject.contexts.solutions."),
    "no_tools": ("The trace has no tool schemas to name.", "traces.tools names a file of them."),
    "template": (
        "The chat template has no place for a hint here.",
        "Allow more in inject.placements; docs/templates.md says what works where.",
    ),
    "splice": (
        "The hint could not be put above the step as one insertion.",
        "Allow more in inject.placements; `hintdistill doctor CONFIG` shows what the template does.",
    ),
    "control_tokens": (
        "The hint spells out tokens that the chat template is built of.",
        "Mend the hint's template, or the critic's prompt.",
    ),
    "hint_too_long": (
        "The hint is longer than is allowed.",
        "Shorten it, or raise inject.max_hint_tokens and inject.max_hint_share.",
    ),
    "quote_not_found": (
        "The words that the critic quotes are not in the step.",
        "critic.llm.drop_unfound_quotes drops such findings; inject.min_quote_match takes quotes that differ more.",
    ),
    "trace": ("The trace breaks a rule of its format at this step.", "docs/traces.md has the formats."),
    "lost_step": ("The step's own text was not recorded.", "Record traces with token ids or the raw text."),
    "unread_branches": ("The trace is a tree, of which one branch was read.", "Write each branch as a trace."),
    "context_length": (
        "The step with its hint is longer than the model's context.",
        "Take a model with a longer context, or shorter traces.",
    ),
    "score": (
        "The engine gave no usable score for a token of the step.",
        "Its message says which; try another rescore.engine.",
    ),
    "model": (
        "The model or its tokenizer refuses the step.",
        "Its message says why; `hintdistill doctor` looks at the model.",
    ),
}
"""Reason → its meaning, and a remedy."""
OTHER = (
    "A part that is not of this toolkit gave this reason, or its message says what happened.",
    "See its message below.",
)


def body(document: Mapping[str, Any]) -> str:
    """Return the section of the page: reasons with their remedies, then the findings."""
    left = document["unscored"]
    if not left:
        return ""
    by_reason = Counter(str(u["reason"]) for u in left)
    reasons = [(reason, n, *WAYS_OUT.get(reason, OTHER)) for reason, n in by_reason.most_common()]
    rows = [(u["trace"], u["step"], u["error_class"], u["reason"], u["message"] or "") for u in left[:SHOWN]]
    return str(
        Markup('{}\n<p class="mute">{} of {} shown; report.json has all.</p>\n{}').format(
            html_table(
                "Why findings were not scored", ("reason", "findings", "what it means", "way out"), reasons, (1,)
            ),
            len(rows),
            len(left),
            html_table("Findings that were not scored", ("trace", "step", "class", "reason", "message"), rows, (1,)),
        )
    )

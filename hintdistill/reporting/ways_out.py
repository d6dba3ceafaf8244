"""The reasons why findings were not scored, each with its meaning and a way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from hintdistill.reporting.markup import html_table

SHOWN = 100
"""Maximum number of findings listed individually; report.json contains all."""
WAYS_OUT: Mapping[str, tuple[str, str]] = {
    "consequence": (
        "An earlier finding caused the error, and only root errors are corrected.",
        "No action is needed. If the critic is wrong about the cause, improve its prompt (critic.llm.prompt).",
    ),
    "not_decisive": (
        "Its critic judged that the error did not make the run fail.",
        "Set critic.select=roots to use all root errors.",
    ),
    "low_confidence": ("The critic's confidence is below the required one.", "Lower critic.min_confidence."),
    "over_max_per_trace": ("The trace has more findings than are used per trace.", "Raise critic.max_per_trace."),
    "given_step": ("The student did not write the step.", "Set traces.student_role to the student's role."),
    "cut_step": (
        "The step was cut at a token limit, so the student did not choose its end.",
        "Record traces with a higher token limit.",
    ),
    "no_hint": (
        "The critic gave no hint, and there is no template for its class.",
        "Write hints/CLASS.jinja in critic.prompts, or let an LLM critic write hints.",
    ),
    "no_demonstration": (
        "There is no known demonstration of the task.",
        "Set inject.contexts.demonstrations to a file.",
    ),
    "no_file": ("inject.contexts.file has no text for the task.", "Add one to the file."),
    "no_finding": ("The critics found no error in the trace.", "No action is needed, if they are right."),
    "no_observation": (
        "Nothing follows the step, and the trace does not record how it ended.",
        "Give traces a reward, or a field `feedback`.",
    ),
    "no_other_hint": (
        "No other error class has a hint that fits the step.",
        "Write hints/CLASS.jinja for more classes.",
    ),
    "no_own_success": (
        "The trace did not succeed, but its own success is required.",
        "inject.hint=verified uses a successful peer instead.",
    ),
    "no_part": ("The context is a single word, so it has no part.", "Write longer hints."),
    "no_peer": ("No other rollout of the task has a reward.", "Play each task several times: rollout.sample.per_task."),
    "no_peer_failure": ("No other rollout of the task failed.", "Play each task more often: rollout.sample.per_task."),
    "no_peer_success": (
        "No other rollout of the task succeeded.",
        "Play each task more often: rollout.sample.per_task.",
    ),
    "no_rule": (
        "There is no text for the rule that the class violates.",
        "Add them to candidates/principle.jinja in critic.prompts.",
    ),
    "no_solution": ("There is no known reference solution of the task.", "Set inject.contexts.solutions to a file."),
    "no_tools": ("The trace has no tool schemas whose tools could be named.", "Set traces.tools to a file of schemas."),
    "template": (
        "The chat template has no place for a hint here.",
        "Add placements to inject.placements; docs/templates.md says which ones a template allows.",
    ),
    "splice": (
        "The hint could not be put above the step as one insertion.",
        "Add placements to inject.placements; `hintdistill doctor CONFIG` shows what the template allows.",
    ),
    "control_tokens": (
        "The hint contains control tokens of the chat template.",
        "Correct the hint's template, or the critic's prompt.",
    ),
    "hint_too_long": (
        "The hint is longer than allowed.",
        "Shorten it, or raise inject.max_hint_tokens and inject.max_hint_share.",
    ),
    "quote_not_found": (
        "The words quoted by the critic are not in the step.",
        "critic.llm.drop_unfound_quotes drops such findings; a lower inject.min_quote_match accepts quotes "
        "that differ more.",
    ),
    "trace": ("The trace violates a rule of its format at this step.", "docs/traces.md describes the formats."),
    "lost_step": ("The step's own text was not recorded.", "Record traces with token ids or raw text."),
    "unread_branches": ("The trace is a tree, and only one branch was read.", "Write each branch as a trace."),
    "context_length": (
        "The step with its hint is longer than the model's context.",
        "Use a model with a longer context, or shorter traces.",
    ),
    "score": (
        "The engine gave no usable score for a token of the step.",
        "Its message names the token; try another rescore.engine.",
    ),
    "model": (
        "The model or its tokenizer refuses the step.",
        "Its message says why; `hintdistill doctor` checks the model.",
    ),
}
"""Reason → its meaning, and a remedy."""
OTHER = (
    "A plug-in gave this reason, or the message describes it.",
    "See the message below.",
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

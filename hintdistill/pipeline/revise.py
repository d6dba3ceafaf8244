"""Between rescore and train, send rejected hints back once to the LLM that wrote them, if `critic.revise` is on.

The gate's measurements are put into words for the LLM. The second hint replaces the first in the critique, so that it
is injected and scored like any other, with newly drawn placebos; the report counts accepted second hints separately.
"""

from __future__ import annotations

from hintdistill.core.errors import HintdistillError, ServiceError
from hintdistill.core.storage import content_key
from hintdistill.critics.llm import LLMCritic
from hintdistill.injection.hints import is_vacuous
from hintdistill.pipeline import critique, read, rescore, to_score
from hintdistill.pipeline.context import RunContext

SAID = {
    "no_effect": "no_effect: the wrong words stayed as likely as without it",
    "primed": "primed: it made some of the wrong words more likely; do not name them",
    "leak": "leak: it names something that the agent could not know at that step",
    "mass_to_illegal": "mass_to_illegal: what became likely instead is not allowed by the tool schemas either",
    "illegal": "illegal: it proposes a call that the tool schemas do not allow",
    "vacuous": "vacuous: it says nothing about this step",
}
"""Reasons for rejection that another hint may avoid, in words for the critic."""


def run(ctx: RunContext) -> int:
    """Ask for the missing second hints, and return how many findings have a new hint.

    Raises:
        ServiceError: the critic's server is unreachable; earlier answers are kept.
    """
    critics = {c.name: c for c in critique.critics(ctx) if isinstance(c, LLMCritic)}
    store, traces = ctx.rundir.store("revisions"), {t.id: (key, t) for key, t, _ in read.load(ctx)}
    rows, index, new = store.by_key(), list(ctx.rundir.index("revise") or []), 0
    injections = {item.key: item.injection for item in to_score.hint_items(ctx)}
    rejected = [t for t in rescore.load(ctx).heads if t.kind == "hint" and not t.accepted and t.key in injections]
    for target in rejected:
        finding, reasons = injections[target.key].finding, [SAID[r] for r in target.reasons if r in SAID]
        critic = critics.get(finding.critic)
        if critic is None or finding.hint is None or finding.revised_from is not None or not reasons:
            continue
        trace_key, trace = traces[target.trace_id]
        of = critique.finding_key(trace_key, finding)
        key = content_key("revise", of, reasons, critic.key(trace), ctx.library.hash("critic/revise.jinja"))
        if key not in rows:
            row: dict[str, object] = {
                "key": key,
                "finding": of,
                "trace_id": trace.id,
                "step": finding.step,
                "reasons": reasons,
            }
            try:
                hint = critic.revise(trace, finding, "\n".join(reasons))
                row |= (
                    {"failure": "the same hint as before"}
                    if hint == finding.hint or is_vacuous(hint)
                    else {"hint": hint}
                )
            except ServiceError as error:
                if not error.retryable:
                    raise
                row["failure"] = error.message
            except HintdistillError as error:
                row["failure"] = error.message
            store.append(row)
            rows[key] = row
        if key not in index:
            index.append(key)
            new += "hint" in rows[key]
    ctx.rundir.set_index("revise", index)
    ctx.console.note(f"revise: {len(rejected)} rejected hints, {new} rewritten")
    return new

"""Decide when to ask the strong critic, and whose critique counts then."""

from __future__ import annotations

from collections.abc import Sequence

from hintdistill.config import CriticSection
from hintdistill.core.errors import HintdistillError
from hintdistill.core.types import Critique, Trace
from hintdistill.critics import merge

Said = Critique | HintdistillError
SEE_LITTLE = (("rules",), ("followup",))
"""Critics that use no model."""


def escalation(section: CriticSection, trace: Trace, said: Sequence[Said]) -> str | None:
    """Return the reason why the strong critic should read this trace after the others, or None."""
    spoken = [s for s in said if isinstance(s, Critique)]
    if "failed" in section.escalate and (len(spoken) < len(said) or any(c.verdict == "abstain" for c in spoken)):
        return "failed"
    named = {roots(c) for c in spoken}
    # they see few errors, so that their silence contradicts nobody
    if any(c.critics in SEE_LITTLE for c in spoken):
        loud = [c for c in spoken if c.critics not in SEE_LITTLE or c.findings]
        named = {roots(c) for c in loud} or {frozenset()}
    if "disagreement" in section.escalate and len(named) > 1:
        return "disagreement"
    failed_run = trace.reward is not None and trace.reward < section.pass_reward
    if "failed_runs" in section.escalate and failed_run and not any(c.findings for c in spoken):
        return "failed_runs"
    return None


def roots(critique: Critique) -> frozenset[int]:
    """Return the steps of a critique's root errors."""
    return frozenset(f.step for f in critique.findings if f.caused_by is None)


def settle(trace_id: str, said: Sequence[Critique]) -> Critique:
    """Return one critique of a trace from several critics: the merged one, or the strong critic's alone.

    The costs and notes of all critics are kept in either case.
    """
    strong = [c for c in said if c.critics == ("strong",) and c.verdict != "abstain"]
    if not strong:
        return merge(trace_id, said)
    everything = merge(trace_id, said)
    others = len([c for c in said if c.critics != ("strong",) and c.findings])
    notes = (
        (*everything.notes, f"the strong critic's findings replaced those of {others} other critics")
        if others
        else everything.notes
    )
    return strong[-1].model_copy(update={"usage": everything.usage, "critics": everything.critics, "notes": notes})

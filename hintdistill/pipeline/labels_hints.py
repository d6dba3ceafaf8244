"""`hintdistill critique --labels X --hints`: measure whether the hints of a critic's findings repair their steps.

Two results for each finding that would go on to training: whether the gate accepts the hint, and whether the step
changes when the model decodes it again under the hint without an objection from a critic that asks no model
(`pipeline.corrections`). The second one needs a model in this process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hintdistill.core.errors import HintdistillError
from hintdistill.core.types import Finding, Message, Trace
from hintdistill.critics.evaluation import Case, rate
from hintdistill.injection.splice import Injector
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.corrections import FREE, corrections
from hintdistill.pipeline.inject import select
from hintdistill.rescoring.gate import decide
from hintdistill.rescoring.scorer import HintItem, Scorer


def repairs(ctx: RunContext, cases: Sequence[Case]) -> dict[str, Any]:
    """Inject, rescore and decode the critics' findings on labelled traces.

    Returns:
        `findings`: the number that would go on; `accepted` and `repaired`: their rates with intervals; `reasons` and
        `decoded`: counts of the reasons for rejection and of the outcomes of decoding; `judged_by`: the critics that
        may object to a decoded step.

    Raises:
        ModelError, ServiceError: the model for reading the hints cannot be used.
    """
    found = [(case.trace, finding) for case in cases for finding in _used(ctx, case)]
    accepted, reasons = _gated(ctx, found)
    decoded = corrections(ctx, found, "labels")
    before = {t.id: t for t, _ in found}
    same = sum(_acts(trace.step(step)) == _acts(before[trace.id].step(step)) for trace, step in decoded.kept)
    return {
        "findings": len(found),
        "accepted": rate(accepted, len(found)),
        "repaired": rate(len(decoded.kept) - same, len(found)),
        "reasons": dict(reasons.most_common()),
        "decoded": {**decoded.counts, "unchanged": same},
        "judged_by": [c for c in ctx.config.critic.use if c in FREE],
    }


def _used(ctx: RunContext, case: Case) -> list[Finding]:
    section = ctx.config.critic
    if case.critique is None:
        return []
    chosen = select(case.critique, section.max_per_trace, section.min_confidence, section.select)
    given = case.trace.given_steps
    return [f for f, why in chosen if why is None and f.step not in given and not case.trace.step(f.step).cut]


def _gated(ctx: RunContext, found: Sequence[tuple[Trace, Finding]]) -> tuple[int, Counter[str]]:
    """Return how many hints the gate accepts, and the reasons against the others, including hints without a place."""
    injector = Injector(ctx.renderer, ctx.library, ctx.config.inject, ctx.config.rescore.placebos)
    reasons: Counter[str] = Counter()
    items: list[HintItem] = []
    for n, (trace, finding) in enumerate(found):
        try:
            items.append(HintItem(str(n), injector.inject(trace, finding), "train"))
        except HintdistillError as error:
            reasons[error.reason] += 1
    accepted, size = 0, ctx.config.rescore.part_rows
    if not items:
        return 0, reasons
    with ctx.scoring_engine() as engine:
        scorer = Scorer(engine, ctx.renderer, ctx.config.rescore)
        for at in range(0, len(items), size):
            for target in scorer.score(items[at : at + size]):
                judged = decide(target, ctx.config.rescoring.gate)
                accepted += judged.accepted
                reasons.update(() if judged.accepted else judged.reasons)
    return accepted, reasons


def _acts(message: Message) -> tuple[Any, ...]:
    """Return the content of a step: its text, and its calls with parsed arguments."""
    calls = tuple((c.name, c.arguments_raw if c.arguments is None else repr(c.arguments)) for c in message.tool_calls)
    return (message.content or "").strip(), calls


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the result as lines for a terminal."""
    out = [f"hints of {found['findings']} findings"]
    for name, key in (("accepted by the gate", "accepted"), ("step repaired", "repaired")):
        r = found[key]
        if r["n"]:
            out.append(f"  {name:<22}{r['rate']:6.1%}  [{r['low']:.1%}, {r['high']:.1%}]  {r['hits']}/{r['n']}")
    if found["reasons"]:
        out.append("  reasons for rejection: " + ", ".join(f"{n} {why}" for why, n in found["reasons"].items()))
    decoded = ", ".join(f"{n} {what}" for what, n in found["decoded"].items() if n)
    return [*out, f"  decoded again: {decoded}; judged by {', '.join(found['judged_by']) or 'no critic'}"]

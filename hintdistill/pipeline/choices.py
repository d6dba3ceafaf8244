"""Choose which of the hints that compete for a finding is trained on, from their stored targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hintdistill.core.scores import Choice
from hintdistill.core.storage import content_key
from hintdistill.injection.candidates import choose
from hintdistill.pipeline.context import RunContext
from hintdistill.rescoring.gate import decide
from hintdistill.rescoring.scorer import HintItem
from hintdistill.rescoring.store import TargetStore


def finding_of(hint: HintItem) -> str:
    """Return the key of a hint's finding, which all competing hints share."""
    return content_key(hint.injection.trace_id, hint.injection.finding.model_dump(mode="json"))


def choices(ctx: RunContext, store: TargetStore, finding: Mapping[str, str]) -> dict[str, Choice]:
    """Return the outcome for each hint that competes for a finding, by target key.

    Args:
        finding: the finding's key by target key, see `finding_of`.
    """
    if ctx.config.inject.candidates == 1:
        return {}
    groups: dict[str, list[tuple[str, int, float, bool]]] = {}
    for part in store.parts():
        for head in store.heads(part):
            if head.key in finding and head.measurement is not None:
                judged = decide(replace(head, choice="only"), ctx.config.rescoring.gate)
                row = (head.key, head.level or 0, head.measurement.odds or 0.0, not judged.reasons)
                groups.setdefault(finding[head.key], []).append(row)
    return choose(groups)

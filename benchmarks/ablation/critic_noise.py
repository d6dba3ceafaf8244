"""Findings as a worse critic would give them. Wrong hints and wrong steps are in `hintdistill/pipeline/variants.py`.

All of these are pure and seeded by what they act on, so that an arm is the same in every process.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from hintdistill.core.types import Critique, Finding, Trace
from hintdistill.injection.hints import hint_facts, hint_text, seed_of
from hintdistill.pipeline.variants import Found, drawn
from hintdistill.prompts import PromptLibrary, hint_name


def roots(traces: Sequence[Trace], critiques: Mapping[str, Critique]) -> Found:
    """The root findings of each trace, by trace id."""
    return [
        (trace, finding)
        for trace in traces
        for finding in (critiques[trace.id].findings if trace.id in critiques else ())
        if finding.caused_by is None
    ]


def false_alarms(
    found: Found,
    traces: Sequence[Trace],
    wrong: Mapping[str, set[int]],
    library: PromptLibrary,
    share: float,
    salt: str,
) -> Found:
    """The findings as they are, and on `share` of the clean traces a made-up one: some finding's hint above a random step."""
    out = list(found)
    if not found:
        return out
    # a trace that is not in `wrong` was not critiqued, so nobody knows that it is clean
    for trace in (t for t in traces if t.id in wrong and not wrong[t.id] and t.step_indices):
        if not drawn("alarm", salt, trace, 0, share):
            continue
        rng = random.Random(seed_of("false alarm", salt, trace.id))
        source, finding = rng.choice(found)
        text = hint_text(source, finding, library)
        step = rng.randrange(len(trace.step_indices))
        out.append((trace, Finding(step=step, error_class=finding.error_class, hint=text, critic=finding.critic)))
    return out


def other_wording(found: Found, library: PromptLibrary) -> Found:
    """The same findings, each with the next wording of its template: not the one the gate selected on."""
    out: Found = []
    for trace, finding in found:
        facts = hint_facts(trace, finding)
        facts["variant"] = int(facts["variant"]) + 1
        if finding.hint is None and library.has(name := hint_name(finding.error_class)):
            out.append((trace, finding.model_copy(update={"hint": library.render(name, facts)})))
    return out

"""Findings as a worse critic would give them: the controls and the noise of the ablation.

All of these are pure and seeded by what they act on, so that an arm is the same in every process.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from hintdistill.core.types import Critique, Finding, Trace
from hintdistill.injection.hints import hint_facts, hint_text, other_class_hint, seed_of
from hintdistill.prompts import PromptLibrary, hint_name

Found = list[tuple[Trace, Finding]]
"""Root findings with their traces."""


def roots(traces: Sequence[Trace], critiques: Mapping[str, Critique]) -> Found:
    """The root findings of each trace, by trace id."""
    return [
        (trace, finding)
        for trace in traces
        for finding in (critiques[trace.id].findings if trace.id in critiques else ())
        if finding.caused_by is None
    ]


def erring_steps(critiques: Mapping[str, Critique]) -> dict[str, set[int]]:
    """Steps with any finding, by trace id."""
    return {id_: {f.step for f in c.findings} for id_, c in critiques.items()}


def other_hint(trace: Trace, finding: Finding, library: PromptLibrary, salt: str) -> str | None:
    """Another error class's hint about the same step; None where no other template can be filled."""
    return other_class_hint(trace, finding, library, random.Random(seed_of("other hint", salt, trace.id, finding.step)))


def wrong_hints(found: Found, library: PromptLibrary, share: float, salt: str) -> Found:
    """In `share` of the findings, the hint of another error class instead of the right one; dropped where none can be filled,
    because a right hint in a wrong one's place would make the control look better than it is."""
    out: Found = []
    for trace, finding in found:
        if _drawn("hint", salt, trace, finding.step, share):
            text = other_hint(trace, finding, library, salt)
            if text is None:
                continue
            finding = finding.model_copy(update={"hint": text})
        out.append((trace, finding))
    return out


def other_steps(
    found: Found,
    traces: Sequence[Trace],
    wrong: Mapping[str, set[int]],
    library: PromptLibrary,
    share: float,
    salt: str,
) -> Found:
    """In `share` of the findings, the same hint above a step without an error: of the same trace where it has one, else
    of a random trace."""
    free = [(t, k) for t in traces for k in range(len(t.step_indices)) if k not in wrong.get(t.id, set())]
    out: Found = []
    for trace, finding in found:
        if not _drawn("step", salt, trace, finding.step, share):
            out.append((trace, finding))
            continue
        rng = random.Random(seed_of("other step", salt, trace.id, finding.step))
        own = [(t, k) for t, k in free if t.id == trace.id]
        if not own and not free:
            continue
        where, step = rng.choice(own or free)
        text = hint_text(trace, finding, library)
        moved = Finding(step=step, error_class=finding.error_class, hint=text, critic=finding.critic)
        out.append((where, moved))
    return out


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
    for trace in (t for t in traces if not wrong.get(t.id) and t.step_indices):
        if not _drawn("alarm", salt, trace, 0, share):
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


def _drawn(kind: str, salt: str, trace: Trace, step: int, share: float) -> bool:
    return random.Random(seed_of("noise", kind, salt, trace.id, step)).random() < share

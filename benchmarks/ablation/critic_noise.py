"""Make findings worse, as a worse critic would. Wrong hints and random steps are in `hintdistill/pipeline/variants.py`.

`plausible` makes the mistakes that critics do make: the step before or after, a consequence instead of the root, the right step
with a hint that names another legal tool. A mistake that cannot be made of a finding leaves it as it is, so the accuracy of an
arm is counted (`counted`) and not taken from its name. All of these are pure and seeded by what they act on, so that an arm is the
same in every process.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
    """Return the same findings, each with the next wording of its template, on which the gate did not select."""
    out: Found = []
    for trace, finding in found:
        facts = hint_facts(trace, finding)
        facts["variant"] = int(facts["variant"]) + 1
        if finding.hint is None and library.has(name := hint_name(finding.error_class)):
            out.append((trace, finding.model_copy(update={"hint": library.render(name, facts)})))
    return out


# -- mistakes that critics make ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """The parts of a mistake about one finding."""

    trace: Trace
    finding: Finding
    others: Sequence[Finding]
    """Everything found in the trace, consequences included."""
    library: PromptLibrary
    rng: random.Random

    @property
    def free(self) -> list[int]:
        """The student's own steps without a finding."""
        wrong = {f.step for f in self.others}
        return [k for k in self.trace.own_steps if k not in wrong]

    def moved(self, step: int) -> Finding:
        """Return the finding's hint above another step."""
        text = hint_text(self.trace, self.finding, self.library)
        return Finding(step=step, error_class=self.finding.error_class, hint=text, critic=self.finding.critic)


def near_step(scene: Scene) -> Finding | None:
    """Return the same hint one step too early or too late; None if both of these steps err, too, or do not exist."""
    near = [k for k in scene.free if abs(k - scene.finding.step) == 1]
    return scene.moved(scene.rng.choice(near)) if near else None


def consequence(scene: Scene) -> Finding | None:
    """Return a consequence in place of the root: what is recorded as one, else the last step, where the failure shows.

    None if nothing comes after the root.
    """
    caused = [f for f in scene.others if f.caused_by == scene.finding.step]
    if caused:
        return min(caused, key=lambda f: f.step).model_copy(update={"caused_by": None})
    later = [k for k in scene.free if k > scene.finding.step]
    return scene.moved(later[-1]) if later else None


def other_tool(scene: Scene) -> Finding | None:
    """Return the finding with a hint that names another listed tool than its own hint would; None if no other is listed.

    The words are the class's own, with the other tool in its place, so that the student reads such a hint as well as a right one.
    """
    trace, finding, library = scene.trace, scene.finding, scene.library
    facts = hint_facts(trace, finding)
    used = {c.name for c in trace.step(finding.step).tool_calls} | {facts.get("tool"), facts.get("right")}
    others = [name for name in trace.tool_schemas if name not in used]
    if not others:
        return None
    other = scene.rng.choice(others)
    changed = facts | {"tool": other, "tools": [other]}
    if facts.get("right") in trace.tool_schemas:
        changed["right"] = other
    said = [finding.hint] if finding.hint else []
    if not said and library.has(name := hint_name(finding.error_class)):
        said = [library.render(name, changed | {"variant": int(facts["variant"]) + n}) for n in range(8)]
    listed = re.compile("|".join(rf"\b{re.escape(t)}\b" for t in trace.tool_schemas if t != other))
    texts = (listed.sub(other, text) for text in said)
    hint = next((t for t in texts if re.search(rf"\b{re.escape(other)}\b", t)), f"Call {other} in this step.")
    return finding.model_copy(update={"hint": hint})


MISTAKES: dict[str, Callable[[Scene], Finding | None]] = {
    "near": near_step,
    "later": consequence,
    "tool": other_tool,
}
MIXED = "mixed"
"""The kind that draws one of the mistakes for each finding."""


def plausible(
    found: Found, critiques: Mapping[str, Critique], library: PromptLibrary, kind: str, share: float, salt: str
) -> Found:
    """In `share` of the findings, the mistake of this kind; with `mixed`, one that can be made, all as likely.

    A finding of which no such mistake can be made stays right.
    """
    out: Found = []
    for trace, finding in found:
        if drawn(kind, salt, trace, finding.step, share):
            rng = random.Random(seed_of("mistake", kind, salt, trace.id, finding.step, finding.error_class))
            scene = Scene(trace, finding, critiques[trace.id].findings, library, rng)
            makers = rng.sample([*MISTAKES.values()], len(MISTAKES)) if kind == MIXED else [MISTAKES[kind]]
            finding = next((f for make in makers if (f := make(scene)) is not None), finding)
        out.append((trace, finding))
    return out


def missed(found: Found, error_class: str, share: float, salt: str) -> Found:
    """The findings without `share` of those of one class: a critic that does not know this kind of error.

    What it misses counts as right, and may be held in place as an anchor.
    """
    return [
        (t, f)
        for t, f in found
        if f.error_class != error_class or not drawn(f"miss-{error_class}", salt, t, f.step, share)
    ]


def counted(told: Found, true: Found) -> dict[str, int]:
    """Count what a critic `named`, how many of these findings are `right` (step, class and hint), and how many there were to find."""
    known = {(t.id, f.model_dump_json()) for t, f in true}
    return {
        "named": len(told),
        "right": sum((t.id, f.model_dump_json()) in known for t, f in told),
        "to_find": len(true),
    }

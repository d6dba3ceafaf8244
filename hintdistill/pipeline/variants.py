"""Targets of the arms that are variants of a run's own hints: other words, other steps, other places, or no hint at
all.

Every draw depends only on a salt and on the item it concerns, so that an arm is the same in every process. The gate is
off for variants, because it would reject most of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hintdistill.config import RescoreSection
from hintdistill.core.errors import HintdistillError
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key
from hintdistill.core.types import Critique, Finding, Trace, Twin
from hintdistill.critics import Critic, merge
from hintdistill.injection.hints import hint_text, other_class_hint, seed_of
from hintdistill.injection.splice import Injector
from hintdistill.pipeline.context import RunContext
from hintdistill.prompts import PromptLibrary
from hintdistill.rescoring.scorer import AnchorItem, HintItem, Scorer, TwinItem

Found = list[tuple[Trace, Finding]]
"""Root findings with their traces."""
Steps = Sequence[tuple[Trace, int]]
"""Steps with their traces."""


@dataclass(frozen=True)
class Material:
    """Hold the inputs of variants: critiqued traces, and the findings among them that an arm uses."""

    ctx: RunContext
    traces: Sequence[Trace]
    critiques: Mapping[str, Critique]
    """The critiques by trace id."""
    found: Found
    salt: str
    """The seed of every draw."""

    @property
    def wrong(self) -> dict[str, set[int]]:
        """Return the steps with a finding that the arm uses, by trace id."""
        return erring_steps(self.critiques)


# -- findings ----------------------------------------------------------------------------------------------------------


def erring_steps(critiques: Mapping[str, Critique]) -> dict[str, set[int]]:
    """Return the steps with any finding, by trace id."""
    return {id_: {f.step for f in c.findings} for id_, c in critiques.items()}


def other_hint(trace: Trace, finding: Finding, library: PromptLibrary, salt: str) -> str | None:
    """Return another error class's hint about the same step; None if no other template can be filled."""
    return other_class_hint(trace, finding, library, random.Random(seed_of("other hint", salt, trace.id, finding.step)))


def wrong_hints(found: Found, library: PromptLibrary, share: float, salt: str) -> Found:
    """Replace the right hint by the hint of another error class in `share` of the findings.

    Findings for which no other template can be filled are dropped, because a right hint in place of a wrong one would
    make the control look better than it is.
    """
    out: Found = []
    for trace, finding in found:
        if drawn("hint", salt, trace, finding.step, share):
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
    """Move the same hint above a step without an error in `share` of the findings: a step of the same trace, or else of
    any other trace.

    Args:
        wrong: steps with a finding by trace id; a trace that is missing here was not critiqued, and none of its steps
            is used.
    """
    free = [
        (t, k)
        for t in traces
        for k in range(len(t.step_indices))
        if t.id in wrong and k not in wrong[t.id] and k in t.own_steps
    ]
    out: Found = []
    for trace, finding in found:
        if not drawn("step", salt, trace, finding.step, share):
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


def drawn(kind: str, salt: str, trace: Trace, step: int, share: float) -> bool:
    """Return whether this step is in the `share` that is changed."""
    return random.Random(seed_of("noise", kind, salt, trace.id, step)).random() < share


def judge(critics: Sequence[Critic]) -> Callable[[Sequence[Trace]], dict[str, Critique]]:
    """Return the critics as one function from traces to critiques by trace id; traces that no critic could read are
    absent."""

    def ask(traces: Sequence[Trace]) -> dict[str, Critique]:
        said: dict[str, list[Critique]] = {}
        for critic in critics:
            for trace, outcome in critic.critique(traces):
                if isinstance(outcome, Critique):
                    said.setdefault(trace.id, []).append(outcome)
        return {id_: merge(id_, critiques) for id_, critiques in said.items()}

    return ask


# -- targets -----------------------------------------------------------------------------------------------------------


def scorer_of(ctx: RunContext) -> Scorer:
    """Return the teacher's scorer with the gate off, because these targets are not judged."""
    config = ctx.config.rescore
    ungated = RescoreSection.model_validate(
        config.model_dump() | {"gate": config.gate.model_dump() | {"enabled": False}}
    )
    return Scorer(ctx.engine(ctx.teacher_folder), ctx.renderer, ungated)


def hinted(data: Material, found: Found, name: str, *, placebo: bool = False) -> list[Target]:
    """Return the targets of these findings' hints, or of a generic placebo in place of each hint; their keys begin with
    `name`."""
    section = data.ctx.config.inject
    if placebo:
        section = section.model_copy(update={"hint": "placebo"})
    injector = Injector(data.ctx.renderer, data.ctx.library, section, placebos={})
    items, problems = [], list[str]()
    for trace, finding in found:
        try:
            injection = injector.inject(trace, finding)
        except HintdistillError as error:
            problems.append(error.message)
            continue
        # two findings may have come to stand at one step
        told = content_key(finding.model_dump(mode="json"))[:8]
        items.append(HintItem(f"{name}:{trace.id}:{finding.step}:{told}", injection, "train"))
    return _scored(data.ctx, name, items, scorer_of(data.ctx).score, problems)


def anchors(data: Material, per_trace: int, erring_traces: bool = True) -> list[Target]:
    """Return targets of steps without a finding, a few per trace, held to the initial policy."""
    chosen = []
    for trace in data.traces:
        wrong = data.wrong.get(trace.id, set())
        clean = [k for k in trace.own_steps if k not in wrong]
        if trace.id not in data.critiques or (wrong and not erring_traces):
            continue
        rng = random.Random(seed_of("anchor", data.salt, trace.id))
        chosen += [(trace, k) for k in rng.sample(clean, min(per_trace, len(clean)))]
    return plain_targets(data.ctx, chosen, "anchor")


def plain_targets(ctx: RunContext, steps: Steps, name: str) -> list[Target]:
    """Return targets of steps without a hint, held to the initial policy."""
    items, problems = [], list[str]()
    for trace, k in steps:
        try:
            rendered = ctx.renderer.step(trace, k)
        except HintdistillError as error:
            problems.append(error.message)
            continue
        items.append(AnchorItem(f"{name}:{trace.id}:{k}", trace.id, k, rendered, "train"))
    return _scored(ctx, name, items, scorer_of(ctx).anchors, problems)


def twin_targets(ctx: RunContext, twins: Sequence[Twin], name: str) -> list[Target]:
    """Return targets of twins, held to the initial policy; their keys begin with `name`.

    Twins are not judged: each is accepted, whether or not the policy would take the step there, and the effect of its
    edit is unknown.
    """
    scorer = Scorer(ctx.engine(ctx.initial_folder), ctx.renderer, ctx.config.rescore)
    items = []
    for n, twin in enumerate(twins):
        told = content_key(twin.model_dump(mode="json"))[:8]
        items.append(TwinItem(f"{name}:{twin.trace_id}:{twin.finding.step}:{told}:{n}", twin, "train", ""))
    return _scored(ctx, name, items, scorer.twins_alone, [])


def sft(ctx: RunContext, steps: Steps) -> list[Target]:
    """Return targets for cross-entropy on steps as sampled: the forward KL from the distribution that is certain of
    each token."""
    return [as_sampled(t) for t in plain_targets(ctx, steps, "sft")]


def as_sampled(target: Target) -> Target:
    """Return the target whose teacher is certain of the sampled tokens; the forward KL from it is cross-entropy."""
    hit = target.support_ids == target.step_ids[:, None]
    if not hit.any(1).all():
        raise ValueError("the sampled id must be in the support of every position")
    return replace(
        target,
        kind="hint",
        accepted=True,
        teacher_logprobs=np.where(hit, np.float32(0), np.float32(-np.inf)),
        teacher_tail=np.full(len(target.step_ids), -np.inf, np.float32),
        teacher_sampled=np.zeros(len(target.step_ids), np.float32),
    )


def full_trace(data: Material, erring_steps_only: bool = False) -> list[Target]:
    """Return every step of every erring trace (or only those with a finding), with the trace's hints in the system
    prompt."""
    by_trace: dict[str, list[Finding]] = {}
    for trace, finding in data.found:
        by_trace.setdefault(trace.id, []).append(finding)
    placed = data.ctx.config.inject.model_copy(update={"placements": ("system_prompt",)})
    injector = Injector(data.ctx.renderer, data.ctx.library, placed, placebos={})
    items, problems = [], list[str]()
    for trace in data.traces:
        findings = by_trace.get(trace.id, [])
        if not findings:
            continue
        hint = " ".join(dict.fromkeys(hint_text(trace, f, data.ctx.library) for f in findings))
        for k in trace.own_steps:
            own = next((f for f in findings if f.step == k), None)
            if own is None and erring_steps_only:
                continue
            finding = own or Finding(step=k, error_class="none", hint=hint)
            try:
                injection = injector.inject(trace, finding.model_copy(update={"hint": hint}))
            except HintdistillError as error:
                problems.append(error.message)
                continue
            items.append(HintItem(f"full:{trace.id}:{k}", injection, "train"))
    return _scored(data.ctx, "full_trace", items, scorer_of(data.ctx).score, problems)


def scored(ctx: RunContext, name: str, items: list[HintItem]) -> list[Target]:
    """Return the targets of injections made elsewhere, with the gate off; `name` is used in a warning if one is left
    out."""
    return _scored(ctx, name, items, scorer_of(ctx).score, [])


def _scored(
    ctx: RunContext, name: str, items: list[Any], score: Callable[[Any], list[Target]], problems: list[str]
) -> list[Target]:
    """Score the items that fit into the model and have an allowed fidelity, in parts; a warning counts those left
    out."""
    longest = ctx.engine(ctx.teacher_folder).max_length
    fitting = [i for i in items if _length(i) <= longest]
    problems += [f"{name}: longer than the model's context"] * (len(items) - len(fitting))
    size = ctx.config.rescore.part_rows
    targets = [t for at in range(0, len(fitting), size) for t in score(fitting[at : at + size])]
    usable = [t for t in targets if t.fidelity in ctx.config.train.fidelity]
    problems += [f"{name}: the fidelity of a step is not in train.fidelity"] * (len(targets) - len(usable))
    for message in list(dict.fromkeys(problems))[:3]:
        ctx.console.warn(f"{name}: {message}".replace(f"{name}: {name}:", f"{name}:"))
    if len(set(problems)) > 3:
        ctx.console.warn(f"{name}: {len(problems)} steps left out")
    return usable


def _length(item: HintItem | AnchorItem | TwinItem) -> int:
    if isinstance(item, TwinItem):
        return len(item.twin.plain_ids)
    if isinstance(item, HintItem):
        return len(item.injection.hinted_ids)
    return len(item.rendered.context_ids) + len(item.rendered.step_ids)

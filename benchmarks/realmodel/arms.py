"""The arms of benchmarks/real.py: from a seed's shared targets to the rows that are trained on.

| arm | rows |
|---|---|
| targeted, targeted_twins | the hint above the erring step, gate on; with twins beside it, of the makers that the announcement knew |
| targeted_stop_twins | with twins of all makers, so of `stopped_early` too; up to three edits of a finding |
| targeted_stop_hold | the same, and hold traces: the untrained model on the split `stop`, where stopping is right |
| placebo, wrong_hint | a generic hint, another class's hint in its place; gate off |
| whole_trace | all hints of a trace in its system prompt, loss on every step of it; gate off |
| decoded8 | as `targeted`, but from the decision token on the hinted model says `DECODED` tokens, and those are scored |
| sft_corrected | cross-entropy on what the hinted model says in place of erring steps, **filtered**: the checker finds nothing in it |
| sft_corrected_unfiltered | the same without the checker; what is cut or cannot be parsed is left out of both |
| sft_gold | cross-entropy on the checker's right step |
| dpo | pairs of a corrected step (of `sft_corrected`) and the erring one, TRL's loss; no anchors, its reference is the initial model |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.ablation.arms import RoundData, suite_of
from benchmarks.realmodel.dpo import Pair
from hintdistill.config import TrainSection
from hintdistill.core.errors import ConfigError, HintdistillError
from hintdistill.core.scores import Target
from hintdistill.core.types import Finding, Injection, Trace
from hintdistill.injection.hints import hint_text, seed_of
from hintdistill.injection.splice import Injector
from hintdistill.pipeline import variants
from hintdistill.pipeline.arms import changed, cross_entropy
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.corrections import corrected_step, corrections
from hintdistill.rescoring.scorer import HintItem
from hintdistill.rollouts.measure import options_of, played_from
from hintdistill.rollouts.sampling import Sampler

PLAIN: Mapping[str, Any] = {"save": "adapter", "watch": {"every": 0}}
CROSS_ENTROPY = ("sft_corrected", "sft_corrected_unfiltered", "sft_gold")
TWINNED = ("targeted_twins", "targeted_stop_twins", "targeted_stop_hold")
LATER = ("stopped_early", "premature_finish")
"""Error classes whose makers are younger than the announcement; `targeted_twins` has none of their twins."""
MORE = ("targeted_stop_twins", "targeted_stop_hold")
"""Arms whose rows come from the run folder of `shared_twins`."""
HELD: Mapping[str, Any] = {"twins": {"per_finding": 3}, "hold": {"split": "stop", "limit": 40}}
"""The `train` settings by which that run folder holds more than the shared one."""
DECODED = 8
"""Tokens that the hinted model says before it scores."""


def targets_of(arm: str, data: RoundData, targets: Sequence[Target]) -> list[Target]:
    """Return the targets from which an arm draws its rows, anchors included; `targets` are those of the shared run. Raises ConfigError."""
    ctx = data.ctx
    own: Sequence[Target]
    if arm == "targeted" or arm in TWINNED:
        own = [t for t in targets if t.kind == "hint" or _held_by(arm, t)]
    elif arm == "placebo":
        own = variants.hinted(data, data.found, arm, placebo=True)
    elif arm == "wrong_hint":
        own = variants.hinted(data, variants.wrong_hints(data.found, ctx.library, 1.0, data.salt), arm)
    elif arm == "whole_trace":
        # every step of an erring trace has a loss of its own, so none of them is held
        return [*whole_trace(data), *data.anchors(erring_traces=False)]
    elif arm == "decoded8":
        own = decoded(data, targets)
    elif arm in ("sft_corrected", "sft_corrected_unfiltered"):
        own = variants.sft(ctx, corrections(ctx, data.found, data.salt, judged=arm == "sft_corrected").kept)
    elif arm == "sft_gold":
        own = variants.sft(ctx, gold_steps(data))
    else:
        raise ConfigError(f"no arm {arm!r}")
    return [*own, *data.anchors()]


def _held_by(arm: str, target: Target) -> bool:
    """Whether an arm trains on a twin or a hold trace."""
    if target.kind == "twin":
        return arm in TWINNED and (arm in MORE or target.error_class not in LATER)
    return target.kind == "hold" and arm == "targeted_stop_hold"


def section_of(arm: str, train: TrainSection, equal: Mapping[str, Any], change: Mapping[str, Any]) -> TrainSection:
    """The settings that an arm trains with: what is `equal` in all arms, then its own `change`."""
    held: dict[str, Any] = {"twins": {"per_finding": 3 if arm in MORE else 1, "weight": 1.0}} if arm in TWINNED else {}
    if arm == "targeted_stop_hold":
        held["hold"] = {**HELD["hold"], "weight": 1.0}
    base = changed(train.model_dump(mode="json"), {**equal, **PLAIN, **held})
    section = TrainSection.model_validate(changed(base, change))
    if arm in CROSS_ENTROPY:
        section = TrainSection.model_validate(changed(section.model_dump(mode="json"), cross_entropy(section)))
    return section


def _sampler(ctx: RunContext, salt: str, max_new_tokens: int | None = None) -> Sampler:
    """Samples single steps from the student as the run starts, as episodes are sampled, or of so many tokens at most."""
    section = ctx.config.rollout
    options = options_of(section, played_from(section), seed_of(salt) % 2**31)
    if max_new_tokens is not None:
        options = replace(options, max_new_tokens=max_new_tokens)
    return Sampler(ctx.engine(ctx.model_folder), ctx.renderer, options)


# -- cross-entropy on the right step -------------------------------------------------------------------------------------


def gold_steps(data: RoundData) -> list[tuple[Trace, int]]:
    """Each erring step replaced by the checker's right one, as the model would have written it."""
    ctx, suite = data.ctx, suite_of(data.ctx)
    sampler = _sampler(ctx, data.salt)
    end = ctx.renderer.tokenizer.eos_token_id
    out = []
    for trace, finding in data.found:
        context = ctx.renderer.step(trace, finding.step).context_ids
        ids = [*ctx.renderer.encode(suite.gold(finding)), end]
        right, why = corrected_step(sampler, trace, finding.step, context, ids)
        if right is None:
            raise ConfigError(f"{trace.id}, step {finding.step}: the checker's right step is {why}")
        out.append((right, finding.step))
    return out


def pairs_of(data: RoundData) -> list[Pair]:
    """Corrected steps that the checker finds nothing in, each with the erring one that it replaces."""
    ctx = data.ctx
    out = []
    wrong = {(t.id, f.step): t for t, f in data.found}
    for corrected, step in corrections(ctx, data.found, data.salt).kept:
        erring = ctx.renderer.step(wrong[corrected.id, step], step)
        chosen = corrected.step(step).token_ids
        assert chosen is not None
        out.append(Pair(tuple(erring.context_ids), tuple(chosen), tuple(erring.step_ids)))
    return out


# -- the hints of a whole trace --------------------------------------------------------------------------------------------


def whole_trace(data: RoundData) -> list[Target]:
    """Every step of every erring trace, all hints of the trace in its system prompt.

    The model's template prints no calls, so `variants.full_trace`, which asks it for every context with the hint in it, would
    leave out all steps below a call. The place is found once a trace, above its first step, whose context every later one begins with.
    """
    ctx, items = data.ctx, list[HintItem]()
    in_system = ctx.config.inject.model_copy(update={"placements": ("system_prompt",)})
    first_of, injector = (Injector(ctx.renderer, ctx.library, c, placebos={}) for c in (in_system, ctx.config.inject))
    for trace in data.traces:
        findings = [f for t, f in data.found if t.id == trace.id]
        if not findings:
            continue
        hint = " ".join(dict.fromkeys(hint_text(trace, f, ctx.library) for f in findings))
        none = Finding(step=trace.own_steps[0], error_class="none", hint=hint)
        place = first_of.inject(trace, none)
        for k in trace.own_steps:
            own = next((f for f in findings if f.step == k), none)
            made = injector.inject(trace, (own or none).model_copy(update={"hint": hint, "step": k}))
            if made.context_ids[: len(place.context_ids)] != place.context_ids:
                raise ConfigError(f"{trace.id}, step {k}: its context does not begin with that of the first step")
            moved = {"insert_at": place.insert_at, "block_ids": place.block_ids, "placement": "system_prompt"}
            items.append(HintItem(f"full:{trace.id}:{k}", made.model_copy(update={**moved, "role": None}), "train"))
    return variants.scored(ctx, "whole_trace", items)


# -- some tokens decoded ---------------------------------------------------------------------------------------------------


def decoded(data: RoundData, targets: Sequence[Target]) -> list[Target]:
    """Accepted hints, each step from its decision token on replaced by `DECODED` tokens that the hinted model says there."""
    ctx = data.ctx
    at = {
        (t.trace_id, t.step): t.measurement.position
        for t in targets
        if t.kind == "hint" and t.accepted and t.measurement is not None and t.measurement.position is not None
    }
    injector = Injector(ctx.renderer, ctx.library, ctx.config.inject, placebos={})
    asked: list[tuple[Injection, int]] = []
    for trace, finding in data.found:
        position = at.get((trace.id, finding.step))
        injection = None if position is None else _injected(injector, trace, finding)
        if injection is not None and position is not None:
            asked.append((injection, position))
    sampler = _sampler(ctx, data.salt, max_new_tokens=DECODED)
    items = []
    for start in range(0, len(asked), sampler.options.batch_size):
        batch = asked[start : start + sampler.options.batch_size]
        contexts = [i.hinted_context_ids + i.step_ids[:p] for i, p in batch]
        for (injection, p), ids in zip(batch, sampler.generate(contexts, seed_of(data.salt, start)), strict=True):
            if ids:
                key = f"decoded8:{injection.trace_id}:{injection.finding.step}"
                items.append(HintItem(key, _with_step(injection, p, ids), "train"))
    return variants.scored(ctx, "decoded8", items)


def _injected(injector: Injector, trace: Trace, finding: Finding) -> Injection | None:
    """Return None if the hint has no place, as when the hint itself was scored."""
    try:
        return injector.inject(trace, finding)
    except HintdistillError:
        return None


def _with_step(injection: Injection, position: int, ids: Sequence[int]) -> Injection:
    """The injection whose step goes on with these ids from a position on."""
    step = injection.step_ids[:position] + tuple(int(i) for i in np.asarray(ids))
    own: dict[str, Any] = {"step_ids": step, "span": (position, len(step)), "legal": {}, "recorded_logprobs": None}
    return injection.model_copy(update=own)

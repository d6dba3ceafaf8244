"""Correct steps without an environment: the hinted model decodes each erring step again.

The hint is above the step during decoding; the corrected step is then recorded in its original context without the
hint. A step is left out if it was cut, cannot be parsed, or is rejected by a critic that asks no model (`rules`,
`checker`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hintdistill.core.errors import HintdistillError
from hintdistill.core.types import Finding, Trace
from hintdistill.critics.build import make_critics
from hintdistill.injection.hints import seed_of
from hintdistill.injection.splice import Injector
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.variants import judge
from hintdistill.rollouts.measure import options_of, played_from
from hintdistill.rollouts.parsing import PARSERS
from hintdistill.rollouts.sampling import Sampler

FREE = ("rules", "checker")
"""Critics that ask no model. `recorded` is not one of them, because its findings concern the original steps, not
corrected ones."""
MARKUP = "<tool_call>"
"""Markup that remains in the content of a message whose calls could not be parsed."""


@dataclass(frozen=True)
class Corrections:
    """Hold the results of decoding under the hints."""

    kept: tuple[tuple[Trace, int], ...]
    """Each trace up to and including its corrected step, with that step's number."""
    counts: dict[str, int]
    """`asked`, `no_place` (the hint could not be spliced), `too_long`, `cut`, `unreadable`, `objected`, `kept`."""
    critics: tuple[str, ...]
    """The critics that judged the steps; empty if every critic in use asks a model."""


def corrections(ctx: RunContext, found: Sequence[tuple[Trace, Finding]], salt: str, judged: bool = True) -> Corrections:
    """Sample one step under each finding's hint, at `rollout.sample.temperature`, and keep the steps without
    objections.

    Args:
        judged: ask the critics that need no model; otherwise every step that can be parsed is kept.
    """
    counts = Counter({"asked": len(found)})
    section = ctx.config.rollout
    options = options_of(section, played_from(section), seed_of(salt) % 2**31)
    sampler = Sampler(ctx.engine(ctx.model_folder), ctx.renderer, options)
    injector = Injector(ctx.renderer, ctx.library, ctx.config.inject, placebos={})
    asked = []
    for trace, finding in found:
        try:
            injection = injector.inject(trace, finding)
        except HintdistillError:
            counts["no_place"] += 1
            continue
        if len(injection.hinted_context_ids) + options.max_new_tokens > sampler.generator.max_length:
            counts["too_long"] += 1
            continue
        asked.append((trace, finding.step, injection))
    sampled: list[tuple[Trace, int]] = []
    for at in range(0, len(asked), options.batch_size):
        batch = asked[at : at + options.batch_size]
        steps = sampler.generate([i.hinted_context_ids for _, _, i in batch], seed_of(options.seed, at))
        for (trace, step, injection), ids in zip(batch, steps, strict=True):
            corrected, why = corrected_step(sampler, trace, step, injection.context_ids, ids)
            counts[why] += 1
            if corrected is not None:
                sampled.append((corrected, step))
    kept, critics = _unopposed(ctx, sampled) if judged else (sampled, ())
    counts["objected"] = len(sampled) - len(kept)
    counts["kept"] = len(kept)
    return Corrections(tuple(kept), {k: v for k, v in counts.items() if k != "readable"}, critics)


def corrected_step(
    sampler: Sampler, trace: Trace, step: int, context: Sequence[int], ids: Sequence[int]
) -> tuple[Trace | None, str]:
    """Return the trace that ends with the sampled step, or None, and the outcome as a key of `counts`."""
    if not ids or ids[-1] not in sampler.stop:
        return None, "cut"
    message = PARSERS[sampler.options.parser](sampler.renderer.decode(ids[:-1]))
    if MARKUP in (message.content or "") or not (message.content or message.tool_calls):
        return None, "unreadable"
    recorded = {"prompt_token_ids": tuple(context), "token_ids": tuple(ids), "raw_text": None}
    messages = (*trace.before(step), message.model_copy(update=recorded))
    return Trace(id=trace.id, messages=messages, tools=trace.tools, task_id=trace.task_id), "readable"


def _unopposed(ctx: RunContext, steps: Sequence[tuple[Trace, int]]) -> tuple[list[tuple[Trace, int]], tuple[str, ...]]:
    free = tuple(c for c in ctx.config.critic.use if c in FREE)
    if not free or not steps:
        return list(steps), free
    section = ctx.config.critic.model_copy(update={"use": free})
    ask = judge(make_critics(section, ctx.config.run, ctx.library, None))
    kept = []
    for number, (trace, step) in enumerate(steps):
        # one trace may have several corrected steps, each of them the end of a trace of its own
        named = trace.model_copy(update={"id": f"{trace.id}#{number}"})
        critique = ask([named]).get(named.id)
        if critique is not None and not any(f.step == step for f in critique.findings):
            kept.append((trace, step))
    return kept, free

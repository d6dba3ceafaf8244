"""The calls an agent makes: messages in, what went wrong and what a hint would have done out.

In process (`load_engine`) or against a running server (`connect_engine`); `Session` keeps what it has read of a growing
conversation. Engines take calls from several threads; the async twins run in a thread, so that an agent's loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hintdistill.agents.conversation import (
    Conversation,
    MessageLike,
    conversation,
    step_of,
    text_of_type,
    texts_of,
)
from hintdistill.agents.diagnosis import Diagnosed, Diagnosis, diagnose_trace
from hintdistill.agents.loaded import LoadedModel, connect_engine, load_engine, require_engine
from hintdistill.agents.memory import HintMemory, Remembered
from hintdistill.agents.panel import Panel, load_critic
from hintdistill.agents.ranking import RankedHint, given_finding, inject_all, order, require_heard, targets_of
from hintdistill.agents.session import Session
from hintdistill.config import CriticSection, InjectSection, RescoreSection
from hintdistill.core.errors import ArgumentError, QuoteNotFoundError, SpliceError
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key
from hintdistill.core.types import Finding, Placement, Twin, TwinEdit
from hintdistill.critics import Critic
from hintdistill.injection.quotes import locate, tokens_in
from hintdistill.injection.splice import Injector
from hintdistill.injection.twins import TwinBuilder, located
from hintdistill.prompts import shipped_library
from hintdistill.rescoring.scorer import Scorer

__all__ = [
    "Conversation",
    "Diagnosed",
    "Diagnosis",
    "HintMemory",
    "LoadedModel",
    "MessageLike",
    "Panel",
    "RankedHint",
    "Remembered",
    "Session",
    "connect_engine",
    "diagnose",
    "diagnose_async",
    "load_critic",
    "load_engine",
    "rank_hints",
    "rank_hints_async",
    "rescore",
    "rescore_async",
    "twin",
]

CANDIDATES = InjectSection(candidates=4)
"""What `diagnose` tries unless it is told: every kind of hint that a finding has."""


def diagnose(
    messages: Conversation,
    *,
    engine: LoadedModel,
    tools: Sequence[Any] | None = None,
    critic: str | CriticSection | Critic | Panel | Sequence[Finding] = "rules",
    step: int | None = None,
    twins: bool = True,
    inject: InjectSection = CANDIDATES,
    config: RescoreSection = RescoreSection(),
) -> Diagnosis:
    """Find what went wrong in a conversation, and the hint that would have prevented it.

    The critic reads the conversation; each finding gets its candidates, which are spliced in above its step, scored with their
    placebos in one call of the engine, and judged by the gate. Nothing is decoded (unless the critic is an LLM).

    Args:
        messages: the conversation: chat messages, Responses items or Anthropic messages, as mappings, `Message`s or objects with
            `model_dump`; or a whole request, or a `Trace`.
        engine: from `load_engine`, `connect_engine` or `Session`.
        tools: schemas of the tools the agent had.
        critic: a critic's name, a `CriticSection`, `load_critic(…)`, an object of one's own, or findings that are known already.
        step: only findings at this step (from 0; negative numbers count from the end); None for all.
        twins: whether the smallest change of the context is looked for in which the step would be right.
        inject: placements, roles, candidates.
        config: `top_k`, `placebos`, `gate`.

    Returns:
        The diagnosis, best finding first.

    Raises:
        ArgumentError: an argument has a wrong type.
        TraceError: the messages are malformed or hold no step of the student.
        ContextLengthError: a step is beyond the model's context.
        HintdistillError: no critic could read the conversation.
    """
    require_heard(require_engine(engine), config)
    trace = conversation(messages, tools)
    last = step_of(trace, step)
    panel = load_critic(critic, str(engine.folder) if engine.folder else None)
    wanted = None if step is None else last
    return diagnose_trace(trace, wanted, engine, panel, inject=inject, config=config, twins=twins)


def rescore(
    messages: Conversation,
    *,
    hint: str | None,
    engine: LoadedModel,
    step: int | None = None,
    quote: str | None = None,
    tools: Sequence[Any] | None = None,
    placement: Placement = "message",
    config: RescoreSection = RescoreSection(),
) -> Target:
    """Return what `hint`, put right above a step, would have done to it. Every token is read once, nothing is decoded.

    Args:
        messages: a conversation that contains the step, as in `diagnose`; later messages are ignored.
        hint: the hint's words; None inserts nothing, and the hint effect is exactly zero.
        engine: from `load_engine`, `connect_engine` or `Session`.
        step: which assistant message, counted from 0 over assistant messages only; negative numbers count from the end; None is
            the last one that is the student's own.
        quote: the wrong words of the step, if they are known.
        tools: schemas of the tools the agent had.
        placement: a message of its own above the step, the end of the last observation, the system prompt, or inside
            the assistant turn right before the quote (the target then begins at the quote).
        config: `top_k`, `placebos`, `gate`.

    Returns:
        The target: `hint_effect` [T] in nats, `decision`, `specificity`, `legal_mass_gain`, `shifts()`, and the
        distributions themselves.

    Raises:
        ArgumentError: an argument has a wrong type.
        TraceError: the messages are malformed or hold no such step.
        TemplateError, SpliceError: the chat template has no exact place for the hint, the quote is not in the step, or
            the hint tokenises to nothing.
        ConfigError: `config` has a key that this call does not act on.
        ContextLengthError: the step is beyond the model's context.
        ScoreError: a log-probability is missing or not finite.
    """
    text_of_type("hint", hint, optional=True)
    if hint is not None:
        return rank_hints(
            messages,
            step=step,
            hints=(hint,),
            engine=engine,
            quote=quote,
            tools=tools,
            placement=placement,
            config=config,
        )[0].target
    text_of_type("quote", quote, optional=True)
    require_heard(require_engine(engine), config, hinted=False)
    trace = conversation(messages, tools)
    at = step_of(trace, step)
    with engine.turn:
        with engine.lock:
            rendered = engine.renderer.step(trace, at)
        key = content_key("call", rendered.context_ids, rendered.step_ids, engine.engine.key)
        return Scorer(engine.engine, engine.renderer, config).unhinted(key, trace.id, at, rendered)


def rank_hints(
    messages: Conversation,
    *,
    hints: Sequence[str],
    engine: LoadedModel,
    step: int | None = None,
    quote: str | None = None,
    tools: Sequence[Any] | None = None,
    placement: Placement = "message",
    config: RescoreSection = RescoreSection(),
) -> list[RankedHint]:
    """Return several hints for one step, best first, in one call of the engine: what they share is read once.

    Accepted hints come first (see `rescoring.gate.judge`), then those that the gate rejects, last those that make the error
    more likely; within each, the one that raises the odds of another continuation most. Arguments and errors are those of `rescore`.
    """
    words = texts_of("hints", hints)
    text_of_type("quote", quote, optional=True)
    require_heard(require_engine(engine), config)
    trace = conversation(messages, tools)
    at = step_of(trace, step)
    for hint in words:
        if not hint.strip():
            raise SpliceError(
                f"the hint {hint!r} tokenises to nothing", hint="hint=None scores the step without a hint"
            )
    injector = Injector(engine.renderer, shipped_library(), InjectSection(placements=(placement,)), config.placebos)
    with engine.turn:
        injections = inject_all(engine, injector, trace, [given_finding(at, quote, hint) for hint in words])
        targets, _ = targets_of(engine, injections, config)
    return order([RankedHint(hint, target) for hint, target in zip(words, targets, strict=True)])


async def diagnose_async(messages: Conversation, **kwargs: Any) -> Diagnosis:
    """`diagnose` in a thread, for an agent's event loop; the arguments are the same."""
    return await asyncio.to_thread(diagnose, messages, **kwargs)


async def rescore_async(messages: Conversation, **kwargs: Any) -> Target:
    """`rescore` in a thread, for an agent's event loop; the arguments are the same."""
    return await asyncio.to_thread(rescore, messages, **kwargs)


async def rank_hints_async(messages: Conversation, **kwargs: Any) -> list[RankedHint]:
    """`rank_hints` in a thread, for an agent's event loop; the arguments are the same."""
    return await asyncio.to_thread(rank_hints, messages, **kwargs)


def twin(
    messages: Conversation,
    *,
    edit: TwinEdit | Sequence[tuple[str, str]],
    engine: LoadedModel,
    step: int | None = None,
    quote: str | None = None,
    tools: Sequence[Any] | None = None,
    state_changing: bool = False,
) -> Twin:
    """Return the twin of a step: the same step in the context that an edit makes of its own. Nothing is computed with the weights.

    Args:
        messages: a conversation that contains the step, as in `diagnose`; later messages are ignored.
        edit: a `TwinEdit`, or pairs of words and what is in their place; each pair's words must stand exactly once in the
            messages of others above the step and the tool schemas (their JSON).
        engine: from `load_engine` or `connect_engine`; only its tokenizer and chat template are used.
        step: as in `rescore`.
        quote: the words of the step that are wrong without the edit.
        tools: schemas of the tools the agent had.
        state_changing: allow it for a step that calls a tool which changes something, or may.

    Raises:
        ArgumentError: an argument has a wrong type.
        TraceError: the messages are malformed or hold no such step.
        TwinError: the edit makes no twin; its `reason` says why, see docs/twins.md.
        QuoteNotFoundError: the quote is not in the step.
        TemplateError, SpliceError: the chat template cannot render the step.
    """
    from hintdistill.pipeline.twins import Making, judge

    require_engine(engine)
    text_of_type("quote", quote, optional=True)
    trace = conversation(messages, tools)
    at = step_of(trace, step)
    if not isinstance(edit, TwinEdit):
        if isinstance(edit, str) or not all(
            isinstance(p, Sequence) and not isinstance(p, str) and len(p) == 2 for p in edit
        ):
            raise ArgumentError("`edit` is neither a TwinEdit nor a list of pairs of words")
        pairs = tuple(located(trace, at, old, new) for old, new in edit)
        edit = TwinEdit(kind="given", replacements=pairs, maker="caller")
    finding = given_finding(at, quote)
    with engine.lock:
        builder = TwinBuilder(engine.renderer)
        site = builder.site(trace, at)
        found = locate(finding, site.text, trace.step(at)) if quote else None
        span = tokens_in(found[0], site.spans) if found else (0, len(site.rendered.step_ids))
        if span is None or (quote and found is None):
            raise QuoteNotFoundError(f"the quote {str(quote)[:60]!r} is nowhere in step {at}")
        return Making(builder, judge(), 1, state_changing, 0).twin(trace, finding, edit, span)

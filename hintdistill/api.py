"""The calls an agent makes: it passes in messages and gets back the error, and the effect that a hint would have had.

Calls run in this process (`load_engine`) or against a running server (`connect_engine`). `Session` keeps the part of a
growing conversation that it has already read. Engines accept calls from several threads. The async variants run in a
thread, so that an agent's event loop is not blocked.
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
"""The candidates that `diagnose` tries by default: every kind of hint that a finding has."""


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

    The critic reads the conversation. The candidates of each finding are spliced in above its step, scored together
    with their placebos in one engine call, and judged by the gate. Nothing is decoded (unless the critic is an LLM).

    Args:
        messages: the conversation as chat messages, Responses items or Anthropic messages (mappings, `Message`s or
            objects with `model_dump`), or a whole request, or a `Trace`.
        engine: from `load_engine`, `connect_engine` or `Session`.
        tools: schemas of the tools the agent had.
        critic: a critic's name, a `CriticSection`, `load_critic(…)`, an object of your own, or findings that are
            already known.
        step: return only findings at this step (counted from 0; negative numbers count from the end); None returns all.
        twins: whether to look for the smallest change of the context that would make the step right.
        inject: the placements, roles and candidates to use.
        config: sets `top_k`, `placebos` and `gate`.

    Returns:
        The diagnosis, best finding first.

    Raises:
        ArgumentError: an argument has a wrong type.
        TraceError: the messages are malformed or contain no step of the student.
        ContextLengthError: a step does not fit into the model's context.
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
    """Return the effect that `hint` would have had on a step if it had been placed right above it. Every token is read
    once; nothing is decoded.

    Args:
        messages: a conversation that contains the step, as in `diagnose`; later messages are ignored.
        hint: the text of the hint; with None nothing is inserted, and the hint effect is exactly zero.
        engine: from `load_engine`, `connect_engine` or `Session`.
        step: which assistant message, counted from 0 over assistant messages only; negative numbers count from the end;
            None is the last message that the student wrote.
        quote: the erroneous words of the step, if they are known.
        tools: schemas of the tools the agent had.
        placement: a message of its own above the step, the end of the last observation, the system prompt, or inside
            the assistant turn right before the quote (the target then begins at the quote).
        config: sets `top_k`, `placebos` and `gate`.

    Returns:
        The target: `hint_effect` [T] in nats, `decision`, `specificity`, `legal_mass_gain`, `shifts()`, and the
        distributions themselves.

    Raises:
        ArgumentError: an argument has a wrong type.
        TraceError: the messages are malformed or contain no such step.
        TemplateError, SpliceError: the chat template has no exact place for the hint, the quote is not in the step, or
            the hint tokenises to nothing.
        ConfigError: `config` sets a key that has no effect on this call.
        ContextLengthError: the step does not fit into the model's context.
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
    """Return several hints for one step, best first. One engine call scores them all, and reads their shared prefix
    once.

    Accepted hints come first (see `rescoring.gate.judge`), then the rejected ones, and last the hints that make the
    error more likely. Within each group, hints that raise the odds of another continuation more come first. The
    arguments and errors are those of `rescore`.
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
    """Run `diagnose` in a thread, for an agent's event loop; the arguments are the same."""
    return await asyncio.to_thread(diagnose, messages, **kwargs)


async def rescore_async(messages: Conversation, **kwargs: Any) -> Target:
    """Run `rescore` in a thread, for an agent's event loop; the arguments are the same."""
    return await asyncio.to_thread(rescore, messages, **kwargs)


async def rank_hints_async(messages: Conversation, **kwargs: Any) -> list[RankedHint]:
    """Run `rank_hints` in a thread, for an agent's event loop; the arguments are the same."""
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
    """Return the twin of a step: the same step in an edited version of its context. No forward pass is made.

    Args:
        messages: a conversation that contains the step, as in `diagnose`; later messages are ignored.
        edit: a `TwinEdit`, or pairs of a text and its replacement; each text must occur exactly once in the tool
            schemas (as JSON) and in the messages above the step that the student did not write.
        engine: from `load_engine` or `connect_engine`; only its tokenizer and chat template are used.
        step: as in `rescore`.
        quote: the words of the step that are wrong unless the edit is made.
        tools: schemas of the tools the agent had.
        state_changing: also accept a step that calls a tool which changes something or may change something.

    Raises:
        ArgumentError: an argument has a wrong type.
        TraceError: the messages are malformed or contain no such step.
        TwinError: the edit does not make a twin; `reason` says why, see docs/twins.md.
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
            raise ArgumentError("`edit` must be a TwinEdit or a list of pairs of texts")
        pairs = tuple(located(trace, at, old, new) for old, new in edit)
        edit = TwinEdit(kind="given", replacements=pairs, maker="caller")
    finding = given_finding(at, quote)
    with engine.lock:
        builder = TwinBuilder(engine.renderer)
        site = builder.site(trace, at)
        found = locate(finding, site.text, trace.step(at)) if quote else None
        span = tokens_in(found[0], site.spans) if found else (0, len(site.rendered.step_ids))
        if span is None or (quote and found is None):
            raise QuoteNotFoundError(f"the quote {str(quote)[:60]!r} does not occur in step {at}")
        return Making(builder, judge(), 1, state_changing, 0).twin(trace, finding, edit, span)

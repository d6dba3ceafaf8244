"""The calls an agent makes: messages in, what a hint would have done out.

In process (`load_engine`) or against a running server (`connect_engine`). Engines take calls from several threads; the
async twins run in a thread, so that an agent's loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hintdistill.config import EngineSection, InjectSection, RescoreSection, TemplateSection
from hintdistill.core.errors import ConfigError, QuoteNotFoundError, SpliceError, TraceError
from hintdistill.core.extensions import ENGINES
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key
from hintdistill.core.text import HALF_A_PAIR, holds_half_a_pair
from hintdistill.core.trust import in_use
from hintdistill.core.types import Finding, Message, Placement, Source, Trace, Twin, TwinEdit
from hintdistill.engines import Engine
from hintdistill.engines.loading import EngineJob, load
from hintdistill.injection.quotes import locate, tokens_in
from hintdistill.injection.rendering import Renderer
from hintdistill.injection.splice import Injector
from hintdistill.injection.twins import TwinBuilder, located
from hintdistill.prompts import shipped_library
from hintdistill.rescoring.gate import harmful
from hintdistill.rescoring.scorer import HintItem, Scorer
from hintdistill.traces.formats import openai_chat
from hintdistill.traces.options import ReadOptions

MessageLike = Message | Mapping[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """An engine and the renderer that belongs to it."""

    engine: Engine
    renderer: Renderer
    backend: str = ""
    """The name the engine is registered under; empty for one that the caller has made."""
    lock: threading.RLock = field(default_factory=threading.RLock, compare=False, repr=False)
    """Held while rendering: fast tokenizers refuse to be used by two threads at once."""


@dataclass(frozen=True)
class RankedHint:
    """One hint of several and what it would have done."""

    hint: str
    target: Target

    @property
    def effect(self) -> float:
        """Hint effect at its decision token, nats; 0.0 where the hint changes nothing."""
        return self.target.decision.effect if self.target.decision is not None else 0.0

    @property
    def odds(self) -> float:
        """Rise of the log-odds of what the hinted view says instead, nats; 0.0 where the hint changes nothing."""
        return (self.target.decision.odds or 0.0) if self.target.decision is not None else 0.0

    @property
    def harmful(self) -> bool:
        """Whether the hint makes the error more likely."""
        return harmful(self.target)


def load_engine(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    backend: str = "transformers",
    trust_remote_code: bool = False,
    template: TemplateSection | None = None,
    **kwargs: Any,
) -> LoadedModel:
    """Load a model folder (or hub name) for rescoring; further keywords go to the engine.

    Args:
        backend: any registered engine that loads weights: `transformers`, `vllm`, or one of a plugin's.
        trust_remote_code: whether Python code that stands in the model folder may run; it can do whatever you can.
        template: options of the chat template (`TemplateSection(options={"enable_thinking": False})`) and another one's file.

    Raises:
        ModelError: the folder, its tokenizer or its chat template cannot be used, or vLLM is not installed.
        ConfigError: no such backend, one that is reached at an address (`connect_engine`), or an option that the template does not read.
    """
    if ENGINES.get(backend).remote:
        raise ConfigError(
            f"the engine {backend} is reached at an address", hint="use hd.connect_engine(name, base_url)"
        )
    with in_use(None, model_code=trust_remote_code):
        return _loaded(name, dtype, device, batch_tokens, backend, template, kwargs)


def _loaded(
    name: str,
    dtype: str,
    device: str,
    batch_tokens: int | None,
    backend: str,
    template: TemplateSection | None,
    kwargs: dict[str, Any],
) -> LoadedModel:
    folder = resolve_model(name)
    renderer = Renderer.from_pretrained(folder, *_template(template))
    job = EngineJob(
        folder,
        dtype=dtype,
        device=device,
        batch_tokens=batch_tokens,
        id_of=renderer.vocabulary.get,
        key=model_key(folder).weights,
        options=kwargs,
    )
    return LoadedModel(load(backend, job), renderer, backend)


def _template(section: TemplateSection | None) -> tuple[dict[str, Any], str | None]:
    """Options and file of a template section."""
    return ({}, None) if section is None else (section.options, section.file)


def connect_engine(
    name: str,
    base_url: str,
    model: str | None = None,
    *,
    template: TemplateSection | None = None,
    **kwargs: Any,
) -> LoadedModel:
    """Rescore through a running server.

    Args:
        name: folder or hub name of what it serves; only the tokenizer and the chat template are read.
        base_url: up to and including `/v1`.
        model: the name it serves the weights under, default `name`.
        template: options of the chat template, as in `load_engine`.
        kwargs: further arguments of `ServerEngine`.

    Raises:
        ModelError: the tokenizer or its chat template cannot be used.
        ServiceError: the server cannot be reached or does not serve the model.
    """
    from hintdistill.engines.server import ServerEngine

    renderer = Renderer.from_pretrained(resolve_model(name), *_template(template))
    if kwargs.get("dialect") == "echo":
        kwargs.setdefault("id_of", renderer.vocabulary.get)
    engine = ServerEngine(base_url, model or name, **kwargs)
    engine.text_of = renderer.text_of
    return LoadedModel(engine, renderer, "server")


def rescore(
    messages: Sequence[MessageLike],
    *,
    step: int,
    hint: str | None,
    engine: LoadedModel,
    quote: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    placement: Placement = "message",
    config: RescoreSection = RescoreSection(),
) -> Target:
    """What `hint`, put right above a step, would have done to it. Every token is read once, nothing is decoded.

    Args:
        messages: an OpenAI-style conversation that contains the step; later messages are ignored.
        step: which assistant message, counted from 0 over assistant messages only.
        hint: the hint's words; None inserts nothing, and the hint effect is exactly zero.
        engine: from `load_engine` or `connect_engine`.
        quote: the wrong words of the step, where they are known.
        tools: OpenAI function schemas the agent had.
        placement: a message of its own above the step, the end of the last observation, the system prompt, or inside
            the assistant turn right before the quote (the target then begins at the quote).

    Returns:
        The target: `hint_effect` [T] in nats, `decision`, `specificity`, `legal_mass_gain`, `shifts()`, and the
        distributions themselves.

    Raises:
        TraceError: the messages are malformed or hold no such step.
        TemplateError, SpliceError: the chat template has no exact place for the hint, the quote is not in the step, or
            the hint tokenises to nothing.
        ContextLengthError: the step is beyond the model's context.
        ScoreError: a log-probability is missing or not finite.
    """
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
    _require_engine(engine, config)
    trace = _trace(messages, step, tools)
    with engine.lock:
        rendered = engine.renderer.step(trace, step)
    key = content_key("call", rendered.context_ids, rendered.step_ids, engine.engine.key)
    return Scorer(engine.engine, engine.renderer, config).unhinted(key, trace.id, step, rendered)


def rank_hints(
    messages: Sequence[MessageLike],
    *,
    step: int,
    hints: Sequence[str],
    engine: LoadedModel,
    quote: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    placement: Placement = "message",
    config: RescoreSection = RescoreSection(),
) -> list[RankedHint]:
    """Several hints for one step, best first, in one call of the engine: what they share is read once.

    Accepted hints come first (see `rescoring.gate.judge`), then those that the gate rejects, last those that make the error
    more likely; within each, the one that raises the odds of another continuation most. Arguments and errors are those of `rescore`.
    """
    _require_engine(engine, config)
    trace = _trace(messages, step, tools)
    injector = Injector(engine.renderer, shipped_library(), InjectSection(placements=(placement,)), config.placebos)
    items: list[HintItem] = []
    for hint in hints:
        if not hint.strip():
            raise SpliceError(
                f"the hint {hint!r} tokenises to nothing", hint="hint=None scores the step without a hint"
            )
        if holds_half_a_pair([hint, quote]):
            raise SpliceError(f"the hint or the quote {HALF_A_PAIR}")
        finding = Finding(step=step, error_class="given", quote=quote, hint=hint, critic="caller")
        with engine.lock:
            injection = injector.inject(trace, finding)
        key = content_key("call", injection.model_dump(mode="json"), engine.engine.key)
        items.append(HintItem(key, injection, "train"))
    targets = Scorer(engine.engine, engine.renderer, config).score(items)
    ranked = [RankedHint(hint, target) for hint, target in zip(hints, targets, strict=True)]
    return sorted(ranked, key=lambda r: (r.harmful, not r.target.accepted, -r.odds))


async def rescore_async(messages: Sequence[MessageLike], **kwargs: Any) -> Target:
    """`rescore` in a thread, for an agent's event loop; the arguments are the same."""
    return await asyncio.to_thread(rescore, messages, **kwargs)


async def rank_hints_async(messages: Sequence[MessageLike], **kwargs: Any) -> list[RankedHint]:
    """`rank_hints` in a thread, for an agent's event loop; the arguments are the same."""
    return await asyncio.to_thread(rank_hints, messages, **kwargs)


def twin(
    messages: Sequence[MessageLike],
    *,
    step: int,
    edit: TwinEdit | Sequence[tuple[str, str]],
    engine: LoadedModel,
    quote: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    state_changing: bool = False,
) -> Twin:
    """Return the twin of a step: the same step in the context that an edit makes of its own. Nothing is computed with the weights.

    Args:
        messages: an OpenAI-style conversation that contains the step; later messages are ignored.
        step: which assistant message, counted from 0 over assistant messages only.
        edit: a `TwinEdit`, or pairs of words and what stands in their place; each pair's words must stand exactly once in the
            messages of others above the step and the tool schemas (their JSON).
        engine: from `load_engine` or `connect_engine`; only its tokenizer and chat template are used.
        quote: the words of the step that are wrong without the edit.
        tools: OpenAI function schemas the agent had.
        state_changing: allow it for a step that calls a tool which changes something, or may.

    Raises:
        TraceError: the messages are malformed or hold no such step.
        TwinError: the edit makes no twin; its `reason` says why, see docs/twins.md.
        QuoteNotFoundError: the quote is not in the step.
        TemplateError, SpliceError: the chat template cannot render the step.
    """
    from hintdistill.pipeline.twins import Making, judge

    trace = _trace(messages, step, tools)
    if not isinstance(edit, TwinEdit):
        pairs = tuple(located(trace, step, old, new) for old, new in edit)
        edit = TwinEdit(kind="given", replacements=pairs, maker="caller")
    finding = Finding(step=step, error_class="given", quote=quote, critic="caller")
    with engine.lock:
        builder = TwinBuilder(engine.renderer)
        site = builder.site(trace, step)
        found = locate(finding, site.text, trace.step(step)) if quote else None
        span = tokens_in(found[0], site.spans) if found else (0, len(site.rendered.step_ids))
        if span is None or (quote and found is None):
            raise QuoteNotFoundError(f"the quote {str(quote)[:60]!r} is nowhere in step {step}")
        return Making(builder, judge(), 1, state_changing, 0).twin(trace, finding, edit, span)


def _require_engine(engine: LoadedModel, config: RescoreSection) -> None:
    """Raises ConfigError where `config.engine` asks for another engine than the one that is given: it would go unheard."""
    asked, given = config.engine, engine.backend or type(engine.engine).__name__
    if asked == EngineSection():
        return
    differs = [f"backend={asked.backend}"] if asked.backend != engine.backend else []
    for key in ("base_url", "model", "max_length", "dialect"):
        wanted = getattr(asked, key)
        if wanted != getattr(EngineSection(), key) and wanted != getattr(engine.engine, key, None):
            differs.append(f"{key}={wanted}")
    if differs:
        raise ConfigError(
            f"config.engine asks for {', '.join(differs)}, and the engine that is given is {given}",
            hint="hd.load_engine(name, backend=...) or hd.connect_engine(name, base_url) make the engine; leave config.engine out",
        )


def _trace(messages: Sequence[MessageLike], step: int, tools: Sequence[Mapping[str, Any]] | None) -> Trace:
    """The messages as a trace. Raises TraceError where they are malformed or hold no such step."""
    record = {"messages": [_plain(m) for m in messages], "tools": list(tools or ())}
    if holds_half_a_pair(record["messages"]) or holds_half_a_pair(record["tools"]):
        raise TraceError(f"a message or a tool {HALF_A_PAIR}")
    trace = openai_chat.parse(record, Source(file="call", position="record 1"), ReadOptions())
    if any(isinstance(m, Message) for m in messages):
        trace = trace.model_copy(update={"messages": _typed(messages, trace)})
    if not 0 <= step < len(trace.step_indices):
        raise TraceError(f"the messages hold steps 0..{len(trace.step_indices) - 1}, not {step}")
    if step in trace.given_steps:
        raise TraceError(f"step {step} is given: it is context, and no step of the student")
    return trace


def _plain(message: MessageLike) -> Mapping[str, Any]:
    return {"role": message.role, "content": message.content} if isinstance(message, Message) else message


def _typed(messages: Sequence[MessageLike], trace: Trace) -> tuple[Message, ...]:
    return tuple(m if isinstance(m, Message) else t for m, t in zip(messages, trace.messages, strict=True))

"""The call an agent makes: messages in, what a hint would have done out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.config import InjectSection, RescoreSection
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.errors import TraceError
from hintdistill.injection import Injector
from hintdistill.models import resolve_model
from hintdistill.prompts import shipped_library
from hintdistill.rendering import Renderer
from hintdistill.rundir import content_key
from hintdistill.scores import Target
from hintdistill.scoring import Scorer
from hintdistill.traces import ReadOptions, openai_chat
from hintdistill.types import Finding, Message, Placement, Source, Trace


@dataclass(frozen=True)
class LoadedModel:
    """An engine and the renderer that belongs to it."""

    engine: TransformersEngine
    renderer: Renderer


def load_engine(name: str, *, dtype: str = "auto", device: str = "auto", batch_tokens: int = 16_384) -> LoadedModel:
    """Load a model folder (or hub name) for rescoring.

    Raises:
        ModelError: the folder, its tokenizer or its chat template cannot be used.
    """
    folder = resolve_model(name)
    renderer = Renderer.from_pretrained(folder)
    return LoadedModel(TransformersEngine.load(folder, dtype, device, batch_tokens), renderer)


def rescore(
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    step: int,
    hint: str,
    engine: LoadedModel,
    quote: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    placement: Placement = "message",
    config: RescoreSection = RescoreSection(),
) -> Target:
    """What `hint`, put right above a step, would have done to it. One prefill per view, no decoding.

    Args:
        messages: an OpenAI-style conversation that contains the step; later messages are ignored.
        step: which assistant message, counted from 0 over assistant messages only.
        hint: the hint's words.
        engine: from `load_engine`.
        quote: the wrong words of the step, where they are known.
        tools: OpenAI function schemas the agent had.
        placement: a message of its own above the step, or the end of the last observation.

    Returns:
        The target: `hint_effect` [T] in nats, `decision`, `specificity`, `legal_mass_gain`, `shifts()`, and the
        distributions themselves.

    Raises:
        TraceError: the messages are malformed or hold no such step.
        TemplateError, SpliceError: the chat template has no exact place for the hint.
        ContextLengthError: the step is beyond the model's context.
    """
    record = {"messages": [_plain(m) for m in messages], "tools": list(tools or ())}
    trace = openai_chat.parse(record, Source(file="call", position="record 1"), ReadOptions())
    if any(isinstance(m, Message) for m in messages):
        trace = trace.model_copy(update={"messages": _typed(messages, trace)})
    finding = Finding(step=step, error_class="given", quote=quote, hint=hint, critic="caller")
    section = InjectSection(placements=(placement,))
    if not 0 <= step < len(trace.step_indices):
        raise TraceError(f"the messages hold steps 0..{len(trace.step_indices) - 1}, not {step}")
    injection = Injector(engine.renderer, shipped_library(), section, config.placebos).inject(trace, finding)
    key = content_key("call", injection.model_dump(mode="json"), engine.engine.key)
    return Scorer(engine.engine, engine.renderer, config).score([(key, injection, "train")])[0]


def _plain(message: Message | Mapping[str, Any]) -> Mapping[str, Any]:
    return {"role": message.role, "content": message.content} if isinstance(message, Message) else message


def _typed(messages: Sequence[Message | Mapping[str, Any]], trace: Trace) -> tuple[Message, ...]:
    return tuple(m if isinstance(m, Message) else t for m, t in zip(messages, trace.messages, strict=True))

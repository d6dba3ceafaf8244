"""The boundary types: what one stage hands to the next.

Nothing here knows torch, numpy, a tokenizer or a file. These are the text-level records (`Trace`, `Finding`, `Critique`,
`Injection`): frozen pydantic models that refuse unknown keys. The number-level ones are in `scores.py`. What can be
derived is a property and is never stored. All log-probabilities are natural logarithms (nats).
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from hintdistill.core.context_block import ContextBlock
from hintdistill.core.extensions import PLACEMENTS
from hintdistill.core.frozen import FrozenModel
from hintdistill.core.notebook import trace_html, trace_plot
from hintdistill.core.registry import NameIn
from hintdistill.core.text import require_text

TRACE_SCHEMA = 1
"""Version of the native trace format; raised whenever a stored field changes its meaning."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
Fidelity = Literal["ids", "raw_text", "reserialised"]
Placement = Annotated[str, NameIn(PLACEMENTS)]
"""A registered place for a hint: `message`, `observation`, `system_prompt`, `assistant_turn`, or one of a plugin's."""
HintRole = Literal["user", "system"]
QuoteField = Literal["content", "reasoning", "tool_name", "arguments"]
Verdict = Literal["findings", "none", "not_student", "abstain"]
Split = Literal["train", "holdout"]
ToolEffect = Literal["reads", "changes"]
"""What a call of a tool does to the world: only look at it, or change its state (book, pay, delete, send)."""
TargetKind = Literal["hint", "anchor", "hold", "twin"]
"""What a target does to its step: `hint` corrects it; `anchor` holds a clean step of a training trace, `hold` a step of a hold
trace, `twin` an erring step in the changed context in which it is right."""
HELD: tuple[TargetKind, ...] = ("anchor", "hold", "twin")
"""The kinds that have no hint: their teacher is the initial policy itself."""


class ToolCall(FrozenModel):
    """One call the student made. The raw string is the truth; the parsed object is derived."""

    name: str
    arguments_raw: str
    """The arguments exactly as the model wrote them, or as the source stored them."""
    id: str | None = None
    arguments_form: Literal["string", "object"] = "string"
    """`object`: the source kept a parsed object, so `arguments_raw` is our serialisation, not the model's text."""

    @property
    def arguments(self) -> dict[str, Any] | None:
        """The parsed arguments, or None if the raw string is not a JSON object."""
        try:
            value = json.loads(self.arguments_raw)
            if isinstance(value, str):
                # a server that found a string where an object belongs wrote it out as a JSON string once more
                value = json.loads(value)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


class SampledFrom(FrozenModel):
    """The distribution that recorded log-probabilities are of; by default the model's own, at temperature 1 and whole."""

    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    """0: no bound."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)

    @property
    def whole(self) -> bool:
        """Whether it is the model's own distribution: nothing else can be compared with what a model says."""
        return self == SampledFrom()


class Message(FrozenModel):
    """One message of a trace. Token fields are set on assistant messages only, if they were recorded."""

    role: Role
    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    """The context: every token the student had read when it began this message, assistant header included."""
    token_ids: tuple[int, ...] | None = None
    """The tokens it then sampled, end-of-turn token included if it was sampled."""
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each sampled token at the time of sampling, nats; same length as `token_ids`."""
    logprobs_of: SampledFrom | None = None
    """The distribution of `logprobs`, e.g. after a temperature or a filter. None: unknown, taken for the model's own."""
    raw_text: str | None = None
    """The text as generated, before any server parsed it, without the end-of-turn token."""
    given: bool = False
    """An assistant turn that was read here, not produced here: earlier turns of a prompt, a demonstration, a copied context, a
    turn that another trace already holds. It is context; nothing is trained or measured on it."""
    cut: bool = False
    """An assistant turn that ran into the limit of tokens and has no end: it is no whole step, and gets no hint and no anchor."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Whatever else the source said of this message."""

    @property
    def own_logprobs(self) -> tuple[float, ...] | None:
        """`logprobs` if they are of the model's own distribution, temperature 1 and whole; else None."""
        return self.logprobs if self.logprobs_of is None or self.logprobs_of.whole else None

    @field_validator("prompt_token_ids", "token_ids", "logprobs", mode="before")
    @classmethod
    def _empty_means_absent(cls, value: Any) -> Any:
        return None if isinstance(value, list | tuple) and len(value) == 0 else value

    @field_validator("logprobs")
    @classmethod
    def _lengths(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        # called only where the field is set, which a validator of the whole message would not be
        ids = info.data.get("token_ids")
        if value is not None and "token_ids" in info.data and len(value) != len(ids or ()):
            raise ValueError(f"{len(value)} log-probabilities for {len(ids or ())} token ids: they must pair up")
        return value


class Source(FrozenModel):
    """Where a record came from, so that an error message can point at it."""

    file: str
    position: str
    """`line 7`, `record 3`, ..., counted from 1."""

    def __str__(self) -> str:
        return f"{self.file}, {self.position}"


class Trace(FrozenModel):
    """One recorded run: messages, tool schemas, reward, and what else the source said."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """OpenAI function schemas, `{"type": "function", "function": {"name", "description", "parameters"}}`."""
    reward: float | None = None
    task_id: str | None = None
    model: str | None = None
    """Name or key of the weights that produced the trace, where known."""
    source: Source | None = None
    template: dict[str, Any] = Field(default_factory=dict)
    """Options of the chat template that the trace was recorded under, e.g. `enable_thinking`; they go before `run.template.options`."""
    tool_effects: dict[str, ToolEffect] = Field(default_factory=dict)
    """Which tools only read and which change state, by name, as the environment or the file of `traces.tools` says; the student
    never reads it. Ask `tool_effect`, which knows what the schemas say as well."""
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _unless_none(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it is, without `template` if there are no options: keys of traces from before stay theirs."""
        data: dict[str, Any] = plain(self)
        if not self.template:
            data.pop("template", None)
        return data

    def __repr__(self) -> str:
        """Return one line: id and counts; the messages are left out."""
        reward = "" if self.reward is None else f", reward {self.reward:g}"
        return f"Trace({self.id!r}, {len(self.messages)} messages, {len(self.step_indices)} steps, {len(self.tools)} tools{reward})"

    _repr_html_, plot = trace_html, trace_plot

    @cached_property
    def step_indices(self) -> tuple[int, ...]:
        """Index into `messages` of each step; step k is `messages[step_indices[k]]`."""
        return tuple(i for i, m in enumerate(self.messages) if m.role == "assistant")

    def step(self, k: int) -> Message:
        """Return the assistant message of step `k`. Raises IndexError with the legal range."""
        if not 0 <= k < len(self.step_indices):
            raise IndexError(f"trace {self.id} has steps 0..{len(self.step_indices) - 1}, not {k}")
        return self.messages[self.step_indices[k]]

    @cached_property
    def given_steps(self) -> frozenset[int]:
        """Steps that are context only; see `Message.given`."""
        return frozenset(k for k, i in enumerate(self.step_indices) if self.messages[i].given)

    @cached_property
    def own_steps(self) -> tuple[int, ...]:
        """The steps that may be critiqued, hinted, anchored, held or measured: those that are neither given nor cut."""
        return tuple(k for k, i in enumerate(self.step_indices) if not (self.messages[i].given or self.messages[i].cut))

    def before(self, k: int) -> tuple[Message, ...]:
        """Return the messages the student had read when it produced step `k`."""
        self.step(k)
        return self.messages[: self.step_indices[k]]

    @cached_property
    def tool_schemas(self) -> dict[str, dict[str, Any]]:
        """Parameter schema (JSON schema of an object) by tool name."""
        functions = [t.get("function", t) for t in self.tools]
        return {f["name"]: f.get("parameters") or {} for f in functions if "name" in f}


class Replacement(FrozenModel):
    """One change of a trace's text, made before anything is rendered."""

    where: Literal["message", "tools"]
    """`message`: in the content of a message; `tools`: in the JSON of a tool schema, `json.dumps(schema, ensure_ascii=False)`."""
    index: int = Field(ge=0)
    """Which message of the trace, or which of its tools."""
    old: str
    """Text that is there; empty appends `new` to a message, or adds `new` as a schema of its own at `index` of the tools."""
    new: str
    """Text in its place; empty takes `old` away."""
    count: int = Field(default=1, ge=1)
    """How often `old` must be there."""


class TwinEdit(FrozenModel):
    """The smallest change of a step's context under which the erring step is right."""

    kind: str = Field(min_length=1)
    """Kind of the edit within its class: `rename`, `add`, `describe`, ..."""
    replacements: tuple[Replacement, ...] = ()
    removed: tuple[int, ...] = ()
    """Messages that are taken out whole, as numbers of the trace's messages."""
    maker: str = Field(min_length=1)
    """The maker that wrote it: an entry of the registry, or the critic's name."""


class Finding(FrozenModel):
    """One error the critic located. With `hint` None, the hint comes from the template of its error class."""

    step: int = Field(ge=0)
    error_class: str = Field(min_length=1)
    quote: str | None = None
    """Words copied from the step. None means the whole step."""
    quote_in: QuoteField | None = None
    """Which part of the step the quote is in, where the critic knows."""
    call: int | None = Field(default=None, ge=0)
    """Which of the step's tool calls the quote is in, counted from 0."""
    hint: str | None = None
    confidence: float = Field(default=1.0, ge=0.0, le=1.0)
    caused_by: int | None = Field(default=None, ge=0)
    """Step of the earlier finding that this one is a consequence of; None for a root error."""
    critic: str = "unknown"
    evidence: str | None = None
    """Why the critic thinks so, in a sentence."""
    revised_from: str | None = None
    """The hint that the gate rejected before the critic wrote this one."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Values a hint template may use: `wrong`, `right`, `tool`, `error`, ..."""
    twin: TwinEdit | None = None
    """The smallest edit under which the step would be right, where the critic wrote one."""
    decisive: bool | None = None
    """Whether the run would have gone well without this error; None if the critic was not asked."""

    @model_validator(mode="after")
    def _is_text(self) -> Finding:
        return require_text(self, [self.error_class, self.quote, self.hint, self.evidence, self.facts])

    @model_serializer(mode="wrap")
    def _unless_absent(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Dump the finding without `twin` and `decisive` if they are not set; older findings keep their keys."""
        data: dict[str, Any] = plain(self)
        return {k: v for k, v in data.items() if v is not None or k not in ("twin", "decisive")}


UNKNOWN_ACTION = -1
"""In place of the index at which a step's action begins: where its reasoning ends cannot be told, or it is reasoning alone."""


class Twin(FrozenModel):
    """An erring step in the changed context in which it is right: the same step ids, nothing else of the trace moved."""

    trace_id: str
    finding: Finding
    edit: TwinEdit
    context_ids: tuple[int, ...]
    """The edited context, rendered again; earlier steps keep their recorded ids."""
    step_ids: tuple[int, ...] = Field(min_length=1)
    """The erring step's ids, as sampled in the original context."""
    span: tuple[int, int]
    """Quoted tokens of the step, half-open, as in the injection of the same finding."""
    action_start: int | None = None
    """Index of the first step token that is no reasoning, as in `Injection`."""
    fidelity: Fidelity
    notes: tuple[str, ...] = ()

    @property
    def plain_ids(self) -> tuple[int, ...]:
        """Edited context and step."""
        return self.context_ids + self.step_ids


class Usage(FrozenModel):
    """What a critique cost, tokens as the server counted them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Critique(FrozenModel):
    """All findings for one trace, or the verdict that there are none, or that the critic abstains."""

    trace_id: str
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    critics: tuple[str, ...] = ()
    usage: Usage = Usage()
    raw_answer: str | None = None
    notes: tuple[str, ...] = ()
    """What happened on the way: a repair round, a finding dropped and why."""

    @model_validator(mode="after")
    def _verdict_fits(self) -> Critique:
        if (self.verdict == "findings") != bool(self.findings):
            raise ValueError(f"verdict {self.verdict!r} with {len(self.findings)} findings")
        return self


PlaceboKind = Literal["generic", "other_class", "shuffled_answer_free", "shuffled"]
"""`shuffled` has every word of the hint: where that is short it names the answer and works like a hint."""


class PlaceboBlock(FrozenModel):
    """The tokens of a hint that should do nothing, for the same place as the hint."""

    kind: PlaceboKind
    text: str
    insert_at: int
    block_ids: tuple[int, ...] = Field(min_length=1)


class Injection(FrozenModel):
    """A context, the same context with the hint in it, and the step's ids, shared verbatim by both.

    The hint is one contiguous insertion: `hinted_context_ids = context[:p] + block + context[p:]`. Because the hinted
    context is derived and never stored, no other difference between the two can be written down.
    """

    trace_id: str
    finding: Finding
    hint: str
    level: int | None = Field(default=None, ge=0, le=3)
    """How much of the answer the hint holds; see `injection.levels`."""
    candidate: str = ""
    """Which of several hints for its finding this is; empty for the only one."""
    context_ids: tuple[int, ...]
    insert_at: int
    block_ids: tuple[int, ...]
    step_ids: tuple[int, ...] = Field(min_length=1)
    step_offset: int = Field(default=0, ge=0)
    """Tokens of the step above the hint, which are context; above zero only inside the step (`assistant_turn`)."""
    span: tuple[int, int]
    """Half-open token range of the step that the quote covers; the whole step without a quote."""
    action_start: int | None = None
    """Index of the first of `step_ids` after the reasoning, or `UNKNOWN_ACTION`; None in rows of earlier releases."""
    quote_found: Literal["exact", "normalised", "fuzzy", "whole_step"] = "whole_step"
    fidelity: Fidelity
    placement: Placement
    role: HintRole | None = None
    """Role of the hint message; None if the hint went into an existing message."""
    notes: tuple[str, ...] = ()
    """`spliced_block`, `minimal_talk`, `rewritten_history`, `boundary_shifted`, fallbacks taken and why."""
    guards: tuple[str, ...] = ()
    """Text-level reasons against the hint: `leak: …`, `dialect: …`, `level: …`. The gate decides on them; `primes: …` is said
    only, because the scores show whether it does."""
    recorded_logprobs: tuple[float, ...] | None = None
    """Log-probabilities the trace recorded for the step, if it did."""
    placebos: tuple[PlaceboBlock, ...] = ()
    legal: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    """Step position → ids a tool schema allows there, besides the sampled one; positions no schema speaks of are absent."""
    views: dict[str, ContextBlock] = Field(default_factory=dict)
    """Further contexts by name (`recipes.data.View.labels`), for recipes whose views read more than the hint."""

    @model_validator(mode="after")
    def _ranges(self) -> Injection:
        if not self.block_ids and self.hint:
            raise ValueError("a hint with words has no tokens")
        if not 0 <= self.insert_at <= len(self.context_ids):
            raise ValueError(f"insert_at {self.insert_at} outside the context of {len(self.context_ids)} tokens")
        start, end = self.span
        if not 0 <= start < end <= len(self.step_ids):
            raise ValueError(f"span {self.span} outside the step of {len(self.step_ids)} tokens")
        if self.action_start is not None and not UNKNOWN_ACTION <= self.action_start < len(self.step_ids):
            raise ValueError(f"action_start {self.action_start} outside the step of {len(self.step_ids)} tokens")
        return self

    @property
    def hinted_context_ids(self) -> tuple[int, ...]:
        """The context with the hint's tokens spliced in; everything else identical."""
        return self.context_ids[: self.insert_at] + self.block_ids + self.context_ids[self.insert_at :]

    @property
    def plain_ids(self) -> tuple[int, ...]:
        """Context and step, no hint."""
        return self.context_ids + self.step_ids

    def with_block(self, insert_at: int, block_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Context and step with other tokens spliced in, e.g. a placebo's."""
        return self.context_ids[:insert_at] + block_ids + self.context_ids[insert_at:] + self.step_ids

    @property
    def hinted_ids(self) -> tuple[int, ...]:
        """Hinted context and step; the step's ids are the same objects as in `plain_ids`."""
        return self.hinted_context_ids + self.step_ids

"""Define the boundary types that one stage hands to the next, independent of torch, numpy, tokenizers and files. These
are the text-level records (`Trace`, `Finding`, `Critique`, `Injection`): frozen pydantic models that refuse unknown
keys. The number-level ones are in `scores.py`. Derived values are properties and are never stored. All
log-probabilities are natural logarithms (nats).
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
"""Version of the native trace format; it increases whenever a stored field changes its meaning."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
Fidelity = Literal["ids", "raw_text", "reserialised"]
Placement = Annotated[str, NameIn(PLACEMENTS)]
"""A registered place for a hint: `message`, `observation`, `system_prompt`, `assistant_turn`, or a plugin's."""
HintRole = Literal["user", "system"]
QuoteField = Literal["content", "reasoning", "tool_name", "arguments"]
Verdict = Literal["findings", "none", "not_student", "abstain"]
Split = Literal["train", "holdout"]
ToolEffect = Literal["reads", "changes"]
"""Effect of a tool call on the world: it only reads, or it changes state (book, pay, delete, send)."""
TargetKind = Literal["hint", "anchor", "hold", "twin"]
"""Role of a target for its step: `hint` corrects it; `anchor` holds a clean step of a training trace, `hold` a step of
a hold trace, `twin` an erring step in the changed context in which it is right."""
HELD: tuple[TargetKind, ...] = ("anchor", "hold", "twin")
"""The kinds without a hint; their teacher is the initial policy itself."""


class ToolCall(FrozenModel):
    """Hold one call that the student made. The raw string is authoritative; the parsed object is derived from it."""

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
    """Describe the distribution of recorded log-probabilities; by default the full one at temperature 1."""

    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    """Top-k limit; 0 means no limit."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)

    @property
    def whole(self) -> bool:
        """Whether it is the model's own full distribution, the only one that can be compared with a model's scores."""
        return self == SampledFrom()


class Message(FrozenModel):
    """Hold one message of a trace. Token fields are set only on assistant messages, and only if they were recorded."""

    role: Role
    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    """The context: all tokens that the student had read when it began this message, including the assistant header."""
    token_ids: tuple[int, ...] | None = None
    """The sampled tokens, including the end-of-turn token if it was sampled."""
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each sampled token at the time of sampling, nats; same length as `token_ids`."""
    logprobs_of: SampledFrom | None = None
    """The distribution of `logprobs`, e.g. after a filter. None means unknown, and is treated as the model's own."""
    raw_text: str | None = None
    """The text as generated, before any server parsed it, without the end-of-turn token."""
    given: bool = False
    """Whether this assistant turn was not produced in this trace: a turn of the prompt, of a demonstration, of a copied
    context, or of another trace. It is context; nothing is trained or measured on it."""
    cut: bool = False
    """Whether this assistant turn ran into the token limit and has no end. It is not a whole step, so it gets no hint and no anchor."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Other fields of the message in the source."""

    @property
    def own_logprobs(self) -> tuple[float, ...] | None:
        """`logprobs` if they belong to the model's full distribution at temperature 1; else None."""
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
    """Describe the origin of a record, so that an error message can point to it."""

    file: str
    position: str
    """`line 7`, `record 3`, ..., counting from 1."""

    def __str__(self) -> str:
        return f"{self.file}, {self.position}"


class Trace(FrozenModel):
    """Hold one recorded run: messages, tool schemas, reward, and other fields of the source."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """OpenAI function schemas, `{"type": "function", "function": {"name", "description", "parameters"}}`."""
    reward: float | None = None
    task_id: str | None = None
    model: str | None = None
    """Name or key of the weights that produced the trace, if known."""
    source: Source | None = None
    template: dict[str, Any] = Field(default_factory=dict)
    """Recorded chat template options, e.g. `enable_thinking`; they override `run.template.options`."""
    tool_effects: dict[str, ToolEffect] = Field(default_factory=dict)
    """Effect of each tool by name, as declared by the environment or the file of `traces.tools`; the student never
    reads it. Call `tool_effect`, which also considers the schemas."""
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _unless_none(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Dump the trace without `template` if it has no options, so that keys of older traces do not change."""
        data: dict[str, Any] = plain(self)
        if not self.template:
            data.pop("template", None)
        return data

    def __repr__(self) -> str:
        """Return one line with the id and counts, without the messages."""
        reward = "" if self.reward is None else f", reward {self.reward:g}"
        return f"Trace({self.id!r}, {len(self.messages)} messages, {len(self.step_indices)} steps, {len(self.tools)} tools{reward})"

    _repr_html_, plot = trace_html, trace_plot

    @cached_property
    def step_indices(self) -> tuple[int, ...]:
        """Index into `messages` of each step: step k is `messages[step_indices[k]]`."""
        return tuple(i for i, m in enumerate(self.messages) if m.role == "assistant")

    def step(self, k: int) -> Message:
        """Return the assistant message of step `k`. Raises IndexError with the valid range."""
        if not 0 <= k < len(self.step_indices):
            raise IndexError(f"trace {self.id} has steps 0..{len(self.step_indices) - 1}, not {k}")
        return self.messages[self.step_indices[k]]

    @cached_property
    def given_steps(self) -> frozenset[int]:
        """Steps that are only context; see `Message.given`."""
        return frozenset(k for k, i in enumerate(self.step_indices) if self.messages[i].given)

    @cached_property
    def own_steps(self) -> tuple[int, ...]:
        """Steps that may be critiqued, hinted, anchored, held or measured: those that are neither given nor cut."""
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
    """Describe one change to a trace's text, made before rendering."""

    where: Literal["message", "tools"]
    """`message`: in the content of a message; `tools`: in the JSON of a tool schema, `json.dumps(schema, ensure_ascii=False)`."""
    index: int = Field(ge=0)
    """Index of the message of the trace, or of the tool."""
    old: str
    """Text to replace. If empty, `new` is appended to the message, or inserted as a schema at `index` of the tools."""
    new: str
    """Replacement text. If empty, `old` is removed."""
    count: int = Field(default=1, ge=1)
    """Required number of occurrences of `old`."""


class TwinEdit(FrozenModel):
    """Describe the smallest change of a step's context that makes the erring step right."""

    kind: str = Field(min_length=1)
    """Kind of the edit within its class: `rename`, `add`, `describe`, ..."""
    replacements: tuple[Replacement, ...] = ()
    removed: tuple[int, ...] = ()
    """Indices of messages of the trace that are removed completely."""
    maker: str = Field(min_length=1)
    """The maker that wrote it: an entry of the registry, or the critic's name."""


class Finding(FrozenModel):
    """Describe one error that the critic located. If `hint` is None, the template of the error class supplies it."""

    step: int = Field(ge=0)
    error_class: str = Field(min_length=1)
    quote: str | None = None
    """Words copied from the step; None means the whole step."""
    quote_in: QuoteField | None = None
    """The part of the step that contains the quote, if the critic knows it."""
    call: int | None = Field(default=None, ge=0)
    """Index, from 0, of the tool call of the step that contains the quote."""
    hint: str | None = None
    confidence: float = Field(default=1.0, ge=0.0, le=1.0)
    caused_by: int | None = Field(default=None, ge=0)
    """Step of the earlier finding that caused this one; None for a root error."""
    critic: str = "unknown"
    evidence: str | None = None
    """The critic's reason, in a sentence."""
    revised_from: str | None = None
    """The rejected hint that the critic revised into this one."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Values a hint template may use: `wrong`, `right`, `tool`, `error`, ..."""
    twin: TwinEdit | None = None
    """The smallest edit that would make the step right, if the critic wrote one."""
    decisive: bool | None = None
    """Whether the run would have succeeded without this error; None if the critic was not asked."""

    @model_validator(mode="after")
    def _is_text(self) -> Finding:
        return require_text(self, [self.error_class, self.quote, self.hint, self.evidence, self.facts])

    @model_serializer(mode="wrap")
    def _unless_absent(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Dump the finding without `twin` and `decisive` if unset, so that keys of older findings do not change."""
        data: dict[str, Any] = plain(self)
        return {k: v for k, v in data.items() if v is not None or k not in ("twin", "decisive")}


UNKNOWN_ACTION = -1
"""Value for an unknown start of a step's action, e.g. if the end of its reasoning cannot be determined."""


class Twin(FrozenModel):
    """Hold an erring step, with the same ids, in the changed context in which it is right."""

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
    """Index of the first step token after the reasoning, as in `Injection`."""
    fidelity: Fidelity
    notes: tuple[str, ...] = ()

    @property
    def plain_ids(self) -> tuple[int, ...]:
        """The edited context followed by the step."""
        return self.context_ids + self.step_ids


class Usage(FrozenModel):
    """Hold the cost of a critique, with tokens as the server counted them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Critique(FrozenModel):
    """Hold all findings for one trace, or the verdict that there are no errors, or that the critic abstains."""

    trace_id: str
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    critics: tuple[str, ...] = ()
    usage: Usage = Usage()
    raw_answer: str | None = None
    notes: tuple[str, ...] = ()
    """Events during the critique, such as a repair round, or a dropped finding and the reason."""

    @model_validator(mode="after")
    def _verdict_fits(self) -> Critique:
        if (self.verdict == "findings") != bool(self.findings):
            raise ValueError(f"verdict {self.verdict!r} with {len(self.findings)} findings")
        return self


PlaceboKind = Literal["generic", "other_class", "shuffled_answer_free", "shuffled"]
"""Kind of a placebo. `shuffled` has every word of the hint: a short hint's then names the answer and works as a
hint."""


class PlaceboBlock(FrozenModel):
    """Hold the tokens of a placebo, a hint that should have no effect, for the same place as the hint."""

    kind: PlaceboKind
    text: str
    insert_at: int
    block_ids: tuple[int, ...] = Field(min_length=1)


class Injection(FrozenModel):
    """Hold a context, the same context with the hint in it, and the step's ids, shared verbatim by both.

    The hint is one contiguous insertion: `hinted_context_ids = context[:p] + block + context[p:]`. The hinted context
    is derived and never stored, so no other difference between the two can occur.
    """

    trace_id: str
    finding: Finding
    hint: str
    level: int | None = Field(default=None, ge=0, le=3)
    """How much of the answer the hint reveals; see `injection.levels`."""
    candidate: str = ""
    """Number of this hint among several for its finding; empty for the only one."""
    context_ids: tuple[int, ...]
    insert_at: int
    block_ids: tuple[int, ...]
    step_ids: tuple[int, ...] = Field(min_length=1)
    step_offset: int = Field(default=0, ge=0)
    """Number of step tokens above the hint, which are context; above zero only inside the step (`assistant_turn`)."""
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
    """`spliced_block`, `minimal_talk`, `rewritten_history`, `boundary_shifted`, and fallbacks with their reasons."""
    guards: tuple[str, ...] = ()
    """Text-level reasons against the hint: `leak: …`, `dialect: …`, `level: …`. The gate uses them for its decision,
    except `primes: …`, which is only reported, because the scores show that effect."""
    recorded_logprobs: tuple[float, ...] | None = None
    """Log-probabilities of the step, if the trace recorded them."""
    placebos: tuple[PlaceboBlock, ...] = ()
    legal: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    """Step position → ids that a tool schema allows there, besides the sampled one; only positions with a rule."""
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
        """The context with the hint's tokens spliced in; nothing else differs."""
        return self.context_ids[: self.insert_at] + self.block_ids + self.context_ids[self.insert_at :]

    @property
    def plain_ids(self) -> tuple[int, ...]:
        """The context and the step, without the hint."""
        return self.context_ids + self.step_ids

    def with_block(self, insert_at: int, block_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return the context and the step with other tokens spliced in, e.g. a placebo's."""
        return self.context_ids[:insert_at] + block_ids + self.context_ids[insert_at:] + self.step_ids

    @property
    def hinted_ids(self) -> tuple[int, ...]:
        """The hinted context and the step; the step's ids are the same objects as in `plain_ids`."""
        return self.hinted_context_ids + self.step_ids

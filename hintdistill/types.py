"""The boundary types: what one stage hands to the next.

Nothing here knows torch, a tokenizer or a file. Text-level records (`Trace`, `Finding`, `Critique`, `Injection`)
are frozen pydantic models that refuse unknown keys; number-level records (`ScoreRequest`, `Scores`, `Target`) are
frozen dataclasses of numpy arrays. What can be derived is a property and is never stored.

Shape legend: S sequence tokens, T step tokens, K kept vocabulary entries per position, G gathered ids.
All log-probabilities are natural logarithms (nats).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

TRACE_SCHEMA = 1
"""Version of the native trace format; raised whenever a stored field changes its meaning."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
Fidelity = Literal["ids", "raw_text", "reserialised"]
Placement = Literal["message", "observation"]
HintRole = Literal["user", "system"]
QuoteField = Literal["content", "reasoning", "tool_name", "arguments"]
Verdict = Literal["findings", "none", "not_student", "abstain"]
Split = Literal["train", "holdout"]


class Record(BaseModel):
    """A frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))


class ToolCall(Record):
    """One call the student made. The raw string is the truth; the parsed object is derived."""

    name: str
    arguments_raw: str
    """The arguments exactly as the model wrote them, or as the source stored them."""
    id: str | None = None
    arguments_form: Literal["string", "object"] = "string"
    """`object`: the source kept a parsed object, so `arguments_raw` is our serialisation, not the model's text."""

    @property
    def arguments(self) -> dict[str, Any] | None:
        """The parsed arguments, or None where the raw string is not a JSON object."""
        try:
            value = json.loads(self.arguments_raw)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


class Message(Record):
    """One message of a trace. Token fields are set on assistant messages only, where they were recorded."""

    role: Role
    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    """The context: every token the student had read when it began this message, assistant header included."""
    token_ids: tuple[int, ...] | None = None
    """The tokens it then sampled, end-of-turn token included where it was sampled."""
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each sampled token at the time of sampling, nats; same length as `token_ids`."""
    raw_text: str | None = None
    """The text as generated, before any server parsed it, without the end-of-turn token."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Whatever else the source said of this message."""

    @field_validator("prompt_token_ids", "token_ids", "logprobs", mode="before")
    @classmethod
    def _empty_means_absent(cls, value: Any) -> Any:
        return None if value is not None and len(value) == 0 else value

    @model_validator(mode="after")
    def _lengths(self) -> Message:
        if self.logprobs is not None and len(self.logprobs) != len(self.token_ids or ()):
            raise ValueError(
                f"{len(self.logprobs)} log-probabilities for {len(self.token_ids or ())} token ids: they must pair up"
            )
        return self


class Source(Record):
    """Where a record came from, so that an error message can point at it."""

    file: str
    position: str
    """`line 7`, `record 3`, ..., counted from 1."""

    def __str__(self) -> str:
        return f"{self.file}, {self.position}"


class Trace(Record):
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
    extra: dict[str, Any] = Field(default_factory=dict)

    @cached_property
    def step_indices(self) -> tuple[int, ...]:
        """Index into `messages` of each step; step k is `messages[step_indices[k]]`."""
        return tuple(i for i, m in enumerate(self.messages) if m.role == "assistant")

    def step(self, k: int) -> Message:
        """The assistant message of step `k`. Raises IndexError with the legal range."""
        if not 0 <= k < len(self.step_indices):
            raise IndexError(f"trace {self.id} has steps 0..{len(self.step_indices) - 1}, not {k}")
        return self.messages[self.step_indices[k]]

    def before(self, k: int) -> tuple[Message, ...]:
        """The messages the student had read when it produced step `k`."""
        self.step(k)
        return self.messages[: self.step_indices[k]]

    @cached_property
    def tool_schemas(self) -> dict[str, dict[str, Any]]:
        """Parameter schema (JSON schema of an object) by tool name."""
        functions = [t.get("function", t) for t in self.tools]
        return {f["name"]: f.get("parameters") or {} for f in functions if "name" in f}


class Finding(Record):
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
    facts: dict[str, Any] = Field(default_factory=dict)
    """Values a hint template may use: `wrong`, `right`, `tool`, `error`, ..."""


class Usage(Record):
    """What a critique cost, tokens as the server counted them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Critique(Record):
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


class PlaceboBlock(Record):
    """The tokens of a hint that should do nothing, for the same place as the hint."""

    kind: Literal["generic", "shuffled", "other_class"]
    text: str
    insert_at: int
    block_ids: tuple[int, ...] = Field(min_length=1)


class Injection(Record):
    """A context, the same context with the hint in it, and the step's ids, shared verbatim by both.

    The hint is one contiguous insertion: `hinted_context_ids = context[:p] + block + context[p:]`. Because the hinted
    context is derived and never stored, no other difference between the two can be written down.
    """

    trace_id: str
    finding: Finding
    hint: str
    context_ids: tuple[int, ...]
    insert_at: int
    block_ids: tuple[int, ...] = Field(min_length=1)
    step_ids: tuple[int, ...] = Field(min_length=1)
    span: tuple[int, int]
    """Half-open token range of the step that the quote covers; the whole step without a quote."""
    quote_found: Literal["exact", "normalised", "whole_step"] = "whole_step"
    fidelity: Fidelity
    placement: Placement
    role: HintRole | None = None
    """Role of the hint message; None where the hint went into an existing message."""
    notes: tuple[str, ...] = ()
    """`spliced_block`, `rewritten_history`, `boundary_shifted`, fallbacks taken and why."""
    guards: tuple[str, ...] = ()
    """Text-level reasons against the hint: `leak: …`, `dialect: …`. The gate decides on them."""
    recorded_logprobs: tuple[float, ...] | None = None
    """Log-probabilities the trace recorded for the step, where it did."""
    placebos: tuple[PlaceboBlock, ...] = ()
    legal: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    """Step position → ids a tool schema allows there, besides the sampled one; positions no schema speaks of are absent."""

    @model_validator(mode="after")
    def _ranges(self) -> Injection:
        if not 0 <= self.insert_at <= len(self.context_ids):
            raise ValueError(f"insert_at {self.insert_at} outside the context of {len(self.context_ids)} tokens")
        start, end = self.span
        if not 0 <= start < end <= len(self.step_ids):
            raise ValueError(f"span {self.span} outside the step of {len(self.step_ids)} tokens")
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


@dataclass(frozen=True)
class ScoreRequest:
    """Score `ids[start:end]` given everything before it. Token ids only; text never reaches an engine."""

    ids: np.ndarray
    """int64 [S]; positions at or after `end` are never read."""
    start: int
    end: int
    group: str | None = None
    """Requests of one group (the views of one step, hence the same step length) are scored on the union of their ids."""
    gather_ids: np.ndarray | None = None
    """int64 [G]: ids whose log-probability is wanted at every scored position."""

    def __post_init__(self) -> None:
        if not 0 < self.start < self.end <= len(self.ids):
            raise ValueError(f"cannot score ids[{self.start}:{self.end}] of {len(self.ids)}: need 0 < start < end <= S")


@dataclass(frozen=True)
class Scores:
    """What one view says about each token of a step. Every number is finite, except the padding of `topk_*`."""

    sampled: np.ndarray
    """float32 [T]: log-probability of the token that is there."""
    topk_ids: np.ndarray
    """int64 [T, K]: the kept ids, each once per row; rows with fewer ids end in -1."""
    topk_logprobs: np.ndarray
    """float32 [T, K]: their log-probabilities; -inf at id -1."""
    tail_logprob: np.ndarray
    """float32 [T]: log(1 - sum of p over the kept ids and the sampled id, each once); -inf where nothing is left."""
    gathered: np.ndarray | None = None
    """float32 [T, G] where the request asked for `gather_ids`."""
    top1: np.ndarray | None = None
    """int64 [T]: the id this view would continue with."""


@dataclass(frozen=True)
class Measurement:
    """What one hint (or placebo) did to a step, as far as the gate asks. Nats throughout."""

    position: int | None
    """The decision token: index into the step's tokens of the first token of the span at which the hinted view's top-1
    leaves the sampled token; None where it never does."""
    instead_id: int | None
    """What the hinted view would say there."""
    effect: float
    """Hint effect at the decision token; 0.0 where there is none."""
    plain_logprob: float
    """Log-probability of the decision token without the hint; 0.0 where there is none."""
    max_raise: float
    """Largest hint effect over quoted tokens that are not negligible under the hint; 0.0 without a quote."""
    specificity: float
    """Mean effect on the span minus mean effect on the step's other tokens, minus the same under the placebos."""
    legal_mass_gain: float | None
    """Change in probability of the legal continuations at the decision token; None where no schema defines them."""
    best_placebo: float
    """Lowest effect of any placebo at the decision token."""


@dataclass(frozen=True)
class DecisionToken:
    """The decision token in words."""

    position: int
    token: str
    instead: str
    logprob_plain: float
    logprob_hinted: float

    @property
    def effect(self) -> float:
        """Hint effect at the decision token, nats; negative when the hint makes the sampled token less likely."""
        return self.logprob_hinted - self.logprob_plain


@dataclass(frozen=True)
class Placebo:
    """A hint that should do nothing, scored in the same place."""

    kind: str
    """`generic`, `shuffled` or `other_class`."""
    text: str
    hint_effect: np.ndarray
    """float32 [T], nats."""
    measurement: Measurement
    """The placebo measured as if it were the hint, against the other placebos: the gate's null."""


@dataclass(frozen=True)
class Target:
    """The distribution to match on one step, what the hint did to it, and whether it was accepted.

    `support_ids` are student top-k, teacher top-k and the sampled id, each once; the tails are the rest of the
    vocabulary. When targets are made the student is the plain view, because the run has not trained anything yet. An
    `anchor` target has no hint: its teacher is the plain view itself, and it holds the student where it is.
    """

    key: str
    trace_id: str
    step: int
    kind: Literal["hint", "anchor"]
    split: Split
    context_ids: np.ndarray
    """int64 [C]: the student's (un-hinted) context."""
    step_ids: np.ndarray
    """int64 [T]"""
    span: tuple[int, int]
    """Quoted tokens, half-open; the whole step without a quote."""
    support_ids: np.ndarray
    """int64 [T, K], -1 pads"""
    teacher_logprobs: np.ndarray
    """float32 [T, K], -inf at pads"""
    plain_logprobs: np.ndarray
    """float32 [T, K], -inf at pads"""
    teacher_tail: np.ndarray
    """float32 [T]"""
    plain_tail: np.ndarray
    """float32 [T]"""
    teacher_sampled: np.ndarray
    """float32 [T]"""
    plain_sampled: np.ndarray
    """float32 [T]"""
    insert_at: int = 0
    block_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [H]: the hint's tokens, spliced into the context at `insert_at` for the teacher; empty for an anchor."""
    error_class: str | None = None
    hint: str | None = None
    fidelity: Fidelity = "ids"
    measurement: Measurement | None = None
    placebos: tuple[Placebo, ...] = ()
    guards: tuple[str, ...] = ()
    accepted: bool = False
    reasons: tuple[str, ...] = ()
    """Why it was rejected; empty when accepted."""
    tokens: tuple[str, ...] = ()
    """The step's tokens as text."""
    instead: tuple[str, ...] = ()
    """What the teacher would say at each position, as text."""
    recorded_gap: float | None = None
    """Mean |log p recorded - log p now| over the step, where the trace recorded log-probabilities; nats per token."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Keys of the weights and of the renderer (tokenizer and template) that made this row."""

    @property
    def hint_effect(self) -> np.ndarray:
        """E_t = log p(teacher) - log p(plain) of each sampled token, float32 [T], nats. Alone it proves nothing."""
        return self.teacher_sampled - self.plain_sampled

    @property
    def decision(self) -> DecisionToken | None:
        """The token where the hint changes course; None where it changes none."""
        m = self.measurement
        if m is None or m.position is None:
            return None
        return DecisionToken(
            position=m.position,
            token=self.tokens[m.position],
            instead=self.instead[m.position],
            logprob_plain=float(self.plain_sampled[m.position]),
            logprob_hinted=float(self.teacher_sampled[m.position]),
        )

    @property
    def specificity(self) -> float | None:
        """Nats; below zero the hint speaks to the error and not to style."""
        return None if self.measurement is None else self.measurement.specificity

    @property
    def legal_mass_gain(self) -> float | None:
        """Probability the legal continuations gained at the decision token; None where no schema defines them."""
        return None if self.measurement is None else self.measurement.legal_mass_gain

    def shifts(self, n: int = 5) -> list[TokenShift]:
        """The `n` tokens whose probability the hint moved most, largest change first."""
        change = np.abs(np.exp(self.teacher_sampled) - np.exp(self.plain_sampled))
        order = np.argsort(-change, kind="stable")[:n]
        return [
            TokenShift(
                position=int(t),
                token=self.tokens[t],
                before=float(np.exp(self.plain_sampled[t])),
                after=float(np.exp(self.teacher_sampled[t])),
                instead=self.instead[t],
            )
            for t in order
        ]


@dataclass(frozen=True)
class TokenShift:
    """One token that the hint moved: probability before and under the hint, and what the teacher would say instead."""

    position: int
    token: str
    before: float
    after: float
    instead: str

"""Define the answers of an LLM critic: small JSON objects, their schemas and their validation.

Each schema is made for one question and allows only the step numbers of its record. With constrained decoding, an
answer cannot contradict itself: the verdict `findings` comes with findings, and every other verdict without.

`critic.llm.fields` adds fields to the short form of an answer. With `decisive`, `failed_by` replaces the verdict, so
that a critic can report an agent's mistakes in a run that failed because of a user or a tool.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hintdistill.core.errors import InputError
from hintdistill.core.masking import mask_all
from hintdistill.core.types import QuoteField, Usage, Verdict

QUOTE_LENGTH, CLASS_LENGTH, HINT_LENGTH, ANALYSIS_LENGTH = 300, 48, 400, 1200
"""Length limits of strings in characters, so that constrained decoding always ends."""
MOST_BRACES = 5_000
"""Maximum number of opening braces at which the parser looks for an answer, so that every text is parsed quickly."""
MOST_REPLACEMENTS = 3
"""Maximum number of replacements in one edit; more would not be a small edit."""


_DECODER = json.JSONDecoder(strict=False)
Culprit = Literal["agent", "other", "nobody", "unclear"]
"""Cause of a failed run: the agent; another party, i.e. a user or a tool; `nobody` if the run succeeded; `unclear` if
the record does not tell."""
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Answer(BaseModel):
    """Base class of answers; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class LLMEdit(Answer):
    """Words of what the agent had read, and others in their place."""

    quote: str
    replacement: str


class LLMFinding(Answer):
    """One mistake, as the critic states it."""

    step: int
    quote: str | None
    error_class: str
    hint: str
    confidence: Finite
    caused_by: int | None
    twin: list[LLMEdit] | None = None
    """The smallest edit that would make the step right; requested only if twins are made."""
    decisive: bool | None = None
    """Whether the run would have succeeded without this mistake."""
    quote_in: QuoteField | None = None
    call: Annotated[int, Field(ge=0)] | None = None


class LLMAnswer(Answer):
    """The answer about a whole record."""

    verdict: Verdict | None = None
    findings: list[LLMFinding]
    analysis: str = ""
    failed_by: Culprit | None = None

    @model_validator(mode="after")
    def _fits(self) -> LLMAnswer:
        if (self.verdict is None) == (self.failed_by is None):
            raise ValueError("give either a verdict or who made the run fail, but not both")
        if self.verdict is not None and (self.verdict == "findings") != bool(self.findings):
            raise ValueError(f"the verdict {self.verdict!r} does not fit {len(self.findings)} findings")
        if self.failed_by == "agent" and not self.findings:
            raise ValueError("the agent made the run fail, but the answer names none of its mistakes")
        return self

    @property
    def outcome(self) -> Verdict:
        """The verdict, derived from the cause of the failure if the answer states that instead."""
        if self.verdict is not None:
            return self.verdict
        if self.findings:
            return "findings"
        told: dict[str, Verdict] = {"other": "not_student", "nobody": "none", "unclear": "abstain"}
        return told[str(self.failed_by)]

    def marked(self) -> list[LLMFinding]:
        """Return the findings in step order, with at most one marked as decisive: of several, the most confident one.

        If the agent did not cause the failure, none of its mistakes is decisive. Unmarked findings stay unmarked.
        """
        found = sorted(self.findings, key=lambda f: f.step)
        if self.failed_by is None:
            return found
        claimed = [f for f in found if f.decisive] if self.failed_by in ("agent", "unclear") else []
        best = max(claimed, key=lambda f: f.confidence, default=None)
        return [f.model_copy(update={"decisive": f is best}) for f in found]


class StepAnswer(Answer):
    """The answer about one step; the other fields count only if it is a mistake."""

    mistake: bool
    quote: str | None
    error_class: str
    hint: str
    confidence: Finite
    twin: list[LLMEdit] | None = None
    analysis: str = ""
    quote_in: QuoteField | None = None
    call: Annotated[int, Field(ge=0)] | None = None


class HalfAnswer(Answer):
    """Which half of a range of steps holds the first mistake."""

    half: Literal["first", "second", "none", "not_student", "abstain"]


class HintAnswer(Answer):
    """Another hint for a finding whose first one did not do."""

    hint: str


class AnswerError(InputError):
    """The critic's answer is still unusable after the repair rounds."""

    def __init__(self, message: str, raw: str) -> None:
        super().__init__(message, hint="the raw answer is in the failure row")
        self.raw = raw
        self.usage = Usage()


class CutOffError(AnswerError):
    """The token limit cut the answer before it was usable; the same question would be cut there again."""

    def __init__(self, trace: str, tokens: int, raw: str, section: str) -> None:
        super().__init__(
            f"trace {trace}: the critic's answer was cut off after {tokens} tokens, reasoning included", raw
        )
        self.hint = f"raise critic.{section}.max_tokens; the trace is then critiqued again"


A = TypeVar("A", bound=Answer)


def parse(kind: type[A], text: str, legal_steps: tuple[int, ...] = ()) -> A:
    """Validate an answer: the last JSON object in the text that fits the schema. Text around it, such as reasoning, is
    ignored.

    Raises:
        ValueError: the answer is invalid; the message tells the model how to correct it.
    """
    # what a model drafts while it thinks is no answer where one follows
    _, thought, said = text.rpartition("</think>")
    text = said if thought and "{" in said else text
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError("it contains no JSON object")
    found, problem = _objects(text), ""
    for _, candidate in reversed(found):
        try:
            return _valid(kind, candidate, legal_steps)
        except ValueError as error:
            problem = problem or str(error)
    # the objects inside a broken one say nothing about what is wrong with it
    if problem and found[0][0] == start:
        raise ValueError(problem)
    return _valid(kind, text[start : end + 1], legal_steps)


def _objects(text: str) -> list[tuple[int, str]]:
    """Return the outermost JSON objects of a text in order, each with its start. Raises ValueError if there are too
    many braces."""
    out: list[tuple[int, str]] = []
    at, tries = text.find("{"), 0
    while at >= 0:
        tries += 1
        if tries > MOST_BRACES:
            raise ValueError(f"it contains more than {MOST_BRACES} opening braces and no answer")
        try:
            _, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            out.append((at, text[at:end]))
        at = text.find("{", end)
    return out


def _valid(kind: type[A], text: str, legal_steps: tuple[int, ...]) -> A:
    try:
        answer = kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the object'}: {first['msg']}") from None
    # an escape in the answer may have spelled the key that was sent
    answer = kind.model_validate(mask_all(answer.model_dump()))
    if isinstance(answer, LLMAnswer):
        for finding in answer.findings:
            if finding.step not in legal_steps:
                shown = ", ".join(map(str, legal_steps[:40]))
                raise ValueError(f"step {finding.step} does not exist; the steps are {shown}")
    return answer


@dataclass(frozen=True)
class Form:
    """Describe the form of an answer.

    `bounds` limits the number of findings and the length of every string, and makes the verdict agree with the
    findings. The strict modes of some services refuse such keywords; without `bounds` the schema has no limits.
    `ranged` gives the confidence as a range instead of the numbers 0.0, 0.1, …, because xgrammar, which vLLM uses,
    would write 0.9 as 0.90000000000000002. `edits` adds the edit of a twin; `fields` are those of `critic.llm.fields`.
    """

    bounds: int | None = None
    ranged: bool = False
    edits: bool = False
    fields: tuple[str, ...] = ()


def answer_schema(legal_steps: tuple[int, ...], form: Form = Form()) -> dict[str, Any]:
    """Return the JSON schema of an `LLMAnswer`; see `Form`."""
    schema = LLMAnswer.model_json_schema()
    steps = {"type": "integer", "enum": list(legal_steps)}
    finding = _finding_schema(schema.pop("$defs")["LLMFinding"], form)
    finding["properties"]["step"] = steps
    finding["properties"]["caused_by"] = {"anyOf": [steps, {"type": "null"}]}
    findings = {"type": "array", "items": finding}
    none = {"type": "array", "items": {"type": "null"}, "maxItems": 0}
    bounds = {} if form.bounds is None else {"maxItems": form.bounds}
    if "decisive" in form.fields:
        # who made the run fail comes before the findings, which it does not bind
        def told_by(who: list[str], listed: dict[str, Any]) -> dict[str, Any]:
            return _object({**_analysis(form), "failed_by": {"type": "string", "enum": who}, "findings": listed})

        everyone = list(get_args(Culprit))
        if form.bounds is None:
            return told_by(everyone, findings)
        others = told_by(everyone[1:], (findings | bounds) if legal_steps else none)
        agent = told_by(everyone[:1], findings | {"minItems": 1} | bounds)
        return {"anyOf": [agent, others] if legal_steps else [others]}
    if form.bounds is None:
        verdict = {"type": "string", "enum": list(get_args(Verdict))}
        return _object({**_analysis(form), "verdict": verdict, "findings": findings})

    def told(verdicts: list[str], listed: dict[str, Any]) -> dict[str, Any]:
        return _object({**_analysis(form), "verdict": {"type": "string", "enum": verdicts}, "findings": listed})

    found = told(["findings"], findings | {"minItems": 1} | bounds)
    nothing = told(["none", "not_student", "abstain"], none)
    return {"anyOf": [found, nothing] if legal_steps else [nothing]}


def step_schema(form: Form = Form()) -> dict[str, Any]:
    """Return the JSON schema of a `StepAnswer`; see `Form`."""
    schema = StepAnswer.model_json_schema()
    del schema["$defs"], schema["properties"]["analysis"]
    made = _finding_schema(schema, form)
    made["properties"] = {**_analysis(form), **made["properties"]}
    made["required"] = [*_analysis(form), *made["required"]]
    return made


def _analysis(form: Form) -> dict[str, Any]:
    """Return the property that holds the critic's analysis. It comes first, so that the decision follows from it."""
    if "analysis" not in form.fields:
        return {}
    return {"analysis": {"type": "string"} | ({} if form.bounds is None else {"maxLength": ANALYSIS_LENGTH})}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def half_schema() -> dict[str, Any]:
    """Return the JSON schema of a `HalfAnswer`."""
    return HalfAnswer.model_json_schema()


def hint_schema(bounded: bool) -> dict[str, Any]:
    """Return the JSON schema of a `HintAnswer`."""
    schema = HintAnswer.model_json_schema()
    if bounded:
        schema["properties"]["hint"]["maxLength"] = HINT_LENGTH
    return schema


def _finding_schema(schema: dict[str, Any], form: Form) -> dict[str, Any]:
    properties = schema["properties"]
    steps = {"minimum": 0, "maximum": 1} if form.ranged else {"enum": [n / 10 for n in range(11)]}
    properties["confidence"] = {"type": "number"} | steps
    bounded = form.bounds is not None
    if bounded:
        properties["quote"]["anyOf"][0]["maxLength"] = QUOTE_LENGTH
        properties["error_class"]["maxLength"] = CLASS_LENGTH
        properties["hint"]["maxLength"] = HINT_LENGTH
    more: dict[str, dict[str, Any]] = {}
    if "decisive" in form.fields and "decisive" in properties:
        more["decisive"] = {"type": "boolean"}
    if "place" in form.fields:
        more["quote_in"] = {"anyOf": [{"type": "string", "enum": list(get_args(QuoteField))}, {"type": "null"}]}
        more["call"] = {"anyOf": [{"type": "integer"} | ({"minimum": 0} if bounded else {}), {"type": "null"}]}
    if form.edits:
        more["twin"] = {"anyOf": [_edit_schema(bounded), {"type": "null"}]}
    for name in ("twin", "decisive", "quote_in", "call"):
        properties.pop(name, None)
    # strict modes want every key, so that what is not there is null
    properties |= more
    schema["required"] += more
    return schema


def _edit_schema(bounded: bool) -> dict[str, Any]:
    part = LLMEdit.model_json_schema()
    if not bounded:
        return {"type": "array", "items": part}
    for words in part["properties"].values():
        words["maxLength"] = QUOTE_LENGTH
    return {"type": "array", "items": part, "minItems": 1, "maxItems": MOST_REPLACEMENTS}

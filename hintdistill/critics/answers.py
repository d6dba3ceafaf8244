"""What an LLM critic may answer: three small JSON objects, their schemas, and their validation.

Each schema is made for one question, with the step numbers of the record as the only legal ones. Where decoding is
constrained, an answer cannot contradict itself: the verdict `findings` comes with findings, every other verdict without.
"""

from __future__ import annotations

import copy
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hintdistill.core.errors import InputError
from hintdistill.core.types import Usage, Verdict

QUOTE_LENGTH, CLASS_LENGTH, HINT_LENGTH = 300, 48, 400
"""Bounds on strings, characters, so that constrained decoding always comes to an end."""
MOST_BRACES = 5_000
"""Opening braces at which an answer's object is looked for, so that no text takes long to read."""
MOST_REPLACEMENTS = 3
"""Replacements of one edit, at most: more are no small edit."""


_DECODER = json.JSONDecoder(strict=False)
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Answer(BaseModel):
    """An answer that refuses unknown keys."""

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
    """The smallest edit under which the step would be right; asked for only where twins are made."""


class LLMAnswer(Answer):
    """The answer about a whole record."""

    verdict: Verdict
    findings: list[LLMFinding]

    @model_validator(mode="after")
    def _fits(self) -> LLMAnswer:
        if (self.verdict == "findings") != bool(self.findings):
            raise ValueError(f"the verdict {self.verdict!r} does not go with {len(self.findings)} findings")
        return self


class StepAnswer(Answer):
    """The answer about one step; the other fields count only where it is a mistake."""

    mistake: bool
    quote: str | None
    error_class: str
    hint: str
    confidence: Finite
    twin: list[LLMEdit] | None = None


class HalfAnswer(Answer):
    """Which half of a range of steps holds the first mistake."""

    half: Literal["first", "second", "none", "not_student", "abstain"]


class HintAnswer(Answer):
    """Another hint for a finding whose first one did not do."""

    hint: str


class AnswerError(InputError):
    """The critic's answer cannot be used, after the repair rounds."""

    def __init__(self, message: str, raw: str) -> None:
        super().__init__(message, hint="the raw answer is in the failure row")
        self.raw = raw
        self.usage = Usage()


A = TypeVar("A", bound=Answer)


def parse(kind: type[A], text: str, legal_steps: tuple[int, ...] = ()) -> A:
    """Validate an answer: the last JSON object in the text that is one. Thoughts and prose around it count for nothing.

    Raises:
        ValueError: what is wrong with it, in words a model can act on.
    """
    # what a model drafts while it thinks is no answer where one follows
    _, thought, said = text.rpartition("</think>")
    text = said if thought and "{" in said else text
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError("it holds no JSON object")
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
    """The outermost JSON objects of a text and where each begins, in order; raises ValueError for too many braces."""
    out: list[tuple[int, str]] = []
    at, tries = text.find("{"), 0
    while at >= 0:
        tries += 1
        if tries > MOST_BRACES:
            raise ValueError(f"it opens more than {MOST_BRACES} braces without an answer")
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
    if isinstance(answer, LLMAnswer):
        for finding in answer.findings:
            if finding.step not in legal_steps:
                shown = ", ".join(map(str, legal_steps[:40]))
                raise ValueError(f"step {finding.step} does not exist; the steps are {shown}")
    return answer


def answer_schema(
    legal_steps: tuple[int, ...], bounds: int | None = None, ranged: bool = False, edits: bool = False
) -> dict[str, Any]:
    """JSON schema of an `LLMAnswer`.

    `bounds` limits the number of findings, and then also the length of every string, and ties verdict and findings
    together. Strict modes of some services refuse such keywords; without `bounds` the schema has none. `ranged` states the
    confidence as a range and not as the numbers 0.0, 0.1, …: xgrammar, which vLLM uses, would spell 0.9 as 0.90000000000000002.
    `edits` asks for the edit of a twin.
    """
    schema = LLMAnswer.model_json_schema()
    steps = {"type": "integer", "enum": list(legal_steps)}
    finding = _finding_schema(schema.pop("$defs")["LLMFinding"], bounds is not None, ranged, edits)
    finding["properties"]["step"] = steps
    finding["properties"]["caused_by"] = {"anyOf": [steps, {"type": "null"}]}
    schema["properties"]["findings"]["items"] = finding
    if bounds is None:
        return schema
    found, nothing = schema, copy.deepcopy(schema)
    found["properties"]["verdict"] = {"type": "string", "enum": ["findings"]}
    found["properties"]["findings"] |= {"minItems": 1, "maxItems": bounds}
    nothing["properties"]["verdict"] = {"type": "string", "enum": ["none", "not_student", "abstain"]}
    nothing["properties"]["findings"] = {"type": "array", "items": {"type": "null"}, "maxItems": 0}
    return {"anyOf": [found, nothing] if legal_steps else [nothing]}


def step_schema(bounded: bool, ranged: bool = False, edits: bool = False) -> dict[str, Any]:
    """JSON schema of a `StepAnswer`; see `answer_schema`."""
    schema = StepAnswer.model_json_schema()
    del schema["$defs"]
    return _finding_schema(schema, bounded, ranged, edits)


def half_schema() -> dict[str, Any]:
    """JSON schema of a `HalfAnswer`."""
    return HalfAnswer.model_json_schema()


def hint_schema(bounded: bool) -> dict[str, Any]:
    """JSON schema of a `HintAnswer`."""
    schema = HintAnswer.model_json_schema()
    if bounded:
        schema["properties"]["hint"]["maxLength"] = HINT_LENGTH
    return schema


def _finding_schema(schema: dict[str, Any], bounded: bool, ranged: bool, edits: bool) -> dict[str, Any]:
    properties = schema["properties"]
    steps = {"minimum": 0, "maximum": 1} if ranged else {"enum": [n / 10 for n in range(11)]}
    properties["confidence"] = {"type": "number"} | steps
    if bounded:
        properties["quote"]["anyOf"][0]["maxLength"] = QUOTE_LENGTH
        properties["error_class"]["maxLength"] = CLASS_LENGTH
        properties["hint"]["maxLength"] = HINT_LENGTH
    del properties["twin"]
    if edits:
        # strict modes want every key, so that an edit is null where there is none
        properties["twin"] = {"anyOf": [_edit_schema(bounded), {"type": "null"}]}
        schema["required"].append("twin")
    return schema


def _edit_schema(bounded: bool) -> dict[str, Any]:
    part = LLMEdit.model_json_schema()
    if not bounded:
        return {"type": "array", "items": part}
    for words in part["properties"].values():
        words["maxLength"] = QUOTE_LENGTH
    return {"type": "array", "items": part, "minItems": 1, "maxItems": MOST_REPLACEMENTS}

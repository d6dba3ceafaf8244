"""An LLM critic behind any OpenAI-compatible server.

The prompt is a Jinja file; the answer is JSON that a pydantic model defines: constrained by the server where it can,
validated here always, with one round in which the model is told what was wrong with its answer. The trace goes in as
one JSON object per line, so that no text inside it can end the record or pose as the prompt: a line break or a quote in
a message is an escape in its line.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, ConfigDict, ValidationError

from hintdistill.config import LLMSection
from hintdistill.critics import Outcome, one_by_one
from hintdistill.critics.rules import RulesCritic
from hintdistill.errors import ConfigError, InputError, ServiceError
from hintdistill.prompts import PromptLibrary, hint_classes
from hintdistill.types import Critique, Finding, Trace, Usage, Verdict

VERSION = 1


class LLMFinding(BaseModel):
    """One mistake, as the critic states it."""

    model_config = ConfigDict(extra="forbid")

    step: int
    quote: str | None
    error_class: str
    hint: str
    confidence: float
    caused_by: int | None


class LLMAnswer(BaseModel):
    """The critic's whole answer. No findings means no error, unless it abstains; so no answer can contradict itself."""

    model_config = ConfigDict(extra="forbid")

    abstain: bool
    findings: list[LLMFinding]

    @property
    def verdict(self) -> Verdict:
        """The answer in one word."""
        return "findings" if self.findings else "abstain" if self.abstain else "none"


class AnswerError(InputError):
    """The critic's answer cannot be used, after the repair rounds."""

    def __init__(self, message: str, raw: str) -> None:
        super().__init__(message, hint="the raw answer is in the failure row")
        self.raw = raw


def answer_schema(legal_steps: list[int], bounds: int | None = None) -> dict[str, Any]:
    """JSON schema of the answer, with the step numbers of this trace as the only legal ones.

    `bounds` limits the number of findings, and then also the length of every string, so that constrained decoding
    always comes to an end. Some services refuse such keywords; without `bounds` the schema has none.
    """
    schema = LLMAnswer.model_json_schema()
    steps = {"type": "integer", "enum": legal_steps}
    properties = schema["$defs"]["LLMFinding"]["properties"]
    properties["step"] = steps
    properties["caused_by"] = {"anyOf": [steps, {"type": "null"}]}
    properties["confidence"] = {"type": "number", "enum": [n / 10 for n in range(11)]}
    if bounds is not None:
        properties["quote"]["anyOf"][0]["maxLength"] = 300
        properties["error_class"]["maxLength"] = 48
        properties["hint"]["maxLength"] = 400
        schema["properties"]["findings"]["maxItems"] = bounds
    return schema


def trace_lines(trace: Trace) -> str:
    """The trace as one JSON object per line; lines of the student carry their step number."""
    lines, step = [], 0
    for message in trace.messages:
        line: dict[str, Any] = {}
        if message.role == "assistant":
            line["step"] = step
            step += 1
        line["role"] = message.role
        if message.reasoning:
            line["reasoning"] = message.reasoning
        if message.content is not None:
            line["content"] = message.content
        if message.tool_calls:
            line["tool_calls"] = [{"name": c.name, "arguments": c.arguments_raw} for c in message.tool_calls]
        lines.append(json.dumps(line, ensure_ascii=False))
    return "\n".join(lines)


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class LLMCritic:
    """Asks a chat-completions server about each trace."""

    name = "llm"

    def __init__(self, config: LLMSection, prompts: PromptLibrary, allow_hosts: Iterable[str] = ()) -> None:
        """Set up the client.

        Raises:
            ConfigError: the server is outside this machine and its host is not allowed.
            PromptError: the prompt does not lint.
        """
        assert config.base_url is not None and config.model is not None
        host = urlsplit(config.base_url).hostname or ""
        if not is_loopback(host) and host not in set(allow_hosts):
            raise ConfigError(
                f"the critic at {config.base_url} is outside this machine",
                hint=f"traces may hold private data; to send them there, set critic.allow_hosts=[{host}]",
            )
        if problems := prompts.lint(config.prompt):
            raise ConfigError("; ".join(problems))
        self.config, self.prompts = config, prompts
        self._rules = RulesCritic(("unknown_tool", "unparsable_call", "wrong_argument", "call_in_prose", "ignored_error",
                                   "call_error", "repeated_failing_call"))  # fmt: skip
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=config.timeout_s,
            max_retries=config.retries,
        )

    def key(self, trace: Trace) -> str:
        """Hash of the settings and prompts; the key in the environment is not part of it."""
        settings = self.config.model_dump(mode="json", exclude={"timeout_s", "retries", "concurrency", "api_key_env"})
        hashes = [self.prompts.hash(n) for n in (self.config.prompt, "critic/repair.jinja")]
        return hashlib.sha256(json.dumps([VERSION, settings, hashes, self._rules.key(trace)]).encode()).hexdigest()

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """See `Critic.critique`."""
        return one_by_one(self.ask, traces, self.config.concurrency)

    def prompt(self, trace: Trace) -> str:
        """What the critic reads about a trace."""
        checks = [
            json.dumps(
                {"step": f.step, "check": f.error_class, "quote": f.quote, "evidence": f.evidence}, ensure_ascii=False
            )
            for f in self._rules.check(trace).findings
        ]
        legal = list(range(len(trace.step_indices)))
        return self.prompts.render(
            self.config.prompt,
            {
                "trace": trace_lines(trace),
                "tools": "\n".join(json.dumps(t.get("function", t), ensure_ascii=False) for t in trace.tools)
                or "none recorded",
                "legal_steps": legal,
                "checks": "\n".join(checks) or "nothing",
                "error_classes": hint_classes(self.prompts),
                "schema": json.dumps(self._schema(trace)),
            },
        )

    def _schema(self, trace: Trace) -> dict[str, Any]:
        legal = list(range(len(trace.step_indices)))
        return answer_schema(legal, self.config.max_findings if self.config.structured == "json_schema" else None)

    def ask(self, trace: Trace) -> Critique:
        """Critique one trace.

        Raises:
            AnswerError: no valid answer after the repair rounds.
            ServiceError: the request failed; `retryable` False means that the next one will fail too.
        """
        schema = self._schema(trace)
        messages = [{"role": "user", "content": self.prompt(trace)}]
        usage, notes, problem, text = Usage(), [], "", ""
        for round_ in range(self.config.repair_rounds + 1):
            text, spent = self._complete(messages, schema)
            usage = Usage(
                requests=usage.requests + 1,
                prompt_tokens=usage.prompt_tokens + spent.prompt_tokens,
                completion_tokens=usage.completion_tokens + spent.completion_tokens,
            )
            try:
                answer = parse_answer(text, len(trace.step_indices))
            except ValueError as error:
                problem = str(error)
                repair = {"answer": text, "problem": problem, "schema": json.dumps(schema)}
                messages = [
                    messages[0],
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": self.prompts.render("critic/repair.jinja", repair)},
                ]
                continue
            if round_:
                notes.append(f"repaired after {round_} round(s): {problem}")
            return self._critique(trace, answer, usage, text, tuple(notes))
        raise AnswerError(
            f"trace {trace.id}: no usable answer after {self.config.repair_rounds + 1} rounds: {problem}", text
        )

    def _critique(self, trace: Trace, answer: LLMAnswer, usage: Usage, raw: str, notes: tuple[str, ...]) -> Critique:
        findings = tuple(
            Finding(
                step=f.step,
                error_class=f.error_class.strip() or "other",
                quote=f.quote or None,
                hint=f.hint.strip() or None,
                confidence=min(1.0, max(0.0, f.confidence)),
                caused_by=f.caused_by if f.caused_by is not None and f.caused_by < f.step else None,
                critic=self.name,
            )
            for f in sorted(answer.findings, key=lambda f: f.step)
        )
        return Critique(
            trace_id=trace.id, verdict=answer.verdict, findings=findings, critics=(self.name,), usage=usage,
            raw_answer=raw, notes=notes,
        )  # fmt: skip

    def _complete(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> tuple[str, Usage]:
        extra: dict[str, Any] = {}
        if self.config.structured != "none":
            spec = {"name": "critique", "schema": schema, "strict": self.config.structured == "json_schema_strict"}
            extra["response_format"] = {"type": "json_schema", "json_schema": spec}
        if self.config.seed is not None:
            extra["seed"] = self.config.seed
        try:
            response = self._client.chat.completions.create(
                model=self.config.model or "",
                messages=messages,  # type: ignore[arg-type]
                temperature=self.config.temperature,
                max_tokens=self.config.max_tokens,
                **extra,
            )
        except openai.APIError as error:
            raise self._service_error(error) from error
        if not response.choices:
            return "", Usage(requests=1)
        spent = response.usage
        return response.choices[0].message.content or "", Usage(
            requests=1,
            prompt_tokens=spent.prompt_tokens if spent else 0,
            completion_tokens=spent.completion_tokens if spent else 0,
        )

    def _service_error(self, error: openai.APIError) -> ServiceError:
        url = self.config.base_url
        if isinstance(error, openai.APITimeoutError):
            return ServiceError(f"{url} gave no answer within {self.config.timeout_s:g} s, {self.config.retries + 1} times",
                                hint="raise critic.llm.timeout_s, or lower critic.llm.concurrency")  # fmt: skip
        if isinstance(error, openai.APIConnectionError):
            failure = ServiceError(f"cannot reach the critic at {url} ({self.config.retries + 1} attempts): {error.__cause__ or error}",
                                   hint="start the server or correct critic.llm.base_url; --resume keeps what was done")  # fmt: skip
            failure.retryable = False
            return failure
        failure = ServiceError(f"{url} refused: {error.message[:500]}")
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError):
            failure.hint = f"check critic.llm.model ({self.config.model}) and the key in ${self.config.api_key_env}"
            failure.retryable = False
        return failure


def parse_answer(text: str, steps: int) -> LLMAnswer:
    """Validate an answer. Raises ValueError saying what is wrong with it, in words a model can act on."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError("it holds no JSON object")
    try:
        answer = LLMAnswer.model_validate_json(text[start : end + 1])
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the object'}: {first['msg']}") from None
    for finding in answer.findings:
        if not 0 <= finding.step < steps:
            raise ValueError(f"step {finding.step} does not exist; the steps are 0..{steps - 1}")
    return answer

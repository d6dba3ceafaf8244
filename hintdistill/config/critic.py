"""Settings of the critics, their backends and strategies (2. critique)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from hintdistill.config.base import Section
from hintdistill.core.extensions import CRITICS, STRATEGIES
from hintdistill.core.paths import ConfigPath, CriticModel, ObjectPath, OutputPath
from hintdistill.core.registry import NameIn
from hintdistill.prompts import ROLE_OF

Check = Literal[
    "unknown_tool",
    "unparsable_call",
    "wrong_argument",
    "call_in_prose",
    "ignored_error",
    "call_error",
    "repeated_failing_call",
]
CHECKS: tuple[Check, ...] = get_args(Check)


class RulesSection(Section):
    """Choose the deterministic checks."""

    checks: tuple[Check, ...] = CHECKS
    """The checks to make; docs/critics.md says what each one finds."""


class RecordedSection(Section):
    """Use findings from a file: from human labels, another tool, or an environment's checker."""

    path: ConfigPath | None = None
    """A JSONL file with one finding per line: `trace`, `step`, `error_class`, and optionally `quote` and `hint`."""
    error_classes: tuple[str, ...] | None = None
    """Use only findings of these classes."""


AnswerField = Literal["analysis", "decisive", "place"]


class LLMSection(Section):
    """Configure an LLM critic: its server or model, its prompts and its limits."""

    backend: Literal["server", "vllm", "local"] = "server"
    """`server`: any OpenAI-compatible server; `vllm`: vLLM in this process; `local`: a transformers model in this
    process, whose decoding is constrained by llguidance."""
    base_url: str | None = None
    """Address of the server, up to and including `/v1`."""
    more_urls: tuple[str, ...] = ()
    """Further servers of the same model. Each question goes to the server with the fewest open questions. If a server
    fails, its questions go to the others. `concurrency` applies to all servers together."""
    model: CriticModel | None = None
    """The model's name on the server. With `vllm` or `local`, a folder or hub name; by default the student itself."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; a server that needs no key gets a placeholder."""
    strategy: Annotated[str, NameIn(STRATEGIES)] = "all_at_once"
    """`all_at_once`: one question about the whole trace; `step_by_step`: one question per step with its context, until
    the first mistake; `binary_search`: which half contains the first mistake, until one step is left."""
    prompt: tuple[str, ...] = ()
    """Prompts that replace the strategy's shipped ones (`critic/all_at_once.jinja`; `critic/step.jinja`).
    `binary_search` takes two: which half, and which mistake within a step (`[critic/half.jinja,
    critic/step.jinja]`)."""
    votes: int = Field(default=1, ge=1)
    """How often each trace is judged; the share of votes that name a step becomes its confidence. More than one vote
    needs a temperature above 0."""
    min_agreement: float = Field(default=0.5, ge=0.0, le=1.0)
    """Findings named by a smaller share of the votes are dropped and counted."""
    temperature: float = Field(default=0.0, ge=0.0)
    """Sampling temperature of the critic; 0 is greedy."""
    max_tokens: int = Field(default=1024, ge=1)
    """Maximum number of tokens in an answer, reasoning included."""
    context_tokens: int | None = Field(default=None, ge=64)
    """Context length of the critic in tokens. A longer trace is read in windows. Default: the limit of the model or the
    server."""
    overlap: int = Field(default=2, ge=0)
    """Number of messages that neighbouring windows share."""
    tokenizer: ConfigPath | None = None
    """Folder of the tokenizer that counts a server's tokens; without one, three bytes count as a token."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds for one whole answer, from the first byte sent to the last byte received."""
    retries: int = Field(default=3, ge=0)
    """Number of retries after a rate limit, a server error or a time-out."""
    concurrency: int = Field(default=8, ge=1)
    """Traces in flight at a server; with `vllm` and `local`, traces per batch."""
    structured: Literal["json_schema", "json_schema_strict", "none"] = "json_schema"
    """`json_schema` asks the server to constrain its output, with bounded lengths; `json_schema_strict` uses only the
    subset that strict modes of cloud services accept; `none` only validates the answer. `vllm` and `local` always
    constrain."""
    fields: tuple[AnswerField, ...] = ("analysis", "decisive", "place")
    """What an answer contains in addition to verdict, step, quote, class and hint. `analysis`: a few sentences before
    any decision; `decisive`: who made the run fail, and which mistake it would have succeeded without; `place`: the
    part of the step that contains the quote. Set `[]` for a critic that was trained on the short form."""
    max_findings: int = Field(default=8, ge=1)
    """Maximum number of findings in one answer; applies only with `json_schema`."""
    repair_rounds: int = Field(default=1, ge=0, le=3)
    """How often an invalid answer is sent back together with the problem."""
    drop_unfound_quotes: bool = False
    """Drop findings whose quote is not in the step already at this stage; for critics that invent quotes."""
    seed: int | None = None
    """Seed sent with each request; not every server accepts one. Vote n uses seed + n."""
    price: tuple[float, float] | None = None
    """Prices of a million prompt tokens and a million answer tokens, `[in, out]`, for the report."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def prompts(self) -> dict[str, str]:
        """Return the prompt used for each role (`prompt`, `step_prompt`, `half_prompt`), which depends on
        `strategy`."""
        shipped = STRATEGIES.get(self.strategy).prompts
        return dict(zip(shipped, self.prompt, strict=True)) if self.prompt else dict(shipped)

    @property
    def asked_prompt(self) -> str:
        """Return the prompt whose answer names the step and writes the hint, which depends on `strategy`."""
        return list(self.prompts.values())[-1]

    @field_validator("price")
    @classmethod
    def _no_money_back(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and min(value) < 0:
            raise ValueError(f"a price must not be negative: {list(value)}")
        return value

    @model_validator(mode="after")
    def _as_many_prompts(self) -> LLMSection:
        wanted = STRATEGIES.get(self.strategy).prompts
        if self.prompt and len(self.prompt) != len(wanted):
            raise ValueError(
                f"the strategy {self.strategy} takes {len(wanted)} prompt{'s' * (len(wanted) > 1)} in place of "
                f"{', '.join(wanted.values())}, but `prompt` names {len(self.prompt)}"
            )
        for (place, default), name in zip(wanted.items(), self.prompt, strict=False):
            if name != default and ROLE_OF.get(name, place) != place:
                raise ValueError(
                    f"{name} is the shipped prompt for another role ({ROLE_OF[name]}), where the strategy "
                    f"{self.strategy} uses {default}: leave prompt out, or name a prompt of your own"
                )
        return self

    @model_validator(mode="after")
    def _votes_differ(self) -> LLMSection:
        if self.votes > 1 and self.temperature == 0.0:
            raise ValueError(f"{self.votes} votes at temperature 0 are all the same; set a temperature, e.g. 0.7")
        return self


Escalation = Literal["failed", "disagreement", "failed_runs"]


class CriticSection(Section):
    """Choose the critics that find the errors, and the number of findings used (2. critique)."""

    use: tuple[Annotated[str, NameIn(CRITICS)], ...] = Field(default=("rules",), min_length=1)
    """Every critic named here reads every trace, and their findings are merged. `strong` comes last and reads only the
    traces that `escalate` selects; its answer replaces the others' findings."""
    escalate: tuple[Escalation, ...] = ("failed", "disagreement", "failed_runs")
    """When `strong` is asked: another critic failed or abstained; two critics name different steps; or the run's reward
    is below `pass_reward` and no critic found anything."""
    pass_reward: float = 1.0
    """Traces with at least this reward count as successful."""
    select: Literal["decisive", "roots"] = "decisive"
    """Which findings are used. `decisive`: findings that a critic marks as decisive, and root findings of critics that
    mark none; `roots`: all root findings, marked or not."""
    max_per_trace: int = Field(default=3, ge=1)
    """Maximum number of root findings used per trace."""
    min_confidence: float = Field(default=0.0, ge=0.0, le=1.0)
    """Findings with a lower confidence are skipped (`low_confidence`)."""
    prompts: ConfigPath | None = None
    """Folder whose prompts and hint templates take precedence over the shipped ones."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts outside this machine that may receive trace text."""
    secret_scan: Literal["outside", "always", "off"] = "outside"
    """Whether traces with keys, tokens or e-mail addresses are refused before any part of them is sent; `outside`
    applies this only to servers on other machines."""
    revise: bool = False
    """Whether a hint that the gate rejects is sent back to its LLM critic once, with the reason; see
    `pipeline/revise.py`."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Prompt and answer tokens that this invocation may spend. Finished critiques are kept; `--resume` continues with
    the missing ones."""
    allow_owed: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the traces that may lack a critique (because a server failed or the budget is spent) when training
    starts. If a larger share lacks one, the run ends before training with exit code 5, and `--resume` continues it."""
    cache: OutputPath | None = None
    """File of answers already paid for, which runs can share; default: answers.jsonl in the run folder."""
    rules: RulesSection = RulesSection()
    recorded: RecordedSection = RecordedSection()
    checker: ObjectPath | None = None
    """`path/to/file.py:function` or `package.module:function`: a function of your own that maps a Trace to a list of
    Finding."""
    llm: LLMSection = LLMSection()
    strong: LLMSection = LLMSection()
    """A second LLM critic, with the keys of `llm`."""

    @field_validator("secret_scan", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false
        return "off" if value is False else value

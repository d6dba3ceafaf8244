"""2. critique: settings of the critics, their backends and strategies."""

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
    """The deterministic checks."""

    checks: tuple[Check, ...] = CHECKS
    """The checks that are made; docs/critics.md says what each finds."""


class RecordedSection(Section):
    """Findings from a file: human labels, another tool's, or an environment's checker's."""

    path: ConfigPath | None = None
    """A JSONL file with one finding per line: `trace`, `step`, `error_class`, and optionally `quote` and `hint`."""
    error_classes: tuple[str, ...] | None = None
    """Use only findings of these classes."""


AnswerField = Literal["analysis", "decisive", "place"]


class LLMSection(Section):
    """An LLM critic: its server or model, its prompts and its limits."""

    backend: Literal["server", "vllm", "local"] = "server"
    """`server`: any OpenAI-compatible server; `vllm`: vLLM in this process; `local`: a transformers model in this process,
    decoding constrained by llguidance."""
    base_url: str | None = None
    """Address of the server, up to and including `/v1`."""
    more_urls: tuple[str, ...] = ()
    """Further servers of the same model. Each question goes to the server with the fewest open questions. If a server
    fails, the others get its questions. `concurrency` counts for all servers together."""
    model: CriticModel | None = None
    """The server's name of the model; with `vllm` or `local` a folder or hub name, by default the student itself."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; a server that needs none gets a placeholder."""
    strategy: Annotated[str, NameIn(STRATEGIES)] = "all_at_once"
    """`all_at_once`: the whole trace, one answer; `step_by_step`: each step with its context, until the first
    mistake; `binary_search`: which half holds the first mistake, until one step is left."""
    prompt: tuple[str, ...] = ()
    """Prompts, in place of those shipped for the strategy (`critic/all_at_once.jinja`; `critic/step.jinja`); for
    `binary_search` two: which half, and which mistake in a step (`[critic/half.jinja, critic/step.jinja]`)."""
    votes: int = Field(default=1, ge=1)
    """How often a trace is judged; the share of votes that name a step becomes its confidence. Needs a temperature."""
    min_agreement: float = Field(default=0.5, ge=0.0, le=1.0)
    """Findings that a smaller share of the votes name are dropped, and counted."""
    temperature: float = Field(default=0.0, ge=0.0)
    """Sampling temperature of the critic; 0 is greedy."""
    max_tokens: int = Field(default=1024, ge=1)
    """Largest number of tokens in an answer, reasoning included."""
    context_tokens: int | None = Field(default=None, ge=64)
    """Context length of the critic in tokens. A longer trace is read in windows. Default: the value of the model or
    the server."""
    overlap: int = Field(default=2, ge=0)
    """Messages that neighbouring windows share."""
    tokenizer: ConfigPath | None = None
    """Folder whose tokenizer counts a server's tokens; without it a token counts as three bytes."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds for one whole answer, from the first byte sent to the last received."""
    retries: int = Field(default=3, ge=0)
    """Further attempts after a rate limit, a server error or a time-out."""
    concurrency: int = Field(default=8, ge=1)
    """Traces in flight at a server; traces per batch with `vllm` and `local`."""
    structured: Literal["json_schema", "json_schema_strict", "none"] = "json_schema"
    """`json_schema` asks the server to constrain its output, with bounded lengths; `json_schema_strict` keeps to the
    subset that strict modes of cloud services take; `none` only validates what comes back. `vllm` and `local` always
    constrain."""
    fields: tuple[AnswerField, ...] = ("analysis", "decisive", "place")
    """What an answer holds in addition to verdict, step, quote, class and hint: `analysis`, a few sentences before
    anything is decided; `decisive`, who made the run fail, and which mistake the run would have gone well without;
    `place`, the part of the step that the quote is in. `[]` for a critic that was trained on the short form."""
    max_findings: int = Field(default=8, ge=1)
    """Bound on the findings of one answer, under `json_schema`."""
    repair_rounds: int = Field(default=1, ge=0, le=3)
    """How often an answer that does not validate is sent back with the problem."""
    drop_unfound_quotes: bool = False
    """Drop findings whose quote is not in the step at this stage already; for critics that invent quotes."""
    seed: int | None = None
    """Seed that is sent with each request; not every server accepts one. Vote n gets seed + n."""
    price: tuple[float, float] | None = None
    """Prices of a million prompt tokens and of a million answer tokens, `[in, out]`, for the report."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def prompts(self) -> dict[str, str]:
        """Place (`prompt`, `step_prompt`, `half_prompt`) → the prompt that is used there, by `strategy`."""
        shipped = STRATEGIES.get(self.strategy).prompts
        return dict(zip(shipped, self.prompt, strict=True)) if self.prompt else dict(shipped)

    @property
    def asked_prompt(self) -> str:
        """The prompt whose answer names the step and writes the hint, by `strategy`."""
        return list(self.prompts.values())[-1]

    @field_validator("price")
    @classmethod
    def _no_money_back(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and min(value) < 0:
            raise ValueError(f"a price is not below 0: {list(value)}")
        return value

    @model_validator(mode="after")
    def _as_many_prompts(self) -> LLMSection:
        wanted = STRATEGIES.get(self.strategy).prompts
        if self.prompt and len(self.prompt) != len(wanted):
            raise ValueError(
                f"the strategy {self.strategy} takes {len(wanted)} prompt{'s' * (len(wanted) > 1)}, in place of "
                f"{', '.join(wanted.values())}; prompt names {len(self.prompt)}"
            )
        for (place, default), name in zip(wanted.items(), self.prompt, strict=False):
            if name != default and ROLE_OF.get(name, place) != place:
                raise ValueError(
                    f"{name} is the shipped prompt of another place ({ROLE_OF[name]}); the strategy {self.strategy} asks "
                    f"with {default} there: leave prompt out, or name a prompt of your own"
                )
        return self

    @model_validator(mode="after")
    def _votes_differ(self) -> LLMSection:
        if self.votes > 1 and self.temperature == 0.0:
            raise ValueError(f"{self.votes} votes at temperature 0 are one vote; set a temperature, e.g. 0.7")
        return self


Escalation = Literal["failed", "disagreement", "failed_runs"]


class CriticSection(Section):
    """2. critique: which critics find the errors, and how many findings are used."""

    use: tuple[Annotated[str, NameIn(CRITICS)], ...] = Field(default=("rules",), min_length=1)
    """Every critic named here reads every trace, and their findings are merged. `strong` comes last and reads only
    what `escalate` selects; its answer replaces theirs."""
    escalate: tuple[Escalation, ...] = ("failed", "disagreement", "failed_runs")
    """When `strong` is asked: another critic failed or abstained; two of them name different steps; the run's reward is
    below `pass_reward` and nobody found anything."""
    pass_reward: float = 1.0
    """Traces with at least this reward did not fail."""
    select: Literal["decisive", "roots"] = "decisive"
    """Which findings are used: `decisive`: those that a critic marks as decisive, and root findings of critics that
    mark none; `roots`: root findings, marked or not."""
    max_per_trace: int = Field(default=3, ge=1)
    """Largest number of root findings that are used per trace."""
    min_confidence: float = Field(default=0.0, ge=0.0, le=1.0)
    """Findings with a lower confidence are skipped (`low_confidence`)."""
    prompts: ConfigPath | None = None
    """Folder whose prompts and hint templates take precedence over the shipped ones."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts outside this machine that may receive trace text."""
    secret_scan: Literal["outside", "always", "off"] = "outside"
    """Whether a trace with keys, tokens or e-mail addresses is refused before any part of it is sent: `outside` for
    servers that are not this machine."""
    revise: bool = False
    """Whether a hint that the gate rejects goes back to its LLM critic once, with the reason; see `pipeline/revise.py`."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Prompt and answer tokens that this invocation may spend. Finished critiques are kept; the others are owed, and
    `--resume` continues."""
    allow_owed: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the traces that may lack a critique (server failed, budget spent) when training starts. Above it the
    run ends before it trains, with exit code 5, and `--resume` continues it."""
    cache: OutputPath | None = None
    """File of answers already paid for, shared between runs; default: answers.jsonl in the run folder."""
    rules: RulesSection = RulesSection()
    recorded: RecordedSection = RecordedSection()
    checker: ObjectPath | None = None
    """`path/to/file.py:function` or `package.module:function`: your own rules, Trace → list of Finding."""
    llm: LLMSection = LLMSection()
    strong: LLMSection = LLMSection()
    """A second LLM critic, with the keys of `llm`."""

    @field_validator("secret_scan", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false
        return "off" if value is False else value

"""RunConfig: every setting of a run, one validated, frozen tree.

The defaults are the settings the quickstart was measured with, or the ones the field settled on where the example has
no say. `config_file.py` turns YAML and overrides into it.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from hintdistill.config_rollout import AblateSection, RolloutSection, Section, ServerSection
from hintdistill.types import HintRole, Placement

__all__ = ["AblateSection", "RolloutSection", "RunConfig", "Section", "ServerSection"]

CONFIG_SCHEMA = 1


class RunSection(Section):
    """What is corrected, and where the run folder goes."""

    model: str
    """Folder (or hub name) of the student: weights, tokenizer and chat template."""
    dir: str | None = None
    """Run folder; default `runs/<config>-<UTC time>`."""
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` is float32 on a CPU and bfloat16 on an accelerator."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads for torch; default: torch's own choice."""
    rounds: int | None = Field(default=None, ge=1)
    """Rounds of the on-policy loop: in each, the current student plays fresh episodes (`rollout.sample`), and these are the
    traces. Default: no loop, `traces.path` is read."""
    initial: str | None = None
    """The policy the run starts from, where `model` is a later one. The loop sets it."""


class TracesSection(Section):
    """1. read: which files, and how."""

    path: tuple[str, ...] = ()
    """A file, a folder, or several of them; needed unless `run.rounds` is set."""
    tools: str | None = None
    """A JSON file with the tool schemas, for traces that carry none."""
    format: Literal["auto", "openai_chat", "native"] = "auto"
    student_role: str = "assistant"
    """Which role of the source is the student."""
    token_ids: Literal["use", "ignore"] = "use"
    """Whether recorded token ids are the truth; `ignore` renders every step through the chat template."""
    holdout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of tasks (not of traces) that is never trained on; before/after figures are taken there."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first N traces."""


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


class RecordedSection(Section):
    """Findings from a file: human labels, another tool, an environment's own checker."""

    path: str | None = None
    error_classes: tuple[str, ...] | None = None
    """Take only findings of these classes."""


class LLMSection(Section):
    """Any OpenAI-compatible server."""

    base_url: str | None = None
    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; a server that needs none gets a placeholder."""
    prompt: str = "critic/all_at_once.jinja"
    temperature: float = Field(default=0.0, ge=0.0)
    max_tokens: int = Field(default=1024, ge=1)
    timeout_s: float = Field(default=120.0, gt=0)
    retries: int = Field(default=3, ge=0)
    concurrency: int = Field(default=8, ge=1)
    structured: Literal["json_schema", "json_schema_strict", "none"] = "json_schema"
    """`json_schema` asks the server to constrain its output, lengths bounded; `json_schema_strict` keeps to the subset
    that strict modes of cloud services take; `none` only validates what comes back."""
    max_findings: int = Field(default=8, ge=1)
    """Bound on the findings of one answer, under `json_schema`."""
    repair_rounds: int = Field(default=1, ge=0, le=3)
    seed: int | None = None
    """Sent with each request where it is set; not every server takes one."""


class CriticSection(Section):
    """2. critique: who finds the errors, and how many of them are used."""

    use: tuple[Literal["rules", "recorded", "llm", "checker"], ...] = Field(default=("rules",), min_length=1)
    max_per_trace: int = Field(default=3, ge=1)
    """At most this many root findings of a trace go on."""
    min_confidence: float = Field(default=0.0, ge=0.0, le=1.0)
    prompts: str | None = None
    """Folder whose prompts and hint templates come before the shipped ones."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts outside this machine that may receive trace text."""
    checker: str | None = None
    """`path/to/file.py:function` or `package.module:function`: your own rules, Trace → list of Finding."""
    rules: RulesSection = RulesSection()
    recorded: RecordedSection = RecordedSection()
    llm: LLMSection = LLMSection()


class InjectSection(Section):
    """3. inject: where the hint goes, in the order of preference, and what stands around it."""

    placements: tuple[Placement, ...] = Field(default=("message", "observation"), min_length=1)
    roles: tuple[HintRole, ...] = Field(default=("user", "system"), min_length=1)
    """Roles tried for a hint message of its own."""
    message_format: str = "{hint}"
    observation_format: str = "\n\n{hint}"
    hint: Literal["critic", "placebo"] = "critic"
    """`placebo` puts a generic hint in the critic's place: the control arm."""
    whole_step_without_quote: bool = False
    """Whether a quote that is nowhere in the step falls back to the whole step (recorded), or drops the finding."""

    @model_validator(mode="after")
    def _formats(self) -> InjectSection:
        for name in ("message_format", "observation_format"):
            if "{hint}" not in getattr(self, name):
                raise ValueError(f"{name} must contain {{hint}}")
        return self


class GateSection(Section):
    """When a hint has earned its place; see `scoring.gate`."""

    enabled: bool = True
    """False accepts every scored finding by force, for controls."""
    min_drop_nats: float = Field(default=1.0, ge=0.0)
    """The decision token must fall by at least this much."""
    max_raise_nats: float = Field(default=0.5, ge=0.0)
    """No quoted token may rise by more than this."""
    min_student_probability: float = Field(default=0.01, ge=0.0, le=1.0)
    """Below this plain probability of the decision token it is not this student's error."""
    require_legal_gain: bool = True
    require_specific: bool = True
    check_leak: bool = True
    check_dialect: bool = True
    max_null_pass_rate: float = Field(default=0.10, ge=0.0, le=1.0)
    """Placebos that pass the gate above this rate raise a warning."""


class RescoreSection(Section):
    """4. rescore: what is kept of each view."""

    top_k: int = Field(default=64, ge=1)
    batch_tokens: int = Field(default=16_384, ge=1)
    """Padded tokens per forward pass."""
    placebos: int = Field(default=3, ge=3, le=9)
    """At least three, of the kinds generic, shuffled and other_class in turn."""
    part_rows: int = Field(default=64, ge=1)
    """Targets per parquet part; a kill loses at most one part."""
    gate: GateSection = GateSection()


class AnchorSection(Section):
    """KL to the initial policy on steps without a finding."""

    weight: float = Field(default=2.0, ge=0.0)
    per_trace: int = Field(default=1, ge=0)
    """Clean steps per trace, drawn at random."""


class LoraSection(Section):
    """Low-rank adapters instead of full weights."""

    rank: int = Field(default=32, ge=1)
    alpha: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: str | tuple[str, ...] = "all-linear"


class TrainSection(Section):
    """5. train: divergence × support × weights, teacher rule, optimiser."""

    divergence: Literal["jsd", "rkl", "fkl"] = "jsd"
    jsd_alpha: float = Field(default=0.5, gt=0.0, lt=1.0)
    support: Literal["union_topk", "full"] = "union_topk"
    """`union_topk`: student top-k ∪ teacher top-k ∪ {sampled id} plus tail; `full`: the whole vocabulary."""
    top_k: int = Field(default=64, ge=1)
    teacher: Literal["initial", "live"] = "initial"
    targets: Literal["stored", "in_step"] = "stored"
    """`stored` trains on the rescore stage's targets; `in_step` runs the teacher in every training step."""
    loss_span: Literal["step", "quote", "quote_weighted"] = "step"
    quote_weight: float = Field(default=4.0, gt=0.0)
    """Weight of quoted tokens under `quote_weighted`; the step's other tokens weigh 1."""
    normalize: Literal["row", "token"] = "row"
    """`row`: equal weight per injection; `token`: equal weight per step token."""
    anchor: AnchorSection = AnchorSection()
    fidelity: tuple[Literal["ids", "raw_text", "reserialised"], ...] = ("ids", "raw_text")
    lora: LoraSection | None = None
    learning_rate: float = Field(default=2e-4, gt=0.0)
    epochs: float = Field(default=3.0, gt=0.0)
    batch_size: int = Field(default=16, ge=1)
    """Rows per optimiser step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows per forward pass; the rest is accumulated. Default: `batch_size`."""
    warmup_steps: int = Field(default=5, ge=0)
    schedule: str = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    save_steps: int = Field(default=20, ge=1)
    logging_steps: int = Field(default=5, ge=1)
    keep_checkpoints: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if self.targets == "stored" and self.teacher == "live":
            raise ValueError("a live teacher has no stored targets; set train.targets=in_step")
        if self.targets == "stored" and self.support == "full":
            raise ValueError("stored targets hold top-k entries, not the full vocabulary; set train.targets=in_step")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class ReportSection(Section):
    """6. report."""

    html: bool = True
    max_findings: int = Field(default=60, ge=0)
    """Findings shown in full in the HTML; the JSON has all of them."""
    off_target: dict[str, str] = Field(default_factory=dict)
    """Further trace files on which off-target KL is measured, by name, e.g. near-misses."""
    off_target_steps: int = Field(default=400, ge=1)
    """At most this many steps per off-target set, drawn with the run's seed."""


class RunConfig(Section):
    """The whole configuration of a run."""

    run: RunSection
    traces: TracesSection = TracesSection()
    critic: CriticSection = CriticSection()
    inject: InjectSection = InjectSection()
    rescore: RescoreSection = RescoreSection()
    train: TrainSection = TrainSection()
    rollout: RolloutSection = RolloutSection()
    report: ReportSection = ReportSection()
    ablate: AblateSection = AblateSection()

    @model_validator(mode="after")
    def _traces_or_rounds(self) -> RunConfig:
        if self.run.rounds is None and not self.traces.path:
            raise ValueError("traces.path is not set; name a trace file, or set run.rounds to sample fresh traces")
        if self.run.rounds is not None and self.traces.path:
            raise ValueError("run.rounds samples its own traces; leave traces.path empty (traces.path=[])")
        if self.run.rounds is not None and not self.rollout.environment:
            raise ValueError("run.rounds needs rollout.environment to sample in")
        if self.run.rounds is not None and "recorded" in self.critic.use:
            raise ValueError("recorded findings say nothing of fresh traces; use another critic with run.rounds")
        return self

    @model_validator(mode="after")
    def _across(self) -> RunConfig:
        if "recorded" in self.critic.use and not self.critic.recorded.path:
            raise ValueError("critic.use names `recorded`, but critic.recorded.path is not set")
        if "checker" in self.critic.use and not self.critic.checker:
            raise ValueError("critic.use names `checker`, but critic.checker is not set")
        if "llm" in self.critic.use and not (self.critic.llm.base_url and self.critic.llm.model):
            raise ValueError("critic.use names `llm`, but critic.llm.base_url or critic.llm.model is not set")
        return self

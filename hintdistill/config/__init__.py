"""RunConfig: every setting of a run as one validated, frozen tree.

The defaults are the settings with which the quickstart was measured, or those customary in the field where the
quickstart does not decide. `config/file.py` turns YAML and overrides into it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from hintdistill.config.base import Section
from hintdistill.config.contexts import ContextsSection
from hintdistill.config.critic import (
    CHECKS,
    Check,
    CriticSection,
    Escalation,
    LLMSection,
    RecordedSection,
    RulesSection,
)
from hintdistill.config.engine import EngineSection
from hintdistill.config.hold import HoldSection
from hintdistill.config.rollout import RolloutSection, ServerSection
from hintdistill.config.train import (
    OUTPUT_KEYS,
    AnchorSection,
    LoraSection,
    OutcomeSection,
    TrainSection,
    TripwireSection,
    TwinSection,
    WatchSection,
)
from hintdistill.core.extensions import HINT_SOURCES, PLACEMENTS
from hintdistill.core.parts import HINTS
from hintdistill.core.paths import ConfigPath, ModelPath, OutputPath
from hintdistill.core.registry import NameIn
from hintdistill.core.types import HintRole, PlaceboKind, Placement

__all__ = [
    "CHECKS",
    "CONFIG_SCHEMA",
    "GATE_CHECKS",
    "MAX_NULL_PASS_RATE",
    "OUTPUT_KEYS",
    "AnchorSection",
    "Check",
    "ContextsSection",
    "CriticSection",
    "EngineSection",
    "Escalation",
    "GateSection",
    "HoldSection",
    "InjectSection",
    "LLMSection",
    "LoraSection",
    "OutcomeSection",
    "RecordedSection",
    "ReportSection",
    "RescoreSection",
    "RolloutSection",
    "RulesSection",
    "RunConfig",
    "RunSection",
    "Section",
    "ServerSection",
    "TemplateSection",
    "TracesSection",
    "TrainSection",
    "TripwireSection",
    "TwinSection",
    "WatchSection",
]

CONFIG_SCHEMA = 4


class TemplateSection(Section):
    """Choose the chat template that renders the student's contexts, and its options."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Options passed to the template, e.g. `{enable_thinking: false}`, `{date_string: 26 Jul 2024}`; `strftime_now:
    2026-05-01` sets the date for templates that ask for today's date. An option that the template does not read is
    refused. Options recorded in a trace take precedence."""
    file: ConfigPath | None = None
    """A chat template that replaces the one in the model folder."""


class RunSection(Section):
    """Set the student, the run folder, the device and the rounds of a run."""

    model: ModelPath
    """Folder (or hub name) of the student: weights, tokenizer and chat template."""
    dir: OutputPath | None = None
    """Run folder, relative to the config file; default: `runs/<config>-<UTC time>` in the working directory."""
    seed: int = 0
    """Seed of every random choice: splits, anchors, rollouts and the order of rows."""
    device: str = "auto"
    """Device for torch, e.g. `cpu`, `cuda:0`; `auto` uses an accelerator if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` means bfloat16 on an accelerator. On a CPU with bfloat16 arithmetic, `auto`
    means bfloat16 for models above 50 M parameters (the difference from float32 is measured and printed), and float32
    otherwise. Full weights are trained in float32 and cast for each forward pass."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads for torch; default: torch's own choice."""
    trust_remote_code: bool = False
    """Whether code in a model folder may run when its model or tokenizer is loaded. Such code can do anything that you
    can do. Off by default; an error tells you if a model needs it."""
    rounds: int | None = Field(default=None, ge=1)
    """Rounds of the on-policy loop: in each round the current student plays fresh episodes (`rollout.sample`), which
    become the traces. Default: no loop; traces are read from `traces.path`."""
    initial: ModelPath | None = None
    """The initial policy of the run, if `model` is a later one. The loop sets this key."""
    template: TemplateSection = TemplateSection()


class TracesSection(Section):
    """Choose the trace files and how they are read (1. read)."""

    path: tuple[ConfigPath, ...] = ()
    """A file, a folder, a glob, a zip, or a data set on the hub (`hf://owner/name?split=train&revision=main`), or
    several of them. Required unless `run.rounds` is set. With `rollout.source=replay`, the student acts at steps of
    these traces."""
    tools: ConfigPath | None = None
    """A JSON file with tool schemas, used for traces that contain none."""
    format: str = "auto"
    """`auto` detects the format of each record. Other values are a format's name in docs/traces.md, or the name of an
    installed extension."""
    student_role: str = "assistant"
    """The student's role or speaker name in the source."""
    allow_empty_files: bool = False
    """Whether a file without any step of the student causes a warning instead of an error."""
    max_record_mb: int = Field(default=256, ge=1)
    """Largest record in megabytes (2^20 bytes); larger records are refused. This bounds memory, however large the files
    are."""
    token_ids: Literal["use", "ignore"] = "use"
    """`use` keeps recorded token ids; `ignore` renders every step through the chat template."""
    holdout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of tasks (not of traces) that are never trained on. The figures before and after training are measured on
    them."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first N traces."""


class InjectSection(Section):
    """Choose where the hint is placed, and the text around it (3. inject)."""

    newer: ClassVar[tuple[str, ...]] = ("steps", "contexts")

    placements: tuple[Placement, ...] = Field(default=("message", "observation"), min_length=1)
    """Where a hint may go, in order of preference. `message` is a message of its own above the step; docs/templates.md
    says which placements a template allows."""
    roles: tuple[HintRole, ...] = Field(default=("user", "system"), min_length=1)
    """Roles to try for a hint that is a message of its own."""
    formats: dict[Placement, str] = Field(default_factory=dict)
    """The text around the hint in each placement, e.g. `{assistant_turn: "({hint})\\n"}`. Placements left out keep
    their default: `{hint}` (message), `\\n\\n{hint}` (observation, system_prompt) and `{hint}\\n` (assistant_turn)."""
    hint: Annotated[str, NameIn(HINT_SOURCES)] | None = None
    """The context maker (docs/contexts.md) that writes the text the teacher reads. `null` uses the recipe's
    (`data.hint.kind`), which in most recipes is the critic's hint. `placebo` puts a generic hint in its place, as a
    control."""
    steps: Literal["findings", "every", "final"] | None = None
    """Which steps get a context: `findings` means the steps in which the critics found an error; `every` means all
    steps of every trace; `final` means the last step of every trace. `null` uses the recipe's choice (`data.steps`),
    which is `findings` in most recipes."""
    contexts: ContextsSection = ContextsSection()
    whole_step_without_quote: bool = False
    """Whether a quote that does not occur in the step is replaced by the whole step (with a note); otherwise the
    finding is dropped."""
    candidates: int = Field(default=1, ge=1, le=4)
    """Number of hints per finding, which compete within their level: the critic's hint, a principle, the right action
    alone, the class's template. The hint with the largest odds is chosen before the gate decides; see docs/hints.md."""
    max_hint_tokens: int = Field(default=512, ge=1)
    """A hint with more tokens is refused (`hint_too_long`): it is a document, not a hint."""
    max_hint_share: float = Field(default=1.0, gt=0.0)
    """A hint of more than 64 tokens is refused if it is longer than this share of the context above its step."""
    max_level: int = Field(default=2, ge=0, le=3)
    """Hints of a higher level are rejected. Level 0 states a principle, 1 narrows the choice, 2 gives a correction, 3
    names something that the context lacks."""
    min_quote_match: float = Field(default=0.9, ge=0.5, le=1.0)
    """If a quote does not occur in the step, even up to white space and JSON escapes, its best match in the step is
    used if at least this share of its characters agrees; 1 turns this off."""

    @model_validator(mode="after")
    def _formats(self) -> InjectSection:
        for placement, text in self.formats.items():
            if "{hint}" not in text:
                raise ValueError(f"formats.{placement} must contain {{hint}}")
        return self

    def format_of(self, placement: Placement) -> str:
        """Return the text around the hint in a placement, with `{hint}` in it."""
        return self.formats.get(placement, PLACEMENTS.get(placement).form)


GateCheck = Literal["legal_gain", "specific", "leak", "dialect", "words"]
GATE_CHECKS: tuple[GateCheck, ...] = ("legal_gain", "leak", "dialect", "words")
"""The checks that are made unless `rescore.gate.checks` says otherwise. `specific` is not among them: on a student that
sampled its error by chance the whole step moves, and the check rejected every fourth hint that repairs the error."""
MAX_NULL_PASS_RATE = 0.10
"""A warning is raised if a larger share of the placebos passes the gate."""


class GateSection(Section):
    """Set the conditions under which a hint is accepted; see docs/hints.md."""

    enabled: bool | None = None
    """`false` accepts every scored finding. `null` follows the recipe (`data.gate`); whole-trace methods have no
    gate."""
    min_drop_nats: float = Field(default=0.0, ge=0.0)
    """A hint must lower the decision token's log-probability by at least this many nats."""
    min_odds_nats: float = Field(default=2.0, ge=0.0)
    """A hint must raise the log-odds of the hinted view's continuation against the decision token by at least this many
    nats."""
    min_odds_margin_nats: float = Field(default=2.0, ge=0.0)
    """A hint must raise the log-odds by at least this many nats more than the median placebo does."""
    min_legal_gain: float = Field(default=0.2, ge=0.0, le=1.0)
    """A hint must move at least this much probability to continuations that the tool schemas allow at the decision
    token, if the schemas constrain it."""
    max_raise_nats: float = Field(default=0.5, ge=0.0)
    """A hint must not raise the log-probability of any quoted token by more nats than this, even if no first choice
    changes."""
    min_student_probability: float = Field(default=0.01, ge=0.0, le=1.0)
    """If the decision token has a lower probability without a hint, the error is not considered this student's."""
    checks: tuple[GateCheck, ...] = GATE_CHECKS
    """Further checks. `legal_gain`: at least `min_legal_gain` of probability moves to continuations that the tool
    schemas allow; `specific`: the quote falls more than the rest of the step; `leak`: the hint contains no literal that
    is missing from the step's context; `dialect`: no tool-call markup of another model; `words`: no hint that proposes
    a call no schema allows (`illegal`) or says nothing (`vacuous`)."""


class RescoreSection(Section):
    """Set how the views are scored and what is stored of them (4. rescore)."""

    newer: ClassVar[tuple[str, ...]] = ("offload",)

    top_k: int = Field(default=64, ge=1)
    """Number of most likely ids stored per token and view; the sampled id and the tail mass are stored in addition."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens per forward pass; `null`: 4096 on a CPU, 16384 elsewhere."""
    offload: bool = False
    """Keep the keys and values of contexts in host memory, for contexts that do not fit into an accelerator's memory;
    this is slower."""
    placebos: dict[PlaceboKind, int] = Field(default={"generic": 1, "other_class": 1, "shuffled_answer_free": 1})
    """Number of placebos by kind, three to nine in all. `generic`: a statement that is true everywhere; `other_class`:
    the hint of another error class; `shuffled_answer_free`: the hint's words in random order, without those of the
    answer; `shuffled`: all of the hint's words in random order, which may work like the hint."""
    part_rows: int = Field(default=64, ge=1)
    """Targets per parquet part; a killed run loses at most one part."""
    engine: EngineSection = EngineSection()
    gate: GateSection = GateSection()

    @field_validator("placebos", mode="before")
    @classmethod
    def _kinds(cls, given: Any) -> Any:
        if isinstance(given, int | list):
            raise ValueError(
                "placebos maps kinds to numbers; write {generic: 1, other_class: 1, shuffled_answer_free: 1}"
            )
        return given

    @field_validator("placebos")
    @classmethod
    def _enough(cls, given: dict[PlaceboKind, int]) -> dict[PlaceboKind, int]:
        if any(n < 0 for n in given.values()) or not 3 <= sum(given.values()) <= 9:
            raise ValueError(
                "placebos must be three to nine in all, e.g. {generic: 1, other_class: 1, shuffled_answer_free: 1}"
            )
        return given

    @property
    def placebo_count(self) -> int:
        """Return the number of placebos per hint."""
        return sum(self.placebos.values())


class ReportSection(Section):
    """Set the report's form and the further sets on which off-target KL is measured (6. report)."""

    html: bool = True
    """Whether report.html is written in addition to report.json."""
    max_findings: int = Field(default=5000, ge=0)
    """Maximum number of findings in the HTML: the most probable errors first, half of them trained. The JSON contains
    all findings. Trace text makes the page large: 5,000 findings on traces of 12,000 tokens each take about 100 MB."""
    off_target: dict[str, ConfigPath] = Field(default_factory=dict)
    """Further trace files by name, e.g. near-misses, on which off-target KL is measured."""
    off_target_steps: int = Field(default=400, ge=1)
    """Maximum number of steps per off-target set, drawn with the run's seed."""


class RunConfig(Section):
    """Hold the whole configuration of a run."""

    run: RunSection
    traces: TracesSection = TracesSection()
    critic: CriticSection = CriticSection()
    inject: InjectSection = InjectSection()
    rescore: RescoreSection = RescoreSection()
    train: TrainSection = Field(default_factory=TrainSection)
    rollout: RolloutSection = RolloutSection()
    report: ReportSection = ReportSection()
    _foreign: str | None = PrivateAttr(default=None)

    @property
    def foreign(self) -> str | None:
        """Return the run folder from elsewhere that these settings were read from; None if the caller named the
        settings."""
        return self._foreign

    def of_folder(self, foreign: str | None) -> RunConfig:
        """Return the same settings, marked as read from a run folder from elsewhere; see `core/trust.py`."""
        self._foreign = foreign
        return self

    @property
    def injecting(self) -> InjectSection:
        """Return `inject` with its unset keys taken from the recipe: the context maker, the steps, and the place of a
        document."""
        data = self.train.effective_recipe.data
        name, steps = self.inject.hint or HINTS.get(data.hint.kind).source, self.inject.steps or data.steps
        told: dict[str, Any] = {"hint": name, "steps": None if steps == "findings" else steps}
        places = HINT_SOURCES.get(name).placements
        if places and self.inject.placements == InjectSection.model_fields["placements"].default:
            told["placements"] = places
        return self.inject.model_copy(update=told)

    @property
    def rescoring(self) -> RescoreSection:
        """Return `rescore` with its unset keys taken from the recipe: whether there is a gate. Contexts without a gate
        get no placebos."""
        gate = self.rescore.gate
        if gate.enabled is not None or self.train.effective_recipe.data.gate:
            return self.rescore
        told: dict[str, Any] = {"gate": gate.model_copy(update={"enabled": False})}
        if HINT_SOURCES.get(str(self.injecting.hint)).context is not None:
            told["placebos"] = {}
        return self.rescore.model_copy(update=told)

    @model_validator(mode="after")
    def _traces_or_rounds(self) -> RunConfig:
        replays = self.rollout.source == "replay"
        if self.run.rounds is None and not self.traces.path:
            raise ValueError("traces.path is not set; name a trace file, or set run.rounds to sample fresh traces")
        if replays and self.run.rounds is None:
            raise ValueError("rollout.source=replay is a loop; set run.rounds (1 for one round)")
        if replays and not self.traces.path:
            raise ValueError("rollout.source=replay samples at steps of recorded traces; set traces.path")
        if self.run.rounds is not None and self.traces.path and not replays:
            raise ValueError(
                "run.rounds samples its own traces; leave traces.path empty (traces.path=[]), or set rollout.source=replay"
            )
        if self.run.rounds is not None and not self.rollout.environment and not replays:
            raise ValueError("run.rounds needs rollout.environment to sample in, or rollout.source=replay")
        if self.run.rounds is not None and "recorded" in self.critic.use:
            raise ValueError("recorded findings do not apply to fresh traces; use another critic with run.rounds")
        return self

    @model_validator(mode="after")
    def _held_apart(self) -> RunConfig:
        split = self.train.hold.split
        if split is not None and not self.rollout.environment:
            raise ValueError("train.hold.split needs rollout.environment, whose tasks are played")
        if split is not None and split in self.rollout.splits:
            raise ValueError(
                f"train.hold.split={split} is also measured by rollout.splits; hold a split that is not measured"
            )
        if split is not None and self.run.rounds is not None and split == self.rollout.sample.split:
            raise ValueError(
                f"train.hold.split={split} is also the split whose errors the rounds correct; hold another split"
            )
        return self

    @model_validator(mode="after")
    def _across(self) -> RunConfig:
        if "recorded" in self.critic.use and not self.critic.recorded.path:
            raise ValueError("critic.use names `recorded`, but critic.recorded.path is not set")
        if "checker" in self.critic.use and not self.critic.checker:
            raise ValueError("critic.use names `checker`, but critic.checker is not set")
        for name, llm in (("llm", self.critic.llm), ("strong", self.critic.strong)):
            if name in self.critic.use and llm.backend == "server" and not (llm.base_url and llm.model):
                raise ValueError(
                    f"critic.use names `{name}`, but critic.{name}.base_url or critic.{name}.model is not set"
                )
        return self

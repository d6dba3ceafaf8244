"""RunConfig: every setting of a run, one validated, frozen tree.

The defaults are the settings the quickstart was measured with, or the ones the field settled on where the example has
no say. `config_file.py` turns YAML and overrides into it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from hintdistill.config.base import Section
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
from hintdistill.config.rollout import AblateSection, RolloutSection, ServerSection
from hintdistill.recipes import DEFAULT, Recipe, load_recipe, needs
from hintdistill.types import HintRole, Placement

__all__ = [
    "CHECKS",
    "CONFIG_SCHEMA",
    "AblateSection",
    "AnchorSection",
    "Check",
    "CriticSection",
    "EngineSection",
    "Escalation",
    "GateSection",
    "InjectSection",
    "LLMSection",
    "LoraSection",
    "RecordedSection",
    "ReportSection",
    "RescoreSection",
    "RolloutSection",
    "RulesSection",
    "RunConfig",
    "RunSection",
    "Section",
    "ServerSection",
    "TracesSection",
    "TrainSection",
]

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
    """A file, a folder, a glob or a zip, or several of them; needed unless `run.rounds` is set."""
    tools: str | None = None
    """A JSON file with the tool schemas, for traces that carry none."""
    format: str = "auto"
    """`auto` recognises the format record by record; or a name in docs/traces.md, or that of an installed extension."""
    student_role: str = "assistant"
    """Which role, or which speaker's name, of the source is the student."""
    allow_empty_files: bool = False
    """Whether a file that yields no step of the student is a warning instead of an error."""
    max_record_mb: int = Field(default=256, ge=1)
    """A larger record is refused; memory is bounded by this, whatever the size of the files. Megabytes (2^20 bytes)."""
    token_ids: Literal["use", "ignore"] = "use"
    """Whether recorded token ids are the truth; `ignore` renders every step through the chat template."""
    holdout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of tasks (not of traces) that is never trained on; before/after figures are taken there."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first N traces."""


class InjectSection(Section):
    """3. inject: where the hint goes, in the order of preference, and what stands around it."""

    placements: tuple[Placement, ...] = Field(default=("message", "observation"), min_length=1)
    roles: tuple[HintRole, ...] = Field(default=("user", "system"), min_length=1)
    """Roles tried for a hint message of its own."""
    message_format: str = "{hint}"
    observation_format: str = "\n\n{hint}"
    system_format: str = "\n\n{hint}"
    turn_format: str = "{hint}\n"
    """Around a hint inside the assistant's own turn."""
    hint: Literal["critic", "placebo"] = "critic"
    """`placebo` puts a generic hint in the critic's place: the control arm."""
    whole_step_without_quote: bool = False
    """Whether a quote that is nowhere in the step falls back to the whole step (recorded), or drops the finding."""
    min_quote_match: float = Field(default=0.9, ge=0.5, le=1.0)
    """A quote that is not found as it is, nor up to white space and JSON escapes, is taken to be its best match in the
    step if at least this share of its characters fits; 1 turns that off."""

    @model_validator(mode="after")
    def _formats(self) -> InjectSection:
        for name in ("message_format", "observation_format", "system_format", "turn_format"):
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
    check_words: bool = True
    """Refuse hints that propose a call no schema allows (`illegal`) or say nothing (`vacuous`)."""
    max_null_pass_rate: float = Field(default=0.10, ge=0.0, le=1.0)
    """Placebos that pass the gate above this rate raise a warning."""


class RescoreSection(Section):
    """4. rescore: what is kept of each view."""

    top_k: int = Field(default=64, ge=1)
    batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens per forward pass."""
    placebos: int = Field(default=3, ge=3, le=9)
    """At least three, of the kinds generic, shuffled and other_class in turn."""
    part_rows: int = Field(default=64, ge=1)
    """Targets per parquet part; a kill loses at most one part."""
    engine: EngineSection = EngineSection()
    gate: GateSection = GateSection()


class AnchorSection(Section):
    """KL to the initial policy on steps without a finding."""

    weight: float | None = Field(default=None, ge=0.0)
    """Short for `train.recipe.terms.anchor.coef`; a recipe without an anchor gets the default recipe's, 0 takes it away."""
    per_trace: int = Field(default=1, ge=0)
    """Clean steps per trace that are trained on."""
    candidates: int = Field(default=4, ge=1)
    """Clean steps per trace that are scored and stored, drawn at random; `choose` picks among them."""
    choose: Literal["least_sure", "random"] = "least_sure"
    """`least_sure`: the steps with the least sure token that still carries loss, because there the policy was right by a
    small margin and drift undoes it first; `random`: any."""
    min_probability: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Short for `train.recipe.terms.anchor.min_probability`: tokens that the initial policy gave less than this carry no anchor
    loss, because where it wavered, what it did not say may be the very habit that is corrected on other steps. .5 in the
    default recipe."""


class LoraSection(Section):
    """Low-rank adapters instead of full weights."""

    rank: int = Field(default=32, ge=1)
    alpha: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: str | tuple[str, ...] = "all-linear"


class TrainSection(Section):
    """5. train: the recipe (objective and teacher rule) and the optimiser."""

    recipe: str | dict[str, Any] = DEFAULT
    """Name of a recipe (`hintdistill recipes list`), a YAML file, or a mapping: `preset` and the keys to change in it."""
    divergence: Literal["jsd", "rkl", "fkl"] | None = None
    """Short for `train.recipe.terms.distill.divergence.kind`; the shorts default to what the recipe says."""
    jsd_alpha: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Short for `train.recipe.terms.distill.divergence.alpha`."""
    support: Literal["union_topk", "full"] | None = None
    """Short for `train.recipe.terms.distill.support.kind`; `union_topk`: student top-k ∪ teacher top-k ∪ {sampled id} plus
    tail; `full`: the whole vocabulary."""
    top_k: int | None = Field(default=None, ge=1)
    """Short for `train.recipe.terms.distill.support.k`; stored targets hold what `rescore.top_k` kept."""
    teacher: Literal["initial", "live"] | None = None
    """Short for `train.recipe.teacher.update`."""
    targets: Literal["stored", "in_step"] | None = None
    """`stored` trains on the rescore stage's targets; `in_step` runs the teacher in every training step. Default: stored where
    the recipe can."""
    loss_span: Literal["step", "quote", "quote_weighted"] | None = None
    """Short for the `span` of the recipe's hint terms."""
    quote_weight: float | None = Field(default=None, gt=0.0)
    """Weight of quoted tokens under `quote_weighted`; the step's other tokens weigh 1. Recipe default 4."""
    normalize: Literal["row", "token"] | None = None
    """Short for the `normalize` of the recipe's terms. `row`: equal weight per injection; `token`: equal weight per step token."""
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
        update = self.objective.teacher.update
        if self.targets == "stored" and update != "initial":
            raise ValueError(f"a teacher that is {update} has no stored targets; set train.targets=in_step")
        if self.targets == "stored" and (why := self._beyond_stored):
            raise ValueError(
                f"stored targets hold top-k entries, not the full vocabulary ({why}); set train.targets=in_step"
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self

    @cached_property
    def objective(self) -> Recipe:
        """The recipe with its overrides and shorts. Raises ConfigError; see `recipes.load_recipe`."""
        recipe = load_recipe(self.recipe)
        shorts = self._shorts(recipe)
        return load_recipe(self.recipe, shorts) if shorts else recipe

    @property
    def target_source(self) -> Literal["stored", "in_step"]:
        """Where targets come from: as configured, else the store wherever the recipe can do with it."""
        return self.targets or ("in_step" if self._beyond_stored else "stored")

    @property
    def _beyond_stored(self) -> str | None:
        """Why stored targets do not do for the recipe; None where they do."""
        wanted = (n.why for n in needs(self.objective) if n.name in ("in_step_teacher", "full_vocabulary"))
        return next(wanted, None)

    def _shorts(self, recipe: Recipe) -> dict[str, Any]:
        """The shorts as overrides of the recipe. Raises ValueError where the recipe has no such place."""
        distill: dict[str, dict[str, Any]] = {"divergence": {}, "support": {}}
        if self.divergence is not None:
            distill["divergence"]["kind"] = self.divergence
        if self.jsd_alpha is not None:
            distill["divergence"]["alpha"] = self.jsd_alpha
        if self.support is not None:
            distill["support"]["kind"] = "union" if self.support == "union_topk" else "full"
        if self.top_k is not None:
            distill["support"]["k"] = self.top_k
        given = {k: v for k, v in distill.items() if v}
        if given and "distill" not in recipe.terms:
            raise ValueError(
                f"the recipe {recipe.name} has no term `distill` that train.divergence, jsd_alpha, support or top_k could "
                f"change; its terms are {', '.join(recipe.terms)}"
            )
        terms: dict[str, Any] = {"distill": given} if given else {}
        for name, term in recipe.terms.items():
            if term.rows == "hint" and self.loss_span is not None:
                terms.setdefault(name, {})["span"] = self.loss_span
            if term.rows == "hint" and self.quote_weight is not None:
                terms.setdefault(name, {})["quote_weight"] = self.quote_weight
            if self.normalize is not None:
                terms.setdefault(name, {})["normalize"] = "per_row" if self.normalize == "row" else "kept"
        if self.anchor.weight is not None or self.anchor.min_probability is not None:
            self._anchor(recipe, terms)
        out: dict[str, Any] = {"terms": terms} if terms else {}
        return out | ({"teacher": {"update": self.teacher}} if self.teacher is not None else {})

    def _anchor(self, recipe: Recipe, terms: dict[str, Any]) -> None:
        if self.anchor.weight == 0:
            terms |= {n: None for n, t in recipe.terms.items() if t.rows == "anchor"}
            return
        default = load_recipe(DEFAULT).terms["anchor"].model_dump(mode="json", by_alias=True, exclude_defaults=True)
        given = {"coef": self.anchor.weight, "min_probability": self.anchor.min_probability}
        own = {k: v for k, v in given.items() if v is not None}
        terms["anchor"] = {**({} if "anchor" in recipe.terms else default), **terms.get("anchor", {}), **own}


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
    train: TrainSection = Field(default_factory=TrainSection)
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
        for name, llm in (("llm", self.critic.llm), ("strong", self.critic.strong)):
            if name in self.critic.use and llm.backend == "server" and not (llm.base_url and llm.model):
                raise ValueError(
                    f"critic.use names `{name}`, but critic.{name}.base_url or critic.{name}.model is not set"
                )
        return self

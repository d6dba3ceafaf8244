"""Settings of training: the recipe, the optimiser, low-rank adapters and anchors (5. train)."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hintdistill.config.arguments import checked
from hintdistill.config.base import Section
from hintdistill.config.hold import HoldSection
from hintdistill.core.paths import RecipeRef
from hintdistill.recipes import DEFAULT, Recipe, load_recipe, needs
from hintdistill.recipes.teachers import TEACHERS

WHOLE_RATE, ADAPTER_RATE = 2e-4, 1e-3
"""Default learning rates of whole weights and of adapters."""


class AnchorSection(Section):
    """Configure anchors: KL to the initial policy on steps without a finding."""

    weight: float | None = Field(default=None, ge=0.0)
    """Coefficient of the anchor (`train.recipe.terms.anchor.coef`). A recipe without an anchor gets the default
    recipe's with this coefficient; 0 removes the anchor; `null` leaves the recipe as it is."""
    per_trace: int = Field(default=1, ge=0)
    """Number of clean steps per trace that are trained on."""
    candidates: int = Field(default=4, ge=1)
    """Number of clean steps per trace that are scored and stored, drawn at random; `choose` selects among them."""
    choose: Literal["least_sure", "random"] = "least_sure"
    """`least_sure`: the steps with the least certain token that still carries loss; the policy is right there by a
    small margin, so drift changes it first. `random`: any steps."""


class TwinSection(Section):
    """Configure twins: erring steps that are held in a changed context in which they are right; see docs/twins.md."""

    weight: float | None = Field(default=None, ge=0.0)
    """Coefficient of the twins (`train.recipe.terms.twin.coef`). A recipe without such a term gets the default recipe's
    anchor for them. With 0, twins are scored and reported, but not trained on. `null` leaves the recipe's term as it
    is; if twins are made and the recipe has no such term, one with coefficient 1 is added."""
    per_finding: int = Field(default=0, ge=0)
    """Number of twins for each finding with a hint, each made by a different kind of edit; 0 makes none."""
    state_changing: bool = False
    """Also make twins of calls whose tool changes something or may change something. The edit then makes that call
    legitimate in its context."""


class LoraSection(Section):
    """Configure low-rank adapters, which are trained instead of full weights."""

    rank: int = Field(default=32, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=64, ge=1)
    """Scale: an adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout before the adapters while training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the modules that get an adapter, or `all-linear` for every linear layer except the output head."""


OUTPUT_KEYS = frozenset({"push", "trackers"})
"""Settings of `TrainSection` that do not affect the weights."""


class WatchSection(Section):
    """Configure the steps that are watched but not trained on: they show how far the student has moved from the weights
    that scored them."""

    steps: int = Field(default=16, ge=1)
    """Number of steps in each of the two sets, drawn with the run's seed: off target (clean steps of training traces
    that are not anchors) and held-out clean traces. The rescore stage scores and stores them."""
    every: int | None = Field(default=None, ge=0)
    """Optimiser steps between measurements, which are made at logging steps and after the last step. `null` measures at
    each logging step. 0 never measures, and tripwires that need these values cannot fire."""


class TripwireSection(Section):
    """Set bounds on measurements during training. `null` removes a bound. A value that is not finite always stops the
    training."""

    action: Literal["stop", "warn"] = "warn"
    """`stop`: end the training without a student, but keep the last checkpoint. `warn`: warn once per bound and
    continue."""
    max_off_target_kl: float | None = Field(default=0.5, gt=0.0)
    """Largest `off_target_kl`, in nats per token."""
    max_heldout_kl: float | None = Field(default=0.5, gt=0.0)
    """Largest `heldout_kl`, in nats per token."""
    min_entropy_ratio: float | None = Field(default=0.1, gt=0.0, lt=1.0)
    """Entropy collapse: smallest ratio of the student's entropy off target to its value before the first step."""
    max_end_drop: float | None = Field(default=0.2, gt=0.0, lt=1.0)
    """Steps that no longer end: largest fall, off target, in the probability of ending a step where it originally
    ended."""
    min_hint_effect: float | None = Field(default=None, gt=0.0)
    """Smallest hint effect on decision tokens, in nats; below it there is nothing left to learn. Applies to teachers
    that follow the student; the effect of a stored teacher does not change."""


class OutcomeSection(Section):
    """Configure the outcome reward, for recipes that use one. With `train.recipe.coupling={kind: additive, weight: .5}`
    it is trained on together with the targeted loss: (1 - weight)·L_RL + weight·L_D."""

    baseline: Literal["group", "round"] = "group"
    """The value subtracted from a rollout's reward. `group`: the mean over rollouts of the same task
    (`rollout.sample.per_task`); `round`: the mean over all rollouts, for rounds that play each task once."""
    normalise: bool = False
    """Divide the advantage by the standard deviation of the group."""
    clip: tuple[float | None, float | None] = (0.2, 0.2)
    """`[low, high]`: the importance ratio to the sampling policy is clipped to [1 - low, 1 + high]; `null` removes that
    bound."""

    @field_validator("clip")
    @classmethod
    def _bounds(cls, value: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
        low, high = value
        if (low is not None and not 0 <= low <= 1) or (high is not None and high < 0):
            raise ValueError(
                f"[low, high] needs a low end between 0 and 1 and a high end of at least 0, not {list(value)}"
            )
        return value


class TrainSection(Section):
    """Configure training: the recipe (objective and teacher rule) and the optimiser (5. train)."""

    newer: ClassVar[tuple[str, ...]] = (
        "outcome",
        "twins",
        "hold",
        "arguments",
    )

    recipe: RecipeRef = DEFAULT
    """Name of a recipe (`hintdistill recipes list`), a YAML file, or a mapping with `preset` and the keys to change in
    it."""
    targets: Literal["stored", "in_step"] | None = None
    """`stored` trains on the rescore stage's targets; `in_step` runs the teacher in every training step. Default:
    `stored` if the recipe allows it."""
    anchor: AnchorSection = AnchorSection()
    twins: TwinSection = TwinSection()
    hold: HoldSection = HoldSection()
    outcome: OutcomeSection = OutcomeSection()
    fidelity: tuple[Literal["ids", "raw_text", "reserialised"], ...] = ("ids", "raw_text")
    """Steps that may be trained on, by how exactly their tokens are known: recorded ids, the text as generated, or
    rendered again."""
    lora: LoraSection | None = None
    learning_rate: float | None = Field(default=None, gt=0.0)
    """Peak learning rate. Default: 1e-3 for adapters, 2e-4 for whole weights (docs/decisions.md lists the settings that
    were tried)."""
    epochs: float = Field(default=3.0, gt=0.0)
    """Passes over the rows; a fraction is allowed."""
    batch_size: int = Field(default=8, ge=1)
    """Rows (traces with their accepted injections) per optimiser step, summed over all processes."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows per forward pass of a process; gradients are accumulated over the rest of the batch. Default: `batch_size`
    divided by the number of processes."""
    branch_tokens: int = Field(default=16_384, ge=1)
    """Tokens per forward pass of a teacher that runs in the training step."""
    gradient_checkpointing: bool = False
    """Recompute each layer's activations in the backward pass: less memory, about a third more time."""
    grad_window: int | None = Field(default=None, ge=0)
    """Let the gradient flow only through this many tokens before each scored span. The loss is the same, and the
    gradient is approximate; this saves time and memory. With 0, everything before the span is constant. Default: the
    exact gradient."""
    grad_window_every: int = Field(default=50, ge=1)
    """Optimiser steps between two measurements of the cosine between the truncated and the exact gradient, starting
    with the first step; `grad_window_cosine` in the metrics."""
    warmup_ratio: float = Field(default=0.03, ge=0.0, lt=1.0)
    """Share of the optimiser steps during which the learning rate rises from 0 to its peak, rounded down to whole
    steps."""
    schedule: str = "linear"
    """Learning-rate schedule after the warm-up, under its name in transformers, e.g. `linear`, `cosine`,
    `constant_with_warmup`."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient; larger gradients are clipped to it."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Weight decay of AdamW."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of transformers' Trainer, e.g. `{optim: adafactor, adam_beta2: 0.95}`. Only arguments that
    change neither rows, steps nor resuming are allowed; others are refused with the reason. docs/training.md has the
    list."""
    save_steps: int = Field(default=20, ge=1)
    """Optimiser steps between two checkpoints."""
    logging_steps: int = Field(default=5, ge=1)
    """Optimiser steps between two rows of metrics.jsonl."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """Number of latest checkpoints that are kept."""
    arriving_adapter: Literal["merge", "beside"] = "merge"
    """How a student that comes as an adapter is used. `merge`: it is merged into its base model, and the result is the
    student; `beside`: it stays frozen, and the new adapter of `train.lora` is trained in addition."""
    save_dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the student's files. `float32` keeps every update; `auto` keeps the precision of the initial
    model's files."""
    save: Literal["merged", "adapter", "both"] = "both"
    """The files written for a student with `train.lora`. `merged`: whole weights with the adapter merged into them;
    `adapter`: the adapter alone, in an adapter folder that names its base model and that every command accepts as a
    model; `both`: whole weights, and the adapter in `adapter/`. A student without `train.lora` is saved as whole
    weights."""
    push: str | None = None
    """Hub repository to which the student's folder is uploaded once the report is written, e.g. `me/my-student`;
    nothing leaves this machine by default. A new repository is private; `hintdistill push RUN REPO --public` creates a
    public one."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers used in addition to `metrics.jsonl`, which is always written; docs/outputs.md says where each keeps its
    files."""
    watch: WatchSection = WatchSection()
    tripwires: TripwireSection = TripwireSection()

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        update = self.effective_recipe.teacher.update
        if self.targets == "stored" and not TEACHERS.get(update).stored:
            raise ValueError(
                f"a teacher with the update rule {update} has no stored targets; set train.targets=in_step"
            )
        if self.targets == "stored" and (why := self._beyond_stored):
            raise ValueError(
                f"stored targets contain only top-k entries, not the full vocabulary ({why}); set train.targets=in_step"
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self

    @field_validator("arguments")
    @classmethod
    def _passed_on(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked(value)

    @model_validator(mode="after")
    def _outputs(self) -> TrainSection:
        if self.arriving_adapter == "beside" and self.lora is None:
            raise ValueError(
                "arriving_adapter=beside requires a new adapter; set train.lora, or arriving_adapter=merge"
            )
        if self.save == "adapter" and self.lora is None:
            raise ValueError("save=adapter writes an adapter, but none is trained; set train.lora, or save=merged")
        if self.save == "adapter" and self.arriving_adapter == "beside":
            raise ValueError("save=adapter writes a single adapter, but arriving_adapter=beside has two; set save=both")
        return self

    @cached_property
    def effective_recipe(self) -> Recipe:
        """Return the recipe with its overrides and with the coefficients of anchors, twins and hold traces. Raises
        ConfigError; see `recipes.load_recipe`."""
        beneath = {"anchor": default_anchor()} if self.anchor.weight else {}
        beneath |= {"twin": default_twin()} if self.twins.weight or self.twins.per_finding else {}
        if self.hold.given and self.hold.weight != 0:
            # so that train.recipe.terms.hold may change a key of the term that train.hold adds
            beneath["hold"] = {**default_anchor(), "rows": "hold"}
        recipe = load_recipe(self.recipe, beneath=beneath)
        terms = self._anchored(recipe) | self._twinned(recipe)
        terms |= self.hold.terms("hold" in recipe.terms, default_anchor())
        return load_recipe(self.recipe, {"terms": terms}, beneath) if terms else recipe

    @property
    def rate(self) -> float:
        """Return the learning rate: the configured one, or else the default for what is trained."""
        return self.learning_rate or (WHOLE_RATE if self.lora is None else ADAPTER_RATE)

    @property
    def target_source(self) -> Literal["stored", "in_step"]:
        """Return where targets come from: the configured source, or else the store if the recipe allows it."""
        return self.targets or ("in_step" if self._beyond_stored else "stored")

    @property
    def _beyond_stored(self) -> str | None:
        """Return why the recipe cannot use stored targets; None if it can."""
        wanted = (n.why for n in needs(self.effective_recipe) if n.name in ("in_step_teacher", "full_vocabulary"))
        return next(wanted, None)

    def _anchored(self, recipe: Recipe) -> dict[str, Any]:
        """Return `anchor.weight` as overrides of the recipe's terms."""
        return {} if self.anchor.weight is None else _weighed(recipe, "anchor", self.anchor.weight, default_anchor())

    def _twinned(self, recipe: Recipe) -> dict[str, Any]:
        """Return `twins.weight` as overrides of the recipe's terms."""
        weight = self.twins.weight
        if weight is None and (not self.twins.per_finding or any(t.rows == "twin" for t in recipe.terms.values())):
            return {}
        return _weighed(recipe, "twin", default_twin()["coef"] if weight is None else weight, default_twin())


def _weighed(recipe: Recipe, kind: str, weight: float, default: dict[str, Any]) -> dict[str, Any]:
    """Return overrides that remove the recipe's terms on this kind of row, or that set this coefficient on the term of
    the same name."""
    if weight == 0:
        return {n: None for n, t in recipe.terms.items() if t.rows == kind}
    return {kind: {**({} if kind in recipe.terms else default), "coef": weight}}


def default_anchor() -> dict[str, Any]:
    """Return the anchor of the default recipe in the form of a recipe file."""
    return load_recipe(DEFAULT).terms["anchor"].model_dump(mode="json", by_alias=True, exclude_defaults=True)


def default_twin() -> dict[str, Any]:
    """Return the term of twins in the form of a recipe file: the default recipe's anchor, with each twin weighing as
    much as a hint."""
    return default_anchor() | {"rows": "twin", "coef": 1.0}

"""5. train: the recipe, the optimiser, what low-rank adapters look like and what anchors hold on to."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from hintdistill.config.base import Section
from hintdistill.recipes import DEFAULT, Recipe, load_recipe, needs


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
    """Rows (traces with their accepted injections) per optimiser step, over all processes."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows per forward pass of a process; the rest is accumulated. Default: `batch_size` over the number of processes."""
    branch_tokens: int = Field(default=16_384, ge=1)
    """Tokens per forward pass of a teacher in the step."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass: less memory, about a third more time."""
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

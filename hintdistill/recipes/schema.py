"""Represent a recipe as frozen data: views, teacher, terms and coupling. Contradictions are refused on creation.

The keys are those of the objective `L = Σ_terms coef · N⁻¹ Σ_t W_t · ℓ(S_t, q_t; support)`: a term is a target × support ×
divergence × token weights × schedule.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hintdistill.core.parts import SAMPLER
from hintdistill.core.registry import nearest, require
from hintdistill.core.types import TargetKind
from hintdistill.recipes import parts, values
from hintdistill.recipes.data import IMPLICIT_VIEWS, Data, TeacherRule, View
from hintdistill.recipes.specs import AnyDivergence, DivergenceSpec, Weight, WeightSpec, divergence_spec
from hintdistill.recipes.values import Number, Part, Positive, Schedule

__all__ = [
    "Coupling",
    "DivergenceSpec",
    "Number",
    "Recipe",
    "Schedule",
    "SupportSpec",
    "TargetSpec",
    "Term",
    "WeightSpec",
]


def _the_teacher() -> dict[str, Number]:
    return {"teacher": 1.0}


class TargetSpec(Part):
    """Describe the distribution to match; see `objectives.targets.log_linear`."""

    loglin: dict[str, Number] = Field(default_factory=_the_teacher)
    anchor: str | None = None
    residual_clip: Positive | None = None
    temperature: Positive = 1.0
    tilt: Number = 0.0
    tilt_sign: Literal["none", "advantage"] = "none"
    mixture: dict[str, Number] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sound(self) -> TargetSpec:
        if self.residual_clip is not None and self.anchor is None:
            raise ValueError("residual_clip limits the distance from an anchor view, but no anchor is named")
        shares = [values.ends(w) for w in self.mixture.values()]
        if any(min(s) <= 0 for s in shares) or sum(max(s) for s in shares) >= 1:
            raise ValueError("the shares of a mixture must be positive and sum to less than 1")
        return self


class SupportSpec(Part):
    """Select the vocabulary entries that are compared; see `objectives.supports.select`."""

    kind: str = "student_topk"
    k: int = Field(default=100, ge=1)
    rest: str = "tail"
    token_ids: tuple[int, ...] = ()
    drop_special: bool = False
    include_sampled: bool = False
    accept_bias: bool = False
    """Accept a truncated divergence whose gradient lowers the kept mass, as published."""

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        return require(value, parts.SUPPORTS, "support")

    @field_validator("rest", mode="before")
    @classmethod
    def _rest(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            raise ValueError(
                f"the remainder must be one of {', '.join(parts.RESTS)}, not {' with '.join(map(str, value))}: "
                "renormalised entries already sum to one, so an additional tail would count the rest twice"
            )
        return require(str(value), parts.RESTS, "remainder")


class Term(Part):
    """Describe one term of the objective."""

    target: TargetSpec = TargetSpec()
    support: SupportSpec = SupportSpec()
    divergence: AnyDivergence = Field(default_factory=divergence_spec)
    weights: tuple[Weight, ...] = ()
    normalize: str = "kept"
    coef: Number = 1.0
    rows: TargetKind = "hint"
    """`hint`: the located steps; `anchor`: steps without a finding, whose target is the initial policy."""
    span: str = "step"
    """Loss span: the whole step, its action (the step without its reasoning), the quote, the quote weighted up within
    the step, or everything from the quote to the end."""
    quote_weight: float = Field(default=4.0, gt=0.0)
    min_probability: float = Field(default=0.0, ge=0.0, lt=1.0)
    """For anchors: tokens with a lower probability under the initial policy carry no loss. Where that policy was
    uncertain, its unlikely tokens may be the habit that is corrected on other steps."""
    student_view: str = "student"
    temperature: Positive = 1.0
    """Temperature of student and target."""

    @field_validator("normalize")
    @classmethod
    def _normalize(cls, value: str) -> str:
        return require(value, parts.NORMALISERS, "normaliser")

    @field_validator("span")
    @classmethod
    def _span(cls, value: str) -> str:
        return require(value, parts.SPANS, "loss span")

    @property
    def reads_sampler(self) -> bool:
        """Whether it uses the probability with which its tokens were sampled."""
        given = self.divergence.parameters if self.divergence.entry.has_signal else {}
        if given.get("behaviour") == SAMPLER or given.get("gap_at") == "sampling":
            return True
        return any("importance" in w.scores() for w in self.weights)

    @model_validator(mode="after")
    def _sampled_at_one(self) -> Term:
        if self.reads_sampler and self.temperature != 1.0:
            raise ValueError(
                "log-probabilities are recorded at temperature 1, but this term compares them with values at another "
                "temperature"
            )
        return self

    @model_validator(mode="after")
    def _sound(self) -> Term:
        entry, kind, support = self.divergence.entry, self.divergence.kind, self.support
        if entry.reads == "distributions":
            if support.kind == "sampled":
                raise ValueError(
                    f"{kind} compares distributions, but the support `sampled` has only one token; use divergence "
                    "`pg`, or a top-k support"
                )
            biased = entry.truncated == "lowers_mass"
            if support.rest == "drop" and support.kind != "full" and biased and not support.accept_bias:
                raise ValueError(
                    f"{kind} on a truncated support without its remainder lowers the mass of the kept entries; use "
                    "rest `tail` or `renorm`, divergence `rkl_sg`, or support.accept_bias=true"
                )
            if entry.one_sided and support.rest == "renorm":
                raise ValueError(f"{kind} is a one-sided sum; renormalised, it would be fkl")
        elif support.kind != "sampled" and entry.reads == "sampled":
            raise ValueError(f"{kind} reads only the sampled token; set support.kind to `sampled`")
        return self


class Coupling(Part):
    """State how an outcome reward enters; see `objectives.couplings`."""

    kind: str = "none"
    credit: tuple[Weight, ...] = ()
    """The weight (adv_mul) or the signal (adv_add), a product of shapes."""
    lam: Number = 1.0
    beta: Number = 1.0
    keep_sign: bool = True
    weight: Number = 0.5

    @model_validator(mode="after")
    def _sound(self) -> Coupling:
        require(self.kind, parts.COUPLINGS, "coupling")
        if self.kind in ("adv_mul", "adv_add") and not self.credit:
            raise ValueError(
                f"the coupling {self.kind} needs a credit: the weights that are combined with the advantage"
            )
        if self.kind == "additive" and not 0 <= min(values.ends(self.weight)) <= max(values.ends(self.weight)) <= 1:
            raise ValueError(
                f"the weight of an additive coupling is the terms' share, between 0 and 1, not {self.weight}"
            )
        return self

    @property
    def leaves_terms(self) -> bool:
        """Whether the recipe's terms are the same as without the coupling."""
        return self.kind in ("none", "additive")


class Recipe(Part):
    """Describe a named objective: its teacher rule, its sources, and how certain they are."""

    name: str
    title: str
    formula: str
    source: str
    confidence: str
    """Best source that was read: P paper, R released code (R* third-party), W web page, S secondary notes, A abstract
    only, or ours."""
    verdict: Literal["CORE", "OPTION", "CARRY", "BASELINE", "NEIGHBOUR", "OURS"]
    published: str
    """Published figures, and aspects of the publication that no key of a run can change."""
    ours: str
    """Figures or forms that are ours."""
    changed: str = ""
    """Departures from the method; empty if the recipe runs as the method. See docs/methods.md."""
    lowers_error: Literal["yes", "conditional", "no"]
    """Whether one training step lowers a sampled error token that the teacher lowers: always, only under a condition,
    or not because of the teacher. The reason is in `lowers_error_why`."""
    lowers_error_why: str = ""
    note: str = ""
    mechanism: tuple[str, ...] = ()
    """For mechanisms that are used elsewhere: their location, as `module.name`."""
    data: Data = Data()
    views: dict[str, View] = Field(default_factory=dict)
    teacher: TeacherRule = TeacherRule()
    terms: dict[str, Term] = Field(default_factory=dict)
    coupling: Coupling = Coupling()

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        if SAMPLER in self.views:
            raise ValueError(f"a view may not be called `{SAMPLER}`, which names the policy that sampled the tokens")
        if not self.terms:
            raise ValueError("an objective needs at least one term")
        for name, term in self.terms.items():
            self._check_views(name, term)
            if term.rows != "hint" and (term.weights or term.student_view != "student"):
                raise ValueError(
                    f"terms.{name}: {term.rows} rows hold the plain student to the initial policy and take no weights"
                )
            if term.rows == "hint" and term.min_probability:
                raise ValueError(
                    f"terms.{name}: min_probability applies to anchors, holds and twins; for hints use a weight of "
                    "`surprisal`"
                )
            if term.divergence.entry.has_signal and term.divergence.signal == "advantage" and term.rows != "hint":
                raise ValueError(f"terms.{name}: {term.rows} rows have no advantage")
        for view in (v for w in self.coupling.credit for s in sorted(w.scores()) for v in parts.SCORES.get(s, ())):
            if view not in self.all_views():
                raise ValueError(f"coupling.credit: unknown view `{view}`{nearest(view, self.all_views())}")
        known = {w.id for t in self.terms.values() for w in t.weights if w.id}
        for name, term in self.terms.items():
            for weight in term.weights:
                if weight.ref and weight.ref not in known:
                    raise ValueError(f"terms.{name}: unknown mask `{weight.ref}`{nearest(weight.ref, known)}")
        return self

    def _check_views(self, name: str, term: Term) -> None:
        known = self.all_views()
        for view in _views_of(term):
            if view not in known:
                raise ValueError(f"terms.{name}: unknown view `{view}`{nearest(view, known)}")
        for view in _named_views(term):
            if known[view].n > 1:
                raise ValueError(
                    f"terms.{name}: the view `{view}` has {known[view].n} contexts, which scores read together; set "
                    "n: 1 to name a single one"
                )
        if not self.all_views()[term.student_view].grad:
            raise ValueError(f"terms.{name}: the student view `{term.student_view}` has no gradient")
        if term.divergence.entry.reads == "hidden" and term.rows != "hint":
            raise ValueError(f"terms.{name}: terms on {term.rows} rows compare distributions, not hidden states")

    def all_views(self) -> dict[str, View]:
        """Return the declared views and the implicit ones."""
        return {**IMPLICIT_VIEWS, **self.views}

    def used_views(self, rows: TargetKind = "hint") -> dict[str, View]:
        """Return the views that the terms on these rows read, by name; several contexts of a kind get numbered
        names."""
        return {name: view for name, (view, _) in self.used_contexts(rows).items()}

    def used_contexts(self, rows: TargetKind = "hint") -> dict[str, tuple[View, str]]:
        """Return the same views, each with the name of its context in an injection (`View.labels`)."""
        wanted = {n: self.all_views()[n] for n in self.used_names(rows)}
        return {
            (name if view.n == 1 else f"{name}_{i + 1}"): (view, label)
            for name, view in wanted.items()
            for i, label in enumerate(view.labels)
        }

    def used_names(self, rows: TargetKind = "hint") -> list[str]:
        """Return the names of the views that the terms on these rows read, as declared."""
        names: dict[str, None] = {}
        for term in self.terms.values():
            if term.rows == rows:
                names |= dict.fromkeys(_views_of(term))
        if rows == "hint":
            for weight in self.coupling.credit:
                names |= dict.fromkeys(v for s in weight.scores() for v in parts.SCORES.get(s, ()))
        if any("disagree" in w.scores() for t in self.terms.values() if t.rows == rows for w in t.weights):
            names |= dict.fromkeys(n for n in self.views if n.startswith("teacher_"))
        return list(names)


def _named_views(term: Term) -> list[str]:
    """Return the views that a term reads by name, one distribution each."""
    of, given = term.target, term.divergence.parameters
    names = [term.student_view, *of.loglin, *of.mixture, *([of.anchor] if of.anchor else [])]
    read = [given.get(p.name, p.default) for p in term.divergence.entry.views]
    names += [str(view) for view in read if view not in (None, SAMPLER)]
    return names


def _views_of(term: Term) -> list[str]:
    """Return every view that a term reads, including the views of its scores."""
    scores = [s for w in term.weights for s in sorted(w.scores())]
    scores += ["contrast"] if term.divergence.entry.has_signal and term.divergence.signal == "tanh_contrast" else []
    return [*_named_views(term), *(v for s in scores for v in parts.SCORES.get(s, ()))]

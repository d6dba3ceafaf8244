"""Register the parts of objectives: divergences, weight shapes and kinds of hints, with their parameters.

Entries are plain data. `recipes` checks a recipe against them before it loads anything heavy. `objectives` finds the
functions through them, which needs only torch. Tests compare the entries with the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from hintdistill.core.errors import ConfigError
from hintdistill.core.registry import Registry


@dataclass(frozen=True)
class Parameter:
    """Describe one parameter of a part: its name, and the values it accepts."""

    name: str
    takes: Literal["number", "count", "flag", "ids", "view", "word"] = "number"
    """`number` (or a schedule), `count` (a whole number), `ids` (a list of whole numbers) or `view` (the name of a view
    of the recipe)."""
    low: float = -math.inf
    high: float = math.inf
    strictly: bool = False
    """Whether a number must lie strictly between `low` and `high`."""
    words: tuple[str, ...] = ()
    default: str | None = None
    """The view that is read unless another is named."""
    why: str = ""
    """The reason for the bounds."""


def inside(name: str, low: float = 0, high: float = math.inf, why: str = "") -> Parameter:
    """Describe a number strictly between two bounds."""
    return Parameter(name, low=low, high=high, strictly=True, why=why)


def share(name: str) -> Parameter:
    """Describe a number from 0 to 1."""
    return Parameter(name, low=0, high=1)


def at_least(name: str, low: float = 0) -> Parameter:
    """Describe a number with a lower bound."""
    return Parameter(name, low=low)


def count(name: str, low: int) -> Parameter:
    """Describe a whole number with a lower bound."""
    return Parameter(name, "count", low=low)


def free(*names: str) -> tuple[Parameter, ...]:
    """Describe numbers without bounds."""
    return tuple(Parameter(n) for n in names)


SIGNALS: dict[str, tuple[Parameter, ...]] = {
    "log": (),
    "fdiv": (Parameter("of", "word", words=("fkl", "rkl", "jsd")), inside("clip")),
    "power": (inside("alpha"),),
    "clip": free("low", "high"),
    "floor": (inside("lam", 0, 1),),
    "softlog": (),
    "znorm": free("eps"),
    "scale_only": free("eps"),
    "tanh_contrast": (inside("tau"), *free("scale")),
    "returns": (share("gamma"),),
    "advantage": (),
}
"""Signals of the divergence `pg`, with their parameters."""


@dataclass(frozen=True)
class Divergence:
    """Describe a way to compare student and target at a position."""

    name: str
    parameters: tuple[Parameter, ...] = ()
    implementation: str | Callable[..., Any] | None = None
    """`(student, target, **parameters)`, each log-probabilities [..., K], returns nats [...]. None if
    `objectives.compose` computes the divergence itself, because it does not read two distributions."""
    reads: Literal["distributions", "sampled", "hidden", "vocabulary"] = "distributions"
    """`distributions`: both on a support; `sampled`: the sampled token alone; `hidden`: hidden states; `vocabulary`: every
    token's log-probability."""
    truncated: Literal["sound", "lowers_mass"] | None = None
    """Behaviour on a support without the tail: `sound`, or `lowers_mass` if the gradient lowers the mass of the kept
    entries. An entry that reads distributions must declare it."""
    one_sided: bool = False
    """Whether it is a sum over the target's entries that loses its meaning once renormalised."""
    needs: tuple[tuple[str, str], ...] = ()
    """Names of `recipes.needs.HOW`, each with the reason, which follows `terms.NAME` in messages."""
    has_signal: bool = False
    """Whether it takes a signal with the signal's parameters."""

    def __post_init__(self) -> None:
        if self.reads == "distributions" and (self.truncated is None or self.implementation is None):
            raise ConfigError(
                f"the divergence {self.name} must declare its implementation and its behaviour when `truncated`"
            )
        if self.reads != "distributions" and self.implementation is not None:
            raise ConfigError(
                f"the divergence {self.name} must not have an implementation: only divergences that read "
                "distributions have one"
            )

    @property
    def views(self) -> tuple[Parameter, ...]:
        """Names of the parameters that take a view."""
        return tuple(p for p in self.parameters if p.takes == "view")


def _divergence(name: str, *parameters: Parameter, sound: bool = False, one_sided: bool = False) -> Divergence:
    return Divergence(
        name,
        parameters,
        f"hintdistill.objectives.divergences:{name}",
        truncated="sound" if sound else "lowers_mass",
        one_sided=one_sided,
    )


SAMPLER = "sampler"
"""Denominator of an importance ratio, used in place of a view: the log-probabilities at the time of sampling, as
recorded in the trace, or else the initial policy."""

_SHIPPED_DIVERGENCES = (
    _divergence("fkl", sound=True),
    _divergence("rkl"),
    _divergence("jsd", inside("alpha", 0, 1, "; for the limits use fkl and rkl")),
    _divergence("skew", inside("alpha", 0, 1)),
    _divergence("skew_rkl", inside("alpha", 0, 1)),
    _divergence("mix", share("lam")),
    _divergence("rkl_sg", sound=True),
    _divergence("ce_topk", sound=True, one_sided=True),
    Divergence("nll", reads="sampled"),
    Divergence(
        "hidden_mse",
        (Parameter("layers", "ids"),),
        reads="hidden",
        needs=(("hidden_states", ".divergence is hidden_mse"),),
    ),
    Divergence(
        "token_preference",
        (inside("beta"), Parameter("reference", "view", default="initial")),
        reads="vocabulary",
        needs=(("full_vocabulary", " compares with the teacher's best token"),),
    ),
    Divergence(
        "pg",
        (
            Parameter("signal", "word", words=tuple(SIGNALS)),
            Parameter("behaviour", "view"),
            Parameter("gap_at", "word", words=("now", "sampling")),
            share("clip_low"),
            at_least("clip_high"),
            inside("cap"),
            Parameter("ratio", "word", words=("token", "row")),
            Parameter("baseline", "word", words=("value",)),
            count("baseline_k", 1),
        ),
        reads="sampled",
        has_signal=True,
    ),
)
DIVERGENCES: Registry[Divergence] = Registry("divergence", Divergence, {d.name: d for d in _SHIPPED_DIVERGENCES})
CLIPS = ("pointwise_clip", "token_clip")


@dataclass(frozen=True)
class Shape:
    """Describe a function from a score to a token's weight."""

    name: str
    parameters: tuple[Parameter, ...] = ()
    implementation: str | Callable[..., Any] = ""
    """`(score, **parameters)`, [N] each. The function receives `valid`, `lengths` or `generator` if it has parameters
    of these names."""
    reads_batch: bool = field(kw_only=True)
    """Whether it depends on the whole batch, e.g. on a rank, quantile, maximum, mean or normaliser. Training then
    computes it over all rows of an optimiser step. Every other shape depends only on the token or its row."""
    unless: str | None = None
    """The parameter that replaces the batch statistic if it is set."""
    reads_set: bool = False
    """Whether its score gives each token the values of a set [N, M], with the token's own first and NaN as padding."""


def _shape(
    name: str, *parameters: Parameter, batch: bool = False, unless: str | None = None, sets: bool = False
) -> Shape:
    where = f"hintdistill.objectives.shapes:{name}"
    return Shape(name, parameters, where, reads_batch=batch, unless=unless, reads_set=sets)


_SHIPPED_SHAPES = (
    _shape("threshold", *free("at"), Parameter("below", "flag"), *free("otherwise")),
    _shape("threshold_abs", *free("at")),
    _shape("dead_zone", at_least("at")),
    _shape("equals", *free("value")),
    _shape("top_frac", share("rho"), batch=True),
    _shape("quantile_below", share("q"), batch=True),
    _shape("bernoulli"),
    _shape("sigmoid", *free("beta")),
    _shape("exp_clip", *free("low", "high")),
    _shape("sigmoid_clip", share("alpha")),
    _shape("saturate", inside("c"), batch=True, unless="c"),
    _shape("affine", *free("alpha"), Parameter("flip", "flag"), batch=True),
    _shape("robust01", share("low"), share("high"), batch=True),
    _shape("minmax01", batch=True),
    _shape("tanh", inside("tau"), *free("scale")),
    _shape("low_entropy_sign", share("q"), batch=True),
    _shape("median_sigmoid", *free("shift", "eps"), batch=True),
    _shape("median_scale", *free("eps"), batch=True),
    _shape("geom", share("gamma")),
    _shape("logistic_pos", *free("w_min", "centre"), inside("scale")),
    _shape("cum_drop", *free("below", "step", "base")),
    _shape("first_n", at_least("n")),
    _shape("last_n", at_least("n")),
    _shape("skip_n", at_least("n")),
    _shape(
        "rolling_stop",
        count("window", 1),
        *free("level"),
        share("eta"),
        count("patience", 1),
        count("skip", 0),
        batch=True,
        unless="level",
    ),
    _shape("freeze", Parameter("ids", "ids"), *free("weight")),
    _shape("sign_gate", *free("agree", "disagree")),
    _shape("rank_softmax", *free("tau"), batch=True),
    _shape("set_softmax", *free("tau"), sets=True),
    _shape("exp_decay", *free("kappa")),
    _shape("frontier"),
    _shape("frontier_root"),
    _shape("identity", *free("power")),
    _shape("clamp", *free("low", "high")),
)
SHAPES: Registry[Shape] = Registry("shape", Shape, {s.name: s for s in _SHIPPED_SHAPES})


@dataclass(frozen=True)
class HintKindEntry:
    """Describe a kind of hint that a recipe names: the text that the teacher reads and the student does not."""

    name: str
    needs: tuple[str, ...] = ()
    """Needs that a run must meet for it, as names of `recipes.needs.HOW`. A hint source may meet them
    (`core.extensions.HintSource.meets`)."""
    source: str = "critic"
    """The context maker that writes it, unless `inject.hint` names another: an entry of `core.extensions.HINT_SOURCES`."""


_SHIPPED_HINTS = (
    HintKindEntry("feedback"),
    HintKindEntry("reminder", source="reminder"),
    HintKindEntry("type_label", source="type_label"),
    HintKindEntry("observation", source="observation"),
    HintKindEntry("hindsight", source="hindsight"),
    HintKindEntry("rule", source="rule"),
    HintKindEntry("rules", source="rules"),
    HintKindEntry("hints", source="hints"),
    HintKindEntry("none", source="empty"),
    HintKindEntry("solution", source="solution"),
    HintKindEntry("demo", source="demonstration"),
    HintKindEntry("peers", source="peers"),
    HintKindEntry("peer_success", source="peer_success"),
    HintKindEntry("attempt_success", source="attempt_success"),
    HintKindEntry("verified", source="verified"),
    HintKindEntry("bcq", source="bcq"),
    HintKindEntry("ncq", source="ncq"),
    HintKindEntry("own_attempt", source="own_success"),
    HintKindEntry("file", source="file"),
)
HINTS: Registry[HintKindEntry] = Registry("hint kind", HintKindEntry, {h.name: h for h in _SHIPPED_HINTS})

"""The parts that a recipe may name: what `hintdistill.objectives` computes, as torch-free entries.

An entry carries the parameters of a part, what it needs, and where its implementation is, so that a recipe is checked
before anything heavy is loaded. Tests hold the entries against the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from hintdistill.core.errors import ConfigError
from hintdistill.core.registry import Registry, nearest, require
from hintdistill.recipes.values import Parameter, at_least, count, free, inside, share

__all__ = ["DIVERGENCES", "HINTS", "SHAPES", "Divergence", "HintKind", "Shape", "nearest", "require"]

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
"""Signals of `pg`, with their parameters."""


@dataclass(frozen=True)
class Divergence:
    """A way to compare student and target at a position."""

    name: str
    parameters: tuple[Parameter, ...] = ()
    implementation: str | Callable[..., Any] | None = None
    """`(student, target, **parameters)`, log-probabilities [..., K] each, gives nats [...]; None where `objectives.compose`
    computes it itself, because it reads other things than two distributions."""
    reads: Literal["distributions", "sampled", "hidden", "vocabulary"] = "distributions"
    """`distributions`: both on a support; `sampled`: the sampled token alone; `hidden`: hidden states; `vocabulary`: every
    token's log-probability."""
    truncated: Literal["sound", "lowers_mass"] | None = None
    """On a support without its rest: `sound`, or `lowers_mass` where its gradient lowers the mass of the kept entries. Must be
    said of what reads distributions."""
    one_sided: bool = False
    """Whether it is a sum over the target's entries that means nothing once renormalised."""
    needs: tuple[tuple[str, str], ...] = ()
    """Names of `recipes.needs.HOW`, each with the reason, after `terms.NAME`."""
    has_signal: bool = False
    """Whether it takes a signal, and the parameters of that."""

    def __post_init__(self) -> None:
        if self.reads == "distributions" and (self.truncated is None or self.implementation is None):
            raise ConfigError(
                f"the divergence {self.name} must say its implementation and what becomes of it `truncated`"
            )
        if self.reads != "distributions" and self.implementation is not None:
            raise ConfigError(
                f"the divergence {self.name}: only what reads distributions has an implementation of its own"
            )

    @property
    def views(self) -> tuple[Parameter, ...]:
        """The parameters that name a view."""
        return tuple(p for p in self.parameters if p.takes == "view")


def _divergence(name: str, *parameters: Parameter, sound: bool = False, one_sided: bool = False) -> Divergence:
    return Divergence(
        name,
        parameters,
        f"hintdistill.objectives.divergences:{name}",
        truncated="sound" if sound else "lowers_mass",
        one_sided=one_sided,
    )


_SHIPPED_DIVERGENCES = (
    _divergence("fkl", sound=True),
    _divergence("rkl"),
    _divergence("jsd", inside("alpha", 0, 1, "; its ends are fkl and rkl")),
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


SUPPORTS = ("sampled", "full", "student_topk", "teacher_topk", "union", "intersection", "token_set")
RESTS = ("tail", "renorm", "drop")


@dataclass(frozen=True)
class Shape:
    """A function from a score to a token's weight."""

    name: str
    parameters: tuple[Parameter, ...] = ()
    implementation: str | Callable[..., Any] = ""
    """`(score, **parameters)`, [N] each; asks for `valid`, `lengths` or `generator` by naming them."""
    reads_batch: bool = field(kw_only=True)
    """Whether it reads the whole batch (a rank, quantile, maximum, mean or normaliser of it), and so depends on
    `train.micro_batch_size`. Every other shape is a token's or a row's own affair."""
    unless: str | None = None
    """The parameter that takes the statistic's place where it is given."""


def _shape(name: str, *parameters: Parameter, batch: bool = False, unless: str | None = None) -> Shape:
    where = f"hintdistill.objectives.shapes:{name}"
    return Shape(name, parameters, where, reads_batch=batch, unless=unless)


_SHIPPED_SHAPES = (
    _shape("threshold", *free("at"), Parameter("below", "flag"), *free("otherwise")),
    _shape("threshold_abs", *free("at")),
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
    _shape("exp_decay", *free("kappa")),
    _shape("frontier"),
    _shape("frontier_root"),
    _shape("identity", *free("power")),
    _shape("clamp", *free("low", "high")),
)
SHAPES: Registry[Shape] = Registry("shape", Shape, {s.name: s for s in _SHIPPED_SHAPES})

BATCH_SIGNALS = frozenset({"znorm", "scale_only"})
"""Signals of a policy gradient that are scaled by the batch's own spread."""

FULL_VOCABULARY_SCORES = frozenset(
    {"H_S", "H_T", "div", "div_forward", "div_union", "div_tail64", "compat", "overlap", "accept", "teacher_max"}
)
SCORES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(sorted(FULL_VOCABULARY_SCORES), ()),
    "one": (),
    "importance": ("initial",),
    "adv_sign": (),
    "gap": (),
    "ratio": (),
    "surprisal": (),
    "evidence": ("teacher", "plain"),
    "contrast": ("teacher", "wrong"),
    "disagree": ("teacher",),
    "pos": (),
    "index": (),
    "token_id": (),
    "mean_logT": (),
    "ppl_S": (),
    "ppl_T": (),
}
"""Computed scores, with the views they read beside student and target."""
FACTS: dict[str, tuple[str, ...]] = {
    "turn_is_target": (),
    "in_quote": (),
    "since_error": (),
    "confidence": ("confidence",),
    "reward": ("reward",),
    "advantage": ("reward", "several_rollouts"),
    "group_acc": ("reward", "several_rollouts"),
    "tag": ("action_tags",),
    "lookahead": ("lookahead",),
    "lagged": ("controllers",),
    "key_span": ("success_spans",),
    "error_span": (),
    "on_policy": ("live_rollouts",),
}
"""Scores that the caller supplies, with what a run needs for them; those without are known for every row of a run."""

COUPLINGS = ("none", "additive", "adv_mul", "adv_add", "row_route", "reward_decay")
CONTROLLERS = (
    "cgtr",
    "kat_buffer",
    "adwin_window",
    "prune_length",
    "entropy_length_curriculum",
    "trb_budget",
    "lambda_cliff_guard",
)
DIAGNOSTICS = (
    "preflight_gap",
    "locality",
    "error_token_prob",
    "harm_rate",
    "length_tail",
    "kept_fraction",
    "geometry",
    "fidelity_by_position",
    "lambda_cliff",
    "top_k_mass",
)
ROLLOUTS = (
    "traces",
    "student",
    "guided",
    "teacher_prefix",
    "blend",
    "truncate",
    "retry",
    "resample_suffix",
    "none",
)
LOCATORS = ("all", "first_error_turn", "top_k_turns", "every_turn", "error_quote", "spans", "action_only", "none")


@dataclass(frozen=True)
class HintKind:
    """What the teacher has read that the student has not, as a recipe names it."""

    name: str
    needs: tuple[str, ...] = ()
    """What a run needs for it, names of `recipes.needs.HOW`; a hint source may meet it (`core.extensions.HintSource.meets`).
    Kinds without need a hint text, which the critic or a template writes."""


_SHIPPED_HINTS = (
    HintKind("feedback"),
    HintKind("reminder"),
    HintKind("type_label"),
    HintKind("observation"),
    HintKind("rule"),
    HintKind("none"),
    HintKind("solution", ("reference_solutions",)),
    HintKind("demo", ("demonstrations",)),
    HintKind("peers", ("peer_contexts",)),
    HintKind("harness", ("harness_context",)),
    HintKind("debate", ("debate_context",)),
    HintKind("bcq", ("peer_contexts",)),
    HintKind("ncq", ("peer_contexts",)),
    HintKind("delete_noise", ("clean_context",)),
    HintKind("clean", ("clean_context",)),
    HintKind("activation", ("activation_steering",)),
    HintKind("own_attempt"),
)
HINTS: Registry[HintKind] = Registry("hint kind", HintKind, {h.name: h for h in _SHIPPED_HINTS})
CONTEXTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "hint": (),
    "wrong": ("wrong_hints",),
    "partial": ("partial_hints",),
    "succ": ("peer_contexts",),
    "fail": ("peer_contexts",),
}
NORMALISERS = ("kept", "all", "mean1", "per_row")
SPANS = ("step", "quote", "quote_weighted", "suffix")

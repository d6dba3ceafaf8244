"""The parts that a recipe may name, and the parameters of each: what `hintdistill.objectives` computes, as data.

Torch-free, so that a recipe is checked before anything heavy is loaded. A test holds these tables against the functions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

DIVERGENCES: dict[str, tuple[str, ...]] = {
    "fkl": (),
    "rkl": (),
    "jsd": ("alpha",),
    "skew": ("alpha",),
    "skew_rkl": ("alpha",),
    "mix": ("lam",),
    "rkl_sg": (),
    "ce_topk": (),
    "nll": (),
    "hidden_mse": ("layers",),
    "token_preference": ("beta", "reference"),
    "pg": ("signal", "behaviour", "clip_low", "clip_high", "cap", "ratio", "baseline", "baseline_k"),
}
"""`pg` takes its signal's parameters as well."""
CLIPS = ("pointwise_clip", "token_clip")
DISTRIBUTIONS = frozenset({"fkl", "rkl", "jsd", "skew", "skew_rkl", "mix", "rkl_sg", "ce_topk"})
"""Divergences that compare distributions on a support; the others read the sampled token or hidden states."""

SIGNALS: dict[str, tuple[str, ...]] = {
    "log": (),
    "fdiv": ("of", "clip"),
    "power": ("alpha",),
    "clip": ("low", "high"),
    "floor": ("lam",),
    "softlog": (),
    "znorm": ("eps",),
    "scale_only": ("eps",),
    "tanh_contrast": ("tau", "scale"),
    "returns": ("gamma",),
    "advantage": (),
}

SUPPORTS = ("sampled", "full", "student_topk", "teacher_topk", "union", "intersection", "token_set")
RESTS = ("tail", "renorm", "drop")

SHAPES: dict[str, tuple[str, ...]] = {
    "threshold": ("at", "below", "otherwise"),
    "threshold_abs": ("at",),
    "equals": ("value",),
    "top_frac": ("rho",),
    "quantile_below": ("q",),
    "bernoulli": (),
    "sigmoid": ("beta",),
    "exp_clip": ("low", "high"),
    "sigmoid_clip": ("alpha",),
    "saturate": ("c",),
    "affine": ("alpha", "flip"),
    "robust01": ("low", "high"),
    "minmax01": (),
    "tanh": ("tau", "scale"),
    "low_entropy_sign": ("q",),
    "median_sigmoid": ("shift", "eps"),
    "median_scale": ("eps",),
    "geom": ("gamma",),
    "logistic_pos": ("w_min", "centre", "scale"),
    "cum_drop": ("below", "step", "base"),
    "first_n": ("n",),
    "last_n": ("n",),
    "skip_n": ("n",),
    "rolling_stop": ("window", "level", "eta", "patience", "skip"),
    "freeze": ("ids", "weight"),
    "sign_gate": ("agree", "disagree"),
    "rank_softmax": ("tau",),
    "exp_decay": ("kappa",),
    "frontier": (),
    "frontier_root": (),
    "identity": ("power",),
    "clamp": ("low", "high"),
}

BATCH_STATISTIC: dict[str, str | None] = {
    "top_frac": None,
    "quantile_below": None,
    "saturate": "c",
    "affine": None,
    "robust01": None,
    "minmax01": None,
    "low_entropy_sign": None,
    "median_sigmoid": None,
    "median_scale": None,
    "rolling_stop": "level",
    "rank_softmax": None,
}
"""Shapes that read the whole batch (a rank, quantile, maximum, mean or normaliser of it), with the parameter that takes the
statistic's place where it is given. Every other shape is a token's or a row's own affair."""
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
HINTS: dict[str, tuple[str, ...]] = {
    "feedback": (),
    "reminder": (),
    "type_label": (),
    "observation": (),
    "rule": (),
    "none": (),
    "solution": ("reference_solutions",),
    "demo": ("demonstrations",),
    "peers": ("peer_contexts",),
    "harness": ("harness_context",),
    "debate": ("debate_context",),
    "bcq": ("peer_contexts",),
    "ncq": ("peer_contexts",),
    "delete_noise": ("clean_context",),
    "clean": ("clean_context",),
    "activation": ("activation_steering",),
    "own_attempt": (),
}
"""Kinds of hint, with what a run needs for them. Those without need a hint text, which the critic or a template writes."""
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


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)`, or nothing where no known word is spelled alike."""
    words = list(known)
    found = [k for k in words if k.lower() == word.lower()] or difflib.get_close_matches(word, words, 1, 0.5)
    return f" (did you mean `{found[0]}`?)" if found else ""


def require(word: str, known: Iterable[str], what: str) -> str:
    """The word itself. Raises ValueError with the nearest known one."""
    words = list(known)
    if word not in words:
        raise ValueError(f"unknown {what} `{word}`{nearest(word, words)}; there are {', '.join(words)}")
    return word

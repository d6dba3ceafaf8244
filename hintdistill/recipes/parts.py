"""List the parts that a recipe may name, as data; `hintdistill.objectives` computes them.

Torch-free, so that a recipe is checked before anything heavy is loaded. Divergences, shapes and kinds of hint are
entries of registries (`core.parts`); the tables here are closed lists, which a test compares with the functions.
"""

from __future__ import annotations

from hintdistill.core.extensions import HINT_SOURCES
from hintdistill.core.parts import CLIPS, DIVERGENCES, HINTS, SHAPES, SIGNALS, Divergence, HintKindEntry, Shape
from hintdistill.core.registry import require

__all__ = ["CLIPS", "DIVERGENCES", "HINTS", "SHAPES", "SIGNALS", "Divergence", "HintKindEntry", "Shape"]

SUPPORTS = ("sampled", "full", "student_topk", "teacher_topk", "union", "intersection", "token_set")
RESTS = ("tail", "renorm", "drop")

BATCH_SIGNALS = frozenset({"znorm", "scale_only"})
"""Signals of a policy gradient that are scaled by the spread of the batch."""

FULL_VOCABULARY_SCORES = frozenset(
    {"H_S", "H_T", "div", "div_forward", "div_union", "div_tail64", "compat", "overlap", "accept", "teacher_max"}
)
SCORES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(sorted(FULL_VOCABULARY_SCORES), ()),
    "one": (),
    "importance": (),
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
"""Computed scores, with the views that they read besides student and target."""
FACTS: dict[str, tuple[str, ...]] = {
    "in_quote": (),
    "since_error": (),
    "reward": ("reward",),
    "advantage": ("reward", "several_rollouts"),
    "group_acc": ("reward", "several_rollouts"),
    "key_span": ("reward",),
    "error_span": (),
    "rollout_ppl_S": ("reward",),
    "rollout_ppl_T": ("reward",),
}
"""Scores that the caller supplies, with the need of each; a score without a need is known for every row of a run."""

SET_SCORES = frozenset({"rollout_ppl_S", "rollout_ppl_T"})
"""Facts that give each token the values of a set, [N, M]."""

COUPLINGS = ("none", "additive", "adv_mul", "adv_add", "row_route")
ROLLOUTS = ("traces", "student")
OWN_CONTEXTS = ("plain", "hint")
"""Contexts that no maker writes: the student's own, and that of the recipe's teacher."""
NORMALISERS = ("kept", "all", "mean1", "per_row")
SPANS = ("step", "action", "quote", "quote_weighted", "suffix")


def context_names() -> tuple[str, ...]:
    """Return the contexts that a view may name: `plain`, `hint`, and every context maker."""
    return (*OWN_CONTEXTS, *HINT_SOURCES.names())


def require_context(word: str) -> str:
    """Return the word itself. Raises ValueError, with the nearest name, if no view can have this context."""
    return require(word, context_names(), "context")

"""Provide the tensor functions of stage 5, train. They need only torch and can be used on their own.

`targets` computes the distribution to match. `supports` selects the vocabulary entries that are compared, and
`divergences` and `signals` compare them. `scorebank` and `shapes` weight each token, and `spans` selects the tokens
that carry loss. `couplings` adds a reward. `terms` binds a recipe's term to an optimiser step, `compose` puts the terms
together, and `chunked` does it without a dense `[N, V]`. They work on log-probabilities and know nothing of models,
traces or files.
"""

from hintdistill.objectives.compose import Batch, TermValue, objective, span_weights, term
from hintdistill.objectives.divergences import DIVERGENCES, divergence, fkl, jsd, rkl
from hintdistill.objectives.schedules import scheduled
from hintdistill.objectives.scorebank import ScoreBank
from hintdistill.objectives.signals import policy_gradient
from hintdistill.objectives.supports import gather_with_tail, restrict, select, union_of
from hintdistill.objectives.targets import log_linear
from hintdistill.objectives.terms import BoundTerm

__all__ = [
    "DIVERGENCES",
    "Batch",
    "BoundTerm",
    "ScoreBank",
    "TermValue",
    "divergence",
    "fkl",
    "gather_with_tail",
    "jsd",
    "log_linear",
    "objective",
    "policy_gradient",
    "restrict",
    "rkl",
    "scheduled",
    "select",
    "span_weights",
    "term",
    "union_of",
]

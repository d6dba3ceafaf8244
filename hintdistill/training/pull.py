"""Measure how strongly a hint's loss pulls on the student before training: a bounded divergence can be flat where the
student is certain.

A held step (a twin) has no gradient at the initial student, and pushes back once a hint has moved it. A hint with
almost no gradient is therefore never learned together with twins, however large its weight. The gradients of JSD,
skewed and reverse divergences are proportional to the student's own probability of the hinted continuation; the forward
KL's gradient is not.
"""

from __future__ import annotations

import numpy as np
import torch

from hintdistill.core.scores import Target
from hintdistill.objectives.terms import BoundTerm
from hintdistill.recipes import Term

WEAK = 0.02
"""Norm of a hint's gradient with respect to the student's logits, in nats, below which held steps prevail. The forward
KL's norm is about 1 if teacher and student disagree; for JSD, a norm of .02 means that the student gives the teacher's
token a probability of about .003."""


def pull_of(hint: Target, term: Term) -> float | None:
    """Return the norm of the gradient of a term's divergence with respect to the student's logits at the hint's
    decision token, in nats.

    The stored plain and hinted views are compared on their stored entries and the tail; targets made of several views
    are not composed. The result is None if the hint changes nothing, and for divergences that do not compare
    distributions.
    """
    if hint.decision is None or term.divergence.entry.reads != "distributions":
        return None
    at = hint.decision.position
    plain = torch.from_numpy(np.append(hint.plain_logprobs[at], hint.plain_tail[at]))
    teacher = torch.from_numpy(np.append(hint.teacher_logprobs[at], hint.teacher_tail[at]))
    kept = plain > -torch.inf
    logits = plain[kept].requires_grad_()
    (grad,) = torch.autograd.grad(BoundTerm.at(term).loss(logits.log_softmax(-1), teacher[kept]), logits)
    return float(grad.norm())

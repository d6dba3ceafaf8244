"""How hard a hint's loss pulls at the student before any training: a bounded divergence can be flat where the student is sure.

A step that is held (a twin) has no gradient where the student starts, and pushes back once a hint has moved it. A hint without a
pull is never learned beside one, however much it weighs. JSD, skewed and reverse divergences have a gradient in proportion to the
student's own probability of what is to be said; the forward KL does not.
"""

from __future__ import annotations

import numpy as np
import torch

from hintdistill.core.scores import Target
from hintdistill.objectives.terms import BoundTerm
from hintdistill.recipes import Term

WEAK = 0.02
"""Norm of a hint's gradient by the student's logits, nats, below which it stands no chance against what is held. The forward KL's is
about 1 where teacher and student disagree; a JSD of .02 belongs to a student that gives the teacher's token about .003."""


def pull_of(hint: Target, term: Term) -> float | None:
    """Norm of the gradient of a term's divergence by the student's logits at the hint's decision token, nats.

    The stored plain and hinted views are compared on their stored entries and the tail; targets of several views are not composed.
    None if the hint changes nothing, and for divergences that compare no distributions.
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

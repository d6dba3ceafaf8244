"""Divergence `hellinger`: scale·(1 - Σ √(S·T)), bounded by scale."""

from hintdistill.core.parts import DIVERGENCES, Divergence, inside


def hellinger(student, target, scale=1.0):
    # entry by entry, so that a clip of each entry's share can be taken
    return scale * (target.exp() - ((student + target) / 2).exp()).sum(-1)


DIVERGENCES.register(Divergence("hellinger", (inside("scale"),), hellinger, truncated="lowers_mass"))

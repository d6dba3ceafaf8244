"""5. train: pure tensor functions, usable alone with torch only.

`supports` says which vocabulary entries are compared, `divergences` how; both work on log-probabilities and know
nothing of models, traces or files.
"""

from hintdistill.objectives.divergences import DIVERGENCES, divergence, fkl, jsd, rkl
from hintdistill.objectives.supports import gather_with_tail, union_of

__all__ = ["DIVERGENCES", "divergence", "fkl", "gather_with_tail", "jsd", "rkl", "union_of"]

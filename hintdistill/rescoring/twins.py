"""Check that the policy still takes a twin's step in the twin's context, before the step is held there.

The policy is the initial one, whose distribution is held; in a run without rounds it is also the one that made the
error. Both of these conditions must hold:

- **at the decision token** (of the finding's hint: the first quoted token at which the hinted view leaves the sampled one; without
  one, the first quoted token): the sampled token is the most likely one, or has at least `SHARE` of its probability in the
  original context;
- **over the quote**: every quoted token is the most likely one, so that greedy decoding produces the quote, or the
  geometric mean over the quoted tokens of p(twin) ÷ p(original) is at least `SHARE`. The condition uses the mean and
  not each token, because otherwise a single uncertain token could reject a quote of twenty tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hintdistill.core.scores import Measurement, Target
from hintdistill.core.types import Split, Twin

SHARE = 0.8
"""Share of its probability in the original context that the sampled token must keep if it is not the most likely
token."""
NOT_DONE_HERE = "not_done_here"
"""Reason for rejecting a twin in whose context the policy does not take the step."""


class TwinItem(NamedTuple):
    """Hold a twin to score, and the key of its target."""

    key: str
    twin: Twin
    split: Split
    of: str
    """Key of the target of the hint for the same finding."""


@dataclass(frozen=True)
class Original:
    """Hold the erring step in its own context, as scored by the policy to which a twin is held."""

    position: int | None
    """Decision token of the finding's hint; None if the hint changes nothing."""
    plain: np.ndarray
    """float32 [T]: log-probabilities of the step's tokens, nats."""

    @classmethod
    def of(cls, hint: Target) -> Original:
        """Make it from the hint's target, whose plain view these weights scored."""
        at = None if hint.measurement is None else hint.measurement.position
        return cls(at, hint.plain_sampled)


def measure_twin(twin: Twin, original: Original, sampled: np.ndarray, top1: np.ndarray) -> Measurement:
    """Measure the effect of an edit on its step.

    The measurement is that of a hint, with the original context as the plain view and the edited context as the hinted
    view: `effect` is log p(twin) − log p(original) of the sampled token at the decision token, and `plain_logprob` is
    log p(original).

    Args:
        sampled, top1: float32 [T] and int64 [T], log-probabilities of the step's tokens in the twin's context, and the most
            likely ids there.
    """
    start, end = twin.span
    at = start if original.position is None else original.position
    effect = sampled - original.plain
    rest = np.concatenate([effect[:start], effect[end:]])
    return Measurement(
        position=at,
        instead_id=int(top1[at]),
        effect=float(effect[at]),
        plain_logprob=float(original.plain[at]),
        max_raise=0.0,
        specificity=float(effect[start:end].mean() - (rest.mean() if len(rest) else 0.0)),
        legal_mass_gain=None,
        best_placebo=0.0,
    )


def judge_twin(twin: Twin, original: Original, sampled: np.ndarray, top1: np.ndarray) -> tuple[str, ...]:
    """Return the reasons for rejecting a twin; empty if the policy still takes the step. The arguments are those of
    `measure_twin`."""
    start, end = twin.span
    at = start if original.position is None else original.position
    effect, greedy = sampled - original.plain, top1 == np.array(twin.step_ids)
    decided = bool(greedy[at]) or effect[at] >= math.log(SHARE)
    quoted = bool(greedy[start:end].all()) or effect[start:end].mean() >= math.log(SHARE)
    return () if decided and quoted else (NOT_DONE_HERE,)

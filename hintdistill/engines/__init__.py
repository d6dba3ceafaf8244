"""Run stage 4, rescore: sequences in, scores out. Engines know token ids and weights, never text, templates or
messages.

Each engine decides how to share work between sequences. But all engines guarantee that every scored position gets a
finite number, or the call fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from hintdistill.core.scores import ScoreRequest, Scores

CAPABILITIES = frozenset({"gather", "full", "hidden"})
"""Capabilities of engines. `gather`: log-probabilities of chosen ids; `full`: the whole vocabulary; `hidden`: hidden
states."""


@runtime_checkable
class Engine(Protocol):
    """Score sequences with one set of weights."""

    capabilities: frozenset[str]
    key: str
    """Key of the weights; equal keys give equal scores."""
    max_length: int
    """Longest sequence that the model accepts, in tokens."""

    def score(self, requests: Sequence[ScoreRequest], top_k: int) -> list[Scores]:
        """Score each request's range.

        Requests of one `group` are scored on the union of their top-k ids and the sampled id, if the engine has the
        capability `gather`.

        Raises:
            ContextLengthError: a sequence is longer than the model accepts.
            ScoreError: a log-probability is missing or not finite.
        """
        ...


def union_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Per position, the ids of all arrays [T, K_i], each once, ascending; padded with -1 to the longest. int64 [T, K]."""
    ids = np.sort(np.concatenate([np.asarray(r, np.int64) for r in rows], axis=1), axis=1)
    fresh = np.ones(ids.shape, bool)
    fresh[:, 1:] = ids[:, 1:] != ids[:, :-1]
    out = np.full((len(ids), int(fresh.sum(1).max())), -1, np.int64)
    out[np.nonzero(fresh)[0], (fresh.cumsum(1) - 1)[fresh]] = ids[fresh]
    return out

"""Share code between engines that receive top-k log-probabilities of a prompt from vLLM or a server.

Such an engine cannot gather chosen ids: it returns the top k and the sampled id, and the rest is the tail. If a
request's sequence is the beginning of another's, the longer one answers both (`units`). So a view without a hint is
bit-identical to the plain one, and nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hintdistill.core.errors import ContextLengthError, ScoreError
from hintdistill.core.scores import ScoreRequest, Scores
from hintdistill.engines.prefix_tree import ROOT, grow

Position = Mapping[int, float]
"""Log-probability by id at one position, for the top k and the sampled id."""

SMALLEST_TAIL = 2.0**-24
"""Smallest tail that is reported; below it, one minus a sum of float32 probabilities is only rounding error."""
CLAMPED = -9999.0
"""Value that servers write for -inf, which JSON cannot represent."""


@dataclass(frozen=True)
class Unit:
    """Hold one prompt to send, and the requests that it answers."""

    ids: np.ndarray
    members: tuple[int, ...]
    first: int
    """First scored position of any request; from here on, positions must be computed and not read from a cache."""
    is_trunk: bool
    """Whether others share its beginning; such prompts are served first."""


def units(requests: Sequence[ScoreRequest], max_length: int) -> list[Unit]:
    """Return the prompts to send, trunks first.

    Raises:
        ContextLengthError: a sequence is longer than the server accepts.
    """
    for r in requests:
        if r.end > max_length:
            raise ContextLengthError(
                f"a sequence of {r.end} tokens is longer than the {max_length} tokens that the server accepts",
                hint="shorten the trace, or serve the model with a longer --max-model-len",
            )
    sequences = [np.ascontiguousarray(r.ids[: r.end], np.int64) for r in requests]
    tree = grow(sequences)
    members: dict[int, list[int]] = {}
    for i, leaf in enumerate(tree.leaves):
        members.setdefault(leaf, []).append(i)
    out = []
    for leaf, some in members.items():
        longest = max(some, key=lambda i: len(sequences[i]))
        first = min(requests[i].start for i in some)
        out.append(Unit(sequences[longest], tuple(some), first, tree.chains[leaf].parent == ROOT))
    return sorted(out, key=lambda u: not u.is_trunk)


def scores(request: ScoreRequest, top_k: int, vocab: int | None, at: Callable[[int], Position | None]) -> Scores:
    """Return the scores of one request; `at` gives the known log-probabilities of a position of its sequence.

    Raises:
        ScoreError: a position is missing, not finite, or lacks the sampled id.
    """
    length, sampled = request.end - request.start, []
    ids = np.full((length, top_k + 1), -1, np.int64)
    logprobs = np.full((length, top_k + 1), -np.inf, np.float32)
    tails, top1 = np.empty(length, np.float32), np.empty(length, np.int64)
    for t, position in enumerate(range(request.start, request.end)):
        known, here = at(position), int(request.ids[position])
        where = f"position {t} of a step ({request.group or 'no group'})"
        if known is None or here not in known:
            raise ScoreError(f"there is no log-probability of the sampled token at {where}")
        ranked = sorted(known.items(), key=lambda e: (-e[1], e[0]))
        kept = dict(ranked[:top_k]) | {here: known[here]}
        # ranked lists end in what was clamped to -inf: those ids are in the tail
        kept = {i: lp for i, lp in kept.items() if lp > CLAMPED or i == here}
        if not all(math.isfinite(lp) and lp > CLAMPED for lp in kept.values()):
            raise ScoreError(
                f"log-probability {known[here]} at {where}",
                hint="the computation overflows with these weights or this precision; try float32",
            )
        row = sorted(kept)
        ids[t, : len(row)], logprobs[t, : len(row)] = row, [kept[i] for i in row]
        left = 1.0 - math.fsum(math.exp(lp) for lp in kept.values())
        tails[t] = -math.inf if vocab is not None and len(row) >= vocab else math.log(max(left, SMALLEST_TAIL))
        top1[t] = ranked[0][0]
        sampled.append(known[here])
    width = int((ids >= 0).sum(1).max())
    return Scores(np.array(sampled, np.float32), ids[:, :width], logprobs[:, :width], tails, None, top1)

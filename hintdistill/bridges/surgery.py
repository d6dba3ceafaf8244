"""Splice hints for trainers that query the teacher on their own: insert a hint at any turn, score, and slice out the step's
rows.

Teacher outputs are aligned as in verl and most padding servers: a sequence of S tokens has S rows, row t holds the
teacher's prediction of token t + 1, and the last row is empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hintdistill.bridges.narrow import narrow
from hintdistill.bridges.runs import open_rows, require_no_action_span
from hintdistill.core.errors import InputError

NOTHING = -1e4
"""Log-probability of an id that pads a row; its probability is 0, and 0 times it is 0."""


@dataclass(frozen=True)
class Splice:
    """Describe a hint at its place, and the step that is read under it."""

    at: int
    """Position in the sequence before which the hint is inserted."""
    block: tuple[int, ...]
    """The hint's tokens."""
    start: int
    """Position of the step's first token."""
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.at <= self.start < self.end or self.start < 1:
            raise InputError(f"a hint at {self.at} is not above a step of the tokens {self.start} to {self.end}")


@dataclass(frozen=True)
class Scored:
    """Hold a teacher's scores of a step: K ids per token with log-probabilities, [T, K] each."""

    start: int
    end: int
    ids: np.ndarray
    logprobs: np.ndarray
    weights: np.ndarray
    """float [T]: the loss span, 0 or 1."""


def hinted_ids(ids: Sequence[int], splice: Splice) -> list[int]:
    """Return the teacher's input: the sequence up to the step's end, with the hint. Raises InputError if the step ends
    beyond the sequence."""
    if splice.end > len(ids):
        raise InputError(f"a step ends at token {splice.end} of a sequence of {len(ids)}")
    return [*ids[: splice.at], *splice.block, *ids[splice.at : splice.end]]


def slice_back(ids: np.ndarray, logprobs: np.ndarray, splice: Splice) -> Scored:
    """Return a teacher's scores of the step from those of the hinted sequence; both [S, K], see the module's
    docstring."""
    whole = splice.end + len(splice.block)
    if len(ids) != whole or len(logprobs) != whole:
        raise InputError(f"the teacher returned {len(ids)} rows for a hinted sequence of {whole} tokens")
    rows = slice(splice.start - 1 + len(splice.block), whole - 1)
    return Scored(splice.start, splice.end, ids[rows], logprobs[rows], np.ones(splice.end - splice.start))


def laid_out(scored: Sequence[Scored], length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids int32 [S, K] and log-probabilities float32 [S, K] of a whole sequence; rows outside all steps are
    empty.

    Raises:
        InputError: two steps overlap, but a token can have only one teacher.
    """
    ids, logprobs = np.zeros((length, width), np.int32), np.full((length, width), NOTHING, np.float32)
    taken = np.zeros(length, bool)
    for one in scored:
        rows = slice(one.start - 1, one.end - 1)
        if taken[rows].any():
            raise InputError(
                f"two hints apply to the step at token {one.start}, but a token can have only one teacher",
                hint="choose one of them",
            )
        taken[rows] = True
        kept = min(width, one.ids.shape[1])
        there = one.ids[:, :kept] >= 0
        ids[rows, :kept] = np.where(there, one.ids[:, :kept], 0)
        logprobs[rows, :kept] = np.where(there, one.logprobs[:, :kept], NOTHING)
    return ids, logprobs


def loss_mask(scored: Sequence[Scored], prompt: int, response: int) -> list[int]:
    """Return 1 for each response token of a scored step's span, 0 elsewhere; `prompt` tokens are before the response."""
    mask = np.zeros(prompt + response, int)
    for one in scored:
        mask[one.start : one.end] = np.maximum(mask[one.start : one.end], one.weights != 0)
    out: list[int] = mask[prompt:].tolist()
    return out


class StoredScores:
    """Hold the stored teacher scores of a run's steps, and find them by the tokens of the step and of its context."""

    def __init__(self, run: Path | str, k: int) -> None:
        """Read a run's accepted hints, with `k` ids per token, always including the sampled one.

        Raises InputError if there are none, ConfigError for a recipe with the loss span `action`.
        """
        found = open_rows(Path(run))
        require_no_action_span(found.section, "this bridge")
        self._held: dict[tuple[int, bytes], Scored] = {}
        for _, target in found.targets.where(lambda t: t.kind == "hint").by_part():
            few = narrow(target, k, "keep")
            start, end = len(target.context_ids), len(target.context_ids) + len(target.step_ids)
            weights = np.zeros(end - start)
            weights[slice(*target.span)] = 1.0
            ids = np.concatenate([target.context_ids, target.step_ids])
            self._held[end, _digest(ids)] = Scored(start, end, few.support_ids, few.teacher_logprobs, weights)
        self._ends = sorted({end for end, _ in self._held})

    def __len__(self) -> int:
        return len(self._held)

    def find(self, ids: Sequence[int]) -> list[Scored]:
        """Return the steps of this sequence for which the run has scores, in order."""
        array = np.asarray(ids)
        found = [self._held.get((end, _digest(array[:end]))) for end in self._ends if end <= len(array)]
        return [one for one in found if one is not None]


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).digest()

"""Compute log-probabilities of chosen ids from hidden states, one chunk of `[positions, vocab]` at a time.

The head is applied once. What a later question needs (ids that another view of the group kept, ids a schema allows) is
the dot product of the hidden state with those rows of the output embedding, minus the normaliser found the first time.
Where the output embedding is more than a matrix (an adapter sits on it), or the vocabulary is small, the head is applied again.

Shape legend: T positions, H hidden, V vocabulary, k own top entries, K kept entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from hintdistill.engines.forward import chunks, make_head, make_squash

DENSE = 16
"""Entries of the vocabulary per kept id of a position up to which the whole product costs less than the chosen rows."""
CLOSE = math.log(1e-3)
"""A tail this far below the mass from which it would be subtracted is summed directly instead, nats."""


@dataclass(frozen=True)
class HeadReading:
    """Hold the results of one pass of the head over hidden states [T, H]."""

    hidden: Tensor
    normaliser: Tensor
    """float32 [T]: log Σ exp(logits)"""
    sampled: Tensor
    """float32 [T]: log-probability of the actual token"""
    top_ids: Tensor
    """int64 [T, k], most likely first"""
    top_logprobs: Tensor
    """float32 [T, k]"""
    rest: Tensor
    """float32 [T]: log-probability of everything outside the top k"""

    def at(self, rows: Sequence[int]) -> HeadReading:
        """Return the reading of some positions, in this order."""
        if isinstance(rows, range):
            cut = slice(rows.start, rows.stop)
            return HeadReading(*(getattr(self, f.name)[cut] for f in fields(self)))
        index = torch.tensor(rows, device=self.hidden.device)
        return HeadReading(*(getattr(self, f.name)[index] for f in fields(self)))


class Vocabulary:
    """Represent a model's output embedding together with its changes to the logits."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.head, self.squash = make_head(model), make_squash(model)
        self.size = int(model.get_output_embeddings().weight.shape[0])

    def read(self, hidden: Tensor, sampled: np.ndarray, k: int) -> HeadReading:
        """Apply the head to hidden states [T, H], and keep the log-probabilities of `sampled` [T] and of the top
        `k`."""
        ids = torch.from_numpy(sampled).to(hidden.device)
        parts: list[tuple[Tensor, ...]] = []
        for c in chunks(len(hidden), self.size):
            logits = self.head(hidden[c])
            at = logits.gather(1, ids[c, None])[:, 0]
            top = logits.topk(k, dim=-1)
            # the sum of what is left, not one minus what is kept: no cancellation when almost nothing is left
            rest = logits.scatter_(1, top.indices, -torch.inf).logsumexp(-1)
            normaliser = torch.logaddexp(rest, top.values.logsumexp(-1))
            parts.append(
                (normaliser, at - normaliser, top.indices, top.values - normaliser[:, None], rest - normaliser)
            )
        return HeadReading(hidden, *(torch.cat(p) for p in zip(*parts, strict=True)))

    def logprobs(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities of the whole vocabulary, float32 [T, V]."""
        return torch.cat([self.head(hidden[c]).log_softmax(-1) for c in chunks(len(hidden), self.size)])

    def logprobs_of(self, reading: HeadReading, ids: np.ndarray) -> Tensor:
        """Return log-probabilities float32 [T, K] of ids int64 [T, K], or [K] for all positions; -inf at ids below
        0."""
        hidden = reading.hidden
        wanted = torch.from_numpy(np.asarray(ids, np.int64)).to(hidden.device)
        embedding = self.model.get_output_embeddings()
        if type(embedding) is not torch.nn.Linear or (wanted.ndim == 2 and self.size <= DENSE * wanted.shape[1]):
            full = wanted.expand(len(hidden), -1).clamp(min=0)
            logits = torch.cat([self.head(hidden[c]).gather(1, full[c]) for c in chunks(len(hidden), self.size)])
        elif wanted.ndim == 1:
            bias = None if embedding.bias is None else embedding.bias[wanted]
            logits = self.squash(linear(hidden, embedding.weight[wanted], bias).float())
        else:
            logits = self._dots(hidden, wanted.clamp(min=0), embedding)
        return (logits - reading.normaliser[:, None]).masked_fill(wanted < 0, -torch.inf)

    def _dots(self, hidden: Tensor, ids: Tensor, embedding: torch.nn.Linear) -> Tensor:
        out = []
        for c in chunks(len(hidden), ids.shape[1] * hidden.shape[1]):
            logits = torch.einsum("tkh,th->tk", embedding.weight[ids[c]], hidden[c])
            out.append(self.squash((logits if embedding.bias is None else logits + embedding.bias[ids[c]]).float()))
        return torch.cat(out)

    def kept(self, reading: HeadReading, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [T, K] of kept ids (ascending per row, -1 pads, own top k included), and the tail
        [T]."""
        values = self.logprobs_of(reading, ids)
        here = torch.from_numpy(ids).to(values.device)
        ordered = here.masked_fill(here < 0, self.size)
        own = torch.searchsorted(ordered, reading.top_ids)
        values.scatter_(1, own, reading.top_logprobs)
        others = values.scatter(1, own, -torch.inf).logsumexp(-1)
        tail = reading.rest + torch.log1p(-torch.exp((others - reading.rest).clamp(max=0.0)))
        tail = torch.where(torch.isneginf(reading.rest), reading.rest, tail)
        close = torch.nonzero(~torch.isneginf(reading.rest) & ~(tail - reading.rest > CLOSE))[:, 0]
        for c in chunks(len(close), self.size):
            rows = close[c]
            logits = self.head(reading.hidden[rows])
            logits.scatter_(1, torch.where(here[rows] < 0, here[rows][:, :1], here[rows]), -torch.inf)
            tail[rows] = logits.logsumexp(-1) - reading.normaliser[rows]
        return values, tail

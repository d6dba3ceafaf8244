"""Sample repetitive episodes in this process: with drafts copied from the context, and keys and values kept per row.

A call of a tool is nearly all of it written before: its markup, the tool's name, the city. So the tokens that followed the last
occurrence of the current ones are drafted and read in one pass (prompt lookup); each is accepted with the probability that the
model gives it, and the first that is not is drawn from the rest of the distribution (Leviathan et al. 2023, arXiv 2211.17192,
with a draft that is certain): what is sampled has the model's distribution, exactly. What was read of an episode is kept, so that
taking it up again at a step reads the hint and not the episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hintdistill.engines.transformers import TransformersEngine
from hintdistill.rollouts.attention import sampling_attention
from hintdistill.rollouts.cache import growing_cache
from hintdistill.rollouts.generation import Sampled, SamplingOptions, _cache_name

AHEAD = 10
"""Drafted tokens a pass."""
Allowed = Callable[[np.ndarray, Sequence[int]], "list[int] | None"]
"""Context and what was said of the step → the ids that may follow, None where all may."""
SHARED = 64
"""A kept row is continued if it shares at least so many tokens; below, numerics would depend on what was played before."""


def draft(ids: np.ndarray, ahead: int) -> list[int]:
    """What followed the longest earlier occurrence of the last tokens (at least two), the latest of equals; maybe nothing."""
    at = np.flatnonzero(ids[1:-1] == ids[-1]) + 1
    best, length = -1, 1
    for i in at[::-1]:
        n = 1
        while n < 12 and n <= i and ids[i - n] == ids[-1 - n]:
            n += 1
        if n > length:
            best, length = int(i), n
    return [] if best < 0 else ids[best + 1 : best + 1 + ahead].tolist()


class DraftedGenerator:
    """See the module. A `Generator` of full-attention models in this process; knows temperature, and no filters."""

    def __init__(
        self, engine: TransformersEngine, keep: int = 256, ahead: int = AHEAD, allowed: Allowed | None = None
    ) -> None:
        """`allowed` holds every token of a step but its first to some ids, whose distribution is then the model's among them."""
        self.engine, self.key, self.max_length, self.ahead, self.keep = (
            engine,
            engine.key,
            engine.max_length,
            ahead,
            keep,
        )
        self.allowed = allowed
        self.kept: list[tuple[np.ndarray, torch.Tensor]] = []
        """Ids of a row and their keys and values [layers, 2, heads, S, D]; least recently used first."""
        self.passes = 0

    def forget(self) -> None:
        """Drop what was kept."""
        self.kept.clear()

    def generate(
        self, contexts: Sequence[Sequence[int]], stop: Sequence[int], options: SamplingOptions, seed: int
    ) -> list[Sampled]:
        """See `Generator.generate`. Raises ValueError for filters or log-probabilities, which it does not know."""
        if options.top_p != 1.0 or options.top_k or options.min_p or options.logprobs:
            raise ValueError("drafted sampling knows a temperature alone")
        rng = torch.Generator().manual_seed(seed)
        with self.engine.hold() as model, torch.inference_mode(), sampling_attention(model):
            batch = _Batch(self, model, contexts)
            out: list[list[int]] = [[] for _ in contexts]
            tokens = batch.first(options.temperature, rng)
            while True:
                live = []
                for row, i in enumerate(batch.rows):
                    for token in tokens[row]:
                        out[i].append(token)
                        if token in stop or len(out[i]) == options.max_new_tokens:
                            break
                    ended = out[i][-1] in stop or len(out[i]) == options.max_new_tokens
                    if ended:
                        self._keep(batch, row, [*contexts[i], *out[i]])
                    else:
                        live.append(row)
                if not live:
                    break
                batch.select(live)
                said = [(np.array(contexts[i]), out[i]) for i in batch.rows]
                tokens = batch.more(said, options.temperature, rng)
        return [Sampled(tuple(ids)) for ids in out]

    def closest(self, context: np.ndarray) -> tuple[int, torch.Tensor | None]:
        """How many first tokens of a context some kept row has read, and that row's keys and values."""
        best, found = 0, -1
        for at, (ids, _) in enumerate(self.kept):
            n = min(len(ids), len(context) - 1)
            if n <= best or n < SHARED or (ids[:SHARED] != context[:SHARED]).any():
                continue
            differs = np.flatnonzero(ids[:n] != context[:n])
            n = int(differs[0]) if len(differs) else n
            if n > best:
                best, found = n, at
        if best < SHARED:
            return 0, None
        self.kept.append(self.kept.pop(found))
        return best, self.kept[-1][1]

    def _keep(self, batch: _Batch, row: int, ids: Sequence[int]) -> None:
        read = batch.read(row)
        mine = np.array(ids[: read.shape[3]])
        for at, (old, _) in enumerate(self.kept):
            if len(old) <= len(mine) and (mine[: len(old)] == old).all():
                del self.kept[at]  # this row continues it
                break
        self.kept.append((mine, read))
        del self.kept[: max(0, len(self.kept) - self.keep)]


class _Batch:
    """Rows that are being sampled: B rows, S columns of which `mask` says which count."""

    def __init__(self, owner: DraftedGenerator, model: Any, contexts: Sequence[Sequence[int]]) -> None:
        self.owner, self.model, self.rows = owner, model, list(range(len(contexts)))
        arrays = [np.array(c) for c in contexts]
        found = [owner.closest(c) for c in arrays]
        width = max(n for n, _ in found)
        self.cache = growing_cache(model.config.get_text_config())
        self.mask = torch.zeros(len(contexts), width, dtype=torch.long)
        for i, (n, _) in enumerate(found):
            self.mask[i, width - n :] = 1
        if width:
            some = next(kv for _, kv in found if kv is not None)
            whole = some.new_zeros((some.shape[0], 2, len(contexts), some.shape[2], width, some.shape[4]))
            for i, (n, kv) in enumerate(found):
                if kv is not None:
                    whole[:, :, i, :, width - n :] = kv[:, :, :, :n]
            for layer, (keys, values) in enumerate(whole):
                self.cache.update(keys, values, layer)
        self.fresh = [c[n:] for c, (n, _) in zip(arrays, found, strict=True)]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, last: int) -> torch.Tensor:
        """Read columns; logits of the `last` ones [B, last, V]."""
        before = self.mask.sum(1, keepdim=True)
        position = (before + mask.cumsum(1) - 1).clamp(min=0)
        self.mask = torch.cat([self.mask, mask], 1)
        self.owner.passes += 1
        device = self.model.device
        out = self.model(
            input_ids=ids.to(device),
            attention_mask=self.mask.to(device),
            position_ids=position.to(device),
            use_cache=True,
            logits_to_keep=last,
            **{_cache_name(self.model): self.cache},
        )
        return out.logits.float().cpu()

    def first(self, temperature: float, rng: torch.Generator) -> list[list[int]]:
        """Read what no kept row had; one token a row."""
        width = max(len(c) for c in self.fresh)
        ids, mask = torch.zeros(len(self.fresh), width, dtype=torch.long), torch.zeros(len(self.fresh), width).long()
        for i, c in enumerate(self.fresh):
            ids[i, width - len(c) :], mask[i, width - len(c) :] = torch.from_numpy(c), 1
        logits = self._forward(ids, mask, 1)[:, 0]
        return [[t] for t in _drawn(logits, temperature, rng)]

    def more(
        self, said: Sequence[tuple[np.ndarray, list[int]]], temperature: float, rng: torch.Generator
    ) -> list[list[int]]:
        """Read each row's last token and a draft; the tokens that were accepted, and one more. `said`: contexts and steps."""
        ids = [np.array([*context, *step]) for context, step in said]
        drafts = [draft(i, self.owner.ahead) for i in ids]
        width = 1 + max(len(d) for d in drafts)
        block, mask = torch.zeros(len(ids), width, dtype=torch.long), torch.zeros(len(ids), width, dtype=torch.long)
        for row, (own, drafted) in enumerate(zip(ids, drafts, strict=True)):
            block[row, : 1 + len(drafted)] = torch.tensor([int(own[-1]), *drafted])
            mask[row, : 1 + len(drafted)] = 1
        begin = self.mask.shape[1]
        logits = self._forward(block, mask, width)
        out = []
        for row, drafted in enumerate(drafts):
            if self.owner.allowed is not None:
                self._hold(logits[row], *said[row], drafted)
            taken = _accepted(logits[row], drafted, temperature, rng)
            # what was not accepted was read and counts no more
            self.mask[row, begin + len(taken) :] = 0
            out.append(taken)
        return out

    def _hold(self, logits: torch.Tensor, context: np.ndarray, step: Sequence[int], drafted: Sequence[int]) -> None:
        """Forbid, in logits [1 + drafted, V], what may not follow; in place."""
        assert self.owner.allowed is not None
        for n in range(len(drafted) + 1):
            ids = self.owner.allowed(context, [*step, *drafted[:n]])
            if ids is not None:
                kept = logits[n, ids].clone()
                logits[n] = -torch.inf
                logits[n, ids] = kept

    def select(self, live: list[int]) -> None:
        """Go on with these rows."""
        if len(live) < len(self.rows):
            chosen = torch.tensor(live)
            self.cache.batch_select_indices(chosen.to(self.model.device))
            self.mask, self.rows = self.mask[chosen], [self.rows[i] for i in live]

    def read(self, row: int) -> torch.Tensor:
        """Keys and values of what a row has read."""
        at = self.mask[row].bool().to(self.model.device)
        layers = [torch.stack([layer.keys[row][:, at], layer.values[row][:, at]]) for layer in self.cache.layers]
        return torch.stack(layers)


def _drawn(logits: torch.Tensor, temperature: float, rng: torch.Generator) -> list[int]:
    if temperature == 0:
        return [int(t) for t in logits.argmax(-1)]
    return [int(t) for t in torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)[:, 0]]


def _accepted(logits: torch.Tensor, drafted: Sequence[int], temperature: float, rng: torch.Generator) -> list[int]:
    """The drafted tokens that are accepted, and the token after them, from logits [1 + drafted, V] of a row."""
    for n, token in enumerate(drafted):
        at = logits[n]
        if temperature == 0:
            if int(at.argmax()) != token:
                return [*drafted[:n], int(at.argmax())]
            continue
        likely = float((at / temperature).log_softmax(-1)[token].exp())
        if float(torch.rand((), generator=rng)) >= likely:
            rest = at.clone()
            rest[token] = -torch.inf
            return [*drafted[:n], *_drawn(rest[None], temperature, rng)]
    return [*drafted, *_drawn(logits[len(drafted)][None], temperature, rng)]

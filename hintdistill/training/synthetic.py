"""Rows of given lengths on random ids: what the trainer is timed on before there are targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hintdistill.core.scores import Target
from hintdistill.training.row_lengths import RowLength


def synthetic_targets(rows: Sequence[RowLength], vocabulary: int, kept: int) -> list[Target]:
    """Make one target per row, its scored tokens in one step at the end, with `kept` entries at each of them."""
    rng, kept = np.random.default_rng(0), min(kept, vocabulary - 1)
    return [_target(f"row-{n}", row, rng, vocabulary, kept) for n, row in enumerate(rows)]


def _target(name: str, row: RowLength, rng: np.random.Generator, vocab: int, kept: int) -> Target:
    step = max(1, min(row.scored, row.tokens))
    ids = rng.integers(0, vocab, row.tokens + 1)
    flat = np.full((step, kept), -np.log(kept + 1.0), np.float32)
    tail, sampled = np.full(step, -np.log(kept + 1.0), np.float32), np.zeros(step, np.float32)
    hint = max(1, row.branch_tokens - row.hinted) if row.branches else 8
    supports = np.tile(np.sort(rng.permutation(vocab)[:kept])[None].astype(np.int64), (step, 1))
    # the sampled token is always kept, once
    absent = ~(supports == ids[-step:, None]).any(1)
    supports[absent, 0] = ids[-step:][absent]
    return Target(
        key=name,
        trace_id=name,
        step=0,
        kind="hint",
        split="train",
        context_ids=ids[: len(ids) - step],
        step_ids=ids[len(ids) - step :],
        span=(0, step),
        support_ids=supports,
        teacher_logprobs=flat,
        plain_logprobs=flat,
        teacher_tail=tail,
        plain_tail=tail,
        teacher_sampled=sampled,
        plain_sampled=sampled,
        insert_at=len(ids) - step,
        block_ids=rng.integers(0, vocab, hint),
        fidelity="ids",
        accepted=True,
    )


def shorter(row: RowLength, share: float) -> RowLength:
    """Shorten a row to a share of its length, its scored tokens and branches shortened alike and put at its end."""
    tokens = max(16, round(row.tokens * share))
    scored = max(1, min(round(row.scored * share), tokens // 2))
    hint = max(1, round((row.branch_tokens - row.hinted) * share)) if row.branches else 0
    return RowLength(row.trace_id, tokens, scored, scored, ((tokens - scored, hint + scored),) if hint else ())

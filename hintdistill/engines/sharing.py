"""Choose the way in which a model shares prefixes, from its config and a self-check.

Full and sliding attention share keys and values (`shared_prefix`). Anything with a state walks a snapshot chain.
Unknown kinds read every sequence on its own, cut after its last scored token. At first use the chosen way is compared
with separate forward passes on random tokens, branches and nested branches. If it is inexact, the next way is tried,
and a warning names the reason. The check costs a few hundred tokens once per engine.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hintdistill.engines.forward import Head, hidden_at
from hintdistill.engines.prefix_tree import PrefixTree, grow
from hintdistill.engines.shared_prefix import shared_hidden
from hintdistill.engines.snapshot import snapshot_hidden

Sharing = Literal["shared_prefix", "snapshots", "snapshots_by_token", "separate"]
WAYS: tuple[Sharing, ...] = get_args(Sharing)

ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})
STATE_LAYERS = frozenset({"linear_attention", "conv", "mamba", "recurrent", "hybrid", "moe", "mlp"})
"""Layers whose past is a state, and layers without a past."""
BOUND = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest allowed error in nats; in lower precisions, a multiple of the change caused by padding alone."""
LONGEST_CHECK = 1100
"""Length in tokens up to which the check crosses attention windows."""


class SharingWarning(UserWarning):
    """A faster way of sharing prefixes is not exact for this model, or does not apply to it."""


@dataclass(frozen=True)
class Trial:
    """Hold the result of the self-check for one way."""

    way: Sharing
    error: float
    """Largest |Δ log p| against separate forward passes, nats; NaN if nothing could be compared."""
    bound: float
    reason: str
    """Reason why the way is not used; empty if it is used."""


def candidates(model: Any) -> list[Sharing]:
    """Return the ways that may fit a model, fastest first; the last one always fits."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = set(getattr(base.config.get_text_config(), "layer_types", None) or ())
    stateful = bool(getattr(base, "_is_stateful", False)) or bool(layers & STATE_LAYERS - {"moe", "mlp"})
    if stateful:
        return ["snapshots", "snapshots_by_token", "separate"]
    if layers <= ATTENTION_LAYERS and getattr(base, "_supports_attention_backend", False):
        return ["shared_prefix", "separate"]
    return ["separate"]


def hidden_states(
    way: Sharing, model: Any, tree: PrefixTree, sequences: Sequence[np.ndarray], positions: Sequence[range], budget: int
) -> list[Tensor]:
    """Return the hidden states [T_i, H] at each sequence's positions, read in the given way.

    Raises:
        SharingError: the model cannot be read this way.
    """
    if way == "shared_prefix":
        return shared_hidden(model, tree, positions, budget)
    if way == "separate":
        return [hidden_at(model, [s], [p], 0)[0] for s, p in zip(sequences, positions, strict=True)]
    return snapshot_hidden(model, tree, positions, by_token=way == "snapshots_by_token")


def choose(model: Any, head: Head, vocab: int) -> tuple[Sharing, list[Trial]]:
    """Return the fastest way that is exact for this model, and the trials. Warns if the first way is not used."""
    ways = candidates(model)
    trials: list[Trial] = []
    name = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    if ways == ["separate"]:
        warnings.warn(
            f"{name} is an unknown kind: every sequence is read on its own, which is exact but slower",
            SharingWarning,
            stacklevel=3,
        )
        return "separate", trials
    check = _Check(model, head, vocab)
    for way in ways:
        if way == "separate" or not check.usable:
            trials.append(Trial("separate" if check.usable else way, 0.0, check.bound, ""))
            break
        trials.append(check.trial(way))
        if not trials[-1].reason:
            break
    refused = [t for t in trials if t.reason]
    chosen = trials[-1].way
    if refused and chosen == "separate":
        reasons = "; ".join(f"{t.way}: {t.reason}" for t in refused)
        warnings.warn(
            f"{name}: every sequence is read on its own, because no way of sharing prefixes is exact for this model "
            f"({reasons})",
            SharingWarning,
            stacklevel=3,
        )
    return chosen, trials


class _Check:
    """Hold a small tree with all features of a real one, and its scores from separate passes."""

    def __init__(self, model: Any, head: Head, vocab: int) -> None:
        self.model, self.head = model, head
        config = model.config.get_text_config()
        window = getattr(config, "sliding_window", None) or 0
        limit = min(LONGEST_CHECK, int(getattr(config, "max_position_embeddings", None) or LONGEST_CHECK))
        length = min(limit - 24, max(64, window + 40 if window + 40 <= LONGEST_CHECK else 64))
        rng = np.random.default_rng(0)
        trunk, hint = rng.integers(0, vocab, length), rng.integers(0, vocab, 12)
        other = np.concatenate([hint[:5], rng.integers(0, vocab, 6)])
        early, late = length // 3, length - 12
        self.sequences = [
            trunk,
            np.concatenate([trunk[:early], hint, trunk[early : early + 10]]),
            np.concatenate([trunk[:early], other, trunk[early : early + 10]]),
            np.concatenate([trunk[:late], hint, trunk[late:]]),
            rng.integers(0, vocab, 20),
        ]
        self.positions = [range(len(s) - 8, len(s)) for s in self.sequences]
        self.tree = grow(self.sequences)
        with torch.inference_mode():
            apart = hidden_states("separate", model, self.tree, self.sequences, self.positions, 0)
            self.reference = self._logprobs(apart)
            self.usable = bool(torch.isfinite(self.reference).all())
            """Whether separate passes give finite numbers; if not, scoring reports it."""
            if model.dtype in BOUND:
                self.bound = BOUND[model.dtype]
            else:
                padded = self._logprobs(hidden_at(model, self.sequences, self.positions, 0))
                self.bound = max(0.1, 4 * float((padded - self.reference).abs().max()))

    def _logprobs(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return the log-probabilities of the first few hundred ids at every position."""
        return self.head(torch.cat(list(hidden))).log_softmax(-1)[:, :512]

    def trial(self, way: Sharing) -> Trial:
        """Compare one way with the separate passes."""
        try:
            with torch.inference_mode():
                hidden = hidden_states(way, self.model, self.tree, self.sequences, self.positions, 48)
                error = float((self._logprobs(hidden) - self.reference).abs().max())
        except Exception as problem:
            # whatever an unforeseen architecture raises, there is an exact way left
            return Trial(
                way, float("nan"), self.bound, f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
            )
        fits = error <= self.bound
        return Trial(way, error, self.bound, "" if fits else f"off by {error:.2g} nats in the self-check")

"""Every distinct token once on models with a state: the trunk is walked from fork to fork, the state copied at each.

Recurrent, linear-attention, convolution and hybrid layers have no keys to attend to, only what their state became. So
the trunk is read stretch by stretch, and at each place where a branch leaves it the whole cache is copied; the branch
goes on from the copy. A copy is never rolled back, because cropping a recurrent state is silently wrong.

Some kinds (Mamba) continue from a state one token at a time only: given several, they start from an empty state and say
nothing. Which of the two holds for a model is found out by the engine's self-check, not assumed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hintdistill.core.errors import SharingError
from hintdistill.engines.forward import intercept
from hintdistill.engines.prefix_tree import ROOT, PrefixTree

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""What releases of transformers call the state a model takes and gives back."""


def cache_name(model: Any) -> str | None:
    """Return the name under which a model takes its state, None if it takes none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(base.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


class Walk:
    """One walk over a tree. Hidden states are collected by (chain, position)."""

    def __init__(self, model: Any, tree: PrefixTree, wanted: dict[int, list[int]], by_token: bool) -> None:
        """`by_token`: continue from a state one token at a time.

        Raises:
            SharingError: the model takes no state.
        """
        name = cache_name(model)
        if name is None:
            raise SharingError("it takes no cache")
        self.model, self.tree, self.wanted, self.by_token, self.name = model, tree, wanted, by_token, name
        self.device = next(model.parameters()).device
        self.found: dict[tuple[int, int], Tensor] = {}
        self.forks: dict[int, list[int]] = {}
        for index, chain in enumerate(tree.chains):
            self.forks.setdefault(chain.parent, []).append(index)

    def run(self) -> None:
        """Read the whole tree."""
        for trunk in self.forks.get(ROOT, ()):
            self._chain(trunk, None)

    def _chain(self, index: int, state: Any) -> None:
        chain = self.tree.chains[index]
        at = chain.at
        branches = sorted(self.forks.get(index, ()), key=lambda i: self.tree.chains[i].at)
        for n, branch in enumerate(branches):
            fork = self.tree.chains[branch].at
            if fork > at:
                state = self._read(index, at, fork, state)
                at = fork
            last = n == len(branches) - 1 and fork == chain.end
            self._chain(branch, state if last else copy.deepcopy(state))
        if at < chain.end:
            self._read(index, at, chain.end, state)

    def _read(self, index: int, start: int, stop: int, state: Any) -> Any:
        width = 1 if self.by_token and state is not None else stop - start
        for at in range(start, stop, width):
            state = self._forward(index, at, min(at + width, stop), state)
        return state

    def _forward(self, index: int, start: int, stop: int, state: Any) -> Any:
        chain = self.tree.chains[index]
        ids = torch.from_numpy(chain.ids[start - chain.at : stop - chain.at])[None].to(self.device)
        positions = [p for p in self.wanted.get(index, ()) if start <= p < stop]
        columns = torch.tensor([p - start for p in positions], dtype=torch.long)
        out: list[Tensor] = []
        with intercept(self.model, torch.zeros_like(columns), columns, out):
            answer = self.model(input_ids=ids, use_cache=True, **{self.name: state})
        self.found.update({(index, p): h for p, h in zip(positions, out[0], strict=True)})
        after = getattr(answer, self.name, None)
        if after is None:
            raise SharingError("it gives no state back")
        return after


def snapshot_hidden(model: Any, tree: PrefixTree, positions: Sequence[range], by_token: bool) -> list[Tensor]:
    """Hidden states [T_i, H] at each sequence's positions; see `shared_prefix.shared_hidden`."""
    places = [tree.places(i, p) for i, p in enumerate(positions)]
    wanted: dict[int, list[int]] = {}
    for chain, position in sorted({place for some in places for place in some}):
        wanted.setdefault(chain, []).append(position)
    walk = Walk(model, tree, wanted, by_token)
    walk.run()
    return [torch.stack([walk.found[p] for p in some]) for some in places]

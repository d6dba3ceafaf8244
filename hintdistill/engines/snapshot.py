"""Read every distinct token once on models with a state, copying the state at each fork of the trunk.

Recurrent, linear-attention, convolution and hybrid layers keep a state instead of keys. So the trunk is read from fork
to fork. At each fork the whole cache is copied, and the branch continues from the copy. A copy is never rolled back,
because cropping a recurrent state silently gives wrong results.

Some kinds (Mamba) can continue from a state only one token at a time: given several tokens, they silently start from an
empty state. The engine's self-check determines which case applies to a model.
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
"""Names that releases of transformers use for the state that a model takes and returns."""


def cache_name(model: Any) -> str | None:
    """Return the name of the argument for a model's state; None if it has none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(base.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


class Walk:
    """Walk over one tree and collect hidden states by (chain, position)."""

    def __init__(self, model: Any, tree: PrefixTree, wanted: dict[int, list[int]], by_token: bool) -> None:
        """Prepare the walk. `by_token`: continue from a state one token at a time. Raises: SharingError: the model
        takes no state.
        """
        name = cache_name(model)
        if name is None:
            raise SharingError("the model takes no cache")
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
            raise SharingError("the model returns no state")
        return after


def snapshot_hidden(model: Any, tree: PrefixTree, positions: Sequence[range], by_token: bool) -> list[Tensor]:
    """Return the hidden states [T_i, H] at each sequence's positions; see `shared_prefix.shared_hidden`."""
    places = [tree.places(i, p) for i, p in enumerate(positions)]
    wanted: dict[int, list[int]] = {}
    for chain, position in sorted({place for some in places for place in some}):
        wanted.setdefault(chain, []).append(position)
    walk = Walk(model, tree, wanted, by_token)
    walk.run()
    return [torch.stack([walk.found[p] for p in some]) for some in places]

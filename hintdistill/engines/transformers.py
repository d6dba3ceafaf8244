"""Score with transformers: every distinct token is read once, up to the last scored one, without decoding.

The requests of a call become a prefix tree (`prefix_tree`), which is read in the fastest way that is exact for the
model (`sharing`). A repeated sequence is the same place in the tree, so a view without a hint is bit-identical to the
plain one. Hidden states of scored positions are kept until the top-k of every request in a group is known; then the ids
of the other views are scored too, without a second pass (`vocabulary`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hintdistill.core.errors import ContextLengthError, ModelError, ScoreError
from hintdistill.core.machine import give_back, precision
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.models import model_key
from hintdistill.core.scores import ScoreRequest, Scores
from hintdistill.engines import union_rows
from hintdistill.engines.forward import head_error, hidden_at
from hintdistill.engines.keys_values import Memory
from hintdistill.engines.prefix_tree import PrefixTree, batches, call_tokens, grow
from hintdistill.engines.shared_prefix import Trunk, shared_hidden
from hintdistill.engines.sharing import WAYS, Sharing, Trial, choose, hidden_states
from hintdistill.engines.vocabulary import HeadReading, Vocabulary
from hintdistill.engines.weights import load_model

HEAD_ENTRIES = 1 << 19
"""Entries of logits that are worth one pass of the head; groups of requests are read together up to so many."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device: for `auto`, the first accelerator, else the CPU. Raises ModelError if the device is not
    available."""
    if name != "auto":
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"run.device={name} is not usable: {str(error).splitlines()[0]}") from None
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_dtype(name: str, device: torch.device, model: Path | int) -> torch.dtype:
    """Return the precision of a model, given as its folder or its number of parameters; see `machine.precision`.

    Raises:
        ModelError: the folder's config cannot be read, although `auto` needs the size.
    """
    on_cpu = device.type == "cpu"
    if isinstance(model, Path):
        model = ModelShape.of(model).parameters if name == "auto" and on_cpu else 0
    return DTYPES[precision(name, on_cpu, model)]


@dataclass
class Savings:
    """Count the tokens that sharing has saved since an engine was made."""

    asked: int = 0
    """Number of tokens that separate forward passes, each cut after the last scored token, would have read."""
    computed: int = 0

    def __str__(self) -> str:
        times = self.asked / max(self.computed, 1)
        return f"{self.asked:,} tokens asked, {self.computed:,} computed ({times:.1f}× fewer)"


class TransformersEngine:
    """Score with a transformers causal language model; see `Engine`. Calls from several threads take turns."""

    capabilities = frozenset({"gather", "full"})

    def __init__(
        self,
        model: Any,
        key: str,
        batch_tokens: int | None = None,
        *,
        sharing: Sharing | None = None,
        view: str = "live",
        offload: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            batch_tokens: tokens per forward call; None for the default of the device.
            sharing: how prefixes are shared; None decides at first use (see `sharing`).
            view: `live`, `initial` (adapter off), or the name of an adapter; see `view`.
            offload: keep the keys and values of trunks in the host's memory, for contexts that an accelerator cannot hold.

        Raises:
            ModelError: its logits cannot be reproduced from its hidden states.
        """
        if sharing is not None and sharing not in WAYS:
            raise ValueError(f"sharing must be one of {', '.join(WAYS)}, not {sharing!r}")
        self.model, self.key = model, key
        self.on_cpu = next(model.parameters()).device.type == "cpu"
        self.batch_tokens = call_tokens(batch_tokens, self.on_cpu)
        config = model.config.get_text_config()
        self.max_length = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        self.vocabulary = Vocabulary(model)
        self.vocab_size = self.vocabulary.size
        self.pad = int(config.pad_token_id or 0)
        self.sharing, self.trials = sharing, list[Trial]()
        self.plans: list[PrefixTree] = []
        """The trees of the last call of `score`; each prints its savings."""
        self.saved = Savings()
        self._view, self.offload = view, offload
        self._lock = threading.RLock()
        error, bound = head_error(model, self.vocabulary.head), 1e-3 if model.dtype == torch.float32 else 0.25
        if not error <= bound:
            raise ModelError(
                f"{type(model).__name__} changes its logits in a way that its config does not declare (off by "
                f"{error:.3g})",
                hint="this architecture needs an entry in engines/forward.py:make_squash",
            )

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: str = "auto",
        device: str = "auto",
        batch_tokens: int | None = None,
        sharing: Sharing | None = None,
        offload: bool = False,
    ) -> TransformersEngine:
        """Load a model folder. Raises ModelError."""
        where = pick_device(device)
        model = load_model(folder, pick_dtype(dtype, where, folder), where)
        return cls(model, model_key(folder).weights, batch_tokens, sharing=sharing, offload=offload)

    def view(self, weights: str) -> TransformersEngine:
        """Return an engine of the same model with other weights: `live`, `initial` (every adapter off), or an adapter's
        name.

        Raises:
            ModelError: the model carries no such adapter.
        """
        adapters = getattr(self.model, "peft_config", {})
        if weights != "live" and (not adapters or (weights != "initial" and weights not in adapters)):
            raise ModelError(
                f"the model has no view {weights!r}",
                hint=f"views: live, initial, {', '.join(adapters) or 'no adapters'}",
            )
        other = TransformersEngine(
            self.model,
            f"{self.key}:{weights}",
            self.batch_tokens,
            sharing=self.sharing,
            view=weights,
            offload=self.offload,
        )
        other._lock = self._lock
        return other

    def score(self, requests: Sequence[ScoreRequest], top_k: int, trunk: Trunk | None = None) -> list[Scores]:
        """See `Engine.score`. `trunk` was read by `read_trunk`; tokens that the requests share with it are not read
        again."""
        with self.at_work():
            return self.scores_of(requests, self._hidden(requests, trunk), top_k)

    def scores_of(self, requests: Sequence[ScoreRequest], hidden: Sequence[Tensor], top_k: int) -> list[Scores]:
        """Return the scores of requests whose hidden states [T, H] are known; inside `at_work`. Errors are those of
        `score`."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.group if request.group is not None else f"\0{i}", []).append(i)
        out: list[Scores | None] = [None] * len(requests)
        block, rows = list[list[int]](), 0
        for members in groups.values():
            if len({requests[i].end - requests[i].start for i in members}) > 1:
                raise ValueError("requests of one group must score steps of the same length")
            more = sum(len(hidden[i]) for i in members)
            if block and (rows + more) * self.vocab_size > HEAD_ENTRIES:
                self._head(block, requests, hidden, top_k, out)
                block, rows = [], 0
            block.append(members)
            rows += more
        if block:
            self._head(block, requests, hidden, top_k, out)
        return [s for s in out if s is not None]

    def _head(
        self,
        groups: Sequence[Sequence[int]],
        requests: Sequence[ScoreRequest],
        hidden: Sequence[Tensor],
        top_k: int,
        out: list[Scores | None],
    ) -> None:
        """Put the scores of some groups of requests into `out`; what two requests ask alike is the same numbers."""
        where: dict[int, range] = {}
        seen, firsts, rows = dict[tuple[bytes, int], range](), list[int](), 0
        for i in (i for members in groups for i in members):
            key = (np.asarray(requests[i].ids[: requests[i].end], np.int64).tobytes(), requests[i].start)
            if key not in seen:
                seen[key] = range(rows, rows + len(hidden[i]))
                firsts.append(i)
                rows += len(hidden[i])
            where[i] = seen[key]
        sampled = np.concatenate([_sampled(requests[i]) for i in firsts])
        reading = self.vocabulary.read(torch.cat([hidden[i] for i in firsts]), sampled, min(top_k, self.vocab_size))
        tops = reading.top_ids.cpu().numpy()
        views: list[tuple[range, np.ndarray]] = []
        members_of: dict[tuple[int, range], list[int]] = {}
        for n, members in enumerate(groups):
            own = [tops[r.start : r.stop] for r in dict.fromkeys(where[i] for i in members)]
            ids = union_rows([*own, _sampled(requests[members[0]])[:, None]])
            for i in members:
                if (n, where[i]) not in members_of:
                    views.append((where[i], ids))
                members_of.setdefault((n, where[i]), []).append(i)
        kept = self._kept(reading, views)
        for (own_rows, ids), some, (values, tail) in zip(views, members_of.values(), kept, strict=True):
            part = reading.at(own_rows)
            for i in some:
                out[i] = self._scores(requests[i], part, ids, values, tail)

    def _kept(
        self, reading: HeadReading, views: Sequence[tuple[range, np.ndarray]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return what `Vocabulary.kept` says of some rows of a reading, each with its ids [T, K]: [T, K] and [T] each."""
        width = max(ids.shape[1] for _, ids in views)
        padded = [np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=-1) for _, ids in views]
        every = reading.at([row for rows, _ in views for row in rows])
        values, tail = (x.cpu().numpy() for x in self.vocabulary.kept(every, np.concatenate(padded)))
        out, at = list[tuple[np.ndarray, np.ndarray]](), 0
        for rows, ids in views:
            stop = at + len(rows)
            out.append((values[at:stop, : ids.shape[1]].copy(), tail[at:stop].copy()))
            at = stop
        return out

    def logprobs(self, requests: Sequence[ScoreRequest]) -> Iterator[Tensor]:
        """Return the log-probabilities of the whole vocabulary, float32 [T, V], one request at a time (capability
        `full`)."""
        with self.at_work():
            hidden = self._hidden(requests, None)
        for h in hidden:
            with torch.inference_mode():
                logprobs = self.vocabulary.logprobs(h)
            # outside: two of these generators read in turn would restore each other's mode
            yield logprobs

    def read_trunk(self, ids: np.ndarray) -> Trunk:
        """Read a trace once and keep its keys and values, for `score(…, trunk=…)`.

        Raises:
            ModelError: this model's prefixes are not shared through keys and values.
            ContextLengthError: the trunk is longer than the model accepts.
        """
        self.fits(len(ids))
        with self.at_work():
            if self.way() != "shared_prefix":
                raise ModelError(f"a trunk cannot be kept, because this model shares prefixes by {self.sharing}")
            return Trunk.read(self.model, ids, self.batch_tokens, self.offload)

    @contextlib.contextmanager
    def hold(self) -> Iterator[Any]:
        """Reserve the model, e.g. to generate with it. Scoring hooks into the model, so other threads wait
        meanwhile."""
        with self._lock:
            yield self.model

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Run the block in one thread at a time, without gradients and with the right weights."""
        with self._lock, torch.inference_mode(), contextlib.ExitStack() as stack:
            if self._view == "initial":
                stack.enter_context(self.model.disable_adapter())
            elif self._view != "live":
                before = self.model.active_adapter
                self.model.set_adapter(self._view)
                stack.callback(self.model.set_adapter, before)
            yield

    def way(self) -> Sharing:
        """Return how prefixes are shared; this is decided at first use."""
        if self.sharing is None:
            self.sharing, self.trials = choose(self.model, self.vocabulary.head, self.vocab_size)
        return self.sharing

    def fits(self, length: int) -> None:
        """Raise ContextLengthError if a sequence of the given number of tokens is too long."""
        if length > self.max_length:
            raise ContextLengthError(
                f"a sequence of {length} tokens is longer than the model's {self.max_length} positions",
                hint="shorten the trace, or use a model with a longer context",
            )

    def _hidden(self, requests: Sequence[ScoreRequest], trunk: Trunk | None) -> list[Tensor]:
        """Return the hidden states [T, H] of each request."""
        for r in requests:
            self.fits(r.end)
        way = self.way()
        # the last scored token itself need not be read
        sequences = [np.ascontiguousarray(r.ids[: r.end - 1], dtype=np.int64) for r in requests]
        positions = [range(r.start - 1, r.end - 1) for r in requests]
        self.plans = []
        if way == "separate":
            return self._separate(sequences, positions)
        out: list[Tensor | None] = [None] * len(requests)
        for batch in [list(range(len(requests)))] if trunk else batches(sequences, self.batch_tokens):
            some, places = [sequences[i] for i in batch], [positions[i] for i in batch]
            tree = grow(some, [trunk.ids] if trunk else [])
            self.note(tree)
            if trunk or way == "shared_prefix":
                memory = trunk.memory if trunk else Memory(self.offload)
                found = shared_hidden(self.model, tree, places, self.batch_tokens, memory)
            else:
                found = hidden_states(way, self.model, tree, some, places, self.batch_tokens)
            for i, hidden in zip(batch, found, strict=True):
                out[i] = hidden
            if self.on_cpu:
                give_back()
        return [h for h in out if h is not None]

    def note(self, tree: PrefixTree) -> None:
        """Count the tokens that a tree stands for and the tokens computed for it."""
        self.plans.append(tree)
        self.saved.asked += tree.asked
        self.saved.computed += tree.computed

    def _separate(self, sequences: Sequence[np.ndarray], positions: Sequence[range]) -> list[Tensor]:
        """Read every distinct sequence on its own, in right-padded batches of similar length."""
        slots: dict[tuple[bytes, range], list[int]] = {}
        for i, (sequence, wanted) in enumerate(zip(sequences, positions, strict=True)):
            slots.setdefault((sequence.tobytes(), wanted), []).append(i)
        firsts = sorted((members[0] for members in slots.values()), key=lambda i: len(sequences[i]))
        out: list[Tensor | None] = [None] * len(sequences)
        self.saved.asked += sum(map(len, sequences))
        for batch in self._batches(firsts, sequences):
            self.saved.computed += sum(len(sequences[i]) for i in batch)
            found = hidden_at(self.model, [sequences[i] for i in batch], [positions[i] for i in batch], self.pad)
            for first, hidden in zip(batch, found, strict=True):
                for i in slots[sequences[first].tobytes(), positions[first]]:
                    out[i] = hidden
        return [h for h in out if h is not None]

    def _batches(self, order: Sequence[int], sequences: Sequence[np.ndarray]) -> Iterator[list[int]]:
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) + 1) * len(sequences[i]) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _scores(
        self, request: ScoreRequest, reading: HeadReading, ids: np.ndarray, values: np.ndarray, tail: np.ndarray
    ) -> Scores:
        # copies, so that a score does not hold the arrays of its whole block
        sampled, first = (x.cpu().numpy().copy() for x in (reading.sampled, reading.top_ids[:, 0]))
        wanted = request.gather_ids
        gathered = None if wanted is None else self.vocabulary.logprobs_of(reading, wanted).cpu().numpy()
        if not np.isfinite(sampled).all() or np.isnan(values).any() or np.isnan(tail).any():
            at = int(np.argmin(np.isfinite(sampled)))
            raise ScoreError(
                f"log-probability {sampled[at]} at position {at} of a step ({request.group or 'no group'})",
                hint="the computation overflows with these weights or this precision; try run.dtype=float32",
            )
        return Scores(sampled, ids, values, tail, gathered, first)


def _sampled(request: ScoreRequest) -> np.ndarray:
    return np.asarray(request.ids[request.start : request.end], np.int64)
